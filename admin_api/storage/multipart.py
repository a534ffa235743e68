"""Objects of several parts in a bucket: none half, none altered, none late, none forgotten.

The engine that moves small objects (obstore) tells neither upload ids nor the parts' ETags and has
no condition on completing, so these go by boto3.  What holds here, whatever the service is:

- *Altered on the way*: every part carries its Content-MD5, and the ETag that the service gives
  back is compared with it.  Where ETags are no MD5 (encryption with KMS keys) the service is tried
  with a wrong Content-MD5; if it takes that, the object is read back before it is acknowledged.
- *Late*: an upload is announced in the journal before it begins, and completed only while it
  stands there; whoever takes it out (``S3Storage.abort``) fences a writer that was frozen.
- *Twice*: completed under ``If-None-Match: *`` and after a look at the key; in one process one
  completion at a time per key, since some services check that condition and do not hold it.
- *Lost answers*: what stands under the key after a failure is compared with what was sent.

Called by ``s3``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import re
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, cast

from botocore.exceptions import BotoCoreError, ClientError

from admin_api.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    ReadbackMismatch,
    StorageManagerError,
    Unavailable,
)
from admin_api.storage.base import Stat

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

log = logging.getLogger(__name__)

#: S3 allows so many parts per object; part sizes grow with the file so that they suffice.
MAX_PARTS = 10_000
MD5_ETAG = re.compile(r'^"?([0-9a-f]{32})"?$')
_PARTS_ETAG = re.compile(r'^"?([0-9a-f]{32}-\d+)"?$')
#: The service compared the bytes with a checksum of ours and found others.
ALTERED = re.compile(
    r"BadDigest|InvalidDigest|XAmzContentSHA256Mismatch|XAmzContentChecksumMismatch|"
    r"checksum (?:did not match|mismatch)",
    re.IGNORECASE,
)
_NO_CONDITION = {"NotImplemented", "InvalidArgument", "InvalidRequest"}
#: The service misses a part that it has confirmed, or has a shorter one than it was sent.
_OTHER_PARTS = {"InvalidPart", "EntityTooSmall"}
#: Answers after which the key may hold our object all the same: a first answer got lost.
_BEATEN = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchUpload"}


class Where(TypedDict):
    """An object as the client names it."""

    Bucket: str
    Key: str


class UploadJournal(Protocol):
    """Remembers the multipart uploads that are under way, so that none is lost sight of."""

    def begun(self, key: str) -> str:
        """Announce an upload for ``key``, durably, and return its ticket."""
        ...

    def stands(self, ticket: str) -> bool:
        """Whether the upload may still be completed: nobody has taken it out."""
        ...

    def ended(self, ticket: str) -> None:
        """Forget an upload that is completed or aborted."""
        ...


class NoJournal:
    """For buckets that are only read, and for those whose leftovers the bucket's rules clear."""

    def begun(self, key: str) -> str:
        """Nothing is remembered."""
        return ""

    def stands(self, ticket: str) -> bool:
        """Nobody can take it out."""
        return True

    def ended(self, ticket: str) -> None:
        """Nothing was remembered."""


