output "user_data" {
  description = "The cloud-config document (JSON is YAML)."
  value       = "#cloud-config\n${jsonencode(local.document)}\n"
}

output "user" {
  description = "The user that Ansible logs in as."
  value       = var.user
}
