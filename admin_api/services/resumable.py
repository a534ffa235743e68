"""Files of an upload session that are sent in pieces, by several requests if need be.

What arrives is stored as pieces, each an object of its own in the attempt's directory, and is
durable before its end is told as the offset to go on from.  When the last byte is there the file is
written from its pieces as one request would have written it, with the digest of all its bytes.
Called by ``web/resumable.py`` and ``uploads``.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from admin_api.catalog.models import Piece, Resumable
from admin_api.errors import (
    AlreadyExists,
    ClientDisconnected,
    ClientStalled,
    DigestMismatch,
    InProgress,
    NotFound,
    OffsetMismatch,
    SizeMismatch,
    StorageManagerError,
    TooLarge,
)
from admin_api.keys import check_key, join
from admin_api.services import multiparts, reception, session_files
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.session_files import Session
from admin_api.services.transfers import Kind, Need
from admin_api.services.wishes import Expected

#: As much of a file is stored at a time: the most that a client sends again after a crash.
PIECE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a file has arrived, in bytes, and until when the rest can be sent."""

    path: str
    length: int
    offset: int
    expires_at: datetime


def create(
    facility: Facility,
    principal: Principal,
    upload_id: str,
    path: str,
    length: int,
    digests: Expected,
) -> Progress:
    """Announce a file of ``length`` bytes.

    Raises AlreadyExists where it has arrived or is announced, InProgress while another request
    sends it or once the session is being committed, InvalidKey, TooLarge.
    """
    current = session_files.open_session(facility, principal, upload_id)
    path = reception.kept_path(facility, path)
    check_key(join(current.product.directory, path))
    reception.refuse_size(facility, path, Expected(length))
    limit = facility.settings.limits.max_product_bytes
    if current.product.size + length > limit:
        raise TooLarge(f"The product would have more than {limit} bytes.")
    row = {"product_pk": current.product.pk, "path": path, "length": length, "received": 0}
    try:
        with facility.catalog.writing() as session:
            if session_files.stored(session, current, path) is not None:
                raise AlreadyExists(f"{path!r} has arrived already.")
            session_files.refuse_clash(session, current.product.pk, path)
            session_files.refuse_claimed(session, current, path)
            session.execute(
                insert(Resumable).values(row | {"sha256": digests.sha256, "md5": digests.md5})
            )
    except IntegrityError:
        raise AlreadyExists(
            f"{path!r} is announced already: HEAD tells how much of it has arrived."
        ) from None
    if length == 0:
        return _append(facility, current, path, 0, iter(()), 0)
    return Progress(path, length, 0, current.upload.expires_at)


def progress(facility: Facility, principal: Principal, upload_id: str, path: str) -> Progress:
    """How far a file is; raises NotFound for one that was not announced."""
    current = session_files.load(facility, principal, upload_id)
    return _progress(facility, current, reception.kept_path(facility, path))


def _progress(facility: Facility, current: Session, path: str) -> Progress:
    with facility.catalog.reading() as session:
        done = session_files.stored(session, current, path)
        row = session.get(Resumable, (current.product.pk, path))
        if done is not None:
            return Progress(path, done.size, done.size, current.upload.expires_at)
        if row is None:
            raise NotFound(f"The upload has no file {path!r}.")
        return Progress(path, row.length, row.received, current.upload.expires_at)


def append(
    facility: Facility,
    principal: Principal,
    upload_id: str,
    path: str,
    offset: int,
    body: Iterator[bytes],
    announced: int | None,
) -> Progress:
    """Take the bytes from ``offset`` on (``announced``: how many, if that is known).

    What has arrived of a body that breaks off is kept.  With the last byte the file becomes one of
    the session's, and its digests are checked.  Raises NotFound, OffsetMismatch, SizeMismatch for
    more bytes than the file has, InProgress while another request sends it, DigestMismatch (the
    file has to be announced anew then), and what store, catalog and ``body`` raise.
    """
    current = session_files.open_session(facility, principal, upload_id)
    path = reception.kept_path(facility, path)
    return _append(facility, current, path, offset, body, announced)


