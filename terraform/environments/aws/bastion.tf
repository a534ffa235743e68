# The one host that ssh reaches from outside; Ansible goes through it (ProxyJump).
module "bastion_init" {
  source = "../../modules/cloud-init"
  count  = var.access == "bastion" ? 1 : 0

  name     = "${var.name}-bastion"
  ssh_keys = var.ssh_keys
}

resource "aws_security_group" "bastion" {
  count = var.access == "bastion" ? 1 : 0

  name        = "${var.name}-bastion"
  description = "Bastion of the storage facility ${var.name}"
  vpc_id      = aws_vpc.this.id
}

resource "aws_vpc_security_group_ingress_rule" "bastion" {
  for_each = var.access == "bastion" ? var.operator_cidrs : []

  security_group_id = aws_security_group.bastion[0].id
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 22
  to_port           = 22
}

resource "aws_vpc_security_group_egress_rule" "bastion" {
  count = var.access == "bastion" ? 1 : 0

  security_group_id = aws_security_group.bastion[0].id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

resource "aws_instance" "bastion" {
  count = var.access == "bastion" ? 1 : 0

  ami                    = var.image
  instance_type          = var.bastion_flavor
  subnet_id              = aws_subnet.edge[0].id
  vpc_security_group_ids = [aws_security_group.bastion[0].id]
  key_name               = aws_key_pair.operator.key_name
  user_data_base64       = base64gzip(module.bastion_init[0].user_data)
  tags                   = { Name = "${var.name}-bastion" }

  metadata_options {
    http_tokens = "required"
  }
  root_block_device {
    volume_type = "gp3"
    volume_size = 10
    encrypted   = true
  }

  lifecycle {
    ignore_changes = [ami, user_data_base64]
  }
}

# Its address stays when it is replaced.
resource "aws_eip" "bastion" {
  count = var.access == "bastion" ? 1 : 0

  domain     = "vpc"
  instance   = aws_instance.bastion[0].id
  tags       = { Name = "${var.name}-bastion" }
  depends_on = [aws_route.edge]
}
