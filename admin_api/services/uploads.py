"""Uploads: products pushed by their producer, in one request or in a session of many.

A session is an attempt (a row in state ``receiving``) that lasts: every file is durable when its
request is answered, the files that are missing can be sent later, ``commit`` makes the product.
Single files: ``session_files``, and ``resumable`` for those that come in pieces.
Called by ``web/uploads.py``.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import delete, insert, select

from admin_api.catalog import clock, entries
from admin_api.catalog.entries import FileEntry, ProductEntry, UploadEntry
from admin_api.catalog.models import Product, State, Upload
from admin_api.errors import (
    AlreadyExists,
    InProgress,
    ProductExists,
    StorageManagerError,
)
from admin_api.keys import check_key, join
from admin_api.products.digests import Digester
from admin_api.services import lifecycle, reception, resumable, session_files
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.reception import check_digest
from admin_api.services.session_files import Session
from admin_api.services.sources import SourceFile
from admin_api.services.transfers import Kind, Need
from admin_api.services.unpacking import receive_archive, require_named_mission
from admin_api.services.wishes import Expected, Level, Outcome, Policy, Result, Wish

log = logging.getLogger(__name__)


def receive(
    facility: Facility,
    principal: Principal,
    wish: Wish,
    body: Iterator[bytes],
    expected: Expected,
    archive: str | None,
) -> Outcome:
    """Receive a product from one request body: a file, or an ``archive`` of the given format."""
    require_named_mission(principal, wish.name, archive is not None)
    # Of an archive's files it is not known how large they are.
    size = expected.size if archive is None else None
    with facility.transfers.take(Kind.UPLOAD, Need(memory=facility.storage.put_memory(size))):
        if archive is not None:
            source = SourceFile(wish.name, expected.size, lambda: map(bytes, body))
            return receive_archive(facility, principal, wish, archive, source, expected)
        with reception.begin(facility, principal, wish) as receiving:
            receiving.store(wish.name, body, expected)
            return receiving.commit()


def begin(facility: Facility, principal: Principal, wish: Wish) -> Session:
    """Begin a session for a product of many files."""
    require_named_mission(principal, wish.name)
    attempt = reception.begin_lasting(facility, principal, wish)
    lifetime = timedelta(seconds=facility.settings.housekeeping.upload_seconds)
    with facility.catalog.writing() as session:
        upload = UploadEntry(
            id=uuid.uuid4().hex,
            product_pk=attempt.pk,
            subject=principal.subject,
            policy=wish.policy,
            expires_at=clock.read(session) + lifetime,
        )
        values = {name: getattr(upload, name) for name in UploadEntry.__dataclass_fields__}
        session.execute(insert(Upload).values(values))
    return Session(upload, attempt)


def receive_file(
    facility: Facility,
    principal: Principal,
    upload_id: str,
    path: str,
    body: Iterator[bytes],
    expected: Expected,
) -> tuple[FileEntry, bool]:
    """Receive one file of a session; sending the same again is no error.

    Returns the file and whether it is new.  Raises AlreadyExists for other bytes under the same
    path, InProgress while another request sends it or once the session is being committed.
    """
    current = session_files.open_session(facility, principal, upload_id)
    path = reception.kept_path(facility, path)
    key = check_key(join(current.product.directory, path))
    reception.refuse_size(facility, path, expected)
    owner = uuid.uuid4().hex
    need = Need(memory=facility.storage.put_memory(expected.size))
    with facility.transfers.take(Kind.UPLOAD, need), facility.heartbeat.of_owner(owner):
        stored = session_files.claim(facility, current, path, key, owner)
        if stored is not None:
            _compare(path, body, expected, stored)
            return stored, False
        file = session_files.store(facility, current, path, key, body, expected, owner)
    return file, True


def commit(facility: Facility, principal: Principal, upload_id: str) -> Outcome:
    """Make the session's product exist; asked again, it answers the same.

    After ManifestMismatch and the like the session goes on: the missing files can be sent.
    """
    current = session_files.load(facility, principal, upload_id)
    done = _committed(facility, current)
    if done is not None:
        return done
    current = session_files.open_session(facility, principal, upload_id)
    resumable.finish_all(facility, current)
    product = current.product
    wish = Wish(
        name=product.name,
        policy=Policy(current.upload.policy),
        level=Level(product.level),
        retention_until=product.retention_until,
        source=product.source,
    )
    resumed = reception.resume(facility, principal, wish, product)
    with resumed.alive():
        try:
            return resumed.commit()
        except ProductExists:
            session_files.refuse_committed(facility, current)
            resumed.discard("product_exists")
            raise


def abort(facility: Facility, principal: Principal, upload_id: str) -> None:
    """Give a session up; its files are removed.  Aborting twice is no error."""
    current = session_files.load(facility, principal, upload_id)
    if current.product.state in (State.COMMITTING, State.AVAILABLE):
        raise InProgress("The upload is committed already; remove the product instead.")
    session_files.refuse_committed(facility, current)
    keys = [file.key for file in session_files.files(facility, current)]
    keys += resumable.keys_of(facility, current)
    lifecycle.discard(facility, current.product, principal.actor, "aborted", keys)


def _committed(facility: Facility, current: Session) -> Outcome | None:
    """The outcome of an earlier commit whose answer may have got lost."""
    product = current.product
    if product.state == State.AVAILABLE:
        return Outcome(product, Result.CREATED, session_files.files(facility, current))
    if product.removed_cause == "duplicate":
        with facility.catalog.reading() as session:
            existing = entries.first_of(
                ProductEntry,
                session,
                entries.products().where(
                    Product.name == product.name, Product.state == State.AVAILABLE
                ),
            )
            if existing is not None:
                stored = entries.files_of(session, existing.pk)
                return Outcome(existing, Result.SKIPPED, stored)
    return None


def _compare(path: str, body: Iterator[bytes], expected: Expected, stored: FileEntry) -> None:
    digester = Digester()
    for _ in digester.through(body):
        pass
    found = digester.result()
    check_digest(path, found, expected, Level.DIGEST)
    if (found.size, found.sha256) != (stored.size, stored.sha256):
        raise AlreadyExists(f"{path!r} was sent already, with other content.")


def expire(facility: Facility, at_once: int) -> int:
    """Give up the sessions whose time is over, forget them all; returns how many."""
    with facility.catalog.reading() as session:
        over = session.execute(
            select(Upload.id, *entries.PRODUCT)
            .join(Product, Product.pk == Upload.product_pk)
            .where(Upload.expires_at < clock.read(session))
            .limit(at_once)
        ).all()
    for upload_id, *columns in over:
        attempt = ProductEntry(*columns)
        try:
            if attempt.state == State.RECEIVING:
                lifecycle.expire(facility, attempt, "upload expired", None)
        except StorageManagerError:
            log.exception("an expired upload stays for the next round", extra={"upload": upload_id})
            continue
        with facility.catalog.writing() as session:
            session.execute(delete(Upload).where(Upload.id == upload_id))
    return len(over)
