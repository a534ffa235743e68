"""Who calls: by password, token or client certificate, as the settings choose (contract, 3.12).

Called before every view of the facade but health and downloads, which have tokens of their own.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, cast

from flask import Flask, Response, current_app, g, request

from admin_api.errors import Unauthorized
from admin_api.services.access import Authority, Principal, Scope
from admin_api.services.callers import Callers
from admin_api.services.download_tokens import DownloadTokens
from admin_api.services.facility import Facility

#: Where the answer is kept in a request's environment.
_WHO = "storage_manager.who"
_CHALLENGES = (
    ("basic", 'Basic realm="proseo-storage-mgr", charset="UTF-8"'),
    ("token", 'Bearer realm="proseo-storage-mgr"'),
)


def facility() -> Facility:
    """The facility that the application serves."""
    return cast("Facility", current_app.extensions["facility"])


def principal() -> Principal:
    """Who asks."""
    return cast("Principal", g.principal)


def download_tokens() -> DownloadTokens:
    """What checks download tokens."""
    return cast("DownloadTokens", current_app.extensions["download_tokens"])


def enter(scope: Scope) -> None:
    """Let in who may do ``scope``; raises Unauthorized, Forbidden."""
    g.principal = identify(current_app, request.environ, g.request_id)
    principal().require(scope)


def challenge(response: Response) -> Response:
    """Say how to come in; clients that send nothing unasked wait for this."""
    accepted = facility().settings.proseo.accept
    for way, text in _CHALLENGES:
        if way in accepted:
            response.headers.add("WWW-Authenticate", text)
    return response


def identify(app: Flask, environ: dict[str, Any], request_id: str) -> Principal:
    """Who sends the request of a WSGI environment; raises Unauthorized.

    Whoever asks for the same request again has the same answer: a password is tried once.
    """
    found = environ.get(_WHO)
    if found is None:
        try:
            found = _identify(app, environ, request_id)
        except Unauthorized as error:
            found = error
        environ[_WHO] = found
    if isinstance(found, Unauthorized):
        raise found
    return cast("Principal", found)


def _identify(app: Flask, environ: dict[str, Any], request_id: str) -> Principal:
    settings = cast("Facility", app.extensions["facility"]).settings.proseo
    kind, _, rest = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    callers = cast("Callers", app.extensions["callers"])
    match kind.lower():
        case "basic" if "basic" in settings.accept:
            name, password = _basic(rest)
            return callers.by_password(name, password, request_id)
        case "bearer" if "token" in settings.accept:
            authority = cast("Authority", app.extensions["authority"])
            return authority.check(rest.strip(), request_id)
        case "":
            header = settings.certificate_header.upper().replace("-", "_")
            name = environ.get(f"HTTP_{header}", "").strip()
            if name and "certificate" in settings.accept:
                return callers.by_certificate(name, environ.get("REMOTE_ADDR"), request_id)
    raise Unauthorized("say who you are: " + " or ".join(settings.accept) + ".")


def _basic(text: str) -> tuple[str, str]:
    try:
        name, colon, password = (
            base64.b64decode(text.strip(), validate=True).decode().partition(":")
        )
    except (binascii.Error, ValueError):
        raise Unauthorized("The credentials cannot be read.") from None
    if not colon:
        raise Unauthorized("The credentials cannot be read.")
    return name, password
