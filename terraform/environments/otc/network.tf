resource "opentelekomcloud_vpc_v1" "this" {
  count = var.network == null ? 1 : 0

  name = var.name
  cidr = var.cidr
}

resource "opentelekomcloud_vpc_subnet_v1" "this" {
  count = var.network == null ? 1 : 0

  name       = var.name
  vpc_id     = opentelekomcloud_vpc_v1.this[0].id
  cidr       = var.cidr
  gateway_ip = cidrhost(var.cidr, 1)
  dns_list   = var.dns_servers
}

locals {
  network = var.network != null ? var.network : {
    id        = opentelekomcloud_vpc_subnet_v1.this[0].network_id
    subnet_id = opentelekomcloud_vpc_subnet_v1.this[0].subnet_id
  }
}

# The way out of nodes without a public address, for packages and time; a network that is there
# already has its own.
locals {
  gateways = var.network == null && var.access != "public" ? 1 : 0
}

resource "opentelekomcloud_networking_floatingip_v2" "out" {
  count = local.gateways
}

resource "opentelekomcloud_nat_gateway_v2" "this" {
  count = local.gateways

  name                = var.name
  spec                = "1"
  router_id           = opentelekomcloud_vpc_v1.this[0].id
  internal_network_id = local.network.id
}

resource "opentelekomcloud_nat_snat_rule_v2" "this" {
  count = local.gateways

  nat_gateway_id = opentelekomcloud_nat_gateway_v2.this[0].id
  network_id     = local.network.id
  floating_ip_id = opentelekomcloud_networking_floatingip_v2.out[0].id
}
