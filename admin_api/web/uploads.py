"""``/v1/uploads``: products pushed by their producer, in one request or in a session."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from flask import Response, request

from admin_api.errors import InvalidRequest
from admin_api.services import idempotency, session_files, uploads
from admin_api.services.access import Scope
from admin_api.services.archives import split_suffix
from admin_api.services.wishes import Wish
from admin_api.web import problems, schemas
from admin_api.web.auth import closed_blueprint, facility, needs, principal
from admin_api.web.body import expected, payload
from admin_api.web.products import outcome_answer
from admin_api.web.replies import json_reply

api = closed_blueprint("uploads", "Uploads")

_RAW_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@api.put(
    "/uploads/<name>",
    summary="Upload a product in one request",
    openapi_extensions=_RAW_BODY,
    responses={
        "200": schemas.IngestAnswer,
        "201": schemas.IngestAnswer,
        **problems.responses(404, 409, 415, 422, 502, 507),
    },
)
@needs(Scope.INGEST)
def upload(
    path: schemas.NamePath, query: schemas.UploadQuery, header: schemas.UploadHeader
) -> Response:
    """The raw body is the product's one file, or with ``unpack`` an archive of the product."""
    name, archive = path.name, None
    if query.unpack:
        name, archive = split_suffix(path.name)
        if archive is None:
            raise InvalidRequest("To be unpacked the name must end in .tar, .tar.gz, .tgz or .zip.")
    wish = Wish(
        name=name,
        product_id=query.id,
        policy=query.duplicates,
        level=query.verification,
        retention_until=query.retention,
        source="upload",
    )
    announced = expected(request)
    fingerprint = hashlib.sha256(
        f"PUT {request.full_path}\0{announced}".encode("utf-8", "surrogateescape")
    ).hexdigest()

    def receive(body: Callable[[], Iterator[bytes]]) -> tuple[int, dict[str, Any]]:
        return outcome_answer(
            uploads.receive(facility(), principal(), wish, body(), announced, archive)
        )

    status, answer = idempotency.once(
        facility(),
        principal(),
        header.idempotency_key,
        fingerprint,
        receive,
        lambda: payload(request, facility().settings.limits),
    )
    return json_reply(answer, status)


@api.post(
    "/uploads",
    summary="Begin an upload session",
    responses={
        "201": schemas.SessionAnswer,
        **problems.responses(409, 415, 502, 507),
    },
)
@needs(Scope.INGEST)
def begin(body: schemas.SessionRequest) -> Response:
    """A product of many files: PUT each one, then POST commit."""
    wish = Wish(
        name=body.name,
        product_id=body.id,
        policy=body.duplicates,
        level=body.verification,
        retention_until=body.retention,
        source="upload session",
    )
    return json_reply(_answer(uploads.begin(facility(), principal(), wish)), 201)


@api.get(
    "/uploads/<upload_id>",
    summary="Show an upload session",
    responses={"200": schemas.SessionAnswer, **problems.responses(404)},
)
@needs(Scope.INGEST)
def show(path: schemas.UploadPath) -> Response:
    """What has arrived; what is missing can be sent."""
    return json_reply(_answer(session_files.load(facility(), principal(), path.upload_id)))


@api.put(
    "/uploads/<upload_id>/<path:path>",
    summary="Upload a file of a session",
    openapi_extensions=_RAW_BODY,
    responses={
        "200": schemas.FileAnswer,
        "201": schemas.FileAnswer,
        **problems.responses(404, 409, 415, 422, 502, 507),
    },
)
@needs(Scope.INGEST)
def upload_file(path: schemas.UploadFilePath, header: schemas.UploadHeader) -> Response:
    """Durable when answered; the same file sent again is answered 200."""
    file, new = uploads.receive_file(
        facility(),
        principal(),
        path.upload_id,
        path.path,
        payload(request, facility().settings.limits),
        expected(request),
    )
    answer = schemas.file_answer(facility(), file, f"/v1/uploads/{path.upload_id}/")
    return json_reply(answer, 201 if new else 200)


@api.post(
    "/uploads/<upload_id>/commit",
    summary="Commit an upload session",
    responses={
        "200": schemas.IngestAnswer,
        "201": schemas.IngestAnswer,
        **problems.responses(404, 409, 422, 502, 507),
    },
)
@needs(Scope.INGEST)
def commit(path: schemas.UploadPath) -> Response:
    """Verifies the files and makes the product; repeatable."""
    status, answer = outcome_answer(uploads.commit(facility(), principal(), path.upload_id))
    return json_reply(answer, status)


@api.delete(
    "/uploads/<upload_id>",
    summary="Abort an upload session",
    responses={"204": None, **problems.responses(404, 409)},
)
@needs(Scope.INGEST)
def abort(path: schemas.UploadPath) -> Response:
    """Removes what has arrived; repeatable."""
    uploads.abort(facility(), principal(), path.upload_id)
    return Response(status=204)


def _answer(session: session_files.Session) -> schemas.SessionAnswer:
    return schemas.session_answer(
        facility(), session.upload, session.product, session_files.files(facility(), session)
    )
