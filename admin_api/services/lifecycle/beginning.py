"""Beginning to receive a product: may it come, under which numbers, into which directory.

Called by ``reception.py``, ``uploads.py`` and ``groups.py`` by way of the package; what keeps a
product from being removed (``refuse_kept``, ``refuse_leased``) is asked by removal and change, too.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import (
    func,
    or_,
    select,
    union_all,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from admin_api.catalog import clock, entries
from admin_api.catalog.entries import ProductEntry
from admin_api.catalog.models import (
    Forgotten,
    Product,
    State,
)
from admin_api.errors import (
    Forbidden,
    Held,
    InProgress,
    InvalidKey,
    Leased,
    ProductExists,
    Retained,
    StorageManagerError,
)
from admin_api.keys import check_key, join
from admin_api.products.names import directory_of, parse_name
from admin_api.products.records import DIRECTORY
from admin_api.services import records
from admin_api.services.access import Principal, Scope
from admin_api.services.facility import Facility
from admin_api.services.lifecycle import transitions
from admin_api.services.wishes import Policy, Wish

log = logging.getLogger(__name__)

#: So many keys are looked through for each new directory before each is looked at by itself.
_LISTED = 4
_COLUMNS = tuple(transitions.TABLE.c[item.key] for item in entries.PRODUCT)


def begin(
    facility: Facility, principal: Principal, wish: Wish, compare: bool = False
) -> ProductEntry:
    """Begin an attempt (a row ``receiving`` with a generation of its own) and return it.

    With ``compare``, the product in place is returned where the policy is ``skip``: nothing need
    be stored then.  Raises ProductExists, Held, Retained, Forbidden where the policy refuses
    another product, InProgress when too many begin at once.
    """
    storage = facility.settings.storage
    base = wish.directory or directory_of(
        wish.name, storage.key_template, storage.unsorted_template
    )
    facility.storage.require_at(f"{wish.registered_in or base}/")
    asked = _Beginning(principal, wish, base, compare)
    for _ in range(transitions.RACE_ATTEMPTS):
        try:
            attempt: ProductEntry = facility.beginnings.do(asked, partial(_begin_all, facility))
        except IntegrityError:
            continue  # somebody else took that generation number
        if attempt.state == State.AVAILABLE:
            return attempt
        if wish.registered_in is not None or not _is_taken(facility, attempt.directory):
            return attempt
        # The store knows this generation and the catalog does not (it was lost, or restored
        # from a backup): leave those objects alone and take the next number.
        with facility.catalog.writing() as session:
            transitions.give_up(
                session, [Product.pk == attempt.pk], principal.actor, transitions.TAKEN
            )
            transitions.bury(session, attempt.pk, 0)
    raise InProgress(f"Too many ingests of {wish.name!r} begin at once; try again.")


@dataclass(frozen=True, slots=True)
class _Beginning:
    """An attempt to begin; ``base`` is the directory of its first generation."""

    principal: Principal
    wish: Wish
    base: str
    compare: bool


def _begin_all(
    facility: Facility, asked: Sequence[_Beginning]
) -> Sequence[ProductEntry | BaseException]:
    """Each one's attempt, or the product in place, or what refuses it: in one transaction.

    If that fails for one of them, which another process can bring about, each has its own.
    """
    if len({one.wish.name for one in asked}) == len(asked):
        with (
            contextlib.suppress(IntegrityError, InvalidKey),
            facility.catalog.writing() as session,
        ):
            return _begin_in(session, asked)
    found: list[ProductEntry | BaseException] = []
    for one in asked:
        try:
            with facility.catalog.writing() as session:
                found += _begin_in(session, [one])
        except (IntegrityError, StorageManagerError) as error:
            found.append(error)
    return found


def _begin_in(session: Session, asked: Sequence[_Beginning]) -> list[ProductEntry | BaseException]:
    there = available_of(session, [one.wish.name for one in asked])
    found: list[ProductEntry | BaseException | None] = []
    for one in asked:
        existing = there.get(one.wish.name)
        try:
            if existing is not None:
                refuse(session, existing, one.principal, one.wish, early=True)
            elif one.wish.product_id is not None:
                _refuse_other_name(session, one.principal, one.wish)
        except StorageManagerError as error:
            found.append(error)
        else:
            is_enough = one.wish.policy is Policy.SKIP and one.compare
            found.append(existing if is_enough else None)
    beginning = [one for one, answer in zip(asked, found, strict=True) if answer is None]
    begun = iter(_reserve(session, beginning, there))
    return [answer if answer is not None else next(begun) for answer in found]


def _reserve(
    session: Session, beginning: Sequence[_Beginning], there: Mapping[str, ProductEntry]
) -> list[ProductEntry]:
    """Rows ``receiving``, in the order of ``beginning``."""
    if not beginning:
        return []
    last = _last_generations(session, [one.wish.name for one in beginning])
    now = clock.read(session)
    rows: list[dict[str, Any]] = []
    for one in beginning:
        generation = last.get(one.wish.name, 0) + 1
        first = generation == 1
        if one.wish.directory is not None:  # not of the name: others may have had it
            had = select(Product.pk).where(Product.directory == one.base).limit(1)
            first = session.scalar(had) is None
            first = first and all(row["directory"] != one.base for row in rows)
        base = one.base if first else f"{one.base}@{generation}"
        rows.append(_row(one, there.get(one.wish.name), generation, base, now))
    found = session.connection().execute(transitions.TABLE.insert().returning(*_COLUMNS), rows)
    made = {attempt.attempt: attempt for attempt in (ProductEntry(*row) for row in found)}
    return [made[row["attempt"]] for row in rows]


def _row(
    one: _Beginning, existing: ProductEntry | None, generation: int, directory: str, now: datetime
) -> dict[str, Any]:
    principal, wish = one.principal, one.wish
    product_id = wish.product_id or (existing.id if existing else uuid.uuid4().hex)
    parsed = parse_name(wish.name)
    return {
        "id": product_id,
        "name": wish.name,
        "generation": generation,
        "number": 0,
        "state": State.RECEIVING,
        "mission": parsed.mission if parsed else None,
        "product_type": parsed.product_type if parsed else None,
        "sensing_start": parsed.sensing_start if parsed else None,
        "sensing_stop": parsed.sensing_stop if parsed else None,
        "size": 0,
        "file_count": 0,
        "directory": wish.registered_in or check_key(directory),
        "registered": wish.registered_in is not None,
        "level": wish.level,
        "source": wish.source,
        "subject": principal.subject,
        "created_at": now,
        "touched_at": now,
        "retention_until": wish.retention_until,
        "attempt": f"{wish.mark or ''}{f'@{wish.group}' if wish.group else uuid.uuid4().hex}",
        "recorded": 0,
    }


def begin_many(
    facility: Facility, principal: Principal, wishes: Sequence[Wish]
) -> list[ProductEntry | None]:
    """Begin attempts of one group, each by a mark and a name of its own, in one transaction.

    None for each that is not plain: a product has or had its name, another attempt at it is about
    to commit, something lies in its directory, the policy has to be asked.  Those are to be begun
    one by one.  Raises what store and catalog raise.
    """
    storage = facility.settings.storage
    asked = [
        _Beginning(
            principal,
            wish,
            directory_of(wish.name, storage.key_template, storage.unsorted_template),
            compare=False,
        )
        for wish in wishes
    ]
    for mount in {facility.storage.mount_of(f"{one.base}/") for one in asked}:
        facility.storage.require_at(join(mount, DIRECTORY))
    # In this order, as everybody else's: two who begin the same products do not wait for each
    # other crosswise.
    asked.sort(key=lambda one: one.wish.name)
    begun: dict[str, ProductEntry] = {}
    with contextlib.suppress(IntegrityError), facility.catalog.writing() as session:
        names = [one.wish.name for one in asked]
        known = set(
            session.scalars(
                select(Product.name).where(
                    Product.name.in_(names),
                    or_(Product.available_at.is_not(None), Product.state == State.COMMITTING),
                )
            )
        )
        plain = [one for one in asked if one.wish.name not in known]
        begun = {attempt.name: attempt for attempt in _reserve(session, plain, {})}
    return [begun.get(wish.name) for wish in wishes]


def leave_taken(
    facility: Facility, principal: Principal, attempts: Sequence[ProductEntry]
) -> set[int]:
    """Give up those attempts in whose directories something lies already; returns their rows.

    The store knows these generations and the catalog does not: those objects are left alone.
    """
    taken = _taken(facility, attempts)
    if taken:
        with facility.catalog.writing() as session:
            transitions.give_up(
                session, [Product.pk.in_(taken)], principal.actor, transitions.TAKEN
            )
            for pk in taken:
                transitions.bury(session, pk, 0)
    return taken


def _taken(facility: Facility, attempts: Sequence[ProductEntry]) -> set[int]:
    """The rows of attempts whose directories are not empty; buckets are asked for many at once."""
    by_parent: dict[str, dict[str, int]] = {}
    taken: set[int] = set()
    asked: list[ProductEntry] = []
    for attempt in attempts:
        if facility.storage.bucket(records.mount_path(facility, attempt)) is None:
            if _is_taken(facility, attempt.directory):
                taken.add(attempt.pk)
            continue
        asked.append(attempt)
        parent, _, name = attempt.directory.rpartition("/")
        by_parent.setdefault(parent, {})[name] = attempt.pk
    known: set[str] = set()
    for parent, inner in by_parent.items():
        if not parent or len(inner) == 1:
            continue
        most = _LISTED * len(inner)
        names = [
            stat.key[len(parent) + 1 :].partition("/")[0]
            for stat in itertools.islice(facility.storage.list(parent), most)
        ]
        taken |= {inner[name] for name in names if name in inner}
        if len(names) < most:
            known.add(parent)
    left = [one for one in asked if one.directory.rpartition("/")[0] not in known]
    if left:
        with ThreadPoolExecutor(transitions.SIDE_BY_SIDE, thread_name_prefix="look") as pool:
            found = pool.map(lambda one: _is_taken(facility, one.directory), left)
            taken |= {one.pk for one, is_taken in zip(left, found, strict=True) if is_taken}
    return taken


def next_generation(session: Session, name: str) -> int:
    """The number after the last one that the name was ever given."""
    return _last_generations(session, [name]).get(name, 0) + 1


def _last_generations(session: Session, names: Sequence[str]) -> dict[str, int]:
    """The highest generation that was given under each name."""
    # One statement, so that a row that is forgotten meanwhile is counted once or the other way.
    given = select(Product.name, Product.generation).where(Product.name.in_(names))
    forgotten = select(Forgotten.name, Forgotten.generation).where(Forgotten.name.in_(names))
    both = union_all(given, forgotten).subquery()
    query = select(both.c.name, func.max(both.c.generation)).group_by(both.c.name)
    return {name: int(generation) for name, generation in session.execute(query)}


def _refuse_other_name(session: Session, principal: Principal, wish: Wish) -> None:
    other = entries.first_of(
        ProductEntry,
        session,
        entries.products().where(Product.id == wish.product_id, Product.name != wish.name).limit(1),
    )
    if other is None:
        return
    if principal.sees(other.mission):
        raise ProductExists(f"The id {wish.product_id!r} is that of the product {other.name!r}.")
    raise ProductExists(f"The id {wish.product_id!r} is taken; leave it out to be given one.")


def refuse(
    session: Session, existing: ProductEntry, principal: Principal, wish: Wish, early: bool = False
) -> None:
    """Raise where the duplicate policy does not let another product take the name."""
    if wish.product_id is not None and wish.product_id != existing.id:
        raise ProductExists(
            f"The product {wish.name!r} is stored under the id {existing.id!r}.",
            product=existing.id,
        )
    if wish.policy is Policy.ERROR or (wish.policy is Policy.SKIP and not early):
        raise ProductExists(
            f"The product {wish.name!r} is stored already"
            + (" with other content." if wish.policy is Policy.SKIP else "."),
            product=existing.id,
        )
    if wish.policy is Policy.REPLACE:
        if existing.subject != principal.subject and not principal.has(Scope.REMOVE):
            raise Forbidden(
                f"The product {wish.name!r} was stored by somebody else; to replace it the token "
                "needs the scope 'remove', too."
            )
        refuse_kept(existing, clock.read(session))
        refuse_leased(session, existing)


def refuse_other(facility: Facility, principal: Principal, wish: Wish, digest: str) -> None:
    """Raise at once what ``commit`` would raise for content that is not that of the product there.

    For those who have more to check before they commit: a re-delivery is told as such whatever
    else is wrong with it.
    """
    with facility.catalog.reading() as session:
        existing = available(session, wish.name)
        if existing is not None and existing.list_digest != digest:
            refuse(session, existing, principal, wish)


def refuse_kept(product: ProductEntry, now: datetime) -> None:
    """Raise Held or Retained for a product that must not go, be it removed or replaced."""
    if product.hold_reason is not None:
        raise Held(
            f"The product is held by {product.hold_by}: {product.hold_reason}. "
            "An administrator can lift the hold.",
            held_by=product.hold_by,
        )
    if product.retention_until is not None and product.retention_until > now:
        raise Retained(
            f"The product is to be kept until {product.retention_until.isoformat()}. "
            "An administrator can change the date.",
            retention=product.retention_until.isoformat(),
        )


def foresee(facility: Facility, principal: Principal, wish: Wish) -> ProductEntry | None:
    """The product that has the name; raises what ``begin`` would, and changes nothing."""
    with facility.catalog.reading() as session:
        existing = available(session, wish.name)
        if existing is not None:
            refuse(session, existing, principal, wish, early=True)
        elif wish.product_id is not None:
            _refuse_other_name(session, principal, wish)
        return existing


def of_name(facility: Facility, name: str) -> ProductEntry | None:
    """The available product that has the name."""
    with facility.catalog.reading() as session:
        return available(session, name)


def refuse_leased(session: Session, product: ProductEntry) -> None:
    """Raise Leased for a product that somebody works with under a lease."""
    until = session.scalar(
        select(Product.leased_until).where(
            Product.pk == product.pk, Product.leased_until > clock.now()
        )
    )
    if until is not None:
        raise Leased(
            f"The product {product.name!r} is in use under a lease until {until.isoformat()}, or "
            "longer if that is renewed. Try again when it has ended.",
            expires_at=until.isoformat(),
        )


def _is_taken(facility: Facility, directory: str) -> bool:
    return next(iter(facility.storage.list(directory)), None) is not None


def available_of(session: Session, names: Sequence[str]) -> dict[str, ProductEntry]:
    """The available products of these names."""
    query = entries.products().where(Product.name.in_(names), entries.is_available())
    return {product.name: product for product in entries.all_of(ProductEntry, session, query)}


def available(session: Session, name: str) -> ProductEntry | None:
    """The available product of a name."""
    return entries.first_of(
        ProductEntry,
        session,
        entries.products().where(Product.name == name, entries.is_available()),
    )
