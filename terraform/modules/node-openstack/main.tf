# Port and volumes are resources of their own: they outlive a server that is replaced.
resource "openstack_networking_port_v2" "this" {
  name               = "${var.node.name}-eth0"
  network_id         = var.network.id
  security_group_ids = var.security_group_ids

  fixed_ip {
    subnet_id  = var.network.subnet_id
    ip_address = var.node.address
  }
}

resource "openstack_compute_instance_v2" "this" {
  name                    = var.node.name
  availability_zone_hints = var.node.zone
  image_id                = var.image
  flavor_name             = var.node.flavor
  key_pair                = var.key_name
  user_data               = var.user_data
  config_drive            = true
  stop_before_destroy     = true
  metadata                = { roles = join(",", var.node.roles) }

  network {
    port = openstack_networking_port_v2.this.id
  }
  scheduler_hints {
    group = var.server_group_id
  }

  lifecycle {
    # A newer image or another first-boot script never replaces a node that has data.
    ignore_changes = [image_id, user_data, key_pair, availability_zone_hints]
  }
}

resource "openstack_blockstorage_volume_v3" "data" {
  for_each = var.node.volumes

  name                 = "${var.node.name}-${each.key}"
  size                 = each.value.size_gib
  volume_type          = var.volume_type
  availability_zone    = var.volume_zone
  enable_online_resize = true
  metadata             = { node = var.node.name, purpose = each.value.purpose }

  lifecycle {
    # A volume that was made elsewhere is never replaced for it.
    ignore_changes = [availability_zone]
  }
}

resource "openstack_compute_volume_attach_v2" "data" {
  for_each = var.node.volumes

  instance_id = openstack_compute_instance_v2.this.id
  volume_id   = openstack_blockstorage_volume_v3.data[each.key].id
}

# Its address stays when the server is replaced or stopped.
resource "openstack_networking_floatingip_v2" "this" {
  count = var.public ? 1 : 0

  pool    = var.floating_pool
  port_id = openstack_networking_port_v2.this.id
}
