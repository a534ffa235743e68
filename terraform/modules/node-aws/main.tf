resource "aws_instance" "this" {
  ami                    = var.image
  instance_type          = var.node.flavor
  availability_zone      = var.node.zone
  subnet_id              = var.subnet_id
  private_ip             = var.node.address
  vpc_security_group_ids = var.security_group_ids
  key_name               = var.key_name
  placement_group        = var.placement_group
  iam_instance_profile   = var.instance_profile
  # Terraform itself may end it; its plan was looked at by then.
  disable_api_termination = var.node.protected
  user_data_base64        = base64gzip(var.user_data)
  tags                    = { Name = var.node.name, Roles = join(",", var.node.roles) }

  metadata_options {
    http_tokens = "required"
  }
  root_block_device {
    volume_type = "gp3"
    volume_size = 30
    encrypted   = true
  }

  lifecycle {
    # A newer image or another first-boot script never replaces a node that has data.
    ignore_changes = [ami, user_data_base64, availability_zone, private_ip]
  }
}

# A resource of its own: the SSD outlives an instance that is replaced.
resource "aws_ebs_volume" "data" {
  for_each = var.node.volumes

  availability_zone = var.node.zone
  size              = each.value.size_gib
  type              = var.volume_type
  iops              = each.value.purpose == "ssd" ? var.ssd_iops : null
  throughput        = each.value.purpose == "ssd" ? var.ssd_throughput : null
  encrypted         = true
  tags              = { Name = "${var.node.name}-${each.key}", Node = var.node.name, Purpose = each.value.purpose }
}

resource "aws_volume_attachment" "data" {
  for_each = var.node.volumes

  # What the volume is called there; the disk itself is found by its id.
  device_name                    = { ssd = "/dev/sdf", journal = "/dev/sdg", data = "/dev/sdh" }[each.value.purpose]
  volume_id                      = aws_ebs_volume.data[each.key].id
  instance_id                    = aws_instance.this.id
  stop_instance_before_detaching = true
}

# Its address stays when the instance is replaced or stopped.
resource "aws_eip" "this" {
  count = var.public ? 1 : 0

  domain   = "vpc"
  instance = aws_instance.this.id
  tags     = { Name = var.node.name }
}
