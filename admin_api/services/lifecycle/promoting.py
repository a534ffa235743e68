"""Making a recorded product available, and what it replaces go.

Called by ``committing.py`` and ``settling.py``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from admin_api.catalog import clock, events, usage
from admin_api.catalog.entries import ProductEntry
from admin_api.catalog.events import Actor, Happening
from admin_api.catalog.models import (
    Product,
    State,
)
from admin_api.errors import (
    StorageManagerError,
)
from admin_api.services.facility import Facility
from admin_api.services.lifecycle import beginning, removing, transitions

log = logging.getLogger(__name__)


def promote(
    facility: Facility, attempt: ProductEntry, actor: Actor, available_at: datetime | None
) -> ProductEntry | None:
    """Committing -> available, for a record that is in the store; the generation before retires.

    Returns the retired generation.  Does nothing if somebody else has done it already.
    """
    asked = Promoting(attempt, actor, available_at)
    if facility.promotions.do(asked, partial(promote_all, facility)):
        return None
    retired: list[ProductEntry] = []
    with contextlib.suppress(_TooLateError), facility.catalog.writing() as session:
        retired = transitions.retire(
            session,
            [Product.name == attempt.name, Product.generation < attempt.generation],
            actor,
            f"replaced by generation {attempt.generation}",
        )
        promoted = transitions.move(
            session,
            transitions.row_of(attempt, State.COMMITTING),
            {
                "state": State.AVAILABLE,
                "number": 1,
                "recorded": 1,
                "available_at": available_at or clock.now(),
            },
        )
        if not promoted:
            raise _TooLateError
        usage.come(session, promoted)
        events.append(session, actor, [_told(promoted[0], replaced=bool(retired))])
    for old in retired:
        with contextlib.suppress(StorageManagerError):  # housekeeping finishes it
            removing.finish(facility, old.pk)
    return retired[0] if retired else None


@dataclass(frozen=True, slots=True)
class Promoting:
    """A commit whose record is in the store."""

    attempt: ProductEntry
    actor: Actor
    available_at: datetime | None


def promote_all(facility: Facility, asked: Sequence[Promoting]) -> Sequence[bool]:
    """Committing -> available, in one transaction, where no generation before is there to retire.

    False for all that this cannot be said of.
    """
    plain = [one for one in asked if one.available_at is not None]
    promoted: set[int] = set()
    if plain:
        with (
            contextlib.suppress(IntegrityError, transitions.NotPlainError),
            facility.catalog.writing() as session,
        ):
            promoted = _promote_in(session, plain)
    return [one.attempt.pk in promoted for one in asked]


def _promote_in(session: Session, asked: Sequence[Promoting]) -> set[int]:
    if beginning.available_of(session, [one.attempt.name for one in asked]):
        raise transitions.NotPlainError
    promoted: list[ProductEntry] = []
    for time_ in dict.fromkeys(one.available_at for one in asked):
        promoted += transitions.move_many(
            session,
            [one.attempt for one in asked if one.available_at == time_],
            State.COMMITTING,
            {"state": State.AVAILABLE, "number": 1, "recorded": 1, "available_at": time_},
        )
    usage.come(session, promoted)
    actors = {one.attempt.pk: one.actor for one in asked}
    for actor in dict.fromkeys(actors.values()):
        mine = [product for product in promoted if actors[product.pk] == actor]
        events.append(session, actor, [_told(product, replaced=False) for product in mine])
    return {product.pk for product in promoted}


class _TooLateError(Exception):
    """Somebody else has made this transition; undoes the transaction."""


def _told(product: ProductEntry, replaced: bool) -> Happening:
    return Happening(
        "product.replaced" if replaced else "product.ingested",
        product,
        {
            "size": product.size,
            "files": product.file_count,
            "generation": product.generation,
            "list_digest": product.list_digest,
        },
    )
