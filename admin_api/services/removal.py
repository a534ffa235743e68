"""What happens when a product is removed.

The catalog row turns ``removing`` (nobody sees the product any more), the record says so in the
store, the bytes go, and the row stays as a tombstone: who, when, why.  Nothing that is held or
still retained goes (promise I11).  Called by the web layer, by replacement and by housekeeping.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from admin_api.catalog import events
from admin_api.catalog.database import changed
from admin_api.catalog.events import Actor
from admin_api.catalog.models import File, Product, State
from admin_api.errors import Held, InProgress, InvalidRequest, Retained, StorageManagerError
from admin_api.services import records
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.listing import find_product

log = logging.getLogger(__name__)


def remove(facility: Facility, principal: Principal, product_id: str, cause: str) -> Product:
    """Remove a product and return its tombstone; again and again gives the same.

    Raises NotFound, Held, Retained, and Unavailable where the product's store is not mounted.  If
    the store fails meanwhile the product is gone for everybody all the same, its state stays
    ``removing``, and housekeeping finishes the work.
    """
    with facility.catalog.reading() as session:
        product = find_product(session, principal, product_id)
    if product.state == State.AVAILABLE:
        facility.storage.require_at(f"{product.directory}/")
    with facility.catalog.writing() as session:
        product = find_product(session, principal, product_id)
        if product.state == State.AVAILABLE:
            refuse_kept(product)
            mark(session, product, principal.actor, cause)
    if product.state == State.REMOVING:
        try:
            finish(facility, product.pk)
        except StorageManagerError:
            log.exception("removal goes on in housekeeping", extra={"product": product.id})
    with facility.catalog.reading() as session:
        return session.get_one(Product, product.pk)


def mark(session: Session, product: Product, actor: Actor, cause: str) -> None:
    """Take an available product out of sight, within the caller's transaction."""
    product.state = State.REMOVING
    product.removed_at = product.touched_at = datetime.now(UTC)
    product.removed_by = actor.subject
    product.removed_cause = cause
    events.append(session, "product.removed", actor, product, cause=cause)
    session.flush()


def finish(facility: Facility, pk: int) -> None:
    """Record the removal in the store, delete the bytes, leave the tombstone; repeatable."""
    with facility.catalog.reading() as session:
        product = session.get_one(Product, pk)
        if product.state != State.REMOVING:
            return
        keys = [file.key for file in records.files_of(session, product)]
    number = product.number
    if product.available_at is not None:
        statement = records.describe(facility, product, (), number + 1, "removed")
        number = records.write_next(
            facility, records.mount_path(facility, product), statement
        ).number
    if not product.registered:
        facility.storage.delete_many(keys)
        # An attempt that never came to its commit has objects that no row names.
        facility.storage.delete_many(
            [stat.key for stat in facility.storage.list(product.directory)]
        )
    with facility.catalog.writing() as session:
        session.execute(delete(File).where(File.product_pk == pk))
        session.execute(
            update(Product)
            .where(Product.pk == pk, Product.state == State.REMOVING)
            .values(state=State.REMOVED, number=number, touched_at=datetime.now(UTC))
        )


@dataclass(frozen=True, slots=True)
class Keeping:
    """A change to how long a product is kept; ``change_*`` says which parts are meant."""

    change_hold: bool = False
    hold_reason: str | None = None
    change_retention: bool = False
    retention_until: datetime | None = None


def keep(facility: Facility, principal: Principal, product_id: str, wish: Keeping) -> Product:
    """Set or lift a hold, move the retention date; in the record first, then in the catalog.

    Raises NotFound, InvalidRequest for a product that is not available, and InProgress where it is
    replaced, removed or kept by somebody else at the same time.
    """
    with facility.catalog.reading() as session:
        product = find_product(session, principal, product_id)
        if product.state != State.AVAILABLE:
            raise InvalidRequest("Only an available product can be held or retained.")
        files = records.files_of(session, product)
    if wish.change_hold:
        product.hold_reason = wish.hold_reason
        product.hold_by = principal.subject if wish.hold_reason else None
    if wish.change_retention:
        product.retention_until = wish.retention_until
    statement = records.write_next(
        facility,
        records.mount_path(facility, product),
        records.describe(facility, product, files, product.number + 1),
    )
    with facility.catalog.writing() as session:
        if session.scalars(
            select(Product.pk).where(
                Product.name == product.name, Product.state == State.COMMITTING
            )
        ).first():
            raise InProgress("The product is being replaced right now; look at it again.")
        is_changed = changed(
            session,
            update(Product)
            .where(Product.pk == product.pk, Product.number < statement.number)
            .where(Product.state == State.AVAILABLE)
            .values(
                number=statement.number,
                hold_reason=product.hold_reason,
                hold_by=product.hold_by,
                retention_until=product.retention_until,
            ),
        )
        if not is_changed:
            raise InProgress("The product was changed meanwhile; look at it again.")
        events.append(
            session,
            "product.kept",
            principal.actor,
            product,
            hold=product.hold_reason,
            retention=product.retention_until.isoformat() if product.retention_until else None,
        )
    with facility.catalog.reading() as session:
        return session.get_one(Product, product.pk)


def purge(facility: Facility, principal: Principal, dry_run: bool) -> Iterator[Product]:
    """Remove every product whose retention date has passed and that nobody holds."""
    after = 0
    while True:
        with facility.catalog.reading() as session:
            query = (
                select(Product)
                .where(Product.state == State.AVAILABLE, Product.pk > after)
                .where(Product.retention_until <= datetime.now(UTC))
                .where(Product.hold_reason.is_(None))
                .order_by(Product.pk)
                .limit(100)
            )
            if principal.missions is not None:
                query = query.where(Product.mission.in_(principal.missions))
            due = list(session.scalars(query))
        if not due:
            return
        for product in due:
            after = product.pk
            yield product if dry_run else remove(facility, principal, product.id, "retention ended")


def refuse_kept(product: Product) -> None:
    """Raise Held or Retained for a product that must not go, be it removed or replaced."""
    if product.hold_reason is not None:
        raise Held(
            f"The product is held by {product.hold_by}: {product.hold_reason}. "
            "An administrator can lift the hold.",
            held_by=product.hold_by,
        )
    if product.retention_until is not None and product.retention_until > datetime.now(UTC):
        raise Retained(
            f"The product is to be kept until {product.retention_until.isoformat()}. "
            "An administrator can change the date.",
            retention=product.retention_until.isoformat(),
        )
