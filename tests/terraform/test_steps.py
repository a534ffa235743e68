"""The documented steps from an empty account on, run as they are printed.

The machines come from the providers that stand in, at AWS from a moto server.  What Ansible would do
to them is shown on the local facility; here it reads the inventory and says which hosts it would take.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cloud import aws, client
from tests.support.servers import Postgres
from tests.support.terraform import on_path, platform, terraform
from tests.terraform import stand_in
from tests.terraform.test_clouds import KEY

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "getting-started.md").read_text()
#: What the page leaves to the reader.
THEIRS = {
    '"ami-..."': '"ami-12c6146b"',
    '"..."': '"5a1e7c1c-0000-4000-8000-000000000001"',
    "ssh-ed25519 AAAA... you": KEY,
}
PLAYED = """#!{python}
import os, sys
said = [argument for argument in sys.argv[1:] if argument != "--ask-vault-pass"]
with open({record!r}, "a") as record:
    print(*said, file=record)
os.execv({ansible!r}, [{ansible!r}, "--list-hosts", *said])
"""
EDITOR = """#!{python}
import json, pathlib, sys
file = pathlib.Path(sys.argv[1])
if file.name == "nodes.auto.tfvars.json":
    found = json.loads(file.read_text())
    found["nodes"]["node5"] = found["nodes"]["node3"]
    file.write_text(json.dumps(found))
"""


def printed(heading: str) -> str:
    """The commands below a heading of the page."""
    section = re.split(r"\n##+ ", GUIDE.partition(f"\n{heading}")[2])[0]
    text = "".join(re.findall(r"```sh\n(.*?)```", section, re.S))
    assert text, heading
    for theirs, found in THEIRS.items():
        text = text.replace(theirs, found)
    return text


class Checkout:
    """A copy of the project in which a reader works."""

    def __init__(self, folder: Path, more: dict[str, str]) -> None:
        on_path()
        self.top = folder / "storage-manager"
        self.top.mkdir()
        for path in ROOT.iterdir():
            if path.name in ("terraform", "inventory"):
                ignored = shutil.ignore_patterns(".terraform*", "*.tfstate*", "ours", "*.tfvars*")
                shutil.copytree(path, self.top / path.name, ignore=ignored)
            elif not path.name.startswith("."):
                (self.top / path.name).symlink_to(path)
        self.record = folder / "played"
        self.record.touch()
        programs = folder / "bin"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ansible = shutil.which("ansible-playbook", path=path)
        for name, text in {
            "ansible-playbook": PLAYED.format(
                python=sys.executable, record=str(self.record), ansible=ansible
            ),
            "storage-manager": f'#!/bin/sh\nexec {sys.executable} -m admin_api "$@"\n',
            "editor": EDITOR.format(python=sys.executable),
        }.items():
            programs.mkdir(exist_ok=True)
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{path}",
            "PYTHONPATH": str(ROOT),
            "EDITOR": str(programs / "editor"),
            "TF_CLI_CONFIG_FILE": str(stand_in.install(folder / "providers", platform())),
            "TF_CLI_ARGS_init": "-input=false",
            "TF_CLI_ARGS_apply": "-input=false -auto-approve",
            "ANSIBLE_NOCOLOR": "1",
            **more,
        }

    def run(self, commands: str) -> str:
        """Run commands as a reader types them, who says yes; what they print."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"exec < <(yes 2>/dev/null)\n{commands}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.top,
            env=self.environment,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    def played(self) -> list[str]:
        """The playbooks that were run since the last question, with their arguments."""
        found = self.record.read_text().splitlines()
        self.record.write_text("")
        return [re.sub(r"^.*?(?=site\.yml|playbooks/)", "", line) for line in found]


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with aws() as endpoint:
        yield endpoint


def running(moto: str) -> set[str]:
    return {
        tag["Value"]
        for group in client(moto).describe_instances()["Reservations"]
        for item in group["Instances"]
        if item["State"]["Name"] == "running"
        for tag in item["Tags"]
        if tag["Key"] == "Name"
    }


FIRST = {"storage-bastion", "control", "node1", "node2", "node3"}


