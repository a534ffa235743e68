"""How much is available of each mission and type: sums that are kept, so that nobody has to count.

Written in the transaction of each transition (``services/lifecycle/``), so that they are never
behind; recounted by ``rebuild`` and compared with the products by ``reconcile``.  They tell the
listings as well which types there are, and how long the longest of their products was sensed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    Select,
    case,
    cast,
    extract,
    func,
    literal,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from admin_api.catalog import events
from admin_api.catalog.entries import ProductEntry
from admin_api.catalog.models import Product, State
from admin_api.catalog.models import Usage as Row


@dataclass(frozen=True, slots=True)
class Usage:
    """The available products of one mission and type; None where these are unknown."""

    mission: str | None
    product_type: str | None
    products: int
    files: int
    bytes: int
    #: No product of these, be it removed by now, was sensed for longer.
    longest_seconds: int


_SUMS = ("products", "files", "bytes")
_NAMES = tuple(item.name for item in fields(Usage))
_COLUMNS = tuple(getattr(Row, name) for name in _NAMES)


def read(session: Session, missions: frozenset[str] | None = None) -> list[Usage]:
    """All that ever was available, of ``missions`` only if they are given; sums can be 0."""
    query = select(*_COLUMNS).order_by(Row.mission, Row.product_type)
    if missions is not None:
        query = query.where(Row.mission.in_(missions))
    return [
        Usage(mission or None, kind or None, *sums)
        for mission, kind, *sums in session.execute(query)
    ]


def come(session: Session, products: Sequence[ProductEntry]) -> None:
    """Count products that have become available, within the caller's transaction."""
    _add(session, products, 1)


def go(session: Session, products: Sequence[ProductEntry]) -> None:
    """Count off products that are available no more, within the caller's transaction."""
    _add(session, products, -1)


def _add(session: Session, products: Sequence[ProductEntry], sign: int) -> None:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for product in products:
        kind = (product.mission or "", product.product_type or "")
        row = rows.setdefault(
            kind,
            {"mission": kind[0], "product_type": kind[1], "longest_seconds": 0}
            | dict.fromkeys(_SUMS, 0),
        )
        row["products"] += sign
        row["files"] += sign * product.file_count
        row["bytes"] += sign * product.size
        seconds = _seconds(product.sensing_start, product.sensing_stop)
        row["longest_seconds"] = max(row["longest_seconds"], seconds)
    if not rows:
        return
    # Whoever counts will tell of it, too: all take the locks in this order.
    events.lock(session)
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    into = sqlite.insert(Row) if is_sqlite else postgresql.insert(Row)
    greatest = func.max if is_sqlite else func.greatest
    new = into.excluded
    session.execute(
        into.on_conflict_do_update(
            index_elements=["mission", "product_type"],
            set_={name: getattr(Row, name) + new[name] for name in _SUMS}
            | {"longest_seconds": greatest(Row.longest_seconds, new.longest_seconds)},
        ),
        [rows[kind] for kind in sorted(rows)],
    )


def _seconds(start: datetime | None, stop: datetime | None) -> int:
    if start is None or stop is None:
        return 0
    return max(0, math.floor((stop - start).total_seconds()) + 1)


def recount(session: Session) -> list[str]:
    """Set the sums right by counting all products; says in sentences what was wrong."""
    events.lock(session)  # nobody counts in between
    wrong = differences(session)
    if wrong:
        session.execute(update(Row).values(dict.fromkeys(_SUMS, 0)))
        for row in session.execute(_counted(session)):
            session.merge(Row(**dict(zip(_NAMES, row, strict=True))))
    return wrong


def differences(session: Session) -> list[str]:
    """What the sums say otherwise than the products themselves, in sentences."""
    sides: dict[bool, dict[tuple[str, str], Any]] = {False: {}, True: {}}
    # One statement, so that both sides are of one moment.
    both = union_all(
        select(*_COLUMNS, literal(False)), _counted(session).add_columns(literal(True))
    )
    for row in session.execute(both):
        sides[row[-1]][row[0], row[1]] = row[2:-1]
    nothing = (0,) * (len(_NAMES) - 2)
    found = []
    for kind in sorted(sides[False].keys() | sides[True].keys()):
        said, true = (sides[side].get(kind, nothing) for side in (False, True))
        name = " ".join(part or "unknown" for part in kind)
        if said[:-1] != true[:-1]:
            found.append(
                "the sums of {} are {} products, {} files, {} bytes; "
                "its products come to {}, {}, {}".format(name, *said[:-1], *true[:-1])
            )
        elif said[-1] < true[-1]:
            found.append(f"products of {name} were sensed for longer than is known")
    return found


def _counted(session: Session) -> Select[*tuple[Any, ...]]:
    """The rows that the table should have."""
    available = Product.state == State.AVAILABLE
    mission, kind = func.coalesce(Product.mission, ""), func.coalesce(Product.product_type, "")
    return (
        select(
            mission,
            kind,
            *(
                cast(func.sum(case((available, value), else_=0)), BigInteger)
                for value in (1, Product.file_count, Product.size)
            ),
            func.coalesce(func.max(_seconds_of(session)), 0),
        )
        .where(Product.available_at.is_not(None))
        .group_by(mission, kind)
    )


def _seconds_of(session: Session) -> ColumnElement[int]:
    """A product's sensing time in SQL, in whole seconds and rather too much than too little."""
    if session.get_bind().dialect.name == "sqlite":
        days = func.julianday(Product.sensing_stop) - func.julianday(Product.sensing_start)
        return cast(cast(days, Float) * 86400, Integer) + 1
    seconds = extract("epoch", Product.sensing_stop - Product.sensing_start)
    return cast(func.floor(seconds), BigInteger) + 1
