"""``/v1/storage`` and ``/v1/events``: what is stored, how full, and what happened."""

from __future__ import annotations

from dataclasses import asdict

from flask import Response

from admin_api.catalog.queries import EventFilter
from admin_api.services import caching, listing, monitoring
from admin_api.services.access import Scope
from admin_api.web import problems, schemas
from admin_api.web.auth import closed_blueprint, facility, needs, principal
from admin_api.web.replies import json_reply

api = closed_blueprint("storage", "Storage")


@api.get(
    "/storage",
    summary="What is stored, where, how full",
    responses={"200": schemas.StorageAnswer, **problems.responses()},
)
@needs(Scope.READ)
def storage() -> Response:
    """Profile, mounts with their capacity, counts and bytes per mission and type."""
    usage = monitoring.usage(facility(), principal())
    answer = schemas.StorageAnswer(
        profile=facility().settings.profile,
        tiers=_tiers(),
        mounts=[
            schemas.MountAnswer(
                path=f"/{mount.path}",
                type=mount.type,
                uri=mount.uri,
                capacity=schemas.CapacityAnswer(**asdict(mount.capacity)),
                problem=mount.problem,
            )
            for mount in monitoring.mounts(facility())
        ],
        usage=[
            schemas.UsageAnswer(
                mission=item.mission,
                product_type=item.product_type,
                products=item.products,
                files=item.files,
                bytes=item.bytes,
            )
            for item in usage
        ],
        products=sum(item.products for item in usage),
        bytes=sum(item.bytes for item in usage),
    )
    return json_reply(answer)


@api.get(
    "/events",
    summary="The change feed and audit log",
    responses={"200": schemas.EventPage, **problems.responses()},
)
@needs(Scope.READ)
def events(query: schemas.EventQuery) -> Response:
    """Events behind a number; ask again with ``next`` as ``after`` for what happens later.

    With ``order=desc`` the newest come first; ask again with ``next`` as ``before`` for older ones.
    """
    wish = EventFilter(**{name: getattr(query, name) for name in EventFilter.__dataclass_fields__})
    found = listing.list_events(facility(), principal(), wish, query.limit)
    last = query.after if query.order == "asc" else query.before or 0
    page = schemas.EventPage(
        events=[schemas.event_answer(event) for event in found],
        next=found[-1].number if found else last,
    )
    return json_reply(page)


@api.get(
    "/events/chain",
    summary="Whether the event log is whole",
    responses={"200": schemas.ChainAnswer, **problems.responses()},
)
@needs(Scope.ADMIN)
def chain() -> Response:
    """Checks the number and the seal of every event."""
    count, broken = listing.verify_events(facility())
    return json_reply(schemas.ChainAnswer(events=count, intact=broken is None, first_broken=broken))


def _tiers() -> list[schemas.TierAnswer]:
    """The tiers of all nodes together, the fastest first."""
    sums: dict[str, schemas.TierAnswer] = {}
    for node in caching.nodes(facility()):
        for tier in node.tiers:
            total = sums.setdefault(tier.name, schemas.TierAnswer(name=tier.name, total=0, used=0))
            total.total += tier.total
            total.used += tier.used
    return list(sums.values())
