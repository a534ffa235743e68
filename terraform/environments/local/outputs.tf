output "nodes" {
  description = "What Ansible needs to know of each node: the same shape in every environment."
  value       = { for name, module in module.node : name => module.node }
}

output "facility" {
  description = "What Ansible needs to know of the facility as a whole."
  value = {
    environment = "local"
    ssh_user    = "admin"
    bastion     = { address = "10.89.8.3", user = "admin" }
  }
}
