"""Rebuilding the catalog from the records in the store, or bringing an old one up to date.

The records decide: what they say of a name is put together from all its statements
(``histories.py``), so their order cannot matter, and running it again changes nothing.  What the
catalog knows beyond them stays: a state moves forward only.  What cannot be read or contradicts the
rest is told and passed over.  Called by ``storage-manager rebuild``, with the service stopped.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session

from admin_api.catalog import events, usage
from admin_api.catalog.models import File, FileClaim, Product, State, Upload
from admin_api.errors import NotFound
from admin_api.keys import join
from admin_api.products.records import Statement
from admin_api.services import identity, records
from admin_api.services.facility import Facility
from admin_api.services.histories import Claim, Generation, Histories, History
from admin_api.services.records import Unreadable

log = logging.getLogger(__name__)

_BATCH = 200
_PROGRESS = 1000
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """How far the rebuild has come, in statements: read, told to the catalog, and new to it.

    Nothing is told before all are read.
    """

    statements: int
    settled: int
    applied: int


@dataclass(slots=True)
class _Settled:
    """What came of one name."""

    applied: int = 0
    #: A file belongs to another product, which may have to go itself: worth another look later.
    has_clashed: bool = False
    problems: list[Unreadable] = field(default_factory=list)


def rebuild(facility: Facility) -> Iterator[Rebuilt | Unreadable]:
    """Apply every statement in the stores to the catalog, in batches; tell what cannot be.

    Raises what a store raises that cannot be listed, CatalogUnavailable, and WrongStore where a
    store is not this catalog's; a catalog that knows no product takes it over.
    """
    identity.take_back(facility.catalog, facility.storage)
    statements = settled = applied = 0
    with Histories(facility.settings.state_dir) as histories:
        for item in records.read_all(facility):
            if isinstance(item, Unreadable):
                histories.note(item)
                yield item
                continue
            histories.add(item)
            statements += 1
            if statements % _PROGRESS == 0:
                yield Rebuilt(statements, 0, 0)
        waiting: list[str] = []
        found = iter(histories)
        while batch := list(islice(found, _BATCH)):
            problems: list[Unreadable] = []
            with facility.catalog.writing() as session:
                rows = _rows(session, [history.name for history in batch])
                made = _make_plain(session, histories, batch, rows)
                for history in batch:
                    if history.name in made:
                        applied += made[history.name]
                        continue
                    found_out = _Name(
                        facility, session, histories, history, rows.get(history.name, ())
                    ).settle()
                    applied += found_out.applied
                    if found_out.has_clashed:
                        waiting.append(history.name)
                    else:
                        problems += found_out.problems
            yield from problems
            settled += sum(history.statements for history in batch)
            yield Rebuilt(statements, settled, applied)
        for name in waiting:
            with facility.catalog.writing() as session:
                rows = _rows(session, [name])
                late = _Name(
                    facility, session, histories, histories.of(name), rows.get(name, ())
                ).settle()
            applied += late.applied
            yield from late.problems
    with facility.catalog.writing() as session:
        for sentence in usage.recount(session):
            log.info("sums set right", extra={"was": sentence})
        if applied:
            told = events.Happening("catalog.rebuilt", None, {"statements": statements})
            events.append(session, events.SYSTEM, [told])
    yield Rebuilt(statements, settled, applied)


def _rows(session: Session, names: Sequence[str]) -> dict[str, list[Product]]:
    """The rows of several names."""
    found: dict[str, list[Product]] = {}
    for row in session.scalars(select(Product).where(Product.name.in_(names))):
        found.setdefault(row.name, []).append(row)
    return found


def _make_plain(
    session: Session,
    histories: Histories,
    batch: Iterable[History],
    rows: Mapping[str, Sequence[Product]],
) -> dict[str, int]:
    """Make at once what is new to the catalog and of which nothing but one product is said.

    That is nearly everything when a catalog is made anew.  Returns the statements by name; none
    where one of them clashes with another product: then each has its turn.
    """
    plain: dict[str, Claim] = {}
    for history in batch:
        claims = [claim for item in history.generations for claim in item.claims]
        if history.name not in rows and len(claims) == 1:
            (claim,) = claims
            if claim.state == "available" and not claim.is_uncertain:
                plain[history.name] = claim
    try:
        with session.begin_nested():
            made = []
            for name, claim in plain.items():
                said = histories.load(claim.deciding)
                row = Product(
                    name=name, generation=claim.deciding.generation, attempt="", number=claim.number
                )
                _say(row, claim, said, said)
                made.append((row, claim.deciding.mount, said))
            session.add_all(row for row, _, _ in made)
            session.flush()
            files = [item for row, mount, said in made for item in _files(row, mount, said)]
            if files:
                session.execute(insert(File), files)
    except (IntegrityError, DataError):
        return {}
    return {name: len(claim.entries) for name, claim in plain.items()}


def _say(row: Product, claim: Claim, said: Statement, newest: Statement) -> None:
    """What the deciding statement says of an available product, and the newest of its files."""
    if said.attempt:
        row.attempt = said.attempt
    row.id, row.recorded = claim.id, claim.number
    row.mission, row.product_type = said.mission, said.product_type
    row.sensing_start, row.sensing_stop = said.sensing_start, said.sensing_stop
    row.list_digest = said.list_digest
    row.directory = join(claim.deciding.mount, said.directory or "")
    row.registered = said.registered
    row.level, row.source = said.level or "", said.source
    row.subject = newest.subject or ""
    row.created_at = said.created_at or said.time
    row.touched_at = datetime.now(UTC)
    row.available_at = said.available_at or newest.available_at or said.time
    row.retention_until = said.retention_until
    row.hold_reason, row.hold_by = said.hold_reason, said.hold_by
    row.size = sum(file.size for file in newest.files)
    row.file_count = len(newest.files)
    row.removed_at = row.removed_by = row.removed_cause = row.successor = None
    row.state = State.AVAILABLE


def _files(row: Product, mount: str, said: Statement) -> list[dict[str, object]]:
    return [
        {
            "product_pk": row.pk,
            "path": file.path,
            "size": file.size,
            "sha256": file.sha256,
            "md5": file.md5,
            "key": join(mount, file.key),
        }
        for file in said.files
    ]


class _Name:
    """The rows of one name on their way to what its records say."""

    def __init__(
        self,
        facility: Facility,
        session: Session,
        histories: Histories,
        history: History,
        rows: Iterable[Product],
    ) -> None:
        self._storage = facility.storage
        self._session, self._histories, self._history = session, histories, history
        self._rows = {row.generation: row for row in rows}
        #: A generation that existed has replaced every earlier one.
        self._newest = self._last()
        self._settled = _Settled()

    def _last(self) -> int:
        """The generation that came last: the highest, but for histories of earlier versions.

        There an attempt could begin first, and be committed when a later one had come and gone.
        """
        existed = {item.number for item in self._history.generations if item.existed}
        existed |= {row.generation for row in self._rows.values() if row.available_at is not None}
        highest = max(existed, default=0)
        claims = {item.number: item.strongest()[0] for item in self._history.generations}
        rivals = [
            number
            for number in existed
            if number < highest and number in claims and claims[number].state == "available"
        ]
        if not rivals or highest not in claims or claims[highest].state != "removed":
            return highest
        times = {number: self._came(claims[number]) for number in (*rivals, highest)}
        return max(times, key=lambda number: (times[number], number))

    def _came(self, claim: Claim) -> datetime:
        said = self._load(claim)
        return said.available_at or said.time

    def settle(self) -> _Settled:
        """Bring the rows up to date; what is replaced makes way before what replaces it comes."""
        generations = self._history.generations
        for generation in generations:
            if generation.number < self._newest:
                self._settle_one(generation)
        for row in self._rows.values():
            if row.state == State.AVAILABLE and row.generation < self._newest:
                self._retire(row)
        self._session.flush()
        for generation in generations:
            if generation.number >= self._newest:
                self._settle_one(generation)
        return self._settled

    def _settle_one(self, generation: Generation) -> None:
        row = self._rows.get(generation.number)
        claim = self._choose(generation, row)
        try:
            self._settled.applied += self._merge(row, claim, generation)
        except (IntegrityError, DataError):
            self._settled.has_clashed = True
            self._tell(claim, "names a file that belongs to another product")

    def _choose(self, generation: Generation, row: Product | None) -> Claim:
        """The claim that holds; where several products exist, the catalog's or the first one."""
        strongest = generation.strongest()
        if len(strongest) == 1 or strongest[0].state != "available":
            return strongest[0]
        chosen = min(
            strongest, key=lambda claim: (self._load(claim).available_at or _NEVER, claim.id)
        )
        if row is not None and row.available_at is not None:
            chosen = next((claim for claim in strongest if claim.id == row.id), chosen)
        for claim in strongest:
            if claim is not chosen:
                self._tell(
                    claim,
                    f"says that {self._history.name!r}, generation {generation.number}, is the "
                    f"product {claim.id}; another record says that it is {chosen.id}",
                )
        return chosen

    def _merge(self, row: Product | None, claim: Claim, generation: Generation) -> int:
        """Bring one generation up to date; returns how many statements were new to it."""
        if row is None:
            made = Product(name=self._history.name, generation=generation.number)
            self._write(made, claim)
            return sum(len(item.entries) for item in generation.claims)
        if row.id != claim.id and not self._gives_way(row, claim, generation):
            return 0
        is_new = row.id != claim.id or row.available_at is None
        count = sum(is_new or entry.number > row.number for entry in claim.entries)
        if claim.state == "void":
            count = self._keep(row, claim)
        elif (
            is_new
            or (claim.state == "removed" and row.state == State.AVAILABLE)
            or (row.state == State.AVAILABLE and row.number < claim.number)
            or (row.state == State.REMOVED and row.file_count == 0 and claim.available)
        ):
            self._write(row, claim)
            count = max(count, 1)
        elif claim.state == "removed" and row.state == State.REMOVING:
            self._write(row, claim)
        else:
            self._keep(row, claim)
        return count

    def _gives_way(self, row: Product, claim: Claim, generation: Generation) -> bool:
        """Whether the records know better than a row with another id."""
        if row.available_at is None or row.id in {item.id for item in generation.claims}:
            return claim.state != "void"
        if row.state == State.REMOVED:
            return claim.state == "available"
        if claim.state == "available":
            self._tell(
                claim,
                f"says that {row.name!r}, generation {row.generation}, is the product {claim.id}; "
                f"the catalog says that it is {row.id}, of which there is no record",
            )
        return False

    def _keep(self, row: Product, claim: Claim) -> int:
        """The row knows as much or more; it learns the number and that it is recorded."""
        count = sum(entry.number > row.number for entry in claim.entries)
        row.number = max(row.number, claim.number)
        row.recorded = max(row.recorded, claim.number)
        return count

    def _write(self, row: Product, claim: Claim) -> None:
        """Make ``row`` what the records say, or leave all as it was."""
        with self._session.begin_nested():
            self._describe(row, claim)

    def _describe(self, row: Product, claim: Claim) -> None:
        """``_write`` within its savepoint; files of what is gone are forgotten."""
        said = self._histories.load(claim.deciding)
        newest = said
        if claim.available is not None and claim.available != claim.deciding:
            newest = self._histories.load(claim.available)
        mount, is_other = claim.deciding.mount, row.id != claim.id
        # Its removal is recorded, but its bytes may be there still: housekeeping finishes it.
        is_going = row.state == State.REMOVING and claim.state == "removed" and not is_other
        if is_other:
            row.attempt = ""
        row.number = claim.number if is_other else max(row.number, claim.number)
        _say(row, claim, said, newest)
        if claim.state == "removed":
            row.state = State.REMOVING if is_going else State.REMOVED
            row.removed_at, row.removed_by = said.time, said.subject
            row.removed_cause = said.cause
        elif claim.state == "void":
            # Nothing came of it; the row is there so that its number is not given again.
            row.state, row.available_at = State.REMOVED, None
        elif claim.is_uncertain and self._is_gone(mount, said):
            row.state, said = State.REMOVED, said.model_copy(update={"files": ()})
            row.removed_at, row.removed_by = row.touched_at, events.SYSTEM.subject
            row.removed_cause = "its files are gone, and its newest record cannot be read"
        elif row.generation < self._newest:
            self._retire(row)
        self._session.add(row)
        self._session.flush()
        if not is_going:
            self._replace_files(row, mount, said, is_other)

    def _is_gone(self, mount: str, said: Statement) -> bool:
        """Whether the store has none of the files that the statement names."""
        for file in said.files:
            with contextlib.suppress(NotFound):
                self._storage.stat(join(mount, file.key))
                return False
        return True

    def _replace_files(self, row: Product, mount: str, said: Statement, is_other: bool) -> None:
        if row.generation in self._rows:
            self._session.execute(delete(File).where(File.product_pk == row.pk))
            self._session.execute(delete(FileClaim).where(FileClaim.product_pk == row.pk))
            if is_other:
                self._session.execute(delete(Upload).where(Upload.product_pk == row.pk))
        files = _files(row, mount, said)
        if files:
            self._session.execute(insert(File), files)

    def _retire(self, row: Product) -> None:
        """A later generation existed: housekeeping removes what is left of this one."""
        row.state, row.removed_cause = State.REMOVING, f"replaced by generation {self._newest}"
        row.removed_at, row.removed_by = self._replaced()
        row.touched_at, row.successor = datetime.now(UTC), None

    def _replaced(self) -> tuple[datetime | None, str | None]:
        """When and by whom the newest generation came."""
        for generation in self._history.generations:
            if generation.number == self._newest and generation.existed:
                said = self._load(generation.strongest()[0])
                return said.available_at or said.time, said.subject
        row = self._rows[self._newest]
        return row.available_at, row.subject

    def _load(self, claim: Claim) -> Statement:
        return self._histories.load(claim.available or claim.deciding)

    def _tell(self, claim: Claim, reason: str) -> None:
        self._settled.problems.append(Unreadable(claim.deciding.key, reason))
