"""What can happen to a product, and in which order: every change of a state is made here.

::

    begin ──► receiving ──claim──► committing ──promote──► available ──retire──► removing
                  │                     │                      ▲ keep                │
                  └─give_up─► removing ◄┴─undo                                     bury
                                  └───────────────bury──────────────────────────► removed

A transition is one guarded ``UPDATE ... RETURNING``, for one product or for many, with its events
and the sums of ``catalog/usage.py`` in the same transaction: of two who try the same, one is told
that it came too late.  Between two transitions lies what the store is told: data, then the record
(``claim`` to ``promote``); the record, then the bytes go (``retire`` to ``bury``).  Whether a
commit happened is decided by the store alone (``settle``).  Numbers of generations and of
statements are taken in the catalog first and are never given twice; times are the database's.

Called by ``reception``, ``uploads``, ``removal`` and ``housekeeping``; calls ``records`` for the
store's side.  An available product can get and lose files (``extend``, ``withdraw``): a statement
with the next number says what it consists of then; its keys never change their bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Table,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    not_,
    or_,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from admin_api.catalog import clock, entries, events, usage
from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.catalog.events import SYSTEM, Actor, Happening
from admin_api.catalog.models import (
    File,
    Forgotten,
    Lease,
    LeasedProduct,
    LooseKey,
    Product,
    State,
)
from admin_api.errors import (
    AlreadyExists,
    CatalogBehind,
    Forbidden,
    Held,
    InProgress,
    InvalidKey,
    Leased,
    NoSpace,
    NotFound,
    ProductExists,
    Retained,
    StorageManagerError,
)
from admin_api.keys import check_key, join
from admin_api.products.digests import list_digest
from admin_api.products.names import directory_of, parse_name
from admin_api.products.records import DIRECTORY, Statement
from admin_api.services import records
from admin_api.services.access import Principal, Scope
from admin_api.services.facility import Facility
from admin_api.services.wishes import Policy, Wish

log = logging.getLogger(__name__)

_COMMIT_WAIT_SECONDS = 15.0
_RACE_ATTEMPTS = 20
_RACE_SECONDS = 0.1
_SWEPT_AT_ONCE = 500
_KEYS_AT_ONCE = 5000
#: So many keys are listed for each directory that would be looked at by a request of its own.
_NEIGHBOURS = 20
#: So many keys are looked through for each new directory before each is looked at by itself.
_LISTED = 4
#: Directories that are listed side by side.
_SWEEPERS = 8
#: Causes of attempts that came to nothing without anybody's fault; of one whose directory was
#: ``TAKEN`` nothing lies there.
_DUPLICATE = "duplicate"
TAKEN = "directory taken"
#: It is begun again, outside of its group.
ALONE = "done alone"

_TABLE = cast("Table", Product.__table__)
_COLUMNS = tuple(_TABLE.c[item.key] for item in entries.PRODUCT)


# -- transitions ---------------------------------------------------------------------------------
def _move(
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


def _move_many(
    session: Session,
    attempts: Sequence[ProductEntry],
    state: str,
    values: Mapping[str, Any],
) -> list[ProductEntry]:
    """As ``_move``, for attempts in ``state`` of which nothing else can have changed.

    Raises _NotPlainError unless all of them are moved.
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
        raise _NotPlainError
    times = {row.pk: row.touched_at for row in moved}
    return [replace(attempt, touched_at=times[attempt.pk], **values) for attempt in attempts]


def _is(attempt: ProductEntry, *states: str) -> list[ColumnElement[bool]]:
    """The row of ``attempt`` itself, not one that has its number in another history."""
    return [
        Product.pk == attempt.pk,
        Product.attempt == attempt.attempt,
        Product.state.in_(states),
    ]


def _may_go() -> ColumnElement[bool]:
    """Neither held nor retained nor leased (promise I11)."""
    return and_(
        Product.hold_reason.is_(None),
        or_(Product.retention_until.is_(None), Product.retention_until <= clock.now()),
        or_(Product.leased_until.is_(None), Product.leased_until <= clock.now()),
    )


def _give_up(
    session: Session, where: Sequence[ColumnElement[bool]], actor: Actor, cause: str
) -> list[ProductEntry]:
    """Receiving -> removing: attempts that have not begun their commit come to nothing."""
    found = _move(
        session,
        [Product.state == State.RECEIVING, *where],
        {"state": State.REMOVING, "removed_by": actor.subject, "removed_cause": cause},
    )
    if cause not in (_DUPLICATE, TAKEN, ALONE):
        events.append(
            session, actor, [Happening("ingest.failed", item, {"cause": cause}) for item in found]
        )
    return found


