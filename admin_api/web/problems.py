"""Errors as ``application/problem+json`` (RFC 9457), from one table of codes and statuses."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, g
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import IntegrityError
from werkzeug.exceptions import HTTPException

from admin_api.errors import StorageManagerError

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"

#: code -> HTTP status.  Every code of ``admin_api.errors`` is here (a test compares them).
STATUSES: dict[str, int] = {
    "already_exists": 409,
    "busy": 503,
    "catalog_behind": 503,
    "catalog_unavailable": 503,
    "client_stalled": 408,
    "configuration_error": 500,
    "digest_mismatch": 422,
    "forbidden": 403,
    "gone": 410,
    "held": 409,
    "idempotency_key_reused": 422,
    "in_progress": 409,
    "incomplete_body": 400,
    "internal_error": 500,
    "invalid_archive": 422,
    "invalid_key": 400,
    "invalid_request": 400,
    "leased": 409,
    "manifest_mismatch": 422,
    "no_space": 507,
    "not_found": 404,
    "offset_mismatch": 409,
    "product_exists": 409,
    "readback_mismatch": 502,
    "record_unreadable": 500,
    "retained": 409,
    "size_mismatch": 422,
    "source_denied": 403,
    "source_not_found": 422,
    "source_unavailable": 502,
    "staging_timeout": 503,
    "storage_denied": 503,
    "storage_unavailable": 503,
    "too_large": 413,
    "unauthorized": 401,
    "unsupported_media_type": 415,
}
#: Told with a status of ours, though nothing here is at fault.
_NOT_OURS = ("busy", "source_unavailable", "staging_timeout")
RETRY_AFTER = {
    "busy": "2",
    "in_progress": "2",
    "catalog_unavailable": "5",
    "staging_timeout": "5",
    "storage_unavailable": "5",
}
_FRAMEWORK_CODES = {
    400: "invalid_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "client_stalled",
    413: "too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
}


class Problem(BaseModel):
    """What went wrong; some problems have further members (``manifest``, ``errors``...)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="URN of the kind of problem")
    title: str
    status: int
    code: str = Field(description="stable name of the kind of problem, for machines")
    detail: str = Field(description="what is wrong, where, and what to do")
    request_id: str = Field(description="names the request in the service's log")


def responses(*statuses: int) -> dict[str | int, Any]:
    """OpenAPI documentation of the problems that an operation can answer."""
    everywhere = (400, 401, 403, 405, 408, 413, 500, 503)
    return {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted({*everywhere, *statuses})
    }


def document(
    code: str, status: int, detail: str, request_id: str, extra: dict[str, Any] | None = None
) -> Problem:
    """A problem, for whoever sends it."""
    return Problem(
        type=f"urn:storage-manager:problem:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail,
        request_id=request_id,
        **(extra or {}),
    )


def problem(code: str, status: int, detail: str, extra: dict[str, Any] | None = None) -> Response:
    """A problem as response."""
    body = document(code, status, detail, g.get("request_id", ""), extra)
    text = json.dumps(body.model_dump(mode="json"), ensure_ascii=False) + "\n"
    response = Response(
        text.encode("utf-8", "replace"),  # names of foreign files are not always Unicode
        status,
        content_type=CONTENT_TYPE,
    )
    if code == "unauthorized":
        response.headers["WWW-Authenticate"] = 'Bearer realm="storage-manager"'
    if code in RETRY_AFTER:
        response.headers["Retry-After"] = RETRY_AFTER[code]
    return response


def of_error(error: StorageManagerError) -> Response:
    """A domain error as response; what is our fault is logged with everything known of it."""
    status = STATUSES[error.code]
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and error.code not in _NOT_OURS:
        log.error("request failed: %s", error.detail, exc_info=error, extra={"code": error.code})
    else:
        log.info("request refused: %s", error.detail, extra={"code": error.code})
    return problem(error.code, status, error.detail, error.extra)


def of_validation(error: ValidationError) -> Response:
    """What pydantic found wrong in a request, place by place."""
    errors = [
        {"at": ".".join(str(part) for part in item["loc"]) or "body", "message": item["msg"]}
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    sentence = "; ".join(f"{item['at']}: {item['message']}" for item in errors[:5])
    return problem(
        "invalid_request", 400, f"The request is not valid: {sentence}.", {"errors": errors}
    )


def register(app: Flask) -> None:
    """Make every error of the application a problem."""

    @app.errorhandler(StorageManagerError)
    def domain(error: StorageManagerError) -> Response:
        return of_error(error)

    @app.errorhandler(HTTPException)
    def framework(error: HTTPException) -> Response:
        if error.response is not None:
            assert isinstance(error.response, Response)
            return error.response
        status = error.code or 500
        code = _FRAMEWORK_CODES.get(status, "invalid_request" if status < 500 else "internal_error")
        response = problem(code, status, error.description or HTTPStatus(status).phrase)
        for name, value in error.get_headers():
            if name in ("Allow", "Content-Range"):
                response.headers[name] = value
        return response

    @app.errorhandler(IntegrityError)
    def clash(error: IntegrityError) -> Response:
        log.warning("two requests clashed in the catalog", exc_info=error)
        return problem("in_progress", 409, "Another request changed the same thing; try again.")

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        log.error("unexpected error", exc_info=error)
        return problem(
            "internal_error",
            500,
            "Something unexpected went wrong; the log has it under this request id.",
        )
