"""``/v1/products``: ingest by reference, list, show, keep, remove, verify again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from flask import Response, request

from admin_api.catalog.queries import ProductFilter
from admin_api.services import idempotency, listing, removal
from admin_api.services import ingest as ingests
from admin_api.services.access import Scope
from admin_api.services.ingest import Order, Reference
from admin_api.services.verification import verify as verify_product
from admin_api.services.wishes import Expected, Outcome, Result, Wish, other_digests
from admin_api.uris import shown
from admin_api.web import problems, schemas
from admin_api.web.auth import closed_blueprint, facility, needs, principal
from admin_api.web.replies import json_reply, ndjson, ndjson_documented

api = closed_blueprint("products", "Products")


@api.post(
    "/products",
    summary="Ingest one product by reference",
    responses={
        "200": schemas.IngestAnswer,
        "201": schemas.IngestAnswer,
        **problems.responses(404, 409, 415, 422, 502, 507),
    },
)
@needs(Scope.INGEST)
def ingest(header: schemas.IdempotencyHeader, body: schemas.IngestRequest) -> Response:
    """Answers 201 when the product is stored (200: it was there already)."""
    wish = Wish(
        name=body.name or "",
        product_id=body.id,
        policy=body.duplicates,
        level=body.verification,
        retention_until=body.retention,
        source=shown(body.source) if body.source is not None else None,
    )
    order = Order(
        source=body.source,
        references=[
            Reference(
                item.path,
                item.source,
                Expected(item.size, item.sha256, item.md5, other_digests(item.digests)),
            )
            for item in body.files
        ],
        expected=Expected(body.size, body.sha256, body.md5, other_digests(body.digests)),
        register=body.mode == "register",
        unpack=body.unpack,
    )
    fingerprint = hashlib.sha256(b"POST /v1/products\0" + request.get_data()).hexdigest()
    status, answer = idempotency.once(
        facility(),
        principal(),
        header.idempotency_key,
        fingerprint,
        lambda _: outcome_answer(ingests.ingest(facility(), principal(), wish, order)),
    )
    return json_reply(answer, status)


def outcome_answer(outcome: Outcome) -> tuple[int, dict[str, Any]]:
    """Status and body for what came of an ingest."""
    answer = schemas.IngestAnswer(
        **dict(schemas.product_answer(facility(), outcome.product, outcome.files)),
        result=outcome.result.value,
    )
    return 200 if outcome.result is Result.SKIPPED else 201, answer.model_dump(mode="json")


@api.get(
    "/products",
    summary="List products",
    responses={"200": schemas.ProductPage, **problems.responses()},
)
@needs(Scope.READ)
def list_products(query: schemas.ListQuery) -> Response:
    """A page of products; follow ``next``, also from a page that is short or empty.

    By name with a name or prefix, by sensing start with a sensing time, else as they became
    available.
    """
    wish = ProductFilter(
        **{name: getattr(query, name) for name in ProductFilter.__dataclass_fields__}
    )
    page, cursor = listing.list_products(facility(), principal(), wish, query.cursor, query.limit)
    answer = schemas.ProductPage(
        products=[schemas.product_summary(facility(), product) for product in page], next=cursor
    )
    return json_reply(answer)


@api.get(
    "/products/<product_id>",
    summary="Show a product",
    responses={"200": schemas.ProductAnswer, **problems.responses(404)},
)
@needs(Scope.READ)
def show(path: schemas.ProductPath) -> Response:
    """The product with its files; a removed one as its tombstone."""
    product, files = listing.get_product(facility(), principal(), path.product_id)
    return json_reply(schemas.product_answer(facility(), product, files))


@api.delete(
    "/products/<product_id>",
    summary="Remove a product",
    responses={"200": schemas.ProductAnswer, **problems.responses(404, 409)},
)
@needs(Scope.REMOVE)
def remove(path: schemas.ProductPath, query: schemas.RemoveQuery) -> Response:
    """Idempotent: the tombstone each time.  Nothing held or retained is removed (409)."""
    product = removal.remove(facility(), principal(), path.product_id, query.cause)
    return json_reply(schemas.product_answer(facility(), product, []))


@api.patch(
    "/products/<product_id>",
    summary="Hold or retain a product",
    responses={"200": schemas.ProductAnswer, **problems.responses(404, 409, 415, 507)},
)
@needs(Scope.ADMIN)
def keep(path: schemas.ProductPath, body: schemas.KeepRequest) -> Response:
    """Sets or lifts a hold, moves the retention date."""
    wish = removal.Keeping(
        change_hold="hold" in body.model_fields_set,
        hold_reason=body.hold,
        change_retention="retention" in body.model_fields_set,
        retention_until=body.retention,
    )
    product, files = removal.keep(facility(), principal(), path.product_id, wish)
    return json_reply(schemas.product_answer(facility(), product, files))


@api.post(
    "/products/<product_id>/verification",
    summary="Verify a stored product again",
    responses={"200": ndjson_documented(), **problems.responses(404, 410)},
)
@needs(Scope.READ)
def verify(path: schemas.ProductPath, query: schemas.VerifyQuery) -> Response:
    """Reads every file back; one line per file, a summary at the end."""
    results = verify_product(facility(), principal(), path.product_id, query.manifest)

    def lines() -> Iterator[dict[str, Any]]:
        total = failed = 0
        for item in results:
            total, failed = total + 1, failed + (not item.passed)
            yield {
                "type": "file",
                "path": item.path,
                "passed": item.passed,
                "size": item.size,
                "message": item.message,
            }
        yield {"type": "summary", "checked": total, "failed": failed}

    return ndjson(lines())
