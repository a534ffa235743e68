"""Products whose files come one by one, without a word on which is the last: prosEO's outputs.

Every file that is answered for is durable, recorded and the product's, so there is nothing to be
ended and nothing to be lost: the first files make the product, later ones extend it.  All files of
a product lie in the directory that the first of them was given (defect D7 of the contract).  A file
that comes again with the same bytes changes nothing; with others it takes the place of the first,
under a key of its own (keys are written once), and its path stays (defect D5).

Callers of this contract do not come again after a refusal, so here they wait for a while: for room
in the process, and for another request about the same product.  Called by ``web/proseo``.
"""

from __future__ import annotations

import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select

from admin_api.catalog import clock, entries
from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.catalog.models import Event, Product, State
from admin_api.errors import (
    AlreadyExists,
    Busy,
    InProgress,
    InvalidRequest,
    ProductExists,
    TooLarge,
)
from admin_api.keys import check_key, join
from admin_api.products.digests import Digester
from admin_api.products.names import check_id
from admin_api.services import ingest, lifecycle, reception
from admin_api.services.access import Principal
from admin_api.services.contents import Contents
from admin_api.services.facility import Facility
from admin_api.services.sources import SourceFile, Sources
from admin_api.services.transfers import Kind, Need
from admin_api.services.wishes import Expected, Level, Policy, Wish
from admin_api.uris import shown

_LOCKS = [threading.Lock() for _ in range(256)]
_PAUSE_SECONDS = 0.2
#: How long a request waits for room in this process, and for others that change the same product.
_ROOM_SECONDS = 600.0
_OTHERS_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A file of a product: its path in it, the URI of its source, what is known of it.

    ``tree`` is the name of the directory that it came with.
    """

    path: str
    source: str
    expected: Expected = Expected()
    tree: str | None = None


def gather(
    facility: Facility,
    principal: Principal,
    product_id: str,
    pieces: Sequence[Piece],
    directory: str,
) -> tuple[ProductEntry, list[FileEntry]]:
    """Make ``pieces`` files of the product, all of them or none; returns them in their order.

    ``directory`` is for a product that is not there yet.  Raises the errors of sources, reception,
    store and catalog; Held, Retained, Leased where a file would take another's place.
    """
    check_id(product_id)
    paths = [piece.path for piece in pieces]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"Two of the files are called {twice!r}; one would overwrite another.")
    begun = time.monotonic()
    # Within this process they take turns; across processes the catalog keeps them apart.
    with _LOCKS[zlib.crc32(product_id.encode()) % len(_LOCKS)]:
        while True:
            try:
                product, files = _gather(facility, principal, product_id, pieces, directory)
                break
            except Busy:
                if time.monotonic() > begun + _ROOM_SECONDS:
                    raise
            except (InProgress, ProductExists):  # another process makes the product right now
                if time.monotonic() > begun + _OTHERS_SECONDS:
                    raise
            time.sleep(_PAUSE_SECONDS)
    return product, [files[reception.kept_path(facility, path)] for path in paths]


def _gather(
    facility: Facility,
    principal: Principal,
    product_id: str,
    pieces: Sequence[Piece],
    directory: str,
) -> tuple[ProductEntry, Mapping[str, FileEntry]]:
    product = _current(facility, product_id)
    if product is None:
        return _create(facility, principal, product_id, pieces, directory)
    principal.require_mission(product.mission)
    if product.registered:
        raise InvalidRequest(
            f"The product {product_id!r} is registered in place: no file is added to it."
        )
    if product.recorded < product.number:
        _record(facility, product)
    with facility.catalog.reading() as session:
        present = {file.path: file for file in entries.files_of(session, product.pk)}
    return _extend(facility, principal, product, present, pieces)


def _record(facility: Facility, product: ProductEntry) -> None:
    """Record what an earlier request has changed and was not answered for; raises InProgress.

    It may be just about to do so itself.
    """
    grace = timedelta(seconds=facility.settings.housekeeping.commit_grace_seconds)
    with facility.catalog.reading() as session:
        if product.touched_at > clock.read(session) - grace:
            raise InProgress("Another request changes the product right now; try again.")
    lifecycle.record_kept(facility, product)


def _current(facility: Facility, product_id: str) -> ProductEntry | None:
    with facility.catalog.reading() as session:
        return entries.first_of(
            ProductEntry,
            session,
            entries.products().where(Product.id == product_id, Product.state == State.AVAILABLE),
        )


def _create(
    facility: Facility,
    principal: Principal,
    product_id: str,
    pieces: Sequence[Piece],
    directory: str,
) -> tuple[ProductEntry, Mapping[str, FileEntry]]:
    wish = Wish(
        name=_name(facility, product_id, pieces),
        product_id=product_id,
        policy=Policy.ERROR,
        source=shown(pieces[0].source),
        directory=directory,
    )
    references = [ingest.Reference(piece.path, piece.source, piece.expected) for piece in pieces]
    order = ingest.Order(references=references)
    outcome = ingest.ingest(facility, principal, wish, order)
    return outcome.product, {file.path: file for file in outcome.files}


def _name(facility: Facility, product_id: str, pieces: Sequence[Piece]) -> str:
    """The product's name: that of its tree or first file; the id behind it if another has it."""
    name = pieces[0].tree or pieces[0].path.rpartition("/")[2]
    with facility.catalog.reading() as session:
        had = session.scalars(select(Product.name).where(Product.id == product_id).limit(1)).first()
        if had is not None:
            return had
        states = (State.RECEIVING, State.COMMITTING, State.AVAILABLE)
        taken = session.scalars(
            select(Product.pk).where(Product.name == name, Product.state.in_(states)).limit(1)
        ).first()
    return name if taken is None else f"{name}.{product_id}"


