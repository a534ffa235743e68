resource "openstack_networking_network_v2" "this" {
  count = var.network == null ? 1 : 0

  name = var.name
}

resource "openstack_networking_subnet_v2" "this" {
  count = var.network == null ? 1 : 0

  name       = var.name
  network_id = openstack_networking_network_v2.this[0].id
  cidr       = var.cidr
}

resource "openstack_networking_router_v2" "this" {
  count = var.network == null && var.external_network_id != null ? 1 : 0

  name                = var.name
  external_network_id = var.external_network_id
}

resource "openstack_networking_router_interface_v2" "this" {
  count = var.network == null && var.external_network_id != null ? 1 : 0

  router_id = openstack_networking_router_v2.this[0].id
  subnet_id = openstack_networking_subnet_v2.this[0].id
}

locals {
  network = var.network != null ? var.network : {
    id        = openstack_networking_network_v2.this[0].id
    subnet_id = openstack_networking_subnet_v2.this[0].id
  }
}
