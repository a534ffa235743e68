"""What is stored, where, how full, how healthy.

Called by ``web/storage.py``, ``web/maintenance.py`` and ``web/health.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select

from admin_api.catalog import clock
from admin_api.catalog.models import Product, State
from admin_api.catalog.usage import Usage, read
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.storage.base import Capacity
from admin_api.storage.probe import Check, probe


@dataclass(frozen=True, slots=True)
class MountStatus:
    """One store of the namespace; ``problem`` is a sentence if it does not answer."""

    path: str
    type: str
    uri: str
    capacity: Capacity
    problem: str | None


def usage(facility: Facility, principal: Principal) -> list[Usage]:
    """Counts and bytes per mission and type, of the missions that the principal may see."""
    with facility.catalog.reading() as session:
        return [item for item in read(session, principal.missions) if item.products]


def mounts(facility: Facility) -> list[MountStatus]:
    """Every store of the namespace and how full it is, as it was seen a moment ago."""
    facility.watch.start()
    found = []
    for mount in facility.settings.storage.mounts:
        seen = facility.watch.stores[mount.path]
        problem = seen.problem()
        capacity = seen.capacity if problem is None else Capacity(None, None)
        uri = facility.storage.stores[mount.path].uri("x").removesuffix("x")
        found.append(MountStatus(mount.path, mount.backend.type, uri, capacity, problem))
    return found


def oldest_work(facility: Facility) -> dict[str, float]:
    """Per passing state the seconds since the last sign of life of the oldest product in it."""
    with facility.catalog.reading() as session:
        now = clock.read(session)
        found = {
            state: session.scalar(
                select(Product.touched_at)
                .where(Product.state == state)
                .order_by(Product.touched_at)
                .limit(1)
            )
            for state in (State.RECEIVING, State.COMMITTING, State.REMOVING)
        }
    return {
        str(state): 0.0 if touched is None else (now - touched).total_seconds()
        for state, touched in found.items()
    }


def readiness(facility: Facility) -> dict[str, str | None]:
    """What is needed for work -> the sentence of what is wrong with it, or None.

    A store must answer and be the one that the catalog expects.  Nothing is waited for.
    """
    facility.watch.start()
    state = {"catalog": facility.watch.catalog.problem()}
    for path, seen in facility.watch.stores.items():
        state[f"storage:/{path}"] = seen.problem()
    return state


def probe_all(facility: Facility) -> Iterator[tuple[str, Check]]:
    """Probe every store of the namespace; raises Unavailable for one that is not ours."""
    for path, store in facility.storage.stores.items():
        facility.storage.require(path)
        for check in probe(store):
            yield path, check
