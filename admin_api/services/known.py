"""What is stored already with the digests that are announced, told by the catalog alone.

For many items at once, so that a finished import that is run again asks nothing of sources and
stores, and hardly anything of the catalog.  Called by ``intake.py``, while the items are still
being told, and by ``bulk.py``, for what was stored since.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote

from sqlalchemy import Table, TextClause, select, text

from admin_api.catalog import entries
from admin_api.catalog.models import File, Product
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.wishes import Policy
from admin_api.uris import shown

_PRODUCT = cast("Table", Product.__table__)
_FILE = cast("Table", File.__table__)
_OF_NAMES = (
    select(
        *(_PRODUCT.c[name] for name in ("name", "id", "mission", "size", "attempt", "file_count")),
        *(_FILE.c[name] for name in ("path", "size", "sha256", "md5")),
    )
    .join(_FILE, _FILE.c.product_pk == _PRODUCT.c.pk)
    .where(entries.is_available())
)


@dataclass(frozen=True, slots=True)
class Known:
    """A product that is stored as it was announced."""

    id: str
    size: int
    attempt: str


@dataclass(slots=True)
class _There:
    """A product that has a name, and its files: size, SHA-256 and MD5 by path."""

    id: str
    mission: str | None
    size: int
    attempt: str
    file_count: int
    files: dict[str, tuple[int, str, str]]


#: What is said of a file: size, SHA-256 and MD5; at least one of the digests.
_Said = tuple[int | None, str | None, str | None]


def find(
    facility: Facility,
    principal: Principal,
    options: Mapping[str, Any],
    wanted: Iterable[tuple[int, Mapping[str, Any]]],
) -> dict[int, Known]:
    """Those of the items that are stored already, by their numbers.

    Only where the policy is to skip them, and a digest of every file is announced.
    """
    sought: dict[int, tuple[str, str | None, dict[str, _Said]]] = {}
    policy = options.get("duplicates") or Policy.SKIP
    for number, item in wanted:
        if (item.get("duplicates") or policy) != Policy.SKIP or item.get("unpack"):
            continue
        name, said = _said(item)
        if name and said:
            sought[number] = (name, item.get("id"), said)
    there = _products(facility, sought.values())
    found: dict[int, Known] = {}
    for number, (name, product_id, said) in sought.items():
        product = there.get(name)
        if (
            product is not None
            and product_id in (None, product.id)
            and principal.sees(product.mission)
            and _matches(said, product)
        ):
            found[number] = Known(product.id, product.size, product.attempt)
    return found


def _said(item: Mapping[str, Any]) -> tuple[str, dict[str, _Said]]:
    """The name of the product that is asked for and what is announced of its files.

    Of none where of one of them no digest is.
    """
    source = item.get("source")
    name = item.get("name") or unquote(shown(source or "").rstrip("/").rpartition("/")[2])
    said: dict[str, _Said] = {}
    for path, told in [(name, item)] if source else [(f["path"], f) for f in item.get("files", ())]:
        sha256, md5 = told.get("sha256"), told.get("md5")
        if not (sha256 or md5):
            return name, {}
        said[path] = (told.get("size"), sha256, md5)
    return name, said


def _products(
    facility: Facility, sought: Iterable[tuple[str, str | None, dict[str, _Said]]]
) -> dict[str, _There]:
    most: dict[str, int] = {}
    for name, _, said in sought:
        most[name] = max(len(said), most.get(name, 0))
    found: dict[str, _There] = {}
    if not most:
        return found
    # What has more files than are announced is another product: they need not be read.
    query = _OF_NAMES.where(
        _PRODUCT.c.name.in_(_listed(facility)), _PRODUCT.c.file_count <= max(most.values())
    )
    names = sorted(most)
    with facility.catalog.reading() as session:
        rows = session.connection().execute(
            query, {"names": json.dumps(names) if facility.catalog.is_sqlite else names}
        )
        for name, product_id, mission, size, attempt, count, path, *file in rows:
            product = found.get(name)
            if product is None:
                product = _There(product_id, mission, size, attempt, count, {})
                found[name] = product
            product.files[path] = (file[0], file[1], file[2])
    return found


def _listed(facility: Facility) -> TextClause:
    """All names by one parameter: a statement with one for each costs more than its answer."""
    if facility.catalog.is_sqlite:
        return text("SELECT value FROM json_each(:names)")
    return text("SELECT unnest(CAST(:names AS text[]))")


def _matches(said: Mapping[str, _Said], product: _There) -> bool:
    files = product.files
    return (
        len(said) == product.file_count == len(files)
        and said.keys() == files.keys()
        and all(
            size in (None, files[path][0])
            and sha256 in (None, files[path][1])
            and md5 in (None, files[path][2])
            for path, (size, sha256, md5) in said.items()
        )
    )
