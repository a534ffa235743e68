locals {
  # Terraform cannot see a host that has died: `up` notes a file that is there while the host runs.
  # A host that was made and runs no more gets another generation, which replaces it.
  alive_file = try(trimspace(file("${var.directory}/alive/${var.node.name}")), "")
  generation = try(tonumber(trimspace(file("${var.directory}/alive/${var.node.name}.generation"))), 0)
  lost       = local.alive_file == "" ? false : !fileexists(local.alive_file)
}

# A resource of its own: the SSD outlives a host that is replaced.
resource "terraform_data" "ssd" {
  for_each = var.node.volumes

  input = { hosts = var.hosts, name = var.node.name }

  provisioner "local-exec" {
    command = "${self.input.hosts} disk ${self.input.name}"
  }
  provisioner "local-exec" {
    when    = destroy
    command = "${self.input.hosts} forget-disk ${self.input.name}"
  }
}

resource "terraform_data" "host" {
  input            = { hosts = var.hosts, name = var.node.name, address = var.node.address }
  triggers_replace = [var.node.address, local.generation + (local.lost ? 1 : 0)]

  provisioner "local-exec" {
    command = "${self.input.hosts} --keep-disks down ${self.input.name} && ${self.input.hosts} up ${self.input.name}=${self.input.address} --generation ${self.triggers_replace[1]}"
  }
  # A destroy-time provisioner may refer to self alone.
  provisioner "local-exec" {
    when    = destroy
    command = "${self.input.hosts} --keep-disks down ${self.input.name}"
  }

  depends_on = [terraform_data.ssd]
}