def _retire(
    session: Session, where: Sequence[ColumnElement[bool]], actor: Actor, cause: str
) -> list[ProductEntry]:
    """Available -> removing: out of sight; the number of the record that will say so is taken."""
    found = _move(
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


def _undo(session: Session, attempt: ProductEntry) -> list[ProductEntry]:
    """Committing -> removing: the store has said that the commit did not happen."""
    found = _move(
        session,
        _is(attempt, State.COMMITTING),
        {
            "state": State.REMOVING,
            "recorded": 1,
            "removed_by": SYSTEM.subject,
            "removed_cause": "commit undone",
        },
    )
    _release(session, [item.pk for item in found])
    return found


def _release(session: Session, successors: Sequence[int]) -> None:
    """What was about to be replaced by ``successors`` stays."""
    if successors:
        _move(session, [Product.successor.in_(successors)], {"successor": None})


def _bury(session: Session, pk: int, number: int) -> None:
    """Removing -> removed: the bytes are gone, the tombstone stays; ``number`` is recorded."""
    buried = _move(
        session,
        [Product.pk == pk, Product.state == State.REMOVING],
        {"state": State.REMOVED, "number": number, "recorded": number},
    )
    if buried:
        session.execute(delete(File).where(File.product_pk == pk))


def _bury_many(session: Session, pks: Sequence[int]) -> None:
    """As ``_bury``, for products whose removals are recorded under their own numbers."""
    buried = _move(
        session,
        [Product.pk.in_(pks), Product.state == State.REMOVING],
        {"state": State.REMOVED, "recorded": Product.number},
    )
    session.execute(delete(File).where(File.product_pk.in_([item.pk for item in buried])))


# -- beginning -----------------------------------------------------------------------------------
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
    for _ in range(_RACE_ATTEMPTS):
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
            _give_up(session, [Product.pk == attempt.pk], principal.actor, TAKEN)
            _bury(session, attempt.pk, 0)
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
    there = _available_of(session, [one.wish.name for one in asked])
    found: list[ProductEntry | BaseException | None] = []
    for one in asked:
        existing = there.get(one.wish.name)
        try:
            if existing is not None:
                _refuse(session, existing, one.principal, one.wish, early=True)
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
    found = session.connection().execute(_TABLE.insert().returning(*_COLUMNS), rows)
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
            _give_up(session, [Product.pk.in_(taken)], principal.actor, TAKEN)
            for pk in taken:
                _bury(session, pk, 0)
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
        with ThreadPoolExecutor(_SWEEPERS, thread_name_prefix="look") as pool:
            found = pool.map(lambda one: _is_taken(facility, one.directory), left)
            taken |= {one.pk for one, is_taken in zip(left, found, strict=True) if is_taken}
    return taken


def _next_generation(session: Session, name: str) -> int:
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


def _refuse(
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
        existing = _available(session, wish.name)
        if existing is not None and existing.list_digest != digest:
            _refuse(session, existing, principal, wish)


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
        existing = _available(session, wish.name)
        if existing is not None:
            _refuse(session, existing, principal, wish, early=True)
        elif wish.product_id is not None:
            _refuse_other_name(session, principal, wish)
        return existing


def of_name(facility: Facility, name: str) -> ProductEntry | None:
    """The available product that has the name."""
    with facility.catalog.reading() as session:
        return _available(session, name)


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


def _available_of(session: Session, names: Sequence[str]) -> dict[str, ProductEntry]:
    query = entries.products().where(Product.name.in_(names), entries.is_available())
    return {product.name: product for product in entries.all_of(ProductEntry, session, query)}


def _available(session: Session, name: str) -> ProductEntry | None:
    return entries.first_of(
        ProductEntry,
        session,
        entries.products().where(Product.name == name, entries.is_available()),
    )


# -- committing ----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Committed:
    """A product that exists now; ``replaced``: another generation of it went for it."""

    product: ProductEntry
    files: list[FileEntry]
    replaced: bool


class SuperfluousError(Exception):
    """The same content is available already, so the commit is not needed."""

    def __init__(self, existing: ProductEntry, files: list[FileEntry]) -> None:
        super().__init__(existing.id)
        self.existing = existing
        #: As they were then: a moment later the product can be gone.
        self.files = files


def commit(
    facility: Facility,
    principal: Principal,
    wish: Wish,
    attempt: ProductEntry,
    files: Sequence[FileEntry],
    digest: str,
    is_sound: Callable[[ProductEntry], bool],
) -> Committed:
    """Make the product exist, of ``files`` that are durable in the store.

    ``digest`` is that of the list of files.  Where the same content is available already
    SuperfluousError is raised; with the policy ``replace`` only if ``is_sound`` says that the
    store still has it.  Raises ProductExists, Held, Retained, InProgress, CatalogBehind, and what
    store and catalog raise; after an error of the store the commit is settled here or later.
    """
    asked = _Claiming(attempt, files, digest)
    claimed: ProductEntry | None = facility.claims.do(asked, partial(_claim_all, facility))
    if claimed is None:
        claimed = _claim(facility, principal, wish, attempt, files, digest, is_sound)
    statement = records.describe(facility, claimed, files, 1).model_copy(
        update={"available_at": claimed.touched_at}
    )
    mount = records.mount_path(facility, claimed)
    try:
        if (claimed.id, claimed.generation) != (attempt.id, attempt.generation):
            _leave_word(facility, attempt, claimed)
        records.write(facility, mount, statement)
    except StorageManagerError:
        log.exception("record not written or not confirmed", extra={"product": claimed.id})
        if not settle(facility, claimed):
            raise
    retired = promote(facility, claimed, principal.actor, statement.available_at)
    with facility.catalog.reading() as session:
        product = entries.product(session, claimed.pk)
        stored = list(files)
        if product is not None and product.list_digest != digest:
            stored = entries.files_of(session, claimed.pk)
    assert product is not None
    known = {(file.path, file.sha256) for file in stored}
    if not all((file.path, file.sha256) in known for file in files):
        raise InProgress(
            "The upload was committed already, with other files, before the catalog was restored "
            "from a backup; look at the product."
        )
    return Committed(product, stored, retired is not None)


@dataclass(frozen=True, slots=True)
class _Claiming:
    """A commit to begin."""

    attempt: ProductEntry
    files: Sequence[FileEntry]
    digest: str


def commit_many(
    facility: Facility,
    actor: Actor,
    group: str,
    received: Sequence[tuple[ProductEntry, Sequence[FileEntry], str]],
) -> dict[int, ProductEntry]:
    """Make the products of a group exist, all by one record; returns them by their rows.

    ``received`` are attempts with their files, durable in the store, and the digests of their
    lists.  What is not returned was not committed, or nobody can say yet; the next attempt at the
    name finds out.  Raises what the catalog raises.
    """
    asked = [_Claiming(attempt, files, digest) for attempt, files, digest in received]
    claimed = [product for product in _claim_all(facility, asked) if product is not None]
    files_of = {attempt.pk: files for attempt, files, _ in received}
    by_mount: dict[str, list[ProductEntry]] = {}
    for product in claimed:
        by_mount.setdefault(records.mount_path(facility, product), []).append(product)
    committed: dict[int, ProductEntry] = {}
    for mount, products in by_mount.items():
        statements = [
            records.describe(facility, product, files_of[product.pk], 1).model_copy(
                update={"available_at": product.touched_at}
            )
            for product in products
        ]
        try:
            records.write_group(facility, mount, group, statements)
        except StorageManagerError:
            log.exception("record of a group not written or not confirmed", extra={"group": group})
            committed |= _settled(facility, products)
            continue
        promotions = [_Promoting(product, actor, product.touched_at) for product in products]
        promoted = _promote_all(facility, promotions)
        for product, is_promoted in zip(products, promoted, strict=True):
            if not is_promoted:
                promote(facility, product, actor, product.touched_at)
            committed[product.pk] = product
    return committed


def _settled(facility: Facility, products: Sequence[ProductEntry]) -> dict[int, ProductEntry]:
    """Those of a group that exist after all; of what cannot be found out now nothing is said."""
    found: dict[int, ProductEntry] = {}
    for product in products:
        with contextlib.suppress(StorageManagerError):
            if settle(facility, product):
                found[product.pk] = product
    return found


class _NotPlainError(Exception):
    """One of the claims needs a decision of its own; undoes the transaction."""


def _claim_all(facility: Facility, asked: Sequence[_Claiming]) -> Sequence[ProductEntry | None]:
    """Receiving -> committing, in one transaction, where nobody else has or had the name.

    None for all that this cannot be said of: ``_claim`` decides on them one by one.
    """
    with facility.catalog.reading() as session:
        names = [one.attempt.name for one in asked]
        last = _last_existing(session, names)
    plain = [
        one for one in asked if names.count(one.attempt.name) == 1 and one.attempt.name not in last
    ]
    claimed: dict[int, ProductEntry] = {}
    if plain:
        with (
            contextlib.suppress(IntegrityError, _NotPlainError),
            facility.catalog.writing() as session,
        ):
            claimed = _enter_commits(session, plain)
    return [claimed.get(one.attempt.pk) for one in asked]


def _enter_commits(session: Session, asked: Sequence[_Claiming]) -> dict[int, ProductEntry]:
    by_pk = {one.attempt.pk: one for one in asked}
    claimed = _move_many(
        session,
        [one.attempt for one in asked],
        State.RECEIVING,
        {"state": State.COMMITTING, "number": 1},
    )
    known = select(File.product_pk).where(File.product_pk.in_(by_pk)).limit(1)
    if session.scalars(known).first() is not None:
        raise _NotPlainError
    # In this order, as ``_claim``: who has the place in the commit rules over the name.
    if _last_existing(session, [one.attempt.name for one in asked]):
        raise _NotPlainError
    sums: dict[int, dict[str, Any]] = {
        pk: {
            "size": sum(file.size for file in one.files),
            "file_count": len(one.files),
            "list_digest": one.digest,
        }
        for pk, one in by_pk.items()
    }
    _set_each(session, sums)
    add_files(session, [file for one in asked for file in one.files])
    return {product.pk: replace(product, **sums[product.pk]) for product in claimed}


def _set_each(session: Session, values: Mapping[int, Mapping[str, Any]]) -> None:
    """Values of their own for rows that the transaction has moved."""
    names = next(iter(values.values()))
    statement = _TABLE.update().where(_TABLE.c.pk == bindparam("row"))
    session.connection().execute(
        statement.values({name: bindparam(f"new_{name}") for name in names}),
        [
            {"row": pk, **{f"new_{name}": value for name, value in row.items()}}
            for pk, row in values.items()
        ],
    )


def _last_existing(session: Session, names: Sequence[str]) -> set[str]:
    """Which of the names a product has, or had."""
    query = select(Product.name).where(Product.name.in_(names), Product.available_at.is_not(None))
    return set(session.scalars(query))


def _claim(
    facility: Facility,
    principal: Principal,
    wish: Wish,
    attempt: ProductEntry,
    files: Sequence[FileEntry],
    digest: str,
    is_sound: Callable[[ProductEntry], bool],
) -> ProductEntry:
    """Receiving -> committing: take the name's one place in the commit; decide on duplicates."""
    deadline = time.monotonic() + _COMMIT_WAIT_SECONDS
    damaged: set[int] = set()
    while True:
        try:
            with facility.catalog.writing() as session:
                # In this order: who has the name's place in the commit rules over it, and
                # nobody else can become available between the look and the decision.
                claimed = _enter_commit(session, attempt, files, digest)
                existing = _available(session, wish.name)
                if existing is None:
                    return _follow(session, claimed)
                if existing.list_digest == digest and existing.pk not in damaged:
                    raise SuperfluousError(existing, entries.files_of(session, existing.pk))
                _refuse(session, existing, principal, wish)
                return _succeed(session, claimed, existing)
        except SuperfluousError as found:
            if wish.policy is not Policy.REPLACE or is_sound(found.existing):
                raise
            damaged.add(found.existing.pk)
        except IntegrityError as error:
            _make_way(facility, wish.name, files, error, deadline)


def _enter_commit(
    session: Session, attempt: ProductEntry, files: Sequence[FileEntry], digest: str
) -> ProductEntry:
    claimed = _move(
        session,
        _is(attempt, State.RECEIVING),
        {
            "state": State.COMMITTING,
            "number": 1,
            "size": sum(file.size for file in files),
            "file_count": len(files),
            "list_digest": digest,
        },
    )
    if not claimed:
        raise InProgress("The ingest was given up meanwhile; begin again.")
    known = set(session.scalars(select(File.path).where(File.product_pk == attempt.pk)))
    if not known <= {file.path for file in files}:
        raise InProgress("A file arrived while the upload was committed; commit again.")
    add_files(session, [file for file in files if file.path not in known])
    return claimed[0]


def add_files(session: Session, files: Iterable[FileEntry]) -> None:
    """Write down files that an attempt has received; raises IntegrityError for taken keys."""
    rows = [
        {name: getattr(file, name) for name in FileEntry.__dataclass_fields__} for file in files
    ]
    if rows:
        session.execute(insert(File), rows)


def _follow(session: Session, claimed: ProductEntry) -> ProductEntry:
    """See to it that the generation is later than every one that has existed, be it removed by now.

    Generations are in the order of their commits: by that alone a rebuilt catalog knows which
    one has replaced the others.
    """
    last = session.scalar(
        select(func.max(Product.generation)).where(
            Product.name == claimed.name, Product.available_at.is_not(None)
        )
    )
    if last is None or last < claimed.generation:
        return claimed
    values = {"generation": _next_generation(session, claimed.name)}
    return _move(session, _is(claimed, State.COMMITTING), values)[0]


def _succeed(session: Session, claimed: ProductEntry, existing: ProductEntry) -> ProductEntry:
    """The available product is about to be replaced: from here on nobody can hold it."""
    reserved = _move(
        session,
        [Product.pk == existing.pk, Product.state == State.AVAILABLE, _may_go()],
        {"successor": claimed.pk},
    )
    if not reserved:
        raise InProgress(f"{claimed.name!r} is being removed or held right now; try again.")
    values: dict[str, Any] = {"id": existing.id}
    if claimed.generation < existing.generation:
        # It began earlier and commits later: generations are in the order of their commits.
        values["generation"] = _next_generation(session, claimed.name)
    return _move(session, _is(claimed, State.COMMITTING), values)[0]


def _make_way(
    facility: Facility,
    name: str,
    files: Sequence[FileEntry],
    error: IntegrityError,
    deadline: float,
) -> None:
    """Another commit has the name: wait for it, or settle it if its process is dead."""
    with facility.catalog.reading() as session:
        other = entries.first_of(
            ProductEntry,
            session,
            entries.products().where(Product.name == name, Product.state == State.COMMITTING),
        )
        if other is None:
            keys = [file.key for file in files]
            for at in range(0, len(keys), _SWEPT_AT_ONCE):
                part = keys[at : at + _SWEPT_AT_ONCE]
                if session.scalars(select(File.key).where(File.key.in_(part))).first():
                    raise AlreadyExists("One of the files belongs to another product.") from error
        now = clock.read(session)
    grace = timedelta(seconds=facility.settings.housekeeping.commit_grace_seconds)
    if other is not None and other.touched_at < now - grace:
        settle(facility, other)
    elif time.monotonic() > deadline:
        raise InProgress(f"Another ingest of {name!r} is committing; try again.")
    else:
        time.sleep(0.05)


def promote(
    facility: Facility, attempt: ProductEntry, actor: Actor, available_at: datetime | None
) -> ProductEntry | None:
    """Committing -> available, for a record that is in the store; the generation before retires.

    Returns the retired generation.  Does nothing if somebody else has done it already.
    """
    asked = _Promoting(attempt, actor, available_at)
    if facility.promotions.do(asked, partial(_promote_all, facility)):
        return None
    retired: list[ProductEntry] = []
    with contextlib.suppress(_TooLateError), facility.catalog.writing() as session:
        retired = _retire(
            session,
            [Product.name == attempt.name, Product.generation < attempt.generation],
            actor,
            f"replaced by generation {attempt.generation}",
        )
        promoted = _move(
            session,
            _is(attempt, State.COMMITTING),
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
            finish(facility, old.pk)
    return retired[0] if retired else None


@dataclass(frozen=True, slots=True)
class _Promoting:
    """A commit whose record is in the store."""

    attempt: ProductEntry
    actor: Actor
    available_at: datetime | None


def _promote_all(facility: Facility, asked: Sequence[_Promoting]) -> Sequence[bool]:
    """Committing -> available, in one transaction, where no generation before is there to retire.

    False for all that this cannot be said of.
    """
    plain = [one for one in asked if one.available_at is not None]
    promoted: set[int] = set()
    if plain:
        with (
            contextlib.suppress(IntegrityError, _NotPlainError),
            facility.catalog.writing() as session,
        ):
            promoted = _promote_in(session, plain)
    return [one.attempt.pk in promoted for one in asked]


def _promote_in(session: Session, asked: Sequence[_Promoting]) -> set[int]:
    if _available_of(session, [one.attempt.name for one in asked]):
        raise _NotPlainError
    promoted: list[ProductEntry] = []
    for time_ in dict.fromkeys(one.available_at for one in asked):
        promoted += _move_many(
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


def settle(facility: Facility, attempt: ProductEntry) -> bool:
    """Finish or undo a commit whose process died or whose record was not confirmed.

    A ``void`` statement is put under the record's key: if the store takes it, there was no record
    and never will be one; if the key is taken, the record decides.  Returns whether the product
    exists now.
    """
    with facility.catalog.reading() as session:
        found = entries.product(session, attempt.pk)
    if found is None or found.attempt != attempt.attempt or found.state != State.COMMITTING:
        return found is not None and found.state == State.AVAILABLE
    recorded = _put_void(facility, found)
    if recorded is not None and _is_of(recorded, found):
        if _has_numbers_of(found, recorded):
            promote(facility, found, SYSTEM, recorded.available_at)
            return True
        # A session of an older catalog is committed again: what its first commit said is true.
        try:
            return _adopt(facility, found, recorded)
        except IntegrityError as error:
            raise _behind(found) from error
    with facility.catalog.writing() as session:
        undone = _undo(session, found)
    if undone:
        finish(facility, found.pk)
    if recorded is not None:
        raise _behind(found)
    return False


def _has_numbers_of(attempt: ProductEntry, record: Statement) -> bool:
    """Whether the catalog has of a product what its record says."""
    told = (attempt.id, attempt.generation, attempt.list_digest)
    return told == (record.id, record.generation, record.list_digest)


def _behind(attempt: ProductEntry) -> CatalogBehind:
    return CatalogBehind(
        f"The store holds a record of {attempt.name!r}, generation {attempt.generation}, that the "
        "catalog does not know: the catalog is older than the store. Run `storage-manager "
        "rebuild`, then send the product again."
    )


def _leave_word(facility: Facility, attempt: ProductEntry, claimed: ProductEntry) -> None:
    """Under the numbers that the attempt began with: where its record is.

    An older catalog knows the attempt by these, and must find the product before it clears up.
    """
    void = records.describe(facility, attempt, (), 1, "void").model_copy(
        update={"moved_to": (claimed.id, claimed.generation)}
    )
    with contextlib.suppress(AlreadyExists):  # by an earlier try of the same commit
        records.write(facility, records.mount_path(facility, attempt), void)


def _put_void(facility: Facility, attempt: ProductEntry) -> Statement | None:
    """See to it that there is no record and never will be; the record if there is one."""
    void = records.describe(facility, attempt, (), 1, "void")
    try:
        records.write(facility, records.mount_path(facility, attempt), void)
    except AlreadyExists:
        return _record_of(facility, attempt)
    return None


def _is_of(statement: Statement, attempt: ProductEntry) -> bool:
    """Whether a record is that of this attempt and not of another with the same numbers."""
    if statement.attempt:
        return statement.attempt == attempt.attempt
    return not attempt.attempt or statement.list_digest == attempt.list_digest


# -- giving up -----------------------------------------------------------------------------------
def discard(
    facility: Facility, attempt: ProductEntry, actor: Actor, cause: str, keys: Sequence[str]
) -> None:
    """Leave nothing of an attempt of this process: exactly ``keys``, which it has written, go.

    Unless it may have been committed: a commit whose outcome is not known is settled later.
    What cannot be removed now is housekeeping's.
    """
    try:
        with facility.catalog.writing() as session:
            given_up = _give_up(session, _is(attempt, State.RECEIVING), actor, cause)
            known = _of_attempt(session, attempt)
        if known is None:
            clear_forgotten(facility, attempt, keys)
        if not given_up and not _is_dead(known):
            return
        if not attempt.registered:
            facility.storage.delete_many(keys)
        if given_up:
            with facility.catalog.writing() as session:
                _bury(session, attempt.pk, 0)
    except StorageManagerError:
        log.exception("leftovers stay for housekeeping", extra={"pk": attempt.pk})


def clear_forgotten(facility: Facility, attempt: ProductEntry, keys: Sequence[str]) -> None:
    """What a writer has left so late that the catalog does not know its attempt any more goes.

    Nobody would sweep there again.  Nothing goes if the catalog knows the attempt, or if the store
    has its record: a rebuilt catalog has the product in another row.
    """
    with facility.catalog.reading() as session:
        known = _of_attempt(session, attempt)
    if known is None and not attempt.registered and _put_void(facility, attempt) is None:
        facility.storage.delete_many(_ownerless(facility, attempt, keys))


def _of_attempt(session: Session, attempt: ProductEntry) -> ProductEntry | None:
    """The attempt as it is now; None once it is forgotten."""
    now = entries.product(session, attempt.pk)
    return now if now is not None and now.attempt == attempt.attempt else None


def _is_dead(attempt: ProductEntry | None) -> bool:
    """Whether somebody else has given the attempt up for good."""
    return (
        attempt is not None
        and attempt.available_at is None
        and attempt.state in (State.REMOVING, State.REMOVED)
    )


def expire(facility: Facility, attempt: ProductEntry, cause: str, stale: datetime | None) -> bool:
    """Give up an attempt whose process is dead; True if it was.

    The store is asked first: in a catalog that was restored from a backup the row can be older
    than the product's commit, and then the product is taken in.  With ``stale`` an attempt that
    has given a sign of life since is left alone.
    """
    if take_in(facility, attempt):
        return False
    where = _is(attempt, State.RECEIVING)
    if stale is not None:
        where.append(Product.touched_at < stale)
    with facility.catalog.writing() as session:
        given_up = _give_up(session, where, SYSTEM, cause)
    if not given_up:
        return False
    _put_void(facility, attempt)
    finish(facility, attempt.pk)
    return True


def take_in(facility: Facility, attempt: ProductEntry) -> bool:
    """Whether the store has the record of an attempt that the catalog takes for running.

    The catalog was restored from a backup then; the product is taken in.
    """
    recorded = _record_of(facility, attempt)
    if recorded is None or not _is_of(recorded, attempt):
        return False
    with contextlib.suppress(IntegrityError):  # another commit of the name: next time
        _adopt(facility, attempt, recorded)
    return True


def _record_of(facility: Facility, attempt: ProductEntry) -> Statement | None:
    """The record that says that there is a product, be it under other numbers by now."""
    sought = records.describe(facility, attempt, (), 1, "void")
    mount = records.mount_path(facility, attempt)
    with contextlib.suppress(NotFound):
        found = records.read(facility, mount, sought)
        if found.moved_to is not None and found.attempt == attempt.attempt:
            product_id, generation = found.moved_to
            found = records.read(
                facility,
                mount,
                sought.model_copy(update={"id": product_id, "generation": generation}),
            )
        if found.state == "available":
            return found
    return None


def _adopt(facility: Facility, attempt: ProductEntry, record: Statement) -> bool:
    """Receiving, committing -> available, by a record that a later life of the catalog has written.

    Unless a later generation is there by now: the product was replaced then, and goes.  Returns
    whether it is there.  What has been sent to the attempt since, and is not the record's, goes.
    """
    mount = records.mount_path(facility, attempt)
    files = records.recorded_files(mount, record, attempt.pk)
    values = {
        "number": 1,
        "id": record.id,
        "generation": record.generation,
        "size": sum(file.size for file in files),
        "file_count": len(files),
        "list_digest": record.list_digest,
    }
    with facility.catalog.writing() as session:
        newer = _available(session, attempt.name)
        if newer is not None and newer.generation > record.generation:
            values |= {
                "state": State.REMOVING,
                "number": 2,
                "recorded": 1,
                "available_at": record.available_at,
                "removed_at": clock.now(),
                "removed_by": SYSTEM.subject,
                "removed_cause": f"replaced by generation {newer.generation}",
            }
        else:
            values["state"] = State.COMMITTING
        found = _move(session, _is(attempt, State.RECEIVING, State.COMMITTING), values)
        if not found:
            return False
        stray = {file.key for file in entries.files_of(session, attempt.pk)}
        stray -= {file.key for file in files}
        session.execute(delete(File).where(File.product_pk == attempt.pk))
        add_files(session, files)
        if found[0].state == State.REMOVING:
            _release(session, [attempt.pk])
    if not attempt.registered:
        facility.storage.delete_many(sorted(stray))
    if found[0].state == State.REMOVING:
        finish(facility, attempt.pk)
        return False
    promote(facility, found[0], SYSTEM, record.available_at)
    return True


# -- removing ------------------------------------------------------------------------------------
def remove(
    facility: Facility, product: ProductEntry, actor: Actor, cause: str, unchanged: bool = False
) -> None:
    """Available -> removing -> removed; with ``unchanged`` only as ``product`` says that it is.

    Raises Held, Retained, Leased, InProgress for one that has changed, and Unavailable where the
    store is not there.  If it fails later the
    product is gone for everybody all the same, its state stays ``removing``, and housekeeping
    finishes the work.
    """
    facility.storage.require_at(f"{product.directory}/")

    def retire() -> list[ProductEntry]:
        with facility.catalog.writing() as session:
            where = [Product.pk == product.pk, _may_go()]
            if unchanged:
                where.append(Product.number == product.number)
            return _retire(session, where, actor, cause)

    if not facility.reserve.spend_on(retire):
        with facility.catalog.reading() as session:
            now = entries.product(session, product.pk)
            if now is not None and now.state == State.AVAILABLE:
                refuse_kept(now, clock.read(session))
                refuse_leased(session, now)
                if unchanged:
                    raise InProgress("The product has changed meanwhile; try again.")
    try:
        facility.reserve.spend_on(lambda: finish(facility, product.pk))
    except StorageManagerError:
        log.exception("removal goes on in housekeeping", extra={"product": product.id})


def remove_many(
    facility: Facility, products: Sequence[ProductEntry], actor: Actor, cause: str
) -> None:
    """Available -> removing -> removed, for some hundred products at once.

    What is held, retained or not available any more stays as it is.  What a store does not let go
    now stays ``removing`` and is housekeeping's, as after ``remove``.
    """
    pks = [product.pk for product in products]

    def retire() -> list[ProductEntry]:
        with facility.catalog.writing() as session:
            return _retire(session, [Product.pk.in_(pks), _may_go()], actor, cause)

    retired = facility.reserve.spend_on(retire)
    try:
        facility.reserve.spend_on(lambda: _finish_many(facility, retired))
    except StorageManagerError:
        log.exception("removals go on one by one", extra={"products": len(retired)})
        for product in retired:
            try:
                finish(facility, product.pk)
            except StorageManagerError:
                log.exception("removal goes on in housekeeping", extra={"product": product.id})


def _finish_many(facility: Facility, products: Sequence[ProductEntry]) -> None:
    """As ``finish``, for products that existed: one record, and few requests to the stores."""
    if not products:
        return
    try:
        _record_removals(facility, products)
        _clear_many(facility, products)
    except NoSpace:
        _clear_many(facility, products)
        _record_removals(facility, products)
    with facility.catalog.writing() as session:
        _bury_many(session, [product.pk for product in products])


def _record_removals(facility: Facility, products: Sequence[ProductEntry]) -> None:
    by_mount: dict[str, list[Statement]] = {}
    for product in products:
        statement = records.describe(facility, product, (), product.number, "removed")
        by_mount.setdefault(records.mount_path(facility, product), []).append(statement)
    for mount, statements in by_mount.items():
        records.write_removals(facility, mount, statements)


def _clear_many(facility: Facility, products: Sequence[ProductEntry]) -> None:
    """The bytes go, and what else lies in the products' directories."""
    owned = [product for product in products if not product.registered]
    facility.storage.delete_many(_keys_of(facility, [product.pk for product in owned]))
    by_parent: dict[str, list[ProductEntry]] = {}
    for product in owned:
        by_parent.setdefault(product.directory.rpartition("/")[0], []).append(product)
    for parent, group in by_parent.items():
        _sweep_many(facility, parent, group)


def _keys_of(facility: Facility, pks: Sequence[int]) -> Iterator[str]:
    """The keys of the files of products, page by page and directory by directory."""
    place: tuple[int, str] = (0, "")
    while True:
        query = (
            select(File.product_pk, File.path, File.key)
            .where(File.product_pk.in_(pks), tuple_(File.product_pk, File.path) > place)
            .order_by(File.product_pk, File.path)
            .limit(_KEYS_AT_ONCE)
        )
        with facility.catalog.reading() as session:
            page = session.execute(query).all()
        yield from (key for _, _, key in page)
        if len(page) < _KEYS_AT_ONCE:
            return
        place = (page[-1][0], page[-1][1])


def _sweep_many(facility: Facility, parent: str, products: Sequence[ProductEntry]) -> None:
    """As ``sweep``, for neighbours in ``parent``: by one listing if little else is there."""
    left: dict[str, list[str]] = {product.directory: [] for product in products}
    most = _NEIGHBOURS * len(products)
    if parent and len(products) > 1:
        for count, stat in enumerate(facility.storage.list(parent)):
            name = stat.key[len(parent) + 1 :].partition("/")[0]
            left.get(f"{parent}/{name}", []).append(stat.key)
            if count == most:
                break
        else:
            for product in products:
                keys = _ownerless(facility, product, left[product.directory])
                facility.storage.delete_many(keys)
            return
    with ThreadPoolExecutor(_SWEEPERS, thread_name_prefix="sweep") as pool:
        for _ in pool.map(lambda product: sweep(facility, product), products):
            pass  # raises what a sweep has raised


def finish(facility: Facility, pk: int) -> None:
    """Removing -> removed: record the removal, delete the bytes, leave the tombstone; repeatable.

    Where the store has no room for the record the bytes go first: the removal is decided.
    """
    with facility.catalog.reading() as session:
        product = entries.product(session, pk)
        if product is None or product.state != State.REMOVING:
            return
        files = entries.files_of(session, pk)
    number = product.number
    if product.available_at is None:
        _clear(facility, product, files)
    else:
        try:
            number = _record_removal(facility, product)
            _clear(facility, product, files)
        except NoSpace:
            _clear(facility, product, files)
            number = _record_removal(facility, product)
    with facility.catalog.writing() as session:
        _bury(session, pk, number)


def _record_removal(facility: Facility, product: ProductEntry) -> int:
    if product.recorded >= product.number:
        return product.number
    statement = records.describe(facility, product, (), product.number, "removed")
    mount = records.mount_path(facility, product)
    return records.write_next(facility, mount, statement).number


def _clear(facility: Facility, product: ProductEntry, files: Sequence[FileEntry]) -> None:
    """The bytes go: those of the product's own files, and what its attempt has left besides."""
    if product.registered:
        return
    facility.storage.delete_many([file.key for file in files])
    recorded = None if product.available_at is not None else _record_of(facility, product)
    sweep(facility, product, {file.key for file in recorded.files} if recorded else set())


def sweep(facility: Facility, product: ProductEntry, spared: Iterable[str] = ()) -> None:
    """Delete what lies in the directory of a generation that is no more.

    Never what is another product's: the files that the catalog knows of others (registered in
    place, for example), the directories of others beneath this one, and ``spared`` (keys within
    the mount that a record of the store names).
    """
    mount = records.mount_path(facility, product)
    known = set(spared)
    batch: list[str] = []
    for stat in facility.storage.list(product.directory):
        if stat.key[len(mount) :].lstrip("/") not in known:
            batch.append(stat.key)
        if len(batch) == _SWEPT_AT_ONCE:
            facility.storage.delete_many(_ownerless(facility, product, batch))
            batch = []
    facility.storage.delete_many(_ownerless(facility, product, batch))


def _ownerless(facility: Facility, product: ProductEntry, keys: Sequence[str]) -> list[str]:
    if not keys:
        return []
    with facility.catalog.reading() as session:
        taken = set(
            session.scalars(
                select(File.key).where(File.key.in_(keys), File.product_pk != product.pk)
            )
        )
        inner = session.scalars(
            select(Product.directory)
            .where(Product.directory > product.directory + "/")
            .where(Product.directory < product.directory + "0")  # '0' follows '/'
            .where(Product.state != State.REMOVED)
        ).all()
    return [
        key
        for key in keys
        if key not in taken and not any(key.startswith(f"{other}/") for other in inner)
    ]


# -- keeping -------------------------------------------------------------------------------------
def keep(
    facility: Facility, product: ProductEntry, actor: Actor, values: Mapping[str, Any]
) -> ProductEntry:
    """Change how long an available product is kept, and record it.

    ``values`` are columns of the hold and the retention.  The change is in force once the catalog
    has it; raises InProgress where the product is replaced or removed at the same time, and what
    the store raises if the record cannot be written now: housekeeping writes it later.
    """
    facility.storage.require_at(f"{product.directory}/")
    with facility.catalog.writing() as session:
        kept = _move(
            session,
            [
                Product.pk == product.pk,
                Product.state == State.AVAILABLE,
                Product.successor.is_(None),
            ],
            {"number": Product.number + 1, **values},
        )
        if not kept:
            raise InProgress("The product is being replaced or removed; look at it again.")
        until = kept[0].retention_until
        events.append(
            session,
            actor,
            [
                Happening(
                    "product.kept",
                    kept[0],
                    {
                        "hold": kept[0].hold_reason,
                        "retention": until.isoformat() if until else None,
                    },
                )
            ],
        )
    number = record_kept(facility, kept[0])
    return replace(kept[0], number=number, recorded=number)


def _as_it_is(
    facility: Facility, product: ProductEntry
) -> tuple[ProductEntry, Sequence[FileEntry]]:
    """An available product and its files, of one moment."""
    for _ in range(_RACE_ATTEMPTS):
        with facility.catalog.reading() as session:
            now = entries.product(session, product.pk)
            files = entries.files_of(session, product.pk)
        if now is None or now.state != State.AVAILABLE:
            break
        digest = list_digest((file.path, file.size, file.sha256) for file in files)
        if now.list_digest in (None, digest):
            return now, files
    raise InProgress("The product is being changed or removed; look at it again.")


def record_kept(facility: Facility, product: ProductEntry) -> int:
    """Write down in the store what the catalog has decided about an available product.

    Returns the number of the statement.
    """
    now, files = _as_it_is(facility, product)
    written = records.write_next(
        facility,
        records.mount_path(facility, product),
        records.describe(facility, now, files, product.number),
    )
    with facility.catalog.writing() as session:
        session.execute(
            update(Product)
            .where(Product.pk == product.pk, Product.attempt == product.attempt)
            .where(Product.recorded < written.number)
            .values(
                recorded=written.number,
                number=func.max(Product.number, written.number)
                if facility.catalog.is_sqlite
                else func.greatest(Product.number, written.number),
            ),
            execution_options={"synchronize_session": False},
        )
    return written.number


# -- files that come and go ----------------------------------------------------------------------
def extend(
    facility: Facility,
    product: ProductEntry,
    actor: Actor,
    files: Sequence[FileEntry],
    owner: str,
) -> ProductEntry:
    """Give an available product further files, or others in the place of those of the same path.

    ``files`` are durable under keys that ``owner`` has loose (``LooseKey``).  The product is seen
    with all of them or with none; those whose place is taken go.  Raises InProgress where it is
    replaced or removed meanwhile, or where ``owner`` was given up; Held, Retained, Leased where a
    file's place is taken and the product must stay as it is; CatalogBehind.
    """
    facility.storage.require_at(f"{product.directory}/")
    paths = {file.path for file in files}

    def change(session: Session, changed: ProductEntry) -> tuple[ProductEntry, list[FileEntry]]:
        present = entries.files_of(session, product.pk)
        out = [file for file in present if file.path in paths]
        if out:
            refuse_kept(changed, clock.read(session))
            refuse_leased(session, changed)
        ours = session.scalars(
            delete(LooseKey)
            .where(LooseKey.key.in_([file.key for file in files]), LooseKey.owner == owner)
            .returning(LooseKey.key)
            .execution_options(synchronize_session=False)
        ).all()
        if len(ours) != len(files):
            raise InProgress("The files were given up meanwhile; send them again.")
        changed = _rewrite(session, changed, present, out, files)
        detail = {"files": sorted(paths), "replaced": len(out)}
        events.append(session, actor, [Happening("product.extended", changed, detail)])
        return changed, out

    changed = _change(facility, product, change)
    with facility.catalog.reading() as session:
        return entries.product(session, product.pk) or changed


def withdraw(
    facility: Facility, product: ProductEntry, actor: Actor, paths: Sequence[str], cause: str
) -> None:
    """Take files from an available product that has others; repeatable.

    Raises InProgress where it is replaced or removed meanwhile or where these are all its files
    (``remove`` is for that), Held, Retained, Leased, CatalogBehind.
    """
    facility.storage.require_at(f"{product.directory}/")

    def change(session: Session, changed: ProductEntry) -> tuple[ProductEntry, list[FileEntry]]:
        refuse_kept(changed, clock.read(session))
        refuse_leased(session, changed)
        present = entries.files_of(session, product.pk)
        out = [file for file in present if file.path in paths]
        if len(out) == len(present):
            raise InProgress("The product has changed meanwhile; try again.")
        if out:
            changed = _rewrite(session, changed, present, out, ())
        detail = {"files": sorted(file.path for file in out), "cause": cause}
        events.append(session, actor, [Happening("product.reduced", changed, detail)])
        return changed, out

    _change(facility, product, change)


def _change(
    facility: Facility,
    product: ProductEntry,
    change: Callable[[Session, ProductEntry], tuple[ProductEntry, list[FileEntry]]],
) -> ProductEntry:
    """``change`` the files of an available product under its next number, and record it.

    ``change`` is given the row, which is its transaction's then, and returns it as it is with the
    files that go.  No statement of the store has that number: one of a catalog's later life says
    of files that this catalog does not know, and must not be outnumbered by one without them.
    """
    for _ in range(_RACE_ATTEMPTS):
        now = _up_to_date(facility, product)
        with facility.catalog.writing() as session:
            taken = _move(
                session,
                [
                    *_is(now, State.AVAILABLE),
                    Product.successor.is_(None),
                    Product.number == now.number,
                ],
                {"number": now.number + 1},
            )
            if not taken:
                continue  # somebody else was faster, or it is going
            changed, out = change(session, taken[0])
        record_kept(facility, changed)
        clear_loose(facility, [file.key for file in out])
        return changed
    raise InProgress("The product is being changed by many; try again.")


def _up_to_date(facility: Facility, product: ProductEntry) -> ProductEntry:
    """The product as it is now, its next number being free in the store; raises CatalogBehind."""
    before, seen = -1, 0
    while True:
        with facility.catalog.reading() as session:
            now = entries.product(session, product.pk)
        if now is None or now.state != State.AVAILABLE or now.successor is not None:
            raise InProgress("The product is being replaced or removed; look at it again.")
        if not _has_later_record(facility, now):
            return now
        # Somebody may have written it just now, and be about to tell the catalog.
        before, seen = now.number, seen + 1 if now.number == before else 0
        if seen == _RACE_ATTEMPTS:
            raise _behind(now)
        time.sleep(_RACE_SECONDS)


def _has_later_record(facility: Facility, product: ProductEntry) -> bool:
    later = records.describe(facility, product, (), product.number + 1, "void")
    try:
        facility.storage.stat(records.key_of(records.mount_path(facility, product), later))
    except NotFound:
        return False
    return True


def _rewrite(
    session: Session,
    product: ProductEntry,
    present: Sequence[FileEntry],
    out: Sequence[FileEntry],
    files: Sequence[FileEntry],
) -> ProductEntry:
    """The product with ``files`` and without those that go ``out``; their keys become loose."""
    gone = {file.path for file in out}
    stay = [file for file in present if file.path not in gone] + list(files)
    session.execute(
        delete(File).where(File.product_pk == product.pk, File.path.in_(gone)),
        execution_options={"synchronize_session": False},
    )
    add_files(session, files)
    now = clock.read(session)
    if out and not product.registered:
        rows = [{"key": file.key, "owner": "", "touched_at": now} for file in out]
        session.execute(insert(LooseKey), rows)
    usage.go(session, [product])
    changed = _move(
        session,
        _is(product, State.AVAILABLE),
        {
            "size": sum(file.size for file in stay),
            "file_count": len(stay),
            "list_digest": list_digest((file.path, file.size, file.sha256) for file in stay),
        },
    )[0]
    usage.come(session, [changed])
    return changed


def claim_loose(facility: Facility, key: str, owner: str) -> None:
    """Write down that ``owner`` is about to put bytes under ``key``; raises InProgress.

    What a dead request was about to put there is taken over, and goes first.
    """
    grace = timedelta(seconds=facility.settings.housekeeping.commit_grace_seconds)
    try:
        with facility.catalog.writing() as session:
            now = clock.read(session)
            taken_over = session.scalars(
                update(LooseKey)
                .where(LooseKey.key == key, LooseKey.touched_at < now - grace)
                .values(owner=owner, touched_at=now)
                .returning(LooseKey.key)
                .execution_options(synchronize_session=False)
            ).first()
            if taken_over is None:
                session.execute(insert(LooseKey).values(key=key, owner=owner, touched_at=now))
    except IntegrityError:
        raise InProgress(f"Another request works on {key!r} right now.") from None
    if taken_over is not None:
        if _is_in_a_later_life(facility, key):
            raise CatalogBehind(
                f"What lies under {key!r} may be a product's of which the catalog does not know, "
                "being older than the store. Run `storage-manager rebuild`, then send it again."
            )
        with contextlib.suppress(NotFound):
            facility.storage.delete(key)


def _is_in_a_later_life(facility: Facility, key: str) -> bool:
    """Whether a loose key may have become a product's file since this catalog was backed up."""
    parts = key.split("/")
    parents = ["/".join(parts[:count]) for count in range(1, len(parts))]
    with facility.catalog.reading() as session:
        products = entries.all_of(
            ProductEntry,
            session,
            entries.products().where(
                Product.directory.in_(parents), Product.state == State.AVAILABLE
            ),
        )
    return any(_has_later_record(facility, product) for product in products)


def release_loose(facility: Facility, key: str, owner: str) -> None:
    """Nothing was put under ``key`` after all; what lies there is not ours."""
    with facility.catalog.writing() as session:
        session.execute(
            delete(LooseKey).where(LooseKey.key == key, LooseKey.owner == owner),
            execution_options={"synchronize_session": False},
        )


def give_up_loose(facility: Facility, owner: str, put: Sequence[str]) -> None:
    """What ``owner`` has ``put`` or was about to goes, unless it is somebody else's by now.

    So it is also where ``owner`` was given up long ago and its rows are gone.  What cannot be
    removed now is housekeeping's.
    """
    try:
        with facility.catalog.reading() as session:
            ours = session.scalars(select(LooseKey.key).where(LooseKey.owner == owner)).all()
            taken = set(session.scalars(select(LooseKey.key).where(LooseKey.key.in_(put))))
            taken |= set(session.scalars(select(File.key).where(File.key.in_(put))))
        keys = sorted({*ours, *(key for key in put if key not in taken)})
        if keys:
            clear_loose(facility, keys)
    except StorageManagerError:
        log.exception("loose keys stay for housekeeping", extra={"owner": owner})


def clear_loose(facility: Facility, keys: Sequence[str]) -> None:
    """The bytes of loose keys go; what cannot be removed now is housekeeping's."""
    try:
        facility.storage.delete_many(keys)
        with facility.catalog.writing() as session:
            session.execute(
                delete(LooseKey).where(LooseKey.key.in_(keys)),
                execution_options={"synchronize_session": False},
            )
    except StorageManagerError:
        log.exception("loose keys stay for housekeeping", extra={"keys": len(keys)})


def clear_stale_loose(facility: Facility, before: datetime, at_once: int) -> int:
    """What nobody has shown signs of working on since ``before`` goes; returns how many."""
    known = exists(select(File.key).where(File.key == LooseKey.key))
    stale = [LooseKey.touched_at < before, not_(known)]
    with facility.catalog.reading() as session:
        keys = session.scalars(select(LooseKey.key).where(*stale).limit(at_once)).all()
    keys = [key for key in keys if not _is_in_a_later_life(facility, key)]
    with facility.catalog.writing() as session:
        # From here on the writer, should it wake up, is told that it came too late.
        session.execute(
            update(LooseKey).where(LooseKey.key.in_(keys), *stale).values(owner=""),
            execution_options={"synchronize_session": False},
        )
        keys = session.scalars(
            select(LooseKey.key).where(LooseKey.key.in_(keys), LooseKey.owner == "", *stale)
        ).all()
    if keys:
        clear_loose(facility, keys)
    return len(keys)


# -- leases --------------------------------------------------------------------------------------
def lease(session: Session, pks: Sequence[int], until: datetime) -> list[ProductEntry]:
    """Let available products stay until then at least, within the caller's transaction.

    Returns those that do: what is being removed or replaced already does not.
    """
    later = case((Product.leased_until > until, Product.leased_until), else_=until)
    return _move(
        session,
        [Product.pk.in_(pks), Product.state == State.AVAILABLE, Product.successor.is_(None)],
        {"leased_until": later},
    )


def unlease(session: Session, pks: Sequence[int]) -> None:
    """Let products stay as long as the leases say that are there now, and no longer."""
    # First the rows, then a look at the leases: who takes one meanwhile waits for this.
    session.execute(
        select(Product.pk).where(Product.pk.in_(pks)).order_by(Product.pk).with_for_update()
    )
    last = (
        select(func.max(Lease.expires_at))
        .join(LeasedProduct, LeasedProduct.lease_id == Lease.id)
        .where(LeasedProduct.product_pk == Product.pk)
        .scalar_subquery()
    )
    session.execute(
        update(Product).where(Product.pk.in_(pks)).values(leased_until=last),
        execution_options={"synchronize_session": False},
    )


# -- forgetting ----------------------------------------------------------------------------------
def forget(facility: Facility, before: datetime, at_once: int) -> int:
    """Drop the rows of failed attempts that ended ``before``; returns how many.

    Their directories are swept once more first: a writer that was frozen meanwhile may have woken
    up and written there.  Their generation numbers stay given.  The newest row stays as well: the
    number of a row must not come back either, and SQLite would give it again.
    """
    newest = select(func.max(Product.pk)).scalar_subquery()
    failed = (
        Product.state == State.REMOVED,
        Product.available_at.is_(None),
        Product.touched_at < before,
        Product.pk < newest,
    )
    with facility.catalog.reading() as session:
        found = entries.all_of(
            ProductEntry, session, entries.products().where(*failed).limit(at_once)
        )
    swept = []
    for product in found:
        try:
            if product.removed_cause not in (None, TAKEN):
                _clear(facility, product, ())
            swept.append(product.pk)
        except StorageManagerError:
            log.exception("a failed attempt is kept in mind", extra={"pk": product.pk})
    with facility.catalog.writing() as session:
        gone = session.execute(
            delete(Product)
            .where(Product.pk.in_(swept), *failed)
            .returning(Product.name, Product.generation)
            .execution_options(synchronize_session=False)
        ).all()
        last: dict[str, int] = {}
        for name, generation in gone:
            last[name] = max(generation, last.get(name, 0))
        _remember(session, last, facility.catalog.is_sqlite)
    return len(gone)


def _remember(session: Session, last: Mapping[str, int], is_sqlite: bool) -> None:
    if not last:
        return
    rows = [{"name": name, "generation": generation} for name, generation in last.items()]
    if is_sqlite:
        into = sqlite.insert(Forgotten)
        session.execute(
            into.on_conflict_do_update(
                index_elements=["name"],
                set_={"generation": func.max(Forgotten.generation, into.excluded.generation)},
            ),
            rows,
        )
        return
    onto = postgresql.insert(Forgotten)
    session.execute(
        onto.on_conflict_do_update(
            index_elements=["name"],
            set_={"generation": func.greatest(Forgotten.generation, onto.excluded.generation)},
        ),
        rows,
    )
