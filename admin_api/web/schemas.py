"""What goes over the wire: models of requests and answers, and how domain objects become them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from admin_api.catalog.entries import EventEntry, FileEntry, ProductEntry, UploadEntry
from admin_api.services.caching import CacheVerb
from admin_api.services.facility import Facility
from admin_api.services.wishes import Level, Policy
from admin_api.uris import shown

# Times that every database can hold.
_EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
_LATEST = datetime(9999, 12, 30, tzinfo=UTC)


def _written_out(value: object) -> object:
    """Refuse numbers: the year 2031 would be taken for so many seconds since 1970."""
    if not isinstance(value, str) or re.match(r"[0-9]{4}-", value, re.ASCII) is None:
        raise ValueError("is no time of RFC 3339, as 2031-12-31T00:00:00Z is")
    return value


def _storable(value: datetime) -> datetime:
    if not _EARLIEST <= value <= _LATEST:
        raise ValueError("is out of range")
    return value


def _printable(value: str) -> str:
    if re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", value):
        raise ValueError("holds control characters")
    return value


Time = Annotated[AwareDatetime, BeforeValidator(_written_out), AfterValidator(_storable)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(_printable)]
# Signed URLs are long; what is kept of them is short.
Uri = Annotated[str, StringConstraints(min_length=1, max_length=8000), AfterValidator(_printable)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{64}$")]
Md5 = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{32}$")]
Size = Annotated[int, Field(ge=0, lt=1 << 62)]


class Request(BaseModel):
    """Requests: a key that is not known is an error, not a silent nothing."""

    model_config = ConfigDict(extra="forbid")


# -- requests ------------------------------------------------------------------------------------
class ProductPath(BaseModel):
    """The product that is meant."""

    product_id: str = Field(description="id of the product")


class FilePath(ProductPath):
    """The file that is meant."""

    path: str = Field(description="path of the file inside the product")


class UploadPath(BaseModel):
    """The upload session that is meant."""

    upload_id: str = Field(description="id of the upload session")


class UploadFilePath(UploadPath):
    """The file of an upload session that is meant."""

    path: str = Field(description="path of the file inside the product")


class NamePath(BaseModel):
    """The name of what is uploaded."""

    name: str = Field(description="name of the product, or of the archive")


class FileReference(Request):
    """A file of a product, by reference."""

    path: Text = Field(description="path inside the product")
    source: Uri = Field(description="URI of the file")
    size: Size | None = None
    sha256: Sha256 | None = None
    md5: Md5 | None = None


class IngestRequest(Request):
    """A product to ingest by reference: one ``source`` or a list of ``files``."""

    source: Uri | None = Field(
        default=None, description="URI of a file, a directory, an S3 prefix or an archive"
    )
    files: list[FileReference] = Field(default_factory=list, max_length=100_000)
    name: Text | None = Field(default=None, description="default: the last part of the source")
    id: Text | None = Field(default=None, description="id of the product; default: a new one")
    mode: Literal["copy", "register"] = Field(
        default="copy", description="register: the files are in the store already and stay there"
    )
    unpack: bool = Field(default=False, description="the source is an archive of the product")
    duplicates: Policy = Policy.SKIP
    verification: Level = Level.DIGEST
    retention: Time | None = Field(default=None, description="not removed before, purged after")
    size: Size | None = Field(default=None, description="of a single-file source")
    sha256: Sha256 | None = None
    md5: Md5 | None = None


class IdempotencyHeader(BaseModel):
    """Headers of requests that may be repeated."""

    idempotency_key: str | None = Field(default=None, alias="Idempotency-Key", max_length=200)


class UploadHeader(IdempotencyHeader):
    """Headers of payload."""

    repr_digest: str | None = Field(
        default=None, alias="Repr-Digest", description="RFC 9530, e.g. sha-256=:...:"
    )
    content_md5: str | None = Field(default=None, alias="Content-Md5", description="RFC 1864")


class UploadQuery(Request):
    """How an upload is to be taken."""

    unpack: bool = Field(
        default=False, description="the body is a .tar, .tar.gz or .zip of the product"
    )
    id: Text | None = None
    duplicates: Policy = Policy.SKIP
    verification: Level = Level.DIGEST
    retention: Time | None = None


class SessionRequest(Request):
    """An upload session to begin."""

    name: Text = Field(description="name of the product")
    id: Text | None = None
    duplicates: Policy = Policy.SKIP
    verification: Level = Level.DIGEST
    retention: Time | None = None


class KeepRequest(Request):
    """How long a product is kept; what is not named stays as it is."""

    hold: Text | None = Field(default=None, description="reason of a hold; null lifts it")
    retention: Time | None = Field(default=None, description="date before which it is not removed")


class RemoveQuery(Request):
    """Why a product is removed."""

    cause: Text = Field(default="requested", description="kept in the tombstone")


class ListQuery(Request):
    """Which products to list."""

    state: Literal["available", "removing", "removed"] = "available"
    mission: Text | None = None
    product_type: Text | None = None
    name: Text | None = None
    name_prefix: Text | None = None
    sensing_from: Time | None = Field(default=None, description="sensed at or after")
    sensing_to: Time | None = Field(default=None, description="sensed at or before")
    created_from: Time | None = Field(default=None, description="available since")
    created_to: Time | None = Field(default=None, description="available before")
    cursor: Text | None = Field(default=None, description="``next`` of the page before")
    limit: int = Field(default=100, ge=1, le=1000)


class EventQuery(Request):
    """Which events to list."""

    after: int = Field(default=0, ge=0, lt=1 << 62, description="number of the last event known")
    limit: int = Field(default=100, ge=1, le=1000)


class FileQuery(Request):
    """How a file is to be handed out."""

    redirect: bool = Field(default=True, description="false: always through this service")


class FileHeader(BaseModel):
    """Headers of a request for a file."""

    prefer: str | None = Field(
        default=None,
        alias="Prefer",
        description="RFC 7240; with no-redirect the bytes come through this service",
    )

    @property
    def no_redirect(self) -> bool:
        """Whether the client asks for no redirect."""
        preferences = (self.prefer or "").split(",")
        return "no-redirect" in (item.partition(";")[0].strip().lower() for item in preferences)


class ArchiveQuery(Request):
    """How a product is packed."""

    format: Literal["tar", "zip"] = "tar"


class VerifyQuery(Request):
    """What is verified again."""

    manifest: bool = Field(default=False, description="compare with the product's manifest too")


class PurgeQuery(Request):
    """How to purge."""

    dry_run: bool = Field(default=False, description="only say what would be removed")


# -- answers -------------------------------------------------------------------------------------
class FileAnswer(BaseModel):
    """A file of a product."""

    path: str
    size: int = Field(description="bytes")
    sha256: str
    md5: str
    uri: str = Field(description="where the bytes are in the store")
    href: str = Field(description="where this service hands it out")


class ProductSummary(BaseModel):
    """A product, without its files."""

    id: str
    name: str
    generation: int
    state: str
    mission: str | None
    product_type: str | None
    sensing_start: datetime | None
    sensing_stop: datetime | None
    size: int = Field(description="bytes of all files")
    file_count: int
    digest: str | None = Field(description="SHA-256 over the list of files and their digests")
    verification: str
    registered: bool
    source: str | None
    created: datetime
    available: datetime | None
    retention: datetime | None
    hold: str | None
    removed: datetime | None
    removed_by: str | None
    removed_cause: str | None
    path: str = Field(description="directory in the facility's namespace")
    uri: str = Field(description="directory in the store")


class ProductAnswer(ProductSummary):
    """A product with its files."""

    files: list[FileAnswer]


class IngestAnswer(ProductAnswer):
    """A product, and what the ingest did."""

    result: Literal["created", "skipped", "replaced"]


class ProductPage(BaseModel):
    """A page of a listing."""

    products: list[ProductSummary]
    next: str | None = Field(description="cursor of the next page; null on the last")


class SessionAnswer(BaseModel):
    """An upload session."""

    id: str
    product_id: str
    name: str
    expires: datetime
    state: str
    files: list[FileAnswer]


class EventAnswer(BaseModel):
    """An event: what happened, sealed with the digest of the event before."""

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


class EventPage(BaseModel):
    """A page of events; ``next`` is what to ask ``after`` with the next time."""

    events: list[EventAnswer]
    next: int


class ChainAnswer(BaseModel):
    """Whether the event log is whole."""

    events: int = Field(description="how many events follow from each other")
    intact: bool
    first_broken: int | None


class CapacityAnswer(BaseModel):
    """How full a store is, in bytes; null where the store does not tell."""

    total: int | None
    free: int | None


class MountAnswer(BaseModel):
    """A store of the namespace."""

    path: str
    type: str
    uri: str
    capacity: CapacityAnswer
    problem: str | None


class UsageAnswer(BaseModel):
    """What is stored of one mission and type."""

    mission: str | None
    product_type: str | None
    products: int
    files: int
    bytes: int


class TierAnswer(BaseModel):
    """A tier, in bytes."""

    name: str
    total: int
    used: int


class StorageAnswer(BaseModel):
    """What is stored, where, how full."""

    profile: str
    mounts: list[MountAnswer]
    tiers: list[TierAnswer] = Field(description="of all cluster nodes together")
    usage: list[UsageAnswer]
    products: int
    bytes: int


class CacheRequest(Request):
    """What to do with the cached bytes of a product."""

    action: CacheVerb


class PlaceAnswer(BaseModel):
    """Cached bytes at one place."""

    node: str
    tier: str
    bytes: int


class FileCacheAnswer(BaseModel):
    """A file's cache; ``cached`` in per cent."""

    path: str
    size: int
    cached: int
    pinned: bool
    places: list[PlaceAnswer]


