"""The control host is lost for good, and a fresh one has the facility back from a backup."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from tests.support.local_facility import Facility, reading


@pytest.mark.drill
def test_a_lost_control_host_comes_back_from_a_backup_with_all_that_was_acknowledged_since(
    facility: Facility,
) -> None:
    made = [os.urandom((1 << 20) + number) for number in range(6)]
    files = [(facility.upload(f"kept-{time.time_ns()}.bin", data), data) for data in made]
    token, authority = facility.operator, facility.ca.read_text()
    backups = facility.home / f"backups-{time.time_ns()}"

    begun = time.monotonic()
    with reading(facility, files, threads=2, pause=0.1) as load:
        facility.playbook("playbooks/backup.yml", "-e", f"backup_to={backups}")
    print(f"\nbackup: {time.monotonic() - begun:.0f} s; {load.sentence()}")
    assert load.failures == []
    (backup,) = backups.iterdir()
    assert backup.stat().st_mode & 0o077 == 0, "others can read the backup"

    late = [
        (facility.upload(f"late-{time.time_ns()}.bin", data[::-1]), data[::-1]) for data in made
    ]
    removed, _ = files.pop()
    facility.remove(removed)

    facility.power_off("control")
    subprocess.run(["podman", "rm", "control"], check=True, capture_output=True)
    facility.hosts("up", "control")
    begun = time.monotonic()
    restore = ("playbooks/restore.yml", "-e", f"restore_from={backup}")
    facility.playbook(*restore)
    facility.wait_ready(seconds=180)
    print(f"restored on a fresh host: {time.monotonic() - begun:.0f} s")

    assert facility.ca.read_text() == authority
    for product, data in (*files, *late):
        known = facility.json("GET", f"/v1/products/{product['id']}", token=token)
        assert known["state"] == "available"
        assert facility.read(facility.link(product)) == data
    gone = facility.json("GET", f"/v1/products/{removed['id']}", token=token)
    assert gone["state"] == "removed"
    output = facility.playbook(*restore, check=False)
    assert "has keys and a catalog of its own" in " ".join(output.split()), output[-2000:]
    assert "All is well" in facility.playbook("playbooks/health.yml")
    for product, _ in (*files, *late):
        facility.remove(product)
