"""Hosts that are rebooted: each comes back as it was, with cloud-init at work at every boot.

Goals F13 and F15 for what operators and unattended upgrades do on purpose.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.local_facility import ADDRESSES, NODES, Facility, reading

HOSTS = ("control", *NODES)
OURS = "alluxio-*.service haproxy.service storage-manager* postgresql*.service prometheus*.service"
#: What a host that is rebooted must show as before.
STATE = f"""
systemctl list-units --no-legend --plain --state=active --type=service,timer {OURS} \
    | awk '{{print $1, $3}}' | grep -v firewall-check.service | sort
nft list table inet storage_manager | grep -v counter
for path in /srv/ssd /srv/mem /srv/ssd2; do findmnt --noheadings --output TARGET,FSTYPE --mountpoint $path; done
for name in {" ".join(HOSTS)}; do getent ahostsv4 $name | awk 'NR == 1 {{print $1}}'; done
systemctl --failed --no-legend
"""


@pytest.fixture(scope="module")
def files(facility: Facility) -> Iterator[list[tuple[dict[str, Any], bytes]]]:
    made = []
    for number in range(12):
        data = os.urandom((1 << 20) + number)
        made.append((facility.upload(f"reboot-{time.time_ns()}.bin", data), data))
    yield made
    for product, _ in made:
        facility.remove(product)


@pytest.fixture(scope="module")
def before(facility: Facility) -> dict[str, str]:
    found = {host: facility.ssh(host, STATE, check=False) for host in HOSTS}
    assert "alluxio-master.service active" in found["control"]
    assert "storage-manager-firewall.service active" in found["node1"]
    assert "/srv/ssd2 xfs" in " ".join(found["node2"].split())
    return found


def as_before(facility: Facility, before: dict[str, str], *hosts: str) -> None:
    """Units, rules, mounts and names are those of before; cloud-init ran and found no fault."""
    for host in hosts:
        assert facility.ssh(host, STATE, check=False) == before[host], host
        assert facility.ssh(host, "cloud-init status") == "status: done"
        named = facility.ssh(host, f"getent ahostsv4 {host} | awk 'NR == 1 {{print $1}}'")
        assert named == ADDRESSES[host]


def rebooted_under_load(
    facility: Facility,
    files: list[tuple[dict[str, Any], bytes]],
    before: dict[str, str],
    host: str,
    tries: int,
) -> None:
    """Reboot a host while clients read that try so often; none fails and the host is as before."""
    with reading(facility, files, threads=3, tries=tries, pause=0.05) as load:
        time.sleep(1)
        facility.reboot(host)
        facility.wait_ready(seconds=120)
    print(f"\n{host} rebooted: {load.sentence()}")
    assert load.failures == []
    as_before(facility, before, host)


def test_a_node_that_is_rebooted_comes_back_whole_and_fails_no_client_that_tries_again(
    facility: Facility, files, before
) -> None:
    """The one that has two volumes; the others are rebooted with all hosts at once."""
    rebooted_under_load(facility, files, before, "node2", tries=10)


def test_the_admin_host_that_is_rebooted_comes_back_whole_and_keeps_clients_waiting_at_most(
    facility: Facility, files, before
) -> None:
    """It is the only one of its kind here: who asks for a link meanwhile has to ask again."""
    rebooted_under_load(facility, files, before, "control", tries=30)


def test_a_facility_whose_hosts_are_all_rebooted_at_once_is_well_again(
    facility: Facility, files, before
) -> None:
    facility.reboot("bastion", *HOSTS)
    facility.wait_ready(seconds=180)
    as_before(facility, before, *HOSTS)
    for product, data in files:
        assert facility.read(facility.link(product)) == data
    assert "All is well" in facility.playbook("playbooks/health.yml")
