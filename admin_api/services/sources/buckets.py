"""Buckets as sources: objects and trees beneath the allowed prefixes.

Keys are listed as the service has them (the store's own listing knows only keys of ours), so that
directory markers are told from files and a key that cannot be a file of a product is named.
Called by ``services/sources``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from admin_api.errors import (
    InvalidKey,
    NotFound,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    StorageManagerError,
    TooLarge,
)
from admin_api.keys import check_key, join
from admin_api.services.sources.found import Found, SourceFile
from admin_api.settings import S3Backend, S3Source
from admin_api.storage.s3 import S3Storage
from admin_api.uris import shown

#: What Hadoop's tools put beside a directory that they made.
_HADOOP_MARKER = "_$folder$"


def find(uri: str, sources: Sequence[S3Source], max_files: int) -> Found:
    """The object or the tree that the S3 URI names in one of ``sources``.

    Raises SourceDenied outside of them, SourceNotFound, SourceUnavailable, InvalidKey for keys
    that cannot be files of a product, TooLarge for too many files.
    """
    backend, key = place(uri, sources)
    if not key:
        raise _denied(uri)
    return _find_in(backend, key, uri, max_files)


def place(uri: str, sources: Sequence[S3Source]) -> tuple[S3Backend, str]:
    """The bucket and the key (or prefix, without slashes at its ends) that an S3 URI names.

    Raises SourceDenied outside of ``sources``.
    """
    split = urlsplit(uri)
    if "?" in uri or "#" in uri:
        raise SourceDenied(
            f"The source {shown(uri)!r} is not a plain S3 URI (s3://bucket/key); '?' and '#' in a "
            "key are written %3F and %23."
        )
    key = unquote(split.path).strip("/")
    for source in sources:
        allowed = any(
            not prefix or key == prefix.strip("/") or key.startswith(prefix.strip("/") + "/")
            for prefix in source.prefixes
        )
        if split.netloc == source.backend.bucket and allowed:
            return source.backend, key
    raise _denied(uri)


def _denied(uri: str) -> SourceDenied:
    return SourceDenied(
        f"The source {shown(uri)!r} lies in none of the allowed buckets and prefixes."
    )


def walk(backend: S3Backend, key: str, after: str, uri: str) -> Iterator[tuple[str, int]]:
    """Path and bytes of every object beneath ``key`` behind the path ``after``, by their keys.

    Markers of directories are passed over.  Raises SourceUnavailable.
    """
    prefix = join(backend.prefix, key)
    prefix = f"{prefix}/" if prefix else ""
    with _translated(uri):
        pages = (
            _bucket(backend)
            .client.get_paginator("list_objects_v2")
            .paginate(
                Bucket=backend.bucket, Prefix=prefix, StartAfter=prefix + after if after else ""
            )
        )
        for page in pages:
            for item in page.get("Contents", []):
                path = item["Key"][len(prefix) :]
                if path and not path.endswith("/") and not path.endswith(_HADOOP_MARKER):
                    yield path, item["Size"]


@functools.cache
def _bucket(backend: S3Backend) -> S3Storage:
    """One client, and so one pool of connections, for each source bucket of the settings."""
    return S3Storage(backend)


@dataclass(frozen=True, slots=True)
class _Object:
    path: str
    size: int


def _find_in(backend: S3Backend, key: str, uri: str, max_files: int) -> Found:
    check_key(key)
    bucket = _bucket(backend)
    name = key.rpartition("/")[2]
    size: int | None = None
    version = ""
    with _translated(uri), contextlib.suppress(NotFound):
        stat = bucket.stat(key)
        size, version = stat.size, f"{stat.size} {stat.etag or stat.modified.isoformat()}"
    if size:
        file = replace(_file(bucket, key, name, size, uri), version=version)
        return Found(name, False, [file])
    files = _without_markers(_tree(backend, key, uri, max_files))
    if files:
        for item in files:
            _check(item.path, key, uri)
        found = [_file(bucket, f"{key}/{item.path}", item.path, item.size, uri) for item in files]
        return Found(name, True, found)
    if size is None:
        raise SourceNotFound(f"The source {shown(uri)!r} names nothing.")
    return Found(name, False, [_file(bucket, key, name, size, uri)])


def _tree(backend: S3Backend, key: str, uri: str, max_files: int) -> list[_Object]:
    """Everything beneath ``key``, as the service names it; markers of directories included."""
    prefix = join(backend.prefix, key) + "/"
    found: list[_Object] = []
    with _translated(uri):
        pages = (
            _bucket(backend)
            .client.get_paginator("list_objects_v2")
            .paginate(Bucket=backend.bucket, Prefix=prefix)
        )
        for page in pages:
            found += [
                _Object(item["Key"][len(prefix) :], item["Size"])
                for item in page.get("Contents", [])
            ]
            # A tree may have a marker for every directory, but not endlessly many.
            if len(found) > 4 * max_files:
                raise TooLarge(f"The source {shown(uri)!r} has more than {max_files} files.")
    return found


def _without_markers(objects: list[_Object]) -> list[_Object]:
    """The files: no empty objects that only stand for a directory."""
    directories = {
        item.path[:position]
        for item in objects
        for position, character in enumerate(item.path)
        if character == "/"
    }
    return [
        item
        for item in objects
        if item.size
        or not (
            item.path in directories
            or item.path in ("", _HADOOP_MARKER)
            or item.path.endswith(("/", _HADOOP_MARKER))
        )
    ]


def _check(path: str, key: str, uri: str) -> None:
    try:
        check_key(f"{key}/{path}")
    except InvalidKey as error:
        raise InvalidKey(
            f"The source {shown(uri)!r} has the key {f'{key}/{path}'[:200]!r}, which cannot be a "
            f"file of a product: {error.detail}"
        ) from None


def _file(bucket: S3Storage, key: str, path: str, size: int, uri: str) -> SourceFile:
    def read() -> Iterator[bytes]:
        with _translated(uri, key):
            yield from bucket.open(key)

    def read_at(start: int, stop: int) -> Iterator[bytes]:
        with _translated(uri, key):
            yield from bucket.open(key, start, stop)

    return SourceFile(path, size, read, read_at)


@contextlib.contextmanager
def _translated(uri: str, key: str = "") -> Iterator[None]:
    # Imported here: it costs memory that a facility without buckets need not spend.
    from botocore.exceptions import BotoCoreError, ClientError

    where = f"{shown(uri)!r}" + (f" ({key!r})" if key else "")
    try:
        yield
    except (SourceNotFound, SourceUnavailable, InvalidKey, TooLarge):
        raise
    except NotFound as error:
        if not key:
            raise
        raise SourceNotFound(f"The source {where} is not there any more.") from error
    except StorageManagerError as error:
        raise SourceUnavailable(f"The source {where} cannot be read: {error.detail}") from error
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "an error")
        raise SourceUnavailable(
            f"The source {where} cannot be listed: the S3 service answered {code}."
        ) from error
    except BotoCoreError as error:
        raise SourceUnavailable(
            f"The source {where} cannot be listed: {type(error).__name__}."
        ) from error
