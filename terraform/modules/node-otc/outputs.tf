output "node" {
  description = "The node in the shape that every environment gives to the inventory."
  value = {
    name    = var.node.name
    roles   = var.node.roles
    id      = opentelekomcloud_compute_instance_v2.this.id
    address = opentelekomcloud_networking_port_v2.this.all_fixed_ips[0]
    # Null: it is reached by the bastion or a VPN.
    public_address = one(opentelekomcloud_networking_floatingip_v2.this[*].address)
    zone           = var.node.zone
    tiers          = var.node.tiers
    volumes = { for key, volume in opentelekomcloud_evs_volume_v3.data : key => {
      id       = volume.id
      purpose  = var.node.volumes[key].purpose
      size_gib = volume.size
      # SCSI disks carry a world-wide name.
      path = "/dev/disk/by-id/wwn-0x${volume.wwn}"
    } }
  }
}
