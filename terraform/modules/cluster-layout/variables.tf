variable "nodes" {
  description = "The hosts of the facility by name. A name that is added or taken away touches that host alone."
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

  validation {
    condition     = alltrue([for name, _ in var.nodes : can(regex("^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$", name))])
    error_message = "These names are no host names: ${join(", ", [for name, _ in var.nodes : name if !can(regex("^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$", name))])}. Write lower-case letters, digits and hyphens, beginning with a letter, at most 40 of them."
  }
  validation {
    condition     = alltrue(flatten([for node in var.nodes : [for role in node.roles : contains(["master", "worker", "admin", "monitoring"], role)]]))
    error_message = "A role is not known. Write master, worker, admin or monitoring."
  }
  validation {
    condition     = contains([1, 3], length([for node in var.nodes : node if contains(node.roles, "master")]))
    error_message = "There are ${length([for node in var.nodes : node if contains(node.roles, "master")])} nodes with the role master. Give it to 1 node, or to 3 so that one may fail; an even number decides nothing."
  }
  validation {
    condition     = length([for node in var.nodes : node if contains(node.roles, "admin")]) == 1
    error_message = "There are ${length([for node in var.nodes : node if contains(node.roles, "admin")])} nodes with the role admin. Give it to exactly 1 node."
  }
  validation {
    condition     = length([for node in var.nodes : node if contains(node.roles, "worker")]) >= 1
    error_message = "No node has the role worker. Give it to at least 1 node."
  }
  validation {
    condition     = alltrue([for node in var.nodes : node.ssd_gib >= 20 if contains(node.roles, "worker")])
    error_message = "An SSD volume is too small: ${join(", ", [for name, node in var.nodes : "${name} has ssd_gib = ${node.ssd_gib}" if contains(node.roles, "worker") && node.ssd_gib < 20])}. Write at least 20 (250 is usual)."
  }
  validation {
    condition     = alltrue([for node in var.nodes : node.journal_gib == 0 || (node.journal_gib >= 10 && contains(node.roles, "master"))])
    error_message = "A journal volume is for a master and has at least 10 GiB; write journal_gib = 0 for none."
  }
  validation {
    condition     = alltrue([for node in var.nodes : node.data_gib == 0 || (node.data_gib >= 10 && contains(node.roles, "admin"))])
    error_message = "A data volume is for the node with the role admin (catalog, secrets) and has at least 10 GiB; write data_gib = 0 for none."
  }
  validation {
    condition     = length(distinct(compact([for node in var.nodes : node.address]))) == length(compact([for node in var.nodes : node.address]))
    error_message = "Two nodes have the same address. Write another one, or leave address out and let the cloud choose."
  }
}

variable "flavors" {
  description = "Flavours that may be used, with their memory in GiB."
  type        = map(number)

  validation {
    condition     = length(var.flavors) > 0
    error_message = "No flavour may be used. Write at least one, e.g. { \"m6i.xlarge\" = 16 }."
  }
}

variable "zones" {
  description = "Zones that may be used."
  type        = set(string)
}
