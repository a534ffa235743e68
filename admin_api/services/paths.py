"""Files by where they lie, as prosEO names them: found, listed, and erased.

A path names a file of a product by its key, or by the product's directory and its path in it (a
file that took another's place lies elsewhere).  Besides, what lies in the store and is nobody's can
be read, so that data from before this service is there before it is registered, and job orders;
and what the settings allow as sources.  Never shown: attempts at products, what is being removed,
the storage manager's own places.  Called by ``web/proseo``.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO
from urllib.parse import quote

from sqlalchemy import ColumnElement, and_, bindparam, or_, select
from sqlalchemy.orm import Session

from admin_api.catalog import entries
from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.catalog.models import File, Product, State
from admin_api.errors import (
    Forbidden,
    InProgress,
    InvalidKey,
    InvalidRequest,
    NotFound,
    SourceDenied,
    SourceNotFound,
)
from admin_api.keys import RESERVED, beneath, check_key, join
from admin_api.products.names import parse_name
from admin_api.services import lifecycle
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.sources import SourceFile, Sources

#: Says of a key whether it is to be listed.
Wanted = Callable[[str], bool]

_ASKED_AT_ONCE = 400
_ATTEMPTS = 20
_PAUSE_SECONDS = 0.2
#: Folders of a year, a month, a day or an hour hold the products of many.
_OF_MANY = re.compile(r"[0-9]{4}(/[0-9]{1,2}){0,3}")
_PRODUCT_COLUMNS = len(entries.PRODUCT)


@dataclass(frozen=True, slots=True)
class Located:
    """A file: of a product, in the store and nobody's, or at a source (then without ``key``).

    ``size`` in bytes; ``version`` changes with the bytes where no digest is known.
    """

    name: str
    size: int
    version: str
    key: str | None
    product: ProductEntry | None
    file: FileEntry | None
    #: Its URI where it lies outside of the store.
    source: str
    read: Callable[[int, int], Iterator[bytes]]
    open_local: Callable[[], BinaryIO | None]


def uri_of(path: str) -> str:
    """The URI of a path as prosEO writes it; raises InvalidRequest for none at all.

    Blanks at the ends are trimmed, backslashes are slashes; what does not begin with ``s3://`` is
    an absolute path of the file system, with or without its first slash (contract, 6.3).
    """
    text = path.strip().replace("\\", "/")
    if text.startswith("s3://"):
        bucket, _, key = text.removeprefix("s3://").partition("/")
        return f"s3://{quote(bucket)}/{quote(_plain(key))}"
    return f"file:///{quote(_plain(text))}"


def quoted(path: str) -> str:
    """``path`` as it stands in a URI."""
    return quote(path)


def _plain(path: str) -> str:
    """``path`` without empty and ``.`` parts, which clients leave in when they join parts."""
    kept = [part for part in path.split("/") if part not in ("", ".")]
    if not kept:
        raise InvalidRequest("The path is empty.")
    if ".." in kept:
        raise InvalidRequest("The path holds '..'.")
    return "/".join(kept)


def files_first(path: str) -> tuple[tuple[int, str], ...]:
    """For sorting: the files of a directory by name, then its directories (contract, 2.2)."""
    *above, name = path.split("/")
    return (*((1, part) for part in above), (0, name))


def key_of(facility: Facility, path: str) -> str | None:
    """The key of a path in the namespace; '' for a store's root, None for what lies elsewhere."""
    return facility.storage.key_of(uri_of(path))


def shown_key(product: ProductEntry, file: FileEntry) -> str:
    """The key under which prosEO knows a file of a product: its directory and its path."""
    return file.key if product.registered else join(product.directory, file.path)


