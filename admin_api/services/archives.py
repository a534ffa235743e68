"""Archives, unpacked while they stream in and packed while they stream out; nothing is kept.

Into the facility: ``.tar``, ``.tar.gz`` (standard library) and ``.zip`` (stream-unzip), confined
and limited.  Out of it: tar (POSIX.1-2001 pax) and zip (stored, ZIP64 where needed).
Called by uploads, ingest and retrieval.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from stream_unzip import UnzipError, stream_unzip

from admin_api.errors import InvalidArchive, TooLarge
from admin_api.storage.base import CHUNK

_SUFFIXES = {".tar": "tar", ".tar.gz": "tar.gz", ".tgz": "tar.gz", ".zip": "zip"}
#: Compression ratios say nothing about small archives.
_RATIO_FREE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive; ``chunks`` must be read before the next member is asked for."""

    path: str
    size: int | None
    chunks: Iterator[bytes]


def split_suffix(name: str) -> tuple[str, str | None]:
    """The name without its archive suffix, and the archive's format (None: no archive)."""
    for suffix, kind in _SUFFIXES.items():
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], kind
    return name, None


def unpack(kind: str, chunks: Iterable[bytes], product: str, max_ratio: int) -> Iterator[Member]:
    """The files of an archive, as they come.

    A single top directory with the product's name is taken off.  Raises InvalidArchive for links,
    devices, encryption and broken archives, TooLarge for archives that swell too much.
    """
    source = _Source(chunks, max_ratio)
    members = _unpack_zip(source) if kind == "zip" else _unpack_tar(source, kind)
    for member in members:
        path = member.path.removeprefix("./").removeprefix(f"{product}/")
        yield Member(path, member.size, source.limited(member.chunks))
    source.drain()


class _Source(io.RawIOBase):
    """The archive's bytes as a file, counted."""

    def __init__(self, chunks: Iterable[bytes], max_ratio: int) -> None:
        self._chunks = iter(chunks)
        self._rest = b""
        self._max_ratio = max_ratio
        self._packed = 0
        self._unpacked = 0

    def read(self, size: int = -1) -> bytes:
        if not self._rest:
            self._rest = next(self, b"")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self._packed += len(chunk)
        return chunk

    def drain(self) -> None:
        """Read what follows the last file, so that digests cover the whole archive."""
        for _ in self:
            pass

    def limited(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """``chunks`` of a file, unless the archive swells too much."""
        for chunk in chunks:
            self._unpacked += len(chunk)
            if self._unpacked > _RATIO_FREE_BYTES + self._packed * self._max_ratio:
                raise TooLarge(
                    f"The archive unpacks to more than {self._max_ratio} times its size."
                )
            yield chunk


def _unpack_tar(source: _Source, kind: str) -> Iterator[Member]:
    mode: Literal["r|", "r|gz"] = "r|gz" if kind == "tar.gz" else "r|"
    try:
        with tarfile.open(fileobj=source, mode=mode, bufsize=CHUNK) as archive:
            for entry in archive:
                if entry.isdir():
                    continue
                if not entry.isreg():
                    raise InvalidArchive(
                        f"{entry.name!r} in the archive is a link or a device, which is refused."
                    )
                yield Member(entry.name, entry.size, _read_tar(archive, entry))
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise InvalidArchive(f"The tar archive is broken: {error}.") from error


def _read_tar(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> Iterator[bytes]:
    file = archive.extractfile(entry)
    assert file is not None
    try:
        while chunk := file.read(CHUNK):
            yield chunk
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InvalidArchive(f"The tar archive ends or breaks in {entry.name!r}.") from error


def _unpack_zip(source: _Source) -> Iterator[Member]:
    try:
        for raw_name, size, chunks in stream_unzip(source, chunk_size=CHUNK):
            try:
                name = raw_name.decode("utf-8")
            except UnicodeDecodeError:
                raise InvalidArchive(f"The name {raw_name!r} in the zip is not UTF-8.") from None
            if name.endswith("/"):
                for _ in chunks:
                    pass
                continue
            yield Member(name, size, _read_zip(name, chunks))
    except UnzipError as error:
        raise InvalidArchive(
            f"The zip archive is broken or encrypted: {_name_of(error)}."
        ) from error


def _read_zip(name: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from chunks
    except UnzipError as error:
        raise InvalidArchive(f"The zip archive breaks in {name!r}: {_name_of(error)}.") from error


def _name_of(error: Exception) -> str:
    return type(error).__name__


@dataclass(frozen=True, slots=True)
class Packed:
    """A file to be packed; ``open`` is called when its turn comes."""

    path: str
    size: int
    chunks: Iterable[bytes]


def tar_size(files: Iterable[tuple[str, int]], modified: datetime) -> int:
    """The exact length of the tar that :func:`pack_tar` makes, in bytes."""
    total = 2 * tarfile.BLOCKSIZE
    for path, size in files:
        total += len(_tar_header(path, size, modified)) + size + _padding(size)
    return total


def pack_tar(files: Iterable[Packed], modified: datetime) -> Iterator[bytes]:
    """A tar archive as it is written."""
    for file in files:
        yield _tar_header(file.path, file.size, modified)
        yield from file.chunks
        yield bytes(_padding(file.size))
    yield bytes(2 * tarfile.BLOCKSIZE)


def pack_zip(files: Iterable[Packed], modified: datetime) -> Iterator[bytes]:
    """A zip archive (not compressed) as it is written."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            info = zipfile.ZipInfo(file.path, modified.timetuple()[:6])
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=file.size >= zipfile.ZIP64_LIMIT) as entry:
                for chunk in file.chunks:
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
