variable "node" {
  description = "The node as the module cluster-layout gives it."
  type = object({
    name    = string
    roles   = list(string)
    flavor  = string
    zone    = string
    address = optional(string)
    volumes = map(object({ purpose = string, size_gib = number }))
    tiers   = map(string)
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

variable "network" {
  description = "Ids of the Neutron network and subnet."
  type        = object({ id = string, subnet_id = string })
}

variable "security_group_ids" {
  description = "Security groups of the port."
  type        = set(string)
}

variable "server_group_id" {
  description = "Server group that keeps nodes on different hosts."
  type        = string
}

variable "kms_id" {
  description = "Key that encrypts the volumes."
  type        = string
}

variable "public" {
  description = "Whether the node has a public address."
  type        = bool
}
