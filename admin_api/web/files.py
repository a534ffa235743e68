"""``/v1/products/{id}/files`` and ``/archive``: the bytes go out (RFC 9110 semantics)."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from flask import Response, request
from werkzeug.http import http_date

from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.services import retrieval
from admin_api.services.access import Scope
from admin_api.web import problems, schemas
from admin_api.web.auth import closed_blueprint, facility, needs, principal
from admin_api.web.metrics import PAYLOAD_OUT
from admin_api.web.streams import streamed

api = closed_blueprint("files", "Files")

_EMPTY_SUFFIX = re.compile(r"bytes=\s*-0+\s*")


def _octets(description: str, kind: str = "application/octet-stream") -> dict[str, Any]:
    return {
        "description": description,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}}},
    }


@api.get(
    "/products/<product_id>/files/<path:path>",
    summary="Retrieve a file",
    responses={
        "200": _octets("the file"),
        "206": _octets("the range asked for"),
        "304": {"description": "not modified"},
        "307": {"description": "where the file is handed out, by signed link"},
        **problems.responses(404, 410, 412, 416),
    },
)
@needs(Scope.READ)
def retrieve(
    path: schemas.FilePath, query: schemas.FileQuery, header: schemas.FileHeader
) -> Response:
    """Validators, ranges and If-Range as RFC 9110 has them; the ETag is the SHA-256."""
    response = _retrieve(path, query.redirect and not header.no_redirect)
    response.vary.add("Prefer")
    if header.no_redirect:
        response.headers["Preference-Applied"] = "no-redirect"
    return response


def _retrieve(path: schemas.FilePath, redirect: bool) -> Response:
    product, file = retrieval.find_file(facility(), principal(), path.product_id, path.path)
    modified = (product.available_at or product.created_at).replace(microsecond=0)
    refused = _precondition(f'"{file.sha256}"', modified)
    if refused is not None:
        return _described(refused, file, modified)
    span = _range(file.size, file.sha256, modified)
    if span is None:
        return _described(_unsatisfiable(file.size, "file"), file, modified)
    start, stop, partial = span
    if redirect and request.method == "GET" and "If-Range" not in request.headers:
        link = retrieval.link(facility(), file)
        if link is not None:
            # No description here: Content-Length and ETag are those of what the link leads to.
            return Response(status=307, headers={"Location": link, "Cache-Control": "no-store"})
    if request.method == "HEAD":
        response = Response(status=200)
        response.headers["Content-Length"] = str(file.size)
        return _described(response, file, modified)
    response = _payload(product, file, start, stop)
    if partial:
        response.status_code = 206
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    return _described(response, file, modified)


@api.get(
    "/products/<product_id>/archive",
    summary="Retrieve a whole product",
    responses={
        "200": {
            "description": "the product",
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in ("application/x-tar", "application/zip")
            },
        },
        "206": _octets("the range of a tar that was asked for", "application/x-tar"),
        "304": {"description": "not modified"},
        **problems.responses(404, 410, 412, 416),
    },
)
@needs(Scope.READ)
def archive(path: schemas.ProductPath, query: schemas.ArchiveQuery) -> Response:
    """A tar or zip, packed while it streams; ranges of a tar, whose bytes are always the same."""
    whole = retrieval.archive(facility(), principal(), path.product_id, query.format)
    modified = whole.modified.replace(microsecond=0)
    start, stop, partial = 0, whole.size or 0, False
    if whole.size is not None and whole.etag is not None:
        refused = _precondition(f'"{whole.etag}"', modified)
        if refused is not None:
            return _archived(refused, whole, query.format)
        span = _range(whole.size, whole.etag, modified)
        if span is None:
            return _archived(_unsatisfiable(whole.size, "archive"), whole, query.format)
        start, stop, partial = span
    if request.method == "HEAD":
        # No body, and no word on its length but where it is known.
        response = Response(iter(()), direct_passthrough=True)
    else:
        response = streamed(facility(), lambda: whole.read(start, stop))
    if whole.size is not None:
        response.headers["Content-Length"] = str(stop - start)
    if partial:
        response.status_code = 206
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{whole.size}"
    return _archived(response, whole, query.format)


def _archived(response: Response, whole: retrieval.Whole, format: str) -> Response:
    response.headers["Accept-Ranges"] = "none" if whole.size is None else "bytes"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "private, no-cache"
    if whole.etag is not None:
        response.headers["ETag"] = f'"{whole.etag}"'
        response.headers["Last-Modified"] = http_date(whole.modified)
    if response.status_code in (200, 206):
        response.content_type = {"tar": "application/x-tar", "zip": "application/zip"}[format]
        response.headers["Content-Disposition"] = _attachment(f"{whole.product.name}.{format}")
    return response


def _attachment(name: str) -> str:
    """``Content-Disposition`` for those who know RFC 8187 and for those who do not."""
    plain = re.sub(r'[^\x20-\x7e]|["\\%]', "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name)}"


def _unsatisfiable(size: int, what: str) -> Response:
    response = problems.problem(
        "range_not_satisfiable", 416, f"The {what} has {size} bytes; none are in the range."
    )
    response.headers["Content-Range"] = f"bytes */{size}"
    return response


def _precondition(etag: str, modified: datetime) -> Response | None:
    """What RFC 9110, section 13.2.2 answers before the method is done; None: go on."""
    tag = etag.strip('"')
    if "If-Match" in request.headers:
        if not request.if_match.contains(tag):
            return problems.problem("precondition_failed", 412, "The file is another one.")
    elif request.if_unmodified_since and request.if_unmodified_since < modified:
        return problems.problem("precondition_failed", 412, "The file was made later.")
    if "If-None-Match" in request.headers:
        if request.if_none_match.contains_weak(tag):
            return Response(status=304)
    elif request.if_modified_since and request.if_modified_since >= modified:
        return Response(status=304)
    return None


def _range(size: int, tag: str, modified: datetime) -> tuple[int, int, bool] | None:
    """Start, stop (exclusive) and whether that is a part; None if it cannot be satisfied.

    A Range that is malformed, has several parts or another unit is ignored, as RFC 9110, section
    14.2 permits.
    """
    whole = (0, size, False)
    if request.method == "GET" and _EMPTY_SUFFIX.fullmatch(request.headers.get("Range", "")):
        return None  # the parser does not know "the last 0 bytes"
    asked = request.range
    if request.method != "GET" or asked is None or asked.units != "bytes" or len(asked.ranges) != 1:
        return whole
    if "If-Range" in request.headers and not _if_range(tag, modified):
        return whole
    span = asked.range_for_length(size)
    return None if span is None or span[0] >= span[1] else (span[0], span[1], True)


def _if_range(tag: str, modified: datetime) -> bool:
    condition = request.if_range
    if condition.etag is not None:
        weak = request.headers["If-Range"].strip().startswith("W/")
        return not weak and condition.etag == tag
    # A date is a strong validator only if the file was not made within that very second.
    settled = modified < datetime.now(UTC) - timedelta(seconds=1)
    return condition.date is not None and condition.date == modified and settled


def _described(response: Response, file: FileEntry, modified: datetime) -> Response:
    response.headers["ETag"] = f'"{file.sha256}"'
    response.headers["Last-Modified"] = http_date(modified)
    response.headers["Accept-Ranges"] = "bytes"
    response.headers["Cache-Control"] = "private, no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    if response.status_code in (200, 206):
        digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
        response.headers["Repr-Digest"] = f"sha-256=:{digest}:"
        response.content_type = "application/octet-stream"
        response.headers["Content-Disposition"] = _attachment(file.path.rpartition("/")[2])
    return response


def _payload(product: ProductEntry, file: FileEntry, start: int, stop: int) -> Response:
    """The bytes: from an open file by the kernel where that can be, streamed otherwise."""
    response: Response
    wrapper = request.environ.get("wsgi.file_wrapper")
    # Only this server stops at Content-Length when it sends a file.
    by_kernel = wrapper is not None and "gunicorn.socket" in request.environ
    opened = retrieval.local_file(facility(), principal(), product, file) if by_kernel else None
    if opened is not None and wrapper is not None:
        opened.seek(start)
        response = Response(wrapper(opened), direct_passthrough=True)
    else:
        response = streamed(
            facility(), lambda: retrieval.read(facility(), principal(), product, file, start, stop)
        )
    response.headers["Content-Length"] = str(stop - start)
    PAYLOAD_OUT.inc(stop - start)
    return response
