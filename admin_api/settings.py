"""All settings, in one class; every key documented here, an unknown key is an error.

Read from the TOML file that ``STORAGE_MANAGER_SETTINGS`` (or ``--settings``) names, overridden by
``STORAGE_MANAGER_<SECTION>__<KEY>`` in the environment.  Secrets are never values here: a setting
names the file that holds one.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from admin_api.errors import ConfigurationError

ENVIRONMENT_PREFIX = "STORAGE_MANAGER_"
# Read by the command line as a client, not settings of the service.
CLIENT_VARIABLES = {f"{ENVIRONMENT_PREFIX}{name}" for name in ("SETTINGS", "URL", "TOKEN_FILE")}

MIB = 1 << 20
GIB = 1 << 30

_SHORTEST_GRACE_SECONDS = 1.0


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PosixBackend(_Section):
    """A directory: local disk or an NFS mount."""

    type: Literal["posix"] = "posix"
    root: Path = Field(description="directory that holds the store; made if its parent exists")


class S3Backend(_Section):
    """A bucket of an S3 service (AWS, OTC OBS, Ceph, SeaweedFS...)."""

    type: Literal["s3"] = "s3"
    bucket: str
    prefix: str = Field(default="", description="keys begin with this; no slash at either end")
    endpoint: str | None = Field(default=None, description="URL of the service; none: AWS")
    public_endpoint: str | None = Field(
        default=None, description="URL that clients use in signed links; none: the endpoint"
    )
    region: str = "us-east-1"
    credentials_file: Path | None = Field(
        default=None,
        description="file in the AWS credentials format, profile [default]; re-read when it "
        "changes; none: the instance's role",
    )
    path_style: bool = Field(default=True, description="bucket in the path, not in the host name")
    signed_payload: bool = Field(
        default=False,
        description="sign a SHA-256 of every part (costs CPU; needed by few services)",
    )
    part_size: int = Field(default=5 * MIB, ge=5 * MIB, description="bytes of a multipart part")
    concurrency: int = Field(default=2, ge=1, le=64, description="parts in flight per object")
    timeout: float = Field(default=60.0, gt=0, description="seconds for one request")
    retry_seconds: float = Field(default=20.0, ge=0, description="how long a request is retried")


class AlluxioNode(_Section):
    """A cluster node: worker, proxy and balancer on one host."""

    name: str
    proxy: str = Field(description="URL of its Alluxio proxy")
    balancer: str = Field(description="URL of its balancer, as clients reach it")
    health: str = Field(description="URL that answers 200 while the balancer takes new clients")


class AlluxioBackend(_Section):
    """An Alluxio cluster over an under-store; the under-store is the truth, Alluxio a cache."""

    type: Literal["alluxio"] = "alluxio"
    understore: Annotated[PosixBackend | S3Backend, Field(discriminator="type")]
    masters: list[str] = Field(min_length=1, description="host:port of the masters, as in URIs")
    master_urls: list[str] = Field(min_length=1, description="URLs of the masters' web servers")
    nodes: list[AlluxioNode] = Field(min_length=1)
    link_key_file: Path = Field(
        description="lines of 'kid key', the newest first; the first one that all balancers have "
        "signs links (admin_api/keyfiles.py)"
    )
    ca_file: Path | None = Field(
        default=None,
        description="certificate of the balancers' authority, to try them as clients do; none: the "
        "system's authorities, and any name",
    )
    public_url: str = Field(
        default="",
        description="URL common to all balancers, for signed links; empty: the node's own, which "
        "spares a hop between nodes",
    )
    understore_links: bool = Field(
        default=False,
        description="answer with links of the under-store instead (a fast S3 close by needs no "
        "cache before it)",
    )
    timeout: float = Field(default=10.0, gt=0, description="seconds for one metadata request")


Backend = Annotated[PosixBackend | S3Backend | AlluxioBackend, Field(discriminator="type")]


class Mount(_Section):
    """One store in the namespace."""

    path: str = Field(default="", description="prefix in the namespace, no slashes at the ends")
    backend: Backend


class StorageSettings(_Section):
    """Which stores make the namespace; the longest matching mount path wins."""

    mounts: list[Mount] = Field(min_length=1)
    key_template: str = Field(
        default="{mission}/{type}/{yyyy}/{mm}/{dd}/{name}",
        description="directory of a product; must end with {name}",
    )
    unsorted_template: str = Field(
        default="unsorted/{name}", description="directory of a product whose name is not known"
    )
    links: bool = Field(
        default=True, description="answer file requests with signed links where the store can"
    )
    link_seconds: int = Field(default=900, ge=10, le=900, description="life of a signed link")
    escape_names: bool = Field(
        default=False,
        description="percent-encode characters of file names that the key grammar forbids, "
        "instead of refusing the product",
    )

    @field_validator("key_template", "unsorted_template")
    @classmethod
    def _ends_with_name(cls, value: str) -> str:
        if not value.endswith("{name}"):
            raise ValueError("must end with {name}, so that no two products share a directory")
        return value

    @field_validator("mounts")
    @classmethod
    def _distinct_paths(cls, value: list[Mount]) -> list[Mount]:
        if len({mount.path for mount in value}) != len(value):
            raise ValueError("two mounts have the same path")
        return value


class CatalogSettings(_Section):
    """The database that indexes the store."""

    url: str = Field(
        default="",
        description="SQLAlchemy URL without a password; empty: SQLite in the state directory",
    )
    password_file: Path | None = Field(
        default=None,
        description="file with the database password, read at every connection; of several lines "
        "the first one that the database takes counts: so it is changed without a restart",
    )
    pool_size: int = Field(default=10, ge=1)
    busy_seconds: float = Field(default=30.0, gt=0, description="how long to wait for a lock")


class Issuer(_Section):
    """Another issuer of tokens, known by its public keys."""

    issuer: str
    jwks_file: Path
    algorithm: Literal["RS256", "ES256"]


class AuthSettings(_Section):
    """Who may."""

    key_file: Path = Field(
        description="lines of 'kid key' (HS256, key of at least 32 bytes); the first one that all "
        "balancers have signs (admin_api/keyfiles.py)"
    )
    issuer: str = "storage-manager"
    audience: str = "storage-manager"
    leeway_seconds: int = Field(default=60, ge=0, le=60)
    issuers: list[Issuer] = Field(default_factory=list)
    public_docs: bool = Field(default=False, description="show the API description without a token")


class S3Source(_Section):
    """A bucket that products may be ingested from."""

    backend: S3Backend
    prefixes: list[str] = Field(
        default_factory=lambda: [""], description="key prefixes that are allowed; '' allows all"
    )


class SourceSettings(_Section):
    """Where products may be ingested from; nothing else is read."""

    file_roots: list[Path] = Field(default_factory=list)
    s3: list[S3Source] = Field(default_factory=list)
    origins: list[str] = Field(
        default_factory=list, description="allowed web origins, e.g. https://data.example.org"
    )
    private_networks: list[str] = Field(
        default_factory=list,
        description="loopback, link-local or private networks (CIDR) that origins may resolve to",
    )
    ca_file: Path | None = Field(default=None, description="CA bundle for https sources")
    timeout: float = Field(default=60.0, gt=0, description="seconds without a byte")
    redirects: int = Field(default=3, ge=0, le=10)
    connections_per_origin: int = Field(
        default=4,
        ge=1,
        le=64,
        description="connections to one web server at once, for each process and all its ingests",
    )
    attempts: int = Field(
        default=5,
        ge=1,
        le=20,
        description="tries of one request to a web server, and tries to go on with a body in vain",
    )
    retry_after_seconds: float = Field(
        default=120.0,
        ge=0,
        description="longest wait that a web server's Retry-After is granted; one that asks for "
        "more fails the ingest",
    )


class StagingSettings(_Section):
    """Files as paths, for processors that need one (``services/staging.py``)."""

    directory: Path | None = Field(
        default=None,
        description="cache of files whose bytes lie in no directory, seen by the processors under "
        "the same path; must be on a file system that keeps nanoseconds; none: only what lies in "
        "a directory can be staged",
    )
    in_place: bool = Field(
        default=True,
        description="of what lies in a directory (posix mounts, file roots) hand out the path "
        "itself; false: a copy in the cache, for processors that do not see the store",
    )
    max_bytes: int | None = Field(
        default=None,
        gt=0,
        description="size of the cache; none: that of its file system",
    )
    high_percent: int = Field(
        default=85, ge=1, le=100, description="fuller than this, the longest unused files go"
    )
    low_percent: int = Field(default=75, ge=0, le=100, description="until it is this full")
    keep_seconds: float = Field(
        default=600.0,
        ge=0,
        description="a file that was handed out is not evicted for so long, leased or not",
    )
    fills: int = Field(
        default=4,
        ge=1,
        le=64,
        description="files copied into the cache at once, by one process; each takes the reading "
        "buffers of its store besides limits.payload_memory_bytes",
    )
    wait_seconds: float = Field(
        default=300.0,
        gt=0,
        description="how long a request waits for a file that another one is having copied, "
        "counted from the beginning of the copy",
    )
    waiters: int = Field(
        default=256, ge=1, le=4096, description="requests of one process that wait at once"
    )
    lease_seconds: int = Field(default=3600, ge=1, description="life of a lease that asks for none")
    max_lease_seconds: int = Field(default=86400, ge=1, description="longest life of a lease")

    @model_validator(mode="after")
    def _watermarks_in_order(self) -> StagingSettings:
        if self.low_percent >= self.high_percent:
            raise ValueError("low_percent must be below high_percent")
        return self


class ProseoSettings(_Section):
    """The wire contract of prosEO's storage manager, beneath ``/proseo/storage-mgr``."""

    enabled: bool = Field(default=False, description="answer there at all")
    mount: str = Field(default="", description="path of the mount that is prosEO's default storage")
    accept: list[Literal["token", "basic", "certificate"]] = Field(
        default=["token"],
        description="how callers may say who they are; /products/download has its own tokens",
    )
    callers_file: Path | None = Field(
        default=None,
        description="lines 'NAME SECRET SCOPES [MISSIONS]' (docs/proseo.md): SECRET is what "
        "`storage-manager proseo-caller` makes of a password, or 'certificate'",
    )
    certificate_header: str = Field(
        default="X-SSL-Client-CN",
        description="header with the common name of a client certificate that the proxy verified",
    )
    proxies: list[str] = Field(
        default_factory=list,
        description="addresses (CIDR) of the proxies whose certificate_header is believed",
    )
    secret_file: Path | None = Field(
        default=None,
        description="file with the secret of download tokens (proseo.storageManager.secret, the "
        "same as the Ingestor's); none: no download token is accepted",
    )
    weak_secret: bool = Field(
        default=False,
        description="accept a secret of fewer than 16 characters, where the Ingestor's cannot be "
        "changed yet",
    )
    joborder_prefix: str = Field(
        default="joborders", description="job orders lie beneath this in the default storage"
    )
    moves: int = Field(
        default=8,
        ge=1,
        le=256,
        description="ingests and outputs of processors that one process takes in at once; others "
        "wait, because these callers do not come again",
    )


