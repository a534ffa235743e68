"""Writing and reading the record objects that make products exist (design rule 3).

The format is ``products/records.py``.  Called by whatever changes a product's state, by rebuilding
and by reconciliation (through ``histories.py``).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.errors import (
    AlreadyExists,
    InvalidKey,
    InvalidRequest,
    NotFound,
    StorageManagerError,
    TooLarge,
    Unavailable,
    UnreadableRecord,
)
from admin_api.keys import check_key, join
from admin_api.products.records import (
    DIRECTORY,
    MAX_LINE_BYTES,
    Flaw,
    RecordedFile,
    Statement,
    bulk_key,
    group_key,
    group_of,
    parse_records,
    record_key,
    refusal,
    subject_of,
)
from admin_api.services.facility import Facility
from admin_api.storage.base import Stat, put_bytes

log = logging.getLogger(__name__)

#: Objects of this size and less are read side by side, so many at a time.
_SMALL_BYTES = 256 << 10
_READERS = 8
_AHEAD = 64


@dataclass(frozen=True, slots=True)
class Found:
    """A statement in the store, with its line, the object that holds it and the object's mount."""

    mount: str
    key: str
    line: bytes
    statement: Statement


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record, or a line of one, that cannot be read or believed, and why.

    ``subject`` is what the key tells of it: id, generation and number.
    """

    key: str
    reason: str
    subject: tuple[str, int, int] | None = None


def mount_path(facility: Facility, product: ProductEntry) -> str:
    """The mount that holds the product and its records."""
    return facility.storage.mount_of(f"{product.directory}/")


def describe(
    facility: Facility,
    product: ProductEntry,
    files: Iterable[FileEntry],
    number: int,
    state: Literal["available", "removed", "void"] = "available",
) -> Statement:
    """The statement that says of ``product`` what its row and ``files`` say."""
    mount = mount_path(facility, product)
    skip = len(mount) + 1 if mount else 0
    return Statement(
        state=state,
        id=product.id,
        name=product.name,
        generation=product.generation,
        number=number,
        time=(product.removed_at if state == "removed" else None) or datetime.now(UTC),
        attempt=product.attempt or None,
        subject=product.removed_by if state == "removed" else product.subject,
        cause=product.removed_cause,
        mission=product.mission,
        product_type=product.product_type,
        sensing_start=product.sensing_start,
        sensing_stop=product.sensing_stop,
        directory=product.directory[skip:],
        registered=product.registered,
        level=product.level,
        source=product.source,
        created_at=product.created_at,
        available_at=product.available_at,
        retention_until=product.retention_until,
        hold_reason=product.hold_reason,
        hold_by=product.hold_by,
        list_digest=product.list_digest,
        files=tuple(
            RecordedFile(
                path=file.path,
                size=file.size,
                sha256=file.sha256,
                md5=file.md5,
                key=file.key[skip:],
            )
            for file in files
        ),
    )


def write(facility: Facility, mount: str, statement: Statement) -> Statement:
    """Write ``statement`` under its number; raises AlreadyExists if that is taken.

    Raises TooLarge and InvalidRequest, before anything is written, for what could not be read back.
    """
    put_bytes(facility.storage, key_of(mount, statement), _line(facility, mount, statement))
    return statement


def write_removals(facility: Facility, mount: str, statements: Sequence[Statement]) -> None:
    """Write statements that products are removed, all in one object.

    Not under their numbers: no removal is decided by who writes first, and where the same is said
    twice the first one holds (``histories.py``).
    """
    lines = [_line(facility, mount, statement) for statement in statements]
    put_bytes(facility.storage, join(mount, bulk_key(uuid.uuid4().hex)), b"".join(lines))


def write_group(
    facility: Facility, mount: str, group: str, statements: Sequence[Statement]
) -> None:
    """Write the statements that the products of a group exist, all in one object.

    Its key is the group's, so a ``void`` of any of them is put in the same place (``key_of``): the
    store decides once for all of them.  Raises AlreadyExists, TooLarge and InvalidRequest.
    """
    lines = [
        _line(facility, mount, item.model_copy(update={"together": len(statements)}))
        for item in statements
    ]
    put_bytes(facility.storage, join(mount, group_key(group)), b"".join(lines))


def _line(facility: Facility, mount: str, statement: Statement) -> bytes:
    line = statement.line()
    if len(line) > MAX_LINE_BYTES:
        raise TooLarge(
            f"The record of {statement.name!r} would have {len(line)} bytes; "
            f"{MAX_LINE_BYTES} are allowed. Its files are too many, or their names too long."
        )
    refused = refusal(statement) or _misplaced(facility, mount, statement)
    if refused is not None:
        raise InvalidRequest(f"The record of {statement.name!r} {refused}.")
    return line


def write_next(facility: Facility, mount: str, statement: Statement) -> Statement:
    """Write ``statement`` under the next free number from its own on.

    A number can be taken by a statement whose writer died before the catalog learnt of it, or by
    a record that is damaged.
    """
    for number in itertools.count(statement.number):
        numbered = statement.model_copy(update={"number": number})
        try:
            return write(facility, mount, numbered)
        except AlreadyExists:
            try:
                found = read(facility, mount, numbered)
            except UnreadableRecord:
                log.exception("a damaged record is passed over", extra={"product": statement.id})
                continue
            if found.state == statement.state == "removed":
                return found
    raise AssertionError("unreachable")


def read(facility: Facility, mount: str, statement: Statement) -> Statement:
    """The statement that is in the store under the number of ``statement``.

    Raises UnreadableRecord where the record is damaged, NotFound where it is that of a group and
    says nothing of the product, and what the store raises.
    """
    key, is_one_of_many = key_of(mount, statement), is_shared(mount, statement)
    unreadable: Unreadable | None = None
    for item in _parse(facility, mount, key, facility.storage.open(key)):
        if isinstance(item, Unreadable):
            unreadable = item
        elif not is_one_of_many or item.statement.attempt == statement.attempt:
            return item.statement
    if unreadable is not None:
        raise UnreadableRecord(f"The record {key!r} cannot be used: {unreadable.reason}.")
    raise NotFound(f"The record {key!r} says nothing of {statement.name!r}.")


def of_attempt(facility: Facility, attempt: ProductEntry) -> Statement | None:
    """The record that says that there is a product, be it under other numbers by now."""
    sought = describe(facility, attempt, (), 1, "void")
    mount = mount_path(facility, attempt)
    with contextlib.suppress(NotFound):
        found = read(facility, mount, sought)
        if found.moved_to is not None and found.attempt == attempt.attempt:
            product_id, generation = found.moved_to
            found = read(
                facility,
                mount,
                sought.model_copy(update={"id": product_id, "generation": generation}),
            )
        if found.state == "available":
            return found
    return None


def key_of(mount: str, statement: Statement) -> str:
    """Where ``statement`` lies in the namespace.

    The first statement about a product that was committed with others lies in the record of their
    group, and so does the one that the commit did not happen.
    """
    group = group_of(statement.attempt) if statement.number == 1 else None
    return join(mount, group_key(group)) if group else _own_key(mount, statement)


def is_shared(mount: str, statement: Statement) -> bool:
    """Whether the statement lies in a record that says of other products, too."""
    return key_of(mount, statement) != _own_key(mount, statement)


def _own_key(mount: str, statement: Statement) -> str:
    return join(
        mount,
        record_key(statement.id, statement.name, statement.generation, statement.number),
    )


def read_all(facility: Facility) -> Iterator[Found | Unreadable]:
    """Every statement of every mount, and what cannot be read, in no particular order.

    What goes wrong with one record is told and passed over; raises what the stores raise when they
    cannot be listed or do not answer any more.
    """
    with ThreadPoolExecutor(_READERS, thread_name_prefix="records") as pool:
        for mount in facility.storage.stores:
            yield from _read_mount(facility, mount, pool)
            for key in facility.storage.strays(join(mount, DIRECTORY)):
                yield Unreadable(key, "is no plain file, or its name is no key")


def _read_mount(
    facility: Facility, mount: str, pool: ThreadPoolExecutor
) -> Iterator[Found | Unreadable]:
    stats = (
        stat
        for stat in facility.storage.list(join(mount, DIRECTORY))
        if stat.key.endswith(".jsonl")
    )
    while ahead := list(itertools.islice(stats, _AHEAD)):
        small: list[Future[list[Found | Unreadable]]] = []
        large: list[Stat] = []
        for stat in ahead:
            if stat.size <= _SMALL_BYTES:
                small.append(pool.submit(_read_whole, facility, mount, stat.key))
            else:
                large.append(stat)
        for future in small:
            yield from future.result()
        for stat in large:
            yield from _read_object(facility, mount, stat.key)


def _read_whole(facility: Facility, mount: str, key: str) -> list[Found | Unreadable]:
    return list(_read_object(facility, mount, key))


def _read_object(facility: Facility, mount: str, key: str) -> Iterator[Found | Unreadable]:
    try:
        yield from _parse(facility, mount, key, facility.storage.open(check_key(key)))
    except NotFound:
        yield Unreadable(
            key, "is not there when it is read, or is no plain file", _subject(mount, key)
        )
    except StorageManagerError as error:
        if isinstance(error, Unavailable):
            facility.storage.stores[mount].ping()  # raises where it is not this record alone
        yield Unreadable(key, f"cannot be read: {error.detail}", _subject(mount, key))


def _parse(
    facility: Facility, mount: str, key: str, chunks: Iterable[bytes]
) -> Iterator[Found | Unreadable]:
    """The statements of one object, and at its end what is wrong with it, in one sentence."""
    first, more, count, together = "", 0, 0, 0
    for item in parse_records(chunks):
        count += 1
        if isinstance(item, Flaw):
            place, reason = f"line {item.line} " if item.line else "", item.reason
        else:
            line, statement = item
            together = max(together, statement.together or 0)
            misplaced = _misplaced(facility, mount, statement)
            if misplaced is None:
                yield Found(mount, key, line, statement)
                continue
            place, reason = f"the statement about {statement.name!r} ", misplaced
        if first:
            more += 1
        else:
            first = place + reason
    if count < together:
        first, more = first or f"is cut: it has {count} of {together} lines", more + bool(first)
    if first:
        also = f" (and so with {more} more lines)" if more else ""
        yield Unreadable(key, first + also, _subject(mount, key))


def _subject(mount: str, key: str) -> tuple[str, int, int] | None:
    return subject_of(key[len(mount) :].lstrip("/"))


def _misplaced(facility: Facility, mount: str, statement: Statement) -> str | None:
    """Why the statement's files cannot lie in ``mount``, in words; None if they can."""
    try:
        for key in (statement.directory or "", *(file.key for file in statement.files)):
            outer = join(mount, key)
            if outer and facility.storage.mount_of(f"{check_key(outer)}/") != mount:
                return f"names what lies in another store: {outer[:200]!r}"
    except InvalidKey as error:
        return f"names what cannot be: {error.detail}"
    return None


def recorded_files(mount: str, statement: Statement, product_pk: int) -> list[FileEntry]:
    """The files of a statement as entries of the row ``product_pk``."""
    return [
        FileEntry(product_pk, file.path, file.size, file.sha256, file.md5, join(mount, file.key))
        for file in statement.files
    ]
