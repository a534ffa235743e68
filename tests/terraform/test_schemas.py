"""The cloud modules against the providers' own schemas, and rules that every cloud keeps.

The providers cannot be had here. `schemas/` has the arguments of their resources, read from the real
ones (`terraform providers schema -json`); this proves names and what is required, not the cloud. For
AWS there is no such file here: its module is only formatted and held to the rules below.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcl2
import pytest

TERRAFORM = Path(__file__).resolve().parents[2] / "terraform"
SCHEMAS = Path(__file__).parent / "schemas"
META = {"for_each", "count", "lifecycle", "depends_on", "provider", "__is_block__"}
CLOUDS = {"openstack": "openstack", "otc": "opentelekomcloud", "aws": None}


def bare(text: str) -> str:
    return text.strip('"')


def resources(cloud: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Type, name and body of every resource of a cloud."""
    for folder in (TERRAFORM / "modules" / f"node-{cloud}", TERRAFORM / "environments" / cloud):
        for path in sorted(folder.glob("*.tf")):
            with path.open() as file:
                for block in hcl2.load(file).get("resource", []):
                    for kind, named in block.items():
                        for name, body in named.items():
                            if not name.startswith("__"):
                                yield bare(kind), bare(name), body


def check(block: dict[str, Any], schema: dict[str, Any], where: str) -> None:
    attributes, nested = schema.get("attributes", {}), schema.get("block_types", {})
    given = {bare(name) for name in block} - META
    unknown = given - set(attributes) - set(nested)
    assert not unknown, f"{where}: {unknown} is not known to the provider"
    for name, attribute in attributes.items():
        assert not (attribute.get("required") and name not in given), f"{where}: {name} is missing"
        read_only = attribute.get("computed") and not attribute.get("optional")
        assert not (read_only and name in given), f"{where}: {name} cannot be set"
    for name, inner in nested.items():
        for item in block.get(name, []):
            check(item, inner["block"], f"{where}.{name}")


@pytest.mark.parametrize("cloud", ["openstack", "otc"])
def test_every_argument_is_one_of_the_provider_s_and_none_is_missing(cloud: str) -> None:
    schemas = json.loads((SCHEMAS / f"{CLOUDS[cloud]}.json").read_text())["resource_schemas"]
    seen = 0
    for kind, name, body in resources(cloud):
        assert kind in schemas, f"{kind} is not in the schema"
        check(body, schemas[kind]["block"], f"{cloud}: {kind}.{name}")
        seen += 1
    assert seen >= 8


def test_a_misspelt_argument_would_be_noticed() -> None:
    schemas = json.loads((SCHEMAS / "openstack.json").read_text())["resource_schemas"]
    block = schemas["openstack_blockstorage_volume_v3"]["block"]
    with pytest.raises(AssertionError, match="sizes"):
        check({"sizes": 1}, block, "x")


@pytest.mark.parametrize("cloud", CLOUDS)
def test_only_ssh_and_the_balancers_are_open_and_only_to_stated_networks(cloud: str) -> None:
    text = (TERRAFORM / "environments" / cloud / "security.tf").read_text()
    ingress = text.partition("egress_rule")[0]
    assert "0.0.0.0/0" not in ingress
    for kind, name, body in resources(cloud):
        if "rule" not in kind or "egress" in kind:
            continue
        ports = {body.get("from_port", body.get("port_range_min"))}
        if name == "inside":
            assert "remote_group_id" in body or "referenced_security_group_id" in body
        else:
            assert ports == {{"ssh": 22, "balancer": 8443}[name]}
            expected = {"ssh": "operator_cidrs", "balancer": "client_cidrs"}[name]
            assert expected in str(body["for_each"])


@pytest.mark.parametrize("cloud", CLOUDS)
def test_data_volumes_are_resources_of_their_own_and_encrypted(cloud: str) -> None:
    volumes = [
        body
        for kind, _, body in resources(cloud)
        if kind
        in ("aws_ebs_volume", "openstack_blockstorage_volume_v3", "opentelekomcloud_evs_volume_v3")
    ]
    assert len(volumes) == 1
    assert "for_each" in volumes[0]
    mark = {"aws": "encrypted", "otc": "kms_id", "openstack": "volume_type"}[cloud]
    assert mark in volumes[0]
    instances = [
        body for kind, _, body in resources(cloud) if kind.endswith(("_instance", "_instance_v2"))
    ]
    assert len(instances) == 1
    assert "ignore_changes" in str(instances[0]["lifecycle"])
