"""Reading tar and tar.gz while they stream, every header and the end of them checked.

Headers are decoded by ``tarfile`` (POSIX.1-2001 ustar and pax, GNU, V7), one by one: its own walk
ends at a damaged header or at a cut-off end as if the archive were whole, and takes names of any
length into memory.  ``gzip`` checks every member's CRC, length and end.  Called by
``services/unpacking.py``.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator

from admin_api.errors import InvalidArchive
from admin_api.services.archives.entries import Archive, Entries, Member, check_ratio
from admin_api.settings import LimitSettings
from admin_api.storage.base import CHUNK

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_BEFORE_END = "before its end-of-archive marker"
#: Long names and pax records; attributes of macOS and ACLs take some tens of kilobytes.
_MAX_HEADER_BYTES = 1 << 20
#: Where ustar has a prefix of the name and old GNU archives have times.
_MAGIC = slice(257, 265)
_NAME = slice(0, 100)
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,9}) ([^=]+)=")
#: Sizes beyond this do not fit into a header's octal digits.
_OCTAL_SIZE = 8**11
_REFUSED = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file (make the archive without --sparse)",
}


def read_tar(kind: str, chunks: Iterable[bytes], limits: LimitSettings) -> Archive:
    """The files of a ``tar`` or ``tar.gz``; nothing is read before the first one is asked for.

    Raises InvalidArchive (also while members are read) for whatever is damaged, cut off, a link, a
    device or sparse, InvalidKey for names that leave the product, TooLarge for too many entries
    and for archives that swell too much.
    """
    packed = _Counted(chunks)
    plain = _gunzip(packed) if kind == "tar.gz" else iter(packed)
    return Archive(_walk(_Blocks(_bounded(plain, packed, limits)), Entries(limits)))


class _Counted(io.RawIOBase):
    """The archive's bytes as an iterator and as a file, counted."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._chunk = b""
        self._used = 0
        self.count = 0

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self.count += len(chunk)
        return chunk

    def __iter__(self) -> Iterator[bytes]:
        return self

    def read(self, size: int = -1) -> bytes:
        while self._used >= len(self._chunk):
            chunk = next(self, None)
            if chunk is None:
                return b""
            self._chunk, self._used = chunk, 0
        taken = self._chunk[self._used : self._used + size]
        self._used += len(taken)
        return taken


def _gunzip(packed: _Counted) -> Iterator[bytes]:
    """All members of a gzip file (RFC 1952, section 2.2), zeros may follow them."""
    try:
        with gzip.GzipFile(fileobj=packed) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidArchive(f"The gzip file is damaged or cut off: {error}.") from error


def _bounded(plain: Iterator[bytes], packed: _Counted, limits: LimitSettings) -> Iterator[bytes]:
    """``plain``, headers and all, unless it swells too much."""
    unpacked = 0
    for chunk in plain:
        unpacked += len(chunk)
        check_ratio(packed.count, unpacked, limits)
        yield chunk


