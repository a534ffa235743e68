"""``/v1/maintenance``: probe, reconcile, purge; long work that answers in JSON lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from flask import Response

from admin_api.services import monitoring, reconciliation, removal
from admin_api.services.access import Scope
from admin_api.web import problems, schemas
from admin_api.web.auth import closed_blueprint, facility, needs, principal
from admin_api.web.replies import ndjson, ndjson_documented

api = closed_blueprint("maintenance", "Maintenance")


@api.post(
    "/maintenance/probe",
    summary="Do the stores keep their promises?",
    responses={"200": ndjson_documented(), **problems.responses()},
)
@needs(Scope.ADMIN)
def probe() -> Response:
    """One line per check, with a sentence."""
    checks = monitoring.probe_all(facility())

    def lines() -> Iterator[dict[str, Any]]:
        failed = 0
        for path, check in checks:
            failed += not check.passed
            yield {"type": "check", "mount": f"/{path}", **asdict(check)}
        yield {"type": "summary", "failed": failed}

    return ndjson(lines())


@api.post(
    "/maintenance/reconciliation",
    summary="Compare the catalog with the stores",
    responses={"200": ndjson_documented(), **problems.responses()},
)
@needs(Scope.ADMIN)
def reconcile() -> Response:
    """Lines of findings and of progress; safe while ingests run; changes nothing.

    A token that is restricted to missions sees the findings of those only.
    """
    found = reconciliation.reconcile(facility(), principal())

    def lines() -> Iterator[dict[str, Any]]:
        counts: Counter[str] = Counter()
        objects = 0
        for item in found:
            if isinstance(item, reconciliation.Progress):
                objects = item.objects
                yield {"type": "progress", **asdict(item)}
            else:
                counts[item.kind] += 1
                yield {"type": "finding", **asdict(item)}
        yield {"type": "summary", "objects": objects, "findings": dict(counts)}

    return ndjson(lines())


@api.post(
    "/maintenance/purge",
    summary="Remove products whose retention has ended",
    responses={"200": ndjson_documented(), **problems.responses()},
)
@needs(Scope.REMOVE)
def purge(query: schemas.PurgeQuery) -> Response:
    """One line per product; nothing held goes."""
    purged = removal.purge(facility(), principal(), query.dry_run)

    def lines() -> Iterator[dict[str, Any]]:
        count = size = 0
        for product in purged:
            count, size = count + 1, size + product.size
            yield {
                "type": "product",
                "id": product.id,
                "name": product.name,
                "state": product.state,
                "size": product.size,
            }
        yield {"type": "summary", "products": count, "bytes": size, "dry_run": query.dry_run}

    return ndjson(lines())
