"""The probe: does a store keep its promises?  Says so in sentences, one per promise.

Run by ``services/monitoring.py`` for ``storage-manager probe`` before a store is trusted: some S3
services answer 200 and store something else, so everything written here is read back.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from admin_api.errors import AlreadyExists, NotFound, StorageManagerError
from admin_api.keys import join
from admin_api.storage.alluxio import AlluxioStorage
from admin_api.storage.base import CHUNK, Storage, put_bytes, read_bytes
from admin_api.storage.mounts import Mounts
from admin_api.storage.multipart import Means
from admin_api.storage.s3 import S3Storage

#: More than two pages of an S3 listing.
LISTED_KEYS = 2500
#: More than two parts of a multipart upload at the default part size.
LARGE_BYTES = 20 * CHUNK + 12_345
#: So many writers of one key at once.
RACERS = 8

ODD_NAMES = (
    "with space",
    "a+b=c&d",
    "100%25",
    "umlaut-ü-€",
    "cafe\u0301-nfd",
    "caf\u00e9-nfc",
    "trailing_",
    "dots...",
    "#~'\"[]{}|<>^`*",
    "n" * 255,
)


class BrokenPromise(Exception):
    """What the store did instead of what it promises; becomes the sentence of the check."""


class Reservation(Exception):
    """What the store does not do and the storage manager makes up for, with what follows."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check; a store with a ``failed`` one must not be used."""

    name: str
    passed: bool
    sentence: str
    severity: Literal["ok", "warning", "failed"]


def probe(storage: Storage) -> Iterator[Check]:
    """Check ``storage``, one promise after another; removes what it wrote."""
    base = f".probe/{uuid.uuid4().hex}"
    checks: tuple[tuple[str, Callable[[Storage, str], str]], ...] = (
        ("reach", _reach),
        ("small object", _small),
        ("empty object", _empty),
        ("create only", _create_only),
        ("create only, at once", _create_at_once),
        ("integrity", _integrity),
        ("conditional completion", _conditional_completion),
        ("multipart", _large),
        ("ranges", _ranges),
        ("odd names", _odd_names),
        ("listing", _listing),
        ("missing", _missing),
        ("signed link", _signed_link),
        ("bulk delete", _bulk_delete),
    )
    try:
        for name, check in checks:
            try:
                yield Check(name, True, check(storage, base), "ok")
            except Reservation as error:
                yield Check(name, True, str(error), "warning")
            except BrokenPromise as error:
                yield Check(name, False, str(error), "failed")
            except StorageManagerError as error:
                yield Check(name, False, error.detail, "failed")
    finally:
        storage.delete_many([stat.key for stat in storage.list(base)])


def _reach(storage: Storage, base: str) -> str:
    storage.ping()
    return "The store answers."


def _small(storage: Storage, base: str) -> str:
    data = random.randbytes(65_537)
    put_bytes(storage, f"{base}/small", data)
    _expect(data, read_bytes(storage, f"{base}/small"), "a small object")
    stat = storage.stat(f"{base}/small")
    if stat.size != len(data):
        raise BrokenPromise(f"The store says {stat.size} bytes for an object of {len(data)}.")
    return "A small object comes back as it was written."


def _empty(storage: Storage, base: str) -> str:
    put_bytes(storage, f"{base}/empty", b"")
    _expect(b"", read_bytes(storage, f"{base}/empty"), "an empty object")
    return "An empty object is kept."


def _create_only(storage: Storage, base: str) -> str:
    put_bytes(storage, f"{base}/once", b"first")
    try:
        put_bytes(storage, f"{base}/once", b"second")
    except AlreadyExists:
        _expect(b"first", read_bytes(storage, f"{base}/once"), "an object written twice")
        return "A key is written once: the second write is refused."
    raise BrokenPromise(
        "The store overwrites an object although it was asked to create only (it ignores "
        "If-None-Match). Products stay safe as long as one catalog rules over the bucket."
    )


def _create_at_once(storage: Storage, base: str) -> str:
    key, start = f"{base}/at-once", threading.Barrier(RACERS)

    def race(number: int) -> bytes | None:
        data = b"%d" % number * 1000
        start.wait()
        try:
            put_bytes(storage, key, data)
        except AlreadyExists:
            return None
        return data

    with ThreadPoolExecutor(RACERS) as pool:
        winners = [data for data in pool.map(race, range(RACERS)) if data is not None]
    if len(winners) > 1:
        raise Reservation(
            f"Of {RACERS} writes of one new key at once the store let {len(winners)} succeed: it "
            "looks before it writes and does not hold the key meanwhile. The catalog keeps our own "
            "writers apart; nothing else may write into this store, nor a second catalog."
        )
    if not winners:
        raise BrokenPromise(f"Of {RACERS} writes of one new key at once none succeeded.")
    _expect(winners[0], read_bytes(storage, key), "an object that several wrote at once")
    return f"Of {RACERS} writes of one key at once exactly one succeeds, and its bytes stay."


def _integrity(storage: Storage, base: str) -> str:
    means = _means(storage, f"{base}/integrity", 1)
    if means is None:
        return "The store is a directory: nothing between here and there alters bytes unnoticed."
    compared = " and ".join(
        name
        for name, is_compared in (
            ("Content-MD5", means.compares_md5),
            ("x-amz-checksum-sha256", means.compares_sha256),
        )
        if is_compared
    )
    if compared:
        return f"The service compares what arrives with {compared} and refuses altered bytes."
    if means.etags_are_md5:
        return (
            "The service ignores Content-MD5 and x-amz-checksum-sha256; its ETags are the MD5 of "
            "what arrived and are compared here."
        )
    raise Reservation(
        "The service ignores Content-MD5 and x-amz-checksum-sha256, and its ETags are no MD5: "
        "every object is read back before it is acknowledged, which doubles the traffic."
    )


