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

# From the bastion where there is one, else from the operators themselves.
resource "openstack_networking_secgroup_rule_v2" "jump" {
  count = local.bastions

  direction         = "ingress"
  ethertype         = "IPv4"
  protocol          = "tcp"
  port_range_min    = 22
  port_range_max    = 22
  remote_group_id   = openstack_networking_secgroup_v2.bastion[0].id
  security_group_id = openstack_networking_secgroup_v2.node.id
}

resource "openstack_networking_secgroup_rule_v2" "ssh" {
  for_each = var.access == "bastion" ? [] : var.operator_cidrs

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

# What the hosts' own firewall opens for the same networks: master and workers for the Java client.
resource "openstack_networking_secgroup_rule_v2" "processor" {
  for_each = { for pair in setproduct(var.processor_cidrs, [19998, 29999]) : "${pair[0]}-${pair[1]}" => pair }

  direction         = "ingress"
  ethertype         = "IPv4"
  protocol          = "tcp"
  port_range_min    = each.value[1]
  port_range_max    = each.value[1]
  remote_ip_prefix  = each.value[0]
  security_group_id = openstack_networking_secgroup_v2.node.id
}