def _append(
    facility: Facility,
    current: Session,
    path: str,
    offset: int,
    body: Iterator[bytes],
    announced: int | None,
) -> Progress:
    known = _row(facility, current, path)
    if known is None:
        # Sent to its end already: the answer to that may have got lost.
        done = _progress(facility, current, path)
        _refuse(done.path, done.length, done.offset, offset, announced)
        return done
    _refuse(path, known.length, known.received, offset, announced)
    need = Need(memory=facility.storage.put_memory(known.length) + facility.storage.read_memory())
    owner = uuid.uuid4().hex
    with facility.transfers.take(Kind.UPLOAD, need), facility.heartbeat.of_owner(owner):
        key = join(current.product.directory, path)
        if session_files.claim(facility, current, path, key, owner, in_pieces=True) is None:
            try:
                _drop(facility, current, path, unfinished_only=True)
                known = _row(facility, current, path)
                if known is None:
                    raise NotFound(f"The upload has no file {path!r}.")
                _refuse(path, known.length, known.received, offset, announced)
                received = _take(facility, current, known, body, owner)
            except BaseException:
                session_files.release(facility, current, path, owner)
                raise
            if received < known.length:
                session_files.release(facility, current, path, owner)
                return Progress(path, known.length, received, current.upload.expires_at)
            _complete(facility, current, known, owner)
    return _progress(facility, current, path)


def give_up(facility: Facility, principal: Principal, upload_id: str, path: str) -> None:
    """Forget a file that is not whole, with what has arrived of it.

    Raises NotFound, InProgress while a request sends it, AlreadyExists once it has arrived.
    """
    current = session_files.open_session(facility, principal, upload_id)
    path = reception.kept_path(facility, path)
    owner = uuid.uuid4().hex
    if _row(facility, current, path) is None:
        done = _progress(facility, current, path)
        raise AlreadyExists(f"{done.path!r} has arrived; the session as a whole can be aborted.")
    key = join(current.product.directory, path)
    with facility.heartbeat.of_owner(owner):
        if session_files.claim(facility, current, path, key, owner, in_pieces=True) is None:
            try:
                _drop(facility, current, path)
            finally:
                session_files.release(facility, current, path, owner)


def finish_all(facility: Facility, current: Session) -> None:
    """Write the files of which all pieces are there; before a session is committed.

    Raises InProgress for a file that is not whole, and what ``append`` raises of one that is.
    """
    for row in _rows(facility, current):
        with facility.catalog.reading() as session:
            done = session_files.stored(session, current, row.path)
        if done is None and row.received < row.length:
            raise InProgress(
                f"Of {row.path!r} {row.received} of {row.length} bytes have arrived: send the "
                "rest, or give it up (DELETE)."
            )
        owner = uuid.uuid4().hex
        key = join(current.product.directory, row.path)
        with facility.heartbeat.of_owner(owner):
            if session_files.claim(facility, current, row.path, key, owner, in_pieces=True) is None:
                _complete(facility, current, row, owner)
            else:
                _drop(facility, current, row.path)


def keys_of(facility: Facility, current: Session) -> list[str]:
    """The pieces of a session that is given up."""
    with facility.catalog.reading() as session:
        return list(
            session.scalars(select(Piece.key).where(Piece.product_pk == current.product.pk))
        )


@dataclass(frozen=True, slots=True)
class _Row:
    path: str
    length: int
    received: int
    sha256: str | None
    md5: str | None


def _rows(facility: Facility, current: Session, *where: ColumnElement[bool]) -> list[_Row]:
    query = select(
        Resumable.path, Resumable.length, Resumable.received, Resumable.sha256, Resumable.md5
    ).where(Resumable.product_pk == current.product.pk)
    with facility.catalog.reading() as session:
        return [_Row(*row) for row in session.execute(query.where(*where))]


def _row(facility: Facility, current: Session, path: str) -> _Row | None:
    return next(iter(_rows(facility, current, Resumable.path == path)), None)


def _refuse(path: str, length: int, received: int, offset: int, announced: int | None) -> None:
    if offset != received:
        raise OffsetMismatch(
            f"{received} bytes of {path!r} have arrived; the next one goes there, not to {offset}.",
            path=path,
            offset=received,
        )
    if announced is not None and offset + announced > length:
        raise SizeMismatch(
            f"{path!r} was announced with {length} bytes; {offset + announced} would be sent.",
            path=path,
            expected=length,
            found=offset + announced,
        )


