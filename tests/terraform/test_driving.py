"""How Terraform is driven: interrupts, time limits, progress, variables; with the real program.

The environment of these tests needs no provider: each node is a command that takes its time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from admin_api.cli import terraform as driving
from admin_api.cli.terraform import Terraform, TerraformError
from tests.support.terraform import NATIVE, on_path, platform
from tests.terraform import stand_in

ROOT = Path(__file__).resolve().parents[2]
MAIN = """
variable "nodes" {
  type    = map(object({ seconds = optional(number, 0), said = optional(string) }))
  default = { node1 = {} }
}
resource "terraform_data" "disk" {
  for_each = var.nodes
  input    = each.value
}
resource "terraform_data" "host" {
  for_each = var.nodes
  input    = terraform_data.disk[each.key].output
  provisioner "local-exec" {
    command = <<-END
      echo $PPID > ${each.key}.begun
      for second in $(seq ${each.value.seconds}); do sleep 1; done
      touch ${each.key}.made
    END
  }
}
output "nodes" {
  value = var.nodes
}
"""
CLOUD = """
terraform {
  required_providers {
    openstack = { source = "terraform-provider-openstack/openstack" }
  }
}
variable "nodes" {
  type = map(object({}))
}
resource "openstack_compute_keypair_v2" "first" {
  for_each = var.nodes
  name     = each.key
}
resource "openstack_compute_keypair_v2" "second" {
  for_each = openstack_compute_keypair_v2.first
  name     = "${each.value.id}-2"
}
output "nodes" {
  value = var.nodes
}
"""
pytestmark = pytest.mark.skipif(
    not NATIVE, reason="Terraform as a library takes no signals: install the program"
)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A checkout of its own, with an environment whose hosts are commands."""
    on_path()
    folder = tmp_path / "a checkout" / "terraform" / "environments" / "ours"
    folder.mkdir(parents=True)
    (folder / "main.tf").write_text(MAIN)
    top = folder.parents[2]
    (top / "site.yml").touch()
    (top / "terraform" / "plan_check.py").symlink_to(ROOT / "terraform" / "plan_check.py")
    Terraform(folder).ask("init", "-input=false")
    return folder


def scale(environment: Path, *arguments: str) -> subprocess.Popen[str]:
    """``storage-manager facility scale`` as the leader of a group, as a terminal starts it."""
    programs = environment / "bin"
    programs.mkdir(exist_ok=True)
    playbook = programs / "ansible-playbook"
    playbook.write_text(f'#!/bin/sh\necho "$@" >> {environment.parent.name}.played\n')
    playbook.chmod(0o755)
    return subprocess.Popen(
        [
            sys.executable, "-m", "admin_api", "--json", "facility", "scale", "--yes",
            "--environment", str(environment), *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        },
    )  # fmt: skip


def nodes(environment: Path, **wanted: Any) -> None:
    (environment / "nodes.auto.tfvars.json").write_text(json.dumps({"nodes": wanted}))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def state(environment: Path) -> set[str]:
    """What Terraform knows that it has made; readable, and locked by nobody."""
    assert not list(environment.glob(".terraform.tfstate.lock.info"))
    return set(Terraform(environment).ask("state", "list").split())


def test_ctrl_c_leaves_no_lock_and_no_half_state_and_the_same_command_goes_on(
    environment: Path,
) -> None:
    nodes(environment, node1={})
    Terraform(environment).work("apply", "-input=false", "-auto-approve")
    # The entry is there already, as an interrupted run leaves it.
    nodes(environment, node1={}, node2={"seconds": 600})
    process = scale(environment, "--add", "node2")
    begun = environment / "node2.begun"
    wait_for(lambda: begun.exists() and bool(begun.read_text()), process)
    # As a terminal does: everybody in the group.
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert "Gracefully shutting down" in said
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)  # no Terraform is left behind
    assert state(environment) >= {'terraform_data.disk["node2"]', 'terraform_data.host["node1"]'}
    assert not list(environment.glob("*.tfplan"))

    nodes(environment, node1={}, node2={"seconds": 600}, node3={})
    process = scale(environment, "--add", "node3", "--remove", "node2")
    out, said = process.communicate(timeout=120)
    assert process.returncode == 1
    # What was left half made is known, and the guard asks before it goes.
    assert "it would" in said and 'terraform_data.host["node2"]' in said


