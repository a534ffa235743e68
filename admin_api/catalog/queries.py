"""Every listing of products and events, each with its index and its cursor beside it.

A listing walks an index from a place on, so a page costs the same however much is stored.  Which
walk it is, and so the order, follows from the filters: by name where a name or its beginning is
given, by the start of sensing where a sensing time is, else by the time at which products became
available.  A mission and a type narrow the walk to a part of its own index; parts are merged.

What no index narrows is looked at row by row, but only for so many rows: such a page can be short
or empty and still have a cursor, and whoever follows it sees everything.

Times, sizes and states are those of ``models.Product``.  Called by ``services/listing.py``.
"""

from __future__ import annotations

import base64
import binascii
import json
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, and_, false, func, literal, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from admin_api.catalog import entries, usage
from admin_api.catalog.entries import EventEntry, ProductEntry
from admin_api.catalog.models import Event, Product, State
from admin_api.errors import InvalidRequest

#: Rows that a page looks at where no index has all the filters.
LOOKED_AT = 1000

#: Of the numbers in cursors: what a generation can be.
_HIGHEST = 1 << 31

Order = Literal["asc", "desc"]
Condition = ColumnElement[bool]


@dataclass(frozen=True, slots=True)
class ProductFilter:
    """What to list; None means any.  ``order`` is that of the walk, or the other way round."""

    state: str = State.AVAILABLE
    mission: str | None = None
    product_type: str | None = None
    name: str | None = None
    name_prefix: str | None = None
    sensing_from: datetime | None = None
    sensing_to: datetime | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None
    order: Order = "asc"


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events to list; None means any.  Numbers between ``after`` and ``before``."""

    after: int = 0
    before: int | None = None
    mission: str | None = None
    product_id: str | None = None
    order: Order = "asc"


# -- walks ---------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Walk:
    """An index in whose order products are listed.

    ``name`` is in its cursors; ``key`` is unique within a state, its first column is what filters
    give a range of.
    """

    name: str
    key: tuple[InstrumentedAttribute[Any], InstrumentedAttribute[Any]]
    #: Whether there are indexes ``(state, mission, key)`` and ``(state, mission, type, key)``, too.
    has_parts: bool


#: product_by_creation, product_by_mission, product_by_type
_BY_CREATION = _Walk("created", (Product.available_at, Product.pk), has_parts=True)
#: product_by_sensing, product_by_mission_sensing, product_by_type_sensing
_BY_SENSING = _Walk("sensing", (Product.sensing_start, Product.pk), has_parts=True)
#: product_by_name; the beginning of a name tells its mission and type in most cases
_BY_NAME = _Walk("name", (Product.name, Product.generation), has_parts=False)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a listing is made: ``walk`` over each of ``parts``, ``rest`` looked at row by row."""

    walk: _Walk
    parts: list[list[Condition]]
    rest: list[Condition]
    order: Order

    def query(self, part: Sequence[Condition], place: Sequence[Any] | None) -> Select[Any]:
        """The rows of a part behind ``place``, in order."""
        query = entries.products().where(Product.available_at.is_not(None), *part)
        if place is not None:
            query = query.where(self._beyond(place))
        return query.order_by(*self._sorting())

    def horizon(self, part: Sequence[Condition], place: Sequence[Any] | None) -> Select[Any]:
        """The place up to which a page looks; no row if it sees the end of the part."""
        query = self.query(part, place).with_only_columns(*self.walk.key)
        return query.offset(LOOKED_AT - 1).limit(1)

    def upto(self, place: Sequence[Any]) -> Condition:
        """Rows up to ``place`` and with it."""
        return self._compared(operator.le if self.order == "asc" else operator.ge, place)

    def _beyond(self, place: Sequence[Any]) -> Condition:
        return self._compared(operator.gt if self.order == "asc" else operator.lt, place)

    def _compared(self, how: Callable[[Any, Any], Condition], place: Sequence[Any]) -> Condition:
        pairs = zip(self.walk.key, place, strict=True)
        value = tuple_(*(literal(value, column.type) for column, value in pairs))
        return how(tuple_(*self.walk.key), value)

    def _sorting(self) -> list[ColumnElement[Any]]:
        return [column.asc() if self.order == "asc" else column.desc() for column in self.walk.key]


