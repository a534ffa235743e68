"""Bulk jobs: the tables that do the work, and every change that is made in them.

A job gets its items in chunks, from a request that is still being read or from a scan.  A worker
takes a chunk under a lease: a row with an epoch, kept alive by ``heartbeat.py`` on the database's
clock.  Whatever a worker writes names its epoch, so one that was frozen or cut off writes nothing
once another has taken the chunk.  There is no queue besides: what is to be done is what the table
says, and who looks for work finds chunks that nobody has and chunks whose worker is silent alike.

Counts of a job change in the transaction that changes its items.  Locks are taken in the order
chunk, job, items.  Called by ``web/jobs.py`` (create, tell, control), ``bulk.py`` and ``scans.py``
(claim, append, finish) and housekeeping.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Table,
    and_,
    bindparam,
    delete,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session

from admin_api.catalog import clock
from admin_api.catalog import jobs as tables
from admin_api.catalog.jobs import ItemEntry, JobEntry, JobFilter
from admin_api.catalog.models import Chunk, ChunkState, Item, ItemState, Job, JobState
from admin_api.errors import (
    ClientDisconnected,
    InvalidRequest,
    NotFound,
    StorageManagerError,
)
from admin_api.services.access import Principal, Scope
from admin_api.services.facility import Facility

log = logging.getLogger(__name__)

IMPORT, REMOVAL = "import", "removal"
#: What the token of a job's request must allow.
SCOPES = {IMPORT: Scope.INGEST, REMOVAL: Scope.REMOVE}
#: So many items are forgotten in one transaction, and so many transactions are made in one round.
_AT_ONCE = 1000
_FORGOTTEN_AT_ONCE = 200
#: Chunks that a cancelling request drops itself; the workers drop the rest.
_MOST_DROPPED = 200
#: Leases of a chunk without one outcome; its worker dies of it then, and it is given up.
_MOST_FRUITLESS = 8
#: First failures that are told for each code.
_TOLD = 5
_PAGE = 500
_LABEL = 300
_DETAIL = 2000
_ITEMS = cast("Table", Item.__table__)


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item as it is told: ``wanted`` is what the runner reads; with ``code`` it has failed.

    ``known``: nothing need be done for it; its outcome.
    """

    number: int
    label: str
    wanted: dict[str, Any] | None = None
    size: int | None = None
    code: str | None = None
    detail: str | None = None
    known: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of an item; ``bytes`` of the product."""

    number: int
    state: str
    result: str | None = None
    code: str | None = None
    detail: str | None = None
    retryable: bool = False
    product_id: str | None = None
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """A chunk that is this process's as long as its epoch lasts."""

    job: JobEntry
    chunk: int
    epoch: int
    owner: str
    scan: bool
    place: str | None
    #: Leases of the chunk, this one included, since an item of it last ended.
    fruitless: int

    @property
    def is_hopeless(self) -> bool:
        """Whether so many workers have taken the chunk in vain that nobody should again."""
        return self.fruitless > _MOST_FRUITLESS

    @property
    def principal(self) -> Principal:
        """Who has asked for the items, with what the token of the request allowed."""
        missions = self.job.missions
        return Principal(
            self.job.subject,
            frozenset(self.job.scopes),
            None if missions is None else frozenset(missions),
            self.job.request_id,
        )


class LeaseLostError(Exception):
    """Another worker has the chunk by now, or the job has ended: nothing may be written."""


# -- making --------------------------------------------------------------------------------------
def create(
    facility: Facility,
    principal: Principal,
    kind: str,
    options: Mapping[str, Any],
    owner: str | None,
    priority: int = 0,
    concurrency: int | None = None,
) -> JobEntry:
    """Write down a job whose items are still to come, from ``owner`` or from a scan."""
    with facility.catalog.writing() as session:
        now = clock.read(session)
        row = session.execute(
            insert(Job)
            .values(
                id=uuid.uuid4().hex,
                kind=kind,
                state=JobState.RECEIVING,
                paused=False,
                cancelled=False,
                priority=priority,
                concurrency=concurrency,
                subject=principal.subject,
                scopes=sorted(principal.scopes),
                missions=None if principal.missions is None else sorted(principal.missions),
                request_id=principal.request_id,
                options=dict(options),
                created_at=now,
                served_at=now,
                touched_at=now,
                owner=owner,
                errors={},
                chunks=0,
                sequence=0,
                received=0,
                open=0,
                done=0,
                skipped=0,
                failed=0,
                dropped=0,
                bytes=0,
                expected_bytes=0,
            )
            .returning(*tables.JOB)
        ).one()
    return JobEntry(*row)


