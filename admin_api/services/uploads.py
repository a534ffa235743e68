"""Uploads: products pushed by their producer, in one request or in a session of many.

A session is an attempt (a row in state ``receiving``) that lasts: every file is durable when its
request is answered, the files that are missing can be sent later, ``commit`` makes the product.
Called by ``web/uploads.py``.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError

from admin_api.catalog import events
from admin_api.catalog.database import changed
from admin_api.catalog.models import File, Product, State, Upload
from admin_api.errors import (
    AlreadyExists,
    InProgress,
    NotFound,
    ProductExists,
)
from admin_api.products.digests import Digester
from admin_api.services import records
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.reception import Reception, check_digest, give_up, skipped
from admin_api.services.sources import SourceFile
from admin_api.services.unpacking import receive_archive, require_named_mission
from admin_api.services.wishes import Expected, Level, Outcome, Policy, Result, Wish


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
    if archive is not None:
        source = SourceFile(wish.name, expected.size, lambda: body)
        return receive_archive(facility, principal, wish, archive, source, expected)
    with Reception(facility, principal.actor, wish) as reception:
        reception.store(wish.name, body, expected)
        return reception.commit()


@dataclass(frozen=True, slots=True)
class Session:
    """An upload session with what has arrived."""

    upload: Upload
    product: Product
    files: list[File]


def begin(facility: Facility, principal: Principal, wish: Wish) -> Session:
    """Begin a session for a product of many files."""
    require_named_mission(principal, wish.name)
    with Reception(facility, principal.actor, wish, store_always=True) as reception:
        upload = Upload(
            id=uuid.uuid4().hex,
            product_pk=reception.pk,
            subject=principal.subject,
            policy=wish.policy,
            expires_at=datetime.now(UTC)
            + timedelta(seconds=facility.settings.housekeeping.upload_seconds),
        )
        with facility.catalog.writing() as session:
            session.add(upload)
        return load(facility, principal, upload.id)


def load(facility: Facility, principal: Principal, upload_id: str) -> Session:
    """A session; raises NotFound, also for the sessions of others."""
    with facility.catalog.reading() as session:
        upload = session.get(Upload, upload_id)
        if upload is None or (upload.subject != principal.subject and not principal.is_admin):
            raise NotFound(f"There is no upload {upload_id!r}.")
        product = session.get_one(Product, upload.product_pk)
        principal.require_sight(product.mission, f"upload {upload_id!r}")
        return Session(upload, product, records.files_of(session, product))


def receive_file(
    facility: Facility,
    principal: Principal,
    upload_id: str,
    path: str,
    body: Iterator[bytes],
    expected: Expected,
) -> tuple[File, bool]:
    """Receive one file of a session; sending the same again is no error.

    Returns the file and whether it is new.  Raises AlreadyExists for other bytes under the same
    path, InProgress once the session is being committed.
    """
    current = _open_session(facility, principal, upload_id)
    reception = _resume(facility, principal, current)
    stored = next((file for file in current.files if file.path == path), None)
    if stored is not None:
        _compare(path, body, expected, stored)
        return stored, False
    try:
        digest = reception.store(path, body, expected)
    except AlreadyExists:
        raise AlreadyExists(
            f"Another request sends or has sent {path!r}. If none does, abort the upload and begin "
            "a new one."
        ) from None
    file = File(
        product_pk=current.product.pk,
        path=path,
        size=digest.size,
        sha256=digest.sha256,
        md5=digest.md5,
        key=f"{current.product.directory}/{path}",
    )
    try:
        with facility.catalog.writing() as session:
            touched = changed(
                session,
                update(Product)
                .where(Product.pk == current.product.pk, Product.state == State.RECEIVING)
                .values(touched_at=datetime.now(UTC)),
            )
            if not touched:
                raise InProgress("The upload was committed or aborted meanwhile.")
            session.add(file)
    except IntegrityError:
        raise AlreadyExists(f"Another request has sent {path!r}.") from None
    return file, True


def commit(facility: Facility, principal: Principal, upload_id: str) -> Outcome:
    """Make the session's product exist; asked again, it answers the same.

    After ManifestMismatch and the like the session goes on: the missing files can be sent.
    """
    current = load(facility, principal, upload_id)
    done = _committed(facility, current)
    if done is not None:
        return done
    reception = _resume(facility, principal, _open_session(facility, principal, upload_id))
    try:
        return reception.commit()
    except ProductExists:
        reception.discard("product_exists")
        raise


def abort(facility: Facility, principal: Principal, upload_id: str) -> None:
    """Give a session up; its files are removed.  Aborting twice is no error."""
    current = load(facility, principal, upload_id)
    if current.product.state in (State.COMMITTING, State.AVAILABLE):
        raise InProgress("The upload is committed already; remove the product instead.")
    _resume(facility, principal, current).discard("aborted")


def _open_session(facility: Facility, principal: Principal, upload_id: str) -> Session:
    current = load(facility, principal, upload_id)
    if current.product.state != State.RECEIVING or current.upload.expires_at < datetime.now(UTC):
        raise InProgress("The upload was committed, aborted or has expired; begin a new one.")
    return current


def _resume(facility: Facility, principal: Principal, current: Session) -> Reception:
    product = current.product
    wish = Wish(
        name=product.name,
        policy=Policy(current.upload.policy),
        level=Level(product.level),
        retention_until=product.retention_until,
        source=product.source,
    )
    return Reception.resume(facility, principal.actor, wish, product, current.files)


def _committed(facility: Facility, current: Session) -> Outcome | None:
    """The outcome of an earlier commit whose answer may have got lost."""
    product = current.product
    if product.state == State.AVAILABLE:
        return Outcome(product, Result.CREATED, current.files)
    if product.removed_cause == "duplicate":
        with facility.catalog.reading() as session:
            existing = session.scalars(
                select(Product).where(
                    Product.name == product.name, Product.state == State.AVAILABLE
                )
            ).first()
            if existing is not None:
                return skipped(session, existing)
    return None


def _compare(path: str, body: Iterator[bytes], expected: Expected, stored: File) -> None:
    digester = Digester()
    for _ in digester.through(body):
        pass
    found = digester.result()
    check_digest(path, found, expected, Level.DIGEST)
    if (found.size, found.sha256) != (stored.size, stored.sha256):
        raise AlreadyExists(f"{path!r} was sent already, with other content.")


def expire(facility: Facility) -> int:
    """Give up the sessions whose time is over, forget them all; returns how many."""
    with facility.catalog.reading() as session:
        over = session.scalars(
            select(Upload).where(Upload.expires_at < datetime.now(UTC)).limit(1000)
        ).all()
    for upload in over:
        with facility.catalog.writing() as session:
            give_up(session, upload.product_pk, events.SYSTEM, "upload expired")
            session.execute(delete(Upload).where(Upload.id == upload.id))
    return len(over)
