"""Modules and environments: formatted, valid, tested; the inventory and the guard over what they give."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from tests.support.terraform import terraform

ROOT = Path(__file__).resolve().parents[2]
TERRAFORM = ROOT / "terraform"
FOLDERS = sorted(path.parent.relative_to(TERRAFORM) for path in TERRAFORM.glob("*/*/versions.tf"))
#: Need no provider, so they can be validated and tested anywhere.
FREE = [
    folder
    for folder in FOLDERS
    if "required_providers" not in (TERRAFORM / folder / "versions.tf").read_text()
]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


inventory = load(ROOT / "inventory" / "terraform.py")
plan_check = load(TERRAFORM / "plan_check.py")


def test_every_file_is_formatted() -> None:
    code, output = terraform(TERRAFORM, "fmt", "-check", "-recursive")
    assert code == 0, output


@pytest.mark.parametrize("folder", FREE, ids=str)
def test_what_needs_no_provider_is_valid_and_passes_its_tests(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "terraform"
    shutil.copytree(TERRAFORM, copy, ignore=shutil.ignore_patterns(".terraform", "*.tfstate*"))
    target = copy / folder
    for arguments in (
        ("init", "-backend=false", "-input=false"),
        ("validate", "-no-color"),
        ("test", "-no-color"),
    ):
        code, output = terraform(target, *arguments)
        assert code == 0, output


def test_every_variable_and_output_says_what_it_is_and_of_which_type() -> None:
    for path in TERRAFORM.glob("*/*/*.tf"):
        for kind, name, body in re.findall(
            r'^(variable|output) "(\w+)" \{\n(.*?)^\}', path.read_text(), re.M | re.S
        ):
            assert "description" in body, (path, name)
            assert kind == "output" or re.search(r"^  type\s+=", body, re.M), (path, name)


# -- the contract and the inventory ----------------------------------------------------------------
def outputs() -> dict[str, Any]:
    def node(name: str, address: str, *roles: str, **more: Any) -> dict[str, Any]:
        worker = "worker" in roles
        ssd = {"id": "vol-1", "purpose": "ssd", "size_gib": 250, "path": f"/dev/disk/by-id/{name}"}
        return {
            "name": name,
            "roles": list(roles),
            "id": f"i-{name}",
            "address": address,
            "zone": "a",
            "tiers": {"mem": "4GB", "ssd": "230GB"} if worker else {},
            "volumes": {"ssd0": ssd} if worker else {},
            **more,
        }

    nodes = {
        "control": node("control", "10.0.0.10", "master", "admin", "monitoring"),
        "node1": node("node1", "10.0.0.11", "worker", public_address="198.51.100.1"),
        "node2": node("node2", "10.0.0.12", "worker"),
    }
    facility = {"environment": "aws", "ssh_user": "ansible"}
    return {"nodes": {"value": nodes}, "facility": {"value": facility}}


def test_the_outputs_keep_the_contract() -> None:
    schema = json.loads((TERRAFORM / "contract.schema.json").read_text())
    good = {name: item["value"] for name, item in outputs().items()}
    jsonschema.validate(good, schema)
    good["nodes"]["node1"]["roles"] = ["cook"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(good, schema)


def test_the_inventory_has_the_groups_of_site_yml_with_volumes_and_tiers() -> None:
    found = inventory.inventory(outputs())
    assert found["alluxio_masters"]["hosts"] == ["control"]
    assert found["alluxio_workers"]["hosts"] == ["node1", "node2"]
    assert found["admin"]["hosts"] == found["monitoring"]["hosts"] == ["control"]
    node1 = found["_meta"]["hostvars"]["node1"]
    assert node1 == {
        "ansible_host": "198.51.100.1",
        "facility_address": "10.0.0.11",
        "ansible_user": "ansible",
        "ssd_volumes_list": [{"device": "/dev/disk/by-id/node1", "path": "/srv/ssd"}],
        "alluxio_worker_mem_size": "4GB",
        "alluxio_worker_ssd_size": "230GB",
    }
    assert "ssd_volumes_list" not in found["_meta"]["hostvars"]["control"]


def test_every_ssd_volume_of_a_node_is_used_with_a_part_of_the_tier() -> None:
    given = outputs()
    given["nodes"]["value"]["node1"]["volumes"] = {
        "ssd1": {"id": "b", "purpose": "ssd", "size_gib": 100, "path": "/dev/disk/by-id/b"},
        "ssd0": {"id": "a", "purpose": "ssd", "size_gib": 250, "path": "/dev/disk/by-id/a"},
    }
    assert inventory.inventory(given)["_meta"]["hostvars"]["node1"]["ssd_volumes_list"] == [
        {"device": "/dev/disk/by-id/a", "path": "/srv/ssd", "size": "230GB"},
        {"device": "/dev/disk/by-id/b", "path": "/srv/ssd2", "size": "92GB"},
    ]


def test_the_inventory_tells_where_journal_and_data_lie_and_whether_keys_are_needed() -> None:
    given = outputs()
    assert "facility_s3_instance_profile" not in inventory.inventory(given).get("all", {}).get(
        "vars", {}
    )
    given["facility"]["value"]["keyless"] = True
    given["nodes"]["value"]["control"]["volumes"] = {
        f"{purpose}0": {
            "id": purpose,
            "purpose": purpose,
            "size_gib": 20,
            "path": f"/dev/{purpose}",
        }
        for purpose in ("journal", "data")
    }
    found = inventory.inventory(given)
    control = found["_meta"]["hostvars"]["control"]
    assert control["facility_journal_device"] == "/dev/journal"
    assert control["facility_data_device"] == "/dev/data"
    assert "ssd_volumes_list" not in control
    assert found["all"]["vars"]["facility_s3_instance_profile"] is True


def test_the_inventory_goes_through_the_bastion_and_opens_what_the_cloud_opens() -> None:
    given = outputs()
    given["facility"]["value"] |= {
        "bastion": {"address": "198.51.100.9", "user": "ansible"},
        "networks": {"clients": ["203.0.113.0/24"], "processors": ["10.1.0.0/16"]},
    }
    found = inventory.inventory(given)
    assert found["all"]["vars"] == {
        "ansible_ssh_common_args": "-o ProxyJump=ansible@198.51.100.9",
        "firewall_client_networks": ["203.0.113.0/24"],
        "firewall_processor_networks": ["10.1.0.0/16"],
    }
    given["facility"]["value"]["bastion"] = None
    assert "ansible_ssh_common_args" not in inventory.inventory(given)["all"]["vars"]


def test_a_reader_that_has_read_enough_of_the_inventory_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "outputs.json").write_text(json.dumps(outputs()))
    program = tmp_path / "terraform"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/outputs.json\n")
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} {ROOT}/inventory/terraform.py --list | true"],
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "TERRAFORM_ENVIRONMENT": str(tmp_path)},
    )
    assert done.stderr == ""


def test_an_environment_without_nodes_stops_ansible_with_a_sentence(tmp_path: Path) -> None:
    for named, sentence in (("", "Set TERRAFORM_ENVIRONMENT"), (str(tmp_path), "")):
        done = subprocess.run(
            [sys.executable, str(ROOT / "inventory/terraform.py"), "--list"],
            capture_output=True,
            text=True,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "TERRAFORM_ENVIRONMENT": named},
        )
        assert done.returncode != 0 or not shutil.which("terraform")
        assert sentence in done.stderr


# -- the guard -------------------------------------------------------------------------------------
def planned(*changes: tuple[str, str, list[str]]) -> dict[str, Any]:
    return {
        "resource_changes": [
            {"address": address, "type": kind, "change": {"actions": actions}}
            for address, kind, actions in changes
        ]
    }


NODE2 = 'module.node["node2"].aws_instance.this'
SSD2 = 'module.node["node2"].aws_ebs_volume.ssd["ssd0"]'
NODE4 = 'module.node["node4"].aws_instance.this'


@pytest.mark.parametrize(
    ("plan", "removed", "replaced", "problems"),
    [
        (planned((NODE4, "aws_instance", ["create"])), set(), set(), 0),
        (planned((NODE2, "aws_instance", ["no-op"])), set(), set(), 0),
        (planned((NODE2, "aws_instance", ["delete"])), set(), set(), 1),
        (planned((NODE2, "aws_instance", ["delete"])), {"node2"}, set(), 0),
        (planned((NODE2, "aws_instance", ["delete"])), {"node3"}, set(), 1),
        (planned((SSD2, "aws_ebs_volume", ["delete"])), {"node2"}, set(), 0),
        (planned((SSD2, "aws_ebs_volume", ["delete"])), set(), {"node2"}, 1),
        (planned((NODE2, "aws_instance", ["delete", "create"])), set(), {"node2"}, 0),
        (planned((NODE2, "aws_instance", ["create", "delete"])), {"node2"}, set(), 1),
        (planned((SSD2, "aws_ebs_volume", ["delete", "create"])), {"node2"}, {"node2"}, 1),
        (planned(("aws_s3_bucket.understore", "aws_s3_bucket", ["delete"])), {"node2"}, set(), 1),
    ],
)
def test_the_guard_lets_through_what_was_asked_for_and_nothing_else(
    plan: dict, removed: set, replaced: set, problems: int
) -> None:
    assert len(plan_check.refusals(plan, removed, replaced)) == problems


def test_the_guard_lets_one_node_stop_at_a_time() -> None:
    def resized(*names: str) -> dict[str, Any]:
        plan = planned(
            *(
                (f'module.node["{name}"].aws_instance.this', "aws_instance", ["update"])
                for name in names
            )
        )
        for change in plan["resource_changes"]:
            change["change"] |= {
                "before": {"instance_type": "m6i.xlarge", "tags": {}},
                "after": {"instance_type": "m6i.2xlarge", "tags": {}},
            }
        return plan

    assert plan_check.refusals(resized("node1"), set(), set()) == []
    refused = plan_check.refusals(resized("node1", "node2"), set(), set())
    assert len(refused) == 1 and "stop node1, node2 at once" in refused[0]
    tagged = resized("node1", "node2")
    for change in tagged["resource_changes"]:
        change["change"]["after"] = {"instance_type": "m6i.xlarge", "tags": {"a": "b"}}
    assert plan_check.refusals(tagged, set(), set()) == []


def test_the_guard_lets_a_rule_go_that_is_named_and_never_data() -> None:
    rule = 'aws_vpc_security_group_ingress_rule.balancer["203.0.113.0/24"]'
    plan = planned((rule, "aws_vpc_security_group_ingress_rule", ["delete"]))
    assert len(plan_check.refusals(plan, set(), set())) == 1
    assert plan_check.refusals(plan, set(), set(), frozenset({rule})) == []
    for address in (SSD2, NODE2):
        plan = planned((address, "aws_ebs_volume", ["delete"]))
        assert len(plan_check.refusals(plan, set(), set(), frozenset({address}))) == 1


def test_the_guard_names_the_data_volume(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(TERRAFORM / "plan_check.py")],
        input=json.dumps(planned((SSD2, "aws_ebs_volume", ["delete", "create"]))),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"replace the data volume {SSD2}" in done.stderr
