"""Sentinel product names: parsed, never changed.  The one place to add a form (docs/names.md).

A form is one line of ``_FORMS``: whose convention, an example, the pattern.  The first form that
fits wins, so the strict ones come first and the bare platform last.

- Sentinel-1 products, L0 to L2, ETAD (S1-RS-MDA-52-7440, section 3.1):
  ``S1A_IW_SLC__1SDV_20200103T170700_20200103T170727_030639_0382D5_6A12.SAFE``
- Sentinel-1 auxiliary data and AIS (S1-RS-MDA-52-7443):
  ``S1A_AUX_CAL_V20190228T092500_G20210104T141310.SAFE``
- Sentinel-2, compact (S2-PDGS-TAS-DI-PSD, section 3.1):
  ``S2A_MSIL1C_20210403T101021_N0300_R022_T33TUM_20210403T110551.SAFE``
- Sentinel-3 products and auxiliary data (PDGS file naming convention, GMES-S3GS-EOPG-TN-09-0009):
  ``S3B_SL_1_RBT____20190116T050535_..._0179_021_048_0000_LN2_O_NT_003.SEN3``
- Sentinel-6 products, and the files in them (Sentinel-6 generic product format specification):
  ``S6A_P4_2__LR______20240501T152036_..._5914_128_043_022_EUM__OPE_NR_F09.SEN6``
- Earth Explorer file names (PE-TN-ESA-GS-0001), which orbits, GIPP, Sentinel-2 before its compact
  names and all of Sentinel-5P follow:
  ``S1A_OPER_AUX_POEORB_OPOD_20240524T070448_V20240503T225942_20240505T005942.EOF``
- EOPF products and auxiliary data (EOPF product structure and format definition, section 3):
  ``S03OLCEFR_20230506T015316_0180_B117_T931.zarr``

Not knowing a name is no error.  Called by the services and the command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from admin_api.errors import InvalidKey
from admin_api.keys import RESERVED, check_part

#: Suffixes of products that are directories of many files.
TREE_SUFFIXES = (".SAFE", ".SEN3", ".SEN6", ".zarr")

_TIME = r"[0-9]{8}T[0-9]{6}"
_PERIOD = rf"(?P<start>{_TIME})_(?P<stop>{_TIME})"
_SUFFIX = r"(?:\.[A-Za-z0-9]+)*"
_PLATFORM = r"(?P<platform>S[1236][A-D_]|S5P)"
# The Earth Explorer file name: platform, class, type of ten characters (padded), instance.
_EXPLORER = rf"{_PLATFORM}_(?:OPER|TEST|USER|GSOV|NRTI|OFFL|RPRO|PAL_)_(?P<kind>[A-Z0-9_]{{10}})_"

# Named groups: platform, kind; start and stop, or start and seconds; crc.  A form without a start
# tells no sensing time.  For auxiliary data the time of validity stands for the sensing time.
_FORMS = tuple(
    re.compile(form, re.ASCII)
    for form in (
        # MMM_BB_TTTR_LFPP_start_stop_orbit_datatake_CRC; TTTR pads short types with underscores.
        # CRC: of manifest.safe.  A suffix (_COG) means that somebody made another product of it.
        rf"(?P<platform>S1[A-D])_(?P<kind>[A-Z0-9]{{2}}_[A-Z0-9_]{{4}}_[0-9A][A-Z_])[A-Z_]{{2}}_"
        rf"{_PERIOD}_[0-9]{{6}}_[0-9A-F_]{{6}}_(?:(?P<crc>[0-9A-F]{{4}})|[0-9A-F]{{4}}_[A-Z]+)"
        rf"{_SUFFIX}",
        # MMM_AUX_TTT_Vvalidity_Gcreation; no end of the validity is told.
        rf"(?P<platform>S1[A-D_])_(?P<kind>AUX_[A-Z0-9]{{3}})_V(?P<start>{_TIME})_G{_TIME}{_SUFFIX}",
        rf"(?P<platform>S1[A-D])_(?P<kind>AISAUX)_{_PERIOD}_[0-9A-F]{{4}}{_SUFFIX}",
        # MMM_MSIXXX_start_Nxxyy_ROOO_Txxxxx_discriminator
        rf"(?P<platform>S2[A-D])_(?P<kind>MSI[A-Z0-9]{{3}})_(?P<start>{_TIME})_N[0-9]{{4}}_"
        rf"R[0-9]{{3}}_T[0-9A-Z]{{5}}_{_TIME}{_SUFFIX}",
        # MMM_SS_L_TTTTTT_start_stop_creation_instance_GGG_class
        rf"(?P<platform>S3[A-D_])_(?P<kind>[A-Z]{{2}}_[0-9_]_[A-Z0-9_]{{6}})_{_PERIOD}_{_TIME}_"
        rf"[A-Z0-9_]{{17}}_[A-Z0-9_]{{3}}_[A-Z0-9_]{{8}}{_SUFFIX}",
        # MMM_SS_LL_TTTTTTT_start_stop_creation_duration_cycle_pass_..._centre_class_baseline
        rf"(?P<platform>S6[A-D_])_(?P<kind>[A-Z0-9]{{2}}_[A-Z0-9_]{{2}}_[A-Z0-9_]{{7}})_{_PERIOD}_"
        rf"{_TIME}_[A-Z0-9_]+{_SUFFIX}",
        # ... and the files in it, which are also handed out alone: timeliness and pass come first.
        rf"(?P<platform>S6[A-D_])_(?P<kind>[A-Z0-9]{{2}}_[A-Z0-9_]{{2}}_[A-Z0-9_]{{7}})_"
        rf"[A-Z]{{2}}_[0-9]{{3}}_[0-9]{{3}}_{_PERIOD}_[A-Z0-9_]+{_SUFFIX}",
        # Earth Explorer: ..._Vstart_stop (validity), ..._Sstart (datastrips), start_stop_..., none.
        rf"{_EXPLORER}[A-Z0-9_]*_V{_PERIOD}(?:_[A-Z0-9._]+)?{_SUFFIX}",
        rf"{_EXPLORER}[A-Z0-9_]*_S(?P<start>{_TIME})_[A-Z0-9._]+{_SUFFIX}",
        rf"{_EXPLORER}{_PERIOD}(?:_[A-Z0-9_]+)?{_SUFFIX}",
        rf"{_EXPLORER}[A-Z0-9._]+{_SUFFIX}",
        # TTTTTTTTT_start_seconds_...; the first three characters of the type are the mission.
        rf"(?P<kind>(?P<platform>S0?[1236])[A-Z]{{2}}[A-Z0-9_]{{4}})_(?P<start>{_TIME})_"
        rf"(?P<seconds>[0-9]{{4}})_[A-Z0-9_]+{_SUFFIX}",
        rf"(?P<platform>S0?[1236][A-D_])_(?P<kind>ADF_[A-Z0-9_]{{5}})_{_PERIOD}_{_TIME}{_SUFFIX}",
        # Whatever else begins with a platform and an underscore: the mission and no more.
        rf"{_PLATFORM}_.+",
        r"(?P<platform>S[1236])_.+",
        r"(?P<platform>S0[1236])(?:[A-D_]_|[A-Z]{2}[A-Z0-9_]{4}_).+",
    )
)
_MISSIONS = {"1": "S1", "2": "S2", "3": "S3", "5": "S5P", "6": "S6"}
#: The missions whose names are known.
MISSIONS = tuple(_MISSIONS.values())

#: The end of a validity without an end; every time zone can still write it.
_OPEN_END = datetime(9999, 12, 31, tzinfo=UTC)
# Earlier is a way to say "since ever" (00000101T000000).
_FIRST_YEAR = 1900

# A later generation of a product lies in a directory with this suffix (services/reception.py).
_GENERATION_SUFFIX = re.compile(r"@\d+$")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
MAX_NAME_BYTES = 240


@dataclass(frozen=True, slots=True)
class ParsedName:
    """What a name tells; None for what it does not.

    Mission; product type (padding kept); sensing time or, of auxiliary data, validity (UTC); the
    CRC of the manifest of Sentinel-1.
    """

    mission: str
    product_type: str | None = None
    sensing_start: datetime | None = None
    sensing_stop: datetime | None = None
    crc: str | None = None


def parse_name(name: str) -> ParsedName | None:
    """What the product ``name`` tells, or None if it does not even begin with a platform."""
    for form in _FORMS:
        match = form.fullmatch(name)
        parsed = _parsed(match.groupdict()) if match else None
        if parsed is not None:
            return parsed
    return None


def is_tree(name: str) -> bool:
    """Whether a directory of this name is one product of many files."""
    return name.lower().endswith(tuple(suffix.lower() for suffix in TREE_SUFFIXES))


def check_name(name: str) -> str:
    """Return ``name`` if a product can have it; raise InvalidKey with the reason if not."""
    check_part(name)
    if "/" in name:
        raise InvalidKey(f"The product name {name!r} holds a slash.", name=name)
    if name in RESERVED:
        raise InvalidKey(f"The name {name!r} is kept for the storage manager itself.", name=name)
    if _GENERATION_SUFFIX.search(name):
        raise InvalidKey(
            f"The name {name!r} ends like a later generation of another product ('@' and digits).",
            name=name,
        )
    size = len(name.encode("utf-8"))
    if size > MAX_NAME_BYTES:
        raise InvalidKey(
            f"The product name has {size} bytes; {MAX_NAME_BYTES} are allowed.", name=name
        )
    return name


def check_id(product_id: str) -> str:
    """Return ``product_id`` if a client may give it to a product, else raise InvalidKey."""
    if not _ID.fullmatch(product_id):
        raise InvalidKey(
            "A product id has 1 to 128 letters, digits, '.', '_', ':' or '-' and begins with a "
            "letter or digit.",
            name=product_id,
        )
    return product_id


def directory_of(name: str, template: str, unsorted_template: str) -> str:
    """The directory of product ``name`` in the namespace, by the settings' templates.

    A name that tells no type or no time goes where the unknown ones go.
    """
    parsed = parse_name(name)
    if parsed is None or parsed.product_type is None or parsed.sensing_start is None:
        return unsorted_template.format(name=name)
    start = parsed.sensing_start
    return template.format(
        mission=parsed.mission,
        type=parsed.product_type,
        yyyy=f"{start:%Y}",
        mm=f"{start:%m}",
        dd=f"{start:%d}",
        name=name,
    )


def _parsed(found: dict[str, str | None]) -> ParsedName | None:
    platform, start, stop = found["platform"], found.get("start"), found.get("stop")
    assert platform is not None
    try:
        begin = _time(start) if start else None
        end = _time(stop) if stop else begin
        if begin is not None and found.get("seconds"):
            end = begin + timedelta(seconds=int(found["seconds"] or 0))
    except ValueError:
        return None  # the form of a time, but no such day or hour: not this form
    return ParsedName(
        mission=_MISSIONS[platform.lstrip("S0")[0]],
        product_type=found.get("kind"),
        sensing_start=_known(begin),
        sensing_stop=_known(end),
        crc=found.get("crc"),
    )


def _known(time: datetime | None) -> datetime | None:
    return time if time is not None and time.year >= _FIRST_YEAR else None


def _time(text: str) -> datetime:
    if text.startswith("9999"):
        return _OPEN_END
    if text.startswith("0000"):
        return datetime.min.replace(tzinfo=UTC)
    return datetime.strptime(text, "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