class Bucket(Protocol):
    """What the uploads need of the store: ``s3.S3Storage``."""

    def stat(self, key: str) -> Stat:
        """As in the storage protocol."""
        ...

    def open(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """As in the storage protocol."""
        ...

    def delete(self, key: str) -> None:
        """As in the storage protocol."""
        ...

    def failure(self, error: Exception, key: str) -> StorageManagerError:
        """An error of the client in the vocabulary of this package."""
        ...


@dataclass(frozen=True, slots=True)
class _Part:
    number: int
    size: int
    md5: bytes
    etag: str

    @property
    def is_proven(self) -> bool:
        """The service itself says that it has the bytes that were sent."""
        return self._told == self.md5.hex()

    @property
    def _told(self) -> str | None:
        found = MD5_ETAG.match(self.etag)
        return found.group(1) if found else None


class Completions:
    """One completion at a time for each key, within this process."""

    def __init__(self) -> None:
        """No key is being completed."""
        self._guard = threading.Lock()
        self._locks: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Wait until nobody else completes ``key``."""
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            yield


class PartBuffers:
    """Buffers of parts, which one upload has after the other; a few are kept for the next."""

    def __init__(self, size: int, kept: int) -> None:
        """At most ``kept`` of ``size`` bytes stay in memory while no upload has them."""
        self._size, self._most = size, kept
        self._lock = threading.Lock()
        self._kept: list[bytearray] = []

    def prepare(self) -> None:
        """Have them now, so that the first large object finds as much memory as any other."""
        for _ in range(self._most):
            self.give(bytearray(b"\xff") * self._size)

    def take(self, size: int) -> bytearray:
        """A buffer of ``size`` bytes, with whatever was in it before."""
        with self._lock:
            if size == self._size and self._kept:
                return self._kept.pop()
        return bytearray(size)

    def give(self, buffer: bytearray) -> None:
        """Nothing of the buffer is on its way any more."""
        with self._lock:
            if len(buffer) == self._size and len(self._kept) < self._most:
                self._kept.append(buffer)


class MultipartUpload:
    """One object on its way."""

    def __init__(
        self,
        bucket: Bucket,
        client: S3Client,
        where: Where,
        key: str,
        concurrency: int,
        buffers: PartBuffers,
    ) -> None:
        """``where`` names bucket and full key for the client; ``key`` is that of the store."""
        self._buffers = buffers
        self._bucket = bucket
        self._client = client
        self._where = where
        self._key = key
        self._concurrency = concurrency
        self._id = ""
        self._is_completed = False

    def put(
        self,
        chunks: Iterable[bytes],
        part_size: int,
        journal: UploadJournal,
        completions: Completions,
    ) -> Stat:
        """Send ``chunks`` in parts of ``part_size`` bytes; the object is there when this returns.

        At most ``concurrency + 1`` parts are in memory.  Raises AlreadyExists, ReadbackMismatch,
        and what store, journal and ``chunks`` raise; nothing is left readable then.
        """
        ticket = journal.begun(self._key)
        self._create()
        try:
            parts = self._send(chunks, part_size)
            self._refuse_altered(parts)
            is_sure = all(part.is_proven for part in parts) or self._refuses_wrong_parts(parts)
            with completions.alone(self._key):
                self._refuse_existing()
                if not journal.stands(ticket):
                    raise self._overtaken()
                stat = self._complete(parts, is_sure)
        except BaseException:
            if self._abort():
                self._end(journal, ticket)
            raise
        self._end(journal, ticket)
        return stat

    def _create(self) -> None:
        with self._failures():
            answer = self._client.create_multipart_upload(**self._where)
            self._id = answer["UploadId"]
            if answer["ResponseMetadata"]["RetryAttempts"]:
                # The answer that got lost may have named an upload that nobody knows.
                abort_unfinished(self._client, self._where, spare=self._id)

    # -- sending -----------------------------------------------------------------------------
    def _send(self, chunks: Iterable[bytes], part_size: int) -> list[_Part]:
        """Every part, from buffers that are used again and again."""
        parts: list[_Part] = []
        pending: deque[tuple[Future[_Part], bytearray]] = deque()
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="part")

        def collect() -> None:
            parts.append(pending[0][0].result())
            self._buffers.give(pending.popleft()[1])

        def next_buffer() -> bytearray:
            while pending and (pending[0][0].done() or len(pending) > self._concurrency):
                collect()
            return self._buffers.take(part_size)

        def dispatch(buffer: bytearray) -> None:
            number = len(parts) + len(pending) + 1
            if number > MAX_PARTS:
                raise InvalidRequest(
                    f"The object {self._key!r} is longer than {MAX_PARTS} parts of {part_size} "
                    "bytes; a file of this size must be announced with its size."
                )
            pending.append((pool.submit(self._send_part, number, buffer), buffer))

        try:
            buffer, size = next_buffer(), 0
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    if size == part_size:
                        dispatch(buffer)
                        buffer, size = next_buffer(), 0
                    taken = min(len(rest), part_size - size)
                    memoryview(buffer)[size : size + taken] = rest[:taken]
                    rest, size = rest[taken:], size + taken
            if size or not (parts or pending):  # nothing at all is a part of nothing
                del buffer[size:]
                dispatch(buffer)
            while pending:
                collect()
        finally:
            # Nothing of this upload may be on its way when it is aborted.
            pool.shutdown(wait=True, cancel_futures=True)
            for _, unsent in pending:
                self._buffers.give(unsent)
        return parts

    def _send_part(self, number: int, body: bytearray) -> _Part:
        md5 = _md5(body)
        with self._failures():
            answer = self._client.upload_part(
                **self._where,
                UploadId=self._id,
                PartNumber=number,
                Body=cast("bytes", body),
                ContentMD5=_base64(md5),
            )
        return _Part(number, len(body), md5, answer["ETag"])

    def _refuse_altered(self, parts: list[_Part]) -> None:
        """Some ETags are the parts' MD5: then those that are not belong to other bytes."""
        wrong = [part for part in parts if not part.is_proven and MD5_ETAG.match(part.etag)]
        if wrong and len(wrong) < len(parts):
            raise self._altered()

    def _refuses_wrong_parts(self, parts: list[_Part]) -> bool:
        """Whether the service compares a part with its Content-MD5, tried with a wrong one."""
        wrong = _md5(b"other")
        try:
            self._client.upload_part(
                **self._where,
                UploadId=self._id,
                PartNumber=min(len(parts) + 1, MAX_PARTS),
                Body=b"wrong",
                ContentMD5=_base64(wrong),
            )
        except ClientError as error:
            return bool(ALTERED.search(str(error)))
        except BotoCoreError:
            return False
        return False

    # -- completing --------------------------------------------------------------------------
    def _refuse_existing(self) -> None:
        with contextlib.suppress(NotFound):
            self._bucket.stat(self._key)
            raise AlreadyExists(f"The key {self._key!r} is written already.")

    def _complete(self, parts: list[_Part], is_sure: bool) -> Stat:
        try:
            etag = self._ask_to_complete(parts)
        except (ClientError, BotoCoreError) as error:
            stat = self._adopt(parts)
            if stat is not None:
                return stat
            code = _code(error)
            if code in _OTHER_PARTS:
                raise self._altered() from error
            if code in _BEATEN:
                self._refuse_existing()
                raise self._overtaken() from error
            raise self._bucket.failure(error, self._key) from error
        self._is_completed = True
        stat = self._bucket.stat(self._key)
        told, found = etag.strip('"'), (stat.etag or "").strip('"')
        if not self._is_ours(stat, parts, is_sure and told == found):
            if told != found and all(map(_PARTS_ETAG.match, (told, found))):  # not ours to delete
                raise AlreadyExists(f"Another writer has overwritten {self._key!r} meanwhile.")
            with contextlib.suppress(StorageManagerError):
                self._bucket.delete(self._key)
            raise self._altered()
        return stat

    def _ask_to_complete(self, parts: list[_Part]) -> str:
        named: list[CompletedPartTypeDef] = [
            {"PartNumber": part.number, "ETag": part.etag} for part in parts
        ]
        call: dict[str, Any] = {
            **self._where,
            "UploadId": self._id,
            "MultipartUpload": {"Parts": named},
        }
        try:
            return self._client.complete_multipart_upload(**call, IfNoneMatch="*").get("ETag", "")
        except ClientError as error:
            if _code(error) not in _NO_CONDITION:
                raise
            log.info("the service knows no condition on completing", extra={"key": self._key})
            return self._client.complete_multipart_upload(**call).get("ETag", "")

    def _adopt(self, parts: list[_Part]) -> Stat | None:
        """Our object, if it stands there although the service's answer did not arrive."""
        with contextlib.suppress(StorageManagerError):
            stat = self._bucket.stat(self._key)
            if self._is_ours(stat, parts, is_sure=False):
                return stat
        return None

    def _is_ours(self, stat: Stat, parts: list[_Part], is_sure: bool) -> bool:
        """Whether the object holds what was sent; ``is_sure``: its parts are known to."""
        if stat.size != sum(part.size for part in parts):
            return False
        found = _PARTS_ETAG.match(stat.etag or "")
        if found:
            joined = _md5(b"".join(part.md5 for part in parts))
            if found.group(1) == f"{joined.hex()}-{len(parts)}":
                return True
        elif is_sure:
            return True
        return self._reads_back(parts)

    def _reads_back(self, parts: list[_Part]) -> bool:
        remaining = iter(parts)
        part, digest, size = next(remaining), hashlib.md5(usedforsecurity=False), 0
        for chunk in self._bucket.open(self._key):
            rest = memoryview(chunk)
            while rest:
                taken = min(len(rest), part.size - size)
                digest.update(rest[:taken])
                rest, size = rest[taken:], size + taken
                if size == part.size:
                    if digest.digest() != part.md5:
                        return False
                    following = next(remaining, None)
                    if following is None:
                        return not rest
                    part, digest, size = following, hashlib.md5(usedforsecurity=False), 0
        return False

    # -- giving up ---------------------------------------------------------------------------
    def _abort(self) -> bool:
        """Whether it is certain that nothing of the upload is left."""
        if self._is_completed:  # some services take finished objects apart when told to abort
            return True
        try:
            self._client.abort_multipart_upload(**self._where, UploadId=self._id)
        except (ClientError, BotoCoreError) as error:
            if _code(error) != "NoSuchUpload":
                log.warning(
                    "a multipart upload could not be aborted; housekeeping will",
                    extra={"key": self._key, "problem": str(error)},
                )
                return False
        return True

    def _end(self, journal: UploadJournal, ticket: str) -> None:
        """Housekeeping strikes out what cannot be struck out now."""
        try:
            journal.ended(ticket)
        except StorageManagerError as error:
            log.warning(
                "the end of a multipart upload is not noted",
                extra={"key": self._key, "problem": error.detail},
            )

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (ClientError, BotoCoreError) as error:
            if _code(error) == "NoSuchUpload":
                raise self._overtaken() from error
            raise self._bucket.failure(error, self._key) from error

    def _overtaken(self) -> Unavailable:
        return Unavailable(
            f"The upload of {self._key!r} was given up or overtaken by another process; "
            "send it again."
        )

    def _altered(self) -> ReadbackMismatch:
        return ReadbackMismatch(
            f"The S3 service stored other bytes than it was sent for {self._key!r}. "
            "Run `storage-manager probe`."
        )


def abort_unfinished(client: S3Client, where: Where, spare: str = "") -> int:
    """Abort the unfinished uploads of exactly the key that ``where`` names; returns how many.

    The upload ``spare`` goes on.  Uploads of other keys, though they begin alike, are not touched.
    """
    aborted = 0
    pages = client.get_paginator("list_multipart_uploads").paginate(
        Bucket=where["Bucket"], Prefix=where["Key"]
    )
    for page in pages:
        for upload in page.get("Uploads", []):
            if upload["Key"] != where["Key"] or upload["UploadId"] == spare:
                continue
            try:
                client.abort_multipart_upload(
                    Bucket=where["Bucket"], Key=where["Key"], UploadId=upload["UploadId"]
                )
            except ClientError as error:
                if _code(error) != "NoSuchUpload":
                    raise
            aborted += 1
    return aborted


@dataclass(frozen=True, slots=True)
class Means:
    """What a service does to keep objects of several parts right, found by trying."""

    compares_md5: bool
    compares_sha256: bool
    #: A part's ETag is its MD5.
    etags_are_md5: bool
    #: A completion under ``If-None-Match: *`` is refused where an object stands.
    knows_condition: bool
    #: How many of so many completions at once were let through.
    racers: int
    winners: int


def find_means(client: S3Client, where: Where, racers: int) -> Means:
    """Try the service under the key that ``where`` names, where an object may stand afterwards.

    Raises what the client raises.
    """
    ids = [client.create_multipart_upload(**where)["UploadId"] for _ in range(racers + 1)]
    try:
        part = b"a part"
        other = _md5(b"other")
        compares_md5 = _is_refused(client, where, ids[0], part, ContentMD5=_base64(other))
        other = hashlib.sha256(b"other").digest()
        compares_sha256 = _is_refused(client, where, ids[0], part, ChecksumSHA256=_base64(other))
        etags = [
            client.upload_part(**where, UploadId=upload, PartNumber=1, Body=part)["ETag"]
            for upload in ids
        ]
        start = threading.Barrier(racers)

        def complete(number: int, together: bool) -> bool:
            if together:
                start.wait()
            try:
                client.complete_multipart_upload(
                    **where,
                    UploadId=ids[number],
                    MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etags[number]}]},
                    IfNoneMatch="*",
                )
            except ClientError as error:
                if _code(error) not in _BEATEN:
                    raise
                return False
            return True

        with ThreadPoolExecutor(racers) as pool:
            winners = sum(pool.map(lambda number: complete(number, True), range(racers)))
        return Means(
            compares_md5=compares_md5,
            compares_sha256=compares_sha256,
            etags_are_md5=_Part(1, len(part), _md5(part), etags[0]).is_proven,
            knows_condition=not complete(racers, False),
            racers=racers,
            winners=winners,
        )
    finally:
        abort_unfinished(client, where)


def _is_refused(client: S3Client, where: Where, upload: str, part: bytes, **checksum: Any) -> bool:
    try:
        client.upload_part(**where, UploadId=upload, PartNumber=1, Body=part, **checksum)
    except ClientError as error:
        if not ALTERED.search(str(error)):
            raise
        return True
    return False


def _md5(data: bytes | bytearray) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _code(error: Exception) -> str:
    return str(error.response["Error"].get("Code", "")) if isinstance(error, ClientError) else ""
