"""The endpoints of the contract (section 2): products, product files, job orders, info, health."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from flask import Blueprint, Response, g, request
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from admin_api import errors
from admin_api.errors import StorageManagerError
from admin_api.services import fetching, gathering, joborders, paths
from admin_api.services.access import Scope
from admin_api.services.paths import Located
from admin_api.services.transfers import Kind, Need
from admin_api.settings import S3Backend
from admin_api.web.proseo import replies, wire
from admin_api.web.proseo.downloads import download
from admin_api.web.proseo.entry import challenge, enter, facility, principal
from admin_api.web.proseo.hits import FAILED
from admin_api.web.proseo.replies import FileInfo, JobOrder, ProductFS, json_reply
from admin_api.web.proseo.slashes import PREFIX

log = logging.getLogger(__name__)

api = Blueprint("proseo", __name__)

_BASE = f"{PREFIX}/<version>"
#: The whole grammar of a job order: standard alphabet, padded, no line breaks (2.8).
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_METHODS = {
    "info": "GET",
    "products": "GET, POST, DELETE",
    "products/download": "GET",
    "productfiles": "GET, PUT",
    "joborders": "GET, POST",
}
_EVERY = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_SMALL_BYTES = 256 << 10
_PARSED_TIMES = 8
#: So often a file is looked for that is replaced again and again.
_LOOKS = 3
Body = TypeVar("Body", bound=BaseModel)


class _BadRequestError(Exception):
    """A request that the framework of the old service would have refused itself."""


# -- info and health -----------------------------------------------------------------------------
@api.get("/actuator/health")
def health() -> Response:
    """Answered from what is known already, whatever else goes on (section 5)."""
    return Response(b'{"status":"UP"}', content_type="application/vnd.spring-boot.actuator.v3+json")


@api.get(f"{_BASE}/info")
def info(version: str) -> Response:
    """Where things are; no credentials (2.1)."""
    enter(Scope.READ)
    backend, settings = wire.backend(facility()), facility().settings
    s3 = backend if isinstance(backend, S3Backend) else None
    cache = settings.staging.directory
    return json_reply(
        {
            "s3": {
                "s3EndPoint": s3.endpoint or "" if s3 else "",
                "s3Region": s3.region if s3 else "",
                "s3MaxNumberOfBuckets": 50,
                "s3DefaultBucket": s3.bucket if s3 else "",
            },
            "posix": {
                "backendPath": "" if s3 else wire.root_of(facility()),
                "cachePath": str(cache.absolute()) if cache else "",
            },
            "joborder": {"bucket": "internal", "prefix": settings.proseo.joborder_prefix},
        }
    )


# -- products ------------------------------------------------------------------------------------
@api.get(f"{_BASE}/products")
def list_products(version: str) -> Response:
    """Every file that can be seen, as ``TYPE|path`` (2.2)."""
    enter(Scope.READ)
    kind, ours = request.args.get("storageType"), wire.storage_type(facility())
    if kind is not None and kind not in (wire.S3, wire.POSIX):
        return replies.failure(
            500, replies.text_of("E5501", f"There is no storage of type {kind!r}.")
        )
    if kind not in (None, ours):
        return json_reply([])
    mount = facility().settings.proseo.mount
    base = f"{mount}/" if mount else ""
    prefix = request.args.get("prefix", "")
    if ours == wire.S3:
        inner = prefix.rpartition("/")[0]
        keys = _listed(base + inner, lambda key: key.startswith(base + prefix))
    else:
        inner = "/".join(part for part in prefix.split("/") if part not in ("", "."))
        whole = f"{base}{inner}"
        keys = iter(sorted(_listed(whole, lambda _: True), key=paths.files_first))
        if inner and ".." not in inner.split("/"):
            keys = iter([*_listed(inner.rpartition("/")[0], lambda key: key == whole), *keys])
    return json_reply([f"{ours}|{wire.path_of(facility(), key)}" for key in keys])


def _listed(directory: str, wanted: paths.Wanted) -> Iterator[str]:
    try:
        yield from paths.listed(facility(), principal(), directory.strip("/"), wanted)
    except errors.InvalidKey:
        return  # nothing can have such a name


@api.post(f"{_BASE}/products")
def ingest(version: str) -> Response:
    """Files become the product ``productId`` in the default storage (2.3)."""
    enter(Scope.INGEST)
    body = _body(wire.IngestRequest)
    if body.sourceFilePaths is None:
        raise errors.StorageManagerError("sourceFilePaths is null.")
    product_id = body.productId or ""
    folder = wire.folder(product_id)
    mount = facility().settings.proseo.mount
    directory = f"{mount}/{folder}" if mount else folder
    keys: list[str] = []
    if body.sourceFilePaths:
        try:
            pieces = fetching.pieces_of(facility(), body.sourceFilePaths)
            product, files = gathering.gather(
                facility(), principal(), product_id, pieces, directory
            )
        except (errors.SourceNotFound, errors.NotFound) as error:
            inner = replies.text_of("E5502", error.detail)
            return replies.failure(500, replies.text_of("E5501", inner))
        directory = product.directory
        keys = [paths.shown_key(product, file) for file in files]
    ours = wire.storage_type(facility())
    is_s3 = ours == wire.S3
    return json_reply(
        ProductFS(
            productId=product_id,
            sourceStorageType=body.sourceStorageType,
            sourceFilePaths=list(body.sourceFilePaths),
            targetStorageId="" if is_s3 else wire.root_of(facility()),
            targetStorageType=body.targetStorageType,
            registeredFilePath=wire.path_of(facility(), directory) + ("/" if is_s3 else "//"),
            registered=True,
            registeredFilesCount=len(keys),
            registeredFilesList=[wire.path_of(facility(), key) for key in keys],
            deleted=False,
            message=f"registration executed on node {socket.gethostname()}",
        ),
        201,
    )


@api.delete(f"{_BASE}/products")
def delete(version: str) -> Response:
    """Exactly what is named goes; nothing there is no error (2.4)."""
    enter(Scope.REMOVE)
    erased: list[str] = []
    for path in _paths():
        erased = paths.erase(facility(), principal(), path)
        if erased:
            break
    ours = wire.storage_type(facility())
    mount = facility().settings.proseo.mount
    named = [
        key.removeprefix(f"{mount}/") if ours == wire.S3 else wire.path_of(facility(), key)
        for key in erased
    ]
    return json_reply(ProductFS(sourceStorageType=ours, sourceFilePaths=named, deleted=True))


api.add_url_rule(f"{_BASE}/products/download", view_func=download, methods=["GET"])


# -- product files -------------------------------------------------------------------------------
@api.get(f"{_BASE}/productfiles")
def fetch(version: str) -> Response:
    """A path that processors can read, the file being there whole (2.6)."""
    enter(Scope.READ)
    candidates = _paths()
    if not candidates[0].strip():
        return replies.failure(400, replies.text_of("E5502", candidates[0]))
    try:
        failed = request.environ.get(FAILED)
        if failed is not None:
            raise failed
        located, there = _fetched(candidates)
    except errors.StagingTimeout as error:
        seconds = f"{facility().settings.staging.wait_seconds:g}"
        text = replies.text_of("E5561", candidates[0].strip(), seconds, error.detail)
        return replies.failure(503, text)
    except StorageManagerError as error:
        return replies.of_error(error, "E5555")
    return json_reply(FileInfo(wire.POSIX, str(there), there.name, located.size))


def _fetched(candidates: list[str]) -> tuple[Located, Path]:
    """The file and its path; a file that is replaced between the two is looked for again."""
    for _ in range(_LOOKS - 1):
        with contextlib.suppress(errors.Replaced):
            located = _first_there(candidates)
            return located, fetching.fetch(facility(), principal(), located)
    located = _first_there(candidates)
    return located, fetching.fetch(facility(), principal(), located)


@api.put(f"{_BASE}/productfiles")
def push(version: str) -> Response:
    """A processor's output becomes a file of the product (2.7); the body is never looked at."""
    enter(Scope.INGEST)
    path = _paths()[0]
    product_id = wire.whole_number(request.args.get("productId"))
    size = wire.whole_number(request.args.get("fileSize"))
    if product_id is None or size is None or product_id < 0 or size < 0:
        raise _BadRequestError("productId and fileSize must be whole numbers.")
    mount, folder = facility().settings.proseo.mount, wire.folder(str(product_id))
    try:
        piece = fetching.piece_of(facility(), path, size or None)
        product, files = gathering.gather(
            facility(),
            principal(),
            str(product_id),
            [piece],
            f"{mount}/{folder}" if mount else folder,
        )
    except (errors.SourceNotFound, errors.NotFound) as error:
        return replies.failure(500, replies.text_of("E5501", error.detail))
    key = paths.shown_key(product, files[0])
    name = key.rpartition("/")[2]
    where = wire.path_of(facility(), key)
    return json_reply(FileInfo(wire.storage_type(facility()), where, name, files[0].size), 201)


