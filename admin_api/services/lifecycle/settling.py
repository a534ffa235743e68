"""Finding out from the store alone whether a commit happened, and ending it either way.

Called by ``committing.py`` after an error, by ``giving_up.py``, and by housekeeping by way of the
package.
"""

from __future__ import annotations

import contextlib
import logging

from sqlalchemy import (
    delete,
)
from sqlalchemy.exc import IntegrityError

from admin_api.catalog import clock, entries
from admin_api.catalog.entries import ProductEntry
from admin_api.catalog.events import SYSTEM
from admin_api.catalog.models import (
    File,
    State,
)
from admin_api.errors import (
    AlreadyExists,
    CatalogBehind,
)
from admin_api.products.records import Statement
from admin_api.services import records
from admin_api.services.facility import Facility
from admin_api.services.lifecycle import beginning, promoting, removing, transitions

log = logging.getLogger(__name__)


def settle(facility: Facility, attempt: ProductEntry) -> bool:
    """Finish or undo a commit whose process died or whose record was not confirmed.

    A ``void`` statement is put under the record's key: if the store takes it, there was no record
    and never will be one; if the key is taken, the record decides.  Returns whether the product
    exists now.
    """
    with facility.catalog.reading() as session:
        found = entries.product(session, attempt.pk)
    if found is None or found.attempt != attempt.attempt or found.state != State.COMMITTING:
        return found is not None and found.state == State.AVAILABLE
    recorded = put_void(facility, found)
    if recorded is not None and _is_of(recorded, found):
        if _has_numbers_of(found, recorded):
            promoting.promote(facility, found, SYSTEM, recorded.available_at)
            return True
        # A session of an older catalog is committed again: what its first commit said is true.
        try:
            return _adopt(facility, found, recorded)
        except IntegrityError as error:
            raise behind(found) from error
    with facility.catalog.writing() as session:
        undone = transitions.undo(session, found)
    if undone:
        removing.finish(facility, found.pk)
    if recorded is not None:
        raise behind(found)
    return False


def _has_numbers_of(attempt: ProductEntry, record: Statement) -> bool:
    """Whether the catalog has of a product what its record says."""
    told = (attempt.id, attempt.generation, attempt.list_digest)
    return told == (record.id, record.generation, record.list_digest)


def behind(attempt: ProductEntry) -> CatalogBehind:
    """What a client is told where the store knows more of a product than the catalog."""
    return CatalogBehind(
        f"The store holds a record of {attempt.name!r}, generation {attempt.generation}, that the "
        "catalog does not know: the catalog is older than the store. Run `storage-manager "
        "rebuild`, then send the product again."
    )


def put_void(facility: Facility, attempt: ProductEntry) -> Statement | None:
    """See to it that there is no record and never will be; the record if there is one."""
    void = records.describe(facility, attempt, (), 1, "void")
    try:
        records.write(facility, records.mount_path(facility, attempt), void)
    except AlreadyExists:
        return records.of_attempt(facility, attempt)
    return None


def _is_of(statement: Statement, attempt: ProductEntry) -> bool:
    """Whether a record is that of this attempt and not of another with the same numbers."""
    if statement.attempt:
        return statement.attempt == attempt.attempt
    return not attempt.attempt or statement.list_digest == attempt.list_digest


def take_in(facility: Facility, attempt: ProductEntry) -> bool:
    """Whether the store has the record of an attempt that the catalog takes for running.

    The catalog was restored from a backup then; the product is taken in.
    """
    recorded = records.of_attempt(facility, attempt)
    if recorded is None or not _is_of(recorded, attempt):
        return False
    with contextlib.suppress(IntegrityError):  # another commit of the name: next time
        _adopt(facility, attempt, recorded)
    return True


def _adopt(facility: Facility, attempt: ProductEntry, record: Statement) -> bool:
    """Receiving, committing -> available, by a record that a later life of the catalog has written.

    Unless a later generation is there by now: the product was replaced then, and goes.  Returns
    whether it is there.  What has been sent to the attempt since, and is not the record's, goes.
    """
    mount = records.mount_path(facility, attempt)
    files = records.recorded_files(mount, record, attempt.pk)
    values = {
        "number": 1,
        "id": record.id,
        "generation": record.generation,
        "size": sum(file.size for file in files),
        "file_count": len(files),
        "list_digest": record.list_digest,
    }
    with facility.catalog.writing() as session:
        newer = beginning.available(session, attempt.name)
        if newer is not None and newer.generation > record.generation:
            values |= {
                "state": State.REMOVING,
                "number": 2,
                "recorded": 1,
                "available_at": record.available_at,
                "removed_at": clock.now(),
                "removed_by": SYSTEM.subject,
                "removed_cause": f"replaced by generation {newer.generation}",
            }
        else:
            values["state"] = State.COMMITTING
        found = transitions.move(
            session, transitions.row_of(attempt, State.RECEIVING, State.COMMITTING), values
        )
        if not found:
            return False
        stray = {file.key for file in entries.files_of(session, attempt.pk)}
        stray -= {file.key for file in files}
        session.execute(delete(File).where(File.product_pk == attempt.pk))
        transitions.add_files(session, files)
        if found[0].state == State.REMOVING:
            transitions.release(session, [attempt.pk])
    if not attempt.registered:
        facility.storage.delete_many(sorted(stray))
    if found[0].state == State.REMOVING:
        removing.finish(facility, attempt.pk)
        return False
    promoting.promote(facility, found[0], SYSTEM, record.available_at)
    return True
