"""The other profiles, chosen by one variable, on one host that is everything."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from tests.support.local_facility import ROOT, Facility

HOST = "node5"
ADDRESS = "10.89.8.15"
ROLES_OF_ALLUXIO = ("alluxio-master", "alluxio-worker", "alluxio-proxy")


class Solo(Facility):
    """A facility on one host, beside the other one."""

    def __init__(self, directory: Path, profile: str, arguments: list[str]) -> None:
        super().__init__(directory)
        self.profile = profile
        self._arguments = arguments

    def site(self) -> str:
        """Run ``site.yml`` for it; what it printed."""
        return self.playbook(*self._arguments, "site.yml", inventory="")

    @property
    def ca(self) -> Path:
        path = self.directory / "solo-ca.crt"
        path.write_text(self.ssh(HOST, "cat /etc/storage-manager/secrets/ca.crt") + "\n")
        return path

    def url(self, node: str = HOST) -> str:
        return f"https://{ADDRESS}:8443"

    def token(self, *scopes: str, **_: object) -> str:
        options = "".join(f" --scope {scope}" for scope in scopes)
        settings = "--settings /etc/storage-manager/settings.toml"
        return self.ssh(HOST, f"storage-manager token {settings}{options}")


@pytest.fixture(params=["alluxio_nfs", "s3", "s3_nfs", "posix"])
def solo(request: pytest.FixtureRequest, facility: Facility) -> Iterator[Solo]:
    facility.hosts("down", HOST)
    facility.hosts("up", HOST)
    inventory = facility.directory / "solo"
    inventory.mkdir(exist_ok=True)
    groups = {
        name: {"hosts": {HOST: None}} for name in ("alluxio_masters", "alluxio_workers", "admin")
    }
    (inventory / "hosts.yml").write_text(
        json.dumps({"all": {"children": groups, "vars": {"facility_profile": request.param}}})
    )
    shared = inventory / "group_vars"
    if not shared.exists():
        shared.symlink_to(ROOT / "inventory/local/group_vars")
    # A store of its own each time: the catalog is new, and a store that was another's is refused.
    store = f"solo-{request.param}-{time.time_ns()}"
    variables = {
        "facility_profile": request.param,
        "facility_s3_prefix": store,
        "facility_nfs_path": f"/srv/share/{store}",
        "ansible_user": "admin",
        "ansible_become": True,
        "ansible_ssh_common_args": f"-F {facility.directory}/ssh_config",
    }
    found = Solo(
        facility.directory, request.param, ["-i", str(inventory), "-e", json.dumps(variables)]
    )
    found.site()
    yield found
    facility.hosts("down", HOST)


def test_a_product_goes_through_a_facility_of_every_profile(solo: Solo) -> None:
    profile = solo.profile
    assert solo.request("GET", "/healthz/ready").status == 200
    data = os.urandom(3 << 20)
    product = solo.upload(f"S5P-{time.time_ns()}.nc", data)
    uri = product["files"][0]["uri"]
    scheme = {"alluxio_nfs": "alluxio", "posix": "file"}.get(profile, "s3")
    assert uri.startswith(f"{scheme}://"), uri
    path = f"/v1/products/{product['id']}/files/{product['files'][0]['path']}"
    answer = solo.request("GET", path, token=solo.operator)
    if profile == "posix":
        assert (answer.status, answer.data) == (200, data)
    else:
        assert answer.status == 307
        location = answer.headers["Location"]
        get = (
            solo.request("GET", location)
            if "/dl/" in location
            else urllib3.request("GET", location)
        )
        assert (get.status, get.data) == (200, data)
    active = {
        unit: solo.ssh(HOST, f"systemctl is-active {unit}", check=False) == "active"
        for unit in ROLES_OF_ALLUXIO
    }
    assert set(active.values()) == {profile.startswith("alluxio")}, active
    assert (solo.ssh(HOST, "ls /opt/alluxio", check=False) != "") == profile.startswith("alluxio")
    solo.remove(product)
    assert solo.request("GET", path, token=solo.operator).status == 410
    if (
        profile == "s3_nfs"
    ):  # what the others run again, this one or the large facility does as well
        output = solo.site()
        assert "changed=0" in output.split("PLAY RECAP")[1], output[-2500:]