# -- job orders ----------------------------------------------------------------------------------
@api.post(f"{_BASE}/joborders")
def keep_job_order(version: str) -> Response:
    """Kept as the text that it came as (2.8)."""
    enter(Scope.INGEST)
    text = _body(wire.JobOrderRequest).jobOrderStringBase64
    if text is None:
        return replies.of_framework(500, "jobOrderStringBase64 is missing.")
    if not _BASE64.fullmatch(text):
        said = replies.text_of("E5512")
        return replies.warn(json_reply(JobOrder(text, False, None, "n/a", said), 403), said)
    try:
        key = joborders.keep(facility(), text)
    except StorageManagerError as error:
        log.exception("a job order was not kept", exc_info=error)
        said = replies.text_of("E5522", "")
        return replies.warn(json_reply(JobOrder(text, False, None, "n/a", said), 500), said)
    answer = JobOrder(
        text, True, wire.storage_type(facility()), wire.path_of(facility(), key), None
    )
    return json_reply(answer, 201)


@api.get(f"{_BASE}/joborders")
def give_job_order(version: str) -> Response:
    """The text as it was stored, without anything around it (2.9)."""
    enter(Scope.READ)
    candidates = _paths()
    failed: StorageManagerError = errors.NotFound("The path is empty.")
    for path in candidates:
        try:
            text = joborders.read(facility(), path)
        except StorageManagerError as error:
            failed = error
            if not isinstance(error, errors.NotFound | errors.InvalidRequest | errors.InvalidKey):
                break
        else:
            accepted = request.headers.get("Accept", "")
            kind = "application/json" if "json" in accepted else "text/plain"
            return Response(text, content_type=f"{kind};charset=UTF-8")
    status = 404 if replies.status_of(failed) in (400, 404) else replies.status_of(failed)
    return replies.failure(status, replies.text_of("E5523", candidates[0], failed.detail))


