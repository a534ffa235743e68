"""How keys and storages are named on the wire (contract, 6), and what requests say.

Called by ``views``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import unquote, unquote_plus

from flask import request
from pydantic import BaseModel, BeforeValidator, ConfigDict

from admin_api.services.facility import Facility
from admin_api.settings import AlluxioBackend, PosixBackend, S3Backend

S3, POSIX = "S3", "POSIX"


def _text(value: object) -> object:
    """Jackson takes numbers and truth values for texts, too."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


Text = Annotated[str | None, BeforeValidator(_text)]


class _Request(BaseModel):
    """Unknown members are ignored, every member may be null or missing (contract, 1)."""

    model_config = ConfigDict(extra="ignore")


class IngestRequest(_Request):
    """What ``POST /products`` is given."""

    productId: Text = None  # noqa: N815 # the contract's name
    sourceStorageType: Text = None  # noqa: N815 # the contract's name
    sourceFilePaths: list[Annotated[str, BeforeValidator(_text)]] | None = None  # noqa: N815 # the contract's name
    targetStorageId: Text = None  # noqa: N815 # the contract's name
    targetStorageType: Text = None  # noqa: N815 # the contract's name
    registeredFilePath: Text = None  # noqa: N815 # the contract's name
    registered: bool | None = None
    registeredFilesCount: int | None = None  # noqa: N815 # the contract's name
    registeredFilesList: list[Annotated[str, BeforeValidator(_text)]] | None = None  # noqa: N815 # the contract's name
    deleted: bool | None = None
    message: Text = None


class JobOrderRequest(_Request):
    """What ``POST /joborders`` is given."""

    jobOrderStringBase64: Text = None  # noqa: N815 # the contract's name
    uploaded: bool | None = None
    fsType: Text = None  # noqa: N815 # the contract's name
    pathInfo: Text = None  # noqa: N815 # the contract's name
    message: Text = None


def backend(facility: Facility) -> PosixBackend | S3Backend:
    """The default storage, beneath a cache or not."""
    settings = facility.settings
    found = next(
        mount.backend for mount in settings.storage.mounts if mount.path == settings.proseo.mount
    )
    return found.understore if isinstance(found, AlluxioBackend) else found


def storage_type(facility: Facility) -> str:
    """``S3`` or ``POSIX``."""
    return S3 if isinstance(backend(facility), S3Backend) else POSIX


def path_of(facility: Facility, key: str) -> str:
    """A key as clients know it: ``s3://bucket/key`` or an absolute path."""
    return unquote(facility.storage.place(key)).removeprefix("file://")


def root_of(facility: Facility) -> str:
    """The path of the default storage itself, without a slash at its end."""
    mount = facility.settings.proseo.mount
    return path_of(facility, f"{mount}/x" if mount else "x").removesuffix("/x")


def folder(product_id: str) -> str:
    """The directory of a new product in the default storage (6.1): unpadded, in UTC."""
    now = datetime.now(UTC)
    return f"{now.year}/{now.month}/{now.day}/{now.hour}/{product_id}"


def path_candidates() -> list[str]:
    """What ``pathInfo`` can mean, the literal reading first (D22).

    Clients leave ``+`` as it is where they should escape it, and some escape twice.
    """
    literal = request.args.get("pathInfo", "")
    raw = next(
        (
            value
            for name, _, value in (
                item.partition("=") for item in request.query_string.decode("latin-1").split("&")
            )
            if name == "pathInfo"
        ),
        "",
    )
    found = [literal, unquote(raw), unquote(literal), unquote_plus(literal)]
    return list(dict.fromkeys(found))


def java_time(moment: datetime) -> str:
    """A time as Java's ``Date`` writes it."""
    return f"{moment.astimezone(UTC):%a %b %d %H:%M:%S UTC %Y}"


def whole_number(value: Any) -> int | None:
    """A 64-bit integer of the query; None for what is none."""
    try:
        found = int(str(value).strip())
    except ValueError:
        return None
    return found if -(1 << 63) <= found < 1 << 63 else None
