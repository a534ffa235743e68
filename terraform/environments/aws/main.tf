module "layout" {
  source = "../../modules/cluster-layout"

  nodes   = var.nodes
  flavors = var.flavors
  zones   = toset(var.zones)
}

module "cloud_init" {
  source   = "../../modules/cloud-init"
  for_each = module.layout.nodes

  name     = each.key
  ssh_keys = var.ssh_keys
}

resource "aws_key_pair" "operator" {
  key_name   = "${var.name}-operator"
  public_key = var.ssh_keys[0]
}

resource "aws_placement_group" "apart" {
  count = var.placement == "none" ? 0 : 1

  name            = "${var.name}-apart"
  strategy        = var.placement
  partition_count = var.placement == "partition" ? 7 : null
}

moved {
  from = aws_placement_group.apart
  to   = aws_placement_group.apart[0]
}

module "node" {
  source   = "../../modules/node-aws"
  for_each = module.layout.nodes

  node               = each.value
  user_data          = module.cloud_init[each.key].user_data
  key_name           = aws_key_pair.operator.key_name
  image              = var.image
  subnet_id          = aws_subnet.this[each.value.zone].id
  security_group_ids = [aws_security_group.node.id]
  placement_group    = one(aws_placement_group.apart[*].name)
  public             = var.access == "public"
  instance_profile   = local.instance_profile
  ssd_iops           = var.ssd_iops
  ssd_throughput     = var.ssd_throughput
}
