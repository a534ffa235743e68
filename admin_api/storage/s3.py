"""A bucket as store: obstore moves small objects and reads, boto3 does parts and what is rare.

Objects of one part are put with ``If-None-Match: *`` and their SHA-256, which services that know it
compare; the ETag that comes back is compared here, and where it is no MD5 the object is read back.
Objects of several parts: ``multipart``.  Called through the mount table and, for reading, by
``s3:`` sources.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import itertools
import logging
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from admin_api.errors import (
    AlreadyExists,
    ConfigurationError,
    Denied,
    InvalidKey,
    NoSpace,
    NotFound,
    ReadbackMismatch,
    StorageManagerError,
    Unavailable,
)
from admin_api.keys import check_key, join
from admin_api.settings import S3Backend
from admin_api.storage.base import CHUNK, Capacity, Stat
from admin_api.storage.multipart import (
    ALTERED,
    MAX_PARTS,
    Completions,
    Means,
    MultipartUpload,
    NoJournal,
    PartBuffers,
    UploadJournal,
    Where,
    abort_unfinished,
    find_means,
)

if TYPE_CHECKING:
    from boto3.session import Session
    from mypy_boto3_s3 import S3Client
    from obstore import GetOptions

log = logging.getLogger(__name__)

#: Larger pieces would be put together by the engine from those that arrive, each time in memory
#: that is fresh from the system; the C library uses small ones again.
_READ = CHUNK // 4
#: For a request that is signed and never sent.
_ANY_PART = {"Bucket": "any", "Key": "any", "UploadId": "any", "PartNumber": 1}
_CREDENTIALS_LIFE = timedelta(seconds=60)
#: Keys in a page of a listing: as many as S3 gives at once.
_LISTED = 1000
_CONNECTIONS = 64
_NO_SPACE = re.compile(
    r"QuotaExceeded|InsufficientStorage|no space left|no free volumes|no writable volumes|"
    r"volumes? (?:is|are) full|not enough (?:space|volume)|507 ",
    re.IGNORECASE,
)
_BEYOND = re.compile(r"InvalidRange|416 ")
_DENIED = re.compile(r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|403 Forbidden")


class S3Storage:
    """The ``Storage`` protocol over a bucket."""

    def __init__(self, settings: S3Backend, uploads: UploadJournal | None = None) -> None:
        """Connect lazily: a service that is down shows in ``ping`` and not here.

        ``uploads`` remembers the multipart uploads that are under way.
        """
        self._settings = settings
        self._uploads = uploads or NoJournal()
        self._completions = Completions()
        self._buffers = PartBuffers(settings.part_size, settings.concurrency + 1)
        self._clients_lock = threading.Lock()
        options: dict[str, Any] = {}
        if settings.credentials_file:
            options["credential_provider"] = self._credentials
        if settings.endpoint:
            options["endpoint"] = settings.endpoint
        self._store = S3Store(
            settings.bucket,
            prefix=settings.prefix or None,
            region=settings.region,
            virtual_hosted_style_request=not settings.path_style,
            unsigned_payload=not settings.signed_payload,
            checksum_algorithm="SHA256",
            client_options={
                "allow_http": True,
                "timeout": timedelta(seconds=settings.timeout),
                "connect_timeout": timedelta(seconds=min(settings.timeout, 10)),
            },
            retry_config={
                "max_retries": 8,
                "retry_timeout": timedelta(seconds=settings.retry_seconds),
            },
            **options,
        )

    def put(self, key: str, chunks: Iterable[bytes], size_hint: int | None = None) -> Stat:
        check_key(key)
        pieces, part_size = iter(chunks), self._settings.part_size
        if size_hint is None or size_hint <= part_size:
            head = _take(pieces, part_size + 1)
            if sum(map(len, head)) <= part_size:
                return self._put_small(key, b"".join(head))
            pieces = _emptied(head, pieces)
        with contextlib.suppress(NotFound):
            self.stat(key)
            raise AlreadyExists(f"The key {key!r} is written already.")
        upload = MultipartUpload(
            self, self._admin, self._where(key), key, self._settings.concurrency, self._buffers
        )
        return upload.put(pieces, self._part_size(size_hint), self._uploads, self._completions)

    def prepare(self) -> None:
        """Have in memory what the first large object would take for good; raises nothing."""
        self._buffers.prepare()
        # What is wrong with the credentials is told when they are used.
        with contextlib.suppress(StorageManagerError), _translated_boto(self._settings.bucket):
            self._admin.generate_presigned_url("upload_part", Params=_ANY_PART)

    def _put_small(self, key: str, data: bytes) -> Stat:
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        try:
            with _translated(key):
                result = obstore.put(self._store, key, data, mode="create", use_multipart=False)
            etag = result.get("e_tag")
        except (AlreadyExists, Unavailable):
            # An answer may have got lost, and the engine's second try met our own object.
            if not self._holds(key, data, digest):
                raise
            etag = None
        if not _is_md5(etag, digest) and not self._reads_back(key, data):
            if etag and self.stat(key).etag != etag:  # not ours to delete
                raise AlreadyExists(f"Another writer has overwritten {key!r} meanwhile.")
            with contextlib.suppress(StorageManagerError):
                self.delete(key)
            raise ReadbackMismatch(
                f"The S3 service stored other bytes than it was sent for {key!r}. "
                "Run `storage-manager probe`."
            )
        return Stat(key, len(data), datetime.now(UTC), etag)

    def _holds(self, key: str, data: bytes, digest: str) -> bool:
        """Whether the object holds exactly ``data``."""
        try:
            stat = self.stat(key)
            return stat.size == len(data) and (
                _is_md5(stat.etag, digest) or self._reads_back(key, data)
            )
        except StorageManagerError:
            return False

    def _reads_back(self, key: str, data: bytes) -> bool:
        return b"".join(self.open(key)) == data

    def open(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        check_key(key)
        if stop is not None and start >= stop:
            self.stat(key)  # nothing of an object that must be there all the same
            return iter(())
        options: GetOptions = {}
        if stop is not None:
            options = {"range": (start, stop)}
        elif start:
            options = {"range": {"offset": start}}
        with _translated(key):
            try:
                result = obstore.get(self._store, key, options=options)
            except BaseError as error:
                if not _BEYOND.search(str(error)) or start < self.stat(key).size:
                    raise
                return iter(())
            size = result.meta["size"]
            if tuple(result.range) != (start, size if stop is None else min(stop, size)):
                raise Unavailable(f"The S3 service ignored the range asked of {key!r}.")
            stream = result.stream(min_chunk_size=_READ)
        return self._read(key, iter(stream))

    def _read(self, key: str, stream: Iterator[Any]) -> Iterator[bytes]:
        with _translated(key):
            for chunk in stream:
                yield bytes(chunk)

    def stat(self, key: str) -> Stat:
        check_key(key)
        with _translated(key):
            meta = obstore.head(self._store, key)
        return Stat(key, meta["size"], meta["last_modified"], meta["e_tag"])

    def delete(self, key: str) -> None:
        self.stat(key)  # S3 says nothing of a missing key; the protocol does
        with _translated(key):
            obstore.delete(self._store, key)

    def delete_many(self, keys: Iterable[str]) -> int:
        count = 0
        remaining = iter(keys)
        while batch := [check_key(key) for key in itertools.islice(remaining, 1000)]:
            with _translated(batch[0]):
                obstore.delete(self._store, batch)
            count += len(batch)
        return count

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        """Objects with keys of the grammar; the others are counted in the log.

        Objects that S3 browsers make for directories (``a/`` of 0 bytes) are nobody's files and
        passed over in silence.
        """
        if prefix:
            check_key(prefix)
        return self._list_usable(prefix, after)

    def _list_usable(self, prefix: str, after: str) -> Iterator[Stat]:
        strange, first = 0, ""
        for stat in self._walk(prefix, after):
            if _is_usable(stat.key):
                yield stat
            elif not _is_marker(stat):
                strange, first = strange + 1, first or stat.key
        if strange:
            log.warning(
                "objects whose keys cannot be ours are passed over",
                extra={"bucket": self._settings.bucket, "objects": strange, "first": first},
            )

    def strange(self, prefix: str = "") -> Iterator[Stat]:
        """The objects that ``list`` passes over: their keys break the grammar."""
        for stat in self._walk(prefix, ""):
            if not _is_usable(stat.key) and not _is_marker(stat):
                yield stat

    def _walk(self, prefix: str, after: str) -> Iterator[Stat]:
        """Every object, with its very key.

        The engine lists quickly, but fails at keys with empty parts or dots, and shows ``a/`` as
        ``a``; pages where that can be are read again by boto3 (at 17 times the CPU).
        """
        while True:
            try:
                for page in self._pages(prefix, after):
                    if not all(stat.size and _is_usable(stat.key) for stat in page):
                        break
                    yield from page
                    after = page[-1].key
                else:
                    return
            except InvalidPathError:
                pass
            is_last = False
            while not is_last:
                page, is_last = self._exact_page(prefix, after)
                yield from page
                after = page[-1].key if page else after
                if _is_usable(after):  # the engine can go on from there
                    break
            if is_last:
                return

    def _pages(self, prefix: str, after: str) -> Iterator[Sequence[Stat]]:
        with _translated(prefix):
            pages = obstore.list(
                self._store, prefix or None, offset=after or None, chunk_size=_LISTED
            )
            for page in pages:
                if page:
                    yield [
                        Stat(meta["path"], meta["size"], meta["last_modified"], meta["e_tag"])
                        for meta in page
                    ]

    def _exact_page(self, prefix: str, after: str) -> tuple[Sequence[Stat], bool]:
        base = f"{self._settings.prefix}/" if self._settings.prefix else ""
        with _translated_boto(self._settings.bucket):
            answer = self._admin.list_objects_v2(
                Bucket=self._settings.bucket,
                Prefix=f"{base}{prefix}/" if prefix else base,
                StartAfter=base + after if after else "",
                MaxKeys=_LISTED,
            )
        return [
            Stat(item["Key"][len(base) :], item["Size"], item["LastModified"], item["ETag"])
            for item in answer.get("Contents", [])
        ], not answer["IsTruncated"]

    def strays(self, prefix: str) -> Iterator[str]:
        return iter(())

    def capacity(self) -> Capacity:
        return Capacity(None, None)

    def ping(self) -> None:
        with _translated(self._settings.bucket):
            next(iter(obstore.list(self._store, ".ping", chunk_size=1)), None)

    def uri(self, key: str) -> str:
        return "s3://" + quote(join(self._settings.bucket, self._settings.prefix, key))

    def key_of(self, uri: str) -> str | None:
        split = urlsplit(uri)
        if split.scheme != "s3" or split.netloc != self._settings.bucket:
            return None
        path = unquote(split.path).strip("/")
        prefix = self._settings.prefix
        if not prefix:
            return path
        return path.removeprefix(prefix + "/") if path.startswith(prefix + "/") else None

    def local_file(self, key: str) -> BinaryIO | None:
        return None

    def link(self, key: str, seconds: int, file_name: str) -> str | None:
        ascii_name = re.sub(r'[^\x20-\x7e]|["\\]', "_", file_name)
        disposition = f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{quote(file_name)}"
        return self._client(self._settings.public_endpoint or self._settings.endpoint)(
            "get_object",
            Params={
                "Bucket": self._settings.bucket,
                "Key": join(self._settings.prefix, key),
                "ResponseContentDisposition": disposition,
            },
            ExpiresIn=seconds,
        )

    def put_memory(self, size: int | None) -> int:
        if size is not None and size <= self._settings.part_size:
            return 2 * size + CHUNK  # in its chunks, and joined
        # The parts on their way and the one that is filled, and a chunk that is received while the
        # one before is digested; what was read to tell small objects from large ones, if need be.
        parts = self._settings.concurrency + (1 if size is not None else 2)
        return parts * self._part_size(size) + 3 * CHUNK

    def read_memory(self) -> int:
        # A piece that is sent, one that is put together, and what the engine has read ahead.
        return 2 * CHUNK

    def _part_size(self, size: int | None) -> int:
        return max(self._settings.part_size, -(-(size or 0) // (MAX_PARTS - 1)))

    def reap(self, older_than: datetime) -> int:
        """Nothing: uploads of others cannot be told from ours by their age.

        Those of ours that a crash has left are in the journal; see ``abort``.
        """
        return 0

    def abort(self, key: str) -> int:
        """Abort the unfinished multipart uploads of exactly ``key``; returns how many.

        An upload that has been aborted can never be completed any more.
        """
        with _translated_boto(key):
            return abort_unfinished(self._admin, self._where(check_key(key)))

    def means(self, key: str, racers: int) -> Means:
        """What the service does for objects of several parts; tried under ``key`` by the probe."""
        ticket = self._uploads.begun(check_key(key))
        with _translated_boto(key):
            means = find_means(self._admin, self._where(key), racers)
        self._uploads.ended(ticket)
        return means

    def failure(self, error: Exception, key: str) -> StorageManagerError:
        """What an error of the client means."""
        log.warning("the S3 service failed", extra={"key": key, "problem": str(error)})
        return _translate_text(str(error), key)

    def _where(self, key: str) -> Where:
        return {"Bucket": self._settings.bucket, "Key": join(self._settings.prefix, key)}

    @property
    def client(self) -> S3Client:
        """The boto3 client, for what the protocol has no words for (keys that are not ours)."""
        return self._admin

    @property
    def _admin(self) -> S3Client:
        return self._make_client(self._settings.endpoint)

    def _client(self, endpoint: str | None) -> Callable[..., str]:
        return self._make_client(endpoint).generate_presigned_url

    def _make_client(self, endpoint: str | None) -> S3Client:
        """The boto3 client for ``endpoint``, made anew only when the credentials change."""
        credentials = self._read_credentials() if self._settings.credentials_file else None
        with self._clients_lock:
            known = self._clients.get(endpoint)
            if known is None or known[0] != credentials:
                known = (credentials, self._new_client(endpoint, credentials))
                self._clients[endpoint] = known
            return known[1]

    @cached_property
    def _clients(self) -> dict[str | None, tuple[dict[str, str] | None, S3Client]]:
        return {}

    def _new_client(self, endpoint: str | None, credentials: dict[str, str] | None) -> S3Client:
        # Imported here: it costs 25 MiB that a POSIX-only facility need not spend.
        from botocore.config import Config

        options: dict[str, Any] = {}
        if credentials:
            options = {
                "aws_access_key_id": credentials["access_key_id"],
                "aws_secret_access_key": credentials["secret_access_key"],
                "aws_session_token": credentials.get("token"),
            }
        return _make(
            endpoint_url=endpoint,
            region_name=self._settings.region,
            config=Config(
                s3={
                    "addressing_style": "path" if self._settings.path_style else "virtual",
                    "payload_signing_enabled": self._settings.signed_payload,
                },
                max_pool_connections=_CONNECTIONS,
                signature_version="s3v4",
                # Many S3 services do not know the trailing checksums that are the default.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                connect_timeout=min(self._settings.timeout, 10),
                read_timeout=self._settings.timeout,
                retries={"total_max_attempts": _attempts(self._settings), "mode": "standard"},
            ),
            **options,
        )

    def _read_credentials(self) -> dict[str, str]:
        path = self._settings.credentials_file
        assert path is not None
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
            section = parser["default"]
            found = {
                "access_key_id": section["aws_access_key_id"],
                "secret_access_key": section["aws_secret_access_key"],
            }
        except OSError as error:
            raise ConfigurationError(
                f"Cannot read the S3 credentials file {path}: {error.strerror}."
            ) from error
        except (configparser.Error, KeyError) as error:
            raise ConfigurationError(
                f"The S3 credentials file {path} needs a section [default] with "
                "aws_access_key_id and aws_secret_access_key."
            ) from error
        if "aws_session_token" in section:
            found["token"] = section["aws_session_token"]
        return found

    def _credentials(self) -> Any:
        # A short life makes obstore ask again: rotated keys are taken up without a restart.
        return {**self._read_credentials(), "expires_at": datetime.now(UTC) + _CREDENTIALS_LIFE}


def load_client() -> None:
    """Have in memory what every client needs, for processes that are forked afterwards."""
    nobody = dict.fromkeys(("aws_access_key_id", "aws_secret_access_key"), "none")
    _make(region_name="us-east-1", **nobody)


_session_lock = threading.Lock()


def _make(**options: Any) -> S3Client:
    with _session_lock:  # a session makes one client at a time
        client: S3Client = _session().client("s3", **options)
        return client


@cache
def _session() -> Session:
    """One for all clients: it holds the description of the service, which has ten megabytes."""
    import boto3

    return boto3.session.Session()


def _attempts(settings: S3Backend) -> int:
    """How often a request is sent: pauses of 1, 2, 4... s at most fill ``retry_seconds``."""
    return 1 + int(math.log2(settings.retry_seconds + 1))


def _take(chunks: Iterator[bytes], size: int) -> list[bytes]:
    """Chunks of at least ``size`` bytes together, or all there are."""
    taken: list[bytes] = []
    count = 0
    while count < size and (chunk := next(chunks, None)) is not None:
        taken.append(chunk)
        count += len(chunk)
    return taken


def _emptied(head: list[bytes], rest: Iterator[bytes]) -> Iterator[bytes]:
    """``head``, which is let go piece by piece, and ``rest``."""
    head.reverse()
    while head:
        yield head.pop()
    yield from rest


def _is_md5(etag: str | None, digest: str) -> bool:
    return (etag or "").strip('"') == digest


def _is_usable(key: str) -> bool:
    try:
        check_key(key)
    except InvalidKey:
        return False
    return True


def _is_marker(stat: Stat) -> bool:
    return stat.size == 0 and (not stat.key or stat.key.endswith("/"))


@contextlib.contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"There is no object {key!r}.") from error
    except AlreadyExistsError as error:
        raise AlreadyExists(f"The key {key!r} is written already.") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise Denied(f"The S3 service does not permit this on {key!r}.") from error
    except InvalidPathError:
        raise
    except (BaseError, OSError) as error:
        raise _translate_text(str(error), key) from error


@contextlib.contextmanager
def _translated_boto(key: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise _translate_text(str(error), key) from error


def _translate_text(text: str, key: str) -> StorageManagerError:
    """What the services say only in words (their XML is in the engine's message)."""
    if _NO_SPACE.search(text):
        return NoSpace(f"The S3 service is full (while working on {key!r}).")
    if ALTERED.search(text):
        return ReadbackMismatch(
            f"The bytes of {key!r} were altered on their way to the S3 service, which refused them."
        )
    if _DENIED.search(text):
        return Denied(f"The S3 service does not permit this on {key!r}.")
    return Unavailable(f"The S3 service failed on {key!r}; the log has its answer.")
