"""A full disk can be emptied: a removal always frees (fault F5)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.faults.test_stores import small_disk  # noqa: F401 - a fixture
from tests.support.servers import wait_until


def fill(directory: Path) -> None:
    """Take every byte and every block that is left."""
    with open(directory / "filler", "ab", buffering=0) as filler:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    filler.write(bytes(size))
            except OSError:
                continue


@pytest.mark.parametrize("together", [False, True], ids=["store", "store and catalog"])
def test_a_store_without_a_free_byte_is_emptied_by_removing(
    make_service,
    small_disk: Path,  # noqa: F811 - the fixture
    together: bool,
) -> None:
    catalog = {}
    if together:
        (small_disk / "state").mkdir()
        catalog = {"url": f"sqlite:///{small_disk}/state/catalog.sqlite"}
    service = make_service({"type": "posix", "root": small_disk / "store"}, catalog=catalog)
    service.start()
    products = [
        service.json("PUT", f"/v1/uploads/p{number}", os.urandom(2 << 20), 201)
        for number in range(4)
    ]
    if together:  # housekeeping sets something aside for removals
        wait_until(
            lambda: (small_disk / "state/catalog.reserve").exists(), 60, "the catalog's reserve"
        )
    fill(small_disk)
    answer = service.request("PUT", "/v1/uploads/one-more", os.urandom(2 << 20))
    assert answer.status == 507, answer.data
    for product in products[:2]:
        removed = service.json("DELETE", f"/v1/products/{product['id']}")
        assert removed["state"] in ("removed", "removing")
    wait_until(
        lambda: (
            service.json("GET", f"/v1/products/{products[0]['id']}")["state"] == "removed"
            and service.json("GET", f"/v1/products/{products[1]['id']}")["state"] == "removed"
        ),
        60,
        "both removals",
    )
    assert service.json("PUT", "/v1/uploads/one-more", os.urandom(1 << 20), 201)
    assert json.loads(service.request("GET", "/healthz/ready", token=None).data)["status"] == "ok"
    (small_disk / "filler").unlink()
    assert "0 findings" in service.cli("reconcile").stdout


def test_a_full_disk_of_the_state_directory_kills_no_process_and_removing_goes_on(
    make_service,
    small_disk: Path,  # noqa: F811 - the fixture
) -> None:
    service = make_service(state_dir=small_disk / "state")
    service.start()
    product = service.json("PUT", "/v1/uploads/there", b"x", 201)
    wait_until(lambda: (small_disk / "state/catalog.reserve").exists(), 60, "the catalog's reserve")
    fill(small_disk)
    for path in ("/v1/products", "/v1/storage", "/v1/events", "/healthz/live"):
        assert service.request("GET", path).status == 200, path
    assert service.json("DELETE", f"/v1/products/{product['id']}")["state"] == "removed"
    assert "SIGBUS" not in service.log()