def products(
    session: Session,
    wish: ProductFilter,
    missions: frozenset[str] | None,
    cursor: str | None,
    limit: int,
) -> tuple[list[ProductEntry], str | None]:
    """A page of at most ``limit`` products, of ``missions`` only if given, and the next cursor.

    Raises InvalidRequest for a cursor of another listing.
    """
    plan = _plan(session, wish, missions)
    place = None if cursor is None else _decode(cursor, plan)
    found: list[ProductEntry] = []
    ends: list[tuple[Any, ...]] = []
    for part in plan.parts:
        query = plan.query(part, place)
        if plan.rest:
            horizon = session.execute(plan.horizon(part, place)).first()
            if horizon is not None:
                ends.append(tuple(horizon))
                query = query.where(plan.upto(horizon))
            query = query.where(_row_by_row(plan.rest))
        found += entries.all_of(ProductEntry, session, query.limit(limit + 1))

    def key_of(product: ProductEntry) -> tuple[Any, ...]:
        return tuple(getattr(product, column.key) for column in plan.walk.key)

    backwards = plan.order == "desc"
    found.sort(key=key_of, reverse=backwards)
    nearest = (max if backwards else min)(ends, default=None)
    if nearest is not None:  # what lies behind it was not looked at in every part
        is_near = operator.ge if backwards else operator.le
        found = [product for product in found if is_near(key_of(product), nearest)]
    page = found[:limit]
    last = key_of(page[-1]) if len(found) > limit else nearest
    return page, None if last is None else _encode(plan, last)


def _plan(session: Session, wish: ProductFilter, missions: frozenset[str] | None) -> _Plan:
    kinds = usage.read(session)
    if missions is not None:
        kinds = [kind for kind in kinds if kind.mission in missions]
    if wish.mission is not None:
        kinds = [kind for kind in kinds if kind.mission == wish.mission]
    if wish.product_type is not None:
        kinds = [kind for kind in kinds if kind.product_type == wish.product_type]
    created = _between(Product.available_at, wish.created_from, wish.created_to)
    prefix: list[Condition] = []
    if wish.name_prefix:
        # The first string behind all that begin so: in byte order U+10FFFF is the last character.
        last = wish.name_prefix + "\U0010ffff"
        prefix = [Product.name >= wish.name_prefix, Product.name < last]
    starts, stops = _sensed(wish, kinds)
    rest: list[Condition]
    if wish.name is not None:
        walk, ranges, rest = _BY_NAME, [Product.name == wish.name], [*prefix, *starts, *stops]
        rest += created
    elif starts:
        walk, ranges, rest = _BY_SENSING, starts, [*stops, *prefix, *created]
    elif prefix:
        walk, ranges, rest = _BY_NAME, prefix, created
    else:
        walk, ranges, rest = _BY_CREATION, created, []
    parts: list[list[Condition]] = [[]]
    if wish.product_type is not None and walk.has_parts:
        parts = [
            [Product.mission == kind.mission, Product.product_type == kind.product_type]
            for kind in kinds
        ]
    elif walk.has_parts and (wish.mission is not None or missions is not None):
        parts = [[Product.mission == mission] for mission in {kind.mission for kind in kinds}]
    else:
        rest = [*rest, *_belonging(wish, missions)]
    parts = [[Product.state == wish.state, *part, *ranges] for part in parts]
    return _Plan(walk, parts, rest, wish.order)


def _between(
    column: InstrumentedAttribute[Any], first: datetime | None, last: datetime | None
) -> list[Condition]:
    found: list[Condition] = []
    if first is not None:
        found.append(column >= first)
    if last is not None:
        found.append(column <= last)
    return found


