output "nodes" {
  description = "Every node with its roles, flavour, zone, address (null: the cloud chooses), volumes and tiers."
  value       = local.nodes

  depends_on = [terraform_data.rules]
}
