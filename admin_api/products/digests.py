"""Digests computed while bytes pass (design rule 4): SHA-256, MD5, and others where asked for.

The one table of algorithms that manifests may use, at ingest, verification and re-delivery.
Large chunks are digested in threads beside the one that moves them; hashlib lets go of the
interpreter lock meanwhile.  Called by the services wherever payload flows.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

#: Algorithms by the names of hashlib, and two that it lacks.  Those of variable length (shake) say
#: too little by a name.
ALGORITHMS = (
    "md5",
    "sha1",
    "sha224",
    "sha256",
    "sha384",
    "sha512",
    "sha3_224",
    "sha3_256",
    "sha3_384",
    "sha3_512",
    "blake2b",
    "blake2s",
    "blake3",
    "crc32",
)
# How they are written, besides the above: without what is neither letter nor digit.
_ALIASES = {
    "sha": "sha1",
    **{f"sha2{bits}": f"sha{bits}" for bits in (224, 256, 384, 512)},
    "blake2b512": "blake2b",
    "blake2s256": "blake2s",
}
_SPELLINGS = {name.replace("_", ""): name for name in ALGORITHMS} | _ALIASES

# Below this a thread costs more than it brings.
_INLINE = 128 * 1024
_pool: ThreadPoolExecutor | None = None


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size in bytes and digests (lower-case hex) of one file."""

    size: int
    sha256: str
    md5: str


class Hasher(Protocol):
    """What computes one digest."""

    def update(self, data: bytes, /) -> object:
        """Take the next bytes."""

    def hexdigest(self) -> str:
        """The digest of all bytes taken, in lower-case hex."""


class _Crc32:
    """CRC-32 as in zip and in XFDU manifests, in the shape of hashlib's."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def algorithm_named(text: str) -> str | None:
    """The algorithm that ``text`` means (``SHA-256``, ``sha3_256``, ``MD5``), or None."""
    return _SPELLINGS.get(re.sub(r"[-_/. ()]", "", text.strip().lower()))


def hasher(algorithm: str) -> Hasher:
    """A new hasher for one of :data:`ALGORITHMS`; raises ValueError for any other name."""
    if algorithm not in ALGORITHMS:
        raise ValueError(algorithm)
    if algorithm == "crc32":
        return _Crc32()
    if algorithm == "blake3":
        # Loaded when it is asked for: few are, and every command would wait for it.
        from blake3 import blake3

        return blake3()
    return hashlib.new(algorithm, usedforsecurity=False)


def digests_of(chunks: Iterable[bytes], algorithms: Iterable[str]) -> dict[str, str]:
    """The digests of ``chunks`` by these algorithms, in one pass."""
    hashers = {algorithm: hasher(algorithm) for algorithm in algorithms}
    for chunk in chunks:
        for item in hashers.values():
            item.update(chunk)
    return {algorithm: item.hexdigest() for algorithm, item in hashers.items()}


class Digester:
    """Passes chunks on and digests them meanwhile; one chunk is in work at a time.

    ``algorithms`` are computed besides SHA-256 and MD5; see :meth:`others`.
    """

    def __init__(self, algorithms: Iterable[str] = ()) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._others = {algorithm: hasher(algorithm) for algorithm in algorithms}
        self._hashers: list[Hasher] = [self._md5, self._sha256, *self._others.values()]
        self._pending: list[Future[object]] = []

    def update(self, chunk: bytes) -> None:
        """Take the next bytes; large ones are digested behind the caller's back."""
        self._wait()
        self.size += len(chunk)
        if len(chunk) < _INLINE:
            for item in self._hashers:
                item.update(chunk)
        else:
            pool = _threads()
            self._pending = [pool.submit(item.update, chunk) for item in self._hashers]

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

    def others(self) -> dict[str, str]:
        """The digests by the other algorithms that were asked for."""
        self._wait()
        return {algorithm: item.hexdigest() for algorithm, item in self._others.items()}

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
