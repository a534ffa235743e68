"""Clearing up after crashes, so that nothing is left over for longer than the settings say.

Every action is a compare-and-set on a row, so any number of processes may do this at once.
Run in a thread of every server process (``web/server.py``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from sqlalchemy import delete, select

from admin_api.catalog.events import SYSTEM
from admin_api.catalog.models import Idempotency, Product, State, Upload
from admin_api.errors import StorageManagerError
from admin_api.services import idempotency, incoming, multiparts, removal
from admin_api.services.facility import Facility
from admin_api.services.reception import give_up, settle
from admin_api.services.uploads import expire

log = logging.getLogger(__name__)

_AT_ONCE = 1000
_BEAT_SECONDS = 10.0


@dataclass(slots=True)
class Cleared:
    """What one round has done."""

    settled: int = 0
    given_up: int = 0
    finished: int = 0
    uploads: int = 0
    temporary: int = 0
    incoming: int = 0
    forgotten: int = 0


def clean(facility: Facility) -> Cleared:
    """One round; raises what store and catalog raise."""
    settings, now, cleared = facility.settings.housekeeping, datetime.now(UTC), Cleared()
    stale_commit = now - timedelta(seconds=settings.commit_grace_seconds)
    stale = now - timedelta(seconds=settings.grace_seconds)
    for pk in _rows(facility, State.COMMITTING, stale_commit):
        cleared.settled += _attempt(partial(settle, facility, pk), pk)
    cleared.uploads = expire(facility)
    for pk in _rows(facility, State.RECEIVING, stale):
        cleared.given_up += _attempt(partial(_give_up, facility, pk), pk)
    for pk in _rows(facility, State.REMOVING, stale_commit):
        cleared.finished += _attempt(partial(removal.finish, facility, pk), pk)
    cleared.temporary = facility.storage.reap(stale) + multiparts.clear(facility)
    incoming.prepare(facility)
    cleared.incoming = incoming.expire(facility, now - timedelta(seconds=settings.incoming_seconds))
    cleared.forgotten = _forget(facility, now)
    return cleared


def run(facility: Facility, stop: threading.Event, note: Callable[[Cleared], None]) -> None:
    """Rounds until ``stop`` is set; a failing round is logged and the next one tries again."""
    interval = facility.settings.housekeeping.interval_seconds
    due = time.monotonic()  # the first round comes soon: it clears what a crash has left
    while not stop.wait(min(interval, _BEAT_SECONDS)):
        try:
            idempotency.beat(facility)
            if time.monotonic() >= due:
                note(clean(facility))
                due = time.monotonic() + interval
        except Exception:
            log.exception("housekeeping failed; it will be tried again")


def _rows(facility: Facility, state: str, touched_before: datetime) -> list[int]:
    query = (
        select(Product.pk)
        .where(Product.state == state, Product.touched_at < touched_before)
        .order_by(Product.touched_at)
        .limit(_AT_ONCE)
    )
    if state == State.RECEIVING:  # an upload session lives as long as it says
        query = query.where(Product.pk.not_in(select(Upload.product_pk)))
    with facility.catalog.reading() as session:
        return list(session.scalars(query))


def _attempt(action: Callable[[], object], pk: int) -> int:
    try:
        action()
    except StorageManagerError:
        log.exception("a leftover stays for the next round", extra={"pk": pk})
        return 0
    return 1


def _give_up(facility: Facility, pk: int) -> None:
    with facility.catalog.writing() as session:
        given_up = give_up(session, pk, SYSTEM, "no sign of life")
    if given_up:
        removal.finish(facility, pk)


def _forget(facility: Facility, now: datetime) -> int:
    """Drop rows of failed attempts and of old Idempotency-Keys.

    The attempt's directory is swept once more first: a writer that was frozen meanwhile may have
    woken up and written into it.
    """
    settings = facility.settings.housekeeping
    failed_before = now - timedelta(seconds=settings.failed_seconds)
    with facility.catalog.reading() as session:
        failed = list(
            session.scalars(
                select(Product)
                .where(Product.state == State.REMOVED, Product.available_at.is_(None))
                .where(Product.touched_at < failed_before)
                .limit(_AT_ONCE)
            )
        )
    for product in failed:
        if not product.registered and product.removed_cause is not None:
            facility.storage.delete_many(
                [stat.key for stat in facility.storage.list(product.directory)]
            )
    with facility.catalog.writing() as session:
        session.execute(delete(Product).where(Product.pk.in_([row.pk for row in failed])))
        kept_from = now - timedelta(seconds=settings.idempotency_seconds)
        session.execute(delete(Idempotency).where(Idempotency.touched_at < kept_from))
    return len(failed)
