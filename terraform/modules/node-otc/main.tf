# Port and volumes are resources of their own: they outlive a server that is replaced.
resource "opentelekomcloud_networking_port_v2" "this" {
  name               = "${var.node.name}-eth0"
  network_id         = var.network.id
  admin_state_up     = true
  security_group_ids = var.security_group_ids

  fixed_ip {
    subnet_id  = var.network.subnet_id
    ip_address = var.node.address
  }
}

resource "opentelekomcloud_compute_instance_v2" "this" {
  name                = var.node.name
  availability_zone   = var.node.zone
  flavor_name         = var.node.flavor
  key_pair            = var.key_name
  user_data           = var.user_data
  stop_before_destroy = true
  auto_recovery       = true
  tags                = { roles = join("-", var.node.roles) }

  block_device {
    uuid                  = var.image
    source_type           = "image"
    destination_type      = "volume"
    boot_index            = 0
    volume_size           = 40
    volume_type           = "SSD"
    delete_on_termination = true
  }
  network {
    port = opentelekomcloud_networking_port_v2.this.id
  }
  scheduler_hints {
    group = var.server_group_id
  }

  lifecycle {
    # A newer image or another first-boot script never replaces a node that has data.
    ignore_changes = [user_data, block_device, key_pair, availability_zone]
  }
}

resource "opentelekomcloud_evs_volume_v3" "data" {
  for_each = var.node.volumes

  name              = "${var.node.name}-${each.key}"
  availability_zone = var.node.zone
  volume_type       = "SSD"
  size              = each.value.size_gib
  device_type       = "SCSI"
  kms_id            = var.kms_id
  tags              = { node = var.node.name, purpose = each.value.purpose }
}

resource "opentelekomcloud_compute_volume_attach_v2" "data" {
  for_each = var.node.volumes

  instance_id = opentelekomcloud_compute_instance_v2.this.id
  volume_id   = opentelekomcloud_evs_volume_v3.data[each.key].id
}

# Its address stays when the server is replaced or stopped.
resource "opentelekomcloud_networking_floatingip_v2" "this" {
  count = var.public ? 1 : 0

  port_id = opentelekomcloud_networking_port_v2.this.id
}
