"""Stores that are full, that lie, and whose answers get lost (faults F5, F8, F11)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy import select

from admin_api.catalog.models import Multipart
from admin_api.catalog.multiparts import CatalogJournal
from admin_api.catalog.queries import ProductFilter
from admin_api.errors import AlreadyExists, ReadbackMismatch, StorageManagerError, Unavailable
from admin_api.services import housekeeping, listing, multiparts, reconciliation, uploads
from admin_api.services.facility import Facility, open_facility
from admin_api.services.wishes import Expected, Wish
from admin_api.settings import S3Backend
from admin_api.storage import probe as probing
from admin_api.storage.base import put_bytes, read_bytes
from admin_api.storage.multipart import MultipartUpload
from admin_api.storage.probe import probe
from admin_api.storage.s3 import S3Storage
from tests.conftest import make_facility, stale_at_once, unavailable
from tests.support.fault_proxy import CHECKSUMS, CONDITIONS, fault_proxy
from tests.support.servers import wait_until, weed


def a_moment_ago() -> datetime:
    return datetime.now(UTC)


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
        page, _ = listing.list_products(facility, operator, ProductFilter(), None, 1000)
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


#: Services by what they have against altered bytes.
SERVICES = {
    "that compares": {},
    "that ignores checksums": {"ignore": CHECKSUMS},
    "whose ETags say nothing too": {"ignore": CHECKSUMS, "opaque_etags": True},
}


@pytest.mark.parametrize("lie", LIES)
def test_the_probe_and_every_put_notice_a_server_that_stores_something_else(
    s3_server, lie: str, monkeypatch
) -> None:
    monkeypatch.setattr(probing, "LISTED_KEYS", 20)
    with fault_proxy(s3_server.endpoint) as (url, faults):
        store = S3Storage(S3Backend(**{**s3_server.backend(), "endpoint": url}))
        assert [check for check in probe(store) if not check.passed] == []
        faults.mangle = LIES[lie]
        faults.ignore = CHECKSUMS
        failed = {check.name: check.sentence for check in probe(store) if not check.passed}
        assert {"small object", "multipart"} <= failed.keys(), failed
        assert "stored" in failed["small object"] or "bytes" in failed["small object"]
        with pytest.raises(ReadbackMismatch):
            put_bytes(store, "small", b"some bytes")


def test_the_probe_says_what_a_service_compares_and_what_it_does_not(
    s3_server, monkeypatch
) -> None:
    monkeypatch.setattr(probing, "LISTED_KEYS", 20)
    with fault_proxy(s3_server.endpoint) as (url, faults):
        store = S3Storage(S3Backend(**{**s3_server.backend(), "endpoint": url}))

        def found() -> dict[str, tuple[str, str]]:
            return {check.name: (check.severity, check.sentence) for check in probe(store)}

        severity, sentence = found()["integrity"]
        assert severity == "ok" and "Content-MD5 and x-amz-checksum-sha256" in sentence
        faults.ignore = CHECKSUMS
        severity, sentence = found()["integrity"]
        assert severity == "ok" and "ETags are the MD5" in sentence
        faults.opaque_etags = True
        severity, sentence = found()["integrity"]
        assert severity == "warning" and "read back" in sentence
        faults.ignore, faults.opaque_etags = CONDITIONS, False
        told = found()
        assert told["create only"][0] == "failed"
        assert told["create only, at once"][0] == "warning"
        assert told["conditional completion"][0] == "warning"


@pytest.mark.parametrize(
    ("service", "lie"),
    [
        ("that compares", "flipped"),
        ("that ignores checksums", "flipped"),
        *(("whose ETags say nothing too", lie) for lie in LIES),
    ],
)
@pytest.mark.parametrize("size", [1000, 11 << 20], ids=["one part", "many parts"])
def test_a_product_that_was_not_really_stored_is_never_available(
    s3_server, tmp_path: Path, operator, lie: str, service: str, size: int
) -> None:
    with fault_proxy(s3_server.endpoint) as (url, faults):
        facility = make_facility(tmp_path, {**s3_server.backend(), "endpoint": url})
        for name, value in SERVICES[service].items():
            setattr(faults, name, value)
        faults.mangle = LIES[lie]
        faults.only = "product.bin"
        wish = Wish("product.bin")
        with pytest.raises(ReadbackMismatch):
            uploads.receive(
                facility, operator, wish, iter([os.urandom(size)]), Expected(size), None
            )
        assert listing.list_products(facility, operator, ProductFilter(), None, 9)[0] == []
        assert [s for s in facility.storage.list() if s.key.endswith("product.bin")] == []
        assert not s3_server.client().list_multipart_uploads(**_bucket(facility)).get("Uploads")
        faults.mangle = lambda body: body
        housekeeping.clean(facility)
        done = uploads.receive(facility, operator, wish, iter([b"good"]), Expected(4), None)
        assert done.result == "created"
        findings = list(reconciliation.reconcile(facility, operator))
        assert [item for item in findings if isinstance(item, reconciliation.Finding)] == []


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("part", [1, 2, 3])
def test_one_byte_altered_in_one_part_of_many_is_noticed_and_right_parts_are_taken(
    s3_server, service: str, part: int
) -> None:
    with fault_proxy(s3_server.endpoint) as (url, faults):
        store = S3Storage(S3Backend(**{**s3_server.backend(), "endpoint": url}))
        for name, value in SERVICES[service].items():
            setattr(faults, name, value)
        data = os.urandom(11 << 20)

        def flip(path: str, body: bytes) -> bytes:
            middle = len(body) // 2
            flipped = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
            return flipped if f"partNumber={part}&" in f"{path}&" else body

        faults.mangle_at = flip
        with pytest.raises(ReadbackMismatch):
            put_bytes(store, "altered", data)
        assert list(store.list()) == []
        faults.mangle_at = lambda path, body: body
        put_bytes(store, "altered", data)
        assert b"".join(store.open("altered")) == data


def _bucket(facility: Facility) -> dict[str, str]:
    return {"Bucket": facility.settings.storage.mounts[0].backend.bucket}


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


@pytest.mark.parametrize(
    ("method", "query", "mood"),
    [
        ("POST", "uploads", "lost"),
        ("PUT", "partNumber=2", "reset"),
        ("PUT", "partNumber=2", "lost"),
        ("PUT", "partNumber=2", "busy"),
        ("POST", "uploadId=", "reset"),
        ("POST", "uploadId=", "lost"),
        ("POST", "uploadId=", "failed"),
    ],
)
def test_one_failure_in_an_upload_of_parts_costs_one_request_and_nothing_else(
    s3_server, method: str, query: str, mood: str
) -> None:
    with fault_proxy(s3_server.endpoint) as (url, faults):
        backend = {**s3_server.backend(), "endpoint": url}
        store = S3Storage(S3Backend(**backend))
        met: list[str] = []

        def meet(told: str, path: str) -> str:
            if told == method and query in path:
                met.append(path)
                return mood if len(met) == 1 else ""
            return ""

        faults.meet = meet
        data = os.urandom(11 << 20)
        put_bytes(store, "object", data)
        assert b"".join(store.open("object")) == data
        assert (
            not s3_server.client().list_multipart_uploads(Bucket=backend["bucket"]).get("Uploads")
        )
        assert len(met) == 2
        assert len(faults.puts) == 3 + (mood == "lost" and method == "PUT")


def test_a_completion_that_fails_for_good_leaves_nothing_and_one_that_worked_is_adopted(
    s3_server,
) -> None:
    with fault_proxy(s3_server.endpoint) as (url, faults):
        backend = {**s3_server.backend(retry_seconds=0.5), "endpoint": url}
        store = S3Storage(S3Backend(**backend))
        data = os.urandom(6 << 20)
        for mood in ("failed", "reset"):
            faults.meet = lambda method, path: mood if method == "POST" and "Id=" in path else ""
            with pytest.raises(Unavailable):
                put_bytes(store, mood, data)
            assert list(store.list()) == []
            uploads = s3_server.client().list_multipart_uploads(Bucket=backend["bucket"])
            assert not uploads.get("Uploads")
        faults.meet = lambda method, path: "lost" if method == "POST" and "Id=" in path else ""
        put_bytes(store, "lost", data)
        assert read_bytes(store, "lost") == data


# -- several writers, frozen writers, other people's uploads -----------------------------------
@pytest.mark.parametrize("ignore", [(), CONDITIONS], ids=["conditions known", "ignored"])
def test_of_two_large_puts_to_one_key_at_once_one_wins_and_its_bytes_stay(
    s3_server, ignore: tuple[str, ...]
) -> None:
    with fault_proxy(s3_server.endpoint) as (url, faults):
        faults.ignore = ignore
        store = S3Storage(S3Backend(**{**s3_server.backend(), "endpoint": url}))
        sent = threading.Barrier(2, timeout=60)

        def meet(method: str, path: str) -> str:
            if method == "PUT" and "partNumber=2" in path:
                sent.wait()  # both have begun, and neither sees the other's object
            return ""

        faults.meet = meet

        def write(number: int) -> bytes | None:
            data = bytes([number]) * (6 << 20)
            try:
                put_bytes(store, "contended", data)
            except AlreadyExists:
                return None
            return data

        with ThreadPoolExecutor(2) as pool:
            written = [data for data in pool.map(write, (1, 2)) if data is not None]
        assert len(written) == 1
        assert b"".join(store.open("contended")) == written[0]


@pytest.mark.parametrize("step", ["uploads", "partNumber=2", "uploadId="])
def test_a_frozen_writer_whose_key_was_taken_over_can_never_land(
    s3_server, tmp_path: Path, step: str
) -> None:
    """Frozen before its upload is made, within it, and with everything said but its completion."""
    with fault_proxy(s3_server.endpoint) as (url, faults):
        faults.ignore = CONDITIONS
        facility = make_facility(tmp_path, {**s3_server.backend(retry_seconds=0), "endpoint": url})
        frozen, thawed = threading.Event(), threading.Event()
        method = "PUT" if step.startswith("part") else "POST"

        def meet(told: str, path: str) -> str:
            if told == method and step in path and not frozen.is_set():
                frozen.set()
                assert thawed.wait(60)
            return ""

        faults.meet = meet
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(put_bytes, facility.storage, "a/key", b"l" * (6 << 20))
            assert frozen.wait(60)
            multiparts.abort_for(facility, "a/key")
            thawed.set()
            with pytest.raises(Unavailable):
                late.result(60)
        assert list(facility.storage.list("unsorted")) == []
        put_bytes(facility.storage, "a/key", b"n" * (6 << 20))
        assert read_bytes(facility.storage, "a/key") == b"n" * (6 << 20)
        assert not s3_server.client().list_multipart_uploads(**_bucket(facility)).get("Uploads")
        assert journal(facility) == []


def test_a_file_of_a_session_is_that_of_the_request_that_took_the_claim_over(
    s3_server, tmp_path: Path, operator
) -> None:
    """The first request was frozen in another process, with everything said but its completion."""
    with fault_proxy(s3_server.endpoint) as (url, faults):
        faults.ignore = CONDITIONS
        backend = {**s3_server.backend(retry_seconds=0), "endpoint": url}
        first = make_facility(tmp_path, backend, housekeeping=stale_at_once())
        second = open_facility(first.settings)
        upload = uploads.begin(first, operator, Wish("taken-over")).upload.id
        frozen, thawed = threading.Event(), threading.Event()

        def meet(method: str, path: str) -> str:
            if method == "POST" and "uploadId=" in path and not frozen.is_set():
                frozen.set()
                assert thawed.wait(60)
            return ""

        faults.meet = meet

        def send(facility: Facility, letter: bytes) -> None:
            body = iter([letter * (6 << 20)])
            uploads.receive_file(facility, operator, upload, "file", body, Expected())

        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(send, first, b"l")
            assert frozen.wait(60)
            send(second, b"n")
            thawed.set()
            with pytest.raises(StorageManagerError):
                late.result(60)
        done = uploads.commit(second, operator, upload)
        assert read_bytes(second.storage, done.files[0].key) == b"n" * (6 << 20)
        assert done.files[0].sha256 == hashlib.sha256(b"n" * (6 << 20)).hexdigest()
        for facility in (first, second):
            facility.catalog.close()


def test_clearing_spares_live_uploads_and_those_of_others_and_takes_what_the_dead_left(
    s3_server, tmp_path: Path, operator, monkeypatch
) -> None:
    facility = make_facility(tmp_path, s3_server.backend(), housekeeping=stale_at_once())
    client, bucket = s3_server.client(), _bucket(facility)
    client.create_multipart_upload(**bucket, Key="other/people")

    def uploading() -> list[str]:
        return [item["Key"] for item in client.list_multipart_uploads(**bucket).get("Uploads", [])]

    def pieces():
        yield bytes(6 << 20)
        yield bytes(6 << 20)
        assert len(uploading()) == 2
        assert len(journal(facility)) == 1
        assert multiparts.clear(facility, a_moment_ago()) == 0

    wish, expected = Wish("live.bin"), Expected(12 << 20)
    assert uploads.receive(facility, operator, wish, pieces(), expected, None).result == "created"
    assert uploading() == ["other/people"]
    assert journal(facility) == []

    def dies() -> Iterator[bytes]:
        yield bytes(12 << 20)
        raise StorageManagerError("killed here")

    with monkeypatch.context() as patch:  # nobody is left to abort it
        patch.setattr(MultipartUpload, "_abort", lambda self: False)
        with pytest.raises(StorageManagerError, match="killed here"):
            uploads.receive(facility, operator, Wish("dead.bin"), dies(), Expected(), None)
    assert len(uploading()) == 2
    housekeeping.clean(facility)
    housekeeping.clean(facility)
    assert uploading() == ["other/people"]
    assert journal(facility) == []


def test_what_a_product_holds_is_never_taken_apart_by_clearing(
    s3_server, tmp_path: Path, operator
) -> None:
    """The end of an upload was not noted, and the service still lists one of its key."""
    facility = make_facility(tmp_path, s3_server.backend(), housekeeping=stale_at_once())
    data = os.urandom(6 << 20)
    done = uploads.receive(
        facility, operator, Wish("whole.bin"), iter([data]), Expected(len(data)), None
    )
    key = listing.get_product(facility, operator, done.product.id)[1][0].key
    CatalogJournal(facility.catalog, "").begun(key)
    client, bucket = s3_server.client(), _bucket(facility)
    client.create_multipart_upload(**bucket, Key=key)
    assert multiparts.clear(facility, a_moment_ago()) == 0
    assert journal(facility) == []
    assert len(client.list_multipart_uploads(**bucket)["Uploads"]) == 1
    assert read_bytes(facility.storage, key) == data


def journal(facility: Facility) -> list[str]:
    with facility.catalog.reading() as session:
        return list(session.scalars(select(Multipart.key)))


# -- buckets that others use too ---------------------------------------------------------------
def test_keys_that_cannot_be_ours_do_not_end_a_listing(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("admin_api.storage.s3._LISTED", 3)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        credentials = tmp_path / "credentials"
        credentials.write_text("[default]\naws_access_key_id=any\naws_secret_access_key=any\n")
        where = {"endpoint": f"http://{host}:{port}", "credentials_file": credentials}
        store = S3Storage(S3Backend(bucket="shared", **where))
        client = store._admin
        client.create_bucket(Bucket="shared")
        strange = ["./y", "a/../x", "a//b", "a//c", "a//d", "a//e", "b\\c", "d\x01e", "n//", "q?"]
        markers = ["a/", "a/X.SAFE/", "m/"]
        good = ["a/X.SAFE/empty", "a/X.SAFE/file", "a/z", "c/\u00fc x", "zz"]
        for key in [*strange, *markers, *good]:
            body = b"" if key in markers or key.endswith("empty") else b"x"
            client.put_object(Bucket="shared", Key=key, Body=body)
        with caplog.at_level("WARNING"):
            assert [stat.key for stat in store.list()] == good
        assert "passed over" in caplog.text
        assert [stat.key for stat in store.strange()] == strange
        assert [stat.key for stat in store.list("a")] == good[:3]
        assert [stat.key for stat in store.list("", after="a/X.SAFE/empty")] == good[1:]
    finally:
        server.stop()


def test_a_store_that_is_down_is_told_as_such_and_heals_by_itself(make_service, tmp_path) -> None:
    with weed(tmp_path / "weed") as server:
        service = make_service(server.backend(retry_seconds=0.5, timeout=5))
        service.start()
        assert service.json("PUT", "/v1/uploads/before", b"x", 201)
        server.process.send_signal(19)  # frozen: the network's way of being gone
        try:

            def asked():
                return service.request("GET", "/healthz/ready", token=None, timeout=60)

            def noticed() -> bool:
                answer = asked()
                return answer.status == 503 and json.loads(answer.data)["checks"]["storage:/"]

            wait_until(noticed, 20, "a store that is not ready")
            assert service.json("GET", "/healthz/live", token=None)["status"] == "ok"
            answer = service.request("PUT", "/v1/uploads/during", b"x", timeout=60)
            assert (answer.status, json.loads(answer.data)["code"]) == (503, "storage_unavailable")
        finally:
            server.process.send_signal(18)
        wait_until(lambda: asked().status == 200, 30, "readiness")
        assert service.json("PUT", "/v1/uploads/after", b"x", 201)
