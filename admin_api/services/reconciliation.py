"""Comparing the catalog with the store, safely while ingests and removals run.

Two snapshots around the listing: an object is *missing* only if its product was available before
its part of the listing was read and still is, and *unknown* only if no product, not even one that
is just being received, has it after its part of the listing was read, and it is still there then.
The listing and the catalog are walked side by side, page by page, so memory stays constant; a
service that lists in another order than the catalog costs look-ups and hides nothing, since the
catalog's ranges join and every finding is confirmed by itself.

The records come afterwards, sorted by product (``histories.py``) and compared with the rows that
are read behind them: a row may know more than its records by then, never less.
Called by ``web/maintenance.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Literal, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from admin_api.catalog import entries, usage
from admin_api.catalog.entries import ProductEntry
from admin_api.catalog.models import File, Product, State
from admin_api.errors import InvalidKey, NotFound, StorageManagerError, UnreadableRecord
from admin_api.keys import RESERVED, beneath, check_key, join
from admin_api.products.records import Statement
from admin_api.services import records
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.histories import Claim, Generation, Histories, History
from admin_api.storage.base import Stat

_PAGE = 1000
_NAMES = 200
#: Clocks of several hosts may differ by so much.
_CLOCK_MARGIN = timedelta(seconds=60)

Kind = Literal[
    "missing",
    "wrong_size",
    "unknown",
    "unregistered",
    "unreadable",
    "record_missing",
    "contradiction",
    "miscounted",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """An object that the catalog and the store do not agree on; ``reason`` where there is one.

    ``mission`` is that of the product, where it is known.
    """

    kind: Kind
    key: str
    size: int
    product_id: str | None = None
    mission: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the comparison has come; ``key`` only for those who may see every mission."""

    objects: int
    key: str


class _Known(NamedTuple):
    """A file of the catalog, and what matters of its product."""

    key: str
    size: int
    product_pk: int
    product_id: str
    mission: str | None
    state: str
    available_at: datetime | None


def reconcile(facility: Facility, principal: Principal) -> Iterator[Finding | Progress]:
    """Every disagreement that concerns the principal's missions, with progress in between.

    What belongs to no known mission is told to those only who may see all of them.
    """
    sees_all = principal.missions is None
    for item in _everything(facility, with_unknown=sees_all):
        if isinstance(item, Progress):
            yield item if sees_all else Progress(item.objects, "")
        elif principal.sees(item.mission):
            yield item


def _everything(facility: Facility, with_unknown: bool) -> Iterator[Finding | Progress]:
    count, after = 0, ""
    listing = (stat for stat in facility.storage.list() if not _is_own(facility, stat.key))
    while True:
        begun = datetime.now(UTC) - _CLOCK_MARGIN
        page = list(islice(listing, _PAGE))
        ours: list[Stat] = []
        foreign: list[Stat] = []
        for stat in page:
            (ours if _can_be_ours(stat.key) else foreign).append(stat)
        if with_unknown:
            yield from _foreign(foreign)
        count += len(page)
        is_last = len(page) < _PAGE
        if is_last or ours:
            upto = None if is_last else ours[-1].key
            yield from _compare(facility, ours, after, upto, begun, with_unknown)
            after = upto or after
        if is_last:
            break
        yield Progress(count, page[-1].key)
    yield from _compare_records(facility, count)
    if with_unknown:
        with facility.catalog.reading() as session:
            wrong = usage.differences(session)
        for sentence in wrong:
            yield Finding("miscounted", "", 0, reason=sentence)
    yield Progress(count, "")


def _is_own(facility: Facility, key: str) -> bool:
    mount = facility.storage.mount_of(key)
    return key[len(mount) :].lstrip("/").split("/")[0] in RESERVED


def _can_be_ours(key: str) -> bool:
    try:
        check_key(key)
    except InvalidKey:
        return False
    return True


def _foreign(stats: Sequence[Stat]) -> Iterator[Finding]:
    """Objects whose keys break the grammar; the marks that some tools make of directories are none.

    ``unknown`` all the same: nothing here can read or remove them.
    """
    for stat in stats:
        if not (stat.key.endswith("/") and stat.size == 0):
            yield Finding("unknown", stat.key, stat.size, reason="the key breaks the grammar")


