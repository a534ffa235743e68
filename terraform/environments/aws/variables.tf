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
