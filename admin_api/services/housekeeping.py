"""Clearing up after crashes, so that nothing is left over for longer than the settings say.

Every action is a compare-and-set on a row, so any number of processes may do this at once.
Called by the worker (``admin_api/worker.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from admin_api.catalog import clock, entries
from admin_api.catalog.entries import ProductEntry
from admin_api.catalog.models import Product, State, Upload
from admin_api.errors import StorageManagerError
from admin_api.services import idempotency, incoming, jobs, leases, lifecycle, multiparts, uploads
from admin_api.services.facility import Facility
from admin_api.services.lifecycle import finish, settle

log = logging.getLogger(__name__)

_AT_ONCE = 1000


@dataclass(slots=True)
class Cleared:
    """What one round has done."""

    settled: int = 0
    given_up: int = 0
    finished: int = 0
    recorded: int = 0
    uploads: int = 0
    temporary: int = 0
    incoming: int = 0
    loose: int = 0
    forgotten: int = 0
    jobs: int = 0


def clean(facility: Facility) -> Cleared:
    """One round; raises what store and catalog raise."""
    for gate in facility.storage.gates.values():
        gate.refresh()  # nothing is cleared in a store that somebody has taken over
    settings, cleared = facility.settings.housekeeping, Cleared()
    with facility.catalog.reading() as session:
        now = clock.read(session)
    stale_commit = now - timedelta(seconds=settings.commit_grace_seconds)
    stale = now - timedelta(seconds=settings.grace_seconds)
    facility.reserve.fill()
    for attempt in _rows(facility, State.COMMITTING, stale_commit):
        cleared.settled += _attempt(partial(settle, facility, attempt), attempt)
    cleared.uploads = uploads.expire(facility, _AT_ONCE)
    for attempt in _rows(facility, State.RECEIVING, stale):
        dead = partial(lifecycle.expire, facility, attempt, "no sign of life", stale)
        cleared.given_up += _attempt(dead, attempt)
    for product in _rows(facility, State.REMOVING, stale_commit):
        cleared.finished += _attempt(partial(finish, facility, product.pk), product)
    for product in _unrecorded(facility, stale_commit):
        cleared.recorded += _attempt(partial(lifecycle.record_kept, facility, product), product)
    cleared.temporary = facility.storage.reap(stale) + multiparts.clear(facility, stale)
    incoming.prepare(facility)
    cleared.incoming = incoming.expire(facility, now - timedelta(seconds=settings.incoming_seconds))
    failed_before = now - timedelta(seconds=settings.failed_seconds)
    cleared.forgotten = lifecycle.forget(facility, failed_before, _AT_ONCE)
    cleared.loose = lifecycle.clear_stale_loose(facility, stale, _AT_ONCE)
    leases.forget(facility, _AT_ONCE)
    idempotency.forget(facility, now - timedelta(seconds=settings.idempotency_seconds))
    cleared.jobs = jobs.expire(facility)
    kept = timedelta(seconds=facility.settings.jobs.keep_seconds)
    cleared.jobs += jobs.forget(facility, now - kept)
    return cleared


def _rows(facility: Facility, state: str, touched_before: datetime) -> list[ProductEntry]:
    query = (
        entries.products()
        .where(Product.state == state, Product.touched_at < touched_before)
        .order_by(Product.touched_at)
        .limit(_AT_ONCE)
    )
    if state == State.RECEIVING:  # an upload session lives as long as it says
        query = query.where(Product.pk.not_in(select(Upload.product_pk)))
    with facility.catalog.reading() as session:
        return entries.all_of(ProductEntry, session, query)


def _unrecorded(facility: Facility, touched_before: datetime) -> list[ProductEntry]:
    """Available products of which the catalog has decided more than the store was told."""
    query = (
        entries.products()
        .where(Product.state == State.AVAILABLE, Product.recorded < Product.number)
        .where(Product.touched_at < touched_before)
        .limit(_AT_ONCE)
    )
    with facility.catalog.reading() as session:
        return entries.all_of(ProductEntry, session, query)


def _attempt(action: Callable[[], object], product: ProductEntry) -> int:
    try:
        action()
    except (StorageManagerError, IntegrityError):
        log.exception("a leftover stays for the next round", extra={"pk": product.pk})
        return 0
    return 1