class LimitSettings(_Section):
    """Bounds (promise I8)."""

    max_file_bytes: int = Field(default=64 * GIB, gt=0)
    max_product_bytes: int = Field(default=256 * GIB, gt=0)
    max_product_files: int = Field(default=100_000, gt=0)
    max_request_bytes: int = Field(default=8 * MIB, gt=0, description="JSON bodies")
    max_archive_ratio: int = Field(default=200, gt=0, description="unpacked bytes per archive byte")
    max_retention_days: int = Field(
        default=3660,
        gt=0,
        description="how far ahead an ingest may set a product's retention date; administrators "
        "may go further",
    )
    max_spool_bytes: int = Field(
        default=16 * GIB,
        ge=0,
        description="local disk, in the state directory, that one process may take for zips that "
        "are being received: a zip's end must be known before its beginning is believed",
    )
    parallel_files: int = Field(
        default=8, ge=1, le=64, description="files of one product copied at once"
    )
    payload_memory_bytes: int = Field(
        default=52 * MIB,
        ge=16 * MIB,
        description="payload that one process has in memory, of all that it does at once; who "
        "finds no room is told to come again",
    )
    open_sources: int = Field(
        default=32,
        ge=4,
        le=1024,
        description="files that one process copies or checks by reference at once, of all "
        "products; each has a thread",
    )
    transfer_idle_seconds: float = Field(
        default=60.0, gt=0, description="a body or download without a byte for so long ends"
    )
    transfer_min_rate: int = Field(
        default=1024, ge=0, description="bytes per second that an upload must reach on average"
    )


