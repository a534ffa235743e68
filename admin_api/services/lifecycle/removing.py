"""Removing products: out of sight, recorded, swept, buried.

Called by ``removal.py`` and housekeeping by way of the package, and by whoever replaces a product.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import (
    select,
    tuple_,
)

from admin_api.catalog import clock, entries
from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.catalog.events import Actor
from admin_api.catalog.models import (
    File,
    Product,
    State,
)
from admin_api.errors import (
    InProgress,
    NoSpace,
    StorageManagerError,
)
from admin_api.products.records import Statement
from admin_api.services import records
from admin_api.services.facility import Facility
from admin_api.services.lifecycle import beginning, transitions

log = logging.getLogger(__name__)

SWEPT_AT_ONCE = 500
_KEYS_AT_ONCE = 5000
#: So many keys are listed for each directory that would be looked at by a request of its own.
_NEIGHBOURS = 20


def remove(
    facility: Facility, product: ProductEntry, actor: Actor, cause: str, unchanged: bool = False
) -> None:
    """Available -> removing -> removed; with ``unchanged`` only as ``product`` says that it is.

    Raises Held, Retained, Leased, InProgress for one that has changed, and Unavailable where the
    store is not there.  If it fails later the
    product is gone for everybody all the same, its state stays ``removing``, and housekeeping
    finishes the work.
    """
    facility.storage.require_at(f"{product.directory}/")

    def retire() -> list[ProductEntry]:
        with facility.catalog.writing() as session:
            where = [Product.pk == product.pk, transitions.may_go()]
            if unchanged:
                where.append(Product.number == product.number)
            return transitions.retire(session, where, actor, cause)

    if not facility.reserve.spend_on(retire):
        with facility.catalog.reading() as session:
            now = entries.product(session, product.pk)
            if now is not None and now.state == State.AVAILABLE:
                beginning.refuse_kept(now, clock.read(session))
                beginning.refuse_leased(session, now)
                if unchanged:
                    raise InProgress("The product has changed meanwhile; try again.")
    try:
        facility.reserve.spend_on(lambda: finish(facility, product.pk))
    except StorageManagerError:
        log.exception("removal goes on in housekeeping", extra={"product": product.id})


def remove_many(
    facility: Facility, products: Sequence[ProductEntry], actor: Actor, cause: str
) -> None:
    """Available -> removing -> removed, for some hundred products at once.

    What is held, retained or not available any more stays as it is.  What a store does not let go
    now stays ``removing`` and is housekeeping's, as after ``remove``.
    """
    pks = [product.pk for product in products]

    def retire() -> list[ProductEntry]:
        with facility.catalog.writing() as session:
            return transitions.retire(
                session, [Product.pk.in_(pks), transitions.may_go()], actor, cause
            )

    retired = facility.reserve.spend_on(retire)
    try:
        facility.reserve.spend_on(lambda: _finish_many(facility, retired))
    except StorageManagerError:
        log.exception("removals go on one by one", extra={"products": len(retired)})
        for product in retired:
            try:
                finish(facility, product.pk)
            except StorageManagerError:
                log.exception("removal goes on in housekeeping", extra={"product": product.id})


def _finish_many(facility: Facility, products: Sequence[ProductEntry]) -> None:
    """As ``finish``, for products that existed: one record, and few requests to the stores."""
    if not products:
        return
    try:
        _record_removals(facility, products)
        _clear_many(facility, products)
    except NoSpace:
        _clear_many(facility, products)
        _record_removals(facility, products)
    with facility.catalog.writing() as session:
        transitions.bury_many(session, [product.pk for product in products])


def _record_removals(facility: Facility, products: Sequence[ProductEntry]) -> None:
    by_mount: dict[str, list[Statement]] = {}
    for product in products:
        statement = records.describe(facility, product, (), product.number, "removed")
        by_mount.setdefault(records.mount_path(facility, product), []).append(statement)
    for mount, statements in by_mount.items():
        records.write_removals(facility, mount, statements)


def _clear_many(facility: Facility, products: Sequence[ProductEntry]) -> None:
    """The bytes go, and what else lies in the products' directories."""
    owned = [product for product in products if not product.registered]
    facility.storage.delete_many(_keys_of(facility, [product.pk for product in owned]))
    by_parent: dict[str, list[ProductEntry]] = {}
    for product in owned:
        by_parent.setdefault(product.directory.rpartition("/")[0], []).append(product)
    for parent, group in by_parent.items():
        _sweep_many(facility, parent, group)


