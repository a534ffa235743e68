"""The guarded moves of rows from one state to the next, and nothing else.

Called by the modules beside this one; they say what the store is told between two moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Table,
    and_,
    delete,
    insert,
    or_,
    update,
)
from sqlalchemy.orm import Session

from admin_api.catalog import clock, entries, events, usage
from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.catalog.events import SYSTEM, Actor, Happening
from admin_api.catalog.models import (
    File,
    Product,
    State,
)

TABLE = cast("Table", Product.__table__)
RACE_ATTEMPTS = 20
#: Directories that are listed side by side.
SIDE_BY_SIDE = 8
#: Causes of attempts that came to nothing without anybody's fault; of one whose directory was
#: ``TAKEN`` nothing lies there.
_DUPLICATE = "duplicate"
TAKEN = "directory taken"
#: It is begun again, outside of its group.
ALONE = "done alone"


class NotPlainError(Exception):
    """One of the claims needs a decision of its own; undoes the transaction."""


def move(
    session: Session, where: Sequence[ColumnElement[bool]], values: Mapping[str, Any]
) -> list[ProductEntry]:
    """The one way in which rows change: those that ``where`` still finds, and only those."""
    return entries.all_of(
        ProductEntry,
        session,
        update(Product)
        .where(*where)
        .values(touched_at=clock.now(), **values)
        .returning(*entries.PRODUCT)
        .execution_options(synchronize_session=False),
    )


def move_many(
    session: Session,
    attempts: Sequence[ProductEntry],
    state: str,
    values: Mapping[str, Any],
) -> list[ProductEntry]:
    """As ``move``, for attempts in ``state`` of which nothing else can have changed.

    Raises NotPlainError unless all of them are moved.
    """
    moved = session.execute(
        update(Product)
        .where(
            Product.pk.in_([attempt.pk for attempt in attempts]),
            Product.attempt.in_([attempt.attempt for attempt in attempts]),
            Product.state == state,
        )
        .values(touched_at=clock.now(), **values)
        .returning(Product.pk, Product.touched_at)
        .execution_options(synchronize_session=False)
    ).all()
    if len(moved) < len(attempts):
        raise NotPlainError
    times = {row.pk: row.touched_at for row in moved}
    return [replace(attempt, touched_at=times[attempt.pk], **values) for attempt in attempts]


def row_of(attempt: ProductEntry, *states: str) -> list[ColumnElement[bool]]:
    """The row of ``attempt`` itself, not one that has its number in another history."""
    return [
        Product.pk == attempt.pk,
        Product.attempt == attempt.attempt,
        Product.state.in_(states),
    ]


def may_go() -> ColumnElement[bool]:
    """Neither held nor retained nor leased (promise I11)."""
    return and_(
        Product.hold_reason.is_(None),
        or_(Product.retention_until.is_(None), Product.retention_until <= clock.now()),
        or_(Product.leased_until.is_(None), Product.leased_until <= clock.now()),
    )


def give_up(
    session: Session, where: Sequence[ColumnElement[bool]], actor: Actor, cause: str
) -> list[ProductEntry]:
    """Receiving -> removing: attempts that have not begun their commit come to nothing."""
    found = move(
        session,
        [Product.state == State.RECEIVING, *where],
        {"state": State.REMOVING, "removed_by": actor.subject, "removed_cause": cause},
    )
    if cause not in (_DUPLICATE, TAKEN, ALONE):
        events.append(
            session, actor, [Happening("ingest.failed", item, {"cause": cause}) for item in found]
        )
    return found


def retire(
    session: Session, where: Sequence[ColumnElement[bool]], actor: Actor, cause: str
) -> list[ProductEntry]:
    """Available -> removing: out of sight; the number of the record that will say so is taken."""
    found = move(
        session,
        [Product.state == State.AVAILABLE, *where],
        {
            "state": State.REMOVING,
            "number": Product.number + 1,
            "removed_at": clock.now(),
            "removed_by": actor.subject,
            "removed_cause": cause,
            "successor": None,
        },
    )
    usage.go(session, found)
    events.append(
        session, actor, [Happening("product.removed", item, {"cause": cause}) for item in found]
    )
    return found


def undo(session: Session, attempt: ProductEntry) -> list[ProductEntry]:
    """Committing -> removing: the store has said that the commit did not happen."""
    found = move(
        session,
        row_of(attempt, State.COMMITTING),
        {
            "state": State.REMOVING,
            "recorded": 1,
            "removed_by": SYSTEM.subject,
            "removed_cause": "commit undone",
        },
    )
    release(session, [item.pk for item in found])
    return found


def release(session: Session, successors: Sequence[int]) -> None:
    """What was about to be replaced by ``successors`` stays."""
    if successors:
        move(session, [Product.successor.in_(successors)], {"successor": None})


def bury(session: Session, pk: int, number: int) -> None:
    """Removing -> removed: the bytes are gone, the tombstone stays; ``number`` is recorded."""
    buried = move(
        session,
        [Product.pk == pk, Product.state == State.REMOVING],
        {"state": State.REMOVED, "number": number, "recorded": number},
    )
    if buried:
        session.execute(delete(File).where(File.product_pk == pk))


def bury_many(session: Session, pks: Sequence[int]) -> None:
    """As ``bury``, for products whose removals are recorded under their own numbers."""
    buried = move(
        session,
        [Product.pk.in_(pks), Product.state == State.REMOVING],
        {"state": State.REMOVED, "recorded": Product.number},
    )
    session.execute(delete(File).where(File.product_pk.in_([item.pk for item in buried])))


def add_files(session: Session, files: Iterable[FileEntry]) -> None:
    """Write down files that an attempt has received; raises IntegrityError for taken keys."""
    rows = [
        {name: getattr(file, name) for name in FileEntry.__dataclass_fields__} for file in files
    ]
    if rows:
        session.execute(insert(File), rows)
