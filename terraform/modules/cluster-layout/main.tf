locals {
  # Beside its RAM tier a worker needs room for three JVMs, the balancer and the page cache.
  memory_beside_tier_gib = 6

  nodes = {
    for name, node in var.nodes : name => {
      name    = name
      roles   = sort(tolist(node.roles))
      flavor  = node.flavor
      zone    = node.zone
      address = node.address
      volumes = merge(
        contains(node.roles, "worker") ? { ssd0 = { purpose = "ssd", size_gib = node.ssd_gib } } : {},
        node.journal_gib > 0 ? { journal0 = { purpose = "journal", size_gib = node.journal_gib } } : {},
        node.data_gib > 0 ? { data0 = { purpose = "data", size_gib = node.data_gib } } : {},
      )
      # Their disks hold what is nowhere else: an accident at the cloud's console shall not end them.
      protected = contains(node.roles, "admin") || contains(node.roles, "master")
      # The tier is smaller than its volume: the file system takes its part, and a full one stops it.
      tiers = contains(node.roles, "worker") ? {
        mem = "${node.mem_gib}GB"
        ssd = "${floor(node.ssd_gib * 0.92)}GB"
      } : {}
    }
  }
}

# Rules that two variables must keep together; they speak before anything is made.
resource "terraform_data" "rules" {
  lifecycle {
    precondition {
      condition     = alltrue([for node in var.nodes : contains(keys(var.flavors), node.flavor)])
      error_message = "A flavour is not known: ${join(", ", [for name, node in var.nodes : "${name} has ${node.flavor}" if !contains(keys(var.flavors), node.flavor)])}. Write one of ${join(", ", keys(var.flavors))}, or add it to flavors with its memory."
    }
    precondition {
      condition     = alltrue([for node in var.nodes : contains(var.zones, node.zone)])
      error_message = "A zone is not known: ${join(", ", [for name, node in var.nodes : "${name} has ${node.zone}" if !contains(var.zones, node.zone)])}. Write one of ${join(", ", var.zones)}."
    }
    precondition {
      condition = alltrue([
        for node in var.nodes : lookup(var.flavors, node.flavor, 1024) >= node.mem_gib + local.memory_beside_tier_gib
        if contains(node.roles, "worker")
      ])
      error_message = "A worker has too little memory: ${join(", ", [for name, node in var.nodes : "${name} (${node.flavor}, ${lookup(var.flavors, node.flavor, 0)} GiB) wants a RAM tier of ${node.mem_gib} GiB" if contains(node.roles, "worker") && lookup(var.flavors, node.flavor, 1024) < node.mem_gib + local.memory_beside_tier_gib])}. It needs ${local.memory_beside_tier_gib} GiB more than its tier: write a larger flavour or a smaller mem_gib."
    }
  }
}
