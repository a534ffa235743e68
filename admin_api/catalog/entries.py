"""What the catalog says, as values: frozen, and good outside of any transaction.

The services and the web layer hand these on; rows stay within ``catalog`` and the statements of
the services.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, literal_column, select
from sqlalchemy.orm import Session

from admin_api.catalog.models import Base, Event, File, Product, State, Upload


@dataclass(frozen=True, slots=True)
class ProductEntry:
    """One generation of a product, or an attempt at one; see ``models.Product``."""

    pk: int
    id: str
    name: str
    generation: int
    number: int
    state: str
    mission: str | None
    product_type: str | None
    sensing_start: datetime | None
    sensing_stop: datetime | None
    size: int
    file_count: int
    list_digest: str | None
    directory: str
    registered: bool
    level: str
    source: str | None
    subject: str
    created_at: datetime
    touched_at: datetime
    available_at: datetime | None
    removed_at: datetime | None
    removed_by: str | None
    removed_cause: str | None
    retention_until: datetime | None
    hold_reason: str | None
    hold_by: str | None
    attempt: str
    recorded: int
    successor: int | None


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a product; see ``models.File``."""

    product_pk: int
    path: str
    size: int
    sha256: str
    md5: str
    key: str


@dataclass(frozen=True, slots=True)
class UploadEntry:
    """An upload session; see ``models.Upload``."""

    id: str
    product_pk: int
    subject: str
    policy: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class EventEntry:
    """Something that happened; see ``models.Event``."""

    number: int
    time: datetime
    kind: str
    subject: str | None
    request_id: str | None
    product_id: str | None
    product_name: str | None
    mission: str | None
    detail: dict[str, Any]
    previous: str
    digest: str


_Entry = TypeVar("_Entry", ProductEntry, FileEntry, UploadEntry, EventEntry)


def _columns(entry: type[Any], table: type[Base]) -> tuple[Any, ...]:
    return tuple(getattr(table, item.name) for item in fields(entry))


#: For ``select`` and ``returning``: the columns in the order of the entry's fields.
PRODUCT = _columns(ProductEntry, Product)
FILE = _columns(FileEntry, File)
UPLOAD = _columns(UploadEntry, Upload)
EVENT = _columns(EventEntry, Event)


def products() -> Select[Any]:
    """A query for products, to be narrowed by the caller."""
    return select(*PRODUCT)


def is_available() -> ColumnElement[bool]:
    """Whether a product is available, in the words of the index ``one_available_per_name``.

    SQLite takes an index of some rows only where the statement names these rows by a constant; it
    would walk all available products otherwise.
    """
    return Product.state == literal_column(f"'{State.AVAILABLE}'")


def all_of(kind: type[_Entry], session: Session, query: Any) -> list[_Entry]:
    """The entries that a query (or a statement that returns columns) gives."""
    return [kind(*row) for row in session.execute(query)]


def first_of(kind: type[_Entry], session: Session, query: Any) -> _Entry | None:
    """The first entry that a query gives, or None."""
    row = session.execute(query).first()
    return None if row is None else kind(*row)


def product(session: Session, pk: int) -> ProductEntry | None:
    """The product with the row ``pk``."""
    return first_of(ProductEntry, session, products().where(Product.pk == pk))


def files_of(session: Session, product_pk: int) -> list[FileEntry]:
    """A product's files, by path."""
    query = select(*FILE).where(File.product_pk == product_pk).order_by(File.path)
    return all_of(FileEntry, session, query)


def products_by_pk(session: Session, pks: Sequence[int]) -> list[ProductEntry]:
    """The products with the rows ``pks`` that are there."""
    return all_of(ProductEntry, session, products().where(Product.pk.in_(pks)))
