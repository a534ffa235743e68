locals {
  emulated = var.endpoint != null
}

# Credentials come from the environment or the instance's role, never from here.
provider "aws" {
  region                      = var.region
  skip_credentials_validation = local.emulated
  skip_metadata_api_check     = local.emulated
  s3_use_path_style           = local.emulated
  max_retries                 = local.emulated ? 2 : null

  dynamic "endpoints" {
    for_each = local.emulated ? [var.endpoint] : []
    content {
      ec2 = endpoints.value
      iam = endpoints.value
      sts = endpoints.value
    }
  }
  default_tags {
    tags = { Facility = var.name, ManagedBy = "terraform" }
  }
}