def _compare(
    facility: Facility,
    page: Sequence[Stat],
    after: str,
    upto: str | None,
    begun: datetime,
    with_unknown: bool,
) -> Iterator[Finding]:
    listed = {stat.key: stat for stat in page}
    with facility.catalog.reading() as session:
        # Read before the files: an attempt that commits in between is found among them.
        receiving = _receiving(session)
    for known in _known(facility, after, upto):
        stat = listed.pop(known.key, None)
        if known.state != State.AVAILABLE:
            continue
        kind: Kind
        if stat is None and known.available_at and known.available_at < begun:
            if not _is_missing(facility, known):
                continue
            kind, size = "missing", known.size
        elif stat is not None and stat.size != known.size:
            kind, size = "wrong_size", stat.size
        else:
            continue
        yield Finding(kind, known.key, size, known.product_id, known.mission)
    if not with_unknown:
        return
    for key, stat in listed.items():
        if not any(beneath(key, directory) for directory in receiving) and _is_unknown(
            facility, key
        ):
            yield Finding("unknown", key, stat.size)


def _receiving(session: Session) -> set[str]:
    """Directories of attempts that are under way or being cleared."""
    return set(
        session.scalars(
            select(Product.directory).where(
                Product.state.in_((State.RECEIVING, State.COMMITTING, State.REMOVING))
            )
        )
    )


def _known(facility: Facility, after: str, upto: str | None) -> Iterator[_Known]:
    """The catalog's files in a range of keys, page by page."""
    while True:
        query = (
            select(
                File.key,
                File.size,
                File.product_pk,
                Product.id,
                Product.mission,
                Product.state,
                Product.available_at,
            )
            .join(Product, Product.pk == File.product_pk)
            .where(File.key > after)
            .order_by(File.key)
            .limit(_PAGE)
        )
        if upto is not None:
            query = query.where(File.key <= upto)
        with facility.catalog.reading() as session:
            page = [_Known(*row) for row in session.execute(query)]
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1].key


def _is_missing(facility: Facility, known: _Known) -> bool:
    with contextlib.suppress(NotFound):
        facility.storage.stat(known.key)
        return False
    with facility.catalog.reading() as session:
        product = session.get(Product, known.product_pk)
        return product is not None and product.state == State.AVAILABLE


def _is_unknown(facility: Facility, key: str) -> bool:
    try:
        facility.storage.stat(key)
    except NotFound:
        return False
    with facility.catalog.reading() as session:
        known = session.scalars(select(File.key).where(File.key == key)).first()
        return known is None and not any(
            beneath(key, directory) for directory in _receiving(session)
        )


# -- records -------------------------------------------------------------------------------------
def _compare_records(facility: Facility, objects: int) -> Iterator[Finding | Progress]:
    begun = datetime.now(UTC)
    with Histories(facility.settings.state_dir) as histories:
        for number, item in enumerate(records.read_all(facility), start=1):
            if isinstance(item, records.Found):
                histories.add(item)
            else:
                yield Finding("unreadable", item.key, 0, _id_of(item), reason=item.reason)
            if number % _PAGE == 0:
                yield Progress(objects, "")
        found = iter(histories)
        while batch := list(islice(found, _NAMES)):
            with facility.catalog.reading() as session:
                rows = session.scalars(
                    select(Product).where(Product.name.in_([history.name for history in batch]))
                ).all()
            by_place = {(row.name, row.generation): row for row in rows}
            for history in batch:
                yield from _compare_history(facility, histories, history, by_place)
        yield from _without_record(facility, histories, begun)


def _id_of(unreadable: records.Unreadable) -> str | None:
    return unreadable.subject[0] if unreadable.subject else None


def _compare_history(
    facility: Facility,
    histories: Histories,
    history: History,
    rows: Mapping[tuple[str, int], Product],
) -> Iterator[Finding]:
    """What the records of a name say that the catalog does not; `rebuild` takes it in."""
    for generation in history.generations:
        row = rows.get((history.name, generation.number))
        if row is not None and row.state in (State.COMMITTING, State.REMOVING):
            continue  # on its way
        strongest = generation.strongest()
        claim = next((item for item in strongest if row and item.id == row.id), strongest[0])
        if claim.state == "available":
            yield from _rivals(histories, generation, claim)
        elif claim.state == "void":
            continue  # nothing came of it: there is nothing that the catalog could lack
        said = histories.load(claim.deciding)
        reason = _difference(facility, row, claim, said)
        if reason is None:
            continue
        is_new = row is None or row.available_at is None or row.number < claim.number
        yield Finding(
            "unregistered" if is_new else "contradiction",
            claim.deciding.key,
            len(said.line()),
            claim.id,
            said.mission,
            reason,
        )


