"""The ``Storage`` protocol: the small promise that every store keeps (design section 4).

Called by the services; implemented by ``posix``, ``s3`` and ``mounts``.  One contract suite
(``tests/contract``) runs over all of them.  Errors are those of ``admin_api.errors``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Protocol

#: Payload is read in pieces of this size, or of what a service gives at once.
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Stat:
    """What a store says about one object: size in bytes, time of the write (UTC), its own ETag."""

    key: str
    size: int
    modified: datetime
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes of a store; None where the store does not tell (most S3 services)."""

    total: int | None
    free: int | None


class Storage(Protocol):
    """Keys in, iterators of bytes in and out."""

    def put(self, key: str, chunks: Iterable[bytes], size_hint: int | None = None) -> Stat:
        """Write a new object, all or nothing; it is durable when this returns.

        Raises AlreadyExists if the key has bytes already, NoSpace, Unavailable, Denied, InvalidKey.
        Whatever ``chunks`` raises is passed on, and nothing is left readable.
        """
        ...

    def open(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Read bytes ``start`` to ``stop`` (exclusive; None: the end).

        The object is opened before this returns, so NotFound is raised here and not while reading.
        """
        ...

    def stat(self, key: str) -> Stat:
        """Describe an object; raises NotFound."""
        ...

    def delete(self, key: str) -> None:
        """Delete an object; raises NotFound if there is none."""
        ...

    def delete_many(self, keys: Iterable[str]) -> int:
        """Delete objects, missing ones included without complaint; returns how many were named."""
        ...

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        """Objects beneath the directory ``prefix``, in a stable order, beginning after a key.

        The order is that of UTF-8 bytes on POSIX and AWS; some S3 services go directory by
        directory instead, so nothing may rely on more than stability.
        """
        ...

    def strays(self, prefix: str) -> Iterator[str]:
        """What lies beneath ``prefix`` and is no object: links, devices, names that are no keys.

        ``list`` passes over it; whoever looks for what should be there wants to know.
        """
        ...

    def capacity(self) -> Capacity:
        """Total and free bytes."""
        ...

    def ping(self) -> None:
        """Return if the store answers; raises Unavailable or Denied."""
        ...

    def uri(self, key: str) -> str:
        """The object's URI outside the namespace (``file://``, ``s3://``)."""
        ...

    def key_of(self, uri: str) -> str | None:
        """The key that ``uri`` has in this store, or None if it lies elsewhere."""
        ...

    def local_file(self, key: str) -> BinaryIO | None:
        """An open file where the bytes are in one (for sendfile); None where they are not."""
        ...

    def link(self, key: str, seconds: int, file_name: str) -> str | None:
        """A signed link that lets anybody read the object for so long; None without links."""
        ...

    def put_memory(self, size: int | None) -> int:
        """Bytes of memory that a put of ``size`` bytes (None: not known) takes while it lasts."""
        ...

    def read_memory(self) -> int:
        """Bytes of memory that reading an object takes while it lasts."""
        ...

    def reap(self, older_than: datetime) -> int:
        """Remove temporary objects begun before; returns how many."""
        ...


def put_bytes(storage: Storage, key: str, data: bytes) -> Stat:
    """Write a small object from memory."""
    return storage.put(key, [data], len(data))


def read_bytes(storage: Storage, key: str, limit: int = 64 << 20) -> bytes:
    """Read a small object into memory, at most ``limit`` bytes of it."""
    return b"".join(storage.open(key, 0, min(storage.stat(key).size, limit)))
