"""Reading zip by its central directory, as APPNOTE.TXT 6.3.10 has it (sections in brackets).

``zipfile`` decodes and unpacks.  What it takes on trust is checked here first: the size of the
directory (it is read into memory), that directory and local headers tell the same, that entries
do not share bytes, that an entry is as long as it says.  Called by ``services/unpacking.py``.
"""

from __future__ import annotations

import contextlib
import copy
import lzma
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from stream_inflate import StreamInflateError, stream_inflate64

from admin_api.errors import InvalidArchive, InvalidKey, TooLarge
from admin_api.services.archives.entries import Archive, Entries, Member, check_ratio
from admin_api.services.archives.seekable import Seekable
from admin_api.settings import LimitSettings
from admin_api.storage.base import CHUNK

# [4.3.16], [4.3.15], [4.3.14], [4.3.12] (lengths only), [4.3.7]
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s24x3H12x")
_LOCAL = struct.Struct("<4s2x2H4x3L2H")
_MAX_COMMENT = 0xFFFF
_MAX_16, _MAX_32 = 0xFFFF, 0xFFFFFFFF
#: The directory is held in memory; 100,000 entries of common length take some 20 MiB.
_MAX_DIRECTORY_BYTES = 32 << 20

# General purpose bits [4.4.4].
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_SIZES_FOLLOW = 0x0008
_PATCHED = 0x0020
_UTF8 = 0x0800

_DEFLATE64 = 9
_KNOWN_METHODS = {
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    _DEFLATE64,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
}
#: Names of the methods that are not read [4.4.5].
_METHODS = {
    1: "shrink",
    6: "implode",
    10: "PKWARE implode",
    20: "Zstandard",
    93: "Zstandard",
    95: "XZ",
    96: "JPEG",
    97: "WavPack",
    98: "PPMd",
    99: "AES encryption",
}
#: Hosts whose path separator is the backslash: FAT, OS/2, NTFS (as PKWARE and as Info-ZIP number
#: it) and VFAT [4.4.2].
_BACKSLASH_HOSTS = {0, 6, 10, 11, 14}
_DRIVE = re.compile(r"[A-Za-z]:(?:[/\\]|$)")
#: Info-ZIP's "Unicode Path" [4.6.9].
_UNICODE_PATH = 0x7075

_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    StreamInflateError,
    EOFError,
    OSError,  # bz2's; the source's are StorageManagerErrors
    ValueError,
    NotImplementedError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class _Planned:
    """A file that is to be read, and where its packed bytes lie."""

    info: zipfile.ZipInfo
    path: str
    start: int
    stop: int


def read_zip(source: Seekable, limits: LimitSettings) -> Archive:
    """The files of a zip in the order in which their bytes lie.

    Raises InvalidArchive (while members are read, too) for what is damaged, cut off, encrypted, a
    link, packed by an unknown method, or told differently in two places; InvalidKey for names that
    leave the product, TooLarge for too many entries and for archives that swell too much.
    """
    try:
        # ``zipfile`` takes the last signature for the end record, even one within the comment.
        source = source.ending(_place_of_end(source) + _END.size - 2, bytes(2))
        directory = _find_directory(source, limits)
        archive = zipfile.ZipFile(source)
        planned = _plan(source, archive.infolist(), directory, limits)
    except _BROKEN as error:
        raise InvalidArchive(f"The zip archive is damaged: {error}.") from error
    return Archive(_members(source, archive, planned), [item.path for item in planned])


def _members(
    source: Seekable, archive: zipfile.ZipFile, planned: list[_Planned]
) -> Iterator[Member]:
    for item in planned:
        chunks = _checked(source, archive, item)
        yield Member(item.path, item.info.file_size, chunks)
        for _ in chunks:  # what the caller left
            pass


def _checked(source: Seekable, archive: zipfile.ZipFile, item: _Planned) -> Iterator[bytes]:
    """An entry's bytes; raises unless they have the length and the CRC that the archive states."""
    size, crc = 0, 0
    try:
        for chunk in _unpacked(source, archive, item):
            size += len(chunk)
            crc = zlib.crc32(chunk, crc)
            if size > item.info.file_size:
                break
            yield chunk
    except _BROKEN as error:
        raise InvalidArchive(f"The zip archive is damaged in {item.path!r}: {error}.") from error
    if size != item.info.file_size:
        raise InvalidArchive(
            f"{item.path!r} in the zip has not the {item.info.file_size} bytes that it states."
        )
    if crc != item.info.CRC:
        raise InvalidArchive(f"{item.path!r} in the zip is damaged: its CRC-32 does not hold.")