def find(facility: Facility, principal: Principal, path: str) -> Located:
    """The file that ``path`` names.

    Raises NotFound, SourceDenied for what lies where nobody may read, InvalidRequest, and what
    stores and sources raise.
    """
    uri = uri_of(path)
    key = facility.storage.key_of(uri)
    if key is not None:
        return _in_store(facility, principal, key)
    try:
        found = Sources(facility.settings.sources, facility.settings.limits).find(uri)
    except SourceNotFound:
        raise NotFound(f"There is no file {path.strip()!r}.") from None
    if found.is_tree:
        raise NotFound(f"{path.strip()!r} is a directory, not a file.")
    file = found.files[0]
    _require_sight(principal, found.name)
    size = file.size or 0
    return Located(
        found.name, size, file.version, None, None, None, uri, partial(_read_source, file), _nothing
    )


def _nothing() -> BinaryIO | None:
    return None


def _read_source(file: SourceFile, start: int, stop: int) -> Iterator[bytes]:
    if file.read_at is None:
        raise SourceDenied("The source cannot be read from anywhere but its beginning.")
    return file.read_at(start, stop)


def _in_store(facility: Facility, principal: Principal, key: str) -> Located:
    name = key.rpartition("/")[2]
    missing = NotFound(f"There is no file {key!r} in the store.")
    try:
        check_key(key)
    except InvalidKey:
        raise missing from None
    with facility.catalog.reading() as session:
        owned = file_at(session, key)
        hidden = owned is None and _is_hidden(facility, session, key)
    if owned is not None:
        product, file = owned
        principal.require_sight(product.mission, f"file {key!r} in the store")
        return Located(
            name,
            file.size,
            file.sha256,
            file.key,
            product,
            file,
            "",
            partial(facility.storage.open, file.key),
            partial(facility.storage.local_file, file.key),
        )
    if hidden:
        raise missing
    if not _is_joborder(facility, key):
        _require_sight(principal, name)
    try:
        stat = facility.storage.stat(key)
    except NotFound:
        raise missing from None
    return Located(
        name,
        stat.size,
        f"{stat.size} {stat.etag or ''} {stat.modified.isoformat()}",
        key,
        None,
        None,
        "",
        partial(facility.storage.open, key),
        partial(facility.storage.local_file, key),
    )


def _require_sight(principal: Principal, name: str) -> None:
    parsed = parse_name(name)
    principal.require_sight(parsed.mission if parsed else None, f"file {name!r}")


# Made once: these are asked by every request, and building them takes longer than running them.
_AVAILABLE = (
    select(*(Product.__table__.c[column.key] for column in entries.PRODUCT))
    .add_columns(*(File.__table__.c[column.key] for column in entries.FILE))
    .join_from(Product.__table__, File.__table__, Product.pk == File.product_pk)
    .where(Product.state == State.AVAILABLE)
)
_BY_KEY = _AVAILABLE.where(File.key == bindparam("wanted"))
_BY_PATH = _AVAILABLE.where(File.product_pk == bindparam("of"), File.path == bindparam("wanted"))


def file_at(session: Session, key: str) -> tuple[ProductEntry, FileEntry] | None:
    """The available product's file that ``key`` names, and the product."""
    connection = session.connection()
    row = connection.execute(_BY_KEY, {"wanted": key}).first()
    if row is None:
        above = entries.all_of(
            ProductEntry,
            session,
            entries.products().where(
                Product.directory.in_(_parents(key)),
                Product.state == State.AVAILABLE,
                Product.registered.is_(False),
            ),
        )
        for product in above:
            inner = key[len(product.directory) + 1 :]
            row = connection.execute(_BY_PATH, {"of": product.pk, "wanted": inner}).first()
            if row is not None:
                break
    if row is None:
        return None
    return ProductEntry(*row[:_PRODUCT_COLUMNS]), FileEntry(*row[_PRODUCT_COLUMNS:])


def _parents(key: str) -> list[str]:
    parts = key.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _is_hidden(facility: Facility, session: Session, key: str) -> bool:
    """Whether what lies under ``key``, and is no product's file, is not to be seen."""
    if _is_own(facility, key):
        return True
    other = select(Product.pk).where(Product.directory.in_(_parents(key)), _owns_its_directory())
    return session.scalar(other.limit(1)) is not None


