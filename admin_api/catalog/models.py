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


class JobState:
    """The states of a job: items are still told, all are told, all have ended."""

    RECEIVING = "receiving"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"


class ChunkState:
    """The states of a chunk of a job's items."""

    QUEUED = "queued"
    #: Under a lease: by whom, and since when there was no sign of life, is in the row.
    RUNNING = "running"
    ENDED = "ended"


class ItemState:
    """What can have become of an item; every one but ``queued`` is final."""

    QUEUED = "queued"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    CANCELLED = "cancelled"


class State:
    """The states of a product's generation; they move downwards in this list only."""

    RECEIVING = "receiving"
    #: The short part of receiving in which the record is written; one per name.
    COMMITTING = "committing"
    AVAILABLE = "available"
    REMOVING = "removing"
    REMOVED = "removed"


def _where(name: str, condition: str, *columns: str) -> Index:
    """An index of the rows that meet ``condition`` only."""
    return Index(name, *columns, sqlite_where=text(condition), postgresql_where=text(condition))


def _shown(name: str, *columns: str) -> Index:
    """An index of the products that exist or existed: attempts are never listed."""
    return _where(name, "available_at IS NOT NULL", *columns)


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
    #: Until then somebody works with it under a lease (the last of the ``Lease`` rows).
    leased_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
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
        # The walks of ``queries.py``: of everything, of a mission, of a mission's type.
        _shown("product_by_creation", "state", "available_at", "pk"),
        _shown("product_by_mission", "state", "mission", "available_at", "pk"),
        _shown("product_by_type", "state", "mission", "product_type", "available_at", "pk"),
        _shown("product_by_name", "state", "name", "generation"),
        _shown("product_by_sensing", "state", "sensing_start", "pk"),
        _shown("product_by_mission_sensing", "state", "mission", "sensing_start", "pk"),
        _shown(
            "product_by_type_sensing", "state", "mission", "product_type", "sensing_start", "pk"
        ),
        # What housekeeping looks for; hardly any row is in these.
        _where("product_failed", "available_at IS NULL", "state", "touched_at"),
        _where("product_unrecorded", "recorded < number", "state", "touched_at"),
        _where("product_successor", "successor IS NOT NULL", "successor"),
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


class Usage(Base):
    """What is available of a mission and type ('' where unknown), and how long it was sensed.

    Kept by ``usage.py`` in the transaction of every transition.  A row stays when its last
    product goes: removed products are listed by it.
    """

    __tablename__ = "usage"

    mission: Mapped[str] = mapped_column(ByteText, primary_key=True)
    product_type: Mapped[str] = mapped_column(ByteText, primary_key=True)
    products: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    #: No product of these, be it removed by now, was sensed for longer.
    longest_seconds: Mapped[int] = mapped_column(BigInteger)


class FileClaim(Base):
    """A file of an upload session that a request is receiving right now; one request per path."""

    __tablename__ = "file_claim"

    product_pk: Mapped[int] = mapped_column(
        RowId, ForeignKey("product.pk", ondelete="CASCADE"), primary_key=True
    )
    path: Mapped[str] = mapped_column(ByteText, primary_key=True)
    owner: Mapped[str] = mapped_column(Text, index=True)
    touched_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Resumable(Base):
    """A file of an upload session that is sent in pieces, until it is whole."""

    __tablename__ = "resumable"

    product_pk: Mapped[int] = mapped_column(
        RowId, ForeignKey("product.pk", ondelete="CASCADE"), primary_key=True
    )
    path: Mapped[str] = mapped_column(ByteText, primary_key=True)
    #: Bytes that it will have, and those that are durable.
    length: Mapped[int] = mapped_column(BigInteger)
    received: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(Text)
    md5: Mapped[str | None] = mapped_column(Text)


class Piece(Base):
    """A piece of such a file: an object of its own, announced before it is written."""

    __tablename__ = "piece"

    product_pk: Mapped[int] = mapped_column(
        RowId, ForeignKey("product.pk", ondelete="CASCADE"), primary_key=True
    )
    path: Mapped[str] = mapped_column(ByteText, primary_key=True)
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    key: Mapped[str] = mapped_column(ByteText, primary_key=True)
    #: Bytes; None until it is durable.
    size: Mapped[int | None] = mapped_column(BigInteger)


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


class Lease(Base):
    """A promise that products stay, and what is staged of them, until it ends."""

    __tablename__ = "lease"

    id: Mapped[str] = mapped_column(ByteText, primary_key=True)
    subject: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class LeasedProduct(Base):
    """A generation of a product that a lease is for."""

    __tablename__ = "leased_product"

    lease_id: Mapped[str] = mapped_column(
        ByteText, ForeignKey("lease.id", ondelete="CASCADE"), primary_key=True
    )
    product_pk: Mapped[int] = mapped_column(
        RowId, ForeignKey("product.pk", ondelete="CASCADE"), primary_key=True, index=True
    )


