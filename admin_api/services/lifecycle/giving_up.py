"""Attempts that come to nothing: their bytes go, and a late writer finds no way back.

Called by ``reception.py``, ``uploads.py`` and housekeeping by way of the package.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from admin_api.catalog import entries
from admin_api.catalog.entries import ProductEntry
from admin_api.catalog.events import SYSTEM, Actor
from admin_api.catalog.models import (
    Product,
    State,
)
from admin_api.errors import (
    StorageManagerError,
)
from admin_api.services.facility import Facility
from admin_api.services.lifecycle import removing, settling, transitions

log = logging.getLogger(__name__)


def discard(
    facility: Facility, attempt: ProductEntry, actor: Actor, cause: str, keys: Sequence[str]
) -> None:
    """Leave nothing of an attempt of this process: exactly ``keys``, which it has written, go.

    Unless it may have been committed: a commit whose outcome is not known is settled later.
    What cannot be removed now is housekeeping's.
    """
    try:
        with facility.catalog.writing() as session:
            given_up = transitions.give_up(
                session, transitions.row_of(attempt, State.RECEIVING), actor, cause
            )
            known = _of_attempt(session, attempt)
        if known is None:
            clear_forgotten(facility, attempt, keys)
        if not given_up and not _is_dead(known):
            return
        if not attempt.registered:
            facility.storage.delete_many(keys)
        if given_up:
            with facility.catalog.writing() as session:
                transitions.bury(session, attempt.pk, 0)
    except StorageManagerError:
        log.exception("leftovers stay for housekeeping", extra={"pk": attempt.pk})


def clear_forgotten(facility: Facility, attempt: ProductEntry, keys: Sequence[str]) -> None:
    """What a writer has left so late that the catalog does not know its attempt any more goes.

    Nobody would sweep there again.  Nothing goes if the catalog knows the attempt, or if the store
    has its record: a rebuilt catalog has the product in another row.
    """
    with facility.catalog.reading() as session:
        known = _of_attempt(session, attempt)
    if known is None and not attempt.registered and settling.put_void(facility, attempt) is None:
        facility.storage.delete_many(removing.ownerless(facility, attempt, keys))


def _of_attempt(session: Session, attempt: ProductEntry) -> ProductEntry | None:
    """The attempt as it is now; None once it is forgotten."""
    now = entries.product(session, attempt.pk)
    return now if now is not None and now.attempt == attempt.attempt else None


def _is_dead(attempt: ProductEntry | None) -> bool:
    """Whether somebody else has given the attempt up for good."""
    return (
        attempt is not None
        and attempt.available_at is None
        and attempt.state in (State.REMOVING, State.REMOVED)
    )


def expire(facility: Facility, attempt: ProductEntry, cause: str, stale: datetime | None) -> bool:
    """Give up an attempt whose process is dead; True if it was.

    The store is asked first: in a catalog that was restored from a backup the row can be older
    than the product's commit, and then the product is taken in.  With ``stale`` an attempt that
    has given a sign of life since is left alone.
    """
    if settling.take_in(facility, attempt):
        return False
    where = transitions.row_of(attempt, State.RECEIVING)
    if stale is not None:
        where.append(Product.touched_at < stale)
    with facility.catalog.writing() as session:
        given_up = transitions.give_up(session, where, SYSTEM, cause)
    if not given_up:
        return False
    settling.put_void(facility, attempt)
    removing.finish(facility, attempt.pk)
    return True