def test_from_an_empty_account_at_aws_to_a_facility_that_grows_and_shrinks(
    tmp_path: Path, moto: str
) -> None:
    checkout = Checkout(tmp_path, {"TF_VAR_endpoint": moto})
    inventory, made = printed("## 2. Your inventory"), printed("### AWS")
    checkout.run(inventory.partition("ansible-vault")[0])
    assert client(moto).describe_instances()["Reservations"] == []
    checkout.run(made)
    assert running(moto) == FIRST

    export = "export TERRAFORM_ENVIRONMENT=terraform/environments/aws\n"
    used = printed("### The inventory of what Terraform made")
    assert used.startswith(export)
    said = checkout.run(used)
    for name in FIRST - {"storage-bastion"}:
        assert f"\n      {name}\n" in said
    assert checkout.played() == ["site.yml"]

    grown, _, by_hand = printed("### Growing and shrinking with Terraform").partition("$EDITOR")
    assert grown.count("storage-manager facility") == 3
    checkout.run(export + grown)
    assert running(moto) == (FIRST | {"node4"}) - {"node2"}
    leave = "playbooks/remove_node.yml -e node={} -e confirm=yes"
    usual = ["site.yml", "playbooks/health.yml"]
    assert checkout.played() == [
        *usual, leave.format("node2"), *usual, leave.format("node3"), *usual
    ]  # fmt: skip
    said = checkout.run(export + "$EDITOR" + by_hand)
    assert "Nothing else. Apply it" in said
    assert running(moto) == (FIRST | {"node4", "node5"}) - {"node2"}
    assert checkout.played() == ["site.yml"]
    checkout.run("terraform -chdir=terraform/environments/aws destroy -auto-approve")
    assert running(moto) == set()


@pytest.mark.parametrize(
    ("cloud", "heading"), [("otc", "### Open Telekom Cloud"), ("openstack", "### OpenStack")]
)
def test_from_an_empty_account_to_hosts_that_ansible_finds(
    tmp_path: Path, cloud: str, heading: str
) -> None:
    checkout = Checkout(tmp_path, {})
    checkout.run(printed("## 2. Your inventory").partition("ansible-vault")[0])
    checkout.run(printed(heading))
    used = printed("### The inventory of what Terraform made").replace("/aws", f"/{cloud}")
    said = checkout.run(used)
    for name in FIRST - {"storage-bastion"}:
        assert f"\n      {name}\n" in said
    checkout.run(f"make plan-check ENVIRONMENT=terraform/environments/{cloud}")
    folder = checkout.top / "terraform" / "environments" / cloud
    locked = (folder / ".terraform.lock.hcl").read_text()
    assert "h1:" in locked, "the first init writes what is to be committed"


def test_a_network_of_clients_goes_when_it_is_named(tmp_path: Path, moto: str) -> None:
    checkout = Checkout(tmp_path, {"TF_VAR_endpoint": moto})
    checkout.run(printed("### AWS"))
    folder = checkout.top / "terraform" / "environments" / "aws"
    file = folder / "ours.auto.tfvars"
    file.write_text(re.sub(r"client_cidrs .*", 'client_cidrs = ["192.0.2.0/24"]', file.read_text()))
    address = 'aws_vpc_security_group_ingress_rule.balancer["198.51.100.0/24"]'
    check = "make plan-check ENVIRONMENT=terraform/environments/aws"
    with pytest.raises(AssertionError, match="may go is named with --allow"):
        checkout.run(check)
    assert "Nothing else. Apply it" in checkout.run(f"{check} ALLOW='{address}'")
    checkout.run("terraform -chdir=terraform/environments/aws destroy -auto-approve")


# -- a state that operators share ------------------------------------------------------------------
class Operator:
    """Somebody with a copy of the project, who follows what the example of a backend says."""

    def __init__(self, cloud: str, folder: Path, options: list[str]) -> None:
        folder.mkdir()
        self.folder = folder
        example = ROOT / "terraform" / "environments" / cloud / "backend.tf.example"
        assert "cp backend.tf.example backend.tf" in example.read_text()
        shutil.copy(example, folder / "backend.tf")
        (folder / "main.tf").write_text('resource "terraform_data" "node" {}\n')
        code, said = terraform(folder, "init", "-input=false", "-migrate-state", *options)
        assert code == 0, said


@pytest.mark.parametrize("cloud", ["aws", "openstack", "otc"])
def test_two_operators_share_a_state_and_one_waits_while_the_other_works(
    cloud: str,
    tmp_path: Path,
    moto: str,
    database: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if cloud == "aws":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto)
        region = {"LocationConstraint": "eu-central-1"}
        bucket = client(moto, "s3").create_bucket
        bucket(Bucket="ours-terraform", CreateBucketConfiguration=region)
        names = ("use_path_style", "skip_credentials_validation", "skip_requesting_account_id")
        options = [f"-backend-config={name}=true" for name in names]
    else:
        monkeypatch.setenv("PGPASSWORD", database.password_file.read_text().strip())
        url = f"{database.url(database.new_database())}?sslmode=disable"
        options = [f"-backend-config=conn_str={url}"]
    first, second = (Operator(cloud, tmp_path / name, options) for name in ("first", "second"))
    working = subprocess.Popen(
        ["terraform", "apply", "-no-color"],
        cwd=first.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert working.stdin is not None and working.stdout is not None
    while "Do you want to perform these actions" not in working.stdout.readline():
        assert working.poll() is None
    code, said = terraform(second.folder, "plan", "-input=false", "-no-color")
    assert code == 1
    assert "Error acquiring the state lock" in said
    out = working.communicate("yes\n")[0]
    assert working.returncode == 0, out
    assert "No changes" in terraform(second.folder, "plan", "-input=false", "-no-color")[1]
