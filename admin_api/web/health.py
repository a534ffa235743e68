"""``/healthz``: the one thing that needs no token; says little to strangers."""

from __future__ import annotations

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from flask_openapi3.types import ResponseDict

from admin_api.services import monitoring
from admin_api.web import schemas
from admin_api.web.auth import facility
from admin_api.web.operation_ids import operation_id
from admin_api.web.problems import responses
from admin_api.web.replies import json_reply

api = APIBlueprint(
    "health",
    __name__,
    url_prefix="/healthz",
    abp_tags=[Tag(name="Health")],
    operation_id_callback=operation_id,
)
_PROBLEMS: ResponseDict = {
    key: value for key, value in responses().items() if key in ("405", "500")
}


@api.get(
    "/live", summary="Does the process live?", responses={"200": schemas.HealthAnswer, **_PROBLEMS}
)
def live() -> Response:
    """Always 200 while the process answers."""
    return json_reply(schemas.HealthAnswer(status="ok"))


@api.get(
    "/ready",
    summary="Can it work?",
    responses={"200": schemas.HealthAnswer, "503": schemas.HealthAnswer, **_PROBLEMS},
)
def ready() -> Response:
    """503 while the catalog or a store does not answer or is not the expected one."""
    checks = monitoring.readiness(facility())
    failing = any(problem is not None for problem in checks.values())
    answer = schemas.HealthAnswer(status="failing" if failing else "ok", checks=checks)
    return json_reply(answer, 503 if failing else 200)