def _conditional_completion(storage: Storage, base: str) -> str:
    means = _means(storage, f"{base}/completion", RACERS)
    if means is None:
        return "The store has no uploads in parts: a file appears under its key in one step."
    consequence = (
        "A look at the key before completing, the journal of uploads and the catalog keep our own "
        "writers apart; nothing else may write into this bucket, nor a second catalog."
    )
    if not means.knows_condition:
        raise Reservation(
            "The service completes an upload in parts over an object that is there, although it "
            f"was asked to create only. {consequence}"
        )
    if means.winners != 1:
        raise Reservation(
            f"Of {means.racers} uploads in parts that were completed at once {means.winners} "
            "succeeded: the service looks at the condition and does not hold it meanwhile. "
            f"{consequence}"
        )
    return "An upload in parts is completed only where no object stands, at once as well."


def _means(storage: Storage, key: str, racers: int) -> Means | None:
    if isinstance(storage, Mounts):
        mount = storage.mount_of(key)
        storage, key = storage.stores[mount], key[len(mount) + 1 :] if mount else key
    if isinstance(storage, AlluxioStorage):
        storage = storage.understore
    return storage.means(key, racers) if isinstance(storage, S3Storage) else None


def _large(storage: Storage, base: str) -> str:
    digest = hashlib.sha256()
    size = 0
    generator = random.Random(7)

    def chunks() -> Iterator[bytes]:
        for _ in range(LARGE_BYTES // CHUNK):
            yield _counted(generator.randbytes(CHUNK))
        yield _counted(generator.randbytes(LARGE_BYTES % CHUNK))

    def _counted(chunk: bytes) -> bytes:
        digest.update(chunk)
        return chunk

    storage.put(f"{base}/large", chunks(), LARGE_BYTES)
    found = hashlib.sha256()
    for chunk in storage.open(f"{base}/large"):
        found.update(chunk)
        size += len(chunk)
    if size != LARGE_BYTES or found.digest() != digest.digest():
        raise BrokenPromise(
            f"The store answered success and stored something else: an object of {LARGE_BYTES} "
            f"bytes in several parts came back as {size} bytes with another digest."
        )
    return "An object of several parts comes back as it was written."


def _ranges(storage: Storage, base: str) -> str:
    data = random.randbytes(300_000)
    put_bytes(storage, f"{base}/range", data)
    for start, stop in ((0, 1), (1, 299_999), (299_999, 300_000), (250_000, None), (7, 400_000)):
        found = b"".join(storage.open(f"{base}/range", start, stop))
        _expect(data[start:stop], found, f"bytes {start} to {stop} of an object")
    return "Ranges are exact."


def _odd_names(storage: Storage, base: str) -> str:
    for name in ODD_NAMES:
        put_bytes(storage, f"{base}/odd/{name}", name.encode())
        _expect(name.encode(), read_bytes(storage, f"{base}/odd/{name}"), f"the object {name!r}")
    listed = {stat.key.removeprefix(f"{base}/odd/") for stat in storage.list(f"{base}/odd")}
    lost = set(ODD_NAMES) - listed
    if lost:
        raise BrokenPromise(f"The store lists other names than were written; lost: {sorted(lost)}.")
    return "Names with spaces, percent signs, umlauts in both forms and 255 bytes are kept."


def _listing(storage: Storage, base: str) -> str:
    keys = [f"{base}/list/{number:05d}" for number in range(LISTED_KEYS)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: put_bytes(storage, key, b"x"), keys))
    found = [stat.key for stat in storage.list(f"{base}/list")]
    if found != keys:
        raise BrokenPromise(
            f"A listing of {LISTED_KEYS} keys gave {len(found)}"
            + (" in another order." if sorted(found) == keys else ".")
        )
    middle = LISTED_KEYS // 2
    rest = [stat.key for stat in storage.list(f"{base}/list", after=keys[middle])]
    if rest != keys[middle + 1 :]:
        raise BrokenPromise(
            f"A listing after a key gave {len(rest)} keys; {LISTED_KEYS - middle - 1} are right."
        )
    return f"{LISTED_KEYS} keys are listed, in order, and from the middle on."


def _missing(storage: Storage, base: str) -> str:
    for verb in (storage.stat, storage.open, storage.delete):
        try:
            verb(f"{base}/nothing")
        except NotFound:
            continue
        raise BrokenPromise(f"The store does not say that a key is missing ({verb.__name__}).")
    return "A missing key is told as such."


def _signed_link(storage: Storage, base: str) -> str:
    put_bytes(storage, f"{base}/link ü", b"by link")
    url = storage.link(f"{base}/link ü", 60, "link")
    if url is None:
        return "The store has no signed links; files are streamed."
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310  # nosec B310 # ours
            found = answer.read()
    except OSError as error:
        raise BrokenPromise(f"A signed link does not work: {error}.") from error
    _expect(b"by link", found, "an object read by signed link")
    return "Signed links work."


def _bulk_delete(storage: Storage, base: str) -> str:
    keys = [stat.key for stat in storage.list(base)]
    storage.delete_many(itertools.chain(keys, [join(base, "never-written")]))
    left = sum(1 for _ in storage.list(base))
    if left:
        raise BrokenPromise(f"After a bulk delete of {len(keys)} keys {left} are left.")
    return f"{len(keys)} keys were deleted in bulk."


def _expect(written: bytes, found: bytes, what: str) -> None:
    if written == found:
        return
    hint = (
        " (it holds the framing of a chunked upload)" if b"chunk-signature=" in found[:200] else ""
    )
    raise BrokenPromise(
        f"The store answered success and stored something else: {what} of {len(written)} bytes "
        f"came back as {len(found)} bytes with other content{hint}."
    )
