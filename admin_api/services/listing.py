"""Finding products and events in the catalog: by id, by filter, page by page."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from admin_api.catalog import entries, queries
from admin_api.catalog.entries import EventEntry, FileEntry, ProductEntry
from admin_api.catalog.events import first_broken
from admin_api.catalog.models import Product, State
from admin_api.catalog.queries import EventFilter, ProductFilter
from admin_api.errors import Gone, NotFound
from admin_api.services.access import Principal
from admin_api.services.facility import Facility

#: The states of products that exist or existed.
SHOWN = (State.AVAILABLE, State.REMOVING, State.REMOVED)
_VERIFIED_AT_ONCE = 1000


def find_product(session: Session, principal: Principal, product_id: str) -> ProductEntry:
    """The newest generation of a product, available or removed; raises NotFound.

    A generation that is still being received, or that never came to be, is not there.
    """
    product = entries.first_of(
        ProductEntry,
        session,
        entries.products()
        .where(Product.id == product_id, Product.available_at.is_not(None))
        .where(Product.state.in_(SHOWN))
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
    """A page of the products that the principal may see, and the cursor of the next page.

    The page can be shorter than ``limit``, even empty, and have a cursor all the same.
    """
    with facility.catalog.reading() as session:
        return queries.products(session, wish, principal.missions, cursor, limit)


def list_events(
    facility: Facility, principal: Principal, wish: EventFilter, limit: int
) -> Sequence[EventEntry]:
    """A page of events; those of the principal's missions only."""
    with facility.catalog.reading() as session:
        return queries.events(session, wish, principal.missions, limit)


def verify_events(facility: Facility) -> tuple[int, int | None]:
    """How many events follow from each other, and the number of the first that does not."""
    count, previous = 0, None
    while True:
        with facility.catalog.reading() as session:
            page = queries.events(session, EventFilter(after=count), None, _VERIFIED_AT_ONCE)
        if not page:
            return count, None
        broken = first_broken(page) if previous is None else first_broken(page, previous, count)
        if broken is not None:
            return broken - 1, broken
        count, previous = page[-1].number, page[-1].digest
