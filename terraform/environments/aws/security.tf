resource "aws_security_group" "node" {
  name        = "${var.name}-node"
  description = "Nodes of the storage facility ${var.name}"
  vpc_id      = aws_vpc.this.id
}

resource "aws_vpc_security_group_ingress_rule" "inside" {
  security_group_id            = aws_security_group.node.id
  referenced_security_group_id = aws_security_group.node.id
  ip_protocol                  = "-1"
}

# From the bastion where there is one, else from the operators themselves.
resource "aws_vpc_security_group_ingress_rule" "jump" {
  count = var.access == "bastion" ? 1 : 0

  security_group_id            = aws_security_group.node.id
  referenced_security_group_id = aws_security_group.bastion[0].id
  ip_protocol                  = "tcp"
  from_port                    = 22
  to_port                      = 22
}

resource "aws_vpc_security_group_ingress_rule" "ssh" {
  for_each = var.access == "bastion" ? [] : var.operator_cidrs

  security_group_id = aws_security_group.node.id
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 22
  to_port           = 22
}

resource "aws_vpc_security_group_ingress_rule" "balancer" {
  for_each = var.client_cidrs

  security_group_id = aws_security_group.node.id
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 8443
  to_port           = 8443
}

# What the hosts' own firewall opens for the same networks: master and workers for the Java client.
resource "aws_vpc_security_group_ingress_rule" "processor" {
  for_each = { for pair in setproduct(var.processor_cidrs, [19998, 29999]) : "${pair[0]}-${pair[1]}" => pair }

  security_group_id = aws_security_group.node.id
  cidr_ipv4         = each.value[0]
  ip_protocol       = "tcp"
  from_port         = each.value[1]
  to_port           = each.value[1]
}

resource "aws_vpc_security_group_egress_rule" "all" {
  security_group_id = aws_security_group.node.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}
