variables {
  flavors = { small = 8, usual = 16 }
  zones   = ["a", "b"]
  nodes = {
    control = { roles = ["master", "admin", "monitoring"], flavor = "small", zone = "a", journal_gib = 20 }
    node1   = { flavor = "usual", zone = "a" }
    node2   = { flavor = "usual", zone = "b", ssd_gib = 500, mem_gib = 8 }
  }
}

run "a_worker_has_one_ssd_of_250_gib_unless_told_otherwise" {
  assert {
    condition     = jsonencode(output.nodes.node1.volumes) == jsonencode({ ssd0 = { purpose = "ssd", size_gib = 250 } })
    error_message = "node1 should have one SSD volume of 250 GiB."
  }
  assert {
    condition     = output.nodes.node2.volumes.ssd0.size_gib == 500 && output.nodes.node2.tiers.mem == "8GB"
    error_message = "node2 should have what was asked for."
  }
  assert {
    condition     = jsonencode(output.nodes.node1.tiers) == jsonencode({ mem = "4GB", ssd = "230GB" })
    error_message = "The tiers should follow from memory and volume."
  }
}

run "a_node_that_is_no_worker_has_no_ssd_and_a_master_its_journal" {
  assert {
    condition     = join(",", keys(output.nodes.control.volumes)) == "journal0" && length(output.nodes.control.tiers) == 0
    error_message = "control should have a journal volume and nothing else."
  }
}

run "the_control_host_has_volumes_for_journal_and_data_and_is_protected" {
  variables {
    nodes = {
      control = { roles = ["master", "admin"], flavor = "small", zone = "a", journal_gib = 20, data_gib = 50 }
      node1   = { flavor = "usual", zone = "a" }
    }
  }
  assert {
    condition     = jsonencode(output.nodes.control.volumes) == jsonencode({ data0 = { purpose = "data", size_gib = 50 }, journal0 = { purpose = "journal", size_gib = 20 } })
    error_message = "control should have a volume for its data and one for the journal."
  }
  assert {
    condition     = output.nodes.control.protected && !output.nodes.node1.protected
    error_message = "The control host should be protected, a worker not."
  }
}

run "a_data_volume_for_a_worker_is_refused" {
  command = plan
  variables {
    nodes = {
      a = { roles = ["master", "admin"], flavor = "small", zone = "a" }
      b = { flavor = "usual", zone = "a", data_gib = 50 }
    }
  }
  expect_failures = [var.nodes]
}

run "a_name_that_is_added_changes_no_other_node" {
  variables {
    nodes = {
      control = { roles = ["master", "admin", "monitoring"], flavor = "small", zone = "a", journal_gib = 20 }
      node0   = { flavor = "usual", zone = "b" }
      node1   = { flavor = "usual", zone = "a" }
      node2   = { flavor = "usual", zone = "b", ssd_gib = 500, mem_gib = 8 }
    }
  }
  assert {
    condition     = alltrue([for name in ["control", "node1", "node2"] : output.nodes[name] == run.a_worker_has_one_ssd_of_250_gib_unless_told_otherwise.nodes[name]])
    error_message = "node0 should not have changed the others."
  }
}

run "an_even_number_of_masters_is_refused" {
  command = plan
  variables {
    nodes = {
      a = { roles = ["master", "admin"], flavor = "small", zone = "a" }
      b = { roles = ["master", "worker"], flavor = "usual", zone = "a" }
    }
  }
  expect_failures = [var.nodes]
}

run "no_master_is_refused" {
  command = plan
  variables {
    nodes = { a = { roles = ["admin", "worker"], flavor = "usual", zone = "a" } }
  }
  expect_failures = [var.nodes]
}

run "two_admins_are_refused" {
  command = plan
  variables {
    nodes = {
      a = { roles = ["master", "admin"], flavor = "small", zone = "a" }
      b = { roles = ["admin", "worker"], flavor = "usual", zone = "a" }
    }
  }
  expect_failures = [var.nodes]
}

run "a_volume_that_is_too_small_is_refused" {
  command = plan
  variables {
    nodes = { a = { roles = ["master", "admin", "worker"], flavor = "usual", zone = "a", ssd_gib = 5 } }
  }
  expect_failures = [var.nodes]
}

run "an_address_twice_is_refused" {
  command = plan
  variables {
    nodes = {
      a = { roles = ["master", "admin"], flavor = "small", zone = "a", address = "10.0.0.1" }
      b = { flavor = "usual", zone = "a", address = "10.0.0.1" }
    }
  }
  expect_failures = [var.nodes]
}

run "a_name_that_is_no_host_name_is_refused" {
  command = plan
  variables {
    nodes = { Node_1 = { roles = ["master", "admin", "worker"], flavor = "usual", zone = "a" } }
  }
  expect_failures = [var.nodes]
}

run "an_unknown_role_is_refused" {
  command = plan
  variables {
    nodes = { a = { roles = ["master", "admin", "worker", "cook"], flavor = "usual", zone = "a" } }
  }
  expect_failures = [var.nodes]
}

run "an_unknown_flavour_is_refused" {
  command = plan
  variables {
    nodes = { a = { roles = ["master", "admin", "worker"], flavor = "gigantic", zone = "a" } }
  }
  expect_failures = [terraform_data.rules]
}

run "an_unknown_zone_is_refused" {
  command = plan
  variables {
    nodes = { a = { roles = ["master", "admin", "worker"], flavor = "usual", zone = "z" } }
  }
  expect_failures = [terraform_data.rules]
}

run "too_little_memory_for_the_tier_is_refused" {
  command = plan
  variables {
    nodes = { a = { roles = ["master", "admin", "worker"], flavor = "small", zone = "a" } }
  }
  expect_failures = [terraform_data.rules]
}
