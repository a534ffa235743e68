"""``/v1/maintenance``: probe, reconcile, purge; long work that answers in JSON lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from flask import Response

from admin_api.catalog.models import State
from admin_api.services import monitoring, node_reads, reconciliation, removal
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
    "/maintenance/node-reads",
    summary="Can a product be read through every node?",
    responses={"200": ndjson_documented(), **problems.responses()},
)
@needs(Scope.ADMIN)
def read_through_nodes() -> Response:
    """One line per node; a `problem` is a sentence with what to look at."""
    found = node_reads.read_through_nodes(facility())

    def lines() -> Iterator[dict[str, Any]]:
        for read in found:
            yield {"type": "node", **asdict(read)}
        failed = sum(read.problem is not None for read in found)
        yield {"type": "summary", "nodes": len(found), "failed": failed}

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
    """One line per product; nothing held goes, and what cannot go is passed over."""
    purged = removal.purge(facility(), principal(), query.dry_run)

    def lines() -> Iterator[dict[str, Any]]:
        count = size = passed_over = 0
        for product in purged:
            if query.dry_run or product.state == State.REMOVED:
                count, size = count + 1, size + product.size
            else:
                passed_over += 1
            yield {
                "type": "product",
                "id": product.id,
                "name": product.name,
                "state": product.state,
                "size": product.size,
            }
        yield {
            "type": "summary",
            "products": count,
            "bytes": size,
            "passed_over": passed_over,
            "dry_run": query.dry_run,
        }

    return ndjson(lines())
