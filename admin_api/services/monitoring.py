"""What is stored, where, how full, how healthy.

Called by ``web/storage.py``, ``web/maintenance.py`` and ``web/health.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from sqlalchemy import func, select

from admin_api.catalog.models import Product, State
from admin_api.errors import StorageManagerError
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.storage.base import Capacity, Storage
from admin_api.storage.probe import Check, probe


@dataclass(frozen=True, slots=True)
class Usage:
    """Available products of one mission and type."""

    mission: str | None
    product_type: str | None
    products: int
    files: int
    bytes: int


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
    query = (
        select(
            Product.mission,
            Product.product_type,
            func.count(),
            func.sum(Product.file_count),
            func.sum(Product.size),
        )
        .where(Product.state == State.AVAILABLE)
        .group_by(Product.mission, Product.product_type)
        .order_by(Product.mission, Product.product_type)
    )
    if principal.missions is not None:
        query = query.where(Product.mission.in_(principal.missions))
    with facility.catalog.reading() as session:
        return [
            Usage(mission, kind, products, int(files), int(size))
            for mission, kind, products, files, size in session.execute(query)
        ]


def mounts(facility: Facility) -> list[MountStatus]:
    """Every store of the namespace and how full it is."""
    found = []
    for mount in facility.settings.storage.mounts:
        store = facility.storage.stores[mount.path]
        problem, capacity = None, Capacity(None, None)
        try:
            facility.storage.require(mount.path)
            store.ping()
            capacity = store.capacity()
        except StorageManagerError as error:
            problem = error.detail
        uri = store.uri("x").removesuffix("x")
        found.append(MountStatus(mount.path, mount.backend.type, uri, capacity, problem))
    return found


def readiness(facility: Facility) -> dict[str, str | None]:
    """What is needed for work -> the sentence of what is wrong with it, or None.

    A store must answer and be the one that the catalog expects.
    """

    def answers(path: str, store: Storage) -> None:
        facility.storage.require(path)
        store.ping()

    parts: dict[str, Callable[[], None]] = {"catalog": facility.catalog.ping}
    for path, store in facility.storage.stores.items():
        parts[f"storage:/{path}"] = partial(answers, path, store)
    state: dict[str, str | None] = {}
    for name, ping in parts.items():
        try:
            ping()
            state[name] = None
        except StorageManagerError as error:
            state[name] = error.detail
    return state


def probe_all(facility: Facility) -> Iterator[tuple[str, Check]]:
    """Probe every store of the namespace; raises Unavailable for one that is not ours."""
    for path, store in facility.storage.stores.items():
        facility.storage.require(path)
        for check in probe(store):
            yield path, check