class LooseKey(Base):
    """A key that may have bytes in the store and is no product's file: not yet, or no longer.

    Written down before the bytes are (``owner`` shows signs of life while they come), and in the
    transaction that takes a file from its product: nothing is left over by a crash in between.
    """

    __tablename__ = "loose_key"

    key: Mapped[str] = mapped_column(ByteText, primary_key=True)
    owner: Mapped[str] = mapped_column(Text, index=True)
    touched_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class Event(Base):
    """What happened, numbered without gaps and chained: audit and change feed in one."""

    __tablename__ = "event"

    number: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=False)
    time: Mapped[datetime] = mapped_column(UtcDateTime)
    kind: Mapped[str] = mapped_column(Text)
    subject: Mapped[str | None] = mapped_column(Text)
    request_id: Mapped[str | None] = mapped_column(Text)
    product_id: Mapped[str | None] = mapped_column(ByteText)
    product_name: Mapped[str | None] = mapped_column(ByteText)
    mission: Mapped[str | None] = mapped_column(ByteText)
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)
    previous: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(Text)

    __table_args__ = (
        Index("event_product", "product_id", "number"),
        Index("event_mission", "mission", "number"),
    )


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


class Job(Base):
    """A bulk import or removal; its counts are kept in the transactions that change them."""

    __tablename__ = "job"

    pk: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(ByteText, unique=True)
    #: ``import`` or ``removal``.
    kind: Mapped[str] = mapped_column(ByteText)
    state: Mapped[str] = mapped_column(ByteText)
    paused: Mapped[bool] = mapped_column(default=False)
    #: Asked to be cancelled; the state follows when the last item has ended.
    cancelled: Mapped[bool] = mapped_column(default=False)
    priority: Mapped[int] = mapped_column(default=0)
    #: Items at once in the whole facility; None: as many as the workers take.
    concurrency: Mapped[int | None]
    subject: Mapped[str] = mapped_column(ByteText)
    #: What the token of the request allowed: the items may no more.
    scopes: Mapped[list[str]] = mapped_column(JSON)
    missions: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    request_id: Mapped[str | None] = mapped_column(Text)
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    #: When a chunk of it was last taken: jobs of one priority take turns.
    served_at: Mapped[datetime] = mapped_column(UtcDateTime)
    #: The request that still tells items, and its last sign of life.
    owner: Mapped[str | None] = mapped_column(Text, index=True)
    touched_at: Mapped[datetime] = mapped_column(UtcDateTime)
    #: Why not all items could be told: code and detail.
    problem: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    #: Of failed items by code: how many, and the first ones.
    errors: Mapped[dict[str, Any]] = mapped_column(JSON)
    chunks: Mapped[int] = mapped_column(default=0)
    #: Outcomes so far, those of earlier tries included: they are numbered by it.
    sequence: Mapped[int] = mapped_column(BigInteger, default=0)
    received: Mapped[int] = mapped_column(BigInteger, default=0)
    open: Mapped[int] = mapped_column(BigInteger, default=0)
    done: Mapped[int] = mapped_column(BigInteger, default=0)
    skipped: Mapped[int] = mapped_column(BigInteger, default=0)
    failed: Mapped[int] = mapped_column(BigInteger, default=0)
    dropped: Mapped[int] = mapped_column(BigInteger, default=0)
    #: Bytes of the items that are done, and those that were announced of all.
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    expected_bytes: Mapped[int] = mapped_column(BigInteger, default=0)

    __table_args__ = (
        # Workers look here all the time; hardly any row is in it.
        _where("job_active", "ended_at IS NULL", "priority", "served_at"),
        Index("job_by_creation", "created_at", "pk"),
        Index("job_by_subject", "subject", "created_at", "pk"),
    )


class Chunk(Base):
    """Some items of a job, run together; ``scan``: a place to find items in, from ``place`` on."""

    __tablename__ = "chunk"

    job_pk: Mapped[int] = mapped_column(
        RowId, ForeignKey("job.pk", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    scan: Mapped[bool] = mapped_column(default=False)
    place: Mapped[str | None] = mapped_column(ByteText)
    state: Mapped[str] = mapped_column(ByteText)
    #: Counts the leases; whatever a worker writes is guarded by its own.
    epoch: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str | None] = mapped_column(Text, index=True)
    touched_at: Mapped[datetime] = mapped_column(UtcDateTime)
    #: Leases since an item last ended: a chunk that only kills its workers is given up.
    fruitless: Mapped[int] = mapped_column(default=0)
    open: Mapped[int] = mapped_column(default=0)

    __table_args__ = (Index("chunk_by_state", "job_pk", "state", "number"),)


class Item(Base):
    """One product to import or remove; ``number`` is its line in the manifest."""

    __tablename__ = "item"

    job_pk: Mapped[int] = mapped_column(
        RowId, ForeignKey("job.pk", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    chunk: Mapped[int]
    state: Mapped[str] = mapped_column(ByteText)
    #: What is asked for; None once it can be forgotten, or where a line told nothing.
    wanted: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    #: How it is told to people: name, id or source without secrets.
    label: Mapped[str] = mapped_column(Text)
    #: Which outcome of the job it is; None while it is queued.
    sequence: Mapped[int | None] = mapped_column(BigInteger)
    result: Mapped[str | None] = mapped_column(Text)
    code: Mapped[str | None] = mapped_column(Text)
    detail: Mapped[str | None] = mapped_column(Text)
    retryable: Mapped[bool | None]
    product_id: Mapped[str | None] = mapped_column(ByteText)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (
        Index("item_by_state", "job_pk", "state", "sequence", "number"),
        Index("item_by_chunk", "job_pk", "chunk", "state"),
    )
