variable "name" {
  description = "Name of the facility; everything that is made bears it."
  type        = string
  default     = "storage"
}

variable "nodes" {
  description = "The hosts by name: see the module cluster-layout."
  type = map(object({
    roles       = optional(set(string), ["worker"])
    flavor      = string
    zone        = string
    address     = optional(string)
    ssd_gib     = optional(number, 250)
    mem_gib     = optional(number, 4)
    journal_gib = optional(number, 0)
    data_gib    = optional(number, 0)
  }))
}

variable "flavors" {
  description = "Flavours that may be used, with their memory in GiB."
  type        = map(number)
}

variable "image" {
  description = "Id of the Debian 12 image."
  type        = string
}

variable "ssh_keys" {
  description = "Public keys of those who run Ansible."
  type        = list(string)
}

variable "operator_cidrs" {
  description = "Networks that may reach ssh."
  type        = set(string)

  validation {
    condition     = !contains(var.operator_cidrs, "0.0.0.0/0")
    error_message = "ssh is not opened to everybody. Write the networks of the operators, e.g. [\"198.51.100.0/24\"]."
  }
}

variable "client_cidrs" {
  description = "Networks that may reach the balancers."
  type        = set(string)
}

variable "processor_cidrs" {
  description = "Networks of processors that use Alluxio's Java client: they read everything without a token."
  type        = set(string)
  default     = []
}

variable "access" {
  description = "How operators and clients come to the nodes: bastion (a small host with a public address, for ssh), public (every node has a public address), private (by a VPN or a peering of yours)."
  type        = string
  default     = "bastion"

  validation {
    condition     = contains(["bastion", "public", "private"], var.access)
    error_message = "access is ${var.access}. Write bastion, public or private."
  }
}

variable "bastion_flavor" {
  description = "Flavour of the bastion."
  type        = string
  default     = "t3.micro"
}

variable "instance_profile" {
  description = "Instance profile of the nodes that you made, e.g. for the session manager; null: none, or that of bucket."
  type        = string
  default     = null
}

variable "bucket" {
  description = "Bucket of the facility: the nodes get a role that opens it, and no keys are needed; null: keys are in the vault."
  type        = string
  default     = null

  validation {
    condition     = var.bucket == null || var.instance_profile == null
    error_message = "A node has one instance profile: leave bucket out, and let the role of ${coalesce(var.instance_profile, "-")} open it, or leave instance_profile out."
  }
}

variable "ssd_iops" {
  description = "Operations per second of each SSD volume."
  type        = number
  default     = 3000
}

variable "ssd_throughput" {
  description = "MiB per second of each SSD volume; what gp3 gives by default (125) is slower than S3."
  type        = number
  default     = 500

  validation {
    condition     = var.ssd_throughput >= 125 && var.ssd_throughput <= 1000
    error_message = "ssd_throughput is ${var.ssd_throughput}. gp3 gives 125 to 1000 MiB/s."
  }
  validation {
    condition     = var.ssd_throughput <= var.ssd_iops / 4
    error_message = "ssd_throughput is ${var.ssd_throughput}: gp3 gives a quarter MiB/s for each operation per second. Write ssd_iops = ${var.ssd_throughput * 4} or more."
  }
}

variable "placement" {
  description = "How nodes are kept apart: spread (never two on one machine, at most seven for each zone), partition (seven racks for each zone), none."
  type        = string
  default     = "spread"

  validation {
    condition     = contains(["spread", "partition", "none"], var.placement)
    error_message = "placement is ${var.placement}. Write spread, partition or none."
  }
  validation {
    condition     = var.placement != "spread" || alltrue([for zone in var.zones : length([for node in var.nodes : node if node.zone == zone]) <= 7])
    error_message = "A spread group holds at most seven nodes for each zone: ${join(", ", [for zone in var.zones : "${zone} has ${length([for node in var.nodes : node if node.zone == zone])}" if length([for node in var.nodes : node if node.zone == zone]) > 7])}. Use more zones, or write placement = \"partition\"."
  }
}

variable "region" {
  description = "Region of the facility."
  type        = string
  default     = "eu-central-1"
}

variable "zones" {
  description = "Zones that may be used. Each gets a subnet by its place here: append, never reorder."
  type        = list(string)
  default     = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
}

variable "cidr" {
  description = "Range of the network that is made."
  type        = string
  default     = "10.42.0.0/16"
}

variable "endpoint" {
  description = "Null: AWS. An address: an emulator of it, for tests."
  type        = string
  default     = null
}