def search(
    facility: Facility,
    principal: Principal,
    kind: str,
    options: Mapping[str, Any],
    priority: int = 0,
    concurrency: int | None = None,
) -> JobEntry:
    """A job whose items a worker is to find, by what its options say."""
    job = create(facility, principal, kind, options, None, priority, concurrency)
    with facility.catalog.writing() as session:
        _set(session, job.pk, {"chunks": 1})
        session.execute(insert(Chunk).values(_chunk_row(job.pk, 1, clock.read(session), scan=True)))
    return job


def append(
    facility: Facility,
    job_pk: int,
    items: Sequence[NewItem],
    owner: str | None = None,
    scan: tuple[Claim, str] | None = None,
) -> bool:
    """Add a chunk of items, told by the request ``owner`` or found by a scan up to a place.

    Those that have failed already are counted at once.  Returns whether more is wanted: false once
    the job is cancelled.  Raises LeaseLostError if others have ended the telling meanwhile.
    """
    if not items:
        return True
    with facility.catalog.writing() as session:
        now = clock.read(session)
        if scan is not None:
            _hold(session, scan[0], now, {"place": scan[1], "fruitless": 0})
        job = _locked(session, job_pk)
        if job.state != JobState.RECEIVING or (scan is None and job.owner != owner):
            raise LeaseLostError
        if job.cancelled:
            return False
        good = [item for item in items if item.code is None and item.known is None]
        number = job.chunks + 1
        values: dict[str, Any] = {
            "received": job.received + len(items),
            "open": job.open + len(good),
            "chunks": number,
            "expected_bytes": job.expected_bytes + sum(item.size or 0 for item in good),
            "touched_at": now,
        }
        ended = [
            item.known or _refused(item) for item in items if item.known or item.code is not None
        ]
        values |= _counted(job, ended)
        if job.started_at is None and any(item.known for item in items):
            values["started_at"] = now
        session.execute(insert(Chunk).values(_chunk_row(job_pk, number, now, len(good))))
        sequences = {
            outcome.number: job.sequence + place for place, outcome in enumerate(ended, start=1)
        }
        session.connection().execute(
            _ITEMS.insert(),
            [_item_row(job_pk, number, item, sequences.get(item.number), now) for item in items],
        )
        _set(session, job_pk, values)
    return True


def _refused(item: NewItem) -> Outcome:
    return Outcome(item.number, ItemState.FAILED, code=item.code, detail=item.detail)


def _chunk_row(
    job_pk: int, number: int, now: datetime, count: int = 0, scan: bool = False
) -> dict[str, Any]:
    return {
        "job_pk": job_pk,
        "number": number,
        "scan": scan,
        "state": ChunkState.QUEUED if scan or count else ChunkState.ENDED,
        "epoch": 0,
        "touched_at": now,
        "fruitless": 0,
        "open": count,
    }


def _item_row(
    job_pk: int, chunk: int, item: NewItem, sequence: int | None, now: datetime
) -> dict[str, Any]:
    has_failed, known = item.code is not None, item.known
    state = ItemState.FAILED if has_failed else ItemState.QUEUED
    return {
        "job_pk": job_pk,
        "number": item.number,
        "chunk": chunk,
        "state": known.state if known else state,
        "wanted": None if known else item.wanted,
        "label": _storable(item.label)[:_LABEL],
        "sequence": sequence,
        "result": known.result if known else None,
        "code": item.code,
        "detail": _storable(item.detail)[:_DETAIL] if item.detail else None,
        "retryable": False if has_failed else None,
        "product_id": known.product_id if known else None,
        "bytes": known.bytes if known else 0,
        "ended_at": now if has_failed or known else None,
    }


