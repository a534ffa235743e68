locals {
  top       = abspath("${path.module}/../../..")
  directory = "${local.top}/.facility/hosts"
  # Known to every host's /etc/hosts, and to local_hosts/hosts.py.
  addresses = {
    control = "10.89.8.10"
    node1   = "10.89.8.11"
    node2   = "10.89.8.12"
    node3   = "10.89.8.13"
    node4   = "10.89.8.14"
    node5   = "10.89.8.15"
    node6   = "10.89.8.16"
  }
}

module "layout" {
  source = "../../modules/cluster-layout"

  flavors = { host = 32 }
  zones   = ["local"]
  nodes = { for name, node in var.nodes : name => {
    roles   = node.roles
    flavor  = "host"
    zone    = "local"
    address = coalesce(node.address, lookup(local.addresses, name, null))
    ssd_gib = 20
  } }
}

# The bastion and the S3 server that stands for the facility's bucket are hosts, but no nodes.
resource "terraform_data" "s3" {
  input = "${local.top}/local_hosts/hosts.py --directory ${local.directory}"

  provisioner "local-exec" {
    command = "${self.input} up bastion s3"
  }
  # It goes last and takes with it what all of them shared.
  provisioner "local-exec" {
    when    = destroy
    command = "${self.input} down"
  }
}

module "node" {
  source   = "../../modules/node-local"
  for_each = module.layout.nodes

  node      = each.value
  hosts     = terraform_data.s3.output
  directory = local.directory
}
