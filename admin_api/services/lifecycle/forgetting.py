"""Forgetting failed attempts without giving their numbers again.  Called by housekeeping."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import (
    delete,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from admin_api.catalog import entries
from admin_api.catalog.entries import ProductEntry
from admin_api.catalog.models import (
    Forgotten,
    Product,
    State,
)
from admin_api.errors import (
    StorageManagerError,
)
from admin_api.services.facility import Facility
from admin_api.services.lifecycle import removing, transitions

log = logging.getLogger(__name__)


def forget(facility: Facility, before: datetime, at_once: int) -> int:
    """Drop the rows of failed attempts that ended ``before``; returns how many.

    Their directories are swept once more first: a writer that was frozen meanwhile may have woken
    up and written there.  Their generation numbers stay given.  The newest row stays as well: the
    number of a row must not come back either, and SQLite would give it again.
    """
    newest = select(func.max(Product.pk)).scalar_subquery()
    failed = (
        Product.state == State.REMOVED,
        Product.available_at.is_(None),
        Product.touched_at < before,
        Product.pk < newest,
    )
    with facility.catalog.reading() as session:
        found = entries.all_of(
            ProductEntry, session, entries.products().where(*failed).limit(at_once)
        )
    swept = []
    for product in found:
        try:
            if product.removed_cause not in (None, transitions.TAKEN):
                removing.clear(facility, product, ())
            swept.append(product.pk)
        except StorageManagerError:
            log.exception("a failed attempt is kept in mind", extra={"pk": product.pk})
    with facility.catalog.writing() as session:
        gone = session.execute(
            delete(Product)
            .where(Product.pk.in_(swept), *failed)
            .returning(Product.name, Product.generation)
            .execution_options(synchronize_session=False)
        ).all()
        last: dict[str, int] = {}
        for name, generation in gone:
            last[name] = max(generation, last.get(name, 0))
        _remember(session, last, facility.catalog.is_sqlite)
    return len(gone)


def _remember(session: Session, last: Mapping[str, int], is_sqlite: bool) -> None:
    if not last:
        return
    rows = [{"name": name, "generation": generation} for name, generation in last.items()]
    if is_sqlite:
        into = sqlite.insert(Forgotten)
        session.execute(
            into.on_conflict_do_update(
                index_elements=["name"],
                set_={"generation": func.max(Forgotten.generation, into.excluded.generation)},
            ),
            rows,
        )
        return
    onto = postgresql.insert(Forgotten)
    session.execute(
        onto.on_conflict_do_update(
            index_elements=["name"],
            set_={"generation": func.greatest(Forgotten.generation, onto.excluded.generation)},
        ),
        rows,
    )
