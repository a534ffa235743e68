variable "node" {
  description = "The node as the module cluster-layout gives it."
  type = object({
    name    = string
    roles   = list(string)
    flavor  = string
    zone    = string
    address = string
    volumes = map(object({ purpose = string, size_gib = number }))
    tiers   = map(string)
  })
}

variable "hosts" {
  description = "The command that makes hosts (local_hosts/hosts.py with its directory)."
  type        = string
}

variable "directory" {
  description = "Where that command keeps its state."
  type        = string
}
