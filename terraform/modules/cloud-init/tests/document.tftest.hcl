variables {
  name     = "node1"
  ssh_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBnar55v16TgbJOMWh01EXhzyEGq4FbWJKpv0T6qazJG me"]
}

run "it_is_a_cloud_config_that_names_the_host_and_lets_the_key_in" {
  assert {
    condition     = startswith(output.user_data, "#cloud-config\n") && yamldecode(output.user_data).hostname == "node1"
    error_message = "The document should be cloud-config with the host's name."
  }
  assert {
    condition     = yamldecode(output.user_data).users[0].ssh_authorized_keys[0] == var.ssh_keys[0] && yamldecode(output.user_data).ssh_pwauth == false
    error_message = "The key should let in, and no password."
  }
}

run "something_that_is_no_key_is_refused" {
  command = plan
  variables {
    ssh_keys = ["/home/me/.ssh/id_ed25519.pub"]
  }
  expect_failures = [var.ssh_keys]
}
