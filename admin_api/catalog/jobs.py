"""Jobs and their items as values, and every listing of them, each with its index and its cursor.

Called by ``services/jobs.py``.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import Select, func, literal, select, tuple_
from sqlalchemy.orm import Session

from admin_api.catalog.models import Base, Chunk, ChunkState, Item, ItemState, Job, JobState
from admin_api.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class JobEntry:
    """A job; see ``models.Job``."""

    pk: int
    id: str
    kind: str
    state: str
    paused: bool
    cancelled: bool
    priority: int
    concurrency: int | None
    subject: str
    scopes: list[str]
    missions: list[str] | None
    request_id: str | None
    options: dict[str, Any]
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    problem: dict[str, Any] | None
    errors: dict[str, Any]
    received: int
    open: int
    done: int
    skipped: int
    failed: int
    dropped: int
    bytes: int
    expected_bytes: int


@dataclass(frozen=True, slots=True)
class ItemEntry:
    """An item of a job; see ``models.Item``."""

    job_pk: int
    number: int
    chunk: int
    state: str
    wanted: dict[str, Any] | None
    label: str
    sequence: int | None
    result: str | None
    code: str | None
    detail: str | None
    retryable: bool | None
    product_id: str | None
    bytes: int
    ended_at: datetime | None


_Entry = TypeVar("_Entry", JobEntry, ItemEntry)


def _columns(entry: type[Any], table: type[Base]) -> tuple[Any, ...]:
    return tuple(getattr(table, item.name) for item in fields(entry))


#: For ``select`` and ``returning``: the columns in the order of the entry's fields.
JOB = _columns(JobEntry, Job)
ITEM = _columns(ItemEntry, Item)


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs to list; None means any.  ``state`` as it is told: ``paused`` of what goes on."""

    state: str | None = None
    kind: str | None = None
    subject: str | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None


def all_of(kind: type[_Entry], session: Session, query: Select[Any]) -> list[_Entry]:
    """The entries that a query gives."""
    return [kind(*row) for row in session.execute(query)]


def job(session: Session, job_id: str) -> JobEntry | None:
    """The job with this id (unique index of ``job.id``)."""
    row = session.execute(select(*JOB).where(Job.id == job_id)).first()
    return None if row is None else JobEntry(*row)


def running(session: Session, job_pk: int) -> int:
    """Items of chunks that a worker has now (chunk_by_state)."""
    found = session.scalar(
        select(func.coalesce(func.sum(Chunk.open), 0)).where(
            Chunk.job_pk == job_pk, Chunk.state == ChunkState.RUNNING
        )
    )
    return int(found or 0)


def listing(
    session: Session, wish: JobFilter, cursor: str | None, limit: int
) -> tuple[list[JobEntry], str | None]:
    """A page of jobs, the newest first, and the cursor of the next page.

    Indexes: job_by_creation, or job_by_subject with a subject; states and kinds are looked at row
    by row: there are thousands of jobs, not millions.
    """
    query = select(*JOB)
    if wish.state in ("paused", "cancelling"):
        is_paused = wish.state == "paused"
        query = query.where(Job.ended_at.is_(None), Job.cancelled.is_(not is_paused))
        query = query.where(Job.paused.is_(True)) if is_paused else query
    elif wish.state is not None:
        query = query.where(Job.state == wish.state)
        if wish.state in (JobState.RECEIVING, JobState.RUNNING):
            query = query.where(Job.paused.is_(False), Job.cancelled.is_(False))
    for column, value in ((Job.kind, wish.kind), (Job.subject, wish.subject)):
        if value is not None:
            query = query.where(column == value)
    if wish.created_from is not None:
        query = query.where(Job.created_at >= wish.created_from)
    if wish.created_to is not None:
        query = query.where(Job.created_at <= wish.created_to)
    if cursor is not None:
        time, pk = _decode(cursor)
        last = tuple_(literal(time, Job.created_at.type), literal(pk))
        query = query.where(tuple_(Job.created_at, Job.pk) < last)
    query = query.order_by(Job.created_at.desc(), Job.pk.desc()).limit(limit + 1)
    found = all_of(JobEntry, session, query)
    if len(found) <= limit:
        return found, None
    return found[:limit], _encode(found[limit - 1])


def items(
    session: Session, job_pk: int, outcome: str | None, after: int, limit: int
) -> list[ItemEntry]:
    """A page of a job's items behind ``after``.

    Without ``outcome`` all of them by their numbers (primary key); those that have ended in one
    way in the order in which they did, by ``sequence`` (item_by_state); queued ones by number.
    """
    query = select(*ITEM).where(Item.job_pk == job_pk).limit(limit)
    if outcome is None:
        query = query.where(Item.number > after).order_by(Item.number)
    elif outcome == ItemState.QUEUED:
        query = query.where(Item.state == outcome, Item.sequence.is_(None), Item.number > after)
        query = query.order_by(Item.number)
    else:
        query = query.where(Item.state == outcome, Item.sequence > after).order_by(Item.sequence)
    return all_of(ItemEntry, session, query)


def _encode(last: JobEntry) -> str:
    text = json.dumps([last.created_at.isoformat(), last.pk], separators=(",", ":"))
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode(cursor: str) -> Sequence[Any]:
    try:
        time, pk = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if type(pk) is int and 0 <= pk < 1 << 62:
            return datetime.fromisoformat(time).astimezone(UTC), pk
    except (ValueError, TypeError, OverflowError, RecursionError):
        pass
    raise InvalidRequest("The cursor is not one that this service gave.")
