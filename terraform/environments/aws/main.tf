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

# Never two on one machine; at most seven for each zone (Amazon's limit of spread groups).
resource "aws_placement_group" "apart" {
  name     = "${var.name}-apart"
  strategy = "spread"
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
  placement_group    = aws_placement_group.apart.name
}
