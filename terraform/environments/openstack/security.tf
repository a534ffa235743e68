resource "openstack_networking_secgroup_v2" "node" {
  name        = "${var.name}-node"
  description = "Nodes of the storage facility ${var.name}"
}

resource "openstack_networking_secgroup_rule_v2" "inside" {
  direction         = "ingress"
  ethertype         = "IPv4"
  remote_group_id   = openstack_networking_secgroup_v2.node.id
  security_group_id = openstack_networking_secgroup_v2.node.id
}

resource "openstack_networking_secgroup_rule_v2" "ssh" {
  for_each = var.operator_cidrs

  direction         = "ingress"
  ethertype         = "IPv4"
  protocol          = "tcp"
  port_range_min    = 22
  port_range_max    = 22
  remote_ip_prefix  = each.value
  security_group_id = openstack_networking_secgroup_v2.node.id
}

resource "openstack_networking_secgroup_rule_v2" "balancer" {
  for_each = var.client_cidrs

  direction         = "ingress"
  ethertype         = "IPv4"
  protocol          = "tcp"
  port_range_min    = 8443
  port_range_max    = 8443
  remote_ip_prefix  = each.value
  security_group_id = openstack_networking_secgroup_v2.node.id
}
