variable "nodes" {
  description = "The hosts by name, with their roles; an address where the name is none of the known ones."
  type = map(object({
    roles   = optional(set(string), ["worker"])
    address = optional(string)
  }))
  default = {
    control = { roles = ["master", "admin", "monitoring"] }
    node1   = {}
    node2   = {}
    node3   = {}
  }

  validation {
    condition     = alltrue([for name, node in var.nodes : node.address != null || contains(keys(local.addresses), name)])
    error_message = "These nodes need an address: ${join(", ", [for name, node in var.nodes : name if node.address == null && !contains(keys(local.addresses), name)])}. Write e.g. { address = \"10.89.8.20\" }, or take one of the names ${join(", ", keys(local.addresses))}."
  }
}
