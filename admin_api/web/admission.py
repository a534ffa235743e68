"""Which class a request belongs to, told from the first line of its head alone.

A request is admitted before it gets a thread.  Called by ``web/connections.py``.
"""

from __future__ import annotations

import json
import re
import uuid
from http import HTTPStatus

from admin_api.services.transfers import Kind
from admin_api.web import problems

_KINDS = [
    (Kind.UPLOAD, re.compile(rb"PUT /v1/uploads/")),
    (Kind.UPLOAD, re.compile(rb"POST /v1/(?:imports|removals)[? ]")),
    (Kind.DOWNLOAD, re.compile(rb"GET /v1/products/[^/ ]+/(?:files/|archive)")),
    (Kind.DOWNLOAD, re.compile(rb"GET /+proseo/+storage-mgr/+[^/ ]+/+products/+download/*[? ]")),
    (Kind.INGEST, re.compile(rb"POST /v1/products(?:[? ]|/[^/ ]+/verification)")),
    (Kind.INGEST, re.compile(rb"POST /v1/uploads/[^/ ]+/commit")),
    (Kind.INGEST, re.compile(rb"POST /v1/maintenance/")),
]
_HEALTH = re.compile(rb"(?:GET|HEAD) (?:/healthz/|/+actuator/+health[/? ])")
_PROSEO = rb"/+proseo/+storage-mgr/+[^/ ]+/+"
#: Requests that wait, for a file to be staged, and that move payload for callers who do not come
#: again: they have threads of their own, and queue for them.
_LANES = {
    "waiting": re.compile(rb"POST /v1/stage[? ]|GET " + _PROSEO + rb"productfiles/*[? ]"),
    "moving": re.compile(
        rb"PUT " + _PROSEO + rb"productfiles/*[? ]|POST " + _PROSEO + rb"products/*[? ]"
    ),
}
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,8})[ \t]*\r\n", re.IGNORECASE)
_NOT_COLLECTED = re.compile(rb"\r\n(?:transfer-encoding|expect):", re.IGNORECASE)
#: Longer bodies are read by the thread that serves them.
_COLLECTED_BYTES = 64 << 10


def kind_of(head: bytes) -> Kind:
    """The class of the request that begins like this."""
    return next((kind for kind, form in _KINDS if form.match(head)), Kind.CONTROL)


def is_health(head: bytes) -> bool:
    """Whether it is answered from what is known already, without waiting for anything."""
    return _HEALTH.match(head) is not None


def lane_of(head: bytes) -> str | None:
    """The name of the threads that a waiting or moving request has; None: those of its class."""
    return next((name for name, form in _LANES.items() if form.match(head)), None)


def collected_bytes(head: bytes) -> int:
    """How many bytes of the body are to be there before a thread is given to the request.

    Only a short body of a request that is no upload is waited for.
    """
    if kind_of(head) is Kind.UPLOAD or _NOT_COLLECTED.search(head):
        return 0
    length = _LENGTH.search(head)
    count = int(length[1]) if length else 0
    return count if count <= _COLLECTED_BYTES else 0


def refusal(kind: Kind, head: bytes = b"") -> bytes:
    """The whole answer to a request that cannot be admitted now.

    prosEO's clients look for the sentence in a header of theirs.
    """
    body = problems.document(
        "busy",
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"Too many {kind} requests are at work; try again in a moment.",
        uuid.uuid4().hex,
    )
    text = (json.dumps(body.model_dump(mode="json")) + "\n").encode()
    warning = ""
    if re.match(rb"[A-Z]+ /+proseo/", head):
        warning = f"Warning: 199 proseo-storage-mgr (E5501) {body.detail}\r\n"
    answer = (
        "HTTP/1.1 503 Service Unavailable\r\n"
        f"{warning}"
        f"Content-Type: {problems.CONTENT_TYPE}\r\nContent-Length: {len(text)}\r\n"
        f"Retry-After: {problems.RETRY_AFTER['busy']}\r\nX-Request-Id: {body.request_id}\r\n"
        "Connection: close\r\n\r\n"
    )
    return answer.encode() + text
