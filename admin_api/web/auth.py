"""Blueprints that are closed: every request needs a token, unless the blueprint says otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from flask import current_app, g, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from werkzeug.exceptions import UnsupportedMediaType

from admin_api.errors import InvalidRequest, Unauthorized
from admin_api.services.access import Authority, Principal, Scope
from admin_api.services.facility import Facility
from admin_api.services.transfers import Kind, Need
from admin_api.web.operation_ids import operation_id

#: Larger JSON bodies ask for room first; read and taken apart they take so many times their size.
_SMALL_BYTES = 256 << 10
_PARSED_TIMES = 8
P = ParamSpec("P")
R = TypeVar("R")

#: What a browser shows where it asks for the token that opens the documentation.
SIGN_IN = "storage-manager: any name, a token as password"

SECURITY: list[dict[str, list[str]]] = [{"token": []}]


def facility() -> Facility:
    """The facility that the application serves."""
    return cast("Facility", current_app.extensions["facility"])


def principal() -> Principal:
    """Who asks."""
    return cast("Principal", g.principal)


def authenticate() -> None:
    """Check the request's token; raises Unauthorized."""
    authority = cast("Authority", current_app.extensions["authority"])
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise Unauthorized("This needs a token: Authorization: Bearer <token>.")
    g.principal = authority.check(token.strip(), g.request_id)


def authenticate_reader() -> None:
    """Check the token of who reads the documentation: a browser sends it as a password.

    Raises Unauthorized.
    """
    given = request.authorization
    if given is None or given.type != "basic":
        authenticate()
        return
    authority = cast("Authority", current_app.extensions["authority"])
    g.principal = authority.check((given.password or "").strip(), g.request_id)


def needs(scope: Scope, *others: Scope) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Refuse the view unless the token has ``scope``, or one of ``others``."""

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            if not any(principal().has(other) for other in others):
                principal().require(scope)
            return view(*args, **kwargs)

        return checked

    return decorate


def closed_blueprint(name: str, tag: str, takes_json: bool = True, **options: Any) -> APIBlueprint:
    """A blueprint beneath ``/v1`` whose every request needs a token.

    Where ``takes_json`` is false the bodies of POST and PATCH are left alone as well.
    """
    blueprint = APIBlueprint(
        name,
        __name__,
        url_prefix="/v1",
        abp_tags=[Tag(name=tag)],
        abp_security=SECURITY,
        operation_id_callback=operation_id,
        **options,
    )
    blueprint.before_request(authenticate)
    if takes_json:
        blueprint.before_request(_check_json)
    return blueprint


def _check_json() -> None:
    """Refuse a body that is not JSON where JSON is meant, with the place of the mistake.

    Payload (PUT) is left alone.  Comes after the token check: strangers have nothing parsed.
    """
    if request.method not in ("POST", "PATCH"):
        return
    body = json_body()
    if not body:
        return
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("The body must be application/json.")
    if not isinstance(parsed(body), dict):
        raise InvalidRequest("The body must be a JSON object.")


def json_body() -> bytes:
    """The body of a request that is JSON, read within the limits and the budget of the process."""
    request.max_content_length = facility().settings.limits.max_request_bytes
    length = request.content_length or 0
    if "Transfer-Encoding" in request.headers:
        length = request.max_content_length
    if length > _SMALL_BYTES:
        need = Need(memory=_PARSED_TIMES * length)
        g.hold = facility().transfers.take(Kind.CONTROL, need)
    return request.get_data(cache=True)


def parsed(body: bytes) -> object:
    """The JSON of a body; raises InvalidRequest with the place of the mistake."""
    try:
        return json.loads(body.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"The body is not JSON: line {error.lineno}, column {error.colno}: {error.msg}."
        ) from None
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not valid UTF-8.") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    except ValueError:  # Python's own limit for the digits of a number
        raise InvalidRequest("The body holds a number with too many digits.") from None