def _extend(
    facility: Facility,
    principal: Principal,
    product: ProductEntry,
    present: Mapping[str, FileEntry],
    pieces: Sequence[Piece],
) -> tuple[ProductEntry, Mapping[str, FileEntry]]:
    """The product with the files, and them: as they were then, be they deleted a moment later."""
    sources = Sources(facility.settings.sources, facility.settings.limits)
    owner = uuid.uuid4().hex
    files: list[FileEntry] = []
    with facility.heartbeat.of_owner(owner):
        try:
            for piece in pieces:
                found = sources.find(piece.source)
                try:
                    path = reception.kept_path(facility, piece.path)
                    if found.is_tree:
                        raise InvalidRequest(f"{shown(piece.source)!r} is not a single file.")
                    file = found.files[0]
                    if path not in present or not _is_same(piece, file, present[path]):
                        _require_room(facility, product, present, files, path)
                        is_new = path not in present
                        files.append(_store(facility, product, piece, path, file, owner, is_new))
                finally:
                    found.close()
            if files:
                product = lifecycle.extend(facility, product, principal.actor, files, owner)
            return product, {**present, **{file.path: file for file in files}}
        except BaseException:
            lifecycle.give_up_loose(facility, owner, [file.key for file in files])
            raise


def _is_same(piece: Piece, file: SourceFile, present: FileEntry) -> bool:
    """Whether the source has the bytes that the product has; it is read where sizes agree."""
    if file.size is not None and file.size != present.size:
        return False
    digester = Digester()
    for _ in digester.through(file.open()):
        pass
    found = digester.result()
    reception.check_digest(piece.path, found, piece.expected, Level.DIGEST)
    return found.sha256 == present.sha256


def _require_room(
    facility: Facility,
    product: ProductEntry,
    present: Mapping[str, FileEntry],
    files: Sequence[FileEntry],
    path: str,
) -> None:
    limits = facility.settings.limits
    paths = present.keys() | {file.path for file in files} | {path}
    if len(paths) > limits.max_product_files:
        raise TooLarge(f"A product may have {limits.max_product_files} files.")
    if product.size + sum(file.size for file in files) > limits.max_product_bytes:
        raise TooLarge(f"The product has more than {limits.max_product_bytes} bytes.")
    inner = {f"{path}/", *(f"{other}/" for other in paths)}
    if any(other.startswith(part) for other in paths for part in inner if part != f"{other}/"):
        raise InvalidRequest(f"{path!r} would be a file and a directory at once.")


def _store(
    facility: Facility,
    product: ProductEntry,
    piece: Piece,
    path: str,
    file: SourceFile,
    owner: str,
    is_new: bool,
) -> FileEntry:
    """Put the file under a key of its own, loose until the product has it."""
    expected = piece.expected
    if expected.size is None:
        expected = Expected(file.size, expected.sha256, expected.md5)
    reception.refuse_size(facility, path, expected)
    storage = facility.storage
    need = Need(memory=storage.put_memory(expected.size) + storage.read_memory(), sources=1)
    keys = [join(product.directory, f"@r{product.number + 1}", path)]
    if is_new and not _was_there(facility, product, path):
        keys.insert(0, join(product.directory, path))
    with facility.transfers.take(Kind.INGEST, need):
        for key in map(check_key, keys):
            digester = Digester()
            lifecycle.claim_loose(facility, key, owner)
            try:
                storage.put(key, _checked(facility, path, file, expected, digester), expected.size)
            except AlreadyExists:
                # Bytes that are nobody's, from before this service; they stay where they are.
                lifecycle.release_loose(facility, key, owner)
                continue
            done = digester.result()
            return FileEntry(product.pk, path, done.size, done.sha256, done.md5, key)
    raise InProgress(f"The places for {path!r} are taken; send it again.")


def _checked(
    facility: Facility, path: str, file: SourceFile, expected: Expected, digester: Digester
) -> Iterator[bytes]:
    contents = Contents(facility.settings.limits)
    contents.expect(path)
    yield from contents.counted(path, file.open(), expected, digester)
    reception.check_digest(path, digester.result(), expected, Level.DIGEST)


def _was_there(facility: Facility, product: ProductEntry, path: str) -> bool:
    """Whether the product had such a file before: a key that was read is not written again."""
    query = select(Event.detail).where(
        Event.product_id == product.id, Event.kind == "product.reduced"
    )
    with facility.catalog.reading() as session:
        return any(path in detail.get("files", ()) for detail in session.scalars(query))
