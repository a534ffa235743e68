"""The event log: numbered without gaps, each event sealed with the digest of the one before.

Written in the transaction of what it tells about, so neither exists without the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from admin_api.catalog.models import Event, Product

#: The digest that the first event names as its predecessor's.
ROOT = "0" * 64
#: Serialises writers of the chain in PostgreSQL (any number, but always this).
_CHAIN_LOCK = 7_237_602


@dataclass(frozen=True, slots=True)
class Actor:
    """Who caused a change, and in which request."""

    subject: str
    request_id: str | None = None


#: What the service does by itself.
SYSTEM = Actor("system")


def append(
    session: Session, kind: str, actor: Actor, product: Product | None = None, **detail: Any
) -> Event:
    """Add an event to the chain, within the caller's transaction."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(f"SELECT pg_advisory_xact_lock({_CHAIN_LOCK})"))
    last = session.execute(
        select(Event.number, Event.digest).order_by(Event.number.desc()).limit(1)
    ).first()
    event = Event(
        number=last.number + 1 if last else 1,
        time=datetime.now(UTC),
        kind=kind,
        subject=actor.subject,
        request_id=actor.request_id,
        product_id=product.id if product else None,
        product_name=product.name if product else None,
        mission=product.mission if product else None,
        detail=detail,
        previous=last.digest if last else ROOT,
        digest="",
    )
    event.digest = seal(event)
    session.add(event)
    session.flush()
    return event


def seal(event: Event) -> str:
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


def first_broken(events: Iterable[Event], previous: str = ROOT, number: int = 0) -> int | None:
    """The number of the first event that does not follow from the one before; None if all do."""
    for event in events:
        number += 1
        if event.number != number or event.previous != previous or event.digest != seal(event):
            return number
        previous = event.digest
    return None
