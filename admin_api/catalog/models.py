"""Tables of the catalog.  ``migrations/`` builds them; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

#: Byte order in every database: listings by name and by key are in the order of the stores.
ByteText = Text().with_variant(Text(collation="C"), "postgresql")
#: SQLite counts rows up only where the key is plainly INTEGER.
RowId = BigInteger().with_variant(Integer, "sqlite")


class UtcDateTime(TypeDecorator[datetime]):
    """Times are in UTC, aware in Python whatever the database keeps."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database."""
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The tables' registry."""


class State:
    """The states of a product's generation; they move downwards in this list only."""

    RECEIVING = "receiving"
    #: The short part of receiving in which the record is written; one per name.
    COMMITTING = "committing"
    AVAILABLE = "available"
    REMOVING = "removing"
    REMOVED = "removed"


class Product(Base):
    """One generation of one product, or an attempt at one (``available_at`` is null then)."""

    __tablename__ = "product"

    pk: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(ByteText, index=True)
    name: Mapped[str] = mapped_column(ByteText)
    generation: Mapped[int]
    #: Number of the newest statement about this generation.
    number: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(ByteText)
    mission: Mapped[str | None] = mapped_column(ByteText)
    product_type: Mapped[str | None] = mapped_column(ByteText)
    sensing_start: Mapped[datetime | None] = mapped_column(UtcDateTime)
    sensing_stop: Mapped[datetime | None] = mapped_column(UtcDateTime)
    size: Mapped[int] = mapped_column(BigInteger, default=0)
    file_count: Mapped[int] = mapped_column(default=0)
    list_digest: Mapped[str | None] = mapped_column(Text)
    #: Directory of this generation in the namespace; of the first file where it is registered.
    directory: Mapped[str] = mapped_column(ByteText)
    #: Registered in place: the bytes are not ours to remove.
    registered: Mapped[bool] = mapped_column(default=False)
    level: Mapped[str] = mapped_column(Text)
    source: Mapped[str | None] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    touched_at: Mapped[datetime] = mapped_column(UtcDateTime)
    available_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    removed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    removed_by: Mapped[str | None] = mapped_column(Text)
    removed_cause: Mapped[str | None] = mapped_column(Text)
    retention_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    hold_reason: Mapped[str | None] = mapped_column(Text)
    hold_by: Mapped[str | None] = mapped_column(Text)
    #: Drawn for this attempt and in its record: tells it from one of another history of the
    #: catalog (restored from a backup) that has the same numbers.
    attempt: Mapped[str] = mapped_column(Text, default="")
    #: Number of the newest statement that is known to be in the store; behind ``number`` while a
    #: change that the catalog has decided is not recorded yet.
    recorded: Mapped[int] = mapped_column(default=0)
    #: The attempt whose commit replaces this generation right now.
    successor: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (
        UniqueConstraint("name", "generation"),
        Index(
            "one_available_per_name",
            "name",
            unique=True,
            sqlite_where=text("state = 'available'"),
            postgresql_where=text("state = 'available'"),
        ),
        Index(
            "one_committing_per_name",
            "name",
            unique=True,
            sqlite_where=text("state = 'committing'"),
            postgresql_where=text("state = 'committing'"),
        ),
        # Listings with filters, and the sums of /v1/storage from the index alone.
        Index("product_listing", "state", "mission", "product_type", "pk", "size", "file_count"),
        Index("product_sensing", "state", "sensing_start"),
        Index("product_retention", "state", "retention_until"),
        Index("product_touched", "state", "touched_at"),
        Index("product_directory", "directory"),
    )


class File(Base):
    """A file of a generation that is committing, available or removing."""

    __tablename__ = "file"

    product_pk: Mapped[int] = mapped_column(
        RowId, ForeignKey("product.pk", ondelete="CASCADE"), primary_key=True
    )
    path: Mapped[str] = mapped_column(ByteText, primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(Text)
    md5: Mapped[str] = mapped_column(Text)
    key: Mapped[str] = mapped_column(ByteText, unique=True)


class Forgotten(Base):
    """The highest generation of a name among the failed attempts whose rows are gone.

    With the rows that are there it says which number comes next: none is given twice.
    """

    __tablename__ = "forgotten"

    name: Mapped[str] = mapped_column(ByteText, primary_key=True)
    generation: Mapped[int]


class FileClaim(Base):
    """A file of an upload session that a request is receiving right now; one request per path."""

    __tablename__ = "file_claim"

    product_pk: Mapped[int] = mapped_column(
        RowId, ForeignKey("product.pk", ondelete="CASCADE"), primary_key=True
    )
    path: Mapped[str] = mapped_column(ByteText, primary_key=True)
    owner: Mapped[str] = mapped_column(Text, index=True)
    touched_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Multipart(Base):
    """A multipart upload that we began at a bucket and have not seen ended.

    Announced before the service gives it an id, so that none can be lost between the two: the
    ticket is ours, and the key says which uploads the service lists are meant.
    """

    __tablename__ = "multipart"

    mount: Mapped[str] = mapped_column(ByteText, primary_key=True)
    ticket: Mapped[str] = mapped_column(ByteText, primary_key=True)
    #: In the namespace, the mount's path included.
    key: Mapped[str] = mapped_column(ByteText)
    begun_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class Identity(Base):
    """Who this catalog is: one row, written when the tables are made."""

    __tablename__ = "identity"

    catalog_id: Mapped[str] = mapped_column(ByteText, primary_key=True)


class Store(Base):
    """The store that the catalog expects at a mount: what its marker object says."""

    __tablename__ = "store"

    mount: Mapped[str] = mapped_column(ByteText, primary_key=True)
    store_id: Mapped[str] = mapped_column(Text)
    #: Number of the marker; a take-over writes the next one.
    number: Mapped[int]


class Upload(Base):
    """An upload session: a product of many files that its producer pushes."""

    __tablename__ = "upload"

    id: Mapped[str] = mapped_column(ByteText, primary_key=True)
    product_pk: Mapped[int] = mapped_column(
        RowId, ForeignKey("product.pk", ondelete="CASCADE"), unique=True
    )
    subject: Mapped[str] = mapped_column(Text)
    policy: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class Event(Base):
    """What happened, numbered without gaps and chained: audit and change feed in one."""

    __tablename__ = "event"

    number: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=False)
    time: Mapped[datetime] = mapped_column(UtcDateTime)
    kind: Mapped[str] = mapped_column(Text)
    subject: Mapped[str | None] = mapped_column(Text)
    request_id: Mapped[str | None] = mapped_column(Text)
    product_id: Mapped[str | None] = mapped_column(ByteText, index=True)
    product_name: Mapped[str | None] = mapped_column(ByteText)
    mission: Mapped[str | None] = mapped_column(ByteText)
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)
    previous: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(Text)


class Idempotency(Base):
    """An answer kept for its Idempotency-Key; without ``status`` the request is still running."""

    __tablename__ = "idempotency"

    subject: Mapped[str] = mapped_column(ByteText, primary_key=True)
    key: Mapped[str] = mapped_column(ByteText, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(Text)
    #: The server process that runs the request; it touches the row while it lives.
    instance: Mapped[str] = mapped_column(Text)
    status: Mapped[int | None]
    body: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    touched_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
