"""Reading archives: whole and byte-exact, or refused; never a product with other content."""

from __future__ import annotations

import gzip
import io
import shutil
import stat
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admin_api.errors import InvalidArchive, InvalidKey, InvalidRequest, TooLarge
from admin_api.services.archives.seekable import Seekable
from admin_api.services.archives.tar_in import read_tar
from admin_api.services.archives.writing import Packed, pack_tar, pack_zip, tar_size
from admin_api.services.archives.zip_in import read_zip
from admin_api.settings import LimitSettings

LIMITS = LimitSettings()
REFUSED = (InvalidArchive, InvalidKey, InvalidRequest, TooLarge)
FILES = {
    "P.SAFE/manifest.safe": b"<xfdu/>" * 9,
    "P.SAFE/empty": b"",
    "P.SAFE/measurement/ä.tiff": bytes(range(256)) * 5,
}


def read(kind: str, data: bytes, limits: LimitSettings = LIMITS, step: int = 777):
    """Path -> bytes of what the readers give out."""
    if kind == "zip":

        def read_at(start: int, stop: int):
            return (data[at : min(at + step, stop)] for at in range(start, stop, step))

        archive = read_zip(Seekable(len(data), read_at), limits)
    else:
        pieces = (data[at : at + step] for at in range(0, len(data), step))
        archive = read_tar(kind, pieces, limits)
    return {member.path: b"".join(member.chunks) for member in archive.members}


