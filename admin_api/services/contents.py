"""What has arrived of a product: its files by path, within the limits; shared by threads.

Used by ``reception``, which moves the bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from admin_api.errors import InvalidKey, InvalidRequest, SizeMismatch, TooLarge
from admin_api.products.digests import Digester, FileDigest
from admin_api.products.manifests import MAX_MANIFEST_BYTES, is_manifest
from admin_api.services.wishes import Expected
from admin_api.settings import LimitSettings


@dataclass(frozen=True, slots=True)
class Received:
    """A file that has arrived whole: where it lies and what it is."""

    key: str
    digest: FileDigest


class Contents:
    """The files of one attempt; safe for several threads that each bring a file."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._pending: set[str] = set()
        self._directories: set[str] = set()
        self._size = 0
        self.files: dict[str, Received] = {}
        #: Files that may be the product's manifest, kept while they pass.
        self.manifests: dict[str, bytes] = {}

    def expect(self, path: str) -> None:
        """A file is about to arrive.

        It is received once, and its path is not also a directory (stores differ there): raises
        InvalidRequest and InvalidKey; TooLarge where a product may not have so many files.
        """
        parts = path.split("/")
        parents = {"/".join(parts[:count]) for count in range(1, len(parts))}
        with self._lock:
            if path in self.files or path in self._pending:
                raise InvalidRequest(f"The file {path!r} comes twice.")
            if path in self._directories or any(
                parent in self.files or parent in self._pending for parent in parents
            ):
                raise InvalidKey(f"{path!r} is a file and a directory at once.", name=path)
            if len(self.files) + len(self._pending) >= self._limits.max_product_files:
                raise TooLarge(f"A product may have {self._limits.max_product_files} files.")
            self._pending.add(path)
            self._directories |= parents

    def failed(self, path: str) -> None:
        """The file did not arrive after all; it may come again."""
        with self._lock:
            self._pending.discard(path)

    def arrived(self, path: str, key: str, digest: FileDigest) -> None:
        """The file is there."""
        with self._lock:
            self._pending.discard(path)
            self.files[path] = Received(key, digest)

    def counted(
        self, path: str, chunks: Iterable[bytes], expected: Expected, digester: Digester
    ) -> Iterator[bytes]:
        """``chunks`` on their way: digested, counted, within the limits; manifests are kept.

        Raises SizeMismatch as soon as there is more than was announced, TooLarge.
        """
        manifest: list[bytes] | None = [] if is_manifest(path) else None
        for chunk in digester.through(chunks):
            with self._lock:
                self._size += len(chunk)
                total = self._size
            if expected.size is not None and digester.size > expected.size:
                raise SizeMismatch(f"{path!r} has more than the {expected.size} bytes announced.")
            if digester.size > self._limits.max_file_bytes:
                raise TooLarge(f"{path!r} has more than {self._limits.max_file_bytes} bytes.")
            if total > self._limits.max_product_bytes:
                raise TooLarge(f"The product has more than {self._limits.max_product_bytes} bytes.")
            if manifest is not None and digester.size <= MAX_MANIFEST_BYTES:
                manifest.append(chunk)
            yield chunk
        if manifest is not None and digester.size <= MAX_MANIFEST_BYTES:
            self.manifests[path] = b"".join(manifest)