def _unpacked(source: Seekable, archive: zipfile.ZipFile, item: _Planned) -> Iterator[bytes]:
    if item.info.compress_type == _DEFLATE64:
        inflate, _, _ = stream_inflate64()
        yield from inflate(source.pieces(item.start, item.stop))
        return
    # One byte more than is stated, so that an entry that goes on shows.
    asked = copy.copy(item.info)
    asked.file_size += 1
    with archive.open(asked) as file:
        while chunk := file.read(CHUNK):
            yield chunk


# -- the central directory -----------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Directory:
    """Where the central directory lies, and how many entries the end record states."""

    start: int
    stop: int
    count: int
    has_64: bool


def _find_directory(source: Seekable, limits: LimitSettings) -> _Directory:
    """The central directory, walked through to its end before any of it is taken into memory."""
    found = _end_record(source)
    size = found.stop - found.start
    if size > _MAX_DIRECTORY_BYTES:
        raise TooLarge(
            f"The zip's central directory has {size} bytes; {_MAX_DIRECTORY_BYTES} are allowed."
        )
    position, count = found.start, 0
    while position < found.stop:
        signature, *lengths = _CENTRAL.unpack(_at(source, position, _CENTRAL.size))
        if signature != b"PK\1\2":
            raise InvalidArchive("The zip's central directory is damaged or cut off.")
        position += _CENTRAL.size + sum(lengths)
        count += 1
        if count > limits.max_product_files:
            raise TooLarge(
                f"The archive has more than {limits.max_product_files} files and directories."
            )
    # Without ZIP64 the end record has only the lower 16 bits of the count.
    stated = count if found.has_64 else count & _MAX_16
    if position != found.stop or stated != found.count:
        raise InvalidArchive("The zip's central directory is damaged or cut off.")
    return found


def _end_record(source: Seekable) -> _Directory:
    """What the end record says, which is the last of ``source``."""
    stop = source.size - _END.size
    _, disk, first_disk, here, count, size, offset, _ = _END.unpack(_at(source, stop, _END.size))
    has_64 = False
    if stop >= _LOCATOR.size:
        signature, _, _, _ = _LOCATOR.unpack(_at(source, stop - _LOCATOR.size, _LOCATOR.size))
        has_64 = signature == b"PK\6\7"
    if has_64:
        stop -= _LOCATOR.size + _END_64.size
        short = (count, size, offset)
        signature, _, _, _, disk, first_disk, here, count, size, offset = _END_64.unpack(
            _at(source, stop, _END_64.size)
        )
        if signature != b"PK\6\6" or any(
            old not in (new, most)
            for old, new, most in zip(
                short, (count, size, offset), (_MAX_16, _MAX_32, _MAX_32), strict=True
            )
        ):
            raise InvalidArchive("The zip's ZIP64 end record is damaged.")
    if disk or first_disk or here != count:
        raise InvalidArchive("The zip is one part of several; join them before sending.")
    start = stop - size
    if start < 0 or offset > start:
        raise InvalidArchive("The zip archive is cut off at its beginning.")
    return _Directory(start, stop, count, has_64)


def _place_of_end(source: Seekable) -> int:
    """Where the end record begins: it is the one whose comment ends with the archive.

    The signature may stand in the comment, too.  Where whole end records do, nobody knows which one
    is meant, and the archive is refused.
    """
    source.seek(max(source.size - _END.size - _MAX_COMMENT, 0))
    base, tail = source.tell(), source.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0:
        raise InvalidArchive("The zip archive is cut off: it has no central directory at its end.")
    fitting = []
    while place >= 0:
        if len(tail) - place >= _END.size:
            *_, comment = _END.unpack_from(tail, place)
            if place + _END.size + comment == len(tail):
                fitting.append(base + place)
        place = tail.rfind(b"PK\5\6", 0, place)
    if not fitting:
        raise InvalidArchive("The zip archive is cut off, or something follows its end.")
    if len(fitting) > 1:
        raise InvalidArchive(
            "The zip archive has two ends: its comment is the end of a zip, too. Pack it without "
            "the comment."
        )
    return fitting[0]


def _at(source: Seekable, position: int, size: int) -> bytes:
    if position < 0:
        raise InvalidArchive("The zip archive is damaged: it points before its own beginning.")
    source.seek(position)
    data = source.read(size)
    if len(data) != size:
        raise InvalidArchive("The zip archive is damaged or cut off: it points beyond its end.")
    return data


