"""Names, manifests, digests and records."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admin_api.errors import InvalidKey, ManifestMismatch
from admin_api.keys import check_key, check_part, escape
from admin_api.products.digests import Digester, FileDigest, crc16, list_digest
from admin_api.products.manifests import compare, parse_manifest
from admin_api.products.names import check_id, check_name, directory_of, parse_name
from tests.generator import make_s1, make_s2, make_s3

S1 = "S1B_IW_GRDH_1SDV_20210401T052623_20210401T052648_026269_032297_ECC8.SAFE"
S2 = "S2A_MSIL1C_20210403T101021_N0300_R022_T33TUM_20210403T110551.SAFE"
S3 = (
    "S3B_SL_1_RBT____20190116T050535_20190116T050835_20190117T125958_"
    "0179_021_048_0000_LN2_O_NT_003.SEN3"
)
S5P = "S5P_OFFL_L2__HCHO___20200328T053329_20200328T071459_12724_01_010108_20200330T103521.nc"
TEMPLATES = ("{mission}/{type}/{yyyy}/{mm}/{dd}/{name}", "unsorted/{name}")


@pytest.mark.parametrize(
    ("name", "mission", "kind", "directory"),
    [
        (S1, "S1", "IW_GRDH_1S", f"S1/IW_GRDH_1S/2021/04/01/{S1}"),
        (S2, "S2", "MSIL1C", f"S2/MSIL1C/2021/04/03/{S2}"),
        (S3, "S3", "SL_1_RBT___", f"S3/SL_1_RBT___/2019/01/16/{S3}"),
        (S5P, "S5P", "L2__HCHO__", f"S5P/L2__HCHO__/2020/03/28/{S5P}"),
        (S5P[:-3] + ".HDR", "S5P", "L2__HCHO__", f"S5P/L2__HCHO__/2020/03/28/{S5P[:-3]}.HDR"),
    ],
)
def test_sentinel_names_are_parsed_and_padding_is_kept(
    name: str, mission: str, kind: str, directory: str
) -> None:
    parsed = parse_name(name)
    assert parsed is not None
    assert (parsed.mission, parsed.product_type) == (mission, kind)
    assert directory_of(name, *TEMPLATES) == directory
    assert check_key(directory) == directory


def test_sensing_times_are_utc() -> None:
    parsed = parse_name(S1)
    assert parsed is not None
    assert parsed.sensing_start == datetime(2021, 4, 1, 5, 26, 23, tzinfo=UTC)
    assert parsed.sensing_stop == datetime(2021, 4, 1, 5, 26, 48, tzinfo=UTC)
    assert parsed.crc == "ECC8"


@pytest.mark.parametrize(
    "name", ["aux.xml", S1.lower(), S1.replace("0401T", "0431T"), S1 + "x", "x" + S2, S3[:-5]]
)
def test_not_knowing_a_name_is_no_error(name: str) -> None:
    assert parse_name(name) is None
    assert directory_of(name, *TEMPLATES) == f"unsorted/{name}"


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_not_known_and_never_breaks(name: str) -> None:
    parse_name(name)


@given(st.text(max_size=300))
def test_a_name_that_is_accepted_makes_a_key_that_stays_beneath_its_directory(name: str) -> None:
    try:
        check_name(name)
        key = check_key(f"unsorted/{name}/file")
    except InvalidKey:
        return
    assert key.split("/") == ["unsorted", name, "file"]
    assert name not in ("", ".", "..")
    assert not set(name) & set("/\\?\0\n\r")
    assert len(name.encode()) <= 255


@given(st.text(min_size=1, max_size=60))
def test_escaping_is_reversible_and_keeps_the_grammar(name: str) -> None:
    from urllib.parse import unquote

    try:
        escaped = escape(name)
    except UnicodeEncodeError:
        return
    assert unquote(escaped) == name
    if "/" not in name and name not in (".", "..") and len(escaped.encode()) <= 255:
        check_part(escaped)


@pytest.mark.parametrize("name", ["a/b", "..", ".products", "x@2", "n" * 241, "a\u0085b", "a?b"])
def test_names_that_could_be_mistaken_are_refused(name: str) -> None:
    with pytest.raises(InvalidKey):
        check_name(name)


@pytest.mark.parametrize("product_id", ["", "-x", "a/b", "a b", "x" * 129, "\u00e9"])
def test_ids_of_clients_keep_their_grammar(product_id: str) -> None:
    with pytest.raises(InvalidKey):
        check_id(product_id)
    assert check_id("4711-a.b:c_D") == "4711-a.b:c_D"


def _digests(tree: Path) -> dict[str, FileDigest]:
    found = {}
    for path in tree.rglob("*"):
        if path.is_file():
            digester = Digester()
            digester.update(path.read_bytes())
            found[path.relative_to(tree).as_posix()] = digester.result()
    return found


def _no_other(path: str, algorithm: str) -> str:
    raise ValueError(algorithm)


@pytest.mark.parametrize("make", [make_s1, make_s2, make_s3])
def test_generated_trees_are_what_their_manifests_say(make, tmp_path: Path) -> None:
    tree = make(tmp_path)
    assert parse_name(tree.name) is not None
    manifest = next(tree.glob("*manifest*"))
    report = compare(tree.name, manifest.read_bytes(), _digests(tree), _no_other)
    assert report.passed
    assert report.entries == len(report.right) == len(_digests(tree)) - 1


def test_every_wrong_and_every_missing_entry_is_named(tmp_path: Path) -> None:
    tree = make_s1(tmp_path)
    (tree / "support/s1-level-1-product.xsd").unlink()
    measurement = next((tree / "measurement").iterdir())
    measurement.write_bytes(measurement.read_bytes()[:-1] + b"\0")
    report = compare(tree.name, (tree / "manifest.safe").read_bytes(), _digests(tree), _no_other)
    assert report.missing == ["support/s1-level-1-product.xsd"]
    assert [wrong.path for wrong in report.wrong] == [f"measurement/{measurement.name}"]
    assert not report.passed


def test_a_manifest_that_was_changed_does_not_fit_its_name(tmp_path: Path) -> None:
    tree = make_s1(tmp_path)
    changed = (tree / "manifest.safe").read_bytes() + b"\n"
    report = compare(tree.name, changed, _digests(tree), _no_other)
    assert (report.wrong, report.missing, report.passed) == ([], [], False)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (b"", "not well-formed"),
        (b"<a><b></a>", "line 1"),
        (b"<a/>", "names no files"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "document type"),
        (b"\xff\xfe\x00", "not well-formed"),
    ],
)
def test_what_is_no_manifest_is_told_with_its_place(manifest: bytes, said: str) -> None:
    with pytest.raises(ManifestMismatch, match=said):
        parse_manifest(manifest)


@pytest.mark.parametrize(
    ("name", "right", "wrong", "missing"),
    [("ECC8", 2, 1, 8), ("8152", 2, 1, 40), ("39FD", 0, 0, 11)],
)
def test_the_real_samples_have_the_known_differences(
    samples: Path, name: str, right: int, wrong: int, missing: int
) -> None:
    tree = next(samples.glob(f"*_{name}.SAFE"))
    report = compare(tree.name, (tree / "manifest.safe").read_bytes(), _digests(tree), _no_other)
    assert (len(report.right), len(report.wrong), len(report.missing)) == (right, wrong, missing)
    assert report.crc_found == report.crc_expected == name


@given(st.lists(st.binary(max_size=300_000), max_size=6))
def test_digests_do_not_depend_on_how_the_bytes_are_cut(chunks: list[bytes]) -> None:
    digester = Digester()
    assert b"".join(digester.through(chunks)) == b"".join(chunks)
    data = b"".join(chunks)
    assert digester.result() == FileDigest(
        len(data), hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest()
    )


def test_the_crc_is_that_of_the_specification() -> None:
    assert crc16(b"123456789") == "29B1"  # the check value of CRC-16/CCITT-FALSE


def test_list_digests_tell_apart_what_could_be_joined_alike() -> None:
    assert list_digest([("a", 1, "b")]) == list_digest([("a", 1, "b")])
    assert list_digest([("a", 11, "b")]) != list_digest([("a1", 1, "b")])
    assert list_digest([("a", 1, "x"), ("b", 2, "y")]) == list_digest(
        [("b", 2, "y"), ("a", 1, "x")]
    )
