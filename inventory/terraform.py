#!/usr/bin/env python3
"""Ansible inventory from the outputs of one Terraform environment; needs nothing installed.

    export TERRAFORM_ENVIRONMENT=terraform/environments/aws
    ansible-playbook -i inventory/terraform.py -i inventory/ours site.yml

Groups and volumes come from here, everything that people decide from the group_vars beside it.
`nodes` of the outputs has the same shape in every environment (terraform/contract.schema.json).
Besides addresses, disks and tiers, hosts get, where Terraform made such a thing:

    facility_journal_device        masters: stable path of the volume for Alluxio's journal
    facility_data_device           admin host: that of the volume for catalog, secrets and settings
    facility_s3_instance_profile   all: true if their own role opens the bucket, without keys
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

GROUPS = {
    "master": "alluxio_masters",
    "worker": "alluxio_workers",
    "admin": "admin",
    "monitoring": "monitoring",
}
SSD_PATH = "/srv/ssd"
#: Of a volume; the file system takes its part (as in terraform/modules/cluster-layout).
SSD_SHARE = 0.92


def inventory(outputs: dict[str, Any]) -> dict[str, Any]:
    """Ansible's form of what Terraform made."""
    nodes = outputs["nodes"]["value"]
    facility = outputs.get("facility", {}).get("value", {})
    groups: dict[str, Any] = {group: {"hosts": []} for group in GROUPS.values()}
    hosts = {}
    for name, node in sorted(nodes.items()):
        for role in node["roles"]:
            groups[GROUPS[role]]["hosts"].append(name)
        hosts[name] = host_variables(node, facility)
    variables = facility_variables(facility)
    everybody = {"all": {"vars": variables}} if variables else {}
    return {**groups, **everybody, "_meta": {"hostvars": hosts}}


def facility_variables(facility: dict[str, Any]) -> dict[str, Any]:
    """What holds for all hosts; the group_vars of people go before it."""
    found: dict[str, Any] = {}
    bastion = facility.get("bastion")
    if bastion:
        jump = f"{bastion['user']}@{bastion['address']}"
        found["ansible_ssh_common_args"] = f"-o ProxyJump={jump}"
    if facility.get("keyless"):
        found["facility_s3_instance_profile"] = True
    networks = facility.get("networks") or {}
    if networks.get("clients"):
        found["firewall_client_networks"] = sorted(networks["clients"])
    if networks.get("processors"):
        found["firewall_processor_networks"] = sorted(networks["processors"])
    return found


def host_variables(node: dict[str, Any], facility: dict[str, Any]) -> dict[str, Any]:
    """What Terraform knows of one host."""
    found: dict[str, Any] = {
        "ansible_host": node.get("public_address") or node["address"],
        "facility_address": node["address"],
    }
    if facility.get("ssh_user"):
        found["ansible_user"] = facility["ssh_user"]
    found |= ssd_variables(node)
    devices = {item["purpose"]: item["path"] for item in node["volumes"].values()}
    if "journal" in devices:
        found["facility_journal_device"] = devices["journal"]
    if "data" in devices:
        found["facility_data_device"] = devices["data"]
    if facility.get("environment") != "local" and node.get("tiers"):
        found["alluxio_worker_mem_size"] = node["tiers"]["mem"]
        found["alluxio_worker_ssd_size"] = node["tiers"]["ssd"]
    return found


def ssd_variables(node: dict[str, Any]) -> dict[str, Any]:
    """The SSD volumes: the first at SSD_PATH, each of several with its own part of the tier."""
    volumes = [item for _, item in sorted(node["volumes"].items()) if item["purpose"] == "ssd"]
    found: list[dict[str, str]] = []
    for volume in volumes:
        path = f"{SSD_PATH}{len(found) + 1}" if found else SSD_PATH
        found.append({"device": volume["path"], "path": path})
        if len(volumes) > 1:
            found[-1]["size"] = f"{int(volume['size_gib'] * SSD_SHARE)}GB"
    return {"ssd_volumes_list": found} if found else {}


def main() -> int:
    """Called by Ansible with --list, or with --host NAME."""
    if sys.argv[1:2] == ["--host"]:
        print("{}")
        return 0
    named = os.environ.get("TERRAFORM_ENVIRONMENT")
    if not named:
        print("Set TERRAFORM_ENVIRONMENT to the folder of the environment.", file=sys.stderr)
        return 1
    done = subprocess.run(
        ["terraform", f"-chdir={Path(named).resolve()}", "output", "-json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(f"terraform output failed in {named}: {done.stderr.strip()}", file=sys.stderr)
        return 1
    outputs = json.loads(done.stdout)
    if not outputs.get("nodes", {}).get("value"):
        print(f"{named} has no nodes yet: run terraform apply there.", file=sys.stderr)
        return 1
    print(json.dumps(inventory(outputs), indent=2))
    return 0


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has read enough (`... | head`); the last flush shall not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    raise SystemExit(status)