def test_what_the_cloud_makes_when_ctrl_c_is_pressed_again_and_again_is_known_afterwards(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = stand_in.install(tmp_path, platform())
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", str(configuration))
    monkeypatch.setenv("STAND_IN_SECONDS", "5")
    (environment / "main.tf").write_text(CLOUD)
    nodes(environment, node1={})
    process = scale(environment, "--add", "node1")
    assert process.stderr is not None
    said = ""
    while "Creating..." not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    for _ in range(5):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
    said += process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert "Gracefully shutting down" in said
    assert "Terraform is writing down what it has made; please wait." in said
    assert "Two interrupts received" not in said
    made = {f'openstack_compute_keypair_v2.{name}["node1"]' for name in ("first", "second")}
    assert state(environment) & made == {'openstack_compute_keypair_v2.first["node1"]'}
    monkeypatch.delenv("STAND_IN_SECONDS")
    process = scale(environment, "--add", "node1")
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "1 added, 0 changed, 0 destroyed" in said
    assert state(environment) >= made


def test_an_interrupt_of_the_command_alone_reaches_terraform(environment: Path) -> None:
    nodes(environment, node1={"seconds": 600})
    process = scale(environment, "--add", "node1")
    wait_for((environment / "node1.begun").exists, process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert 'terraform_data.disk["node1"]' in state(environment)


def test_terraform_that_takes_too_long_is_stopped_and_lets_go_of_its_lock(
    environment: Path,
) -> None:
    nodes(environment, node1={"seconds": 600})
    process = scale(environment, "--add", "node1", "--time-limit", "0.05")
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "took more than 3 s: it was stopped" in said
    assert "Run the same command again" in said
    assert "node1" in " ".join(state(environment)) or not (environment / "node1.begun").exists()


def test_terraform_that_does_not_stop_is_killed_and_the_way_out_is_told(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = tmp_path / "bin" / "terraform"
    deaf.parent.mkdir()
    deaf.write_text("#!/bin/sh\ntrap '' INT\nsleep 600 &\nwait\nwait\n")
    deaf.chmod(0o755)
    monkeypatch.setenv("PATH", f"{deaf.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(driving, "GRACE_SECONDS", 1.0)
    with pytest.raises(TerraformError, match="was killed.*force-unlock"):
        Terraform(environment).run("apply", seconds=1)


def test_people_see_the_progress_while_it_goes_on_and_machines_read_only_json(
    environment: Path,
) -> None:
    nodes(environment, node1={"seconds": 3})
    process = scale(environment, "--add", "node1")
    assert process.stderr is not None
    for line in process.stderr:
        if "Still creating" in line or "Creating..." in line:
            break
    assert not (environment / "node1.made").exists(), "it was told only when all was over"
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert set(json.loads(out)["seconds"]) >= {"terraform plan", "terraform apply", "site.yml"}


def test_variables_arrive_as_they_are_and_leave_no_file(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = """ "quoted" 'twice' ${not} %{this} Köln\n-input=true """
    variables = {"nodes": {"node 1": {"said": said}}}
    terraform = Terraform(environment)
    terraform.work("plan", "-input=false", "-out=x.tfplan", variables=variables)
    found = json.loads(terraform.ask("show", "-json", "x.tfplan"))
    assert found["variables"]["nodes"]["value"]["node 1"]["said"] == said
    assert list(tmp_path.glob("*.tfvars.json")) == []


def test_a_plan_with_changes_is_no_failure_and_a_failure_is_a_sentence(environment: Path) -> None:
    terraform = Terraform(environment)
    assert terraform.run("plan", "-input=false", "-detailed-exitcode").code == 2
    (environment / "terraform.tfstate").write_text("{")
    with pytest.raises(TerraformError, match="terraform state failed: Failed to load state"):
        terraform.ask("state", "list")


def test_the_nodes_of_the_defaults_are_known_though_no_file_names_them(environment: Path) -> None:
    (environment / "node1.made").touch()
    process = scale(environment, "--add", "node2", "--like", "node1")
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    written = json.loads((environment / "nodes.auto.tfvars.json").read_text())
    assert written == {"nodes": {"node1": {"seconds": 0}, "node2": {"seconds": 0}}}


def test_what_is_not_installed_is_told_with_the_command_that_installs_it(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TerraformError, match="terraform is not installed"):
        Terraform(environment)
    monkeypatch.setitem(sys.modules, "python_terraform", None)
    with pytest.raises(TerraformError, match="make control"):
        Terraform(environment)
