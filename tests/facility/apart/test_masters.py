"""Three masters: the leader dies, everything is restarted in turn, the admin host moves."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.local_facility import Facility, wait_until

TRIO = {"node8": "10.89.8.18", "node9": "10.89.8.19", "node10": "10.89.8.20"}
MAIN_PIDS = "systemctl show --property=MainPID alluxio-master alluxio-worker alluxio-proxy"


class Trio(Facility):
    """A facility on three hosts that are everything, as in inventory/example."""

    admin = "node8"

    def choose(self, admin: str) -> list[str]:
        """Write an inventory whose admin host is this; the arguments for a playbook."""
        self.admin = admin
        groups = {"alluxio_masters": TRIO, "alluxio_workers": TRIO, "admin": [admin]}
        inventory = self.inventory("trio", groups)
        variables = {"facility_profile": "alluxio_nfs", "facility_nfs_path": "/srv/share/trio"}
        return ["-i", str(inventory), "-e", json.dumps(variables)]

    @property
    def ca(self) -> Path:
        path = self.directory / "trio-ca.crt"
        path.write_text(self.ssh(self.admin, "cat /etc/storage-manager/secrets/ca.crt") + "\n")
        return path

    def url(self, node: str = "node8") -> str:
        return f"https://{TRIO.get(node, TRIO['node8'])}:8443"

    def token(self, *scopes: str, **_: object) -> str:
        options = "".join(f" --scope {scope}" for scope in scopes)
        settings = "--settings /etc/storage-manager/settings.toml"
        return self.ssh(self.admin, f"storage-manager token {settings}{options}")

    def leader(self) -> str:
        """The master that answers; standbys say nothing."""
        for node, address in TRIO.items():
            command = f"curl -s -m 3 -o /dev/null -w '%{{http_code}}' http://{address}:19999/api/v1/master/info"
            if self.ssh(self.admin, command, check=False) == "200":
                return node
        raise AssertionError("no master leads")


@pytest.fixture(scope="module")
def trio(facility: Facility) -> Iterator[Trio]:
    facility.hosts("down", *TRIO)
    facility.hosts("up", *TRIO)
    found = Trio(facility.directory)
    found.playbook(*found.choose("node8"), "site.yml", inventory="")
    yield found
    facility.hosts("down", *TRIO)


@pytest.mark.drill
def test_the_leading_master_dies_and_another_takes_over(trio: Trio) -> None:
    data = os.urandom(5 << 20)
    product = trio.upload(f"trio-{time.time_ns()}.bin", data)
    assert product["files"][0]["uri"].startswith("alluxio://node8:19998,node9:19998,node10:19998/")
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


@pytest.mark.drill
def test_everything_is_restarted_in_turn_with_the_packages_that_upgrades_leave_alone(
    trio: Trio,
) -> None:
    """Hosts of two releases of Debian, whose packages have other names."""
    data = os.urandom(1 << 20)
    product = trio.upload(f"upgraded-{time.time_ns()}.bin", data)
    before = {node: trio.ssh(node, MAIN_PIDS).split() for node in TRIO}
    trio.playbook(
        *trio.choose("node8"), "playbooks/rolling_restart.yml", "-e", "upgrade=true", inventory=""
    )
    after = {node: trio.ssh(node, MAIN_PIDS).split() for node in TRIO}
    assert not any(set(before[node]) & set(after[node]) for node in TRIO)
    assert trio.read(trio.link(product)) == data
    trio.remove(product)


@pytest.mark.drill
def test_the_admin_host_moves_with_its_keys_and_its_catalog(trio: Trio) -> None:
    data = os.urandom(1 << 20)
    product = trio.upload(f"moved-{time.time_ns()}.bin", data)
    link, token = trio.link(product), trio.operator
    authority = trio.ssh("node8", "cat /etc/storage-manager/secrets/ca.crt")
    arguments = [*trio.choose("node9"), "playbooks/move_admin.yml", "-e", "confirm=yes"]
    begun = time.monotonic()
    trio.playbook(*arguments, "-e", "from=node8", inventory="")
    print(f"\nthe admin host moved in {time.monotonic() - begun:.0f} s")
    assert trio.ssh("node9", "cat /etc/storage-manager/secrets/ca.crt") == authority
    assert trio.read(link) == data, "a link of before"
    found = trio.json("GET", f"/v1/products/{product['id']}", token=token)
    assert found["name"] == product["name"]
    trio.json("DELETE", f"/v1/products/{product['id']}", token=token)
    left = "ls -d /etc/storage-manager/secrets /var/tmp/storage-manager-move; systemctl is-active storage-manager"
    assert trio.ssh("node8", left, check=False) == "inactive"
    said = trio.playbook(*arguments, "-e", "from=node8", inventory="", check=False)
    assert "was moved already" in " ".join(said.split())
