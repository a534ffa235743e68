"""Names, manifests, digests and records."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admin_api.errors import InvalidKey, ManifestMismatch
from admin_api.keys import check_key, check_part, escape
from admin_api.products.digests import (
    ALGORITHMS,
    Digester,
    FileDigest,
    algorithm_named,
    crc16,
    hasher,
    list_digest,
)
from admin_api.products.manifests import Report, compare, find_manifest, parse_manifest
from admin_api.products.names import check_id, check_name, directory_of, is_tree, parse_name
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


# Name -> mission, type, begin and end of sensing or validity (None: the name does not tell).
REAL_NAMES = {
    # Sentinel-1: level 0 with its annotations, housekeeping and AIS; OCN, ETAD, COG; without .SAFE
    "S1A_IW_RAW__0SDH_20240410T075338_20240410T075451_053368_0678E5_F66E.SAFE": (
        ("S1", "IW_RAW__0S", "2024-04-10T07:53:38", "2024-04-10T07:54:51")
    ),
    "S1A_IW_RAW__0ADV_20171213T121123_20171213T121947_019684_021735_51B2.SAFE": (
        ("S1", "IW_RAW__0A", "2017-12-13T12:11:23", "2017-12-13T12:19:47")
    ),
    "S1A_GP_RAW__0____20240410T031915_20240410T083701_053366________6A58.SAFE": (
        ("S1", "GP_RAW__0_", "2024-04-10T03:19:15", "2024-04-10T08:37:01")
    ),
    "S1C_AI_RAW__0____20220531T155630_20220531T155744_000016________2D48.SAFE": (
        ("S1", "AI_RAW__0_", "2022-05-31T15:56:30", "2022-05-31T15:57:44")
    ),
    "S1A_WV_OCN__2SSV_20210402T000000_20210402T003000_037271_046407_39FD.SAFE": (
        ("S1", "WV_OCN__2S", "2021-04-02T00:00:00", "2021-04-02T00:30:00")
    ),
    "S1A_IW_ETA__AXDV_20200103T170700_20200103T170727_030639_0382D5_256B.SAFE": (
        ("S1", "IW_ETA__AX", "2020-01-03T17:07:00", "2020-01-03T17:07:27")
    ),
    "S1A_IW_GRDH_1SDV_20240820T003107_20240820T003132_055289_06BD9B_5392_COG.SAFE": (
        ("S1", "IW_GRDH_1S", "2024-08-20T00:31:07", "2024-08-20T00:31:32")
    ),
    S1.removesuffix(".SAFE"): ("S1", "IW_GRDH_1S", "2021-04-01T05:26:23", "2021-04-01T05:26:48"),
    "S1A_AUX_CAL_V20190228T092500_G20210104T141310.SAFE": (
        ("S1", "AUX_CAL", "2019-02-28T09:25:00", "2019-02-28T09:25:00")
    ),
    "S1C_AISAUX_20241208T055101_20241208T055110_260C.SAFE.zip": (
        ("S1", "AISAUX", "2024-12-08T05:51:01", "2024-12-08T05:51:10")
    ),
    "S1A_OPER_AUX_POEORB_OPOD_20240524T070448_V20240503T225942_20240505T005942.EOF": (
        ("S1", "AUX_POEORB", "2024-05-03T22:59:42", "2024-05-05T00:59:42")
    ),
    "S1_136231_IW2_20200604T022312_VV_7C85-BURST": ("S1", None, None, None),
    # Sentinel-2: compact, as Zarr, before compact names, tiles and datastrips, GIPP, auxiliary
    "S2A_MSIL2A_20250415T094041_N0511_R036_T35VLC_20250415T155631.zarr": (
        ("S2", "MSIL2A", "2025-04-15T09:40:41", "2025-04-15T09:40:41")
    ),
    "S2A_OPER_PRD_MSIL1C_PDMC_20160607T044353_R136_V20160606T094258_20160606T094258.SAFE": (
        ("S2", "PRD_MSIL1C", "2016-06-06T09:42:58", "2016-06-06T09:42:58")
    ),
    "S2A_OPER_MSI_L1C_TL_SGS__20151024T023555_A001758_T53JLJ_N01.04": (
        ("S2", "MSI_L1C_TL", None, None)
    ),
    "S2A_OPER_MSI_L0__DS_2BPS_20221223T230531_S20221223T220352_N05.09": (
        ("S2", "MSI_L0__DS", "2022-12-23T22:03:52", "2022-12-23T22:03:52")
    ),
    "S2A_OPER_GIP_TILPAR_MPC__20151209T095117_V20150622T000000_21000101T000000_B00.kml": (
        ("S2", "GIP_TILPAR", "2015-06-22T00:00:00", "2100-01-01T00:00:00")
    ),
    "S2__OPER_AUX_ECMWFD_ADG__20240116T000000_V20240116T090000_20240118T030000.TGZ": (
        ("S2", "AUX_ECMWFD", "2024-01-16T09:00:00", "2024-01-18T03:00:00")
    ),
    "S2__OPER_AUX_REFDE2_31TFJ____0001.DBL.DIR": ("S2", "AUX_REFDE2", None, None),
    # Sentinel-3: auxiliary, orbit scenario, housekeeping, precise orbit
    "S3__AX___CLM_AX_20000101T000000_20991231T235959_20151214T120000___________________"
    "MPC_O_AL_001.SEN3": ("S3", "AX___CLM_AX", "2000-01-01T00:00:00", "2099-12-31T23:59:59"),
    "S3A_OPER_MPL_ORBSCT_20160216T192404_99999999T999999_0006.EOF": (
        ("S3", "MPL_ORBSCT", "2016-02-16T19:24:04", "9999-12-31T00:00:00")
    ),
    "S3A_OPER__HK__RAW___20260402T064733_20260402T065339_O52724_0001.TGZ": (
        ("S3", "_HK__RAW__", "2026-04-02T06:47:33", "2026-04-02T06:53:39")
    ),
    "S3A_OPER_AUX_POEORB_POD__20220403T071637_V20220308T215942_20220309T235942_DGNS.EOF.zip": (
        ("S3", "AUX_POEORB", "2022-03-08T21:59:42", "2022-03-09T23:59:42")
    ),
    # Sentinel-5P: level 0 and 1B, reprocessed by PAL, auxiliary data valid for ever
    "S5P_OPER_L0__SAT_A__20220701T051131_20220701T053148_24429_05.RAW": (
        ("S5P", "L0__SAT_A_", "2022-07-01T05:11:31", "2022-07-01T05:31:48")
    ),
    "S5P_OFFL_L1B_IR_SIR_20171115T103323_20171115T121452_00469_01_001200_20171115T143947.nc": (
        ("S5P", "L1B_IR_SIR", "2017-11-15T10:33:23", "2017-11-15T12:14:52")
    ),
    "S5P_PAL__L2__NO2____20210323T011843_20210323T030013_17829_01_020301_20211112T094255.nc": (
        ("S5P", "L2__NO2___", "2021-03-23T01:18:43", "2021-03-23T03:00:13")
    ),
    "S5P_OPER_AUX_CTMANA_20190623T000000_20190624T000000_20221224T013458.nc": (
        ("S5P", "AUX_CTMANA", "2019-06-23T00:00:00", "2019-06-24T00:00:00")
    ),
    "S5P_OPER_AUX_SF_UVN_00000101T000000_99991231T235959_20180320T084215.nc": (
        ("S5P", "AUX_SF_UVN", None, "9999-12-31T00:00:00")
    ),
    # Sentinel-6: product, a file of one, another handed out alone
    "S6A_P4_2__LR______20240501T152036_20240501T165910_20240501T171410_5914_128_043_022_"
    "EUM__OPE_NR_F09.SEN6": ("S6", "P4_2__LR_____", "2024-05-01T15:20:36", "2024-05-01T16:59:10"),
    "S6A_P4_2__LR_STD__NR_077_039_20221212T181728_20221212T182728_F07.nc": (
        ("S6", "P4_2__LR_STD_", "2022-12-12T18:17:28", "2022-12-12T18:27:28")
    ),
    "S6A_P4_1B_HR______20211120T051224_20211120T060836_20220430T212619_3372_038_018_009_"
    "EUM__REP_NT_F06.nc": ("S6", "P4_1B_HR_____", "2021-11-20T05:12:24", "2021-11-20T06:08:36"),
    # EOPF
    "S01SIWGRD_20250319T002519_0024_A019__205.zarr": (
        ("S1", "S01SIWGRD", "2025-03-19T00:25:19", "2025-03-19T00:25:43")
    ),
    "S02MSIL1C_20240428T102559_0000_B108_T781.zarr": (
        ("S2", "S02MSIL1C", "2024-04-28T10:25:59", "2024-04-28T10:25:59")
    ),
    "S03OLCEFR_20250416T063751_0180_B248_T893_.zarr": (
        ("S3", "S03OLCEFR", "2025-04-16T06:37:51", "2025-04-16T06:40:51")
    ),
    "S03__ADF_SLSBD_20160216T000000_20991231T235959_20231102T155016.zarr": (
        ("S3", "ADF_SLSBD", "2016-02-16T00:00:00", "2099-12-31T23:59:59")
    ),
}


@pytest.mark.parametrize("name", REAL_NAMES)
def test_a_real_name_of_every_form_tells_what_it_holds(name: str) -> None:
    mission, kind, start, stop = REAL_NAMES[name]
    parsed = parse_name(name)
    assert parsed is not None
    assert (parsed.mission, parsed.product_type) == (mission, kind)
    assert parsed.sensing_start == (start and datetime.fromisoformat(f"{start}+00:00"))
    assert parsed.sensing_stop == (stop and datetime.fromisoformat(f"{stop}+00:00"))
    directory = directory_of(check_name(name), *TEMPLATES)
    if start:
        assert directory == f"{mission}/{kind}/{start[:10].replace('-', '/')}/{name}"
    else:
        assert directory == f"unsorted/{name}"


def test_a_crc_is_told_only_where_the_name_ends_in_that_of_its_own_manifest() -> None:
    for name in (S1, S1.removesuffix(".SAFE")):
        parsed = parse_name(name)
        assert parsed is not None
        assert parsed.crc == "ECC8"
    made_of_it = parse_name(S1.replace(".SAFE", "_COG.SAFE"))
    assert made_of_it is not None
    assert made_of_it.crc is None


@pytest.mark.parametrize(
    "name", ["aux.xml", S1.lower(), "x" + S2, "S1Anything", "S10A_x", "S1A_", "S1A", "S9A_x", "S3"]
)
def test_not_knowing_a_name_is_no_error(name: str) -> None:
    assert parse_name(name) is None
    assert directory_of(name, *TEMPLATES) == f"unsorted/{name}"


@pytest.mark.parametrize("name", [S1.replace("0401T", "0431T"), "S2B_new_kind.xml", "S03__ADF_new"])
def test_of_a_name_of_no_known_form_the_platform_still_tells_the_mission(name: str) -> None:
    parsed = parse_name(name)
    assert parsed is not None
    assert parsed.mission in ("S1", "S2", "S3")
    assert (parsed.product_type, parsed.sensing_start, parsed.sensing_stop) == (None, None, None)
    assert directory_of(name, *TEMPLATES) == f"unsorted/{name}"


def test_directories_that_are_products_are_known_by_their_suffix() -> None:
    assert all(map(is_tree, [S1, S3, "x.SEN6", "S01SIWGRD_x.zarr", "x.safe"]))
    assert not any(map(is_tree, [S5P, "incoming", "x.EOF", "x.SAFE.zip"]))


@given(
    st.from_regex(
        r"(S[0-9][0-9A-D_]|S5P)_[A-Z0-9_]{0,12}_?V?[0-9]{8}T[0-9]{6}_[0-9]{8}T[0-9]{6}[.\w]*",
        fullmatch=True,
    )
)
def test_whatever_times_a_name_holds_it_is_parsed_and_makes_a_key(name: str) -> None:
    check_key(directory_of(name, *TEMPLATES))


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


def _no_other(path: str, algorithms: Collection[str]) -> dict[str, str]:
    raise AssertionError((path, algorithms))


def _compared(tree: Path) -> Report:
    manifest = next(tree.glob("*manifest*"))
    return compare(tree.name, manifest.name, manifest.read_bytes(), _digests(tree), _no_other)


@pytest.mark.parametrize("make", [make_s1, make_s2, make_s3])
def test_generated_trees_are_what_their_manifests_say(make, tmp_path: Path) -> None:
    tree = make(tmp_path)
    assert parse_name(tree.name) is not None
    report = _compared(tree)
    assert report.passed
    assert report.entries == len(report.right) == len(_digests(tree)) - 1


def test_every_wrong_and_every_missing_entry_is_named(tmp_path: Path) -> None:
    tree = make_s1(tmp_path)
    (tree / "support/s1-level-1-product.xsd").unlink()
    measurement = next((tree / "measurement").iterdir())
    measurement.write_bytes(measurement.read_bytes()[:-1] + b"\0")
    report = _compared(tree)
    assert report.missing == ["support/s1-level-1-product.xsd"]
    assert [wrong.path for wrong in report.wrong] == [f"measurement/{measurement.name}"]
    assert not report.passed


def test_a_manifest_that_was_changed_does_not_fit_its_name(tmp_path: Path) -> None:
    tree = make_s1(tmp_path)
    with (tree / "manifest.safe").open("ab") as file:
        file.write(b"\n")
    report = _compared(tree)
    assert (report.wrong, report.missing, report.passed) == ([], [], False)
    with pytest.raises(ManifestMismatch, match="the CRC of manifest.safe is"):
        report.require_passed()


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (b"", "not well-formed"),
        (b"<a><b></a>", "line 1"),
        (b"<a/>", "names no files"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "document type"),
        (b"\xff\xfe\x00", "not well-formed"),
        (b'<?xml version="1.0" encoding="x-unheard-of"?><a/>', "encoding that cannot be read"),
        (b'<?xml version="1.0" encoding="big5"?><a/>', "encoding that cannot be read"),
        (b'<?xml version="1.0" encoding="zlib"?><a/>', "encoding that cannot be read"),
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
    report = _compared(tree)
    assert (len(report.right), len(report.wrong), len(report.missing)) == (right, wrong, missing)
    assert report.crc_found == report.crc_expected == name


def _digest(data: bytes) -> FileDigest:
    digester = Digester()
    digester.update(data)
    return digester.result()


def _checked(
    files: dict[str, bytes], *entries: tuple[str, str, str, str], name: str = "x.SAFE"
) -> Report:
    """Files compared with a manifest of (href, size, algorithm, checksum)."""
    objects = "".join(
        f'<byteStream size="{size}"><fileLocation href="{href}"/>'
        f'<checksum checksumName="{algorithm}">{checksum}</checksum></byteStream>'
        for href, size, algorithm, checksum in entries
    )

    def digests_of(path: str, algorithms: Collection[str]) -> dict[str, str]:
        assert path not in read, f"{path} is read twice"
        read.append(path)
        found = {}
        for algorithm in algorithms:
            computed = hasher(algorithm)
            computed.update(files[path])
            found[algorithm] = computed.hexdigest()
        return found

    read: list[str] = []
    digests = {path: _digest(data) for path, data in files.items()}
    return compare(name, "manifest.safe", f"<m>{objects}</m>".encode(), digests, digests_of)


@pytest.mark.parametrize(
    ("spelling", "algorithm"),
    [
        *[("MD5", "md5"), ("md5", "md5"), ("SHA-1", "sha1"), ("SHA1", "sha1"), ("SHA", "sha1")],
        *[(text, "sha256") for text in ("SHA256", "SHA-256", "sha_256", "SHA2-256", " Sha-256 ")],
        *[(text, "sha3_256") for text in ("SHA3-256", "SHA-3-256", "sha3_256", "SHA3_256")],
        *[("SHA512", "sha512"), ("SHA-384", "sha384"), ("SHA3-512", "sha3_512")],
        *[("BLAKE2b", "blake2b"), ("BLAKE2B-512", "blake2b"), ("blake2s256", "blake2s")],
        *[("CRC32", "crc32"), ("CRC-32", "crc32"), ("BLAKE3", "blake3"), ("Blake-3", "blake3")],
    ],
)
def test_every_usual_spelling_of_an_algorithm_is_understood(spelling: str, algorithm: str) -> None:
    assert algorithm_named(spelling) == algorithm
    digest = hasher(algorithm)
    digest.update(b"data")
    report = _checked({"a": b"data"}, ("a", "4", spelling, digest.hexdigest().upper()))
    assert report.right == ["a"]
    assert _checked({"a": b"xxxx"}, ("a", "4", spelling, digest.hexdigest())).wrong


@pytest.mark.parametrize("spelling", ["shake_128", "SHAKE256", "whirlpool", "", "md5 " * 3000])
def test_an_algorithm_that_is_not_known_is_named_with_the_file(spelling: str) -> None:
    report = _checked({"dir/a": b"data"}, ("dir/a", "4", spelling, "00" * 16))
    with pytest.raises(ManifestMismatch, match=r"'dir/a'.*is not known here") as raised:
        report.require_passed()
    assert f"'{spelling[:20]}" in raised.value.detail
    assert len(raised.value.detail) < 1000


def test_other_digests_are_computed_in_the_same_pass() -> None:
    digester = Digester(ALGORITHMS)
    data = b"x" * 300_000
    assert b"".join(digester.through([data, data])) == 2 * data
    others = digester.others()
    assert others["sha3_256"] == hashlib.sha3_256(2 * data).hexdigest()
    assert (others["sha256"], others["md5"]) == (digester.result().sha256, digester.result().md5)
    assert hasher("crc32").hexdigest() == "00000000"
    assert hasher("blake3").hexdigest().startswith("af1349b9f5f9a1a6a0404dea36dcc949")


@pytest.mark.parametrize(
    ("href", "path"),
    [
        (r".\GRANULE\x.jp2", "GRANULE/x.jp2"),
        (r".\GRANULE/x.jp2", "GRANULE/x.jp2"),
        ("./././GRANULE//x.jp2", "GRANULE/x.jp2"),
        (" ./GRANULE/x.jp2 ", "GRANULE/x.jp2"),
        ("file:./GRANULE/x.jp2", "GRANULE/x.jp2"),
        ("./GRANULE/qi%20data.xml", "GRANULE/qi data.xml"),
        ("./GRANULE/qi data.xml", "GRANULE/qi data.xml"),
        ("GR%41NULE%2Fx.jp2", "GRANULE/x.jp2"),
        ("100%25.nc", "100%25.nc"),  # as it stands, before an escape is seen in it
        ("what?.nc", "what%3F.nc"),  # kept escaped (the setting escape_names)
        ("what%3F.nc", "what%3F.nc"),
        ("cafe\u0301.nc", "caf\u00e9.nc"),
        ("a:b.nc", "a:b.nc"),
    ],
)
def test_hrefs_are_understood_as_real_products_have_them(href: str, path: str) -> None:
    names = ("GRANULE/x.jp2", "GRANULE/qi data.xml", "100%25.nc", "what%3F.nc", "a:b.nc")
    files = {name: name.encode() for name in (*names, "caf\u00e9.nc")}
    entry = (href, str(len(path.encode())), "MD5", hashlib.md5(path.encode()).hexdigest())
    assert _checked(files, entry).right == [path]


@pytest.mark.parametrize(
    "href",
    [
        *["../x", "a/../../x", "./a/../x", r"..\x", "%2e%2e/x", "/x", "//x", "", "."],
        *["/etc/passwd", "file:///etc/passwd", "C:/x", r"C:\x", "http://host/x", "s3://b/x"],
    ],
)
def test_an_href_that_leaves_the_product_is_wrong_and_nothing_is_read_for_it(href: str) -> None:
    report = _checked({"x": b"", "a/x": b""}, (href, "0", "SHA3-256", "0"))
    assert [item.reason for item in report.wrong] == [
        "the href does not name a file in the product"
    ]


@pytest.mark.parametrize("size", ["9" * 5000, "-1", "1e3", "0x4", "4.0", "\u0664", "many"])
def test_a_size_that_is_no_number_is_told_as_such(size: str) -> None:
    report = _checked({"a": b"data"}, ("a", size, "", ""))
    assert [item.path for item in report.wrong] == ["a"]
    assert len(report.wrong[0].reason) < 200


def test_a_file_is_read_once_however_often_and_by_how_many_algorithms_it_is_named() -> None:
    def entry(algorithm: str, data: bytes) -> tuple[str, str, str, str]:
        digest = hasher(algorithm)
        digest.update(data)
        return ("./" * (len(seen) % 7) + "a", "4", algorithm, digest.hexdigest())

    seen: list[tuple[str, str, str, str]] = []
    for _ in range(100):
        seen.extend(entry(algorithm, b"data") for algorithm in ("sha3_256", "blake2b", "sha1"))
    assert _checked({"a": b"data"}, *seen).passed
    assert not _checked({"a": b"data"}, *seen, entry("sha3_256", b"else")).passed


@pytest.mark.parametrize(
    ("name", "paths", "found"),
    [
        (S1, ["manifest.safe", "a"], "manifest.safe"),
        (S1, ["a", "sub/manifest.safe"], "manifest.safe"),  # required, and missing
        ("plain", ["a", "sub/manifest.safe"], None),
        ("plain", ["a", "manifest.safe"], "manifest.safe"),
        ("plain", ["a", "MANIFEST.SAFE"], "MANIFEST.SAFE"),
        ("plain", ["a", "xfdumanifest.xml"], "xfdumanifest.xml"),
        (S3, ["manifest.safe", "xfdumanifest.xml"], "xfdumanifest.xml"),
        ("x.SEN6", [], "xfdumanifest.xml"),
        ("x.zarr", [".zattrs"], None),
    ],
)
def test_the_manifest_at_the_top_counts_whatever_the_product_is_called(
    name: str, paths: list[str], found: str | None
) -> None:
    assert find_manifest(name, paths) == found


def test_a_report_of_endless_lists_is_told_by_its_beginning() -> None:
    report = _checked({}, *[(f"f{number}", "1", "", "") for number in range(5000)])
    assert len(report.missing) == 5000
    assert len(report.as_dict()["missing"]) == 1000
    assert report.as_dict()["entries"] == 5000


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