class CacheAnswer(BaseModel):
    """A product's cache; ``cached`` in per cent of its bytes."""

    cached: int
    files: list[FileCacheAnswer]


class NodeAnswer(BaseModel):
    """A node of the cluster."""

    name: str
    worker: str = Field(description="active, lost, or what the master calls it")
    proxy: Literal["up", "down"]
    balancer: Literal["up", "down"]
    tiers: list[TierAnswer]


class NodesAnswer(BaseModel):
    """The nodes of the cluster."""

    nodes: list[NodeAnswer]


class HealthAnswer(BaseModel):
    """Whether the service lives, or can work."""

    status: Literal["ok", "failing"]
    checks: dict[str, str | None] = Field(
        default_factory=dict, description="what is wrong with each part; null: nothing"
    )


# -- domain objects as answers -------------------------------------------------------------------
def product_summary(facility: Facility, product: ProductEntry) -> ProductSummary:
    """A product as answer."""
    return ProductSummary(
        id=product.id,
        name=product.name,
        generation=product.generation,
        state=product.state,
        mission=product.mission,
        product_type=product.product_type,
        sensing_start=product.sensing_start,
        sensing_stop=product.sensing_stop,
        size=product.size,
        file_count=product.file_count,
        digest=product.list_digest,
        verification=product.level,
        registered=product.registered,
        # What was ingested by an older version may have the secrets of its URI still.
        source=shown(product.source) if product.source is not None else None,
        created=product.created_at,
        available=product.available_at,
        retention=product.retention_until,
        hold=product.hold_reason,
        removed=product.removed_at,
        removed_by=product.removed_by,
        removed_cause=product.removed_cause,
        path=f"/{product.directory}",
        uri=facility.storage.uri(product.directory) if product.directory else "",
    )


