"""A bucket as store: obstore moves the payload, boto3 does what is rare.

Small objects are put with ``If-None-Match: *``.  Objects of more than one part cannot be (the
engine has no condition on completing an upload): there the key is looked up first, and the
catalog, which gives every attempt keys of its own, keeps two writers apart.  Called through the
mount table and, for reading, by ``s3:`` sources.
"""

from __future__ import annotations

import configparser
import contextlib
import contextvars
import hashlib
import itertools
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, Self
from urllib.parse import quote, unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from admin_api.errors import (
    AlreadyExists,
    ConfigurationError,
    Denied,
    NoSpace,
    NotFound,
    ReadbackMismatch,
    StorageManagerError,
    Unavailable,
)
from admin_api.keys import check_key, join
from admin_api.settings import S3Backend
from admin_api.storage.base import CHUNK, Capacity, Stat

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: S3 allows so many parts per object; part sizes grow with the file so that they suffice.
MAX_PARTS = 10_000
_READ = 4 * CHUNK
_CREDENTIALS_LIFE = timedelta(seconds=60)
_MD5_ETAG = re.compile(r'^"?([0-9a-f]{32})"?$')
_NO_SPACE = re.compile(
    r"QuotaExceeded|InsufficientStorage|no space left|no free volumes|no writable volumes|"
    r"volumes? (?:is|are) full|not enough (?:space|volume)|507 ",
    re.IGNORECASE,
)
_DENIED = re.compile(r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|403 Forbidden")


class S3Storage:
    """The ``Storage`` protocol over a bucket."""

    def __init__(self, settings: S3Backend) -> None:
        """Connect lazily: a service that is down shows in ``ping`` and not here."""
        self._settings = settings
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
        pieces = iter(chunks)
        head = _take(pieces, self._settings.part_size + 1)
        if len(head) <= self._settings.part_size:
            return self._put_small(key, head)
        with contextlib.suppress(NotFound):
            self.stat(key)
            raise AlreadyExists(f"The key {key!r} is written already.")
        part_size = self._settings.part_size
        if size_hint:
            part_size = max(part_size, -(-size_hint // (MAX_PARTS - 1)))
        counted = _Counter(itertools.chain([head], pieces))
        del head
        with _translated(key), _Ahead(counted) as ahead:
            result = obstore.put(
                self._store,
                key,
                iter(ahead),
                use_multipart=True,
                chunk_size=part_size,
                max_concurrency=self._settings.concurrency,
            )
        stat = self.stat(key)
        if stat.size != counted.size:
            # Not ours to keep: the service answered 200 and stored something else.
            with contextlib.suppress(StorageManagerError):
                self.delete(key)
            raise ReadbackMismatch(
                f"The S3 service says that {key!r} has {stat.size} bytes; {counted.size} were "
                "sent. Run `storage-manager probe`."
            )
        return Stat(key, stat.size, stat.modified, result.get("e_tag"))

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
        found = _MD5_ETAG.match(etag or "")
        if found and found.group(1) != digest and not self._reads_back(key, data):
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
            found = _MD5_ETAG.match(stat.etag or "")
            return stat.size == len(data) and (
                (found is not None and found.group(1) == digest) or self._reads_back(key, data)
            )
        except StorageManagerError:
            return False

    def _reads_back(self, key: str, data: bytes) -> bool:
        return b"".join(self.open(key)) == data

    def open(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        check_key(key)
        size = self.stat(key).size if start or stop is not None else None
        if size is not None:
            stop = size if stop is None else min(stop, size)
            if start >= stop:
                return iter(())
        with _translated(key):
            if size is None:
                result = obstore.get(self._store, key)
            else:
                assert stop is not None
                result = obstore.get(self._store, key, options={"range": (start, stop)})
                if tuple(result.range) != (start, stop):
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
        if prefix:
            check_key(prefix)
        return self._list(prefix, after)

    def _list(self, prefix: str, after: str) -> Iterator[Stat]:
        with _translated(prefix):
            for page in obstore.list(self._store, prefix or None, offset=after or None):
                for meta in page:
                    yield Stat(meta["path"], meta["size"], meta["last_modified"], meta["e_tag"])

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

    def reap(self, older_than: datetime) -> int:
        reaped = 0
        with _translated_boto(self._settings.bucket):
            pages = self._admin.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._settings.bucket, Prefix=self._settings.prefix
            )
            for page in pages:
                for upload in page.get("Uploads", []):
                    if upload["Initiated"].astimezone(UTC) < older_than:
                        self._admin.abort_multipart_upload(
                            Bucket=self._settings.bucket,
                            Key=upload["Key"],
                            UploadId=upload["UploadId"],
                        )
                        reaped += 1
        return reaped

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
        import boto3
        from botocore.config import Config

        options: dict[str, Any] = {}
        if credentials:
            options = {
                "aws_access_key_id": credentials["access_key_id"],
                "aws_secret_access_key": credentials["secret_access_key"],
                "aws_session_token": credentials.get("token"),
            }
        client: S3Client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint,
            region_name=self._settings.region,
            config=Config(
                s3={"addressing_style": "path" if self._settings.path_style else "virtual"},
                signature_version="s3v4",
                # Many S3 services do not know the trailing checksums that are the default.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                connect_timeout=min(self._settings.timeout, 10),
                read_timeout=self._settings.timeout,
                retries={"max_attempts": 3, "mode": "standard"},
            ),
            **options,
        )
        return client

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


class _Ahead:
    """Chunks taken from their source in a thread of its own.

    The engine asks for chunks from within its runtime, where nothing may call the engine again; a
    source that is a bucket does.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._fill,), name="source", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Whoever owns the source has it back then: the thread has let go of it."""
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[bytes]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _fill(self) -> None:
        try:
            for chunk in self._chunks:
                if not self._offer(chunk):
                    return
            self._offer(None)
        except BaseException as error:  # noqa: BLE001 - raised again where the chunks are used
            self._offer(error)

    def _offer(self, item: bytes | BaseException | None) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return True
        return False


class _Counter:
    """Passes chunks on and counts their bytes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.size += len(chunk)
            yield chunk


def _take(chunks: Iterator[bytes], size: int) -> bytes:
    """At least ``size`` bytes from ``chunks``, or all there are."""
    taken: list[bytes] = []
    count = 0
    while count < size and (chunk := next(chunks, None)) is not None:
        taken.append(chunk)
        count += len(chunk)
    return b"".join(taken)


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
    if _DENIED.search(text):
        return Denied(f"The S3 service does not permit this on {key!r}.")
    return Unavailable(f"The S3 service failed on {key!r}; the log has its answer.")
