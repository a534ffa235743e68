# User, keys and host name: what must be there before Ansible can come.  The rest is Ansible's.
locals {
  document = {
    hostname          = var.name
    preserve_hostname = false
    manage_etc_hosts  = false
    ssh_pwauth        = false
    disable_root      = true
    users = [{
      name                = var.user
      shell               = "/bin/bash"
      sudo                = "ALL=(ALL) NOPASSWD:ALL"
      lock_passwd         = true
      ssh_authorized_keys = var.ssh_keys
    }]
  }
}
