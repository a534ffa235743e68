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
from admin_api.catalog.jobs import ItemEntry
from admin_api.services.caching import CacheVerb
from admin_api.services.facility import Facility
from admin_api.services.jobs import Report
from admin_api.services.leases import LeaseEntry
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


_OTHER_DIGESTS: Any = Field(
    default_factory=dict,
    max_length=8,
    description="by other algorithms, by their names: SHA3-256, BLAKE3, SHA-512...; in hexadecimal",
)


class FileReference(Request):
    """A file of a product, by reference."""

    path: Text = Field(description="path inside the product")
    source: Uri = Field(description="URI of the file")
    size: Size | None = None
    sha256: Sha256 | None = None
    md5: Md5 | None = None
    digests: dict[str, str] = _OTHER_DIGESTS


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
    digests: dict[str, str] = _OTHER_DIGESTS


class ImportOptions(Request):
    """What an import wants for all of its items; an item may say otherwise of itself."""

    mode: Literal["copy", "register"] = "copy"
    duplicates: Policy = Policy.SKIP
    verification: Level = Level.DIGEST
    retention: Time | None = Field(default=None, description="not removed before, purged after")
    strays: Literal["ingest", "skip", "fail"] = Field(
        default="ingest", description="files of a searched source that are not called as products"
    )
    concurrency: int | None = Field(
        default=None, ge=1, le=1000, description="items at once in the whole facility"
    )
    priority: int = Field(default=0, ge=-100, le=100, description="higher ones first")
    dry_run: bool = Field(default=False, description="only say what would happen to each item")


class ImportRequest(ImportOptions):
    """An import by a list of items, or of what is beneath a source."""

    items: list[Any] | None = Field(
        default=None, description="each as a line of a manifest: an object, a URL, a STAC item"
    )
    source: Uri | None = Field(
        default=None, description="directory (file:) or prefix (s3:) whose products are imported"
    )


class RemovalOptions(Request):
    """What a removal wants for all of its items."""

    cause: Text = Field(default="requested", description="kept in the tombstones")
    concurrency: int | None = Field(default=None, ge=1, le=1000)
    priority: int = Field(default=0, ge=-100, le=100, description="higher ones first")
    dry_run: bool = Field(default=False, description="only say what would happen to each item")


class RemovalItem(Request):
    """A product to remove: by id or by name."""

    id: Text | None = None
    name: Text | None = None


class RemovalFilter(Request):
    """Which products to remove; they must meet all that is named."""

    mission: Text | None = None
    product_type: Text | None = None
    name_prefix: Text | None = None
    sensing_from: Time | None = Field(default=None, description="sensed at or after")
    sensing_to: Time | None = Field(default=None, description="sensed at or before")
    created_from: Time | None = Field(default=None, description="available since")
    created_to: Time | None = Field(default=None, description="available before")


class RemovalRequest(RemovalOptions):
    """A removal by a list of products, or by a filter."""

    items: list[Any] | None = Field(
        default=None, description="each as a line of a manifest: an object, or an id"
    )
    filter: RemovalFilter | None = None


class JobPath(BaseModel):
    """The job that is meant."""

    job_id: str = Field(description="id of the job")


class JobQuery(Request):
    """Which jobs to list."""

    state: Literal["receiving", "running", "paused", "cancelling", "done", "cancelled"] | None = (
        None
    )
    kind: Literal["import", "removal"] | None = None
    subject: Text | None = Field(default=None, description="whose; only administrators see others'")
    created_from: Time | None = None
    created_to: Time | None = None
    cursor: Text | None = Field(default=None, description="``next`` of the page before")
    limit: int = Field(default=100, ge=1, le=1000)


class JobItemsQuery(Request):
    """Which items of a job to list."""

    outcome: Literal["queued", "done", "skipped", "failed", "cancelled"] | None = Field(
        default=None,
        description="those that have ended like this, in the order in which they did; without: all "
        "by number",
    )
    after: int = Field(default=0, ge=0, lt=1 << 62, description="``next`` of the answer before")
    limit: int | None = Field(default=None, ge=1, description="default: all")


class ProcessPath(BaseModel):
    """The process that is meant."""

    process_id: str = Field(description="import or remove")


class Execution(BaseModel):
    """An execution of a process; what else the standard has besides inputs means nothing here."""

    inputs: dict[str, Any] = Field(description="as the body of POST /v1/imports or /v1/removals")


