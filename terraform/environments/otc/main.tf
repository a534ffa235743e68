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

resource "opentelekomcloud_compute_keypair_v2" "operator" {
  name       = "${var.name}-operator"
  public_key = var.ssh_keys[0]
}

resource "opentelekomcloud_compute_servergroup_v2" "apart" {
  name     = "${var.name}-apart"
  policies = ["anti-affinity"]
}

module "node" {
  source   = "../../modules/node-otc"
  for_each = module.layout.nodes

  node               = each.value
  user_data          = module.cloud_init[each.key].user_data
  key_name           = opentelekomcloud_compute_keypair_v2.operator.name
  image              = var.image
  network            = local.network
  security_group_ids = [opentelekomcloud_networking_secgroup_v2.node.id]
  server_group_id    = opentelekomcloud_compute_servergroup_v2.apart.id
  kms_id             = opentelekomcloud_kms_key_v1.volumes.id
  public             = var.access == "public"
}
