"""Stores that are full, that lie, and whose answers get lost (faults F5, F8, F11)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from admin_api.errors import ReadbackMismatch, Unavailable
from admin_api.services import housekeeping, listing, reconciliation, uploads
from admin_api.services.wishes import Expected, Level, Wish
from admin_api.settings import S3Backend
from admin_api.storage.base import put_bytes, read_bytes
from admin_api.storage.probe import probe
from admin_api.storage.s3 import S3Storage
from tests.conftest import make_facility, unavailable
from tests.support.fault_proxy import fault_proxy
from tests.support.servers import weed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(mount)], capture_output=True
    )
    if done.returncode != 0:
        unavailable("a small file system cannot be mounted here (needs root)")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def announced(size: int) -> dict[str, str]:
    return {"Content-Length": str(size)}


def unknown(size: int) -> dict[str, str]:
    return {}


@pytest.mark.parametrize("length", [announced, unknown])
def test_a_full_store_answers_507_and_works_again_once_freed(
    make_service, small_disk: Path, length
) -> None:
    service = make_service({"type": "posix", "root": small_disk / "store"})
    service.start()
    first = service.json("PUT", "/v1/uploads/first", os.urandom(8 << 20), 201)
    data = os.urandom(20 << 20)
    pieces = (data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20))
    answer = service.request("PUT", "/v1/uploads/second", pieces, headers=length(len(data)))
    assert answer.status == 507, answer.data
    assert json.loads(answer.data)["code"] == "no_space"
    assert list((small_disk / "store/.tmp").iterdir()) == []
    href = first["files"][0]["href"]
    assert service.request("GET", href).headers["Content-Length"] == str(8 << 20)
    service.json("DELETE", f"/v1/products/{first['id']}")
    assert service.json("PUT", "/v1/uploads/second", data, 201)["size"] == len(data)
    assert "0 findings" in service.cli("reconcile").stdout


def test_a_full_catalog_disk_answers_507_and_nothing_is_torn(
    make_service, small_disk: Path
) -> None:
    (small_disk / "state").mkdir()
    service = make_service(catalog={"url": f"sqlite:///{small_disk}/state/catalog.sqlite"})
    service.start()
    first = service.json("PUT", "/v1/uploads/first", b"x" * 1000, 201)
    filler = small_disk / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(descriptor, bytes(4096))
    except OSError:
        os.close(descriptor)
    problems = set()
    for number in range(40):
        answer = service.request("PUT", f"/v1/uploads/more-{number}", b"y" * 1000)
        if answer.status != 201:
            problems.add((answer.status, json.loads(answer.data)["code"]))
    assert problems <= {(507, "no_space"), (503, "catalog_unavailable")}
    assert (507, "no_space") in problems
    assert service.request("GET", first["files"][0]["href"]).data == b"x" * 1000
    filler.unlink()
    assert service.json("PUT", "/v1/uploads/after", b"z", 201)
    for product in service.json("GET", "/v1/products?limit=100")["products"]:
        shown = service.json("GET", f"/v1/products/{product['id']}")
        assert service.request("GET", shown["files"][0]["href"]).status == 200


def test_a_full_s3_service_answers_no_space_and_works_again(tmp_path: Path, operator) -> None:
    with weed(tmp_path / "weed", volume_mb=2, volumes=8) as server:
        facility = make_facility(tmp_path, server.backend(retry_seconds=1.0))
        codes = set()
        stored = []
        for number in range(60):
            try:
                outcome = uploads.receive(
                    facility,
                    operator,
                    Wish(f"p{number}"),
                    iter([os.urandom(1 << 20)]),
                    Expected(),
                    None,
                )
                stored.append(outcome.product)
            except Exception as error:
                codes.add(getattr(error, "code", repr(error)))
                if len(codes) and number > 50:
                    break
        assert codes, "the service never became full"
        assert codes <= {"no_space", "storage_unavailable"}, codes
        page, _ = listing.list_products(facility, operator, listing.ProductFilter(), None, 1000)
        assert {item.id for item in page} == {item.id for item in stored}
        for product in page:
            _, files = listing.get_product(facility, operator, product.id)
            assert sum(len(chunk) for chunk in facility.storage.open(files[0].key)) == 1 << 20


# -- stores that answer 200 and keep something else -------------------------------------------
LIES = {
    "truncated": lambda body: body[:-1],
    "empty": lambda body: b"",
    "flipped": lambda body: bytes([body[0] ^ 1]) + body[1:] if body else body,
    "chunk framing": lambda body: (
        b"%x;chunk-signature=0\r\n%s\r\n0;chunk-signature=0\r\n\r\n" % (len(body), body)
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_the_probe_and_every_put_notice_a_server_that_stores_something_else(
    s3_server, lie: str
) -> None:
    with fault_proxy(s3_server.endpoint) as (url, faults):
        store = S3Storage(S3Backend(**{**s3_server.backend(), "endpoint": url}))
        assert all(check.passed for check in probe(store) if check.name != "listing")
        faults.mangle = LIES[lie]
        failed = {check.name: check.sentence for check in probe(store) if not check.passed}
        assert {"small object", "multipart"} <= failed.keys(), failed
        assert "stored" in failed["small object"] or "bytes" in failed["small object"]
        with pytest.raises(ReadbackMismatch):
            put_bytes(store, "small", b"some bytes")


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("size", [1000, 20 << 20])
def test_a_product_that_was_not_really_stored_is_never_available(
    s3_server, tmp_path: Path, operator, lie: str, size: int
) -> None:
    with fault_proxy(s3_server.endpoint) as (url, faults):
        facility = make_facility(tmp_path, {**s3_server.backend(), "endpoint": url})
        faults.mangle = LIES[lie]
        faults.only = "product.bin"
        wish = Wish("product.bin", level=Level.READBACK)
        # Unavailable: a server that notices by itself that a part is not what it should be.
        with pytest.raises((ReadbackMismatch, Unavailable)):
            uploads.receive(
                facility, operator, wish, iter([os.urandom(size)]), Expected(size), None
            )
        assert listing.list_products(facility, operator, listing.ProductFilter(), None, 9)[0] == []
        faults.mangle = lambda body: body
        housekeeping.clean(facility)
        done = uploads.receive(facility, operator, wish, iter([b"good"]), Expected(4), None)
        assert done.result == "created"
        findings = list(reconciliation.reconcile(facility, operator))
        assert [item for item in findings if isinstance(item, reconciliation.Finding)] == []


# -- answers that get lost ---------------------------------------------------------------------
@pytest.mark.parametrize("where", ["product.bin", ".products"])
@pytest.mark.parametrize("size", [1000, 20 << 20])
def test_a_lost_answer_after_success_is_adopted_and_makes_no_duplicate(
    s3_server, tmp_path: Path, operator, where: str, size: int
) -> None:
    with fault_proxy(s3_server.endpoint) as (url, faults):
        facility = make_facility(tmp_path, {**s3_server.backend(), "endpoint": url})
        faults.only, faults.lose_answers = where, 1
        data = os.urandom(size)
        done = uploads.receive(
            facility, operator, Wish("product.bin"), iter([data]), Expected(size), None
        )
        assert faults.lost == 1
        assert done.product.state == "available"
        _, files = listing.get_product(facility, operator, done.product.id)
        assert read_bytes(facility.storage, files[0].key) == data
        stored = [stat.key for stat in facility.storage.list()]
        assert len(stored) == 3, stored  # the product, its record, and the store's marker
        again = uploads.receive(
            facility, operator, Wish("product.bin"), iter([data]), Expected(size), None
        )
        assert (again.result, again.product.id) == ("skipped", done.product.id)
        assert [stat.key for stat in facility.storage.list()] == stored


def test_a_store_that_is_down_is_told_as_such_and_heals_by_itself(make_service, tmp_path) -> None:
    with weed(tmp_path / "weed") as server:
        service = make_service(server.backend(retry_seconds=0.5, timeout=5))
        service.start()
        assert service.json("PUT", "/v1/uploads/before", b"x", 201)
        server.process.send_signal(19)  # frozen: the network's way of being gone
        try:
            answer = service.request("GET", "/healthz/ready", token=None, timeout=60)
            assert answer.status == 503
            assert json.loads(answer.data)["checks"]["storage:/"]
            assert service.json("GET", "/healthz/live", token=None)["status"] == "ok"
            answer = service.request("PUT", "/v1/uploads/during", b"x", timeout=60)
            assert (answer.status, json.loads(answer.data)["code"]) == (503, "storage_unavailable")
        finally:
            server.process.send_signal(18)
        assert service.json("GET", "/healthz/ready", token=None)["status"] == "ok"
        assert service.json("PUT", "/v1/uploads/after", b"x", 201)
