"""What happens when parts of the facility die: nothing is lost, and reads go on.

Goals F13 (a node dies under read load), F15 (Alluxio's processes die, are wiped, come back), F28
(an SSD comes back empty), promise I10 (the cache is disposable).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.local_facility import NODES, Facility, Load, ground, reading, wait_until

SIZE = 4 << 20


@pytest.fixture(scope="module")
def files(facility: Facility) -> Iterator[list[tuple[dict[str, Any], bytes]]]:
    """Products spread over the nodes, cached."""
    made = []
    for number in range(24):
        data = os.urandom(SIZE + number)
        made.append((facility.upload(f"fault-{time.time_ns()}.bin", data), data))
    for product, data in made:
        assert facility.read(facility.link(product)) == data
    yield made
    for product, _ in made:
        facility.remove(product)


def all_there(facility: Facility, files: list[tuple[dict[str, Any], bytes]]) -> None:
    for product, data in files:
        assert facility.read(facility.link(product)) == data


def later_than(load: Load, seconds: float) -> list[tuple[float, str]]:
    return [failure for failure in load.failures if failure[0] > seconds]


def test_a_node_that_loses_power_is_noticed_within_seconds_and_fails_no_client_that_tries_again(
    facility: Facility, files
) -> None:
    """Of those that try once only what was under way when it died may fail."""
    others = ("node1", "node2")
    with (
        reading(facility, files, nodes=others, threads=3, tries=4) as patient,
        reading(facility, files, nodes=others, threads=3) as once,
    ):
        time.sleep(4)
        facility.power_off("node3")
        time.sleep(30)
    print(f"\npower off, clients try again: {patient.sentence()}")
    print(f"power off, no second try: {once.sentence()}")
    assert patient.failures == []
    assert patient.requests > 50
    assert len(once.failures) <= 20
    assert not [failure for failure in once.failures if "WRONG" in failure[1]]
    assert later_than(once, 4 + 12) == []
    facility.power_on("node3")
    facility.wait_ready(seconds=120)
    all_there(facility, files)


@pytest.mark.parametrize("unit", ["alluxio-worker", "alluxio-proxy"])
def test_a_process_of_a_node_that_is_killed_comes_back_by_itself(
    facility: Facility, files, unit: str
) -> None:
    with reading(facility, files, tries=4) as load:
        time.sleep(2)
        facility.ssh("node2", f"systemctl kill --signal=KILL {unit}")
        time.sleep(20)
    print(f"\n{unit} killed: {load.sentence()}")
    assert load.failures == []
    facility.wait_ready()
    all_there(facility, files)


def test_the_master_that_is_killed_comes_back_with_its_mount(facility: Facility, files) -> None:
    with reading(facility, files, tries=6) as load:
        time.sleep(2)
        facility.ssh("control", "systemctl kill --signal=KILL alluxio-master")
        time.sleep(30)
    print(f"\nmaster killed: {load.sentence()}")
    assert not [failure for failure in load.failures if "WRONG" in failure[1]]
    assert load.failures == []
    facility.wait_ready()
    assert facility.master()["mountPoints"]["/"]["ufsUri"] == "s3://facility/warehouse"
    all_there(facility, files)


def test_an_ssd_that_comes_back_empty_costs_reads_of_the_under_store_and_nothing_else(
    facility: Facility, files
) -> None:
    facility.ssh(
        "node2",
        "systemctl stop alluxio-worker && rm -rf /srv/ssd/alluxio/* /srv/mem/*"
        " && systemctl start alluxio-worker",
    )
    facility.wait_ready()
    all_there(facility, files)
    # Emptied beneath a worker that runs, as a dying disk does it.
    facility.ssh("node2", "rm -rf /srv/ssd/alluxio/* /srv/mem/*")
    with reading(facility, files, tries=4) as load:
        time.sleep(10)
    print(f"\ntiers emptied beneath the running worker: {load.sentence()}")
    assert load.failures == []
    facility.ssh("node2", "systemctl restart alluxio-worker")
    facility.wait_ready()
    all_there(facility, files)


def test_a_full_ssd_does_not_stop_reads(facility: Facility, files) -> None:
    facility.ssh("node1", "mountpoint --quiet /srv/ssd")  # after what the tests before did to it
    # Reserved, not written: a disk is full at once however slow the machine is.
    facility.ssh(
        "node1", "fallocate -l $(($(stat -f -c '%a*%S' /srv/ssd))) /srv/ssd/filler", check=False
    )
    facility.ssh("node1", "head -c 1G /dev/zero >> /srv/ssd/filler", check=False)
    try:
        for number in range(6):
            data = os.urandom(48 << 20)
            product = facility.upload(f"full-{time.time_ns()}-{number}.bin", data)
            assert facility.read(facility.link(product)) == data
            facility.remove(product)
        all_there(facility, files)
    finally:
        facility.ssh("node1", "rm -f /srv/ssd/filler")


def test_a_worker_that_does_not_want_to_end_is_ended(facility: Facility) -> None:
    """One was seen to spin for ever on SIGTERM; here it is frozen and hears nothing."""
    facility.ssh("node1", "systemctl kill --signal=STOP alluxio-worker")
    begun = time.monotonic()
    facility.ssh("node1", "systemctl restart alluxio-worker")
    assert time.monotonic() - begun < 40
    facility.wait_ready()


def test_wiping_all_of_alluxio_loses_nothing(facility: Facility, files) -> None:
    for node in NODES:
        facility.ssh(node, "systemctl stop alluxio-worker alluxio-proxy")
    facility.ssh("control", "systemctl stop alluxio-master")
    # The API goes on: it hands the products out itself.
    token = facility.token("read")
    wait_until(
        lambda: facility.json("GET", "/v1/nodes")["nodes"][0]["proxy"] == "down",
        20,
        "the proxies to be missed",
    )
    product, data = files[0]
    path = f"/v1/products/{product['id']}/files/{product['files'][0]['path']}?redirect=false"
    answer = facility.request("GET", path, token=token)
    assert (answer.status, answer.data) == (200, data)
    during = os.urandom(100_000)
    new = facility.upload(f"during-{time.time_ns()}.bin", during)
    for node in NODES:
        facility.ssh(node, "rm -rf /srv/ssd/alluxio/* /srv/mem/*")
    facility.ssh("control", "rm -rf /var/lib/alluxio/journal /var/lib/alluxio/metastore")
    facility.ssh("control", "systemctl start alluxio-master")
    for node in NODES:
        facility.ssh(node, "systemctl start alluxio-worker alluxio-proxy")
    facility.wait_ready(seconds=150)
    all_there(facility, [*files, (new, during)])
    facility.remove(new)


def test_the_catalog_is_lost_and_rebuilt_from_the_store(facility: Facility, files) -> None:
    facility.ssh(
        "control",
        "systemctl stop storage-manager"
        " && runuser -u postgres -- psql -q -c 'drop database storage_manager'"
        " && runuser -u postgres -- psql -q -c 'create database storage_manager owner storage_manager'"
        " && runuser -u storage-manager -- /usr/local/bin/storage-manager rebuild"
        " --settings /etc/storage-manager/settings.toml && systemctl start storage-manager",
        timeout=300,
    )
    facility.wait_ready()
    all_there(facility, files)


def test_cached_files_are_read_while_the_origin_is_down_and_the_rest_is_told(
    facility: Facility, files
) -> None:
    """Promise I10 the other way round: the cache goes on without the bucket."""
    all_there(facility, files)
    cached = [(facility.link(product), data) for product, data in files]
    cold = facility.upload(f"cold-{time.time_ns()}.bin", os.urandom(SIZE))
    link = facility.link(cold)
    # Longer than metadata was once taken for fresh without asking the origin.
    time.sleep(61)
    with ground("origin", alone=True):
        facility.ssh("s3", "systemctl stop seaweedfs")
        try:
            for url, data in cached:
                assert facility.read(url) == data
            answer = facility.request("GET", link)
            assert answer.status == 503, answer.data[:500]
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert json.loads(answer.data)["code"] == "unavailable"
        finally:
            facility.ssh("s3", "systemctl start seaweedfs")
        facility.wait_ready()
    wait_until(lambda: facility.request("GET", link).status == 200, 60, "the origin")
    facility.remove(cold)


def test_the_database_notices_altered_pages_and_has_its_share_of_the_memory(
    facility: Facility,
) -> None:
    ask = "cd / && runuser -u postgres -- psql --no-psqlrc -At -c"
    assert facility.ssh("control", f"{ask} 'show data_checksums'") == "on"
    assert facility.ssh("control", f"{ask} 'show shared_buffers'") == "128MB"


def test_the_database_that_is_killed_comes_back_by_itself(facility: Facility, files) -> None:
    before = facility.ssh("control", "systemctl show --property=MainPID 'postgresql@*'")
    facility.ssh("control", "systemctl kill --signal=KILL 'postgresql@*'")
    wait_until(
        lambda: (
            "online" in facility.ssh("control", "pg_lsclusters --no-header")
            and facility.request("GET", "/healthz/ready").status == 200
        ),
        60,
        "the database",
    )
    assert facility.ssh("control", "systemctl show --property=MainPID 'postgresql@*'") != before
    all_there(facility, files[:3])


def test_the_database_that_goes_away_is_told_and_comes_back(facility: Facility, files) -> None:
    facility.ssh("control", "systemctl stop 'postgresql@*'")
    wait_until(lambda: facility.request("GET", "/healthz/ready").status == 503, 10, "a 503")
    assert facility.request("GET", "/healthz/live").status == 200
    product = files[0][0]
    answer = facility.request("GET", f"/v1/products/{product['id']}", token=facility.operator)
    assert answer.status == 503
    assert b"catalog_unavailable" in answer.data
    said = " ".join(facility.playbook("playbooks/health.yml", check=False).split())
    assert re.search(r"NOT WELL: PostgreSQL \S+ main is down; systemctl start postgresql@", said)
    facility.ssh("control", "systemctl restart postgresql")
    wait_until(lambda: facility.request("GET", "/healthz/ready").status == 200, 30, "the API")
    all_there(facility, files[:3])
