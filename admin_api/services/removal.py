"""Removing products, keeping them, and removing what is due: who asks, and for what.

What happens to a product then is ``services/lifecycle.py``'s.  Nothing that is held or still
retained goes (promise I11).  Called by the web layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from admin_api.catalog import clock, entries
from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.catalog.models import Product, State
from admin_api.errors import Held, InvalidRequest, NotFound, Retained
from admin_api.services import lifecycle
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.listing import find_product

_DUE_AT_ONCE = 100


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
    """Remove every product whose retention date has passed and that nobody holds.

    One that is held or retained meanwhile is given as it stays, and passed over.
    """
    after = 0
    while True:
        with facility.catalog.reading() as session:
            query = (
                entries.products()
                .where(Product.state == State.AVAILABLE, Product.pk > after)
                .where(Product.retention_until <= clock.read(session))
                .where(Product.hold_reason.is_(None))
                .order_by(Product.pk)
                .limit(_DUE_AT_ONCE)
            )
            if principal.missions is not None:
                query = query.where(Product.mission.in_(principal.missions))
            due = entries.all_of(ProductEntry, session, query)
        if not due:
            return
        for product in due:
            after = product.pk
            if not dry_run:
                with contextlib.suppress(Held, Retained, NotFound):
                    product = remove(facility, principal, product.id, "retention ended")
            yield product
