"""The application factory: blueprints, errors, request ids, metrics.

Called by ``web/server.py``.
"""

from __future__ import annotations

import time

from flask import Response, g, request
from flask_openapi3.models.info import Info
from flask_openapi3.models.server import Server
from flask_openapi3.openapi import OpenAPI
from werkzeug.routing import PathConverter

from admin_api import __version__
from admin_api.errors import InvalidRequest
from admin_api.services.access import Authority
from admin_api.services.callers import Callers
from admin_api.services.download_tokens import DownloadTokens
from admin_api.services.facility import Facility
from admin_api.web import (
    accounts,
    cache,
    files,
    front,
    health,
    jobs,
    maintenance,
    metrics,
    problems,
    processes,
    products,
    resumable,
    staging,
    storage,
    uploads,
)
from admin_api.web.auth import SIGN_IN, authenticate_reader
from admin_api.web.auth import facility as facility_of_request
from admin_api.web.proseo import views
from admin_api.web.proseo.hits import Hits
from admin_api.web.proseo.slashes import Slashes

_DOCS = ("openapi", "swagger")


class _AnyPath(PathConverter):
    """A path with any character, line breaks too: the grammar for keys judges it."""

    regex = r"[^/](?:.|\n)*?"


def create_app(facility: Facility) -> OpenAPI:
    """The HTTP API over ``facility``; raises ConfigurationError for unusable keys."""
    app = OpenAPI(
        "admin_api",
        info=Info(
            title="Storage manager",
            version=__version__,
            description="Takes products in, hands them out, removes them, watches over them.  "
            "Sizes are bytes, times RFC 3339 UTC, errors `application/problem+json`.  *Authorize* "
            "takes a token, as `storage-manager token` prints it.",
        ),
        servers=[Server(url="/", description="this service")],
        security_schemes={
            "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
        },
        validation_error_status=400,
        validation_error_model=problems.Problem,
        validation_error_callback=problems.of_validation,
    )
    # Keys are taken as they are sent: '//' is refused by the grammar, not folded away.
    app.url_map.merge_slashes = False
    app.url_map.converters["path"] = _AnyPath
    app.extensions["facility"] = facility
    app.extensions["authority"] = Authority(facility.settings.auth)
    problems.register(app)
    if facility.settings.proseo.enabled:
        app.extensions["callers"] = Callers(facility.settings.proseo)
        app.extensions["download_tokens"] = DownloadTokens(facility.settings.proseo)
        app.register_blueprint(views.api)
        app.wsgi_app = Slashes(Hits(app, app.wsgi_app))  # type: ignore[method-assign]  # as Flask says
    app.before_request(_begin)
    app.after_request(_end)
    app.teardown_request(_give_back)
    for module in (
        products,
        uploads,
        resumable,
        files,
        staging,
        cache,
        jobs,
        processes,
        storage,
        maintenance,
        health,
    ):
        app.register_api(module.api)
    app.register_blueprint(front.api)
    return app


def _begin() -> None:
    g.request_id = accounts.request_id(request.headers.get("X-Request-Id", ""))
    g.begun = request.environ.get(accounts.BEGUN) or time.monotonic()
    metrics.RUNNING.inc()
    g.counted = True
    try:
        path = request.environ["PATH_INFO"].encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest("The path of the request is not valid UTF-8.") from None
    if "\0" in path:
        raise InvalidRequest("The path of the request holds a NUL.")
    if request.blueprint in _DOCS and not facility_of_request().settings.auth.public_docs:
        authenticate_reader()


def _give_back(_error: BaseException | None) -> None:
    hold = g.pop("hold", None)
    if hold is not None:
        hold.give_back()


def _end(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.get("request_id", "")
    if response.status_code == 401 and request.blueprint in _DOCS:
        # A browser asks for a password then; it knows no other way to send a token.
        response.headers["WWW-Authenticate"] = f'Basic realm="{SIGN_IN}"'
    route = request.url_rule.rule if request.url_rule else "unknown"
    elapsed = time.monotonic() - g.begun
    accounts.count(request.method, route, response.status_code, elapsed)
    if g.pop("counted", False):
        metrics.RUNNING.dec()
    if request.method == "PUT" or request.blueprint == resumable.api.name:
        metrics.PAYLOAD_IN.inc(request.content_length or 0)
    is_health = request.blueprint == "health" or request.endpoint == "proseo.health"
    if is_health and response.status_code < 400:
        # Every balancer asks every second: what is well would be most of the log.
        return response
    principal = g.get("principal")
    accounts.tell(
        g.get("request_id", ""),
        request.method,
        request.path,
        response.status_code,
        elapsed,
        principal.subject if principal else None,
        request.remote_addr,
    )
    return response
