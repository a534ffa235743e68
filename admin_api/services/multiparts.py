"""Clearing multipart uploads that their writers have left behind, and fencing these writers.

Only uploads that are in the catalog's journal are ever touched, by their exact keys: a bucket may
be shared, and an upload that is under way looks like one that is not.  First the entry gets another
ticket: a writer that was only frozen completes nothing without its own (``storage/multipart.py``).
Then the upload is aborted: a writer that had its answer before finds nothing to complete.  Then the
entry goes.

Called by housekeeping, and where the claim on a file is taken over from a request that is dead.
"""

from __future__ import annotations

import logging
import uuid
from datetime import datetime

from sqlalchemy import delete, select

from admin_api.catalog.models import File, Multipart, Product, State
from admin_api.errors import NotFound, StorageManagerError
from admin_api.services.facility import Facility

log = logging.getLogger(__name__)

_AT_ONCE = 1000


def clear(facility: Facility, stale: datetime) -> int:
    """Abort what dead attempts have left; returns how many uploads were aborted.

    An entry stays while it is younger than ``stale``, or while its key lies in the directory of an
    attempt that is receiving or committing (housekeeping gives up those that are dead).  Where an
    object stands under the key the upload was completed, so its entry is only dropped; that goes
    for every key that a product has: some services take a finished object apart when its upload is
    aborted.  What fails is tried again in the next round.
    """
    with facility.catalog.reading() as session:
        entries = session.execute(
            select(Multipart.mount, Multipart.key)
            .where(Multipart.begun_at < stale)
            .order_by(Multipart.begun_at)
            .limit(_AT_ONCE)
        )
        keys = {(mount, key) for mount, key in entries}
    aborted = 0
    for mount, key in sorted(keys):
        try:
            if not _is_live(facility, key) and _fence(facility, mount, key, stale):
                is_held = _is_held(facility, key)
                aborted += 0 if is_held else _abort(facility, mount, key)
                _forget(facility, mount, key)
        except StorageManagerError:
            log.exception("a multipart upload stays for the next round", extra={"key": key})
    return aborted


def abort_for(facility: Facility, key: str) -> int:
    """Abort every upload of ours for ``key`` (in the namespace); returns how many.

    For whoever takes over the claim on the key, before beginning to write it: what was begun under
    the old claim can never be completed any more.  Raises what catalog and store raise.
    """
    mount = facility.storage.mount_of(key)
    if not _fence(facility, mount, key):
        return 0
    aborted = _abort(facility, mount, key)
    _forget(facility, mount, key)
    return aborted


def _is_live(facility: Facility, key: str) -> bool:
    parts = key.split("/")
    directories = ["/".join(parts[:count]) for count in range(1, len(parts))]
    with facility.catalog.reading() as session:
        attempt = session.scalars(
            select(Product.pk).where(
                Product.directory.in_(directories),
                Product.state.in_((State.RECEIVING, State.COMMITTING)),
            )
        ).first()
    return attempt is not None


def _fence(facility: Facility, mount: str, key: str, stale: datetime | None = None) -> bool:
    """Take the tickets of a key's writers away; False if it has none, or one begun after stale."""
    with facility.catalog.writing() as session:
        entries = session.scalars(
            select(Multipart).where(Multipart.mount == mount, Multipart.key == key)
        ).all()
        if not entries or (stale is not None and any(row.begun_at >= stale for row in entries)):
            return False
        begun_at = min(row.begun_at for row in entries)
        session.execute(
            delete(Multipart).where(Multipart.ticket.in_([row.ticket for row in entries]))
        )
        session.add(Multipart(mount=mount, ticket=uuid.uuid4().hex, key=key, begun_at=begun_at))
    return True


def _is_held(facility: Facility, key: str) -> bool:
    """Whether a product has the key, or an object stands there all the same."""
    with facility.catalog.reading() as session:
        if session.scalars(select(File.key).where(File.key == key)).first() is not None:
            return True
    try:
        facility.storage.stat(key)
    except NotFound:
        return False
    return True


def _abort(facility: Facility, mount: str, key: str) -> int:
    bucket = facility.storage.bucket(mount)
    if bucket is None:
        log.warning("no bucket is mounted any more where an upload began", extra={"key": key})
        return 0
    return bucket.abort(key[len(mount) + 1 :] if mount else key)


def _forget(facility: Facility, mount: str, key: str) -> None:
    with facility.catalog.writing() as session:
        session.execute(delete(Multipart).where(Multipart.mount == mount, Multipart.key == key))