def tar(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


class _Pipe(io.RawIOBase):
    """A sink that cannot seek: zipfile writes data descriptors then."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.data += data
        return len(data)


def zipped(
    files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, pipe: bool = False, **flags: bool
) -> bytes:
    sink = _Pipe() if pipe else io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, data in files.items():
            with archive.open(zipinfo(name, method), "w", **flags) as entry:
                entry.write(data)
    return bytes(sink.data) if isinstance(sink, _Pipe) else sink.getvalue()


def zipinfo(name: str, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type = method
    return info


WRITTEN = datetime(2026, 1, 1, tzinfo=UTC)


def packed(files: dict[str, bytes], pack, *span: int) -> bytes:
    def part(data: bytes, start: int, stop: int):
        return iter(
            [data[start : start + 7], data[start + 7 : stop]]
            if stop > start + 7
            else [data[start:stop]]
        )

    items = (Packed(name, len(data), partial(part, data)) for name, data in files.items())
    return b"".join(pack(items, WRITTEN, *span))


def whole_tar(files: dict[str, bytes]) -> bytes:
    return packed(files, pack_tar, 0, 1 << 40)


def deflate64(files: dict[str, bytes]) -> bytes:
    """As Windows packs what is large; blocks that are stored are the same in both methods."""
    data = bytearray(packed(files, pack_zip))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        place = archive.start_dir
        for info in archive.infolist():
            data[info.header_offset + 8] = data[place + 10] = 9
            place += 46 + len(info.filename.encode()) + len(info.extra)
    return bytes(data)


def members(data: bytes) -> bytes:
    """A gzip file of many members, as pigz, bgzip and cat make them."""
    return b"".join(gzip.compress(data[at : at + 700]) for at in range(0, len(data), 700))


WRITERS = {
    "pax.tar": lambda files: tar(files),
    "gnu.tar": lambda files: tar(files, tarfile.GNU_FORMAT),
    "one member.tar.gz": lambda files: gzip.compress(tar(files)),
    "many members.tar.gz": lambda files: members(tar(files)),
    "padded.tar.gz": lambda files: gzip.compress(tar(files)) + bytes(300),
    "own.tar": whole_tar,
    "own.zip": lambda files: packed(files, pack_zip),
    "deflate.zip": lambda files: zipped(files),
    "stored.zip": lambda files: zipped(files, zipfile.ZIP_STORED),
    "bzip2.zip": lambda files: zipped(files, zipfile.ZIP_BZIP2),
    "lzma.zip": lambda files: zipped(files, zipfile.ZIP_LZMA),
    "piped deflate.zip": lambda files: zipped(files, pipe=True),
    "piped stored.zip": lambda files: zipped(files, zipfile.ZIP_STORED, pipe=True),
    "deflate64.zip": deflate64,
    "zip64.zip": lambda files: zipped(files, force_zip64=True),
    "piped zip64.zip": lambda files: zipped(files, pipe=True, force_zip64=True),
    "self-extracting.zip": lambda files: b"#!/bin/sh\n" * 9 + zipped(files),
}


def kind_of(writer: str) -> str:
    return writer.partition(".")[2]


_PARTS = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters='/\\?:"'),
    min_size=1,
    max_size=20,
).filter(lambda part: part not in (".", ".."))
_PATHS = st.one_of(
    st.lists(_PARTS, min_size=1, max_size=4).map("/".join),
    st.just("/".join(["a long folder's name"] * 12)),
)


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=15, deadline=None)
@given(files=st.dictionaries(_PATHS, st.binary(max_size=3000), max_size=6))
def test_what_any_writer_packs_comes_out_byte_by_byte(writer: str, files) -> None:
    parents = {path[:at] for path in files for at in range(len(path)) if path[at] == "/"}
    files = {path: data for path, data in files.items() if path not in parents}
    assert read(kind_of(writer), WRITERS[writer](files)) == files


@pytest.mark.parametrize("writer", WRITERS)
def test_an_archive_cut_off_anywhere_is_refused(writer: str) -> None:
    data = WRITERS[writer](FILES)
    for length in range(len(data)):
        try:
            found = read(kind_of(writer), data[:length])
        except REFUSED:
            continue
        # Zeros that fill an archive up are no part of it.
        assert found == FILES
        assert not data[length:].strip(b"\0") or "gz" in writer


@pytest.mark.parametrize("writer", [name for name in WRITERS if not name.endswith(".tar")])
def test_a_flipped_bit_never_gives_other_content(writer: str) -> None:
    data = bytearray(WRITERS[writer](FILES))
    for place in range(len(data)):
        bit = 1 << place % 8
        data[place] ^= bit
        try:
            found = read(kind_of(writer), bytes(data), step=1 << 20)
        except REFUSED:
            found = FILES
        assert found == FILES, f"bit {bit} of byte {place}"
        data[place] ^= bit


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_damaged_header_in_the_middle_of_a_tar_is_refused(form: int) -> None:
    data = tar({"a": b"1" * 600, "b": b"2", "c": b"3"}, form)
    place = data.index(b"b\0\0\0")
    for offset in (0, 124, 148, 156):
        damaged = bytearray(data)
        damaged[place + offset] ^= 1
        with pytest.raises(InvalidArchive, match="damaged header"):
            read("tar", bytes(damaged))


def blocks(*headers: tuple[tarfile.TarInfo, bytes], end: int = 1024) -> bytes:
    """A tar of raw headers and what follows each."""
    body = b""
    for info, data in headers:
        body += info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
    return body + bytes(end)


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info


def pax(name: str, **records: str) -> bytes:
    return tarfile.TarInfo._create_pax_generic_header(records, tarfile.XHDTYPE, "utf-8") + (
        header(name, size=1).tobuf() + b"x" + bytes(511) + bytes(1024)
    )


TARS = {
    "sparse": (blocks((header("s", tarfile.GNUTYPE_SPARSE), b"")), "sparse"),
    "pax sparse": (pax("s", **{"GNU.sparse.major": "1"}), "sparse"),
    "symbolic link": (blocks((header("l", tarfile.SYMTYPE), b"")), "'l'.*symbolic link"),
    "hard link": (blocks((header("l", tarfile.LNKTYPE), b"")), "hard link"),
    "device": (blocks((header("d", tarfile.BLKTYPE), b"")), "device"),
    "FIFO": (blocks((header("f", tarfile.FIFOTYPE), b"")), "FIFO"),
    "unknown": (blocks((header("u", b"Q"), b"")), "type b'Q'"),
    "joined": (tar({"a": b"1"}) + tar({"b": b"2"}), "joined"),
    "one zero block": (blocks((header("a"), b""), end=512), "cut off"),
    "zero block within": (blocks((header("a"), b""), end=512) + tar({"b": b""}), "zeros"),
    "no end": (blocks((header("a"), b""), end=0), "cut off"),
    "empty": (b"", "cut off"),
    "contradicting size": (pax("a", size="7"), "size"),
    "nonsense size": (pax("a", size="-1"), "size"),
    "two names": (
        blocks((header("L", tarfile.GNUTYPE_LONGNAME, 2), b"x\0"))[:-1024] + pax("a", path="y"),
        "names one entry",
    ),
    "name without entry": (blocks((header("L", tarfile.GNUTYPE_LONGNAME, 2), b"x\0")), "before"),
    "global name": (
        tarfile.TarInfo._create_pax_generic_header({"path": "x"}, tarfile.XGLTYPE, "utf-8")
        + tar({"a": b""}),
        "global",
    ),
    "directory with contents": (blocks((header("d", tarfile.DIRTYPE, 1), b"x")), "contents"),
    "damaged pax header": (
        blocks((header("p", tarfile.XHDTYPE, 10), b"99 path=x\n"), (header("a"), b"")),
        "damaged pax header",
    ),
    "two extended headers": (
        blocks(*[(header("p", tarfile.XHDTYPE, 10), b"10 path=x\n")] * 2, (header("x"), b"")),
        "two extended headers",
    ),
}


@pytest.mark.parametrize("name", TARS)
def test_what_a_tar_may_not_hold_is_refused_by_name(name: str) -> None:
    data, sentence = TARS[name]
    with pytest.raises(InvalidArchive, match=sentence):
        read("tar", data)


def test_old_and_odd_but_honest_tars_are_read() -> None:
    old = header("v7", tarfile.AREGTYPE, 3)
    large = header("large", size=8**11)  # base-256: what octal digits cannot say
    assert read("tar", blocks((old, b"abc"), (header("d/", tarfile.AREGTYPE), b""))) == {
        "v7": b"abc"
    }
    with pytest.raises(InvalidArchive, match="cut off: it ends within 'large'"):
        read("tar", blocks((large, b"")))
    # Where POSIX has the beginning of a long name, GNU's old form has times.
    times = bytearray(header("gnu", size=1).tobuf(tarfile.GNU_FORMAT))
    times[345:357], times[148:156] = b"14712345670\0", b" " * 8
    times[148:156] = b"%06o\0 " % sum(times)
    assert read("tar", bytes(times) + b"x" + bytes(511 + 1024)) == {"gnu": b"x"}
    comment = tarfile.TarInfo._create_pax_generic_header({"comment": "c"}, tarfile.XGLTYPE, "utf-8")
    assert read("tar", comment + tar({"./a": b"1"})) == {"a": b"1"}
    assert read("tar", pax("a", path="ä" * 200)) == {"ä" * 200: b"x"}


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_of_a_gibibyte_is_refused_before_it_is_read(kind: bytes) -> None:
    asked = []

    def chunks() -> Iterable[bytes]:
        yield header("x", kind, 1 << 30).tobuf(tarfile.GNU_FORMAT)
        asked.append(True)

    with pytest.raises(InvalidArchive, match="1073741824 bytes"):
        list(read_tar("tar", chunks(), LIMITS).members)
    assert not asked


def test_entries_and_headers_count_against_the_limits() -> None:
    few = LimitSettings(max_product_files=10)
    directories = [(header(f"d{number}", tarfile.DIRTYPE), b"") for number in range(11)]
    with pytest.raises(TooLarge, match="10 files and directories"):
        read("tar", blocks(*directories), few)
    with pytest.raises(TooLarge, match="10 files and directories"):
        read("zip", zipped({f"d{number}/": b"" for number in range(11)}), few)
    # Directories count that are in no entry but above one.
    with pytest.raises(TooLarge, match="10 files and directories"):
        read("tar", tar({"/".join("abcdefghijkl"): b""}), few)
    deep = "/".join(["d"] * 32_768)
    with pytest.raises(InvalidKey, match="bytes"):
        read("tar", tar({deep: b""}))
    # Names are what swells here, not contents.
    swollen = gzip.compress(
        tar({f"{number}/" + "/".join(["d"] * 400): b"" for number in range(40)})
    )
    with pytest.raises(TooLarge, match="times its size"):
        read("tar.gz", gzip.compress(bytes(70 << 20)), LimitSettings(max_archive_ratio=1))
    assert len(read("tar.gz", swollen)) == 40
    with pytest.raises(TooLarge, match="times its size"):
        read("zip", zipped({"a": bytes(70 << 20)}), LimitSettings(max_archive_ratio=1))


def test_only_a_whole_gzip_file_is_believed() -> None:
    data = gzip.compress(tar(FILES))
    for damaged in (data + b"garbage", data + data[:5], data[:-8] + bytes(8), data[:-4] + bytes(4)):
        with pytest.raises(InvalidArchive, match="gzip"):
            read("tar.gz", damaged)
    with pytest.raises(InvalidArchive, match="gzip"):
        read("tar.gz", tar(FILES))


# -- zip -------------------------------------------------------------------------------------------
def central(data: bytes, change, entry: int = 0) -> bytes:
    """``data`` with the ``entry``th record of the central directory changed in place."""
    changed, place = bytearray(data), data.index(b"PK\1\2")
    for _ in range(entry):
        place = data.index(b"PK\1\2", place + 1)
    change(changed, place)
    return bytes(changed)


def with_info(**attributes) -> bytes:
    info = zipinfo(attributes.pop("name", "a"))
    for name, value in attributes.items():
        setattr(info, name, value)
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(info, b"x" * 50)
    return sink.getvalue()


def put(offset: int, value: bytes):
    def change(data: bytearray, place: int) -> None:
        data[place + offset : place + offset + len(value)] = value

    return change


def both(offset_local: int, offset_central: int, value: bytes) -> bytes:
    data = bytearray(with_info())
    put(offset_local, value)(data, 0)
    put(offset_central, value)(data, data.index(b"PK\1\2"))
    return bytes(data)


def with_end_64(data: bytes, signature: bytes = b"PK\6\6", count: int = 2) -> bytes:
    """``data`` with an end record of ZIP64 before its own."""
    size, start = struct.unpack_from("<2L", data, len(data) - 10)
    record = struct.pack("<4sQ2H2L4Q", signature, 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - 22, 1)
    return data[:-22] + record + locator + data[-22:]


TWO = zipped({"a": b"1" * 50, "b": b"2" * 50})
ZIPS = {
    "encrypted": (both(6, 8, b"\1\0"), "encrypted"),
    "Zstandard": (
        both(8, 10, b"\x5d\0"),
        r"'a'.*Zstandard \(method 93\).*pack it anew with deflate \(method 8\), or send a tar",
    ),
    "unknown method": (both(8, 10, b"\x2a\0"), r"unknown method \(method 42\).*pack it anew"),
    "patch": (both(6, 8, b"\x20\0"), "a patch of another file.*pack the file itself"),
    "symbolic link": (with_info(external_attr=(stat.S_IFLNK | 0o777) << 16), "symbolic link"),
    "device": (with_info(external_attr=(stat.S_IFCHR | 0o666) << 16), "special file"),
    "other name": (central(TWO, put(46, b"c")), "header of 'c' differ|differ"),
    "other CRC": (central(TWO, put(16, b"\0\0\0\0")), "differ"),
    "other method": (central(TWO, put(10, b"\0\0")), "size of 'a'"),
    "shared bytes": (
        central(
            TWO, lambda data, place: put(42, data[data.index(b"PK\1\2") + 42 :][:4])(data, place), 1
        ),
        "differ|shares",
    ),
    "missing entry": (TWO[: TWO.index(b"PK\1\2")] + TWO[TWO.rindex(b"PK\1\2") :], "cut off"),
    "no directory": (TWO[: TWO.index(b"PK\1\2")], "no central directory"),
    "something behind": (TWO + b"\n", "follows its end"),
    "one of several": (TWO[:-18] + b"\1\0\1\0" + TWO[-14:], "several"),
    "directory with contents": (with_info(name="d/"), "contents"),
    "file that is called a directory": (
        with_info(name="d", external_attr=(stat.S_IFDIR | 0o755) << 16),
        "directory or a file",
    ),
    "directory that is called a file": (
        with_info(name="d/", external_attr=(stat.S_IFREG | 0o644) << 16),
        "directory or a file",
    ),
    "cut off at its beginning": (TWO[10:], "cut off at its beginning"),
    "ZIP64 says otherwise": (with_end_64(TWO, count=1), "ZIP64 end record"),
    "no ZIP64 end record": (with_end_64(TWO, signature=b"PK\0\0"), "ZIP64 end record"),
}


@pytest.mark.parametrize("name", ZIPS)
def test_what_a_zip_may_not_hold_is_refused_by_name(name: str) -> None:
    data, sentence = ZIPS[name]
    with pytest.raises(InvalidArchive, match=sentence):
        read("zip", data)


def test_entries_that_share_their_bytes_are_refused() -> None:
    """A bomb whose entries overlap: one kernel, quoted many times."""
    kernel = zipfile.ZipInfo("a")
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(kernel, b"x")
        archive.filelist.append(kernel)
    with pytest.raises((InvalidArchive, InvalidRequest)):
        read("zip", sink.getvalue())
    inner = zipped({"inner": b"1"}, zipfile.ZIP_STORED)
    outer = zipped({"outer": inner}, zipfile.ZIP_STORED)
    start = outer.index(b"PK\3\4", 4)
    record = bytearray(inner[inner.index(b"PK\1\2") : inner.index(b"PK\5\6")])
    record[42:46] = struct.pack("<L", start)
    end = outer.index(b"PK\5\6", outer.rindex(b"outer"))
    tail = bytearray(outer[end:])
    size = end - outer.rindex(b"PK\1\2") + len(record)
    tail[8:16] = struct.pack("<2HL", 2, 2, size)
    with pytest.raises(InvalidArchive, match="shares bytes"):
        read("zip", outer[:end] + bytes(record) + bytes(tail))


@pytest.mark.parametrize("writer", [name for name in WRITERS if name.endswith(".zip")])
@pytest.mark.parametrize(
    "comment",
    [b"PK\5\6", b"made by PK\5\6, " * 9, b"x" * 0xFFFF, TWO[-22:] + b"."],
    ids=["signature", "signatures", "longest", "record"],
)
def test_a_comment_may_hold_whatever_it_likes(writer: str, comment: bytes) -> None:
    data = WRITERS[writer](FILES)
    data = data[:-2] + struct.pack("<H", len(comment)) + comment
    assert read("zip", data) == FILES
    for cut in (1, len(comment)):
        with pytest.raises(InvalidArchive, match="cut off"):
            read("zip", data[:-cut])


def test_an_archive_that_can_be_read_in_two_ways_is_refused() -> None:
    other = zipped({"other": b"1"})
    with pytest.raises(InvalidArchive, match="two ends.*without the comment"):
        read("zip", TWO[:-2] + struct.pack("<H", len(other)) + other)


def test_an_entry_that_was_deleted_from_the_directory_is_no_part_of_the_product() -> None:
    place, last = TWO.index(b"PK\1\2"), TWO.rindex(b"PK\1\2")
    end = bytearray(TWO[TWO.index(b"PK\5\6") :])
    end[8:16] = struct.pack("<2HL", 1, 1, len(TWO) - last - len(end))
    end[16:20] = struct.pack("<L", place)
    assert read("zip", TWO[:place] + TWO[last : -len(end)] + bytes(end)) == {"b": b"2" * 50}


def test_an_end_record_of_zip64_that_was_not_needed_is_read() -> None:
    assert read("zip", with_end_64(TWO)) == {"a": b"1" * 50, "b": b"2" * 50}


def test_an_entry_is_as_long_as_it_says() -> None:
    data = bytearray(zipped({"a": b"x" * 50}))
    for length in (40, 60):
        crc = zlib.crc32(b"x" * min(length, 50))
        for offset, place in ((14, 0), (16, data.index(b"PK\1\2"))):
            data[place + offset : place + offset + 4] = struct.pack("<L", crc)
            data[place + offset + 8 : place + offset + 12] = struct.pack("<L", length)
        with pytest.raises(InvalidArchive, match="states|damaged"):
            read("zip", bytes(data))


@pytest.mark.parametrize("host", [0, 6, 10, 11, 14])
def test_backslashes_are_separators_where_the_entry_comes_from_windows(host: int) -> None:
    data = with_info(name="d\\a/b", create_system=host)
    assert read("zip", data) == {"d/a/b": b"x" * 50}
    with pytest.raises(InvalidKey):
        read("zip", with_info(name="d/..\\..\\b", create_system=host))


def test_a_backslash_is_a_character_on_unix_unless_no_slash_is_used_at_all() -> None:
    assert list(read("zip", zipped({"d/a\\b": b"", "d/c": b""}))) == ["d/a\\b", "d/c"]
    assert list(read("zip", zipped({"d\\a": b"", "d\\e\\b": b"", "c": b""}))) == [
        "d/a",
        "d/e/b",
        "c",
    ]


NAMES = {
    b"caf\x82": ("café", 0),
    "grün".encode(): ("grün", 3),
    b"\xe1\x9b": ("ß¢", 3),
}


@pytest.mark.parametrize("raw", NAMES)
def test_names_without_the_flag_for_utf8_are_those_of_code_page_437(raw: bytes) -> None:
    name, host = NAMES[raw]
    stand_in = ("n" * len(raw)).encode()
    data = with_info(name=stand_in.decode(), create_system=host).replace(stand_in, raw)
    assert list(read("zip", data)) == [name]


def test_the_unicode_path_of_info_zip_is_honoured() -> None:
    raw = b"gr?n"
    field = struct.pack("<BL", 1, zlib.crc32(b"gr\x81n")) + "größer".encode()
    data = with_info(name="gr?n", extra=struct.pack("<2H", 0x7075, len(field)) + field)
    assert list(read("zip", data.replace(raw, b"gr\x81n"))) == ["größer"]


def test_a_name_that_goes_on_behind_a_nul_is_refused() -> None:
    with pytest.raises(InvalidKey, match="NUL"):
        read("zip", zipped({"a.txt_.exe": b"1"}).replace(b"a.txt_", b"a.txt\0"))


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../x", "a//x", "C:\\x", "C:/x", "."])
def test_names_that_lead_out_of_the_product_are_refused(name: str) -> None:
    for kind, data in (("zip", zipped({name: b"x"})), ("tar", tar({name: b"x"}))):
        if kind == "tar" and name.startswith("C:"):
            continue  # a folder's name there
        with pytest.raises(InvalidKey):
            read(kind, data)


def test_a_file_is_not_a_directory_too_and_comes_once() -> None:
    for files in ({"a": b"", "a/b": b""}, {"a/b": b"", "a": b""}, {"a": b"", "a/": b""}):
        with pytest.raises(InvalidKey, match="at once"):
            read("zip", zipped(files))
    with pytest.raises(InvalidRequest, match="twice"):
        read("tar", tar({"./a": b"", "a": b""}))


def test_a_zip_of_ours_is_read_by_java_while_it_streams(tmp_path: Path) -> None:
    if shutil.which("javac") is None:
        pytest.skip("there is no javac here to compile the reader")
    (tmp_path / "Streaming.java").write_text(
        """
        import java.util.zip.*;
        public class Streaming {
            public static void main(String[] arguments) throws Exception {
                ZipInputStream in = new ZipInputStream(System.in);
                for (ZipEntry e; (e = in.getNextEntry()) != null; ) {
                    CRC32 crc = new CRC32();
                    crc.update(in.readAllBytes());
                    System.out.println(Long.toHexString(crc.getValue()) + " " + e.getName().length());
                }
            }
        }
        """
    )
    done = subprocess.run(
        ["java", str(tmp_path / "Streaming.java")],
        input=packed(FILES, pack_zip),
        capture_output=True,
        check=True,
    )
    expected = [f"{zlib.crc32(data):x} {len(name)}" for name, data in FILES.items()]
    assert done.stdout.decode().splitlines() == expected


def test_any_range_of_our_tar_is_that_of_the_whole() -> None:
    files = {"a": b"x" * 700, "long/" * 30 + "name": b"", "b": b"y" * 512, "c": b"z"}
    whole = whole_tar(files)
    assert len(whole) == tar_size([(name, len(data)) for name, data in files.items()], WRITTEN)
    for start in range(0, len(whole), 97):
        for length in (1, 511, 513, 3000):
            stop = min(start + length, len(whole))
            assert packed(files, pack_tar, start, stop) == whole[start:stop], (start, stop)