def _storable(text: str) -> str:
    """Without what no database takes; names of foreign files may hold anything."""
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode()


def received(
    facility: Facility, job_pk: int, owner: str | None, problem: StorageManagerError | None = None
) -> None:
    """All items are told, or with ``problem`` no more will be; what has arrived is carried out."""
    with facility.catalog.writing() as session:
        now = clock.read(session)
        job = _locked(session, job_pk)
        if job.state != JobState.RECEIVING or job.owner != owner:
            return
        told = {"code": problem.code, "detail": problem.detail} if problem else None
        values = {"state": JobState.RUNNING, "owner": None, "problem": told}
        _set(session, job_pk, values | _ended(job, values, now))


# -- working -------------------------------------------------------------------------------------
def claim(facility: Facility, owner: str) -> Claim | None:
    """Take a chunk that nobody has, or whose worker is silent; None if there is none.

    The highest priority first, jobs of the same in turn, the chunks of a job in order.
    """
    with facility.catalog.reading() as session:
        dead = _dead(facility, clock.read(session))
        if not any(_first(session, job, dead) for job in _active(session)):
            return None
    with facility.catalog.writing() as session:
        now = clock.read(session)
        dead = _dead(facility, now)
        for job in _active(session):
            number = _first(session, job, dead, lock=True)
            if number is not None:
                return _take(session, job, number, owner, now)
    return None


def _active(session: Session) -> list[JobEntry]:
    """Jobs that may have work (job_active)."""
    query = (
        select(*tables.JOB)
        .where(Job.ended_at.is_(None), or_(Job.paused.is_(False), Job.cancelled.is_(True)))
        .order_by(Job.priority.desc(), Job.served_at)
    )
    return tables.all_of(JobEntry, session, query)


def _dead(facility: Facility, now: datetime) -> datetime:
    """Who has given no sign of life since then is taken for dead."""
    return now - timedelta(seconds=facility.settings.housekeeping.commit_grace_seconds)


def _first(session: Session, job: JobEntry, dead: datetime, lock: bool = False) -> int | None:
    """The first chunk of the job that can be taken (chunk_by_state)."""
    mine = Chunk.job_pk == job.pk
    silent = and_(Chunk.state == ChunkState.RUNNING, Chunk.touched_at < dead)
    queued = Chunk.state == ChunkState.QUEUED
    if job.concurrency is not None and not job.cancelled:
        if lock and not _lock_now(session, job.pk):
            return None  # somebody is just taking a chunk of it
        alive = select(Chunk.number).where(
            mine, Chunk.state == ChunkState.RUNNING, Chunk.touched_at >= dead, Chunk.scan.is_(False)
        )
        if session.scalars(alive.limit(1)).first() is not None:
            return _candidate(session, [mine, Chunk.scan.is_(True), or_(silent, queued)], lock)
    for condition in (silent, queued):
        found = _candidate(session, [mine, condition], lock)
        if found is not None:
            return found
    return None


def _lock_now(session: Session, job_pk: int) -> bool:
    query = select(Job.pk).where(Job.pk == job_pk).with_for_update(skip_locked=True)
    return session.scalars(query).first() is not None


def _candidate(session: Session, where: list[ColumnElement[bool]], lock: bool) -> int | None:
    query = select(Chunk.number).where(*where).order_by(Chunk.number).limit(1)
    if lock:  # another worker is just taking it: the next one
        query = query.with_for_update(skip_locked=True)
    return session.scalars(query).first()


def _take(session: Session, job: JobEntry, number: int, owner: str, now: datetime) -> Claim:
    row = session.execute(
        update(Chunk)
        .where(Chunk.job_pk == job.pk, Chunk.number == number)
        .values(
            state=ChunkState.RUNNING,
            epoch=Chunk.epoch + 1,
            owner=owner,
            touched_at=now,
            fruitless=Chunk.fruitless + 1,
        )
        .returning(Chunk.epoch, Chunk.scan, Chunk.place, Chunk.fruitless)
        .execution_options(synchronize_session=False)
    ).one()
    _set(session, job.pk, {"served_at": now, "started_at": job.started_at or now})
    return Claim(job, number, row.epoch, owner, row.scan, row.place, row.fruitless)


