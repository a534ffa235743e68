"""What can happen to a product, and in which order: every change of a state is made here.

::

    begin ──► receiving ──claim──► committing ──promote──► available ──retire──► removing
                  │                     │                      ▲ keep                │
                  └─give_up─► removing ◄┴─undo                                     bury
                                  └───────────────bury──────────────────────────► removed

A transition is one guarded ``UPDATE ... RETURNING``, for one product or for many, with its events
in the same transaction: of two who try the same, one is told that it came too late.  Between two
transitions lies what the store is told: data, then the record (``claim`` to ``promote``); the
record, then the bytes go (``retire`` to ``bury``).  Whether a commit happened is decided by the
store alone (``settle``).  Numbers of generations and of statements are taken in the catalog first
and are never given twice; times are the database's.

Called by ``reception``, ``uploads``, ``removal`` and ``housekeeping``; calls ``records`` for the
store's side.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from admin_api.catalog import clock, entries, events
from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.catalog.events import SYSTEM, Actor, Happening
from admin_api.catalog.models import File, Forgotten, Product, State
from admin_api.errors import (
    AlreadyExists,
    CatalogBehind,
    Forbidden,
    Held,
    InProgress,
    NoSpace,
    NotFound,
    ProductExists,
    Retained,
    StorageManagerError,
)
from admin_api.keys import check_key
from admin_api.products.names import directory_of, parse_name
from admin_api.products.records import Statement
from admin_api.services import records
from admin_api.services.access import Principal, Scope
from admin_api.services.facility import Facility
from admin_api.services.wishes import Policy, Wish

log = logging.getLogger(__name__)

_COMMIT_WAIT_SECONDS = 15.0
_RACE_ATTEMPTS = 20
_SWEPT_AT_ONCE = 500
#: Causes of attempts that came to nothing without anybody's fault.
_DUPLICATE = "duplicate"
_TAKEN = "directory taken"


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


def _is(attempt: ProductEntry, *states: str) -> list[ColumnElement[bool]]:
    """The row of ``attempt`` itself, not one that has its number in another history."""
    return [
        Product.pk == attempt.pk,
        Product.attempt == attempt.attempt,
        Product.state.in_(states),
    ]


def _may_go() -> ColumnElement[bool]:
    return Product.hold_reason.is_(None) & or_(
        Product.retention_until.is_(None), Product.retention_until <= clock.now()
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
    if cause not in (_DUPLICATE, _TAKEN):
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
    base = directory_of(wish.name, storage.key_template, storage.unsorted_template)
    facility.storage.require_at(f"{wish.registered_in or base}/")
    for _ in range(_RACE_ATTEMPTS):
        try:
            with facility.catalog.writing() as session:
                existing = _available(session, wish.name)
                if existing is not None:
                    _refuse(session, existing, principal, wish, early=True)
                    if wish.policy is Policy.SKIP and compare:
                        return existing
                attempt = _reserve(session, principal, wish, base, existing)
        except IntegrityError:
            continue  # somebody else took that generation number
        if wish.registered_in is not None or not _is_taken(facility, attempt.directory):
            return attempt
        # The store knows this generation and the catalog does not (it was lost, or restored
        # from a backup): leave those objects alone and take the next number.
        with facility.catalog.writing() as session:
            _give_up(session, [Product.pk == attempt.pk], principal.actor, _TAKEN)
            _bury(session, attempt.pk, 0)
    raise InProgress(f"Too many ingests of {wish.name!r} begin at once; try again.")


def _reserve(
    session: Session, principal: Principal, wish: Wish, base: str, existing: ProductEntry | None
) -> ProductEntry:
    product_id = wish.product_id or (existing.id if existing else uuid.uuid4().hex)
    if existing is None and wish.product_id is not None:
        _refuse_other_name(session, principal, wish)
    generation = _next_generation(session, wish.name)
    parsed = parse_name(wish.name)
    now = clock.read(session)
    values = {
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
        "directory": wish.registered_in
        or check_key(base if generation == 1 else f"{base}@{generation}"),
        "registered": wish.registered_in is not None,
        "level": wish.level,
        "source": wish.source,
        "subject": principal.subject,
        "created_at": now,
        "touched_at": now,
        "retention_until": wish.retention_until,
        "attempt": uuid.uuid4().hex,
        "recorded": 0,
    }
    made = entries.first_of(
        ProductEntry, session, insert(Product).values(values).returning(*entries.PRODUCT)
    )
    assert made is not None
    return made


def _next_generation(session: Session, name: str) -> int:
    given = select(func.max(Product.generation)).where(Product.name == name)
    forgotten = select(Forgotten.generation).where(Forgotten.name == name)
    # One statement, so that a row that is forgotten meanwhile is counted once or the other way.
    last = session.execute(
        select(
            func.coalesce(given.scalar_subquery(), 0),
            func.coalesce(forgotten.scalar_subquery(), 0),
        )
    ).one()
    return int(max(last)) + 1


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


def _is_taken(facility: Facility, directory: str) -> bool:
    return next(iter(facility.storage.list(directory)), None) is not None


def _available(session: Session, name: str) -> ProductEntry | None:
    return entries.first_of(
        ProductEntry,
        session,
        entries.products().where(Product.name == name, Product.state == State.AVAILABLE),
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
        events.append(session, actor, [_told(promoted[0], replaced=bool(retired))])
    for old in retired:
        with contextlib.suppress(StorageManagerError):  # housekeeping finishes it
            finish(facility, old.pk)
    return retired[0] if retired else None


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
def remove(facility: Facility, product: ProductEntry, actor: Actor, cause: str) -> None:
    """Available -> removing -> removed.

    Raises Held, Retained, and Unavailable where the store is not there.  If it fails later the
    product is gone for everybody all the same, its state stays ``removing``, and housekeeping
    finishes the work.
    """
    facility.storage.require_at(f"{product.directory}/")

    def retire() -> list[ProductEntry]:
        with facility.catalog.writing() as session:
            return _retire(session, [Product.pk == product.pk, _may_go()], actor, cause)

    if not facility.reserve.spend_on(retire):
        with facility.catalog.reading() as session:
            now = entries.product(session, product.pk)
            if now is not None and now.state == State.AVAILABLE:
                refuse_kept(now, clock.read(session))
    try:
        facility.reserve.spend_on(lambda: finish(facility, product.pk))
    except StorageManagerError:
        log.exception("removal goes on in housekeeping", extra={"product": product.id})


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


def record_kept(facility: Facility, product: ProductEntry) -> int:
    """Write down in the store what the catalog has decided about an available product.

    Returns the number of the statement.
    """
    with facility.catalog.reading() as session:
        files = entries.files_of(session, product.pk)
    written = records.write_next(
        facility,
        records.mount_path(facility, product),
        records.describe(facility, product, files, product.number),
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
            if product.removed_cause not in (None, _TAKEN):
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
