"""What payload costs on its way through the service: fresh memory, and requests to the store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest

from admin_api.settings import S3Backend
from admin_api.storage.base import put_bytes
from admin_api.storage.posix import PosixStorage
from admin_api.storage.s3 import S3Storage
from bench.memory import watched
from tests.support.servers import Service

MIB = 1 << 20


def faults(service: Service) -> int:
    """Page faults of the service's processes: how often they were given fresh memory."""
    assert service.process is not None
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[7]) if int(fields[2]) == service.process.pid else 0
    return total


def sent(count: int) -> Iterator[bytes]:
    block = os.urandom(MIB)
    return (block for _ in range(count))


def test_a_large_upload_is_received_into_the_same_memory_again_and_again(make_service) -> None:
    service = make_service()
    service.start()
    headers = {"Content-Length": str(8 * MIB)}
    service.json("PUT", "/v1/uploads/warm.bin", sent(8), 201, headers=headers)
    before = faults(service)
    headers = {"Content-Length": str(96 * MIB)}
    service.json("PUT", "/v1/uploads/large.bin", sent(96), 201, headers=headers)
    assert faults(service) - before < 96 * MIB / 4096 / 2


def test_a_large_file_takes_a_service_no_more_memory_than_a_small_one(
    make_service, s3_server
) -> None:
    service = make_service(s3_server.backend())
    service.start()

    def upload(name: str, count: int) -> None:
        headers = {"Content-Length": str(count * MIB)}
        service.json("PUT", f"/v1/uploads/{name}", sent(count), 201, headers=headers)

    small = watched(service, lambda: upload("small.bin", 1))
    large = watched(service, lambda: upload("large.bin", 64))
    assert large - small < 15


def test_a_file_goes_to_the_disk_while_the_rest_of_it_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []

    def advise(fd: int, start: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        begun.append((start, length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    chunks = [bytes(MIB)] * 40

    def arriving() -> Iterator[bytes]:
        yield from chunks
        assert begun == [(0, 16 * MIB), (16 * MIB, 16 * MIB)]

    PosixStorage(tmp_path).put("a/large", arriving(), 40 * MIB)


def test_reading_from_a_bucket_takes_one_request(
    s3_server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3Storage(S3Backend(**s3_server.backend()))
    data = os.urandom(3 * MIB)
    put_bytes(store, "a", data)
    requests = []
    get = obstore.get
    monkeypatch.setattr(obstore, "head", lambda *_: pytest.fail("a needless request"))
    monkeypatch.setattr(obstore, "get", lambda *a, **k: requests.append(a) or get(*a, **k))
    for start, stop in ((0, None), (0, len(data)), (5, 2 * MIB), (7, None), (9, 4 * MIB)):
        assert b"".join(store.open("a", start, stop)) == data[start:stop]
    assert len(requests) == 5


def test_what_is_known_to_be_large_is_sent_as_it_arrives(s3_server) -> None:
    class Begun:
        """A journal that says when the upload began."""

        def __init__(self) -> None:
            self.keys: list[str] = []

        def begun(self, key: str) -> str:
            self.keys.append(key)
            return key

        def stands(self, ticket: str) -> bool:
            return True

        def ended(self, ticket: str) -> None:
            pass

    journal = Begun()
    store = S3Storage(S3Backend(**s3_server.backend()), journal)

    def arriving() -> Iterator[bytes]:
        assert journal.keys == ["large"]
        for _ in range(11):
            yield bytes(MIB)

    assert store.put("large", arriving(), 11 * MIB).size == 11 * MIB