def _keys_of(facility: Facility, pks: Sequence[int]) -> Iterator[str]:
    """The keys of the files of products, page by page and directory by directory."""
    place: tuple[int, str] = (0, "")
    while True:
        query = (
            select(File.product_pk, File.path, File.key)
            .where(File.product_pk.in_(pks), tuple_(File.product_pk, File.path) > place)
            .order_by(File.product_pk, File.path)
            .limit(_KEYS_AT_ONCE)
        )
        with facility.catalog.reading() as session:
            page = session.execute(query).all()
        yield from (key for _, _, key in page)
        if len(page) < _KEYS_AT_ONCE:
            return
        place = (page[-1][0], page[-1][1])


def _sweep_many(facility: Facility, parent: str, products: Sequence[ProductEntry]) -> None:
    """As ``sweep``, for neighbours in ``parent``: by one listing if little else is there."""
    left: dict[str, list[str]] = {product.directory: [] for product in products}
    most = _NEIGHBOURS * len(products)
    if parent and len(products) > 1:
        for count, stat in enumerate(facility.storage.list(parent)):
            name = stat.key[len(parent) + 1 :].partition("/")[0]
            left.get(f"{parent}/{name}", []).append(stat.key)
            if count == most:
                break
        else:
            for product in products:
                keys = ownerless(facility, product, left[product.directory])
                facility.storage.delete_many(keys)
            return
    with ThreadPoolExecutor(transitions.SIDE_BY_SIDE, thread_name_prefix="sweep") as pool:
        for _ in pool.map(lambda product: sweep(facility, product), products):
            pass  # raises what a sweep has raised


def finish(facility: Facility, pk: int) -> None:
    """Removing -> removed: record the removal, delete the bytes, leave the tombstone; repeatable.

    Where the store has no room for the record the bytes go first: the removal is decided.
    """
    with facility.catalog.reading() as session:
        product = entries.product(session, pk)
        if product is None or product.state != State.REMOVING:
            return
        files = entries.files_of(session, pk)
    number = product.number
    if product.available_at is None:
        clear(facility, product, files)
    else:
        try:
            number = _record_removal(facility, product)
            clear(facility, product, files)
        except NoSpace:
            clear(facility, product, files)
            number = _record_removal(facility, product)
    with facility.catalog.writing() as session:
        transitions.bury(session, pk, number)


def _record_removal(facility: Facility, product: ProductEntry) -> int:
    if product.recorded >= product.number:
        return product.number
    statement = records.describe(facility, product, (), product.number, "removed")
    mount = records.mount_path(facility, product)
    return records.write_next(facility, mount, statement).number


def clear(facility: Facility, product: ProductEntry, files: Sequence[FileEntry]) -> None:
    """The bytes go: those of the product's own files, and what its attempt has left besides."""
    if product.registered:
        return
    facility.storage.delete_many([file.key for file in files])
    recorded = None if product.available_at is not None else records.of_attempt(facility, product)
    sweep(facility, product, {file.key for file in recorded.files} if recorded else set())


def sweep(facility: Facility, product: ProductEntry, spared: Iterable[str] = ()) -> None:
    """Delete what lies in the directory of a generation that is no more.

    Never what is another product's: the files that the catalog knows of others (registered in
    place, for example), the directories of others beneath this one, and ``spared`` (keys within
    the mount that a record of the store names).
    """
    mount = records.mount_path(facility, product)
    known = set(spared)
    batch: list[str] = []
    for stat in facility.storage.list(product.directory):
        if stat.key[len(mount) :].lstrip("/") not in known:
            batch.append(stat.key)
        if len(batch) == SWEPT_AT_ONCE:
            facility.storage.delete_many(ownerless(facility, product, batch))
            batch = []
    facility.storage.delete_many(ownerless(facility, product, batch))


def ownerless(facility: Facility, product: ProductEntry, keys: Sequence[str]) -> list[str]:
    """Those of ``keys`` that are neither files of other products nor in their directories."""
    if not keys:
        return []
    with facility.catalog.reading() as session:
        taken = set(
            session.scalars(
                select(File.key).where(File.key.in_(keys), File.product_pk != product.pk)
            )
        )
        inner = session.scalars(
            select(Product.directory)
            .where(Product.directory > product.directory + "/")
            .where(Product.directory < product.directory + "0")  # '0' follows '/'
            .where(Product.state != State.REMOVED)
        ).all()
    return [
        key
        for key in keys
        if key not in taken and not any(key.startswith(f"{other}/") for other in inner)
    ]
