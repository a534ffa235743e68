variable "node" {
  description = "The node as the module cluster-layout gives it."
  type = object({
    name      = string
    roles     = list(string)
    flavor    = string
    zone      = string
    address   = optional(string)
    volumes   = map(object({ purpose = string, size_gib = number }))
    tiers     = map(string)
    protected = bool
  })
}

variable "user_data" {
  description = "The cloud-config document of the host."
  type        = string
}

variable "key_name" {
  description = "Name of the key pair at the cloud, for its own console; cloud-init brings the keys."
  type        = string
}

variable "image" {
  description = "Id of the Debian 12 image."
  type        = string
}

variable "subnet_id" {
  description = "Subnet of the node's zone."
  type        = string
}

variable "security_group_ids" {
  description = "Security groups of the instance."
  type        = list(string)
}

variable "volume_type" {
  description = "Type of the data volumes."
  type        = string
  default     = "gp3"
}

variable "placement_group" {
  description = "Placement group that keeps the nodes on different machines; null: none."
  type        = string
}

variable "public" {
  description = "Whether the node has a public address."
  type        = bool
}

variable "instance_profile" {
  description = "Name of the instance profile; null: none."
  type        = string
}

variable "ssd_iops" {
  description = "Operations per second of the SSD volume."
  type        = number
}

variable "ssd_throughput" {
  description = "MiB per second of the SSD volume."
  type        = number
}
