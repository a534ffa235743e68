"""Writing and reading the record objects that make products exist (design rule 3).

The format is ``products/records.py``.  Called by reception, removal, holds and rebuilding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Literal

from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.errors import AlreadyExists
from admin_api.keys import join
from admin_api.products.records import (
    DIRECTORY,
    RecordedFile,
    Statement,
    parse_records,
    record_key,
)
from admin_api.services.facility import Facility
from admin_api.storage.base import put_bytes, read_bytes


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
        attempt=product.attempt or None,
        id=product.id,
        name=product.name,
        generation=product.generation,
        number=number,
        time=datetime.now(UTC),
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
    """Write ``statement`` under its number; raises AlreadyExists if that is taken."""
    put_bytes(facility.storage, key_of(mount, statement), statement.line())
    return statement


def write_next(facility: Facility, mount: str, statement: Statement) -> Statement:
    """Write ``statement`` under the next free number from its own on.

    A number can be taken by a statement whose writer died before the catalog learnt of it.
    """
    for number in itertools.count(statement.number):
        numbered = statement.model_copy(update={"number": number})
        try:
            return write(facility, mount, numbered)
        except AlreadyExists:
            found = read(facility, mount, numbered)
            if found.state == statement.state == "removed":
                return found
    raise AssertionError("unreachable")


def read(facility: Facility, mount: str, statement: Statement) -> Statement:
    """The statement that is in the store under the number of ``statement``."""
    key = key_of(mount, statement)
    return next(parse_records(read_bytes(facility.storage, key), key))


def key_of(mount: str, statement: Statement) -> str:
    """Where ``statement`` lies in the namespace."""
    return join(
        mount,
        record_key(statement.id, statement.name, statement.generation, statement.number),
    )


def read_all(facility: Facility) -> Iterator[tuple[str, Statement]]:
    """Every statement of every mount, with the mount's path."""
    for mount in facility.storage.stores:
        for stat in facility.storage.list(join(mount, DIRECTORY)):
            if stat.key.endswith(".jsonl"):
                for statement in parse_records(read_bytes(facility.storage, stat.key), stat.key):
                    yield mount, statement


def recorded_files(mount: str, statement: Statement, product_pk: int) -> list[FileEntry]:
    """The files of a statement as entries of the row ``product_pk``."""
    return [
        FileEntry(product_pk, file.path, file.size, file.sha256, file.md5, join(mount, file.key))
        for file in statement.files
    ]
