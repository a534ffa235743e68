"""Keys that are no product's file yet, or none any more: who puts bytes there, and when they go.

Called by ``gathering.py`` and housekeeping by way of the package, and by ``growing.py``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import (
    delete,
    exists,
    insert,
    not_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from admin_api.catalog import clock, entries
from admin_api.catalog.entries import ProductEntry
from admin_api.catalog.models import (
    File,
    LooseKey,
    Product,
    State,
)
from admin_api.errors import (
    CatalogBehind,
    InProgress,
    NotFound,
    StorageManagerError,
)
from admin_api.services import records
from admin_api.services.facility import Facility

log = logging.getLogger(__name__)


def claim_loose(facility: Facility, key: str, owner: str) -> None:
    """Write down that ``owner`` is about to put bytes under ``key``; raises InProgress.

    What a dead request was about to put there is taken over, and goes first.
    """
    grace = timedelta(seconds=facility.settings.housekeeping.commit_grace_seconds)
    try:
        with facility.catalog.writing() as session:
            now = clock.read(session)
            taken_over = session.scalars(
                update(LooseKey)
                .where(LooseKey.key == key, LooseKey.touched_at < now - grace)
                .values(owner=owner, touched_at=now)
                .returning(LooseKey.key)
                .execution_options(synchronize_session=False)
            ).first()
            if taken_over is None:
                session.execute(insert(LooseKey).values(key=key, owner=owner, touched_at=now))
    except IntegrityError:
        raise InProgress(f"Another request works on {key!r} right now.") from None
    if taken_over is not None:
        if _is_in_a_later_life(facility, key):
            raise CatalogBehind(
                f"What lies under {key!r} may be a product's of which the catalog does not know, "
                "being older than the store. Run `storage-manager rebuild`, then send it again."
            )
        with contextlib.suppress(NotFound):
            facility.storage.delete(key)


def _is_in_a_later_life(facility: Facility, key: str) -> bool:
    """Whether a loose key may have become a product's file since this catalog was backed up."""
    parts = key.split("/")
    parents = ["/".join(parts[:count]) for count in range(1, len(parts))]
    with facility.catalog.reading() as session:
        products = entries.all_of(
            ProductEntry,
            session,
            entries.products().where(
                Product.directory.in_(parents), Product.state == State.AVAILABLE
            ),
        )
    return any(has_later_record(facility, product) for product in products)


def has_later_record(facility: Facility, product: ProductEntry) -> bool:
    """Whether the store has a statement of a number that this catalog has not given yet."""
    later = records.describe(facility, product, (), product.number + 1, "void")
    try:
        facility.storage.stat(records.key_of(records.mount_path(facility, product), later))
    except NotFound:
        return False
    return True


def release_loose(facility: Facility, key: str, owner: str) -> None:
    """Nothing was put under ``key`` after all; what lies there is not ours."""
    with facility.catalog.writing() as session:
        session.execute(
            delete(LooseKey).where(LooseKey.key == key, LooseKey.owner == owner),
            execution_options={"synchronize_session": False},
        )


def give_up_loose(facility: Facility, owner: str, put: Sequence[str]) -> None:
    """What ``owner`` has ``put`` or was about to goes, unless it is somebody else's by now.

    So it is also where ``owner`` was given up long ago and its rows are gone.  What cannot be
    removed now is housekeeping's.
    """
    try:
        with facility.catalog.reading() as session:
            ours = session.scalars(select(LooseKey.key).where(LooseKey.owner == owner)).all()
            taken = set(session.scalars(select(LooseKey.key).where(LooseKey.key.in_(put))))
            taken |= set(session.scalars(select(File.key).where(File.key.in_(put))))
        keys = sorted({*ours, *(key for key in put if key not in taken)})
        if keys:
            clear_loose(facility, keys)
    except StorageManagerError:
        log.exception("loose keys stay for housekeeping", extra={"owner": owner})


def clear_loose(facility: Facility, keys: Sequence[str]) -> None:
    """The bytes of loose keys go; what cannot be removed now is housekeeping's."""
    try:
        facility.storage.delete_many(keys)
        with facility.catalog.writing() as session:
            session.execute(
                delete(LooseKey).where(LooseKey.key.in_(keys)),
                execution_options={"synchronize_session": False},
            )
    except StorageManagerError:
        log.exception("loose keys stay for housekeeping", extra={"keys": len(keys)})


def clear_stale_loose(facility: Facility, before: datetime, at_once: int) -> int:
    """What nobody has shown signs of working on since ``before`` goes; returns how many."""
    known = exists(select(File.key).where(File.key == LooseKey.key))
    stale = [LooseKey.touched_at < before, not_(known)]
    with facility.catalog.reading() as session:
        keys = session.scalars(select(LooseKey.key).where(*stale).limit(at_once)).all()
    keys = [key for key in keys if not _is_in_a_later_life(facility, key)]
    with facility.catalog.writing() as session:
        # From here on the writer, should it wake up, is told that it came too late.
        session.execute(
            update(LooseKey).where(LooseKey.key.in_(keys), *stale).values(owner=""),
            execution_options={"synchronize_session": False},
        )
        keys = session.scalars(
            select(LooseKey.key).where(LooseKey.key.in_(keys), LooseKey.owner == "", *stale)
        ).all()
    if keys:
        clear_loose(facility, keys)
    return len(keys)
