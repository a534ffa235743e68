"""Making products exist: the claim in the catalog, the record in the store, the promotion.

Called by ``reception.py``, ``uploads.py`` and ``groups.py`` by way of the package.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import (
    bindparam,
    func,
    select,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from admin_api.catalog import clock, entries
from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.catalog.events import Actor
from admin_api.catalog.models import (
    File,
    Product,
    State,
)
from admin_api.errors import (
    AlreadyExists,
    InProgress,
    StorageManagerError,
)
from admin_api.services import records
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.lifecycle import beginning, promoting, removing, settling, transitions
from admin_api.services.wishes import Policy, Wish

log = logging.getLogger(__name__)

_COMMIT_WAIT_SECONDS = 15.0


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
        if not settling.settle(facility, claimed):
            raise
    retired = promoting.promote(facility, claimed, principal.actor, statement.available_at)
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
        promotions = [
            promoting.Promoting(product, actor, product.touched_at) for product in products
        ]
        promoted = promoting.promote_all(facility, promotions)
        for product, is_promoted in zip(products, promoted, strict=True):
            if not is_promoted:
                promoting.promote(facility, product, actor, product.touched_at)
            committed[product.pk] = product
    return committed


def _settled(facility: Facility, products: Sequence[ProductEntry]) -> dict[int, ProductEntry]:
    """Those of a group that exist after all; of what cannot be found out now nothing is said."""
    found: dict[int, ProductEntry] = {}
    for product in products:
        with contextlib.suppress(StorageManagerError):
            if settling.settle(facility, product):
                found[product.pk] = product
    return found


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
            contextlib.suppress(IntegrityError, transitions.NotPlainError),
            facility.catalog.writing() as session,
        ):
            claimed = _enter_commits(session, plain)
    return [claimed.get(one.attempt.pk) for one in asked]


def _enter_commits(session: Session, asked: Sequence[_Claiming]) -> dict[int, ProductEntry]:
    by_pk = {one.attempt.pk: one for one in asked}
    claimed = transitions.move_many(
        session,
        [one.attempt for one in asked],
        State.RECEIVING,
        {"state": State.COMMITTING, "number": 1},
    )
    known = select(File.product_pk).where(File.product_pk.in_(by_pk)).limit(1)
    if session.scalars(known).first() is not None:
        raise transitions.NotPlainError
    # In this order, as ``_claim``: who has the place in the commit rules over the name.
    if _last_existing(session, [one.attempt.name for one in asked]):
        raise transitions.NotPlainError
    sums: dict[int, dict[str, Any]] = {
        pk: {
            "size": sum(file.size for file in one.files),
            "file_count": len(one.files),
            "list_digest": one.digest,
        }
        for pk, one in by_pk.items()
    }
    _set_each(session, sums)
    transitions.add_files(session, [file for one in asked for file in one.files])
    return {product.pk: replace(product, **sums[product.pk]) for product in claimed}


def _set_each(session: Session, values: Mapping[int, Mapping[str, Any]]) -> None:
    """Values of their own for rows that the transaction has moved."""
    names = next(iter(values.values()))
    statement = transitions.TABLE.update().where(transitions.TABLE.c.pk == bindparam("row"))
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
                existing = beginning.available(session, wish.name)
                if existing is None:
                    return _follow(session, claimed)
                if existing.list_digest == digest and existing.pk not in damaged:
                    raise SuperfluousError(existing, entries.files_of(session, existing.pk))
                beginning.refuse(session, existing, principal, wish)
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
    claimed = transitions.move(
        session,
        transitions.row_of(attempt, State.RECEIVING),
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
    transitions.add_files(session, [file for file in files if file.path not in known])
    return claimed[0]


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
    values = {"generation": beginning.next_generation(session, claimed.name)}
    return transitions.move(session, transitions.row_of(claimed, State.COMMITTING), values)[0]


def _succeed(session: Session, claimed: ProductEntry, existing: ProductEntry) -> ProductEntry:
    """The available product is about to be replaced: from here on nobody can hold it."""
    reserved = transitions.move(
        session,
        [Product.pk == existing.pk, Product.state == State.AVAILABLE, transitions.may_go()],
        {"successor": claimed.pk},
    )
    if not reserved:
        raise InProgress(f"{claimed.name!r} is being removed or held right now; try again.")
    values: dict[str, Any] = {"id": existing.id}
    if claimed.generation < existing.generation:
        # It began earlier and commits later: generations are in the order of their commits.
        values["generation"] = beginning.next_generation(session, claimed.name)
    return transitions.move(session, transitions.row_of(claimed, State.COMMITTING), values)[0]


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
            for at in range(0, len(keys), removing.SWEPT_AT_ONCE):
                part = keys[at : at + removing.SWEPT_AT_ONCE]
                if session.scalars(select(File.key).where(File.key.in_(part))).first():
                    raise AlreadyExists("One of the files belongs to another product.") from error
        now = clock.read(session)
    grace = timedelta(seconds=facility.settings.housekeeping.commit_grace_seconds)
    if other is not None and other.touched_at < now - grace:
        settling.settle(facility, other)
    elif time.monotonic() > deadline:
        raise InProgress(f"Another ingest of {name!r} is committing; try again.")
    else:
        time.sleep(0.05)


def _leave_word(facility: Facility, attempt: ProductEntry, claimed: ProductEntry) -> None:
    """Under the numbers that the attempt began with: where its record is.

    An older catalog knows the attempt by these, and must find the product before it clears up.
    """
    void = records.describe(facility, attempt, (), 1, "void").model_copy(
        update={"moved_to": (claimed.id, claimed.generation)}
    )
    with contextlib.suppress(AlreadyExists):  # by an earlier try of the same commit
        records.write(facility, records.mount_path(facility, attempt), void)
