"""Packing a product while it streams out: tar (POSIX.1-2001 pax) and zip (ZIP64 where needed).

Called by ``services/retrieval.py``.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

#: Bytes that deflate adds where it does not compress: five for each block of at most 64 KiB.
_DEFLATE_GROWTH = 1.05


@dataclass(frozen=True, slots=True)
class Packed:
    """A file to be packed; ``read(start, stop)`` is called when its turn comes."""

    path: str
    size: int
    read: Callable[[int, int], Iterator[bytes]]


def tar_size(files: Iterable[tuple[str, int]], modified: datetime) -> int:
    """The exact length of the tar that :func:`pack_tar` makes, in bytes."""
    total = 2 * tarfile.BLOCKSIZE
    for path, size in files:
        total += len(_tar_header(path, size, modified)) + size + _padding(size)
    return total


def pack_tar(files: Iterable[Packed], modified: datetime, start: int, stop: int) -> Iterator[bytes]:
    """Bytes ``start`` to ``stop`` (exclusive) of a tar archive; what lies before is not read."""
    position = 0
    for size, read in _pieces(files, modified):
        first, last = max(start - position, 0), min(stop - position, size)
        if first < last:
            yield from read(first, last)
        position += size
        if position >= stop:
            return


def _pieces(
    files: Iterable[Packed], modified: datetime
) -> Iterator[tuple[int, Callable[[int, int], Iterator[bytes]]]]:
    """What a tar archive is made of: the size of each piece, and how a part of it is had."""
    for file in files:
        yield _fixed(_tar_header(file.path, file.size, modified))
        yield file.size, file.read
        yield _fixed(bytes(_padding(file.size)))
    yield _fixed(bytes(2 * tarfile.BLOCKSIZE))


def _fixed(data: bytes) -> tuple[int, Callable[[int, int], Iterator[bytes]]]:
    return len(data), lambda start, stop: iter([data[start:stop]])


def pack_zip(files: Iterable[Packed], modified: datetime) -> Iterator[bytes]:
    """A zip archive as it is written.

    The entries are deflate streams of stored blocks (level 0): the CRC-32, which no catalog has,
    must follow the bytes, and readers that stream (Java's ZipInputStream) take that of deflated
    entries only, because those tell where they end.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w") as archive:
        for file in files:
            info = zipfile.ZipInfo(file.path, modified.timetuple()[:6])
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            info._compresslevel = 0  # type: ignore[attr-defined]  # public in Python 3.13
            large = file.size * _DEFLATE_GROWTH > zipfile.ZIP64_LIMIT
            with archive.open(info, "w", force_zip64=large) as entry:
                for chunk in file.read(0, file.size):
                    entry.write(chunk)
                    yield sink.take()
            yield sink.take()
    yield sink.take()


class _Sink(io.RawIOBase):
    """A file that can only be written, and is emptied by the reader of the archive."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # bytes are all that comes
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """What was written since the last time."""
        taken, self._parts = b"".join(self._parts), []
        return taken


def _tar_header(path: str, size: int, modified: datetime) -> bytes:
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.mtime = size, 0o644, int(modified.timestamp())
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
