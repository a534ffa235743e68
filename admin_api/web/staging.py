"""``/v1/stage`` and ``/v1/leases``: files of products as paths, for as long as they are needed."""

from __future__ import annotations

from flask import Response

from admin_api.services import leases, staging
from admin_api.services.access import Scope
from admin_api.web import problems, schemas
from admin_api.web.auth import closed_blueprint, facility, needs, principal
from admin_api.web.replies import json_reply

api = closed_blueprint("staging", "Staging")


@api.post(
    "/stage",
    summary="Have files as paths",
    responses={"201": schemas.StageAnswer, **problems.responses(404, 409, 410, 415, 502, 507)},
)
@needs(Scope.READ)
def stage(body: schemas.StageRequest) -> Response:
    """Answers when every file is there whole; the lease keeps files and products until it ends."""
    lease, staged = staging.stage(
        facility(),
        principal(),
        body.products,
        [(item.product, item.path) for item in body.files],
        body.lease_seconds,
    )
    answer = schemas.StageAnswer(
        **dict(schemas.lease_answer(lease)),
        files=[
            schemas.StagedFileAnswer(
                product=item.product.id,
                path=item.file.path,
                size=item.file.size,
                sha256=item.file.sha256,
                local_path=str(item.local_path),
            )
            for item in staged
        ],
    )
    return json_reply(answer, 201)


@api.get(
    "/leases/<lease_id>",
    summary="Show a lease",
    responses={"200": schemas.LeaseAnswer, **problems.responses(404)},
)
@needs(Scope.READ)
def show(path: schemas.LeasePath) -> Response:
    """The products that it keeps, and until when."""
    return json_reply(schemas.lease_answer(leases.show(facility(), principal(), path.lease_id)))


@api.patch(
    "/leases/<lease_id>",
    summary="Renew a lease",
    responses={"200": schemas.LeaseAnswer, **problems.responses(404, 415)},
)
@needs(Scope.READ)
def renew(path: schemas.LeasePath, body: schemas.RenewRequest) -> Response:
    """It lasts for so many seconds from now."""
    lease = leases.renew(facility(), principal(), path.lease_id, body.lease_seconds)
    return json_reply(schemas.lease_answer(lease))


@api.delete(
    "/leases/<lease_id>",
    summary="End a lease",
    responses={"204": {"description": "it has ended"}, **problems.responses(404)},
)
@needs(Scope.READ)
def end(path: schemas.LeasePath) -> Response:
    """Products may be removed again, files be evicted."""
    leases.end(facility(), principal(), path.lease_id)
    return Response(status=204)