class _Incoming:
    """A request's body, to be stored in pieces; that it broke off is told after the last one."""

    def __init__(self, body: Iterator[bytes], row: _Row) -> None:
        self._body = body
        self._row = row
        self._room = row.length - row.received
        self._ahead: bytes | None = None
        self.broke: StorageManagerError | None = None

    def has_more(self) -> bool:
        """Whether there is another byte."""
        while not self._ahead and self.broke is None:
            try:
                self._ahead = next(self._body, None)
            except (ClientDisconnected, ClientStalled) as error:
                self.broke = error
            if self._ahead is None:
                break
            self._room -= len(self._ahead)
            if self._room < 0:
                raise SizeMismatch(
                    f"More bytes than the {self._row.length} of {self._row.path!r} were sent.",
                    path=self._row.path,
                    expected=self._row.length,
                )
        return bool(self._ahead)

    def piece(self) -> Iterator[bytes]:
        """The next bytes, about ``PIECE_BYTES`` of them."""
        size = 0
        while size < PIECE_BYTES and self.has_more():
            chunk, self._ahead = self._ahead or b"", None
            size += len(chunk)
            yield chunk


def _take(
    facility: Facility, current: Session, row: _Row, body: Iterator[bytes], owner: str
) -> int:
    """Store the body; how many bytes of the file are durable then."""
    incoming, received = _Incoming(body, row), row.received
    while incoming.has_more():
        received += _keep(facility, current, row.path, received, incoming.piece(), owner)
    if incoming.broke is not None:
        raise incoming.broke
    return received


def _keep(
    facility: Facility, current: Session, path: str, start: int, chunks: Iterator[bytes], owner: str
) -> int:
    """Store one piece and count it; its size."""
    pk = current.product.pk
    key = join(current.product.directory, f".piece-{uuid.uuid4().hex}")
    with facility.catalog.writing() as session:
        session.execute(insert(Piece).values(product_pk=pk, path=path, start=start, key=key))
    try:
        size = facility.storage.put(key, chunks).size
        with facility.catalog.writing() as session:
            if not session_files.is_mine(session, current, path, owner):
                raise InProgress(f"Another request has taken over {path!r}.")
            session.execute(update(Piece).where(Piece.key == key).values(size=size))
            session.execute(
                update(Resumable)
                .where(Resumable.product_pk == pk, Resumable.path == path)
                .values(received=start + size)
            )
    except BaseException:
        _remove(facility, [key])
        raise
    return size


def _complete(facility: Facility, current: Session, row: _Row, owner: str) -> None:
    """Write the file from its pieces; the claim of ``owner`` ends with it."""
    query = (
        select(Piece.key)
        .where(
            Piece.product_pk == current.product.pk, Piece.path == row.path, Piece.size.is_not(None)
        )
        .order_by(Piece.start)
    )
    with facility.catalog.reading() as session:
        keys = session.scalars(query).all()

    def whole() -> Iterator[bytes]:
        for key in keys:
            yield from facility.storage.open(key)

    target = join(current.product.directory, row.path)
    expected = Expected(row.length, row.sha256, row.md5)
    try:
        session_files.store(facility, current, row.path, target, whole(), expected, owner)
    except (DigestMismatch, SizeMismatch):
        _drop(facility, current, row.path)  # no byte more would make it right
        raise
    _drop(facility, current, row.path)


def _drop(facility: Facility, current: Session, path: str, unfinished_only: bool = False) -> None:
    """Remove the pieces of a file and forget it, or only what dead requests have left of them."""
    where = [Piece.product_pk == current.product.pk, Piece.path == path]
    if unfinished_only:
        where.append(Piece.size.is_(None))
    with facility.catalog.reading() as session:
        found = session.execute(select(Piece.key, Piece.size).where(*where)).all()
    for key, size in found:
        if size is None:  # its writer may be frozen: it shall not end what it has begun
            multiparts.abort_for(facility, key)
    _remove(facility, [key for key, _ in found])
    if not unfinished_only:
        with facility.catalog.writing() as session:
            session.execute(
                delete(Resumable).where(
                    Resumable.product_pk == current.product.pk, Resumable.path == path
                )
            )


def _remove(facility: Facility, keys: Sequence[str]) -> None:
    """The store first: a piece that the catalog does not know would stay."""
    facility.storage.delete_many(keys)
    with facility.catalog.writing() as session:
        session.execute(delete(Piece).where(Piece.key.in_(keys)))
