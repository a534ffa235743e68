"""The files of an upload session: who may send one, and how it becomes the session's.

A path is claimed by the one request that sends it; the claim lives as long as the request shows
signs of life, and a dead one's is taken over together with what it has left.  Called by
``uploads`` (files that come in one request) and ``resumable`` (in several).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as CatalogSession

from admin_api.catalog import clock, entries
from admin_api.catalog.entries import FileEntry, ProductEntry, UploadEntry
from admin_api.catalog.models import File, FileClaim, Product, Resumable, State, Upload
from admin_api.errors import InProgress, InvalidKey, NotFound, TooLarge
from admin_api.products.digests import Digester
from admin_api.services import lifecycle, multiparts, reception
from admin_api.services.access import Principal
from admin_api.services.contents import Contents
from admin_api.services.facility import Facility
from admin_api.services.reception import check_digest
from admin_api.services.wishes import Expected, Level


@dataclass(frozen=True, slots=True)
class Session:
    """An upload session and its attempt."""

    upload: UploadEntry
    product: ProductEntry


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


def refuse_committed(facility: Facility, current: Session) -> None:
    """Raise InProgress for a session that only a catalog from a backup takes for open.

    Its files are a product's then: nothing of it may be removed.
    """
    if lifecycle.take_in(facility, current.product):
        raise InProgress("The upload is committed already; remove the product instead.")


def open_session(facility: Facility, principal: Principal, upload_id: str) -> Session:
    """A session that still takes files; raises InProgress for others, and as ``load``."""
    current = load(facility, principal, upload_id)
    with facility.catalog.reading() as session:
        now = clock.read(session)
    if current.product.state != State.RECEIVING or current.upload.expires_at < now:
        raise InProgress("The upload was committed, aborted or has expired; begin a new one.")
    return current


def stored(session: CatalogSession, current: Session, path: str) -> FileEntry | None:
    """The file, if it has arrived."""
    query = select(*entries.FILE).where(File.product_pk == current.product.pk, File.path == path)
    return entries.first_of(FileEntry, session, query)


def claim(
    facility: Facility,
    current: Session,
    path: str,
    key: str,
    owner: str,
    in_pieces: bool = False,
) -> FileEntry | None:
    """Take the path for this request; or the file, if it has arrived already.

    Of two requests that send one file at once, one stores it; one that is sent in pieces is sent
    in no other way.  A claim without a sign of life is that of a dead request and is taken over,
    and what that one has left is removed.  Raises InProgress, InvalidKey.
    """
    pk = current.product.pk
    grace = timedelta(seconds=facility.settings.housekeeping.commit_grace_seconds)
    try:
        with facility.catalog.writing() as session:
            found = stored(session, current, path)
            if found is not None:
                return found
            refuse_clash(session, pk, path)
            if not in_pieces and session.get(Resumable, (pk, path)) is not None:
                raise InProgress(
                    f"{path!r} is being sent in pieces; go on with them, or give them up (DELETE)."
                )
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
        refuse_committed(facility, current)
        multiparts.abort_for(facility, key)
        with contextlib.suppress(NotFound):
            facility.storage.delete(key)
    return None


def refuse_clash(session: CatalogSession, pk: int, path: str) -> None:
    """Raise InvalidKey for a path that would be a file and a directory at once: stores differ."""
    parts = path.split("/")
    parents = ["/".join(parts[:count]) for count in range(1, len(parts))]
    for table in (File, FileClaim, Resumable):
        inner = (table.path > path + "/") & (table.path < path + "0")  # '0' follows '/'
        query = select(table.path).where(
            table.product_pk == pk, or_(table.path.in_(parents), inner)
        )
        if session.scalars(query.limit(1)).first() is not None:
            raise InvalidKey(f"{path!r} is a file and a directory at once.", name=path)


def store(
    facility: Facility,
    current: Session,
    path: str,
    key: str,
    body: Iterator[bytes],
    expected: Expected,
    owner: str,
) -> FileEntry:
    """Store the file that ``owner`` has claimed and make it the session's; the claim ends with it.

    Raises what digests, limits, store and catalog raise, and InProgress for a claim that was taken
    over meanwhile; nothing is left of the file then.
    """
    digester = Digester()
    contents = Contents(facility.settings.limits)
    level = Level(current.product.level)

    def checked() -> Iterator[bytes]:
        yield from contents.counted(path, body, expected, digester)
        check_digest(path, digester.result(), expected, level)

    try:
        facility.storage.put(key, checked(), expected.size)
    except BaseException:
        release(facility, current, path, owner)  # a put leaves nothing behind when it fails
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
        release(facility, current, path, owner)
        raise
    return file


def release(facility: Facility, current: Session, path: str, owner: str) -> None:
    """Give a claim back."""
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


def refuse_claimed(session: CatalogSession, current: Session, path: str) -> None:
    """Raise InProgress for a path that a request is sending."""
    if session.get(FileClaim, (current.product.pk, path)) is not None:
        raise InProgress(f"Another request is sending {path!r} right now.")


def is_mine(session: CatalogSession, current: Session, path: str, owner: str) -> bool:
    """Whether the claim is still that of ``owner``, and stays so until the transaction ends."""
    query = select(FileClaim.owner).where(*_claimed(current, path, owner)).with_for_update()
    return session.scalars(query).first() is not None


def _claimed(current: Session, path: str, owner: str) -> tuple[Any, ...]:
    return (
        FileClaim.product_pk == current.product.pk,
        FileClaim.path == path,
        FileClaim.owner == owner,
    )
