"""Removing products, keeping them, and removing what is due: who asks, and for what.

What happens to a product then is ``services/lifecycle/``'s.  Nothing that is held or still
retained goes (promise I11).  Called by the web layer and by ``bulk.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import literal, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from admin_api.catalog import clock, entries
from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.catalog.models import Product, State
from admin_api.errors import InProgress, InvalidRequest, NotFound, StorageManagerError
from admin_api.services import lifecycle
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.listing import SHOWN, find_product

log = logging.getLogger(__name__)

_DUE_AT_ONCE = 200
_SOUGHT_AT_ONCE = 500


def remove(facility: Facility, principal: Principal, product_id: str, cause: str) -> ProductEntry:
    """Remove a product and return its tombstone; again and again gives the same.

    Raises NotFound, Held, Retained, and Unavailable where the product's store is not mounted.  If
    the store fails meanwhile the product is gone for everybody all the same, its state stays
    ``removing``, and housekeeping finishes the work.
    """
    with facility.catalog.reading() as session:
        product = find_product(session, principal, product_id)
    if product.state != State.REMOVED:
        lifecycle.remove(facility, product, principal.actor, cause)
    with facility.catalog.reading() as session:
        return entries.product(session, product.pk) or product


@dataclass(frozen=True, slots=True)
class Keeping:
    """A change to how long a product is kept; ``change_*`` says which parts are meant."""

    change_hold: bool = False
    hold_reason: str | None = None
    change_retention: bool = False
    retention_until: datetime | None = None


def keep(
    facility: Facility, principal: Principal, product_id: str, wish: Keeping
) -> tuple[ProductEntry, list[FileEntry]]:
    """Set or lift a hold, move the retention date; only what the wish names changes.

    Returns the product as the change has left it, though it may be replaced a moment later.

    Raises NotFound, InvalidRequest for a product that is not available, and InProgress where it is
    replaced or removed at the same time.
    """
    with facility.catalog.reading() as session:
        product = find_product(session, principal, product_id)
        files = entries.files_of(session, product.pk)
    if product.state != State.AVAILABLE:
        raise InvalidRequest("Only an available product can be held or retained.")
    values: dict[str, Any] = {}
    if wish.change_hold:
        values["hold_reason"] = wish.hold_reason
        values["hold_by"] = principal.subject if wish.hold_reason else None
    if wish.change_retention:
        values["retention_until"] = wish.retention_until
    return lifecycle.keep(facility, product, principal.actor, values), files


def purge(facility: Facility, principal: Principal, dry_run: bool) -> Iterator[ProductEntry]:
    """Remove every product whose retention date has passed and that nobody holds, many at a time.

    What cannot go is given as it stays, ``available`` (held or retained meanwhile, or its store is
    not there) or ``removing`` (its store fails), and passed over.
    """
    place: tuple[datetime, int] | None = None
    while True:
        with facility.catalog.reading() as session:
            query = (
                entries.products()
                .where(Product.state == State.AVAILABLE)
                .where(Product.retention_until <= clock.read(session))
                .where(Product.hold_reason.is_(None))
                .order_by(Product.retention_until, Product.pk)
                .limit(_DUE_AT_ONCE)
            )
            if place is not None:
                until = literal(place[0], Product.retention_until.type)
                last = tuple_(until, literal(place[1]))
                query = query.where(tuple_(Product.retention_until, Product.pk) > last)
            if principal.missions is not None:
                query = query.where(Product.mission.in_(principal.missions))
            due = entries.all_of(ProductEntry, session, query)
        if not due:
            return
        assert due[-1].retention_until is not None
        place = (due[-1].retention_until, due[-1].pk)
        if dry_run:
            yield from due
            continue
        there = in_their_stores(facility, due)
        lifecycle.remove_many(facility, there, principal.actor, "retention ended")
        with facility.catalog.reading() as session:
            now = entries.products_by_pk(session, [product.pk for product in due])
        by_pk = {product.pk: product for product in now}
        yield from (by_pk.get(product.pk, product) for product in due)


def in_their_stores(facility: Facility, products: Sequence[ProductEntry]) -> list[ProductEntry]:
    """Those of ``products`` whose stores are the expected ones now."""
    is_there: dict[str, bool] = {}
    for product in products:
        mount = facility.storage.mount_of(f"{product.directory}/")
        if mount not in is_there:
            is_there[mount] = True
            try:
                facility.storage.require_at(f"{product.directory}/")
            except StorageManagerError:
                log.exception("a store is not there to be purged", extra={"mount": mount})
                is_there[mount] = False
    return [
        product
        for product in products
        if is_there[facility.storage.mount_of(f"{product.directory}/")]
    ]


def sought(
    facility: Facility, principal: Principal, wanted: Sequence[Mapping[str, Any]]
) -> list[ProductEntry | StorageManagerError]:
    """The product that each of ``wanted`` names by ``id`` or ``name``, or what is wrong with it.

    The available one, or the newest that was removed.  With a ``generation`` that one is meant and
    no other: InProgress if it was replaced.
    """
    by_id = _newest(facility, principal, Product.id, {item.get("id") for item in wanted})
    by_name = _newest(facility, principal, Product.name, {item.get("name") for item in wanted})
    found: list[ProductEntry | StorageManagerError] = []
    for item in wanted:
        name, product_id = item.get("name"), item.get("id")
        product = by_id.get(product_id) if product_id else by_name.get(name)
        if product is None:
            found.append(NotFound(f"There is no product {product_id or name!r}."))
        elif item.get("generation") not in (None, product.generation):
            found.append(InProgress(f"{product.name!r} was replaced since the job found it."))
        else:
            found.append(product)
    return found


def _newest(
    facility: Facility,
    principal: Principal,
    column: InstrumentedAttribute[str],
    values: set[str | None],
) -> dict[str | None, ProductEntry]:
    newest: dict[str | None, ProductEntry] = {}
    known = sorted(value for value in values if value is not None)
    for at in range(0, len(known), _SOUGHT_AT_ONCE):
        query = (
            entries.products()
            .where(column.in_(known[at : at + _SOUGHT_AT_ONCE]))
            .where(Product.available_at.is_not(None), Product.state.in_(SHOWN))
            .order_by((Product.state == State.AVAILABLE), Product.generation)
        )
        with facility.catalog.reading() as session:
            for product in entries.all_of(ProductEntry, session, query):
                if principal.sees(product.mission):
                    newest[getattr(product, column.key)] = product
    return newest
