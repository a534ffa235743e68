"""What of a product is cached where, and having it cached, kept or let go; the cluster's nodes.

Called by ``web/cache.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from admin_api.errors import NotFound, Unavailable
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.listing import get_product, require_available
from admin_api.storage.alluxio import AlluxioStorage
from admin_api.storage.alluxio_cluster import CachedFile, NodeState

_PARALLEL = 4


class CacheVerb(StrEnum):
    """What can be done with the cached bytes of a product."""

    WARM = "warm"
    FREE = "free"
    PIN = "pin"
    UNPIN = "unpin"


@dataclass(frozen=True, slots=True)
class FileCache:
    """A file's cache: per cent cached, and bytes per (node, tier)."""

    path: str
    size: int
    cached: int
    pinned: bool
    places: dict[tuple[str, str], int]


def look(facility: Facility, principal: Principal, product_id: str) -> Iterator[FileCache]:
    """What the cluster has of every file of an available product.

    Raises NotFound, Gone, InvalidRequest where the product's store has no cache, Unavailable.
    """
    product, files = get_product(facility, principal, product_id)
    require_available(product)
    for file in files:
        store, key = facility.storage.cached(file.key)
        try:
            found = store.cluster.status(key)
        except NotFound:
            found = CachedFile(key, file.size, 0, False, ())
        yield _file_cache(file.path, found)


def change(facility: Facility, principal: Principal, product_id: str, verb: CacheVerb) -> None:
    """Do ``verb`` with every file of an available product; errors as in :func:`look`."""
    product, files = get_product(facility, principal, product_id)
    require_available(product)
    stores = [facility.storage.cached(file.key) for file in files]
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="cache") as pool:
        list(pool.map(lambda item: _change(item[0], item[1], verb), stores))


def nodes(facility: Facility) -> list[NodeState]:
    """Every node of every cluster of the facility; none where there is no cluster."""
    return [
        node
        for store in facility.storage.cached_mounts().values()
        for node in store.cluster.nodes()
    ]


def _change(store: AlluxioStorage, key: str, verb: CacheVerb) -> None:
    match verb:
        case CacheVerb.WARM:
            node = next(store.cluster.nodes_by_preference(key), None)
            if node is None:
                raise Unavailable("No node of the cluster answers.")
            store.cluster.warm(key, node)
        case CacheVerb.FREE:
            store.cluster.free(key)
        case CacheVerb.PIN | CacheVerb.UNPIN:
            store.cluster.pin(key, verb is CacheVerb.PIN)


def _file_cache(path: str, found: CachedFile) -> FileCache:
    places: dict[tuple[str, str], int] = {}
    for block in found.blocks:
        for place in block.places:
            places[place] = places.get(place, 0) + block.size
    return FileCache(path, found.size, found.cached, found.pinned, places)
