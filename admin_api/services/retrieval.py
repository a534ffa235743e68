"""Handing products out: single files, ranges, whole products as an archive.

Bytes come as an open file (sent by the kernel), as a signed link, or as an iterator; the web layer
chooses among what is offered.  Called by ``web/files.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import BinaryIO

from sqlalchemy import select

from admin_api.catalog import entries
from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.catalog.models import File
from admin_api.errors import NotFound, Replaced, StorageManagerError, Unavailable
from admin_api.services.access import Principal
from admin_api.services.archives.writing import Packed, pack_tar, pack_zip, tar_size
from admin_api.services.facility import Facility
from admin_api.services.listing import find_product, get_product, require_available
from admin_api.services.transfers import Hold, Kind, Need


def find_file(
    facility: Facility, principal: Principal, product_id: str, path: str
) -> tuple[ProductEntry, FileEntry]:
    """A file of an available product; raises NotFound, Gone."""
    with facility.catalog.reading() as session:
        product = find_product(session, principal, product_id)
        require_available(product)
        file = entries.first_of(
            FileEntry,
            session,
            select(*entries.FILE).where(File.product_pk == product.pk, File.path == path),
        )
    if file is None:
        raise NotFound(f"The product {product.name!r} has no file {path!r}.")
    return product, file


def local_file(
    facility: Facility, principal: Principal, product: ProductEntry, file: FileEntry
) -> BinaryIO | None:
    """The file, opened, where the store keeps it in one."""
    try:
        return facility.storage.local_file(file.key)
    except NotFound:
        raise vanished(facility, principal, product, file) from None


def link(facility: Facility, file: FileEntry) -> str | None:
    """A signed link to the file, where the store has links and the settings want them."""
    settings = facility.settings.storage
    if not settings.links:
        return None
    return facility.storage.link(file.key, settings.link_seconds, file.path.rpartition("/")[2])


def read(
    facility: Facility,
    principal: Principal,
    product: ProductEntry,
    file: FileEntry,
    start: int,
    stop: int,
) -> Iterator[bytes]:
    """Bytes ``start`` to ``stop`` of the file; all of them, or an error before or in between."""
    try:
        chunks = facility.storage.open(file.key, start, stop)
    except NotFound:
        raise vanished(facility, principal, product, file) from None
    return _complete(chunks, file, stop - start)


def room(facility: Facility) -> Hold:
    """Room for handing out one stream that passes through this process; raises Busy."""
    need = Need(memory=facility.storage.read_memory())
    return facility.transfers.take(Kind.DOWNLOAD, need)


def _complete(chunks: Iterator[bytes], file: FileEntry, size: int) -> Iterator[bytes]:
    sent = 0
    for chunk in chunks:
        sent += len(chunk)
        if sent > size:
            break
        yield chunk
    if sent != size:
        raise Unavailable(f"The store gave {sent} bytes of {file.path!r}; {size} are right.")


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole product as one stream of bytes.

    ``size`` in bytes and ``etag`` are known of a tar, whose bytes follow from the catalog; then
    ``read(start, stop)`` gives any part of it.  Of a zip only the whole can be had.
    """

    product: ProductEntry
    size: int | None
    etag: str | None
    modified: datetime
    read: Callable[[int, int], Iterator[bytes]]


def archive(facility: Facility, principal: Principal, product_id: str, kind: str) -> Whole:
    """A whole product as a ``tar`` or ``zip``; raises NotFound, Gone."""
    product, files = get_product(facility, principal, product_id)
    require_available(product)
    modified = product.available_at or product.created_at

    def packed() -> Iterator[Packed]:
        for file in files:
            yield Packed(
                _inside(product, files, file),
                file.size,
                partial(read, facility, principal, product, file),
            )

    if kind == "zip":
        return Whole(
            product, None, None, modified, lambda _start, _stop: pack_zip(packed(), modified)
        )
    size = tar_size([(_inside(product, files, file), file.size) for file in files], modified)
    made_of = f"tar {product.name} {product.list_digest} {int(modified.timestamp())}"
    return Whole(
        product,
        size,
        hashlib.sha256(made_of.encode()).hexdigest(),
        modified,
        lambda start, stop: pack_tar(packed(), modified, start, stop),
    )


def _inside(product: ProductEntry, files: list[FileEntry], file: FileEntry) -> str:
    """A product that is one file of its own name lies at the top; a tree below its name."""
    if len(files) == 1 and file.path == product.name:
        return file.path
    return f"{product.name}/{file.path}"


def vanished(
    facility: Facility, principal: Principal, product: ProductEntry, file: FileEntry
) -> Exception:
    """Why the store has no bytes for a file that the catalog had a moment ago."""
    with facility.catalog.reading() as session:
        now = entries.product(session, product.pk)
        try:
            require_available(find_product(session, principal, product.id))
            require_available(now or product)
        except StorageManagerError as error:
            return error
        still = select(File.path).where(File.product_pk == product.pk, File.key == file.key)
        is_there = session.scalar(still) is not None
    if not is_there:
        return Replaced(
            f"{file.path!r} of {product.name!r} was replaced while it was opened; ask again."
        )
    return Unavailable(
        f"The store has no bytes for {file.path!r} of {product.name!r}; "
        "an operator should run `storage-manager reconcile`."
    )
