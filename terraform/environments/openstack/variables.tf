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

  validation {
    condition     = var.access == "private" || var.floating_pool != null
    error_message = "access = \"${var.access}\" needs public addresses. Write floating_pool, the name of the external network (openstack network list --external), or access = \"private\"."
  }
  validation {
    condition     = var.access == "private" || var.network != null || var.external_network_id != null
    error_message = "access = \"${var.access}\" needs a router: write external_network_id, the id of the external network (openstack network list --external), or access = \"private\"."
  }
}

variable "bastion_flavor" {
  description = "Flavour of the bastion; null: that of flavors with the least memory."
  type        = string
  default     = null
}

variable "floating_pool" {
  description = "Name of the external network that public addresses come from; null: there are none."
  type        = string
  default     = null
}

variable "volume_zones" {
  description = "Cinder's zone for each of the zones, where the two have different names."
  type        = map(string)
  default     = {}
}

variable "zones" {
  description = "Availability zones that may be used."
  type        = set(string)
  default     = ["nova"]
}

variable "volume_type" {
  description = "Cinder volume type of the SSDs; name an encrypted one."
  type        = string
}

variable "network" {
  description = "Ids of network and subnet that are there already; null: they are made."
  type        = object({ id = string, subnet_id = string })
  default     = null
}

variable "cidr" {
  description = "Range of the subnet that is made."
  type        = string
  default     = "10.42.0.0/24"
}

variable "external_network_id" {
  description = "External network that a router connects the new subnet to; null: no router."
  type        = string
  default     = null
}