def _owns_its_directory() -> ColumnElement[bool]:
    """Whether what lies in a product's directory is nobody else's."""
    return and_(
        Product.registered.is_(False),
        or_(Product.removed_cause.is_(None), Product.removed_cause != lifecycle.TAKEN),
    )


def _is_own(facility: Facility, key: str) -> bool:
    mount = facility.storage.mount_of(key)
    top = key[len(mount) :].lstrip("/").split("/")[0]
    return top in RESERVED and not _is_joborder(facility, key)


def _is_joborder(facility: Facility, key: str) -> bool:
    return beneath(key, joborders(facility))


def joborders(facility: Facility) -> str:
    """The directory of job orders in the namespace."""
    settings = facility.settings.proseo
    return join(settings.mount, settings.joborder_prefix)


# -- listing -------------------------------------------------------------------------------------
def listed(
    facility: Facility, principal: Principal, directory: str, wanted: Wanted
) -> Iterator[str]:
    """The keys of what can be seen beneath ``directory``, those that are ``wanted``."""
    batch: list[str] = []
    for stat in facility.storage.list(directory):
        if wanted(stat.key):
            batch.append(stat.key)
        if len(batch) == _ASKED_AT_ONCE:
            yield from _visible(facility, principal, batch)
            batch = []
    yield from _visible(facility, principal, batch)


def _visible(facility: Facility, principal: Principal, keys: Sequence[str]) -> list[str]:
    if not keys:
        return []
    shown: dict[str, str | None] = {}
    above = sorted({parent for key in keys for parent in _parents(key)})
    with facility.catalog.reading() as session:
        rows = session.execute(
            select(File.key, File.path, Product.directory, Product.registered, Product.mission)
            .add_columns(Product.state)
            .join(Product, Product.pk == File.product_pk)
            .where(File.key.in_(keys))
        )
        for key, path, directory, registered, mission, state in rows:
            seen = state == State.AVAILABLE and principal.sees(mission)
            shown[key] = (key if registered else join(directory, path)) if seen else None
        owned: set[str] = set()
        for at in range(0, len(above), _ASKED_AT_ONCE):
            owned |= set(
                session.scalars(
                    select(Product.directory).where(
                        Product.directory.in_(above[at : at + _ASKED_AT_ONCE]),
                        _owns_its_directory(),
                    )
                )
            )
    found = []
    for key in keys:
        if key in shown:
            found.append(shown[key])
        elif not _is_own(facility, key) and not owned.intersection(_parents(key)):
            parsed = parse_name(key.rpartition("/")[2])
            if _is_joborder(facility, key) or principal.sees(parsed.mission if parsed else None):
                found.append(key)
    return [key for key in found if key is not None]


# -- erasing -------------------------------------------------------------------------------------
def erase(facility: Facility, principal: Principal, path: str) -> list[str]:
    """Remove the file that ``path`` names, or what lies in the directory; returns their keys.

    Nothing there: nothing is done.  A directory goes if it holds one product at most (contract,
    D1 to D3: exactly what is named goes, in the default storage).  Raises Forbidden for another
    bucket and for a directory of many, Held, Retained, Leased.
    """
    for _ in range(_ATTEMPTS):
        try:
            return _erase(facility, principal, path)
        except InProgress:
            time.sleep(_PAUSE_SECONDS)  # somebody changes the product: look at it again
    return _erase(facility, principal, path)


