"""Signs of life: a thread of its own says every few seconds which work of this process goes on.

How often follows from the grace times (``settings.HousekeepingSettings.beat_seconds``).
Attempts, the claims of files in upload sessions, chunks of jobs, jobs that are being told their
items, and requests with an Idempotency-Key are marked with the database's clock whatever the
threads that do the work are waiting for; what is not marked any more belongs to a process that died
or was frozen, and is taken over.  Used by reception, uploads, idempotency and bulk jobs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence

from sqlalchemy import ColumnElement, select, tuple_, update

from admin_api.catalog import clock
from admin_api.catalog.database import Catalog
from admin_api.catalog.entries import ProductEntry
from admin_api.catalog.models import (
    Chunk,
    FileClaim,
    Idempotency,
    Job,
    LooseKey,
    Product,
    State,
)
from admin_api.errors import StorageManagerError

log = logging.getLogger(__name__)

_ALIVE = (State.RECEIVING, State.COMMITTING)


class Heartbeat:
    """What this process works on; the thread begins with the first entry."""

    def __init__(self, catalog: Catalog, beat_seconds: float) -> None:
        self._catalog = catalog
        #: Seconds between two signs of life.
        self.beat_seconds = beat_seconds
        self._lock = threading.Lock()
        self._attempts: dict[str, int] = {}
        self._owners: set[str] = set()
        self._lost: set[str] = set()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def of_attempt(self, attempt: ProductEntry) -> Iterator[None]:
        """While this lasts the attempt is alive."""
        with self._lock:
            self._attempts[attempt.attempt] = attempt.pk
            self._begin()
        try:
            yield
        finally:
            with self._lock:
                self._attempts.pop(attempt.attempt, None)
                self._lost.discard(attempt.attempt)

    @contextlib.contextmanager
    def of_owner(self, owner: str) -> Iterator[None]:
        """While this lasts the request ``owner`` is alive."""
        with self._lock:
            self._owners.add(owner)
            self._begin()
        try:
            yield
        finally:
            with self._lock:
                self._owners.discard(owner)

    def is_lost(self, attempt: ProductEntry) -> bool:
        """Whether somebody has given the attempt up meanwhile."""
        return attempt.attempt in self._lost

    def beat(self) -> None:
        """Mark everything; raises what the catalog raises."""
        with self._lock:
            attempts, owners = dict(self._attempts), list(self._owners)
        if not attempts and not owners:
            return
        with self._catalog.writing() as session:
            alive = (
                Product.pk.in_(attempts.values()),
                Product.attempt.in_(attempts),
                Product.state.in_(_ALIVE),
            )
            found = session.scalars(select(Product.attempt).where(*alive)).all()
            # A row that is locked is in a transition, which is a sign of life itself; waiting for
            # it with other rows in hand would be a deadlock.
            free = select(Product.pk).where(*alive).with_for_update(skip_locked=True)
            session.execute(
                update(Product).where(Product.pk.in_(free)).values(touched_at=clock.now()),
                execution_options={"synchronize_session": False},
            )
            for statement in (
                update(Idempotency)
                .where(Idempotency.instance.in_(owners), Idempotency.status.is_(None))
                .values(touched_at=clock.now()),
                update(FileClaim).where(FileClaim.owner.in_(owners)).values(touched_at=clock.now()),
                update(LooseKey).where(LooseKey.owner.in_(owners)).values(touched_at=clock.now()),
                # As above: a row that is locked is alive.
                update(Chunk).where(_free(Chunk, owners)).values(touched_at=clock.now()),
                update(Job).where(_free(Job, owners)).values(touched_at=clock.now()),
            ):
                session.execute(statement, execution_options={"synchronize_session": False})
        with self._lock:
            self._lost |= attempts.keys() - set(found)
            self._lost &= self._attempts.keys()

    def _begin(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(self.beat_seconds):
            try:
                self.beat()
            except StorageManagerError:
                log.exception("no sign of life could be given; it is tried again")


def _free(table: type[Chunk | Job], owners: Sequence[str]) -> ColumnElement[bool]:
    """The rows of ``owners`` that nobody changes right now."""
    key = [Chunk.job_pk, Chunk.number] if table is Chunk else [Job.pk]
    free = select(*key).where(table.owner.in_(owners)).with_for_update(skip_locked=True)
    return tuple_(*key).in_(free)
