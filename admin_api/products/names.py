"""Sentinel product names: parsed, never changed.

Forms: Sentinel-1 (S1 product specification, section 3.1), Sentinel-2 (S2 PSD, section 3.1),
Sentinel-3 (S3 PDGS file naming convention), Sentinel-5P (S5P PDGS file name convention).
Not knowing a name is no error.  Called by the services.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from admin_api.errors import InvalidKey
from admin_api.keys import RESERVED, check_part

_TIME = r"\d{8}T\d{6}"

# MMM_BB_TTTR_LFPP_start_stop_orbit_datatake_CRC.SAFE; TTTR pads short types with underscores.
_S1 = re.compile(
    rf"(?P<unit>S1[A-D])_(?P<mode>[A-Z0-9]{{2}})_(?P<kind>[A-Z0-9_]{{4}})_"
    rf"(?P<level>[0-9A])(?P<cls>[SAN])(?P<pol>[A-Z_]{{2}})_(?P<start>{_TIME})_(?P<stop>{_TIME})_"
    rf"\d{{6}}_[0-9A-F]{{6}}_(?P<crc>[0-9A-F]{{4}})(?:_[A-Z]+)?\.SAFE"
)
# MMM_MSIXXX_start_Nxxyy_ROOO_Txxxxx_discriminator.SAFE
_S2 = re.compile(
    rf"(?P<unit>S2[A-D])_(?P<kind>MSI[A-Z0-9]{{3}})_(?P<start>{_TIME})_N\d{{4}}_R\d{{3}}_"
    rf"T[0-9A-Z]{{5}}_{_TIME}\.SAFE"
)
# MMM_SS_L_TTTTTT_start_stop_creation_instance_GGG_class.SEN3
_S3 = re.compile(
    rf"(?P<unit>S3[A-D_])_(?P<kind>[A-Z]{{2}}_[0-9_]_[A-Z0-9_]{{6}})_(?P<start>{_TIME})_"
    rf"(?P<stop>{_TIME})_{_TIME}_[A-Z0-9_]{{17}}_[A-Z0-9_]{{3}}_[A-Z0-9_]{{8}}\.SEN3"
)
# S5P_CCCC_TTTTTTTTTT_start_stop_orbit_collection_processor_creation.nc
_S5P = re.compile(
    rf"S5P_[A-Z0-9]{{4}}_(?P<kind>[A-Z0-9_]{{10}})_(?P<start>{_TIME})_(?P<stop>{_TIME})_"
    rf"\d{{5}}_\d{{2}}_\d{{6}}_{_TIME}(?:\.nc|\.HDR|\.cdf)?"
)

# A later generation of a product lies in a directory with this suffix (services/reception.py).
_GENERATION_SUFFIX = re.compile(r"@\d+$")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
MAX_NAME_BYTES = 240
#: The missions whose names are known.
MISSIONS = ("S1", "S2", "S3", "S5P")


@dataclass(frozen=True, slots=True)
class ParsedName:
    """What a name tells: mission, type (padding kept), sensing time (UTC), CRC of Sentinel-1."""

    mission: str
    product_type: str
    sensing_start: datetime
    sensing_stop: datetime
    crc: str | None = None


def parse_name(name: str) -> ParsedName | None:
    """What the product ``name`` tells, or None if it is not a known form."""
    if match := _S1.fullmatch(name):
        kind = f"{match['mode']}_{match['kind']}_{match['level']}{match['cls']}"
        return _parsed("S1", kind, match, match["crc"])
    if match := _S2.fullmatch(name):
        return _parsed("S2", match["kind"], match)
    if match := _S3.fullmatch(name):
        return _parsed("S3", match["kind"], match)
    if match := _S5P.fullmatch(name):
        return _parsed("S5P", match["kind"], match)
    return None


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
    """The directory of product ``name`` in the namespace, by the settings' templates."""
    parsed = parse_name(name)
    if parsed is None:
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


def _parsed(
    mission: str, kind: str, match: re.Match[str], crc: str | None = None
) -> ParsedName | None:
    try:
        start = _time(match["start"])
        stop = _time(match["stop"]) if "stop" in match.groupdict() else start
    except ValueError:
        return None  # the form of a time, but no such day or hour: not a known name
    return ParsedName(mission, kind, start, stop, crc)


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
