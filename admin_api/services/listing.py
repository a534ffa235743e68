"""Finding products and events in the catalog: by id, by filter, page by page."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from admin_api.catalog import entries
from admin_api.catalog.entries import EventEntry, FileEntry, ProductEntry
from admin_api.catalog.events import first_broken
from admin_api.catalog.models import Event, Product, State
from admin_api.errors import Gone, InvalidRequest, NotFound
from admin_api.services.access import Principal
from admin_api.services.facility import Facility

_SHOWN = (State.AVAILABLE, State.REMOVING, State.REMOVED)
_VERIFIED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class ProductFilter:
    """What to list; None means any."""

    state: str = State.AVAILABLE
    mission: str | None = None
    product_type: str | None = None
    name: str | None = None
    name_prefix: str | None = None
    sensing_from: datetime | None = None
    sensing_to: datetime | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None


def find_product(session: Session, principal: Principal, product_id: str) -> ProductEntry:
    """The newest generation of a product, available or removed; raises NotFound.

    A generation that is still being received, or that never came to be, is not there.
    """
    product = entries.first_of(
        ProductEntry,
        session,
        entries.products()
        .where(Product.id == product_id, Product.available_at.is_not(None))
        .where(Product.state.in_(_SHOWN))
        .order_by((Product.state == State.AVAILABLE).desc(), Product.generation.desc())
        .limit(1),
    )
    if product is None or not principal.sees(product.mission):
        raise NotFound(f"There is no product {product_id!r}.")
    return product


def get_product(
    facility: Facility, principal: Principal, product_id: str
) -> tuple[ProductEntry, list[FileEntry]]:
    """A product and its files (none for a tombstone); raises NotFound."""
    with facility.catalog.reading() as session:
        product = find_product(session, principal, product_id)
        files: list[FileEntry] = []
        if product.state == State.AVAILABLE:
            files = entries.files_of(session, product.pk)
        return product, files


def require_available(product: ProductEntry) -> None:
    """Raise Gone, with the tombstone's words, for a removed product."""
    if product.state != State.AVAILABLE:
        at = product.removed_at.isoformat() if product.removed_at else "an unknown time"
        raise Gone(
            f"The product was removed by {product.removed_by} at {at}: {product.removed_cause}.",
            removed_at=at,
            cause=product.removed_cause,
        )


def list_products(
    facility: Facility, principal: Principal, wish: ProductFilter, cursor: str | None, limit: int
) -> tuple[Sequence[ProductEntry], str | None]:
    """A page of products in the order of their ingestion, and the cursor of the next page."""
    query = _filtered(wish)
    if principal.missions is not None:
        query = query.where(Product.mission.in_(principal.missions))
    if cursor is not None:
        query = query.where(Product.pk > _decode_cursor(cursor))
    with facility.catalog.reading() as session:
        found = entries.all_of(ProductEntry, session, query.order_by(Product.pk).limit(limit + 1))
    page = found[:limit]
    return page, _encode_cursor(page[-1].pk) if len(found) > limit else None


def _filtered(wish: ProductFilter) -> Select[Any]:
    query = entries.products().where(Product.available_at.is_not(None), Product.state == wish.state)
    for column, value in (
        (Product.mission, wish.mission),
        (Product.product_type, wish.product_type),
        (Product.name, wish.name),
    ):
        if value is not None:
            query = query.where(column == value)
    if wish.name_prefix:
        query = query.where(Product.name >= wish.name_prefix)
        # The first string behind all that begin so: in byte order U+10FFFF is the last character.
        query = query.where(Product.name < wish.name_prefix + "\U0010ffff")
    if wish.sensing_from:
        query = query.where(Product.sensing_stop >= wish.sensing_from)
    if wish.sensing_to:
        query = query.where(Product.sensing_start <= wish.sensing_to)
    if wish.created_from:
        query = query.where(Product.available_at >= wish.created_from)
    if wish.created_to:
        query = query.where(Product.available_at <= wish.created_to)
    return query


def list_events(
    facility: Facility, principal: Principal, after: int, limit: int
) -> Sequence[EventEntry]:
    """Events behind number ``after``; those of the principal's missions only."""
    query = _events(after, limit)
    if principal.missions is not None:
        query = query.where(Event.mission.in_(principal.missions))
    with facility.catalog.reading() as session:
        return entries.all_of(EventEntry, session, query)


def _events(after: int, limit: int) -> Select[Any]:
    query = select(*entries.EVENT).where(Event.number > after)
    return query.order_by(Event.number).limit(limit)


def verify_events(facility: Facility) -> tuple[int, int | None]:
    """How many events follow from each other, and the number of the first that does not."""
    count, previous = 0, None
    while True:
        with facility.catalog.reading() as session:
            page = entries.all_of(EventEntry, session, _events(count, _VERIFIED_AT_ONCE))
        if not page:
            return count, None
        broken = first_broken(page) if previous is None else first_broken(page, previous, count)
        if broken is not None:
            return broken - 1, broken
        count, previous = page[-1].number, page[-1].digest


def _encode_cursor(pk: int) -> str:
    return base64.urlsafe_b64encode(f"p{pk}".encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        if text.startswith("p") and len(text) < 20 and text[1:].isdecimal():
            return int(text[1:])
    except (ValueError, binascii.Error):
        pass
    raise InvalidRequest("The cursor is not one that this service gave.")
