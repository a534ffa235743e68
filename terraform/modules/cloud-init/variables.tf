variable "name" {
  description = "Host name; the inventory, Alluxio and the certificates know the node by it."
  type        = string
}

variable "user" {
  description = "User that Ansible logs in as."
  type        = string
  default     = "ansible"
}

variable "ssh_keys" {
  description = "Public keys that may log in as that user."
  type        = list(string)

  validation {
    condition     = length(var.ssh_keys) > 0 && alltrue([for key in var.ssh_keys : can(regex("^(ssh-|ecdsa-|sk-)\\S+ [A-Za-z0-9+/=]+", key))])
    error_message = "Write at least one public key as it stands in a .pub file, e.g. \"ssh-ed25519 AAAA... me\"."
  }
}
