output "node" {
  description = "The node in the shape that every environment gives to the inventory."
  value = {
    name    = var.node.name
    roles   = var.node.roles
    id      = aws_instance.this.id
    address = aws_instance.this.private_ip
    # Null: it is reached by the bastion or a VPN.
    public_address = one(aws_eip.this[*].public_ip)
    zone           = var.node.zone
    tiers          = var.node.tiers
    volumes = { for key, volume in aws_ebs_volume.data : key => {
      id       = volume.id
      purpose  = var.node.volumes[key].purpose
      size_gib = volume.size
      # The stable name of an EBS volume on Nitro.
      path = "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_${replace(volume.id, "-", "")}"
    } }
  }
}
