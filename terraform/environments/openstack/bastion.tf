# The one host that ssh reaches from outside; Ansible goes through it (ProxyJump).
locals {
  bastions       = var.access == "bastion" ? 1 : 0
  bastion_flavor = coalesce(var.bastion_flavor, [for name, memory in var.flavors : name if memory == min(values(var.flavors)...)][0])
}

module "bastion_init" {
  source = "../../modules/cloud-init"
  count  = local.bastions

  name     = "${var.name}-bastion"
  ssh_keys = var.ssh_keys
}

resource "openstack_networking_secgroup_v2" "bastion" {
  count = local.bastions

  name        = "${var.name}-bastion"
  description = "Bastion of the storage facility ${var.name}"
}

resource "openstack_networking_secgroup_rule_v2" "bastion" {
  for_each = var.access == "bastion" ? var.operator_cidrs : []

  direction         = "ingress"
  ethertype         = "IPv4"
  protocol          = "tcp"
  port_range_min    = 22
  port_range_max    = 22
  remote_ip_prefix  = each.value
  security_group_id = openstack_networking_secgroup_v2.bastion[0].id
}

resource "openstack_networking_port_v2" "bastion" {
  count = local.bastions

  name               = "${var.name}-bastion"
  network_id         = local.network.id
  security_group_ids = [openstack_networking_secgroup_v2.bastion[0].id]

  fixed_ip {
    subnet_id = local.network.subnet_id
  }
}

resource "openstack_compute_instance_v2" "bastion" {
  count = local.bastions

  name         = "${var.name}-bastion"
  image_id     = var.image
  flavor_name  = local.bastion_flavor
  config_drive = true
  key_pair     = openstack_compute_keypair_v2.operator.name
  user_data    = module.bastion_init[0].user_data

  network {
    port = openstack_networking_port_v2.bastion[0].id
  }

  lifecycle {
    ignore_changes = [image_id, user_data, key_pair]
  }
}

# Its address stays when it is replaced.
resource "openstack_networking_floatingip_v2" "bastion" {
  count = local.bastions

  pool       = var.floating_pool
  port_id    = openstack_networking_port_v2.bastion[0].id
  depends_on = [openstack_networking_router_interface_v2.this]
}