# -- what is to be read --------------------------------------------------------------------------
def _plan(
    source: Seekable, infos: list[zipfile.ZipInfo], directory: _Directory, limits: LimitSettings
) -> list[_Planned]:
    """The files, every entry having been checked against its local header and its neighbours."""
    infos = sorted(infos, key=lambda info: info.header_offset)
    check_ratio(source.size, sum(info.file_size for info in infos), limits)
    entries, planned = Entries(limits), []
    no_slashes = not any("/" in info.orig_filename for info in infos)
    spans = []
    for info in infos:
        name = _name(info, no_slashes)
        start = _compare_local(source, info, name)
        spans.append((info.header_offset, start + info.compress_size, name))
        is_directory = _is_directory(info, name)
        path = entries.add(name, is_directory)
        if not is_directory:
            planned.append(_Planned(info, path, start, start + info.compress_size))
    spans.append((directory.start, directory.stop, ""))
    for (_, stop, name), (following, _, _) in pairwise(spans):
        if stop > following:
            raise InvalidArchive(f"{name!r} in the zip shares bytes with another entry.")
    return planned


def _name(info: zipfile.ZipInfo, no_slashes: bool) -> str:
    """An entry's name with slashes between its parts.

    Without the flag for UTF-8 names are in code page 437 [appendix D]; Info-ZIP on Unix and macOS
    leave them in UTF-8 all the same.  A writer that used no slash at all took the backslash for the
    separator, whatever host it claims.
    """
    name = info.orig_filename
    if not info.flag_bits & _UTF8 and not name.isascii():
        raw = name.encode("cp437")
        name = _unicode_path(info.extra, raw) or name
        if name == info.orig_filename and info.create_system not in _BACKSLASH_HOSTS:
            with contextlib.suppress(UnicodeDecodeError):
                name = raw.decode("utf-8")
    if "\0" in name:
        raise InvalidKey(f"The name {name[:255]!r} in the zip holds a NUL.", name=name[:255])
    if _DRIVE.match(name):
        raise InvalidKey(
            f"The name {name[:255]!r} in the zip begins with a drive.", name=name[:255]
        )
    if no_slashes or info.create_system in _BACKSLASH_HOSTS:
        name = name.replace("\\", "/")
    return name


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        data, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and data[:5] == struct.pack("<BL", 1, zlib.crc32(raw)):
            return data[5:].decode("utf-8")
    return None


def _is_directory(info: zipfile.ZipInfo, name: str) -> bool:
    """Whether the entry is a directory; raises InvalidArchive for whatever is no file either."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a symbolic link" if kind == stat.S_IFLNK else "a special file"
        raise InvalidArchive(f"{name!r} in the archive is {what}, which is refused.")
    is_directory = name.endswith("/")
    if (kind == stat.S_IFDIR and not is_directory) or (kind == stat.S_IFREG and is_directory):
        raise InvalidArchive(f"The zip contradicts itself: is {name!r} a directory or a file?")
    if is_directory and info.file_size:
        raise InvalidArchive(f"The directory {name!r} in the archive has contents.")
    return is_directory


def _compare_local(source: Seekable, info: zipfile.ZipInfo, name: str) -> int:
    """Where the packed bytes begin; raises unless local header and directory tell the same."""
    if info.flag_bits & _ENCRYPTED:
        raise InvalidArchive(f"{name!r} in the zip is encrypted, which is refused.")
    method = info.compress_type
    if info.flag_bits & _PATCHED:
        raise InvalidArchive(
            f"{name!r} in the zip is a patch of another file, which is refused; pack the file "
            "itself."
        )
    if method not in _KNOWN_METHODS:
        raise InvalidArchive(
            f"{name!r} in the zip is packed by {_METHODS.get(method, 'an unknown method')} "
            f"(method {method}), which is not read here; pack it anew with deflate (method 8), or "
            "send a tar."
        )
    if method == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        raise InvalidArchive(f"The zip contradicts itself about the size of {name!r}.")
    header = _at(source, info.header_offset, _LOCAL.size)
    signature, flags, local_method, crc, packed, size, name_size, extra_size = _LOCAL.unpack(header)
    raw = source.read(name_size)
    same = (
        signature == b"PK\3\4"
        and local_method == method
        and raw == info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
        and (raw.isascii() or not (flags ^ info.flag_bits) & _UTF8)
        and not flags & _ENCRYPTED
    )
    if not flags & _SIZES_FOLLOW:
        same = (
            same
            and crc == info.CRC
            and packed in (info.compress_size, _MAX_32)
            and size in (info.file_size, _MAX_32)
        )
    if not same:
        raise InvalidArchive(
            f"The zip is damaged: its central directory and the header of {name!r} differ."
        )
    return int(info.header_offset + _LOCAL.size + name_size + extra_size)