def items_of(facility: Facility, claimed: Claim) -> list[ItemEntry]:
    """The items of a chunk that have no outcome yet (item_by_chunk)."""
    query = (
        select(*tables.ITEM)
        .where(
            Item.job_pk == claimed.job.pk,
            Item.chunk == claimed.chunk,
            Item.state == ItemState.QUEUED,
        )
        .order_by(Item.number)
    )
    with facility.catalog.reading() as session:
        return tables.all_of(ItemEntry, session, query)


def finish(facility: Facility, claimed: Claim, outcomes: Sequence[Outcome]) -> JobEntry:
    """Write outcomes down, all or none; returns the job as it is then.

    An item that has its outcome keeps it, so the same may be said again after an answer that was
    lost.  Raises LeaseLostError if the chunk is another's by now.
    """
    with facility.catalog.writing() as session:
        now = clock.read(session)
        left = _hold(session, claimed, now, {"fruitless": 0} if outcomes else {})
        job = _locked(session, claimed.job.pk)
        still = set(
            session.scalars(
                select(Item.number).where(
                    Item.job_pk == job.pk,
                    Item.number.in_([item.number for item in outcomes]),
                    Item.chunk == claimed.chunk,
                    Item.state == ItemState.QUEUED,
                )
            )
        )
        new = [item for item in outcomes if item.number in still]
        _write(session, job, new, now)
        values = {"open": job.open - len(new), **_counted(job, new)}
        _set(session, job.pk, values | _ended(job, values, now))
        open_now = left - len(new)
        chunk: dict[str, Any] = {"open": open_now}
        if not open_now and not claimed.scan:
            chunk["state"] = ChunkState.ENDED
        _set_chunk(session, claimed, chunk)
        return JobEntry(*session.execute(select(*tables.JOB).where(Job.pk == job.pk)).one())


def end_scan(facility: Facility, claimed: Claim, problem: StorageManagerError | None) -> None:
    """The scan has told all there is, or cannot go on."""
    with facility.catalog.writing() as session:
        _hold(session, claimed, clock.read(session), {"state": ChunkState.ENDED})
    received(facility, claimed.job.pk, None, problem)


def give_back(facility: Facility, claimed: Claim) -> None:
    """Let another worker go on with the chunk, now."""
    with facility.catalog.writing() as session:
        values = {"state": ChunkState.QUEUED, "owner": None, "fruitless": 0}
        _hold(session, claimed, clock.read(session), values)


def _hold(session: Session, claimed: Claim, now: datetime, values: dict[str, Any]) -> int:
    """The fence: the chunk is ours, and its row is until the transaction ends; its open items.

    A chunk that this very lease has ended already is ours, too: an answer was lost.
    """
    found = session.execute(
        update(Chunk)
        .where(
            Chunk.job_pk == claimed.job.pk,
            Chunk.number == claimed.chunk,
            Chunk.epoch == claimed.epoch,
            Chunk.owner == claimed.owner,
            Chunk.state.in_((ChunkState.RUNNING, ChunkState.ENDED)),
        )
        .values(touched_at=now, **values)
        .returning(Chunk.open)
        .execution_options(synchronize_session=False)
    ).first()
    if found is None:
        raise LeaseLostError
    return int(found.open)


def _write(session: Session, job: Any, outcomes: Sequence[Outcome], now: datetime) -> None:
    """The outcomes of items; each gets the next number in the job's sequence."""
    if not outcomes:
        return
    ended: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for place, item in enumerate(outcomes, start=1):
        (failed if item.state == ItemState.FAILED else ended).append(
            {
                "item": item.number,
                "state": item.state,
                "sequence": job.sequence + place,
                "result": item.result,
                "code": item.code,
                "detail": _storable(item.detail)[:_DETAIL] if item.detail else None,
                "retryable": item.retryable if item.state == ItemState.FAILED else None,
                "product_id": item.product_id,
                "bytes": item.bytes,
            }
        )
    mine = (_ITEMS.c.job_pk == job.pk, _ITEMS.c.number == bindparam("item"))
    of_item = _ITEMS.update().where(*mine)
    if failed:
        session.connection().execute(of_item.values(ended_at=now), failed)
    if ended:  # what was asked for may hold signatures of URIs, and nobody needs it any more
        session.connection().execute(of_item.values(ended_at=now, wanted=None), ended)


