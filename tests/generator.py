"""Makes Sentinel-like products: names, trees, manifests and checksums as the real ones have them.

Used by the tests, by the demonstration and by the benchmarks; deterministic by its seed.
"""

from __future__ import annotations

import hashlib
import random
from datetime import datetime, timedelta
from pathlib import Path

from admin_api.products.digests import crc16

_BLOCK = 1 << 20


def write_random(path: Path, size: int, seed: int) -> None:
    """Write ``size`` incompressible bytes."""
    generator = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        while size > 0:
            file.write(generator.randbytes(min(size, _BLOCK)))
            size -= _BLOCK


def make_s1(directory: Path, seed: int = 1, size: int = 300_000) -> Path:
    """A Sentinel-1 GRD SAFE tree whose name ends in the CRC of its manifest."""
    start = datetime(2021, 4, 1, 5, 26, 23) + timedelta(minutes=seed)
    stop = start + timedelta(seconds=25)
    times = f"{start:%Y%m%dT%H%M%S}_{stop:%Y%m%dT%H%M%S}"
    stem = f"s1b-iw-grd-vv-{times.lower().replace('_', '-')}-026269-032297"
    work = directory / f"work-{seed}"
    files = {
        f"annotation/{stem}-001.xml": 2_000,
        f"annotation/calibration/calibration-{stem}-001.xml": 1_500,
        f"measurement/{stem}-001.tiff": size,
        "support/s1-level-1-product.xsd": 900,
    }
    _write_tree(work, files, seed)
    manifest = _manifest(work, files, f"s1-{seed}")
    (work / "manifest.safe").write_bytes(manifest)
    name = f"S1B_IW_GRDH_1SDV_{times}_026269_032297_{crc16(manifest)}.SAFE"
    return work.rename(directory / name)


def make_s2(directory: Path, seed: int = 1, files: int = 12, size: int = 20_000) -> Path:
    """A Sentinel-2 L1C SAFE tree of many small files."""
    start = datetime(2021, 4, 3, 10, 10, 21) + timedelta(minutes=seed)
    name = (
        f"S2A_MSIL1C_{start:%Y%m%dT%H%M%S}_N0300_R022_T33TUM_"
        f"{start + timedelta(hours=1):%Y%m%dT%H%M%S}.SAFE"
    )
    tree = directory / name
    listed = {f"GRANULE/L1C_{seed}/IMG_DATA/B{number:02d}.jp2": size for number in range(files)}
    _write_tree(tree, listed, seed)
    (tree / "manifest.safe").write_bytes(_manifest(tree, listed, name))
    return tree


def make_s3(directory: Path, seed: int = 1, size: int = 50_000) -> Path:
    """A Sentinel-3 SLSTR SEN3 tree with its xfdumanifest.xml."""
    start = datetime(2019, 1, 16, 5, 5, 35) + timedelta(minutes=seed)
    stop = start + timedelta(minutes=3)
    name = (
        f"S3B_SL_1_RBT____{start:%Y%m%dT%H%M%S}_{stop:%Y%m%dT%H%M%S}_20190117T125958_"
        "0179_021_048_0000_LN2_O_NT_003.SEN3"
    )
    tree = directory / name
    listed = {"geodetic_an.nc": size, "S1_radiance_an.nc": size // 2, "viscal.nc": 700}
    _write_tree(tree, listed, seed)
    (tree / "xfdumanifest.xml").write_bytes(_manifest(tree, listed, name))
    return tree


def make_s5p(directory: Path, seed: int = 1, size: int = 200_000) -> Path:
    """A Sentinel-5P product: one file."""
    start = datetime(2020, 3, 28, 5, 33, 29) + timedelta(minutes=seed)
    stop = start + timedelta(minutes=101)
    name = (
        f"S5P_OFFL_L2__HCHO___{start:%Y%m%dT%H%M%S}_{stop:%Y%m%dT%H%M%S}_"
        f"{12724 + seed:05d}_01_010108_20200330T103521.nc"
    )
    path = directory / name
    write_random(path, size, seed)
    return path


def _write_tree(root: Path, files: dict[str, int], seed: int) -> None:
    for number, (path, size) in enumerate(files.items()):
        write_random(root / path, size, seed * 1000 + number)


def _manifest(root: Path, files: dict[str, int], identity: str) -> bytes:
    objects = []
    for number, path in enumerate(files):
        data = (root / path).read_bytes()
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        objects.append(
            f'    <dataObject ID="object{number}" repID="schema">\n'
            f'      <byteStream mimeType="application/octet-stream" size="{len(data)}">\n'
            f'        <fileLocation locatorType="URL" href="./{path}"/>\n'
            f'        <checksum checksumName="MD5">{digest}</checksum>\n'
            "      </byteStream>\n    </dataObject>\n"
        )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<xfdu:XFDU xmlns:xfdu="urn:ccsds:schema:xfdu:1" version="esa/safe/sentinel-1.0">\n'
        f"  <!-- {identity} -->\n  <dataObjectSection>\n"
        + "".join(objects)
        + "  </dataObjectSection>\n</xfdu:XFDU>\n"
    ).encode()
