"""Files of prosEO's wire contract as paths, and paths as files to be taken in.

Called by ``web/proseo``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import bindparam, select

from admin_api.catalog.models import File, Product, State
from admin_api.errors import InvalidKey, NotFound
from admin_api.keys import check_key, join
from admin_api.services import paths, staging
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.gathering import Piece
from admin_api.services.paths import Located
from admin_api.services.sources import Found, Sources
from admin_api.services.stage_cache import Wanted
from admin_api.services.wishes import Expected

#: In the cache: what is read from places that are not the store's.
_ELSEWHERE = ".elsewhere"
_BY_KEY = (
    select(Product.mission, File.key, File.size, File.sha256)
    .join_from(File, Product, Product.pk == File.product_pk)
    .where(File.key == bindparam("wanted"), Product.state == State.AVAILABLE)
)


def glance(facility: Facility, principal: Principal, path: str) -> tuple[int, Path] | None:
    """Size and path of a file that ``path`` names by its key, found at a glance.

    The same as ``paths.find`` and ``fetch`` say, which are for everything else (None): what this
    principal may not know of, files of products that have other keys, files that are nobody's.
    Waits and raises as ``fetch`` does.
    """
    key = paths.key_of(facility, path)
    try:
        row = facility.catalog.glance(_BY_KEY, check_key(key or ""))
    except InvalidKey:
        return None  # no file has such a name, and not every database takes it
    if row is None or not principal.sees(row[0]):
        return None
    _, key, size, sha256 = row
    try:
        return size, staging.path_of(facility, key, size, sha256)
    except NotFound:
        return None  # gone or replaced meanwhile


def fetch(facility: Facility, principal: Principal, located: Located) -> Path:
    """A path at which processors read the file, whole; errors as ``staging.place``."""
    if located.product is not None and located.file is not None:
        return staging.place(facility, principal, located.product, located.file)
    if located.key is not None:
        there = staging.in_place(facility, located.key)
        cached = located.key
    else:
        split = urlsplit(located.source)
        is_file = split.scheme == "file" and facility.settings.staging.in_place
        there = Path(unquote(split.path)) if is_file else None
        # The bucket is part of the name: equal keys of two buckets are two files (D4).
        cached = join(_ELSEWHERE, split.scheme, split.netloc, unquote(split.path).strip("/"))
    if there is not None:
        return there
    return facility.stage_cache.get(
        Wanted(
            cached,
            located.size,
            located.version,
            None,
            lambda: located.read(0, located.size),
        )
    )


def piece_of(facility: Facility, path: str, size: int | None) -> Piece:
    """A file of the shared file system that is to be taken in, of ``size`` bytes if known."""
    uri = paths.uri_of(path)
    found = _found(facility, uri)
    if found.is_tree:
        raise NotFound(f"{path.strip()!r} is a directory, not a file.")
    return Piece(found.name, uri, Expected(size=size))


def pieces_of(facility: Facility, sources: Sequence[str]) -> list[Piece]:
    """The files that ``sources`` name, in their order; directories as what they hold.

    The content of a directory comes directly into the product: first its files by name, then its
    directories (contract, 2.3).
    """
    pieces = []
    for path in sources:
        uri = paths.uri_of(path)
        found = _found(facility, uri)
        if not found.is_tree:
            pieces.append(Piece(found.name, uri, Expected(size=found.files[0].size)))
            continue
        for file in sorted(found.files, key=lambda item: paths.files_first(item.path)):
            inner = f"{uri}/{paths.quoted(file.path)}"
            pieces.append(Piece(file.path, inner, Expected(size=file.size), found.name))
    return pieces


def _found(facility: Facility, uri: str) -> Found:
    return Sources(facility.settings.sources, facility.settings.limits).find(uri)