class OgcJobsQuery(BaseModel):
    """How many jobs to list."""

    limit: int = Field(default=100, ge=1, le=1000)


class RetryQuery(Request):
    """Which failed items to queue again."""

    code: list[Text] = Field(default_factory=list, description="only those that failed of this")


class IdempotencyHeader(BaseModel):
    """Headers of requests that may be repeated."""

    idempotency_key: str | None = Field(default=None, alias="Idempotency-Key", max_length=200)


class UploadHeader(IdempotencyHeader):
    """Headers of payload."""

    repr_digest: str | None = Field(
        default=None, alias="Repr-Digest", description="RFC 9530, e.g. sha-256=:...:"
    )
    content_md5: str | None = Field(default=None, alias="Content-Md5", description="RFC 1864")


class TusHeader(BaseModel):
    """What every request of the tus protocol says."""

    tus_resumable: str | None = Field(
        default=None, alias="Tus-Resumable", description="version of the protocol: 1.0.0"
    )


class TusCreateHeader(TusHeader):
    """The announcement of a file that is sent in pieces."""

    upload_length: str | None = Field(
        default=None, alias="Upload-Length", description="bytes of the file"
    )
    upload_metadata: str | None = Field(
        default=None,
        alias="Upload-Metadata",
        description="`filename BASE64`, and `sha256 BASE64`, `md5 BASE64` of their hexadecimal",
    )


class TusPieceHeader(TusHeader):
    """A piece of a file."""

    upload_offset: str | None = Field(
        default=None, alias="Upload-Offset", description="where in the file it begins"
    )


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
    order: Literal["asc", "desc"] = Field(default="asc", description="desc: the last ones first")
    cursor: Text | None = Field(default=None, description="``next`` of the page before")
    limit: int = Field(default=100, ge=1, le=1000)


class EventQuery(Request):
    """Which events to list."""

    after: int = Field(default=0, ge=0, lt=1 << 62, description="number of the last event known")
    before: int | None = Field(
        default=None, ge=0, lt=1 << 62, description="only events with a lower number"
    )
    mission: Text | None = None
    product_id: Text | None = None
    order: Literal["asc", "desc"] = Field(default="asc", description="desc: the newest first")
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
    """A page of events; ``next`` is the next ``after`` (with order=desc the next ``before``)."""

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


class StagedFileRequest(Request):
    """A file of a product."""

    product: Text = Field(description="id of the product")
    path: Text = Field(description="path of the file inside the product")


LeaseSeconds = Annotated[
    int | None, Field(ge=1, le=1 << 31, description="none: as the settings say")
]


class StageRequest(Request):
    """What is to be had as paths, and for how long."""

    products: list[Text] = Field(default_factory=list, max_length=1000, description="whole ones")
    files: list[StagedFileRequest] = Field(default_factory=list, max_length=10_000)
    lease_seconds: LeaseSeconds = None


class RenewRequest(Request):
    """For how long a lease goes on."""

    lease_seconds: LeaseSeconds = None


class LeasePath(BaseModel):
    """The lease that is meant."""

    lease_id: str = Field(description="id of the lease")


class LeaseAnswer(BaseModel):
    """A lease: until it ends its products are not removed and staged files stay."""

    lease: str
    expires_at: datetime
    products: list[str]


class StagedFileAnswer(BaseModel):
    """A staged file and where processors read it."""

    product: str
    path: str
    size: int
    sha256: str
    local_path: str


class StageAnswer(LeaseAnswer):
    """A lease and what it was taken for."""

    files: list[StagedFileAnswer]


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


def lease_answer(lease: LeaseEntry) -> LeaseAnswer:
    """A lease as it is shown."""
    return LeaseAnswer(lease=lease.id, expires_at=lease.expires_at, products=list(lease.products))


class ItemError(BaseModel):
    """One of the first items that failed of something."""

    item: int = Field(description="its number: the line of the manifest")
    detail: str


class JobErrors(BaseModel):
    """The items that failed of one thing."""

    code: str
    count: int
    first: list[ItemError]


class JobProblem(BaseModel):
    """Why not all items could be told."""

    code: str
    detail: str


