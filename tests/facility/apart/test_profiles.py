"""The other profiles, chosen by one variable, on one host that is everything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import urllib3

from tests.support.local_facility import Facility, ground

HOST = "node7"
ADDRESS = "10.89.8.17"
ROLES_OF_ALLUXIO = ("alluxio-master", "alluxio-worker", "alluxio-proxy")


class Solo(Facility):
    """A facility on one host, beside the other one."""

    def __init__(self, directory: Path, arguments: list[str]) -> None:
        super().__init__(directory)
        self._arguments = arguments

    def site(self, **variables: str) -> str:
        """Run ``site.yml`` for it; what it printed."""
        others = ["-e", json.dumps(variables)]
        return self.playbook(*self._arguments, *others, "site.yml", inventory="")

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


@pytest.fixture
def solo(facility: Facility) -> Iterator[Callable[[str], Solo]]:
    """Makes a facility of a profile on a fresh host, with a store of its own."""

    def make(profile: str) -> Solo:
        facility.hosts("down", HOST)
        facility.hosts("up", HOST)
        groups = dict.fromkeys(("alluxio_masters", "alluxio_workers", "admin"), [HOST])
        inventory = facility.inventory("solo", groups)
        # The catalog is new, and a store that was another's is refused.
        store = f"solo-{profile}-{time.time_ns()}"
        # Once it is a volume for what a master alone has, once for what an admin host alone has.
        volumes: dict[str, dict[str, object]] = {
            "alluxio_nfs": {"facility_journal_device": "/dev/vdb", "ssd_volumes_list": []},
            "s3": {"facility_data_device": "/dev/vdb"},
        }
        variables = {
            **volumes[profile],
            "facility_s3_prefix": store,
            "facility_nfs_path": f"/srv/share/{store}",
        }
        found = Solo(facility.directory, ["-i", str(inventory), "-e", json.dumps(variables)])
        found.site(facility_profile=profile)
        return found

    yield make
    facility.hosts("down", HOST)


def product_in_and_out(solo: Solo, profile: str) -> tuple[str, bytes]:
    """A product goes in and comes out as the profile says; the path to its file, and its bytes."""
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
    passing = solo.upload(f"gone-{time.time_ns()}.nc", data[:100_000])
    solo.remove(passing)
    gone = f"/v1/products/{passing['id']}/files/{passing['files'][0]['path']}"
    assert solo.request("GET", gone, token=solo.operator).status == 410
    return path, data


@pytest.fixture
def origin() -> Iterator[None]:
    """The bucket stays and keeps its keys."""
    with ground("origin"):
        yield


@pytest.mark.usefixtures("origin")
def test_a_bucket_alone_carries_a_facility_and_takes_a_share_beside_it(
    solo: Callable[[str], Solo],
) -> None:
    found = solo("s3")
    path, _ = product_in_and_out(found, "s3")
    found.site(facility_profile="s3_nfs")
    assert found.request("GET", path, token=found.operator).status == 307
    product_in_and_out(found, "s3_nfs")


@pytest.mark.drill
@pytest.mark.usefixtures("origin")
def test_another_machine_with_the_data_volume_is_the_same_admin_host(
    solo: Callable[[str], Solo],
) -> None:
    """Its own disk is lost; the volume has keys and catalog."""
    found = solo("s3")
    path, _ = product_in_and_out(found, "s3")
    authority, token = found.ca.read_text(), found.operator
    found.power_off(HOST)
    subprocess.run(["podman", "rm", HOST], check=True, capture_output=True)
    found.hosts("up", HOST)
    found.site(facility_profile="s3")
    assert found.ca.read_text() == authority
    assert found.request("GET", path, token=token).status == 307


@pytest.mark.drill
def test_a_dry_run_of_a_fresh_host_that_is_everything_goes_through(facility: Facility) -> None:
    """As the first page says to do it: nothing is there yet, keys and certificates neither."""
    facility.hosts("down", HOST)
    facility.hosts("up", HOST)
    groups = ("alluxio_masters", "alluxio_workers", "admin")
    inventory = facility.inventory("dry", dict.fromkeys(groups, [HOST]))
    output = facility.playbook("-i", str(inventory), "site.yml", "--check", inventory="")
    assert re.search(rf"^{HOST} .*changed=[1-9].*failed=0", output, re.MULTILINE), output[-2000:]
    facility.hosts("down", HOST)


@pytest.mark.drill
def test_a_share_carries_a_facility_with_alluxio_and_without_it_and_then_nothing_of_it_stays(
    solo: Callable[[str], Solo],
) -> None:
    found = solo("alluxio_nfs")
    product_in_and_out(found, "alluxio_nfs")
    assert "/srv/mem" in found.ssh(HOST, "findmnt /srv/mem")
    assert "sm-journal" in found.ssh(HOST, "findmnt --output LABEL /var/lib/alluxio/journal")
    assert found.ssh(HOST, "ls /var/lib/alluxio/journal") != ""
    store = f"/srv/share/after-{time.time_ns()}"
    found.ssh(HOST, "sudo -u postgres psql -c 'drop database storage_manager with (force)'")
    found.site(facility_profile="posix", facility_nfs_path=store)
    assert found.ssh(HOST, "ls /etc/systemd/system/alluxio-*", check=False) == ""
    assert found.ssh(HOST, "pgrep java", check=False) == ""
    assert found.ssh(HOST, "findmnt /srv/mem; grep /srv/mem /etc/fstab", check=False) == ""
    product_in_and_out(found, "posix")
