"""Bodies and errors in the forms of the contract (1.1, 1.2): fixed members, ``Warning`` headers.

Called by ``views``.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from flask import Response, request
from werkzeug.exceptions import HTTPException

from admin_api import errors
from admin_api.errors import StorageManagerError

log = logging.getLogger(__name__)

#: nginx lets a header have so many bytes.
_MAX_WARNING = 1000
_TEXTS = {
    "E5501": "Internal Storage Manager  Error: {0}",  # two blanks, as they have always been
    "E5502": "Invalid path: {0}",
    "E5504": "File not found: {0}",
    "E5512": "Attribute jobOrderStringBase64 is not Base64-encoded",
    "E5522": "Cannot create job order file {0}. Unexpected error",
    "E5523": "Cannot get job order file: {0}, {1}",
    "E5531": "Authentication missing or not accepted: {0}",
    "E5532": "Authentication token invalid, Error: {0}",
    "E5533": "Authentication token expired at: {0}",
    "E5534": "Authentication token not valid for file: {0}",
    "E5555": "Product file cannot be downloaded: {0}",
    "E5561": "Read for file {0} timed out after {1} seconds. Error {2}",
}
#: Statuses of errors whose cause is the caller's; everything else is 500; of GET
#: productfiles 503 means E5561 and nothing else.
_STATUSES: tuple[tuple[type[StorageManagerError], int], ...] = (
    (errors.Unauthorized, 401),
    (errors.Forbidden, 403),
    (errors.SourceDenied, 403),
    (errors.NotFound, 404),
    (errors.Gone, 404),
    (errors.InvalidKey, 400),
    (errors.InvalidRequest, 400),
    (errors.SizeMismatch, 422),
    (errors.DigestMismatch, 422),
    (errors.Held, 409),
    (errors.Retained, 409),
    (errors.Leased, 409),
    (errors.ProductExists, 409),
    (errors.InProgress, 409),
    (errors.TooLarge, 413),
    (errors.NoSpace, 507),
    (errors.StagingTimeout, 503),
    (errors.Busy, 503),
)


@dataclass(frozen=True, slots=True)
class ProductFS:
    """What became of files (``productFS.raml``); unset members are null."""

    productId: str = ""  # noqa: N815 # the contract's name
    sourceStorageType: str | None = None  # noqa: N815 # the contract's name
    sourceFilePaths: list[str] = field(default_factory=list)  # noqa: N815 # the contract's name
    targetStorageId: str | None = None  # noqa: N815 # the contract's name
    targetStorageType: str | None = None  # noqa: N815 # the contract's name
    registeredFilePath: str | None = None  # noqa: N815 # the contract's name
    registered: bool = False
    registeredFilesCount: int | None = None  # noqa: N815 # the contract's name
    registeredFilesList: list[str] = field(default_factory=list)  # noqa: N815 # the contract's name
    deleted: bool = False
    message: str | None = None


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file (``fileinfo.raml``)."""

    storageType: str  # noqa: N815 # the contract's name
    filePath: str  # noqa: N815 # the contract's name
    fileName: str  # noqa: N815 # the contract's name
    fileSize: int  # noqa: N815 # the contract's name


@dataclass(frozen=True, slots=True)
class JobOrder:
    """A job order (``joborderBase64.raml``)."""

    jobOrderStringBase64: str  # noqa: N815 # the contract's name
    uploaded: bool
    fsType: str | None  # noqa: N815 # the contract's name
    pathInfo: str | None  # noqa: N815 # the contract's name
    message: str | None


def json_reply(body: Any, status: int = 200) -> Response:
    """A body of exactly the members of its class."""
    return Response(json_text(body), status, content_type="application/json")


def json_text(body: Any) -> bytes:
    """What ``json_reply`` sends."""
    names = getattr(body, "__dataclass_fields__", None)
    plain = body if names is None else {name: getattr(body, name) for name in names}
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def text_of(code: str, *values: object) -> str:
    """A message of the catalogue with its code: ``(E5501) ...``."""
    return f"({code}) " + _TEXTS[code].format(*values)


def warn(response: Response, text: str) -> Response:
    """``response`` with the header in which clients look for what is wrong."""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text).strip()
    plain = plain.encode("latin-1", "replace").decode("latin-1")
    response.headers["Warning"] = f"199 proseo-storage-mgr {plain}"[:_MAX_WARNING]
    return response


def failure(status: int, text: str) -> Response:
    """An error with its text in header and body: some clients log the one, some the other."""
    body = text.encode("utf-8", "replace")
    return warn(Response(body, status, content_type="text/plain;charset=UTF-8"), text)


def status_of(error: StorageManagerError) -> int:
    """The status of an error of ours."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def of_error(error: StorageManagerError, code: str = "E5501") -> Response:
    """An error of ours as answer, by default with the code of everything that has no other."""
    status = status_of(error)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.SERVICE_UNAVAILABLE:
        log.error("request failed: %s", error.detail, exc_info=error, extra={"code": error.code})
    else:
        log.info("request refused: %s", error.detail, extra={"code": error.code})
    if status == HTTPStatus.UNAUTHORIZED:
        code = "E5531"
    return failure(status, text_of(code, error.detail))


def of_framework(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """An error in the request's form: the body as Spring has it, and the header besides."""
    now = datetime.now(UTC)
    body = {
        "timestamp": f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03}+00:00",
        "status": status,
        "error": HTTPStatus(status).phrase,
        "path": request.path,
    }
    response = warn(json_reply(body, status), text_of("E5501", text))
    response.headers.update(headers or {})
    return response


def of_http(error: HTTPException) -> Response:
    """An error that the framework has raised."""
    status = error.code or 500
    kept = {name: value for name, value in error.get_headers() if name == "Allow"}
    return of_framework(status, error.description or HTTPStatus(status).phrase, kept)