def _erase(facility: Facility, principal: Principal, path: str) -> list[str]:
    key = key_of(facility, path)
    if key is None:
        if path.strip().startswith("s3://"):
            raise Forbidden("Only what lies in the default storage is removed, in no other bucket.")
        return []
    if not key or key == facility.settings.proseo.mount:
        raise InvalidRequest("The path is the root of the store: nothing is removed.")
    mount = facility.settings.proseo.mount
    if (mount and not beneath(key, mount)) or facility.storage.mount_of(f"{key}/") != mount:
        raise Forbidden("Only what lies in the default storage is removed.")
    with contextlib.suppress(InvalidKey):
        check_key(key)
        with facility.catalog.reading() as session:
            owned = file_at(session, key)
            hidden = owned is None and _is_hidden(facility, session, key)
        if owned is not None:
            return _erase_files(facility, principal, owned[0], [owned[1]])
        if hidden and not _is_directory_of_product(facility, key):
            return []
        if not hidden and _erase_loose(facility, principal, key):
            return [key]
        return _erase_directory(facility, principal, key)
    return []


def _is_directory_of_product(facility: Facility, key: str) -> bool:
    """Whether files of an available product lie beneath ``key``, within its directory."""
    with facility.catalog.reading() as session:
        return bool(_products_beneath(session, key))


def _erase_loose(facility: Facility, principal: Principal, key: str) -> bool:
    """Remove a file that is in the store and nobody's; whether it was there."""
    try:
        facility.storage.stat(key)
    except NotFound:
        return False
    if not _is_joborder(facility, key):
        parsed = parse_name(key.rpartition("/")[2])
        principal.require_mission(parsed.mission if parsed else None)
    with contextlib.suppress(NotFound):
        facility.storage.delete(key)
    facility.stage_cache.forget(key)
    return True


def _erase_files(
    facility: Facility, principal: Principal, product: ProductEntry, files: Sequence[FileEntry]
) -> list[str]:
    principal.require_mission(product.mission)
    if len(files) == product.file_count:
        lifecycle.remove(facility, product, principal.actor, "deleted by prosEO", unchanged=True)
    else:
        paths = [file.path for file in files]
        lifecycle.withdraw(facility, product, principal.actor, paths, "deleted by prosEO")
    if product.registered:
        # Registered bytes stay, but here their owner says that they are to go.
        facility.storage.delete_many([file.key for file in files])
    for file in files:
        facility.stage_cache.forget(file.key)
    return [shown_key(product, file) for file in files]


def _erase_directory(facility: Facility, principal: Principal, key: str) -> list[str]:
    orders, mount = joborders(facility), facility.settings.proseo.mount
    inner = key[len(mount) :].lstrip("/")
    if key == orders or beneath(orders, key) or _OF_MANY.fullmatch(inner):
        if next(iter(facility.storage.list(key)), None) is None:
            return []
        raise Forbidden(f"The directory {key!r} holds the files of many: name what is to go.")
    with facility.catalog.reading() as session:
        products = _products_beneath(session, key)
        if len(products) > 1:
            raise Forbidden(f"The directory {key!r} holds several products: name what is to go.")
        files = entries.files_of(session, products[0].pk) if products else []
    erased: list[str] = []
    if products:
        product = products[0]
        chosen = [file for file in files if beneath(shown_key(product, file), key)]
        if chosen:
            erased += _erase_files(facility, principal, product, chosen)
    for loose in list(listed(facility, principal, key, lambda _: True)):
        with facility.catalog.reading() as session:
            is_owned = file_at(session, loose) is not None
        if not is_owned and _erase_loose(facility, principal, loose):
            erased.append(loose)
    return erased


def _products_beneath(session: Session, key: str) -> list[ProductEntry]:
    """At most two of the available products that have a file beneath the directory ``key``."""
    # '0' follows '/' in the order of bytes.
    within = select(File.product_pk).where(File.key > f"{key}/", File.key < f"{key}0")
    above = Product.directory.in_([key, *_parents(key)]) & Product.registered.is_(False)
    return entries.all_of(
        ProductEntry,
        session,
        entries.products()
        .where(Product.state == State.AVAILABLE)
        .where(Product.pk.in_(within) | above)
        .limit(2),
    )
