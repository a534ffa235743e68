"""The tiers hold what their sizes promise, and nothing is read from the under-store twice."""

from __future__ import annotations

import os
import time

import pytest

from admin_api.storage.alluxio_cluster import preference
from tests.support.local_facility import NODES, Facility, wait_until

MIB = 1 << 20
READ_FROM_UNDERSTORE = "Cluster_BytesReadUfsAll"


def used(facility: Facility) -> dict[str, dict[str, int]]:
    """Bytes by node and tier."""
    nodes = facility.json("GET", "/v1/nodes")["nodes"]
    return {node["name"]: {tier["name"]: tier["used"] for tier in node["tiers"]} for node in nodes}


def make(facility: Facility, count: int, size: int, node: str) -> list[tuple[dict, bytes]]:
    """Products of one file each that ``node`` should serve."""
    made = []
    number = time.time_ns()
    while len(made) < count:
        number += 1
        name = f"tier-{number}.bin"
        if preference([*NODES], f"unsorted/{name}/{name}")[0] == node:
            data = os.urandom(size)
            made.append((facility.upload(name, data), data))
    return made


def cached(facility: Facility, product: dict) -> int:
    """How much of a product lies in tiers, in percent."""
    return int(facility.json("GET", f"/v1/products/{product['id']}/cache")["cached"])


def settled(facility: Facility) -> float:
    """Bytes read from the under-store, once the workers' next reports are in."""
    before = -1.0
    while (now := facility.metric(READ_FROM_UNDERSTORE)) != before:
        before = now
        time.sleep(3)
    return now


def test_a_working_set_larger_than_the_ram_tier_lies_on_ssd_and_is_read_from_there(
    facility: Facility,
) -> None:
    size, count = 32 * MIB, 24  # 768 MiB for a RAM tier of 256 MiB
    files = make(facility, count, size, "node2")
    before = settled(facility)
    for product, data in files:
        assert facility.read(facility.link(product)) == data
    wait_until(lambda: min(cached(facility, product) for product, _ in files) == 100, 60, "all in")
    # Of what a busy worker has read some goes without a report, and a read may be begun again.
    once = settled(facility)
    assert once - before < (count + 4) * size
    # How full a worker is, it tells at its next heartbeat.
    wait_until(lambda: used(facility)["node2"]["SSD"] >= 400 * MIB, 20, "what is in the SSD tier")
    wait_until(lambda: used(facility)["node2"]["MEM"] >= 150 * MIB, 20, "what is in the RAM tier")
    for product, data in files:
        assert facility.read(facility.link(product)) == data
    assert settled(facility) - once < size
    for product, _ in files:
        facility.remove(product)


@pytest.mark.drill
def test_full_tiers_let_the_oldest_go_and_go_on_caching_what_is_new(facility: Facility) -> None:
    size, count = 64 * MIB, 40  # 2,560 MiB for tiers of 2,304 MiB
    files = make(facility, count, size, "node3")
    for product, data in files:
        assert facility.read(facility.link(product)) == data
    settled(facility)
    found = [cached(facility, product) for product, _ in files]
    assert found[0] < 100, "the oldest is still there, so the tiers were not full"
    assert min(found[-15:]) == 100, found
    assert sum(used(facility)["node3"].values()) <= 2304 * MIB
    before = settled(facility)
    for product, data in files[-15:]:
        assert facility.read(facility.link(product)) == data
    assert settled(facility) - before < size
    for product, _ in files:
        facility.remove(product)
    wait_until(lambda: used(facility)["node3"]["SSD"] < 200 * MIB, 60, "removed blocks to go")
