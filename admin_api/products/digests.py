"""Digests computed while bytes pass (design rule 4): SHA-256 and MD5 together.

Large chunks are digested in threads beside the one that moves them; hashlib lets go of the
interpreter lock meanwhile.  Called by the services wherever payload flows.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

# Below this a thread costs more than it brings.
_INLINE = 128 * 1024
_pool: ThreadPoolExecutor | None = None


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size in bytes and digests (lower-case hex) of one file."""

    size: int
    sha256: str
    md5: str


class Digester:
    """Passes chunks on and digests them meanwhile; one chunk is in work at a time."""

    def __init__(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._pending: list[Future[None]] = []

    def update(self, chunk: bytes) -> None:
        """Take the next bytes; large ones are digested behind the caller's back."""
        self._wait()
        self.size += len(chunk)
        if len(chunk) < _INLINE:
            self._sha256.update(chunk)
            self._md5.update(chunk)
        else:
            pool = _threads()
            self._pending = [
                pool.submit(self._md5.update, chunk),
                pool.submit(self._sha256.update, chunk),
            ]

    def through(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """``chunks`` unchanged, digested on the way."""
        for chunk in chunks:
            self.update(chunk)
            yield chunk
        self._wait()

    def result(self) -> FileDigest:
        """The digests of all that passed."""
        self._wait()
        return FileDigest(self.size, self._sha256.hexdigest(), self._md5.hexdigest())

    def _wait(self) -> None:
        for future in self._pending:
            future.result()
        self._pending = []


def _threads() -> ThreadPoolExecutor:
    # Made on first use: a pool made before the server forks would have no threads behind it.
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(2, os.cpu_count() or 2), thread_name_prefix="digest")
    return _pool


def crc16(data: bytes) -> str:
    """CRC-16/CCITT (polynomial 1021, init FFFF) as four upper-case hex digits.

    The last field of a Sentinel-1 name is this of its manifest.safe (S1 product specification,
    section 3.1).
    """
    return f"{binascii.crc_hqx(data, 0xFFFF):04X}"


def list_digest(files: Iterable[tuple[str, int, str]]) -> str:
    """One SHA-256 over the sorted (path, size, sha256) of a product's files.

    Equal digests mean equal products.
    """
    digest = hashlib.sha256()
    for entry in sorted(files):
        digest.update(json.dumps(entry, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()
