"""Three masters: the leader dies, and the facility goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.local_facility import ROOT, Facility, wait_until

TRIO = {"node4": "10.89.8.14", "node5": "10.89.8.15", "node6": "10.89.8.16"}


class Trio(Facility):
    """A facility on three hosts that are everything, as in inventory/example."""

    @property
    def ca(self) -> Path:
        path = self.directory / "trio-ca.crt"
        path.write_text(self.ssh("node4", "cat /etc/storage-manager/secrets/ca.crt") + "\n")
        return path

    def url(self, node: str = "node4") -> str:
        return f"https://{TRIO.get(node, TRIO['node4'])}:8443"

    def token(self, *scopes: str, **_: object) -> str:
        options = "".join(f" --scope {scope}" for scope in scopes)
        settings = "--settings /etc/storage-manager/settings.toml"
        return self.ssh("node4", f"storage-manager token {settings}{options}")

    def leader(self) -> str:
        """The master that answers; standbys say nothing."""
        for node, address in TRIO.items():
            command = f"curl -s -m 3 -o /dev/null -w '%{{http_code}}' http://{address}:19999/api/v1/master/info"
            if self.ssh("node4", command, check=False) == "200":
                return node
        raise AssertionError("no master leads")


@pytest.fixture
def trio(facility: Facility) -> Iterator[Trio]:
    facility.hosts("down", *TRIO)
    facility.hosts("up", *TRIO)
    inventory = facility.directory / "trio"
    inventory.mkdir(exist_ok=True)
    everyone = {"hosts": dict.fromkeys(TRIO)}
    groups = {
        "alluxio_masters": everyone,
        "alluxio_workers": everyone,
        "admin": {"hosts": {"node4": None}},
    }
    (inventory / "hosts.yml").write_text(json.dumps({"all": {"children": groups}}))
    shared = inventory / "group_vars"
    if not shared.exists():
        shared.symlink_to(ROOT / "inventory/local/group_vars")
    variables = {
        "facility_profile": "alluxio_nfs",
        "facility_nfs_path": "/srv/share/trio",
        "ansible_user": "admin",
        "ansible_become": True,
        "ansible_ssh_common_args": f"-F {facility.directory}/ssh_config",
    }
    found = Trio(facility.directory)
    found.playbook("-i", str(inventory), "-e", json.dumps(variables), "site.yml", inventory="")
    yield found
    facility.hosts("down", *TRIO)


def test_the_leading_master_dies_and_another_takes_over(trio: Trio) -> None:
    data = os.urandom(5 << 20)
    product = trio.upload(f"trio-{time.time_ns()}.bin", data)
    assert product["files"][0]["uri"].startswith("alluxio://node4:19998,node5:19998,node6:19998/")
    assert trio.read(trio.link(product)) == data
    leader = trio.leader()
    trio.ssh(leader, "systemctl kill --signal=KILL alluxio-master; systemctl stop alluxio-master")
    begun = time.monotonic()
    wait_until(lambda: trio.leader() != leader, 60, "another master to lead")
    print(f"\n{leader} died; {trio.leader()} leads after {time.monotonic() - begun:.0f} s")
    during = os.urandom(1 << 20)
    new = trio.upload(f"trio-{time.time_ns()}.bin", during)
    wait_until(lambda: trio.read(trio.link(new)) == during, 30, "a new product to be read")
    wait_until(lambda: trio.read(trio.link(product)) == data, 30, "the old one to be read")
    trio.ssh(leader, "systemctl start alluxio-master")
    wait_until(lambda: trio.leader(), 60, "a leader")
    assert trio.read(trio.link(product)) == data
    trio.remove(product)
    trio.remove(new)
