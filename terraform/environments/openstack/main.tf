module "layout" {
  source = "../../modules/cluster-layout"

  nodes   = var.nodes
  flavors = var.flavors
  zones   = var.zones
}

module "cloud_init" {
  source   = "../../modules/cloud-init"
  for_each = module.layout.nodes

  name     = each.key
  ssh_keys = var.ssh_keys
}

resource "openstack_compute_keypair_v2" "operator" {
  name       = "${var.name}-operator"
  public_key = var.ssh_keys[0]
}

resource "openstack_compute_servergroup_v2" "apart" {
  name     = "${var.name}-apart"
  policies = ["soft-anti-affinity"]
}

module "node" {
  source   = "../../modules/node-openstack"
  for_each = module.layout.nodes

  node               = each.value
  user_data          = module.cloud_init[each.key].user_data
  key_name           = openstack_compute_keypair_v2.operator.name
  image              = var.image
  network            = local.network
  security_group_ids = [openstack_networking_secgroup_v2.node.id]
  server_group_id    = openstack_compute_servergroup_v2.apart.id
  volume_type        = var.volume_type
  volume_zone        = lookup(var.volume_zones, each.value.zone, each.value.zone)
  public             = var.access == "public"
  floating_pool      = var.floating_pool

  depends_on = [openstack_networking_router_interface_v2.this]
}