# -- what is common ------------------------------------------------------------------------------
def _paths() -> list[str]:
    """The readings of ``pathInfo``, which every request with a path must have."""
    if "pathInfo" not in request.args:
        raise _BadRequestError("The parameter pathInfo is missing.")
    return wire.path_candidates()


def _first_there(candidates: list[str]) -> Located:
    """The first reading of a path that names a file; raises what the first one has raised."""
    first: StorageManagerError | None = None
    for path in candidates:
        try:
            return paths.find(facility(), principal(), path)
        except (
            errors.NotFound,
            errors.SourceDenied,
            errors.InvalidRequest,
            errors.InvalidKey,
        ) as error:
            first = first or error
    assert first is not None
    raise first


def _body(kind: type[Body]) -> Body:
    """The JSON body, whatever its media type says; raises _BadRequestError."""
    request.max_content_length = joborders.MAX_BYTES
    length = request.content_length or 0
    if "Transfer-Encoding" in request.headers:
        length = request.max_content_length
    if length > _SMALL_BYTES:
        g.hold = facility().transfers.take(Kind.CONTROL, Need(memory=_PARSED_TIMES * length))
    try:
        found = json.loads(request.get_data(cache=False).decode("utf-8"))
        return kind.model_validate(found)
    except (ValueError, RecursionError) as error:
        said = "The body is not JSON."
        if isinstance(error, ValidationError):
            places = (".".join(map(str, item["loc"])) for item in error.errors())
            said = f"The body has wrong types: {', '.join(list(places)[:5])}."
        raise _BadRequestError(said) from None


@api.route(f"{PREFIX}/<path:rest>", methods=_EVERY)
def unknown(rest: str) -> Response:
    """Everything else beneath the prefix: not there, or not by this method."""
    resource = rest.partition("/")[2]
    if resource in _METHODS:
        raise MethodNotAllowed(_METHODS[resource].split(", "))
    raise NotFound


@api.errorhandler(StorageManagerError)
def _ours(error: StorageManagerError) -> Response:
    response = replies.of_error(error)
    return challenge(response) if response.status_code == 401 else response


@api.errorhandler(_BadRequestError)
def _bad_request(error: _BadRequestError) -> Response:
    return replies.of_framework(400, str(error))


@api.errorhandler(HTTPException)
def _framework(error: HTTPException) -> Response:
    return replies.of_http(error)


@api.errorhandler(Exception)
def _unexpected(error: Exception) -> Response:
    log.error("unexpected error", exc_info=error)
    said = f"Something unexpected went wrong; the log has it as {g.get('request_id', '')}."
    return replies.failure(500, replies.text_of("E5501", said))