def _rivals(histories: Histories, generation: Generation, chosen: Claim) -> Iterator[Finding]:
    for claim in generation.strongest():
        if claim is not chosen:
            said = histories.load(claim.deciding)
            yield Finding(
                "contradiction",
                claim.deciding.key,
                len(said.line()),
                claim.id,
                said.mission,
                f"another record says that this generation is the product {chosen.id}",
            )


def _difference(
    facility: Facility, row: Product | None, claim: Claim, said: Statement
) -> str | None:
    """What the catalog says otherwise than the newest statement, in words; None if nothing."""
    if row is None or row.available_at is None:
        return "the catalog does not know it"
    if row.id != claim.id:
        if row.state == State.REMOVED and claim.state == "removed":
            return None  # two histories of a catalog have ended alike
        return f"the catalog says that this generation is the product {row.id}"
    if row.number < claim.number:
        return f"the catalog knows of statement {row.number} only"
    if claim.state == "removed":
        return "it was removed" if row.state == State.AVAILABLE else None
    if row.state != State.AVAILABLE:
        # A removal whose record is missing is told of as such.
        return None
    if row.number > claim.number:
        return None
    for what, here, there in (
        ("list of files", row.list_digest, said.list_digest),
        ("number of files", row.file_count, len(said.files)),
        ("size", row.size, sum(file.size for file in said.files)),
        ("hold", (row.hold_reason, row.hold_by), (said.hold_reason, said.hold_by)),
        ("retention date", row.retention_until, said.retention_until),
        ("mission", row.mission, said.mission),
    ):
        if here != there:
            return f"the catalog has another {what}"
    mount = claim.deciding.mount
    recorded = {
        (file.path, file.size, file.sha256, file.md5, join(mount, file.key)) for file in said.files
    }
    if recorded != _files(facility, row.pk):
        with facility.catalog.reading() as session:
            now = session.get(Product, row.pk)
            if now is None or (now.state, now.number) != (row.state, row.number):
                return None  # it has changed meanwhile
        return "the catalog has other files"
    return None


def _files(facility: Facility, pk: int) -> set[tuple[str, int, str, str, str]]:
    with facility.catalog.reading() as session:
        files = session.execute(
            select(File.path, File.size, File.sha256, File.md5, File.key).where(
                File.product_pk == pk
            )
        )
        return {(path, size, sha256, md5, key) for path, size, sha256, md5, key in files}


def _without_record(facility: Facility, histories: Histories, begun: datetime) -> Iterator[Finding]:
    """Products whose newest record was in the store and is not there any more."""
    after = 0
    while True:
        with facility.catalog.reading() as session:
            page = entries.all_of(
                ProductEntry,
                session,
                entries.products()
                .where(Product.pk > after, Product.recorded > 0)
                .where(Product.available_at < begun)
                .order_by(Product.pk)
                .limit(_PAGE),
            )
        for row in page:
            if histories.has(row.name, row.generation, row.id, row.recorded):
                continue
            sought = records.describe(facility, row, (), row.recorded, "void")
            mount = records.mount_path(facility, row)
            key = records.key_of(mount, sought)
            if _has_record(facility, mount, sought):
                continue  # written meanwhile, or told of as unreadable
            reason = f"statement {row.recorded} about the product is gone"
            yield Finding("record_missing", key, 0, row.id, row.mission, reason)
        if len(page) < _PAGE:
            return
        after = page[-1].pk


def _has_record(facility: Facility, mount: str, sought: Statement) -> bool:
    """Whether the record is there; one of many products must say something of this one."""
    if not records.is_shared(mount, sought):
        with contextlib.suppress(NotFound):
            facility.storage.stat(records.key_of(mount, sought))
            return True
        return False
    try:
        records.read(facility, mount, sought)
    except (NotFound, UnreadableRecord):
        return False
    except StorageManagerError:
        pass  # it cannot be read now, which was told of the whole of it
    return True
