"""Searching for products: what is one, and that a search goes on where it stopped."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

import pytest

from admin_api.services import scans
from admin_api.services.scans import Candidate
from tests.conftest import make_facility

KEYS = [
    "2021/A.SAFE-1.txt",
    "2021/A.SAFE.zip",
    "2021/A.SAFE/manifest.safe",
    "2021/A.SAFE/measurement/a.tiff",
    "2021/A.SAFE0.txt",
    "2021/B.zarr/.zattrs",
    "2021/B.zarr/x/0.0",
    "C.SEN3/inner.SAFE/x",
    "S5P_OFFL_L2__NO2____20210401T000000_20210401T010000_1_01_010108_20210401T020000.nc",
    "z/\u00e4 b?.txt",
]
FOUND = [
    "2021/A.SAFE",
    "2021/A.SAFE-1.txt",
    "2021/A.SAFE.zip",
    "2021/A.SAFE0.txt",
    "2021/B.zarr",
    "C.SEN3",
    KEYS[8],
    KEYS[9],
]


@pytest.fixture
def source(tmp_path: Path):
    facility = make_facility(tmp_path, {"type": "posix", "root": tmp_path / "store"})
    for key in KEYS:
        path = tmp_path / "inbox" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    yield facility, tmp_path / "inbox"
    facility.catalog.close()


def _paths(found: list[Candidate]) -> list[str]:
    return [candidate.path for candidate in found]


def test_trees_are_one_product_each_and_other_files_their_own(source) -> None:
    facility, inbox = source
    found = list(scans._in_directory(facility, inbox.as_uri(), None))
    assert sorted(_paths(found)) == sorted(FOUND)
    products = {candidate.path for candidate in found if candidate.is_product}
    assert products == {"2021/A.SAFE", "2021/B.zarr", "C.SEN3", KEYS[8]}
    for candidate in found:
        assert unquote(candidate.uri) == f"file://{inbox}/{candidate.path}"
    single = list(scans._in_directory(facility, (inbox / "2021/A.SAFE").as_uri(), None))
    assert [(found.path, found.is_product) for found in single] == [("A.SAFE", True)]


def test_a_search_of_a_directory_goes_on_behind_every_place(source) -> None:
    facility, inbox = source
    found = list(scans._in_directory(facility, inbox.as_uri(), None))
    for count, candidate in enumerate(found, start=1):
        rest = list(scans._in_directory(facility, inbox.as_uri(), candidate.place))
        assert _paths(rest) == _paths(found)[count:]


def test_a_search_of_a_listing_goes_on_behind_every_place() -> None:
    keys = sorted(KEYS, key=str.encode)

    def listed(after: str) -> list[Candidate]:
        rest = ((key, 1) for key in keys if key.encode() > after.encode())
        return list(scans._grouped(rest, lambda path: path))

    found = listed("")
    assert sorted(_paths(found)) == sorted(FOUND)
    for count, candidate in enumerate(found, start=1):
        assert _paths(listed(unquote(candidate.place))) == _paths(found)[count:]


def test_a_name_that_is_not_utf8_and_a_link_are_told_and_passed_over(source) -> None:
    facility, inbox = source
    Path(os.fsdecode(os.fsencode(inbox) + b"/bad-\xff.nc")).write_text("x")
    (inbox / "link").symlink_to("C.SEN3")
    found = {item.path: item for item in scans._in_directory(facility, inbox.as_uri(), None)}
    assert found["bad-\\xff.nc"].problem is not None
    assert found["link"].problem is not None
    for candidate in found.values():
        rest = scans._in_directory(facility, inbox.as_uri(), candidate.place)
        assert candidate.path not in _paths(list(rest))


def test_a_source_that_is_a_file_itself_is_its_one_product(source) -> None:
    facility, inbox = source
    uri = (inbox / KEYS[8]).as_uri()
    [found] = scans._in_directory(facility, uri, None)
    assert (found.path, unquote(found.uri), found.is_product) == (KEYS[8], unquote(uri), True)
    assert not list(scans._in_directory(facility, uri, found.place))


def test_a_prefix_that_is_called_as_a_product_or_is_an_object_itself_is_one_product() -> None:
    beneath = [Candidate("manifest.safe", "manifest.safe", "s3://b/A.SAFE/manifest.safe", False)]
    uri = "s3://b/2021/A.SAFE"
    [tree] = scans._or_itself(iter(beneath), "2021/A.SAFE", uri, None)
    assert (tree.path, tree.uri, tree.is_product) == ("A.SAFE", uri, True)
    [single] = scans._or_itself(iter([]), "2021/a.txt", "s3://b/2021/a.txt", None)
    assert (single.path, single.is_product) == ("a.txt", False)
    assert list(scans._or_itself(iter(beneath), "2021", "s3://b/2021", None)) == beneath
    for found, key in ((beneath, "2021/A.SAFE"), ([], "2021/a.txt")):
        assert not list(scans._or_itself(iter(found), key, f"s3://b/{key}", single.place))
    # A bucket without anything has nothing to be one product.
    assert not list(scans._or_itself(iter([]), "", "s3://b", None))
