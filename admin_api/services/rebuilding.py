"""Rebuilding the catalog from the records in the store, or bringing an old one up to date.

Statements are applied in any order, the newest (highest generation, highest number) winning, so
running it again changes nothing.  Called by ``storage-manager rebuild``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from admin_api.catalog import events
from admin_api.catalog.models import File, Product, State
from admin_api.keys import join
from admin_api.products.records import Statement
from admin_api.services import identity, records
from admin_api.services.facility import Facility

_BATCH = 500


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """How far the rebuild has come."""

    statements: int
    applied: int


def rebuild(facility: Facility) -> Iterator[Rebuilt]:
    """Apply every statement in the store to the catalog, in batches.

    Raises WrongStore where a store is not this catalog's; one that knows no product takes it over.
    """
    identity.take_back(facility.catalog, facility.storage)
    statements = applied = 0
    found = records.read_all(facility)
    while batch := list(islice(found, _BATCH)):
        with facility.catalog.writing() as session:
            for mount, statement in batch:
                statements += 1
                applied += _apply(session, mount, statement)
        yield Rebuilt(statements, applied)
    with facility.catalog.writing() as session:
        if applied:
            events.append(session, "catalog.rebuilt", events.SYSTEM, statements=statements)
    yield Rebuilt(statements, applied)


def _apply(session: Session, mount: str, statement: Statement) -> bool:
    row = session.scalars(
        select(Product).where(
            Product.name == statement.name, Product.generation == statement.generation
        )
    ).first()
    if row is not None and row.number >= statement.number:
        return False
    if row is None:
        row = Product(name=statement.name, generation=statement.generation)
        session.add(row)
    _describe(row, mount, statement)
    if statement.state == "available" and _superseded(session, statement):
        row.state, row.removed_cause = State.REMOVING, "replaced"
        row.removed_at = statement.time
    if statement.state != "void":
        _retire_older(session, statement)
    session.flush()
    session.execute(delete(File).where(File.product_pk == row.pk))
    session.add_all(
        File(
            product_pk=row.pk,
            path=file.path,
            size=file.size,
            sha256=file.sha256,
            md5=file.md5,
            key=join(mount, file.key),
        )
        for file in statement.files
    )
    session.flush()
    return True


def _describe(row: Product, mount: str, statement: Statement) -> None:
    row.id = statement.id
    row.number = statement.number
    row.state = State.AVAILABLE if statement.state == "available" else State.REMOVED
    row.mission, row.product_type = statement.mission, statement.product_type
    row.sensing_start, row.sensing_stop = statement.sensing_start, statement.sensing_stop
    row.list_digest = statement.list_digest
    row.directory = join(mount, statement.directory or "")
    row.registered = statement.registered
    row.level = statement.level or ""
    row.source = statement.source
    row.subject = row.subject or statement.subject or ""
    row.created_at = statement.created_at or statement.time
    row.touched_at = datetime.now(UTC)
    row.available_at = statement.available_at if statement.state != "void" else None
    row.retention_until = statement.retention_until
    row.hold_reason, row.hold_by = statement.hold_reason, statement.hold_by
    if statement.state == "available":
        row.size = sum(file.size for file in statement.files)
        row.file_count = len(statement.files)
    else:
        row.size, row.file_count = row.size or 0, row.file_count or 0
        row.removed_at, row.removed_by = statement.time, statement.subject
        row.removed_cause = statement.cause


def _superseded(session: Session, statement: Statement) -> bool:
    newest = session.scalar(
        select(func.max(Product.generation)).where(
            Product.name == statement.name, Product.available_at.is_not(None)
        )
    )
    return newest is not None and newest > statement.generation


def _retire_older(session: Session, statement: Statement) -> None:
    """A generation that existed has replaced every earlier one."""
    with session.no_autoflush:
        older = session.scalars(
            select(Product).where(
                Product.name == statement.name,
                Product.generation < statement.generation,
                Product.state == State.AVAILABLE,
            )
        ).all()
    for product in older:
        product.state, product.removed_cause = State.REMOVING, "replaced"
        product.removed_at = statement.time
