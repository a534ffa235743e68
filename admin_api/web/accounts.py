"""What is told of every request: its id, the counts of the metrics, a line of the log.

Called by ``web/app.py``, and by ``web/proseo/hits.py`` for what it answers before Flask.
"""

from __future__ import annotations

import logging
import re
import uuid

from admin_api.web import metrics

log = logging.getLogger(__name__)

#: In the environment of a request: when somebody before Flask began with it.
BEGUN = "storage_manager.begun"
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")


def request_id(given: str) -> str:
    """The id that the client has given to its request, or a new one."""
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def count(method: str, route: str, status: int, seconds: float) -> None:
    """Count an answer; labels are of fixed sets: what strangers invent takes no memory."""
    known = method if method in _METHODS else "other"
    metrics.REQUESTS.labels(known, route, status).inc()
    metrics.SECONDS.labels(known, route).observe(seconds)


def tell(
    request_id: str,
    method: str,
    path: str,
    status: int,
    seconds: float,
    subject: str | None,
    remote: str | None,
) -> None:
    """A line in the log.

    ``path`` is without the query: a link's signature or a name could be in that.
    """
    log.info(
        "request",
        extra={
            "request_id": request_id,
            "method": method,
            "path": path,
            "status": status,
            "seconds": round(seconds, 4),
            "subject": subject,
            "remote": remote,
        },
    )
