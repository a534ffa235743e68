"""``GET /productfiles`` of what is staged, before Flask: processors ask it thousands of times.

Taking a request apart, finding its view and putting an answer together is what most of the time of
a hit would go to.  Only the one form of the request that prosEO sends is answered here, and only
with 200; everything else goes on to the view (``views.fetch``), which says the same of a hit.  What
failed here after a wait is told there and not tried again.  Put around the application by
``web/app.py``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote_plus

from flask import Flask

from admin_api.errors import Forbidden, InvalidRequest, StorageManagerError, Unauthorized
from admin_api.services import fetching
from admin_api.services.access import Scope
from admin_api.services.facility import Facility
from admin_api.web import accounts, metrics
from admin_api.web.proseo import wire
from admin_api.web.proseo.entry import identify
from admin_api.web.proseo.replies import FileInfo, json_text
from admin_api.web.proseo.slashes import PREFIX

#: In the environment of a request that goes on: the error of the store or the cache.
FAILED = "storage_manager.failed"
_PATH = re.compile(rf"{PREFIX}/[A-Za-z0-9._-]+/productfiles")
_QUERY = re.compile(r"pathInfo=([^&;]+)")
_ROUTE = f"{PREFIX}/<version>/productfiles"


class Hits:
    """WSGI middleware around the application ``app``, whose own callable is ``application``."""

    def __init__(self, app: Flask, application: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._facility = cast("Facility", app.extensions["facility"])
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "GET" and _PATH.fullmatch(environ["PATH_INFO"]):
            query = _QUERY.fullmatch(environ["QUERY_STRING"])
            if query is not None:
                answer = self._answer(environ, unquote_plus(query[1]), start_response)
                if answer is not None:
                    return answer
        return self._application(environ, start_response)

    def _answer(
        self, environ: dict[str, Any], path: str, start_response: Any
    ) -> Iterable[bytes] | None:
        begun = environ[accounts.BEGUN] = time.monotonic()
        request_id = accounts.request_id(environ.get("HTTP_X_REQUEST_ID", ""))
        environ["HTTP_X_REQUEST_ID"] = request_id
        try:
            with metrics.RUNNING.track_inprogress():
                principal = identify(self._app, environ, request_id)
                principal.require(Scope.READ)
                found = fetching.glance(self._facility, principal, path)
        except (Unauthorized, Forbidden, InvalidRequest):
            return None
        except StorageManagerError as error:
            environ[FAILED] = error
            return None
        if found is None:
            return None
        size, there = found
        body = json_text(FileInfo(wire.POSIX, str(there), there.name, size))
        seconds = time.monotonic() - begun
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("X-Request-Id", request_id),
        ]
        start_response("200 OK", headers)
        return self._sent(environ, body, request_id, seconds, principal.subject)

    @staticmethod
    def _sent(
        environ: dict[str, Any], body: bytes, request_id: str, seconds: float, subject: str
    ) -> Iterator[bytes]:
        """The body; counted and told when it has been sent, for which nobody waits."""
        try:
            yield body
        finally:
            accounts.count("GET", _ROUTE, HTTPStatus.OK.value, seconds)
            accounts.tell(
                request_id,
                "GET",
                environ["PATH_INFO"],
                HTTPStatus.OK.value,
                seconds,
                subject,
                environ["REMOTE_ADDR"],
            )
