"""``/v1/tus``: files in pieces, by the tus protocol 1.0 (tus.io/protocols/resumable-upload).

A file of the upload session ID is announced (POST to /v1/tus/ID), sent in as many pieces as it
takes (PATCH to the file), and asked how far it is (HEAD).  Core protocol, creation, expiration and
termination; the path in the product is the ``filename`` of the metadata, and ``sha256`` and ``md5``
of the whole file can stand beside it.
"""

from __future__ import annotations

import base64
import binascii
import re
from email.utils import format_datetime
from urllib.parse import quote

from flask import Response, request

from admin_api.errors import InvalidRequest, UnsupportedMediaType
from admin_api.services import resumable
from admin_api.services.access import Scope
from admin_api.services.wishes import Expected
from admin_api.web import problems, schemas
from admin_api.web.auth import closed_blueprint, facility, needs, principal
from admin_api.web.body import payload

VERSION = "1.0.0"
EXTENSIONS = "creation,expiration,termination"
_PIECE = "application/offset+octet-stream"
#: As long a number as any file has bytes.
_NUMBER = re.compile(r"[0-9]{1,18}")
_HEX = {"sha256": re.compile(r"[0-9A-Fa-f]{64}"), "md5": re.compile(r"[0-9A-Fa-f]{32}")}

api = closed_blueprint("resumable", "Uploads", takes_json=False)


@api.before_request
def _know_version() -> Response | None:
    """A client of another version of the protocol is told which one there is."""
    if request.headers.get("Tus-Resumable", VERSION) != VERSION:
        answer = problems.problem(
            "invalid_request", 412, f"The version of the tus protocol is {VERSION} here."
        )
        answer.headers["Tus-Version"] = VERSION
        return answer
    return None


@api.after_request
def _say_version(answer: Response) -> Response:
    answer.headers["Tus-Resumable"] = VERSION
    if request.method == "OPTIONS":
        answer.headers["Tus-Version"] = VERSION
        answer.headers["Tus-Extension"] = EXTENSIONS
        answer.headers["Tus-Max-Size"] = str(facility().settings.limits.max_file_bytes)
    return answer


@api.post(
    "/tus/<upload_id>",
    summary="Announce a file that is sent in pieces (tus)",
    responses={"201": None, **problems.responses(404, 409, 412, 415, 422, 502, 507)},
)
@needs(Scope.INGEST)
def create(path: schemas.UploadPath, header: schemas.TusCreateHeader) -> Response:
    """``Upload-Length`` bytes, ``filename`` in ``Upload-Metadata``; PATCH goes to ``Location``."""
    if "Upload-Length" not in request.headers:
        raise InvalidRequest(
            "The header Upload-Length says how many bytes the file has; it cannot come later."
        )
    found = _metadata()
    name = found.get("filename", "")
    if not name:
        raise InvalidRequest(
            "Upload-Metadata names the file: filename and, in base64, its path in the product."
        )
    for algorithm, pattern in _HEX.items():
        if algorithm in found and not pattern.fullmatch(found[algorithm]):
            raise InvalidRequest(f"The {algorithm} in Upload-Metadata is not one in hexadecimal.")
    progress = resumable.create(
        facility(),
        principal(),
        path.upload_id,
        name,
        _number("Upload-Length"),
        Expected(None, found.get("sha256"), found.get("md5")),
    )
    answer = _answer(progress, 201)
    answer.headers["Location"] = f"/v1/tus/{path.upload_id}/{quote(name)}"
    return answer


@api.get(
    "/tus/<upload_id>/<path:path>",
    summary="Ask how much of a file has arrived (tus)",
    responses={"204": None, **problems.responses(404, 412)},
)
@needs(Scope.INGEST)
def show(path: schemas.UploadFilePath) -> Response:
    """``Upload-Offset``: where the next piece begins; HEAD says the same."""
    answer = _answer(resumable.progress(facility(), principal(), path.upload_id, path.path), 204)
    answer.headers["Cache-Control"] = "no-store"
    return answer


@api.patch(
    "/tus/<upload_id>/<path:path>",
    summary="Send a piece of a file (tus)",
    openapi_extensions={
        "requestBody": {
            "required": True,
            "content": {_PIECE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    responses={"204": None, **problems.responses(404, 409, 412, 415, 422, 502, 507)},
)
@needs(Scope.INGEST)
def append(path: schemas.UploadFilePath, header: schemas.TusPieceHeader) -> Response:
    """From ``Upload-Offset`` on; what has arrived of a body that breaks off is kept."""
    if request.mimetype != _PIECE:
        raise UnsupportedMediaType(f"A piece has the Content-Type {_PIECE}.")
    progress = resumable.append(
        facility(),
        principal(),
        path.upload_id,
        path.path,
        _number("Upload-Offset"),
        payload(request, facility().settings.limits, is_piece=True),
        request.content_length,
    )
    return _answer(progress, 204)


@api.delete(
    "/tus/<upload_id>/<path:path>",
    summary="Give up a file that is sent in pieces (tus)",
    responses={"204": None, **problems.responses(404, 409, 412)},
)
@needs(Scope.INGEST)
def give_up(path: schemas.UploadFilePath) -> Response:
    """What has arrived of it is removed; the session goes on."""
    resumable.give_up(facility(), principal(), path.upload_id, path.path)
    return Response(status=204)


def _answer(progress: resumable.Progress, status: int) -> Response:
    answer = Response(status=status)
    answer.headers["Upload-Offset"] = str(progress.offset)
    answer.headers["Upload-Length"] = str(progress.length)
    answer.headers["Upload-Expires"] = format_datetime(progress.expires_at, usegmt=True)
    return answer


def _number(header: str) -> int:
    value = request.headers.get(header, "")
    if not _NUMBER.fullmatch(value):
        raise InvalidRequest(f"The header {header} is a number of bytes, in digits.")
    return int(value)


def _metadata() -> dict[str, str]:
    """``Upload-Metadata``: pairs of a name and a value in base64, with commas between them."""
    found: dict[str, str] = {}
    for pair in filter(None, map(str.strip, request.headers.get("Upload-Metadata", "").split(","))):
        name, _, value = pair.partition(" ")
        try:
            text = base64.b64decode(value.strip(), validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            raise InvalidRequest(
                f"The value of {name!r} in Upload-Metadata is not the base64 of UTF-8."
            ) from None
        if name in found:
            raise InvalidRequest(f"Upload-Metadata has {name!r} twice.")
        found[name] = text
    return found
