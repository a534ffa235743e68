"""Holds, retention and leases of available products, and the records of what was decided.

Called by ``removal.py`` and ``leases.py`` by way of the package.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    case,
    func,
    select,
    update,
)
from sqlalchemy.orm import Session

from admin_api.catalog import entries, events
from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.catalog.events import Actor, Happening
from admin_api.catalog.models import (
    Lease,
    LeasedProduct,
    Product,
    State,
)
from admin_api.errors import (
    InProgress,
)
from admin_api.products.digests import list_digest
from admin_api.services import records
from admin_api.services.facility import Facility
from admin_api.services.lifecycle import transitions

log = logging.getLogger(__name__)


def keep(
    facility: Facility, product: ProductEntry, actor: Actor, values: Mapping[str, Any]
) -> ProductEntry:
    """Change how long an available product is kept, and record it.

    ``values`` are columns of the hold and the retention.  The change is in force once the catalog
    has it; raises InProgress where the product is replaced or removed at the same time, and what
    the store raises if the record cannot be written now: housekeeping writes it later.
    """
    facility.storage.require_at(f"{product.directory}/")
    with facility.catalog.writing() as session:
        kept = transitions.move(
            session,
            [
                Product.pk == product.pk,
                Product.state == State.AVAILABLE,
                Product.successor.is_(None),
            ],
            {"number": Product.number + 1, **values},
        )
        if not kept:
            raise InProgress("The product is being replaced or removed; look at it again.")
        until = kept[0].retention_until
        events.append(
            session,
            actor,
            [
                Happening(
                    "product.kept",
                    kept[0],
                    {
                        "hold": kept[0].hold_reason,
                        "retention": until.isoformat() if until else None,
                    },
                )
            ],
        )
    number = record_kept(facility, kept[0])
    return replace(kept[0], number=number, recorded=number)


def _as_it_is(
    facility: Facility, product: ProductEntry
) -> tuple[ProductEntry, Sequence[FileEntry]]:
    """An available product and its files, of one moment."""
    for _ in range(transitions.RACE_ATTEMPTS):
        with facility.catalog.reading() as session:
            now = entries.product(session, product.pk)
            files = entries.files_of(session, product.pk)
        if now is None or now.state != State.AVAILABLE:
            break
        digest = list_digest((file.path, file.size, file.sha256) for file in files)
        if now.list_digest in (None, digest):
            return now, files
    raise InProgress("The product is being changed or removed; look at it again.")


def record_kept(facility: Facility, product: ProductEntry) -> int:
    """Write down in the store what the catalog has decided about an available product.

    Returns the number of the statement.
    """
    now, files = _as_it_is(facility, product)
    written = records.write_next(
        facility,
        records.mount_path(facility, product),
        records.describe(facility, now, files, product.number),
    )
    with facility.catalog.writing() as session:
        session.execute(
            update(Product)
            .where(Product.pk == product.pk, Product.attempt == product.attempt)
            .where(Product.recorded < written.number)
            .values(
                recorded=written.number,
                number=func.max(Product.number, written.number)
                if facility.catalog.is_sqlite
                else func.greatest(Product.number, written.number),
            ),
            execution_options={"synchronize_session": False},
        )
    return written.number


def lease(session: Session, pks: Sequence[int], until: datetime) -> list[ProductEntry]:
    """Let available products stay until then at least, within the caller's transaction.

    Returns those that do: what is being removed or replaced already does not.
    """
    later = case((Product.leased_until > until, Product.leased_until), else_=until)
    return transitions.move(
        session,
        [Product.pk.in_(pks), Product.state == State.AVAILABLE, Product.successor.is_(None)],
        {"leased_until": later},
    )


def unlease(session: Session, pks: Sequence[int]) -> None:
    """Let products stay as long as the leases say that are there now, and no longer."""
    # First the rows, then a look at the leases: who takes one meanwhile waits for this.
    session.execute(
        select(Product.pk).where(Product.pk.in_(pks)).order_by(Product.pk).with_for_update()
    )
    last = (
        select(func.max(Lease.expires_at))
        .join(LeasedProduct, LeasedProduct.lease_id == Lease.id)
        .where(LeasedProduct.product_pk == Product.pk)
        .scalar_subquery()
    )
    session.execute(
        update(Product).where(Product.pk.in_(pks)).values(leased_until=last),
        execution_options={"synchronize_session": False},
    )