class HousekeepingSettings(_Section):
    """Clearing what crashes leave behind (promises I7 and I12)."""

    interval_seconds: float = Field(default=60.0, gt=0)
    grace_seconds: float = Field(
        default=3600.0,
        description="an ingest without a sign of life for so long is cleared; 1 or more",
    )
    commit_grace_seconds: float = Field(
        default=30.0,
        description="a commit older than this is finished or undone, and a request without a sign "
        "of life for so long is taken over; 1 or more",
    )
    upload_seconds: float = Field(default=86400.0, gt=0, description="life of an upload session")
    failed_seconds: float = Field(
        default=86400.0, gt=0, description="how long failed attempts are remembered"
    )
    idempotency_seconds: float = Field(
        default=86400.0, gt=0, description="how long Idempotency-Key answers are kept"
    )
    incoming_seconds: float = Field(
        default=7 * 86400.0,
        gt=0,
        description="what lies in the incoming area for so long without becoming a product goes",
    )

    @field_validator("grace_seconds", "commit_grace_seconds")
    @classmethod
    def _outlasts_signs_of_life(cls, value: float) -> float:
        if value < _SHORTEST_GRACE_SECONDS:
            raise ValueError(
                f"{value} seconds are shorter than work that is alive may stay silent: it would be "
                f"given up while it runs. Set at least {_SHORTEST_GRACE_SECONDS} seconds, or leave "
                "the setting out."
            )
        return value

    @property
    def beat_seconds(self) -> float:
        """Seconds between two signs of life: several fit into the shorter of the grace times."""
        grace = min(self.grace_seconds, self.commit_grace_seconds)
        return min(max(grace, _SHORTEST_GRACE_SECONDS) / 4, 5.0)


