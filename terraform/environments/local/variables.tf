variable "workers" {
  description = "Names of the cluster nodes; node1 to node5 are known to the local inventory."
  type        = set(string)
  default     = ["node1", "node2", "node3"]

  validation {
    condition     = length(var.workers) > 0 && alltrue([for name in var.workers : contains(["node1", "node2", "node3", "node4", "node5"], name)])
    error_message = "Write at least one of node1, node2, node3, node4, node5."
  }
}
