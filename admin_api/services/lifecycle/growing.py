"""Files that come to an available product, and go from it.

Called by ``gathering.py`` and ``paths.py`` by way of the package (ADR 33).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from sqlalchemy import (
    delete,
    insert,
)
from sqlalchemy.orm import Session

from admin_api.catalog import clock, entries, events, usage
from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.catalog.events import Actor, Happening
from admin_api.catalog.models import (
    File,
    LooseKey,
    Product,
    State,
)
from admin_api.errors import (
    InProgress,
)
from admin_api.products.digests import list_digest
from admin_api.services.facility import Facility
from admin_api.services.lifecycle import beginning, keeping, loose, settling, transitions

log = logging.getLogger(__name__)

_RACE_SECONDS = 0.1


def extend(
    facility: Facility,
    product: ProductEntry,
    actor: Actor,
    files: Sequence[FileEntry],
    owner: str,
) -> ProductEntry:
    """Give an available product further files, or others in the place of those of the same path.

    ``files`` are durable under keys that ``owner`` has loose (``LooseKey``).  The product is seen
    with all of them or with none; those whose place is taken go.  Raises InProgress where it is
    replaced or removed meanwhile, or where ``owner`` was given up; Held, Retained, Leased where a
    file's place is taken and the product must stay as it is; CatalogBehind.
    """
    facility.storage.require_at(f"{product.directory}/")
    paths = {file.path for file in files}

    def change(session: Session, changed: ProductEntry) -> tuple[ProductEntry, list[FileEntry]]:
        present = entries.files_of(session, product.pk)
        out = [file for file in present if file.path in paths]
        if out:
            beginning.refuse_kept(changed, clock.read(session))
            beginning.refuse_leased(session, changed)
        ours = session.scalars(
            delete(LooseKey)
            .where(LooseKey.key.in_([file.key for file in files]), LooseKey.owner == owner)
            .returning(LooseKey.key)
            .execution_options(synchronize_session=False)
        ).all()
        if len(ours) != len(files):
            raise InProgress("The files were given up meanwhile; send them again.")
        changed = _rewrite(session, changed, present, out, files)
        detail = {"files": sorted(paths), "replaced": len(out)}
        events.append(session, actor, [Happening("product.extended", changed, detail)])
        return changed, out

    changed = _change(facility, product, change)
    with facility.catalog.reading() as session:
        return entries.product(session, product.pk) or changed


def withdraw(
    facility: Facility, product: ProductEntry, actor: Actor, paths: Sequence[str], cause: str
) -> None:
    """Take files from an available product that has others; repeatable.

    Raises InProgress where it is replaced or removed meanwhile or where these are all its files
    (``remove`` is for that), Held, Retained, Leased, CatalogBehind.
    """
    facility.storage.require_at(f"{product.directory}/")

    def change(session: Session, changed: ProductEntry) -> tuple[ProductEntry, list[FileEntry]]:
        beginning.refuse_kept(changed, clock.read(session))
        beginning.refuse_leased(session, changed)
        present = entries.files_of(session, product.pk)
        out = [file for file in present if file.path in paths]
        if len(out) == len(present):
            raise InProgress("The product has changed meanwhile; try again.")
        if out:
            changed = _rewrite(session, changed, present, out, ())
        detail = {"files": sorted(file.path for file in out), "cause": cause}
        events.append(session, actor, [Happening("product.reduced", changed, detail)])
        return changed, out

    _change(facility, product, change)


def _change(
    facility: Facility,
    product: ProductEntry,
    change: Callable[[Session, ProductEntry], tuple[ProductEntry, list[FileEntry]]],
) -> ProductEntry:
    """``change`` the files of an available product under its next number, and record it.

    ``change`` is given the row, which is its transaction's then, and returns it as it is with the
    files that go.  No statement of the store has that number: one of a catalog's later life says
    of files that this catalog does not know, and must not be outnumbered by one without them.
    """
    for _ in range(transitions.RACE_ATTEMPTS):
        now = _up_to_date(facility, product)
        with facility.catalog.writing() as session:
            taken = transitions.move(
                session,
                [
                    *transitions.row_of(now, State.AVAILABLE),
                    Product.successor.is_(None),
                    Product.number == now.number,
                ],
                {"number": now.number + 1},
            )
            if not taken:
                continue  # somebody else was faster, or it is going
            changed, out = change(session, taken[0])
        keeping.record_kept(facility, changed)
        loose.clear_loose(facility, [file.key for file in out])
        return changed
    raise InProgress("The product is being changed by many; try again.")


def _up_to_date(facility: Facility, product: ProductEntry) -> ProductEntry:
    """The product as it is now, its next number being free in the store; raises CatalogBehind."""
    before, seen = -1, 0
    while True:
        with facility.catalog.reading() as session:
            now = entries.product(session, product.pk)
        if now is None or now.state != State.AVAILABLE or now.successor is not None:
            raise InProgress("The product is being replaced or removed; look at it again.")
        if not loose.has_later_record(facility, now):
            return now
        # Somebody may have written it just now, and be about to tell the catalog.
        before, seen = now.number, seen + 1 if now.number == before else 0
        if seen == transitions.RACE_ATTEMPTS:
            raise settling.behind(now)
        time.sleep(_RACE_SECONDS)


def _rewrite(
    session: Session,
    product: ProductEntry,
    present: Sequence[FileEntry],
    out: Sequence[FileEntry],
    files: Sequence[FileEntry],
) -> ProductEntry:
    """The product with ``files`` and without those that go ``out``; their keys become loose."""
    gone = {file.path for file in out}
    stay = [file for file in present if file.path not in gone] + list(files)
    session.execute(
        delete(File).where(File.product_pk == product.pk, File.path.in_(gone)),
        execution_options={"synchronize_session": False},
    )
    transitions.add_files(session, files)
    now = clock.read(session)
    if out and not product.registered:
        rows = [{"key": file.key, "owner": "", "touched_at": now} for file in out]
        session.execute(insert(LooseKey), rows)
    usage.go(session, [product])
    changed = transitions.move(
        session,
        transitions.row_of(product, State.AVAILABLE),
        {
            "size": sum(file.size for file in stay),
            "file_count": len(stay),
            "list_digest": list_digest((file.path, file.size, file.sha256) for file in stay),
        },
    )[0]
    usage.come(session, [changed])
    return changed
