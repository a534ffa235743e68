"""What is sent: bytes that tell who sent them, made again from their seed instead of being kept."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
import threading
import zipfile
from dataclasses import dataclass


@dataclass(frozen=True)
class Body:
    """Bytes that were sent under one path of one product."""

    name: str
    path: str
    size: int
    seed: str

    def data(self) -> bytes:
        head = f"{self.name} {self.path} {self.seed}\n".encode()[: self.size]
        return head + random.Random(self.seed).randbytes(self.size - len(head))


class Bodies:
    """Makes bodies, each one different from all others, and finds them again by their digest."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._count = 0
        self._lock = threading.Lock()
        self._known: dict[str, Body] = {}

    def make(self, name: str, path: str, size: int) -> tuple[bytes, str]:
        """New bytes for ``path`` of the product ``name``, and their SHA-256."""
        with self._lock:
            self._count += 1
            body = Body(name, path, size, f"{self._seed}-{self._count}")
        data = body.data()
        digest = hashlib.sha256(data).hexdigest()
        with self._lock:
            self._known[digest] = body
        return data, digest

    def find(self, sha256: str) -> Body | None:
        return self._known.get(sha256)


def pack(kind: str, name: str, files: dict[str, bytes]) -> bytes:
    """``files`` as an archive with the product's name as its top directory."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            for path, data in files.items():
                packed.writestr(f"{name}/{path}", data)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "tar.gz" else "w") as archive:
            for path, data in files.items():
                member = tarfile.TarInfo(f"{name}/{path}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def unpack_tar(data: bytes) -> dict[str, bytes]:
    """The files of a tar; raises tarfile.TarError where it is broken."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {}
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                found[member.name] = file.read()
        return found
