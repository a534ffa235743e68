"""Uploads: products pushed by their producer, in one request or in a session of many.

A session is an attempt (a row in state ``receiving``) that lasts: every file is durable when its
request is answered, the files that are missing can be sent later, ``commit`` makes the product.
Called by ``web/uploads.py``.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as CatalogSession

from admin_api.catalog import clock, entries
from admin_api.catalog.entries import FileEntry, ProductEntry, UploadEntry
from admin_api.catalog.models import File, FileClaim, Product, State, Upload
from admin_api.errors import (
    AlreadyExists,
    InProgress,
    InvalidKey,
    NotFound,
    ProductExists,
    StorageManagerError,
    TooLarge,
)
from admin_api.keys import check_key, join
from admin_api.products.digests import Digester
from admin_api.services import lifecycle, multiparts, reception
from admin_api.services.access import Principal
from admin_api.services.contents import Contents
from admin_api.services.facility import Facility
from admin_api.services.reception import check_digest
from admin_api.services.sources import SourceFile
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
    if archive is not None:
        source = SourceFile(wish.name, expected.size, lambda: body)
        return receive_archive(facility, principal, wish, archive, source, expected)
    with reception.begin(facility, principal, wish) as receiving:
        receiving.store(wish.name, body, expected)
        return receiving.commit()


@dataclass(frozen=True, slots=True)
class Session:
    """An upload session and its attempt."""

    upload: UploadEntry
    product: ProductEntry


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


def load(facility: Facility, principal: Principal, upload_id: str) -> Session:
    """A session; raises NotFound, also for the sessions of others."""
    with facility.catalog.reading() as session:
        upload = entries.first_of(
            UploadEntry, session, select(*entries.UPLOAD).where(Upload.id == upload_id)
        )
        if upload is None or (upload.subject != principal.subject and not principal.is_admin):
            raise NotFound(f"There is no upload {upload_id!r}.")
        product = entries.product(session, upload.product_pk)
        assert product is not None
        principal.require_sight(product.mission, f"upload {upload_id!r}")
        return Session(upload, product)


def files(facility: Facility, current: Session) -> list[FileEntry]:
    """What has arrived in a session."""
    with facility.catalog.reading() as session:
        return entries.files_of(session, current.product.pk)


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
    current = _open_session(facility, principal, upload_id)
    path = reception.kept_path(facility, path)
    key = check_key(join(current.product.directory, path))
    reception.refuse_size(facility, path, expected)
    owner = uuid.uuid4().hex
    with facility.heartbeat.of_owner(owner):
        stored = _claim(facility, current, path, key, owner)
        if stored is not None:
            _compare(path, body, expected, stored)
            return stored, False
        file = _store(facility, current, path, key, body, expected, owner)
    return file, True


def _claim(
    facility: Facility, current: Session, path: str, key: str, owner: str
) -> FileEntry | None:
    """Take the path for this request; or the file, if it has arrived already.

    Of two requests that send one file at once, one stores it.  A claim without a sign of life is
    that of a dead request and is taken over, and what that one has left is removed.
    """
    pk = current.product.pk
    grace = timedelta(seconds=facility.settings.housekeeping.commit_grace_seconds)
    try:
        with facility.catalog.writing() as session:
            stored = entries.first_of(
                FileEntry,
                session,
                select(*entries.FILE).where(File.product_pk == pk, File.path == path),
            )
            if stored is not None:
                return stored
            _refuse_clash(session, pk, path)
            now = clock.read(session)
            taken_over = session.scalars(
                update(FileClaim)
                .where(FileClaim.product_pk == pk, FileClaim.path == path)
                .where(FileClaim.touched_at < now - grace)
                .values(owner=owner, touched_at=now)
                .returning(FileClaim.path)
                .execution_options(synchronize_session=False)
            ).first()
            if taken_over is None:
                session.execute(
                    insert(FileClaim).values(product_pk=pk, path=path, owner=owner, touched_at=now)
                )
    except IntegrityError:
        raise InProgress(f"Another request is sending {path!r} right now.") from None
    if taken_over is not None:
        _refuse_committed(facility, current)
        multiparts.abort_for(facility, key)
        with contextlib.suppress(NotFound):
            facility.storage.delete(key)
    return None


def _refuse_clash(session: CatalogSession, pk: int, path: str) -> None:
    """A path is not a file and a directory at once (stores differ there)."""
    parts = path.split("/")
    parents = ["/".join(parts[:count]) for count in range(1, len(parts))]
    for table in (File, FileClaim):
        inner = (table.path > path + "/") & (table.path < path + "0")  # '0' follows '/'
        query = select(table.path).where(
            table.product_pk == pk, or_(table.path.in_(parents), inner)
        )
        if session.scalars(query.limit(1)).first() is not None:
            raise InvalidKey(f"{path!r} is a file and a directory at once.", name=path)


def _store(
    facility: Facility,
    current: Session,
    path: str,
    key: str,
    body: Iterator[bytes],
    expected: Expected,
    owner: str,
) -> FileEntry:
    digester = Digester()
    contents = Contents(facility.settings.limits)
    level = Level(current.product.level)

    def checked() -> Iterator[bytes]:
        yield from contents.counted(path, body, expected, digester)
        check_digest(path, digester.result(), expected, level)

    try:
        facility.storage.put(key, checked(), expected.size)
    except BaseException:
        _release(facility, current, path, owner)  # a put leaves nothing behind when it fails
        raise
    digest = digester.result()
    file = FileEntry(current.product.pk, path, digest.size, digest.sha256, digest.md5, key)
    try:
        if level.includes(Level.READBACK):
            reception.read_back(facility.storage, key, digest)
        with facility.catalog.writing() as session:
            _arrived(session, facility, current, file, owner)
    except InProgress:
        # The path is somebody else's by now, and what lies there may be, too; unless the session
        # was given up so long ago that nobody knows of it.
        lifecycle.clear_forgotten(facility, current.product, [key])
        raise
    except BaseException:
        # Until the bytes are gone the claim stays, so that whoever takes it over removes them.
        facility.storage.delete(key)
        _release(facility, current, path, owner)
        raise
    return file


def _release(facility: Facility, current: Session, path: str, owner: str) -> None:
    with facility.catalog.writing() as session:
        session.execute(delete(FileClaim).where(*_claimed(current, path, owner)))


def _arrived(
    session: CatalogSession, facility: Facility, current: Session, file: FileEntry, owner: str
) -> None:
    mine = session.scalars(
        delete(FileClaim)
        .where(*_claimed(current, file.path, owner))
        .returning(FileClaim.owner)
        .execution_options(synchronize_session=False)
    ).first()
    if mine is None:
        raise InProgress(f"Another request has taken over {file.path!r}.")
    limits = facility.settings.limits
    counted = session.execute(
        update(Product)
        .where(Product.pk == current.product.pk, Product.attempt == current.product.attempt)
        .where(Product.state == State.RECEIVING)
        .values(
            touched_at=clock.now(),
            file_count=Product.file_count + 1,
            size=Product.size + file.size,
        )
        .returning(Product.file_count, Product.size)
        .execution_options(synchronize_session=False)
    ).first()
    if counted is None:
        raise InProgress("The upload was committed or aborted meanwhile.")
    if counted.file_count > limits.max_product_files:
        raise TooLarge(f"A product may have {limits.max_product_files} files.")
    if counted.size > limits.max_product_bytes:
        raise TooLarge(f"The product has more than {limits.max_product_bytes} bytes.")
    lifecycle.add_files(session, [file])


def _claimed(current: Session, path: str, owner: str) -> tuple[Any, ...]:
    return (
        FileClaim.product_pk == current.product.pk,
        FileClaim.path == path,
        FileClaim.owner == owner,
    )


def commit(facility: Facility, principal: Principal, upload_id: str) -> Outcome:
    """Make the session's product exist; asked again, it answers the same.

    After ManifestMismatch and the like the session goes on: the missing files can be sent.
    """
    current = load(facility, principal, upload_id)
    done = _committed(facility, current)
    if done is not None:
        return done
    current = _open_session(facility, principal, upload_id)
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
            _refuse_committed(facility, current)
            resumed.discard("product_exists")
            raise


def abort(facility: Facility, principal: Principal, upload_id: str) -> None:
    """Give a session up; its files are removed.  Aborting twice is no error."""
    current = load(facility, principal, upload_id)
    if current.product.state in (State.COMMITTING, State.AVAILABLE):
        raise InProgress("The upload is committed already; remove the product instead.")
    _refuse_committed(facility, current)
    keys = [file.key for file in files(facility, current)]
    lifecycle.discard(facility, current.product, principal.actor, "aborted", keys)


def _refuse_committed(facility: Facility, current: Session) -> None:
    """Raise InProgress for a session that only a catalog from a backup takes for open.

    Its files are a product's then: nothing of it may be removed.
    """
    if lifecycle.take_in(facility, current.product):
        raise InProgress("The upload is committed already; remove the product instead.")


def _open_session(facility: Facility, principal: Principal, upload_id: str) -> Session:
    current = load(facility, principal, upload_id)
    with facility.catalog.reading() as session:
        now = clock.read(session)
    if current.product.state != State.RECEIVING or current.upload.expires_at < now:
        raise InProgress("The upload was committed, aborted or has expired; begin a new one.")
    return current


def _committed(facility: Facility, current: Session) -> Outcome | None:
    """The outcome of an earlier commit whose answer may have got lost."""
    product = current.product
    if product.state == State.AVAILABLE:
        return Outcome(product, Result.CREATED, files(facility, current))
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
