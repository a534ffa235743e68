output "node" {
  description = "The node in the shape that every environment gives to the inventory."
  value = {
    name    = var.node.name
    roles   = var.node.roles
    id      = terraform_data.host.id
    address = var.node.address
    zone    = var.node.zone
    tiers   = var.node.tiers
    volumes = { for key, volume in var.node.volumes : key => {
      id       = terraform_data.ssd[key].id
      purpose  = volume.purpose
      size_gib = volume.size_gib
      path     = "/dev/vdb"
    } }
  }
}