def product_answer(
    facility: Facility, product: ProductEntry, files: Sequence[FileEntry]
) -> ProductAnswer:
    """A product with its files as answer."""
    base = f"/v1/products/{quote(product.id, safe='')}/files/"
    return ProductAnswer(
        **dict(product_summary(facility, product)),
        files=[file_answer(facility, file, base) for file in files],
    )


def file_answer(facility: Facility, file: FileEntry, base: str) -> FileAnswer:
    """A file as answer; ``base`` is where this service hands the product's files out."""
    return FileAnswer(
        path=file.path,
        size=file.size,
        sha256=file.sha256,
        md5=file.md5,
        uri=facility.storage.uri(file.key),
        href=base + quote(file.path),
    )


def session_answer(
    facility: Facility, upload: UploadEntry, product: ProductEntry, files: Sequence[FileEntry]
) -> SessionAnswer:
    """An upload session as answer."""
    base = f"/v1/uploads/{upload.id}/"
    return SessionAnswer(
        id=upload.id,
        product_id=product.id,
        name=product.name,
        expires=upload.expires_at,
        state=product.state,
        files=[file_answer(facility, file, base) for file in files],
    )


def event_answer(event: EventEntry) -> EventAnswer:
    """An event as answer."""
    return EventAnswer(**{name: getattr(event, name) for name in EventAnswer.model_fields})
