output "nodes" {
  description = "What Ansible needs to know of each node: the same shape in every environment."
  value       = { for name, module in module.node : name => module.node }
}

output "facility" {
  description = "What Ansible needs to know of the facility as a whole."
  value = {
    environment = "openstack"
    ssh_user    = "ansible"
    bastion     = one([for address in openstack_networking_floatingip_v2.bastion : { address = address.address, user = "ansible" }])
    networks    = { clients = var.client_cidrs, processors = var.processor_cidrs }
  }
}
