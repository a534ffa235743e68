output "nodes" {
  description = "What Ansible needs to know of each node: the same shape in every environment."
  value       = { for name, module in module.node : name => module.node }
}

output "facility" {
  description = "What Ansible needs to know of the facility as a whole."
  value = {
    environment = "aws"
    ssh_user    = "ansible"
    bastion     = one([for address in aws_eip.bastion : { address = address.public_ip, user = "ansible" }])
    networks    = { clients = var.client_cidrs, processors = var.processor_cidrs }
    keyless     = var.bucket != null
  }
}
