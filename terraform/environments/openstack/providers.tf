# Credentials come from OS_* variables or clouds.yaml (OS_CLOUD), never from here.
provider "openstack" {}
