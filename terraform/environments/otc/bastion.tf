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

resource "opentelekomcloud_networking_secgroup_v2" "bastion" {
  count = local.bastions

  name        = "${var.name}-bastion"
  description = "Bastion of the storage facility ${var.name}"
}

resource "opentelekomcloud_networking_secgroup_rule_v2" "bastion" {
  for_each = var.access == "bastion" ? var.operator_cidrs : []

  direction         = "ingress"
  ethertype         = "IPv4"
  protocol          = "tcp"
  port_range_min    = 22
  port_range_max    = 22
  remote_ip_prefix  = each.value
  security_group_id = opentelekomcloud_networking_secgroup_v2.bastion[0].id
}

resource "opentelekomcloud_networking_port_v2" "bastion" {
  count = local.bastions

  name               = "${var.name}-bastion"
  network_id         = local.network.id
  admin_state_up     = true
  security_group_ids = [opentelekomcloud_networking_secgroup_v2.bastion[0].id]

  fixed_ip {
    subnet_id = local.network.subnet_id
  }
}

resource "opentelekomcloud_compute_instance_v2" "bastion" {
  count = local.bastions

  name        = "${var.name}-bastion"
  flavor_name = local.bastion_flavor
  key_pair    = opentelekomcloud_compute_keypair_v2.operator.name
  user_data   = module.bastion_init[0].user_data

  block_device {
    uuid                  = var.image
    source_type           = "image"
    destination_type      = "volume"
    boot_index            = 0
    volume_size           = 20
    volume_type           = "SSD"
    delete_on_termination = true
  }
  network {
    port = opentelekomcloud_networking_port_v2.bastion[0].id
  }

  lifecycle {
    ignore_changes = [user_data, block_device, key_pair]
  }
}

# Its address stays when it is replaced.
resource "opentelekomcloud_networking_floatingip_v2" "bastion" {
  count = local.bastions

  port_id    = opentelekomcloud_networking_port_v2.bastion[0].id
  depends_on = [opentelekomcloud_vpc_subnet_v1.this]
}