class JobSettings(_Section):
    """Bulk jobs: how much of them a worker does at once."""

    chunks: int = Field(
        default=2, ge=0, le=32, description="chunks that one worker runs at once; 0: none"
    )
    parallel_items: int = Field(
        default=16, ge=1, le=64, description="items of one chunk that are done at once"
    )
    chunk_items: int = Field(
        default=500, ge=1, le=1000, description="items that are taken and given back together"
    )
    chunk_bytes: int = Field(
        default=8 * GIB,
        gt=0,
        description="announced bytes after which a chunk has enough items; an item of which none "
        "are announced counts as a hundredth of it",
    )
    max_line_bytes: int = Field(
        default=MIB, ge=1024, le=64 * MIB, description="longest line of a manifest"
    )
    attempts: int = Field(
        default=6,
        ge=1,
        le=20,
        description="tries of an item that fails for what passes (a store that is away, a name "
        "that somebody else is ingesting), with growing pauses",
    )
    keep_seconds: float = Field(
        default=90 * 86400.0, gt=0, description="how long jobs that have ended can be looked at"
    )


class ServerSettings(_Section):
    """The HTTP server."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=9180, ge=0, le=65535)
    processes: int = Field(default=1, ge=1, le=64)
    threads: int = Field(
        default=32,
        ge=4,
        le=512,
        description="requests that one process serves at once; each class of them (control, "
        "uploads, downloads, ingests) has an eighth for itself, and health needs none",
    )
    worker: bool = Field(
        default=True,
        description="run the worker (housekeeping, gauges) with the server; a facility has a unit "
        "of its own for it",
    )
    max_connections: int = Field(default=10_000, ge=100)
    header_seconds: float = Field(default=10.0, gt=0, description="time for a request's headers")
    idle_seconds: float = Field(default=15.0, gt=0, description="life of an idle connection")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class Settings(BaseSettings):
    """Everything an operator can set."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__"
    )

    state_dir: Path = Field(description="catalog (SQLite), metrics and other local state")
    storage: StorageSettings
    auth: AuthSettings
    catalog: CatalogSettings = CatalogSettings()
    sources: SourceSettings = SourceSettings()
    limits: LimitSettings = LimitSettings()
    staging: StagingSettings = StagingSettings()
    proseo: ProseoSettings = ProseoSettings()
    housekeeping: HousekeepingSettings = HousekeepingSettings()
    jobs: JobSettings = JobSettings()
    server: ServerSettings = ServerSettings()

    @model_validator(mode="after")
    def _sqlite_by_default(self) -> Settings:
        if not self.catalog.url:
            url = f"sqlite:///{self.state_dir / 'catalog.sqlite'}"
            object.__setattr__(self, "catalog", self.catalog.model_copy(update={"url": url}))
        return self

    @model_validator(mode="after")
    def _proseo_has_what_it_needs(self) -> Settings:
        wanted = self.proseo
        if not wanted.enabled:
            return self
        if wanted.mount not in {mount.path for mount in self.storage.mounts}:
            raise ValueError(f"proseo.mount {wanted.mount!r} is the path of no mount")
        named = {"basic", "certificate"} & set(wanted.accept)
        if named and wanted.callers_file is None:
            raise ValueError(f"proseo.accept has {min(named)!r}, which needs proseo.callers_file")
        if "certificate" in wanted.accept and not wanted.proxies:
            raise ValueError("proseo.accept has 'certificate', which needs proseo.proxies")
        return self

    @property
    def profile(self) -> str:
        """The profile, read off the mounts: ``alluxio``, ``posix``, ``s3`` or ``s3_nfs``."""
        kinds: set[str] = {mount.backend.type for mount in self.storage.mounts}
        if "alluxio" in kinds:
            return "alluxio"
        return "s3_nfs" if kinds == {"posix", "s3"} else kinds.pop()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then the file (given as keyword arguments by :func:`load`)."""
        return env_settings, init_settings


def load(path: Path | None = None) -> Settings:
    """Read the settings from ``path`` or the file that ``STORAGE_MANAGER_SETTINGS`` names.

    Raises ConfigurationError with every wrong key, what is wrong with it and where.
    """
    if path is None:
        named = os.environ.get(f"{ENVIRONMENT_PREFIX}SETTINGS")
        if not named:
            raise ConfigurationError(
                "No settings: name the settings file with --settings or STORAGE_MANAGER_SETTINGS."
            )
        path = Path(named)
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"Cannot read the settings file {path}: {error.strerror}."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The settings file {path} is not valid TOML: {error}.") from error
    _refuse_unknown_variables()
    try:
        return Settings(**values)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors(include_input=False, include_url=False)
        ]
        raise ConfigurationError(f"Wrong settings in {path}:\n" + "\n".join(lines)) from error


def _refuse_unknown_variables() -> None:
    """A misspelt variable must not be silently without effect."""
    known = {name.upper() for name in Settings.model_fields}
    for name in os.environ:
        if name.startswith(ENVIRONMENT_PREFIX) and name not in CLIENT_VARIABLES:
            section = name.removeprefix(ENVIRONMENT_PREFIX).split("__")[0]
            if section not in known:
                raise ConfigurationError(
                    f"The environment variable {name} names no setting; "
                    f"known sections: {', '.join(sorted(known))}."
                )
