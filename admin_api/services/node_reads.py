"""Whether clients can read: one real product through every node's balancer, proxy and worker.

By a signed link, as a client outside does it, and the certificate verified as a client does.
Called by ``web/maintenance.py`` and, in each round of housekeeping, by ``web/server.py``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from sqlalchemy import select

from admin_api.catalog.models import File, Product, State
from admin_api.errors import StorageManagerError
from admin_api.services.facility import Facility
from admin_api.settings import AlluxioNode
from admin_api.storage.alluxio import AlluxioStorage

_PARALLEL = 8
#: Enough to have come from a worker; the same product each time, so it is cached everywhere.
_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class NodeRead:
    """A read through one node; ``problem`` is a sentence if it failed."""

    node: str
    problem: str | None


def read_through_nodes(facility: Facility) -> list[NodeRead]:
    """Read the beginning of a file through each node; nothing where there is no node or no file.

    Raises CatalogUnavailable and, for a store that is not ours, Unavailable.
    """
    chosen = _file(facility)
    if chosen is None or not facility.storage.cached_mounts():
        return []
    store, key = facility.storage.cached(chosen[0])
    size = min(chosen[1], _BYTES)
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="node-reads") as pool:
        return list(pool.map(partial(_read, store, key, size), store.nodes))


def _read(store: AlluxioStorage, key: str, size: int, node: AlluxioNode) -> NodeRead:
    try:
        store.read_through(node, key, size)
    except StorageManagerError as error:
        return NodeRead(node.name, error.detail)
    return NodeRead(node.name, None)


def _file(facility: Facility) -> tuple[str, int] | None:
    """Key and size of a file of the product that has been here longest."""
    oldest = (
        select(Product.pk)
        .where(Product.state == State.AVAILABLE)
        .order_by(Product.touched_at)
        .limit(1)
        .scalar_subquery()
    )
    query = (
        select(File.key, File.size)
        .where(File.product_pk == oldest, File.size > 0)
        .order_by(File.path)
        .limit(1)
    )
    with facility.catalog.reading() as session:
        row = session.execute(query).first()
    return None if row is None else (row.key, row.size)
