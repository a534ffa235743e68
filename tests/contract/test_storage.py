"""The promises of the ``Storage`` protocol, kept by every backend alike."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from admin_api.errors import AlreadyExists, InvalidKey, NotFound, StorageManagerError
from admin_api.settings import S3Backend
from admin_api.storage.base import Storage, put_bytes, read_bytes
from admin_api.storage.mounts import Mounts
from admin_api.storage.posix import PosixStorage
from admin_api.storage.probe import ODD_NAMES, probe
from admin_api.storage.s3 import S3Storage

LARGE = 21 * (1 << 20) + 17


@pytest.fixture(scope="module", params=["posix", "s3", "s3-prefix", "mounts"])
def storage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    directory = tmp_path_factory.mktemp("store")
    if request.param == "posix":
        return PosixStorage(directory / "store")
    server = request.getfixturevalue("s3_server")
    if request.param == "s3":
        return S3Storage(S3Backend(**server.backend()))
    if request.param == "s3-prefix":
        return S3Storage(S3Backend(**server.backend(prefix="some/where")))
    return Mounts(
        {
            "": PosixStorage(directory / "root"),
            "c/nested": S3Storage(S3Backend(**server.backend())),
        }
    )


def test_what_was_put_is_read_back(storage: Storage) -> None:
    for key, data in (("a/small", b"abc"), ("a/empty", b""), ("c/nested/x", os.urandom(70_000))):
        stat = put_bytes(storage, key, data)
        assert stat.size == len(data)
        assert read_bytes(storage, key) == data
        assert storage.stat(key).size == len(data)


def test_an_object_of_many_parts_is_read_back(storage: Storage) -> None:
    block = os.urandom(1 << 20)
    written = hashlib.sha256()

    def chunks():
        for number in range(21):
            chunk = bytes([number]) + block[1:]
            written.update(chunk)
            yield chunk
        written.update(b"x" * 17)
        yield b"x" * 17

    storage.put("a/large", chunks(), LARGE)
    found = hashlib.sha256()
    for chunk in storage.open("a/large"):
        found.update(chunk)
    assert storage.stat("a/large").size == LARGE
    assert found.digest() == written.digest()


@pytest.mark.parametrize("data", [b"", b"abc"], ids=["nothing", "little"])
def test_a_size_that_was_announced_wrong_changes_nothing(storage: Storage, data: bytes) -> None:
    key = f"a/announced-{len(data)}"
    storage.put(key, [data] if data else [], LARGE)
    assert read_bytes(storage, key) == data


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [3, LARGE], ids=["one part", "many parts"])
def test_chunks_are_anything_with_a_buffer(storage: Storage, size: int, kind: type) -> None:
    data, key = os.urandom(size), f"a/buffers-{size}-{kind.__name__}"
    storage.put(key, [kind(data[:2]), kind(data[2:])], size)
    digests = [hashlib.sha256(found).digest() for found in (data, b"".join(storage.open(key)))]
    assert digests[0] == digests[1]


def test_a_range_beyond_the_end_is_what_there_is_of_it(storage: Storage) -> None:
    put_bytes(storage, "a/range", b"0123456789")
    put_bytes(storage, "a/none", b"")
    for start, stop in ((0, 99), (4, 99), (4, None), (9, 10), (10, 99), (99, None), (3, 3)):
        assert b"".join(storage.open("a/range", start, stop)) == b"0123456789"[start:stop]
        assert b"".join(storage.open("a/none", start, stop)) == b""
        with pytest.raises(NotFound):
            storage.open("a/missing", start, stop)


@pytest.mark.parametrize("size", [3, LARGE], ids=["one part", "many parts"])
def test_an_object_can_be_written_from_one_that_is_being_read(storage: Storage, size: int) -> None:
    """A store may be its own source, as an incoming area is."""
    data = os.urandom(size)
    put_bytes(storage, f"copy/{size}/from", data)
    storage.put(f"copy/{size}/to", storage.open(f"copy/{size}/from"), size)
    assert read_bytes(storage, f"copy/{size}/to") == data
    storage.delete_many([f"copy/{size}/from", f"copy/{size}/to"])


@pytest.mark.parametrize("size", [3, LARGE], ids=["one part", "many parts"])
def test_a_key_is_written_once(storage: Storage, size: int) -> None:
    key = f"once/{size}"
    storage.put(key, iter([b"a" * size]), size)
    with pytest.raises(AlreadyExists):
        storage.put(key, iter([b"b" * size]), size)
    assert next(iter(storage.open(key, 0, 1))) == b"a"


@pytest.mark.parametrize("size", [1000, 6 << 20], ids=["one part", "many parts"])
def test_of_many_who_write_one_key_at_once_one_wins_and_its_bytes_stay(
    storage: Storage, size: int
) -> None:
    key, start = f"race/{size}", threading.Barrier(8)

    def write(number: int) -> int | None:
        data = bytes([number]) * size
        start.wait()
        try:
            storage.put(key, iter([data]), size)
        except AlreadyExists:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(write, range(8)) if number is not None]
    assert len(winners) == 1
    assert b"".join(storage.open(key)) == bytes([winners[0]]) * size
    storage.delete(key)


@pytest.mark.parametrize("blocks", [1, 30], ids=["one part", "many parts"])
def test_a_failed_put_leaves_nothing_behind(storage: Storage, blocks: int) -> None:
    def chunks():
        for _ in range(blocks):
            yield bytes(1 << 20)
        raise StorageManagerError("the source broke")

    key = f"failed-{blocks}/put"
    with pytest.raises(StorageManagerError, match="the source broke"):
        storage.put(key, chunks(), None)
    with pytest.raises(NotFound):
        storage.stat(key)
    assert list(storage.list(f"failed-{blocks}")) == []
    storage.put(key, iter([b"good"]), 4)
    assert read_bytes(storage, key) == b"good"


@given(start=st.integers(0, 1100), length=st.integers(0, 1100))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_range_is_exact(storage: Storage, start: int, length: int) -> None:
    data = bytes(range(256)) * 4
    try:
        put_bytes(storage, "ranges/object", data)
    except AlreadyExists:
        pass
    found = b"".join(storage.open("ranges/object", start, start + length))
    assert found == data[start : start + length]


def test_missing_keys_are_told(storage: Storage) -> None:
    for verb in (storage.stat, storage.open, storage.delete):
        with pytest.raises(NotFound):
            verb("not/there")


def test_a_directory_is_not_an_object(storage: Storage) -> None:
    put_bytes(storage, "dir/inner/file", b"x")
    for verb in (storage.stat, storage.open, storage.delete):
        with pytest.raises(NotFound):
            verb("dir/inner")


def test_deleted_objects_are_gone_and_their_keys_free(storage: Storage) -> None:
    put_bytes(storage, "del/one", b"x")
    storage.delete("del/one")
    with pytest.raises(NotFound):
        storage.stat("del/one")
    assert list(storage.list("del")) == []
    put_bytes(storage, "del/one", b"y")
    assert storage.delete_many(["del/one", "del/never"]) == 2
    assert list(storage.list("del")) == []


def test_more_than_two_pages_are_listed_in_order(storage: Storage) -> None:
    keys = [f"many/{number:05d}" for number in range(2100)]
    for key in keys:
        put_bytes(storage, key, b"")
    assert [stat.key for stat in storage.list("many")] == keys
    assert [stat.key for stat in storage.list("many", after=keys[1050])] == keys[1051:]
    assert storage.delete_many(keys) == len(keys)
    assert list(storage.list("many")) == []


def test_listings_are_complete_in_a_stable_order_and_beneath_the_directory_only(
    storage: Storage,
) -> None:
    names = ["o/a/b", "o/a.b", "o/a/b.c", "o/ab", "o/a-b/c", "o/Z", "o/\u00e9", "o/e\u0301", "oo/x"]
    for name in names:
        put_bytes(storage, name, name.encode())
    listed = [stat.key for stat in storage.list("o")]
    in_byte_order = sorted(names[:-1], key=lambda name: name.encode())
    assert sorted(listed, key=lambda name: name.encode()) == in_byte_order
    if not isinstance(getattr(storage, "understore", storage), S3Storage):
        # SeaweedFS goes directory by directory.
        assert listed == in_byte_order
    for number, name in enumerate(listed):
        assert [stat.key for stat in storage.list("o", after=name)] == listed[number + 1 :]
    assert set(names) <= {stat.key for stat in storage.list()}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_kept_exactly(storage: Storage, name: str) -> None:
    put_bytes(storage, f"odd/{name}", name.encode())
    assert read_bytes(storage, f"odd/{name}") == name.encode()
    assert f"odd/{name}" in [stat.key for stat in storage.list("odd")]


@pytest.mark.parametrize(
    "key",
    ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a\0b", "a\nb", "a?b", "a\\b"]
    + ["x" * 256, "/".join(["d" * 200] * 5)],
)
def test_keys_outside_the_grammar_are_refused(storage: Storage, key: str) -> None:
    for verb in (storage.stat, storage.open, storage.delete):
        with pytest.raises(InvalidKey):
            verb(key)
    with pytest.raises(InvalidKey):
        put_bytes(storage, key, b"x")


def test_uris_lead_back_to_their_keys(storage: Storage) -> None:
    for key in ("a/small", "c/nested/x", "u/with space \u00e9 %41"):
        assert storage.key_of(storage.uri(key)) == key
    assert storage.key_of("s3://elsewhere/a/small") is None
    assert storage.key_of("file:///elsewhere/a") is None


def test_a_store_says_how_full_it_is_or_that_it_cannot(storage: Storage) -> None:
    capacity = storage.capacity()
    assert (capacity.total is None) == (capacity.free is None)
    if capacity.total is not None and capacity.free is not None:
        assert 0 < capacity.free <= capacity.total
    storage.ping()


def test_what_is_offered_beside_streams_gives_the_same_bytes(storage: Storage) -> None:
    for key in ("offer/\u00fc x", "c/nested/offer"):
        put_bytes(storage, key, key.encode())
        file, link = storage.local_file(key), storage.link(key, 60, "a \u00fc name")
        assert (file is None) != (link is None)
        if file is not None:
            with file:
                assert file.read() == key.encode()
        if link is not None:
            answer = urllib3.request("GET", link)
            assert (answer.status, answer.data) == (200, key.encode())


def test_only_old_leftovers_of_ours_are_reaped(storage: Storage, s3_server) -> None:
    stores = storage.stores.values() if isinstance(storage, Mounts) else [storage]
    client, left = s3_server.client(), 0
    for store in stores:
        if isinstance(store, PosixStorage):
            (store.root / ".tmp" / "left.part").write_bytes(b"half")
            left += 1
        elif isinstance(store, S3Storage):
            for key in ("left", "left/by others"):
                client.create_multipart_upload(**store._where(key))
    assert storage.reap(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert storage.reap(datetime.now(UTC) + timedelta(hours=1)) == left
    assert storage.reap(datetime.now(UTC) + timedelta(hours=1)) == 0
    for store in stores:
        if isinstance(store, S3Storage):
            assert (store.abort("left"), store.abort("left")) == (1, 0)
            listed = client.list_multipart_uploads(Bucket=store._settings.bucket)["Uploads"]
            assert [item["Key"] for item in listed] == [store._where("left/by others")["Key"]]
            store.abort("left/by others")


def test_the_probe_finds_every_promise_kept(storage: Storage) -> None:
    checks = list(probe(storage))
    assert [check.sentence for check in checks if not check.passed] == []
    assert {check.severity for check in checks if check.name != "conditional completion"} == {"ok"}
    assert len(checks) == 14
    assert list(storage.list(".probe")) == []


def test_links_in_a_directory_lead_nowhere(tmp_path: Path) -> None:
    store = PosixStorage(tmp_path / "store")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "store" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "store" / "dir").symlink_to(tmp_path)
    for key in ("link", "dir/secret"):
        for verb in (store.stat, store.open, store.local_file):
            with pytest.raises(NotFound):
                verb(key)
    with pytest.raises(InvalidKey):
        put_bytes(store, "dir/new", b"x")
    assert not (tmp_path / "new").exists()
    assert [stat.key for stat in store.list()] == []
