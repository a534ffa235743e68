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