def _counted(job: Any, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The job's counts with these outcomes."""
    names = {
        ItemState.DONE: "done",
        ItemState.SKIPPED: "skipped",
        ItemState.FAILED: "failed",
        ItemState.CANCELLED: "dropped",
    }
    values: dict[str, Any] = {"sequence": job.sequence + len(outcomes)}
    for state, name in names.items():
        values[name] = getattr(job, name) + sum(item.state == state for item in outcomes)
    done = (item.bytes for item in outcomes if item.state == ItemState.DONE)
    values["bytes"] = job.bytes + sum(done)
    failed = [item for item in outcomes if item.state == ItemState.FAILED]
    if failed:
        values["errors"] = _grouped(job.errors, failed)
    return values


def _grouped(errors: Mapping[str, Any], failed: Iterable[Outcome]) -> dict[str, Any]:
    grouped = {code: dict(entry) for code, entry in errors.items()}
    for item in failed:
        entry = grouped.setdefault(item.code or "internal_error", {"count": 0, "first": []})
        entry["count"] += 1
        if len(entry["first"]) < _TOLD:
            told = {"item": item.number, "detail": _storable(item.detail or "")[:_DETAIL]}
            entry["first"] = [*entry["first"], told]
    return grouped


def _ended(job: Any, values: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The last state, if this was the last item."""
    if values.get("open", job.open) or values.get("state", job.state) != JobState.RUNNING:
        return {}
    state = JobState.CANCELLED if job.cancelled else JobState.DONE
    return {"state": state, "ended_at": now}


def _locked(session: Session, job_pk: int) -> Any:
    """The job's row, nobody else's to change until the transaction ends."""
    columns = [getattr(Job, column.key) for column in Job.__table__.columns]
    return session.execute(select(*columns).where(Job.pk == job_pk).with_for_update()).one()


def _set(session: Session, job_pk: int, values: Mapping[str, Any]) -> None:
    session.execute(
        update(Job).where(Job.pk == job_pk).values(dict(values)),
        execution_options={"synchronize_session": False},
    )


def _set_chunk(session: Session, claimed: Claim, values: Mapping[str, Any]) -> None:
    session.execute(
        update(Chunk)
        .where(Chunk.job_pk == claimed.job.pk, Chunk.number == claimed.chunk)
        .values(dict(values)),
        execution_options={"synchronize_session": False},
    )


# -- telling -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Report:
    """A job, how many of its items workers have now, and the database's time."""

    job: JobEntry
    running: int
    now: datetime


def show(facility: Facility, principal: Principal, job_id: str) -> Report:
    """A job; raises NotFound, for those of others as well."""
    with facility.catalog.reading() as session:
        return _report(session, _seen(session, principal, job_id))


def _report(session: Session, job: JobEntry) -> Report:
    return Report(job, tables.running(session, job.pk), clock.read(session))


def _seen(session: Session, principal: Principal, job_id: str) -> JobEntry:
    job = tables.job(session, job_id)
    if job is None or not _sees(principal, job):
        raise NotFound(f"There is no job {job_id!r}.")
    return job


def _sees(principal: Principal, job: JobEntry) -> bool:
    """One's own jobs, and for an administrator those of all who may no more than he."""
    if principal.missions is not None and not (
        job.missions is not None and principal.missions >= set(job.missions)
    ):
        return False
    return job.subject == principal.subject or principal.is_admin


def find(
    facility: Facility, principal: Principal, wish: JobFilter, cursor: str | None, limit: int
) -> tuple[list[Report], str | None]:
    """A page of the jobs that the principal may see, and the cursor of the next page."""
    if not principal.is_admin:
        if wish.subject not in (None, principal.subject):
            return [], None
        wish = replace(wish, subject=principal.subject)
    with facility.catalog.reading() as session:
        page, following = tables.listing(session, wish, cursor, limit)
        return [_report(session, job) for job in page if _sees(principal, job)], following


def items(
    facility: Facility,
    principal: Principal,
    job_id: str,
    outcome: str | None,
    after: int,
    limit: int | None,
) -> Iterator[ItemEntry]:
    """The items of a job behind ``after``, at most ``limit``, in the order of ``catalog/jobs.py``.

    Raises NotFound at once.
    """
    with facility.catalog.reading() as session:
        job = _seen(session, principal, job_id)
    return _items(facility, job, outcome, after, limit)


def _items(
    facility: Facility, job: JobEntry, outcome: str | None, after: int, limit: int | None
) -> Iterator[ItemEntry]:
    left = limit
    while left is None or left > 0:
        count = _PAGE if left is None else min(_PAGE, left)
        with facility.catalog.reading() as session:
            page = tables.items(session, job.pk, outcome, after, count)
        yield from page
        if len(page) < count:
            return
        after = cursor_of(page[-1], outcome)
        left = None if left is None else left - len(page)


def cursor_of(item: ItemEntry, outcome: str | None) -> int:
    """Behind which place the next item of such a listing is."""
    if outcome is None or outcome == ItemState.QUEUED or item.sequence is None:
        return item.number
    return item.sequence


# -- controlling ---------------------------------------------------------------------------------
def _own(session: Session, principal: Principal, job_id: str) -> JobEntry:
    job = _seen(session, principal, job_id)
    principal.require(SCOPES[job.kind])
    return job


def pause(facility: Facility, principal: Principal, job_id: str, is_paused: bool) -> Report:
    """Begin no more items of the job, or go on; those under way end as they do.

    Raises NotFound, Forbidden, and InvalidRequest for a job that has ended.
    """
    with facility.catalog.writing() as session:
        job = _own(session, principal, job_id)
        if job.ended_at is not None or job.cancelled:
            raise InvalidRequest("The job has ended, or is being cancelled.")
        _set(session, job.pk, {"paused": is_paused})
    return show(facility, principal, job_id)


def cancel(facility: Facility, principal: Principal, job_id: str) -> Report:
    """Begin no more items of the job, for good; those under way end as they do.

    Again and again gives the same; a job that has ended stays as it is.
    """
    with facility.catalog.writing() as session:
        job = _own(session, principal, job_id)
        if job.ended_at is None:
            row = _locked(session, job.pk)
            values: dict[str, Any] = {"cancelled": True}
            if row.ended_at is None:
                _set(session, job.pk, values)
    for _ in range(_MOST_DROPPED):
        if not drop_chunk(facility, job.pk):
            break
    return show(facility, principal, job_id)


def drop_chunk(facility: Facility, job_pk: int) -> bool:
    """End the items of one chunk that nobody works on as cancelled; False if there is none."""
    with facility.catalog.writing() as session:
        now = clock.read(session)
        where: list[ColumnElement[bool]] = [
            Chunk.job_pk == job_pk,
            Chunk.state == ChunkState.QUEUED,
            Chunk.scan.is_(False),
        ]
        number = _candidate(session, where, lock=True)
        if number is None:
            return False
        session.execute(
            update(Chunk)
            .where(Chunk.job_pk == job_pk, Chunk.number == number)
            .values(state=ChunkState.ENDED, open=0),
            execution_options={"synchronize_session": False},
        )
        job = _locked(session, job_pk)
        mine = (Item.job_pk == job_pk, Item.chunk == number, Item.state == ItemState.QUEUED)
        numbers = session.scalars(select(Item.number).where(*mine)).all()
        dropped = [Outcome(item, ItemState.CANCELLED) for item in numbers]
        _write(session, job, dropped, now)
        values = {"open": job.open - len(dropped), **_counted(job, dropped)}
        _set(session, job_pk, values | _ended(job, values, now))
    return True


def retry(
    facility: Facility, principal: Principal, job_id: str, codes: Sequence[str] = ()
) -> tuple[Report, int]:
    """Queue the failed items again (those of ``codes``, if given); returns how many.

    Lines that told no item stay as they are.  Raises NotFound, Forbidden, and InvalidRequest for a
    job that was cancelled.
    """
    count = 0
    with facility.catalog.reading() as session:
        job = _own(session, principal, job_id)
    if job.cancelled:
        raise InvalidRequest("The job was cancelled; send its items as a new one.")
    with facility.catalog.reading() as session:
        last = session.scalar(select(Job.sequence).where(Job.pk == job.pk)) or 0
    while moved := _requeue(facility, job.pk, codes, last):
        count += moved
    return show(facility, principal, job_id), count


def _requeue(facility: Facility, job_pk: int, codes: Sequence[str], last: int) -> int:
    """A chunk of failed items becomes one of queued ones; returns how many."""
    with facility.catalog.writing() as session:
        now = clock.read(session)
        job = _locked(session, job_pk)
        query = (
            select(Item.number, Item.code)
            .where(Item.job_pk == job_pk, Item.state == ItemState.FAILED)
            .where(Item.sequence <= last, Item.wanted.is_not(None))
            .order_by(Item.sequence)
            .limit(facility.settings.jobs.chunk_items)
        )
        if codes:
            query = query.where(Item.code.in_(codes))
        found = session.execute(query).all()
        if not found:
            return 0
        number = job.chunks + 1
        session.execute(insert(Chunk).values(_chunk_row(job_pk, number, now, len(found))))
        session.execute(
            update(Item)
            .where(Item.job_pk == job_pk, Item.number.in_([row.number for row in found]))
            .values(
                chunk=number,
                state=ItemState.QUEUED,
                sequence=None,
                code=None,
                detail=None,
                retryable=None,
                ended_at=None,
            ),
            execution_options={"synchronize_session": False},
        )
        errors = {code: dict(entry) for code, entry in job.errors.items()}
        numbers = {row.number for row in found}
        for row in found:
            entry = errors.get(row.code)
            if entry is not None:
                entry["count"] -= 1
                entry["first"] = [told for told in entry["first"] if told["item"] not in numbers]
        values = {
            "open": job.open + len(found),
            "failed": job.failed - len(found),
            "chunks": number,
            "errors": {code: entry for code, entry in errors.items() if entry["count"] > 0},
        }
        if job.state == JobState.DONE:
            values |= {"state": JobState.RUNNING, "ended_at": None}
        _set(session, job_pk, values)
    return len(found)


# -- clearing ------------------------------------------------------------------------------------
def expire(facility: Facility) -> int:
    """Go on with jobs whose request died while it told the items; returns how many."""
    with facility.catalog.reading() as session:
        dead = _dead(facility, clock.read(session))
        query = select(Job.pk, Job.owner).where(
            Job.ended_at.is_(None),
            Job.state == JobState.RECEIVING,
            Job.owner.is_not(None),
            Job.touched_at < dead,
        )
        found = session.execute(query).all()
    for row in found:
        received(facility, row.pk, row.owner, broken_off())
    return len(found)


def broken_off() -> StorageManagerError:
    """What is told of a job whose manifest did not come to its end."""
    return ClientDisconnected(
        "The manifest broke off. What had arrived of it is carried out; send the whole manifest "
        "again for the rest: what is stored is skipped."
    )


def forget(facility: Facility, before: datetime) -> int:
    """Drop jobs that ended ``before``, a bounded number of items at a time; returns how many."""
    gone = 0
    for _ in range(_FORGOTTEN_AT_ONCE):
        with facility.catalog.writing() as session:
            pk = session.scalars(select(Job.pk).where(Job.ended_at < before).limit(1)).first()
            if pk is None:
                break
            part = select(Item.number).where(Item.job_pk == pk).order_by(Item.number)
            numbers = session.scalars(part.limit(_AT_ONCE)).all()
            dropped = (
                delete(Item).where(Item.job_pk == pk, Item.number <= numbers[-1])
                if numbers
                else delete(Job).where(Job.pk == pk)
            )
            session.execute(dropped, execution_options={"synchronize_session": False})
            gone += not numbers
    return gone
