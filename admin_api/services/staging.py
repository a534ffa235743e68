"""Staging: files of products as paths, with a lease (design section 4).

What lies in a directory is handed out as it lies, if the settings say that processors see it;
everything else is copied into the staging cache first.  Called by ``web/staging.py`` and by the
prosEO facade.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.errors import InvalidRequest, NotFound, StorageManagerError
from admin_api.services import leases, retrieval
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.leases import LeaseEntry
from admin_api.services.listing import get_product, require_available
from admin_api.services.stage_cache import Wanted

_FILE = "file://"


@dataclass(frozen=True, slots=True)
class Staged:
    """A file of a product, and where it can be read."""

    product: ProductEntry
    file: FileEntry
    local_path: Path


def stage(
    facility: Facility,
    principal: Principal,
    products: Sequence[str],
    files: Sequence[tuple[str, str]],
    seconds: int | None,
) -> tuple[LeaseEntry, list[Staged]]:
    """Stage whole ``products`` and single ``files`` (id and path); all are there when it returns.

    The lease keeps the products and the staged files for ``seconds``.  Nothing is leased after an
    error: those of ``listing``, ``leases`` and ``stage_cache``.
    """
    wanted = list(_chosen(facility, principal, products, files))
    if not wanted:
        raise InvalidRequest("Name at least one product or file.")
    pks = sorted({product.pk for product, _ in wanted})
    lease = leases.take(facility, principal, pks, seconds)
    try:
        for _, file in wanted:
            with contextlib.suppress(NotFound):  # told in its turn
                _begin(facility, file)
        staged = [
            Staged(product, file, place(facility, principal, product, file))
            for product, file in wanted
        ]
    except BaseException:
        with contextlib.suppress(StorageManagerError):
            leases.end(facility, principal, lease.id)
        raise
    return lease, staged


def place(facility: Facility, principal: Principal, product: ProductEntry, file: FileEntry) -> Path:
    """The path of a file of an available product; waits for it where it must be copied.

    Raises Gone, NotFound where the product went meanwhile, Unavailable where the store has lost
    the file, and the errors of ``stage_cache``.
    """
    try:
        return path_of(facility, file.key, file.size, file.sha256)
    except NotFound:
        raise retrieval.vanished(facility, principal, product, file) from None


def path_of(facility: Facility, key: str, size: int, sha256: str) -> Path:
    """As ``place``, by what the catalog says of the file; raises NotFound where it is not there."""
    there = in_place(facility, key)
    if there is not None:
        facility.storage.stat(key)
        return there
    return facility.stage_cache.get(_wanted(facility, key, size, sha256))


def in_place(facility: Facility, key: str) -> Path | None:
    """The path of what lies in a directory, if processors see it there; None: it is copied."""
    if not facility.settings.staging.in_place:
        return None
    uri = facility.storage.uri(key)
    return Path(unquote(uri.removeprefix(_FILE))) if uri.startswith(_FILE) else None


def _wanted(facility: Facility, key: str, size: int, sha256: str) -> Wanted:
    """What the cache is asked for: a product's file, whose digest is known."""
    return Wanted(key, size, sha256, sha256, lambda: facility.storage.open(key))


def _begin(facility: Facility, file: FileEntry) -> None:
    if in_place(facility, file.key) is None:
        facility.stage_cache.start(_wanted(facility, file.key, file.size, file.sha256))


def _chosen(
    facility: Facility,
    principal: Principal,
    products: Sequence[str],
    files: Sequence[tuple[str, str]],
) -> Iterator[tuple[ProductEntry, FileEntry]]:
    known: set[tuple[str, str]] = set()
    for product_id in products:
        product, found = get_product(facility, principal, product_id)
        require_available(product)
        for file in found:
            known.add((product_id, file.path))
            yield product, file
    for product_id, path in files:
        if (product_id, path) not in known:
            known.add((product_id, path))
            yield retrieval.find_file(facility, principal, product_id, path)
