"""The event log: numbered without gaps, each event sealed with the digest of the one before.

Written in the transaction of what it tells about, so neither exists without the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from admin_api.catalog import clock
from admin_api.catalog.entries import EventEntry, ProductEntry
from admin_api.catalog.models import Event

#: The digest that the first event names as its predecessor's.
ROOT = "0" * 64
#: Serialises writers of the chain and of ``usage.py`` in PostgreSQL (any number, but always this).
_CHAIN_LOCK = 7_237_602


@dataclass(frozen=True, slots=True)
class Actor:
    """Who caused a change, and in which request."""

    subject: str
    request_id: str | None = None


#: What the service does by itself.
SYSTEM = Actor("system")


@dataclass(frozen=True, slots=True)
class Happening:
    """What is to be told: the kind of event, the product it is about, and more."""

    kind: str
    product: ProductEntry | None = None
    detail: dict[str, Any] = field(default_factory=dict)


def append(session: Session, actor: Actor, happenings: Iterable[Happening]) -> None:
    """Add events to the chain, within the caller's transaction."""
    todo = list(happenings)
    if not todo:
        return
    lock(session)
    last = session.execute(
        select(Event.number, Event.digest, clock.now()).order_by(Event.number.desc()).limit(1)
    ).first()
    newest, previous, time = last or (0, ROOT, clock.read(session))
    rows = []
    for number, item in enumerate(todo, start=newest + 1):
        row = _row(number, time, item, actor, previous)
        previous = row["digest"]
        rows.append(row)
    session.execute(insert(Event), rows)


def lock(session: Session) -> None:
    """Let one transaction at a time write events and sums (in SQLite all writers take turns)."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(f"SELECT pg_advisory_xact_lock({_CHAIN_LOCK})"))


def _row(
    number: int, time: datetime, item: Happening, actor: Actor, previous: str
) -> dict[str, Any]:
    product = item.product
    event = EventEntry(
        number=number,
        time=time,
        kind=item.kind,
        subject=actor.subject,
        request_id=actor.request_id,
        product_id=product.id if product else None,
        product_name=product.name if product else None,
        mission=product.mission if product else None,
        detail=item.detail,
        previous=previous,
        digest="",
    )
    return {
        name: getattr(event, name) for name in EventEntry.__dataclass_fields__ if name != "digest"
    } | {"digest": seal(event)}


def seal(event: EventEntry) -> str:
    """SHA-256 over everything the event says and the digest of its predecessor."""
    content = [
        event.number,
        event.time.astimezone(UTC).isoformat(timespec="microseconds"),
        event.kind,
        event.subject,
        event.request_id,
        event.product_id,
        event.product_name,
        event.mission,
        event.detail,
        event.previous,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def first_broken(events: Iterable[EventEntry], previous: str = ROOT, number: int = 0) -> int | None:
    """The number of the first event that does not follow from the one before; None if all do."""
    for event in events:
        number += 1
        if event.number != number or event.previous != previous or event.digest != seal(event):
            return number
        previous = event.digest
    return None