class _Blocks:
    """The tar in pieces of a wanted size."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._used = 0

    def some(self, size: int) -> bytes:
        """At least one byte and at most ``size``; b'' at the end."""
        while self._used >= len(self._chunk):
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._chunk, self._used = chunk, 0
        taken = self._chunk[self._used : self._used + size]
        self._used += len(taken)
        return taken

    def exactly(self, size: int, where: str) -> bytes:
        """``size`` bytes; ``where`` says in an error where the archive ends."""
        return b"".join(self.pieces(size, where))

    def pieces(self, size: int, where: str) -> Iterator[bytes]:
        """``size`` bytes as they come."""
        while size:
            piece = self.some(size)
            if not piece:
                raise InvalidArchive(f"The tar archive is cut off: it ends {where}.")
            size -= len(piece)
            yield piece

    def padded(self, size: int, where: str) -> Iterator[bytes]:
        """``size`` bytes as they come; what fills their last block up is passed over."""
        yield from self.pieces(size, where)
        self.exactly(-size % _BLOCK, where)


class _Overrides:
    """What pax and GNU headers say of the entry that follows them."""

    def __init__(self) -> None:
        self.path: str | None = None
        self.size: int | None = None
        self.seen: set[bytes] = set()

    def note(self, kind: bytes, data: bytes) -> None:
        """Take in the contents of a header of type ``kind``."""
        kind = tarfile.XHDTYPE if kind == tarfile.SOLARIS_XHDTYPE else kind
        if kind in self.seen:
            raise InvalidArchive("The tar archive is damaged: an entry has two extended headers.")
        self.seen.add(kind)
        if kind == tarfile.GNUTYPE_LONGNAME:
            self._name(data.partition(b"\0")[0])
        elif kind == tarfile.XHDTYPE:
            self._records(_pax_records(data))

    def _name(self, raw: bytes) -> None:
        name = raw.decode("utf-8", "surrogateescape")
        if self.path is not None and self.path != name:
            raise InvalidArchive(f"The tar archive names one entry {self.path!r} and {name!r}.")
        self.path = name

    def _records(self, records: dict[bytes, bytes]) -> None:
        if records.get(b"path"):
            self._name(records[b"path"])
        if records.get(b"size"):
            digits = records[b"size"]
            if not digits.isdigit() or len(digits) > 19:
                raise InvalidArchive("The tar archive is damaged: a size in a pax header is none.")
            self.size = int(digits)


def _walk(blocks: _Blocks, entries: Entries) -> Iterator[Member]:
    overrides = _Overrides()
    while (block := blocks.exactly(_BLOCK, _BEFORE_END)) != _ZEROS:
        info = _header(block, overrides)
        if info.type in (
            tarfile.XHDTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        ):
            overrides.note(info.type, _extended(blocks, info))
            continue
        if info.type == tarfile.XGLTYPE:
            entries.count()
            if _pax_records(_extended(blocks, info)).keys() & {b"path", b"size"}:
                raise InvalidArchive("A global pax header gives one name or size to all entries.")
            continue
        name = info.name if overrides.path is None else overrides.path
        size = _size(name, info.size, overrides.size)
        overrides = _Overrides()
        if info.isdir():
            if size:
                raise InvalidArchive(f"The directory {name!r} in the archive has contents.")
            entries.add(name, is_directory=True)
            continue
        if info.type in _REFUSED or not info.isreg():
            what = _REFUSED.get(info.type, f"an entry of the type {info.type!r}")
            raise InvalidArchive(f"{name!r} in the archive is {what}, which is refused.")
        chunks = blocks.padded(size, f"within {name!r}")
        yield Member(entries.add(name), size, chunks)
        for _ in chunks:  # what the caller left
            pass
    if overrides.seen:
        raise InvalidArchive("The tar archive ends after an extended header, before its entry.")
    _check_end(blocks)


def _header(block: bytes, overrides: _Overrides) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        after = f" after the name {overrides.path!r}" if overrides.path else ""
        raise InvalidArchive(f"The tar archive has a damaged header{after}: {error}.") from error
    if block[_MAGIC] == tarfile.GNU_MAGIC:
        info.name = block[_NAME].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return info


def _size(name: str, stated: int, override: int | None) -> int:
    """The size of an entry; a pax header states it where the header itself cannot."""
    if stated < 0 or (override is not None and override < _OCTAL_SIZE and override != stated):
        raise InvalidArchive(f"The tar archive contradicts itself about the size of {name!r}.")
    return stated if override is None else override


def _extended(blocks: _Blocks, info: tarfile.TarInfo) -> bytes:
    if not 0 <= info.size <= _MAX_HEADER_BYTES:
        raise InvalidArchive(
            f"A long name or pax header of the archive has {info.size} bytes; "
            f"{_MAX_HEADER_BYTES} are allowed."
        )
    return b"".join(blocks.padded(info.size, "within a long name or pax header"))


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax header (POSIX.1-2017, pax, "Extended Header")."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        match = _PAX_RECORD.match(data, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1] != ord("\n"):
            raise InvalidArchive("The tar archive has a damaged pax header.")
        if match[2].startswith(b"GNU.sparse."):
            raise InvalidArchive(
                "The archive holds sparse files, which are refused; make it without --sparse."
            )
        records[match[2]] = data[match.end() : end - 1]
        position = end
    return records


def _check_end(blocks: _Blocks) -> None:
    """The first zero block was read; there must be another one and nothing but zeros."""
    if blocks.exactly(_BLOCK, _BEFORE_END) != _ZEROS:
        raise InvalidArchive("The tar archive has a block of zeros in its middle.")
    while rest := blocks.some(CHUNK):
        if rest.count(0) != len(rest):
            raise InvalidArchive(
                "Something follows the end of the tar archive; archives are not to be joined."
            )
