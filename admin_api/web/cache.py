"""``/v1/products/{id}/cache`` and ``/v1/nodes``: what the cluster caches, and who is in it."""

from __future__ import annotations

from flask import Response

from admin_api.services import caching
from admin_api.services.access import Scope
from admin_api.web import problems, schemas
from admin_api.web.auth import closed_blueprint, facility, needs, principal
from admin_api.web.replies import json_reply

api = closed_blueprint("cache", "Cache")


@api.get(
    "/products/<product_id>/cache",
    summary="What of a product is cached, where",
    responses={"200": schemas.CacheAnswer, **problems.responses(404, 410)},
)
@needs(Scope.READ)
def look(path: schemas.ProductPath) -> Response:
    """Per file the share that is cached, and bytes per node and tier."""
    return json_reply(_answer(path.product_id))


@api.post(
    "/products/<product_id>/cache",
    summary="Warm, free, pin or unpin a product",
    responses={"200": schemas.CacheAnswer, **problems.responses(404, 410, 415)},
)
@needs(Scope.INGEST)
def change(path: schemas.ProductPath, body: schemas.CacheRequest) -> Response:
    """Warm it at the node that serves it, free what is cached, pin it or unpin it."""
    caching.change(facility(), principal(), path.product_id, body.action)
    return json_reply(_answer(path.product_id))


@api.get(
    "/nodes",
    summary="Nodes of the cluster",
    responses={"200": schemas.NodesAnswer, **problems.responses()},
)
@needs(Scope.READ)
def nodes() -> Response:
    """Worker, proxy and balancer of each, and how full its tiers are."""
    answer = schemas.NodesAnswer(
        nodes=[
            schemas.NodeAnswer(
                name=node.name,
                worker=node.worker,
                proxy="up" if node.proxy else "down",
                balancer="up" if node.balancer else "down",
                tiers=[
                    schemas.TierAnswer(name=tier.name, total=tier.total, used=tier.used)
                    for tier in node.tiers
                ],
            )
            for node in caching.nodes(facility())
        ]
    )
    return json_reply(answer)


def _answer(product_id: str) -> schemas.CacheAnswer:
    files = list(caching.look(facility(), principal(), product_id))
    size = sum(file.size for file in files)
    cached = sum(file.size * file.cached for file in files)
    return schemas.CacheAnswer(
        cached=round(cached / size) if size else 100,
        files=[
            schemas.FileCacheAnswer(
                path=file.path,
                size=file.size,
                cached=file.cached,
                pinned=file.pinned,
                places=[
                    schemas.PlaceAnswer(node=node, tier=tier, bytes=count)
                    for (node, tier), count in sorted(file.places.items())
                ],
            )
            for file in files
        ],
    )
