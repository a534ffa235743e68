"""What an archive becomes: one product under its name, whole, with its files at its top; or nothing."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from admin_api.errors import (
    Busy,
    DigestMismatch,
    Forbidden,
    InvalidArchive,
    InvalidKey,
    InvalidRequest,
    ManifestMismatch,
    SizeMismatch,
    SourceDenied,
    TooLarge,
)
from admin_api.services import ingest, uploads
from admin_api.services.access import Principal, Scope
from admin_api.services.facility import Facility
from admin_api.services.listing import get_product
from admin_api.services.retrieval import archive as packed_product
from admin_api.services.sources import SourceFile
from admin_api.services.spool import Spool
from admin_api.services.unpacking import receive_archive
from admin_api.services.wishes import Expected, Level, Outcome, Wish
from tests.conftest import make_facility
from tests.generator import make_s1
from tests.unit.test_archives import tar, zipped

NAME = "S1B_IW_GRDH_1SDV_20210401T102923_20210401T102948_026269_032297_FEA8.SAFE"
OTHER = "S2A_MSIL2A_20250415T094041_N0511_R036_T35VLC_20250415T155631.SAFE"
PACK: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "zip": zipped,
    "tar": tar,
    "tar.gz": lambda files: gzip.compress(tar(files)),
}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Facility]:
    made = make_facility(tmp_path, {"type": "posix", "root": tmp_path / "store"})
    yield made
    made.catalog.close()


def send(
    facility: Facility, who: Principal, name: str, kind: str, data: bytes, **wish: object
) -> Outcome:
    chunks = (data[at : at + 5000] for at in range(0, len(data), 5000))
    return uploads.receive(
        facility, who, Wish(name=name, **wish), chunks, Expected(size=len(data)), kind
    )


def by_reference(facility: Facility, who: Principal, path: Path, data: bytes, **order: object):
    path.write_bytes(data)
    wanted = ingest.Order(source=path.as_uri(), unpack=True, **order)
    return ingest.ingest(facility, who, Wish(name=""), wanted)


def left(directory: Path) -> list[Path]:
    """Every file of the store but those that a facility itself keeps at its top."""
    found = (directory / "store").rglob("*")
    return [path for path in found if path.is_file() and ".products" not in path.parts]


def stored(facility: Facility, who: Principal, outcome: Outcome) -> dict[str, bytes]:
    product, files = get_product(facility, who, outcome.product.id)
    return {file.path: b"".join(facility.storage.open(file.key)) for file in files}


@pytest.mark.parametrize("kind", PACK)
def test_a_product_that_lies_deeper_is_found_and_one_beside_other_files_is_refused(
    here: Facility, operator: Principal, kind: str
) -> None:
    files = {"manifest.safe": b"m", "measurement/a.tiff": b"a"}
    deeper = {f"my/orders/{NAME}/{path}": content for path, content in files.items()}
    outcome = send(here, operator, "orders", kind, PACK[kind](deeper))
    assert outcome.product.name == NAME
    assert stored(here, operator, outcome) == files
    for beside in ({"my/readme": b"x", **deeper}, {**deeper, "my/readme": b"x"}):
        with pytest.raises(InvalidArchive, match="outside of that folder"):
            send(here, operator, "others", kind, PACK[kind](beside))


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize(
    "given", [NAME, NAME[:-5], "download (1)", f"{NAME[:-5]} (1)", "S1B_latest"]
)
def test_the_single_top_folder_that_is_a_product_names_it(
    here: Facility, operator: Principal, tmp_path: Path, kind: str, given: str
) -> None:
    files = {"manifest.safe": b"m", "measurement/a.tiff": b"a" * 9000}
    data = PACK[kind]({f"{NAME}/{path}": content for path, content in files.items()})
    limited = Principal("s1", frozenset([Scope.INGEST, Scope.READ]), frozenset(["S1"]), "r")
    outcome = send(here, limited, given, kind, data)
    assert (outcome.product.name, outcome.product.mission) == (NAME, "S1")
    assert stored(here, operator, outcome) == files
    again = by_reference(here, operator, tmp_path / "inbox" / f"{given}.{kind}", data)
    assert (again.product.id, again.result) == (outcome.product.id, "skipped")


@pytest.mark.parametrize("kind", PACK)
def test_a_folder_that_names_a_product_of_another_mission_lets_nobody_in(
    here: Facility, tmp_path: Path, kind: str
) -> None:
    limited = Principal("s1", frozenset([Scope.INGEST]), frozenset(["S1"]), "r")
    for given, folder in (("download", OTHER), (OTHER[:-5], OTHER), ("download", "plain")):
        with pytest.raises(Forbidden):
            send(here, limited, given, kind, PACK[kind]({f"{folder}/a": b"1"}))
    assert not left(tmp_path)


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize(
    ("given", "paths"),
    [
        ("x", [f"{NAME}/a", "b"]),
        ("x", ["b", f"{NAME}/a"]),
        ("x", [f"{NAME}/a", f"{OTHER}/a"]),
        (NAME, [f"{NAME}/a", "readme"]),
        (NAME, ["readme", f"{NAME}/a"]),
        (NAME, [f"{OTHER}/a"]),
    ],
)
def test_an_archive_of_more_than_the_one_product_is_refused_whole(
    here: Facility, operator: Principal, tmp_path: Path, kind: str, given: str, paths: list[str]
) -> None:
    with pytest.raises(InvalidArchive, match="holds the product"):
        send(here, operator, given, kind, PACK[kind](dict.fromkeys(paths, b"1")))
    assert not left(tmp_path)


@pytest.mark.parametrize("kind", PACK)
def test_a_plain_folder_is_taken_off_only_if_it_has_the_given_name(
    here: Facility, operator: Principal, kind: str
) -> None:
    for given, path, kept in (
        ("plain", "plain/a", "a"),
        ("apart", "other/a", "other/a"),
        ("plain2.zarr", "plain2/a", "a"),
        ("plain3", "cube.zarr/0.0", "0.0"),
    ):
        outcome = send(here, operator, given, kind, PACK[kind]({path: b"1"}))
        assert list(stored(here, operator, outcome)) == [kept]


def test_a_damage_is_found_by_the_manifest_whatever_the_zip_is_called(
    here: Facility, operator: Principal, tmp_path: Path
) -> None:
    tree = make_s1(tmp_path / "made", seed=1)
    files = {
        f"{tree.name}/{path.relative_to(tree)}": path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file()
    }
    damaged = next(path for path in files if path.endswith(".tiff"))
    files[damaged] = files[damaged][:-1] + bytes([files[damaged][-1] ^ 1])
    with pytest.raises(ManifestMismatch):
        send(here, operator, tree.name[:-5], "zip", zipped(files), level=Level.MANIFEST)
    assert not left(tmp_path)


@pytest.mark.parametrize("kind", PACK)
def test_what_is_cut_off_leaves_nothing(
    here: Facility, operator: Principal, tmp_path: Path, kind: str
) -> None:
    data = PACK[kind]({f"p/{number}": os.urandom(3000) for number in range(9)})
    for length in (0, len(data) // 3, len(data) // 2, len(data) - 700, len(data) - 3):
        if kind == "tar" and length == len(data) - 3:
            continue  # zeros that fill the archive up
        for level in Level:
            with pytest.raises(InvalidArchive):
                send(here, operator, "p", kind, data[: max(length, 0)].rstrip(b"\0"), level=level)
    assert not left(tmp_path)


@pytest.mark.parametrize("kind", PACK)
def test_the_size_and_digest_of_an_archive_are_compared_by_every_way_in(
    here: Facility, operator: Principal, tmp_path: Path, kind: str
) -> None:
    data = PACK[kind]({"p/a": b"1"})
    right = Expected(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    for wrong, error in (
        (Expected(size=len(data) + 1), SizeMismatch),
        (Expected(sha256="0" * 64), DigestMismatch),
        (Expected(md5="0" * 32), DigestMismatch),
    ):
        with pytest.raises(error):
            uploads.receive(here, operator, Wish(name="p"), iter([data]), wrong, kind)
        with pytest.raises(error):
            by_reference(here, operator, tmp_path / "inbox" / f"p.{kind}", data, expected=wrong)
    assert not left(tmp_path)
    by_reference(here, operator, tmp_path / "inbox" / f"p.{kind}", data, expected=right)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_what_is_handed_out_comes_in_again_byte_by_byte(
    here: Facility, operator: Principal, kind: str
) -> None:
    files = {"one/empty": b"", "one/deep/er/a": os.urandom(200_000), "one/b": b"b"}
    made = send(here, operator, "one", "tar", tar(files))
    whole = packed_product(here, operator, made.product.id, kind)
    chunks = whole.read(0, whole.size or 0)
    again = send(here, operator, "one", kind, b"".join(chunks))
    assert (again.result, again.product.list_digest) == ("skipped", made.product.list_digest)


def test_zips_that_are_sent_share_a_bounded_space(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1000)
    with pytest.raises(TooLarge, match="as tar"), spool.spooled([], 1001):
        pass
    with pytest.raises(TooLarge, match="by reference"), spool.spooled([b"x" * 600] * 2, None):
        pass
    with spool.spooled([b"abc" * 200], 600) as (size, read_at):
        assert (size, b"".join(read_at(1, 599))) == (600, (b"abc" * 200)[1:599])
        assert not list(tmp_path.iterdir())  # it has no name: a crash leaves nothing
        with pytest.raises(Busy), spool.spooled([b"x" * 500], None):
            pass
    with spool.spooled([b"x" * 900], None) as (size, _):
        assert size == 900


def test_a_zip_that_can_only_be_read_from_its_beginning_is_read_all_the_same(
    here: Facility, operator: Principal
) -> None:
    source = SourceFile("p.zip", None, lambda: iter([zipped({"p/a": b"1"}, pipe=True)]))
    outcome = receive_archive(here, operator, Wish(name="p"), "zip", source, Expected())
    assert stored(here, operator, outcome) == {"a": b"1"}


@pytest.mark.parametrize("kind", PACK)
def test_an_archive_without_a_file_is_no_product(
    here: Facility, operator: Principal, kind: str
) -> None:
    with pytest.raises(InvalidRequest, match="at least one file"):
        send(here, operator, "p", kind, PACK[kind]({}))


def test_links_and_names_that_are_not_utf8_are_refused_in_a_tree_by_reference(
    here: Facility, operator: Principal, tmp_path: Path
) -> None:
    for case, (make, error) in {
        "broken link": (lambda tree: (tree / "a" / "l").symlink_to("nothing"), SourceDenied),
        "folder link": (lambda tree: (tree / "l").symlink_to(tree / "a"), SourceDenied),
        "no UTF-8": (
            lambda tree: Path(os.fsdecode(os.fsencode(tree) + b"/l\xff")).write_bytes(b"1"),
            InvalidKey,
        ),
    }.items():
        tree = tmp_path / "inbox" / f"{case}.SAFE"
        (tree / "a").mkdir(parents=True)
        (tree / "a" / "file").write_bytes(b"1")
        make(tree)
        with pytest.raises(error, match="l"):
            ingest.ingest(here, operator, Wish(name=""), ingest.Order(source=tree.as_uri()))
    assert not left(tmp_path)
    tarred = tar({"p/l\udcff": b"1"}, 1)  # the same by archive
    with pytest.raises(InvalidKey):
        send(here, operator, "p", "tar", tarred)