class JobAnswer(BaseModel):
    """A job and how far it is."""

    id: str
    kind: Literal["import", "removal"]
    state: Literal["receiving", "running", "paused", "cancelling", "done", "cancelled"]
    subject: str
    priority: int
    concurrency: int | None
    options: dict[str, Any]
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    received: int = Field(description="items told so far; all once the state is not receiving")
    queued: int
    running: int = Field(description="items of the chunks that workers have now")
    done: int
    skipped: int
    failed: int
    cancelled: int
    bytes: int = Field(description="of the products of the items that are done")
    expected_bytes: int = Field(description="announced of all items")
    items_per_second: float | None = Field(description="mean since the job was begun")
    bytes_per_second: float | None
    eta_seconds: float | None = Field(description="until the items told so far have ended")
    problem: JobProblem | None = Field(description="why not all items could be told")
    errors: list[JobErrors] = Field(description="failed items by code, the most frequent first")
    href: str


class JobPage(BaseModel):
    """A page of jobs, the newest first."""

    jobs: list[JobAnswer]
    next: str | None = Field(description="cursor of the next page; null at the end")


class RetryAnswer(JobAnswer):
    """The job, with how many of its items are queued again."""

    retried: int


def job_answer(report: Report) -> JobAnswer:
    """A job as it is told."""
    job = report.job
    ended = job.done + job.skipped + job.failed + job.dropped
    items_per_second = bytes_per_second = eta = None
    if job.started_at is not None:
        seconds = max(((job.ended_at or report.now) - job.started_at).total_seconds(), 1e-3)
        items_per_second = round(ended / seconds, 3)
        bytes_per_second = round(job.bytes / seconds, 1)
        if ended and job.ended_at is None:
            eta = round(job.open * seconds / ended, 1)
    state: Any = job.state
    if job.ended_at is None and (job.cancelled or job.paused):
        state = "cancelling" if job.cancelled else "paused"
    options = dict(job.options)
    if options.get("source"):
        options["source"] = shown(options["source"])
    kind: Any = job.kind
    return JobAnswer(
        id=job.id,
        kind=kind,
        state=state,
        subject=job.subject,
        priority=job.priority,
        concurrency=job.concurrency,
        options=options,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        received=job.received,
        queued=max(job.open - report.running, 0),
        running=min(report.running, job.open),
        done=job.done,
        skipped=job.skipped,
        failed=job.failed,
        cancelled=job.dropped,
        bytes=job.bytes,
        expected_bytes=job.expected_bytes,
        items_per_second=items_per_second,
        bytes_per_second=bytes_per_second,
        eta_seconds=eta,
        problem=JobProblem(**job.problem) if job.problem else None,
        errors=[
            JobErrors(code=code, **entry)
            for code, entry in sorted(job.errors.items(), key=lambda pair: -pair[1]["count"])
        ],
        href=f"/v1/jobs/{job.id}",
    )


def job_item(item: ItemEntry) -> dict[str, Any]:
    """An item of a job as a line of its report."""
    return {
        "type": "item",
        "number": item.number,
        "sequence": item.sequence,
        "item": item.label,
        "outcome": item.state,
        "result": item.result,
        "code": item.code,
        "detail": item.detail,
        "retryable": item.retryable,
        "product": item.product_id,
        "bytes": item.bytes,
        "ended_at": item.ended_at.isoformat() if item.ended_at else None,
    }


# -- OGC API - Processes -------------------------------------------------------------------------
class Conformance(BaseModel):
    """Conformance classes."""

    conformsTo: list[str]  # noqa: N815 # the standard's name


class Process(BaseModel):
    """A process, with inputs and outputs where it is described."""

    model_config = ConfigDict(extra="allow")

    id: str
    version: str
    links: list[dict[str, str]]


class ProcessList(BaseModel):
    """The processes."""

    processes: list[Process]
    links: list[dict[str, str]]


class StatusInfo(BaseModel):
    """The status of a job."""

    model_config = ConfigDict(extra="allow")

    jobID: str  # noqa: N815 # the standard's name
    processID: str  # noqa: N815 # the standard's name
    type: Literal["process"]
    status: Literal["accepted", "running", "successful", "failed", "dismissed"]
    message: str
    progress: int
    links: list[dict[str, str]]


class StatusList(BaseModel):
    """The statuses of jobs."""

    jobs: list[StatusInfo]
    links: list[dict[str, str]]


class Results(BaseModel):
    """What came of a job."""

    report: JobAnswer
    items: dict[str, str] = Field(description="link to a line for each item")