def _sensed(
    wish: ProductFilter, kinds: Sequence[usage.Usage]
) -> tuple[list[Condition], list[Condition]]:
    """Sensed at any time of the window: conditions on the start, and on the stop.

    What began before the window and reaches into it began by no more before than the longest
    product of these missions and types takes.
    """
    first = wish.sensing_from
    if first is None:
        return _between(Product.sensing_start, None, wish.sensing_to), []
    longest = timedelta(seconds=max((kind.longest_seconds for kind in kinds), default=0))
    earliest = first - min(longest, first - datetime.min.replace(tzinfo=first.tzinfo))
    return _between(Product.sensing_start, earliest, wish.sensing_to), [
        Product.sensing_stop >= first
    ]


def _row_by_row(conditions: Sequence[Condition]) -> Condition:
    """``conditions`` as no index serves them: the planner is to stay on the walk.

    It would rather read all of a mission by another index and sort what is left.
    """
    return func.coalesce(and_(*conditions), false())


def _belonging(wish: ProductFilter, missions: frozenset[str] | None) -> list[Condition]:
    found: list[Condition] = []
    if wish.mission is not None:
        found.append(Product.mission == wish.mission)
    if missions is not None:
        found.append(Product.mission.in_(sorted(missions)))
    if wish.product_type is not None:
        found.append(Product.product_type == wish.product_type)
    return found


# -- cursors -------------------------------------------------------------------------------------
def _encode(plan: _Plan, place: Sequence[Any]) -> str:
    """Opaque to clients: the walk, its direction, and the last place seen."""
    first, second = place
    told = first.isoformat() if isinstance(first, datetime) else first
    text = json.dumps([plan.walk.name, plan.order, told, second], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode(cursor: str, plan: _Plan) -> tuple[Any, ...]:
    again = "List again from the beginning, without a cursor."
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        if text.startswith("p"):
            raise InvalidRequest(f"The cursor is of an earlier version of this service. {again}")
        walk, order, first, second = json.loads(text)
        if (walk, order) != (plan.walk.name, plan.order):
            raise InvalidRequest(f"The cursor is of a listing with other filters. {again}")
        if plan.walk is not _BY_NAME:
            first = datetime.fromisoformat(first).astimezone(UTC)
        if isinstance(first, str | datetime) and type(second) is int and 0 <= second < _HIGHEST:
            return first, second
    except (ValueError, TypeError, OverflowError, binascii.Error, RecursionError):
        pass
    raise InvalidRequest("The cursor is not one that this service gave.")


# -- events --------------------------------------------------------------------------------------
def events(
    session: Session, wish: EventFilter, missions: frozenset[str] | None, limit: int
) -> list[EventEntry]:
    """A page of at most ``limit`` events, of ``missions`` only if given.

    Indexes: the primary key, event_mission, event_product.  The cursor is the last one's number.
    """
    numbers: list[Condition] = [Event.number > wish.after]
    if wish.before is not None:
        numbers.append(Event.number < wish.before)
    wanted = missions
    if wish.mission is not None:
        wanted = frozenset([wish.mission]) if missions is None else missions & {wish.mission}
    parts: list[list[Condition]]
    if wish.product_id is not None:
        parts = [[Event.product_id == wish.product_id]]
        if wanted is not None:
            parts[0].append(_row_by_row([Event.mission.in_(sorted(wanted))]))
    elif wanted is not None:
        parts = [[Event.mission == mission] for mission in sorted(wanted)]
    else:
        parts = [[]]
    backwards = wish.order == "desc"
    found: list[EventEntry] = []
    for part in parts:
        query = select(*entries.EVENT).where(and_(*numbers, *part)).limit(limit)
        query = query.order_by(Event.number.desc() if backwards else Event.number)
        found += entries.all_of(EventEntry, session, query)
    return sorted(found, key=lambda event: event.number, reverse=backwards)[:limit]
