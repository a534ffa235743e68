"""Receiving one product: from the first byte to the moment it exists, or to nothing.

Every way in (by reference, upload, archive, session) goes through a ``Reception``: it gives the
attempt keys of its own, checks digests while the bytes pass, and commits in the order of design
rule 3: data, record, catalog.  A crash at any point leaves either a record (``settle`` finishes
the product) or leftovers that ``services/housekeeping.py`` removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from admin_api.catalog import events
from admin_api.catalog.database import changed
from admin_api.catalog.events import SYSTEM, Actor
from admin_api.catalog.models import File, Product, State
from admin_api.errors import (
    AlreadyExists,
    DigestMismatch,
    InProgress,
    InvalidKey,
    InvalidRequest,
    ManifestMismatch,
    NotFound,
    ProductExists,
    ReadbackMismatch,
    SizeMismatch,
    StorageManagerError,
    TooLarge,
)
from admin_api.keys import check_key, escape, join
from admin_api.products.digests import Digester, FileDigest, list_digest
from admin_api.products.manifests import MAX_MANIFEST_BYTES, compare, manifest_of
from admin_api.products.names import check_id, check_name, directory_of, parse_name
from admin_api.products.records import Statement
from admin_api.services import records, removal
from admin_api.services.facility import Facility
from admin_api.services.wishes import Expected, Level, Outcome, Policy, Result, Wish
from admin_api.storage.base import Storage

log = logging.getLogger(__name__)

_HEARTBEAT_SECONDS = 10.0
_COMMIT_WAIT_SECONDS = 15.0
_RACE_ATTEMPTS = 20


class _SuperfluousError(Exception):
    """The same content is available already; undoes the claim."""

    def __init__(self, existing: Product) -> None:
        super().__init__(existing.id)
        self.pk = existing.pk


@dataclass(slots=True)
class _Received:
    key: str
    digest: FileDigest


@dataclass(slots=True)
class _Contents:
    """What has arrived so far; shared by the threads that copy files side by side."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    files: dict[str, _Received] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    directories: set[str] = field(default_factory=set)
    size: int = 0
    manifest: bytes | None = None


class Reception:
    """One attempt to receive a product; a context manager that leaves nothing behind on error."""

    def __init__(
        self, facility: Facility, actor: Actor, wish: Wish, store_always: bool = False
    ) -> None:
        """Reserve a generation for the attempt.

        With ``store_always`` the bytes are kept even where the policy ``skip`` and a product in
        place would have them only compared (upload sessions, which last).

        Raises InvalidKey for names, ProductExists where the policy refuses another product.
        """
        check_name(wish.name)
        if wish.product_id is not None:
            check_id(wish.product_id)
        self.facility = facility
        self.actor = actor
        self.wish = wish
        self._contents = _Contents()
        self._touched = time.monotonic()
        self._store_always = store_always
        #: With ``skip`` and a product in place nothing is stored: the bytes are only compared.
        self.compared_with: int | None = None
        self.pk: int | None = None
        self._begin()

    @classmethod
    def resume(
        cls, facility: Facility, actor: Actor, wish: Wish, product: Product, files: Iterable[File]
    ) -> Self:
        """Go on with an attempt that an upload session keeps."""
        reception = cls.__new__(cls)
        reception.facility, reception.actor, reception.wish = facility, actor, wish
        reception._contents = _Contents()
        reception._touched = time.monotonic()
        reception.compared_with, reception.pk = None, product.pk
        reception.directory, reception.id = product.directory, product.id
        for file in files:
            digest = FileDigest(file.size, file.sha256, file.md5)
            reception._reserve(file.path)
            reception._contents.files[file.path] = _Received(file.key, digest)
            reception._contents.size += file.size
        return reception

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            code = error.code if isinstance(error, StorageManagerError) else "internal_error"
            self.discard(code)

    # -- beginning ---------------------------------------------------------------------------
    def _begin(self) -> None:
        wish, settings = self.wish, self.facility.settings.storage
        base = directory_of(wish.name, settings.key_template, settings.unsorted_template)
        for _ in range(_RACE_ATTEMPTS):
            try:
                with self.facility.catalog.writing() as session:
                    row = self._reserve_generation(session, base)
            except IntegrityError:
                continue  # somebody else took that generation number
            if row is None:
                return
            self.pk, self.directory, self.id = row.pk, row.directory, row.id
            if wish.registered_in is not None or not self._taken(row.directory):
                return
            # The store knows this generation and the catalog does not (it was lost, or restored
            # from a backup): leave those objects alone and take the next number.
            with self.facility.catalog.writing() as session:
                session.execute(
                    update(Product).where(Product.pk == row.pk).values(state=State.REMOVED)
                )
        raise InProgress(f"Too many ingests of {wish.name!r} begin at once; try again.")

    def _reserve_generation(self, session: Session, base: str) -> Product | None:
        wish, now = self.wish, datetime.now(UTC)
        existing = _available(session, wish.name)
        product_id = wish.product_id or (existing.id if existing else uuid.uuid4().hex)
        if existing is not None:
            self._refuse(existing, early=True)
            if wish.policy is Policy.SKIP and not self._store_always:
                self.compared_with = existing.pk
                self.directory, self.id = existing.directory, existing.id
                return None
        elif wish.product_id is not None:
            other = session.scalars(
                select(Product.name).where(Product.id == product_id, Product.name != wish.name)
            ).first()
            if other is not None:
                raise ProductExists(f"The id {product_id!r} is that of the product {other!r}.")
        generation = (
            session.scalar(select(func.max(Product.generation)).where(Product.name == wish.name))
            or 0
        ) + 1
        parsed = parse_name(wish.name)
        row = Product(
            id=product_id,
            name=wish.name,
            generation=generation,
            state=State.RECEIVING,
            mission=parsed.mission if parsed else None,
            product_type=parsed.product_type if parsed else None,
            sensing_start=parsed.sensing_start if parsed else None,
            sensing_stop=parsed.sensing_stop if parsed else None,
            directory=wish.registered_in
            or check_key(base if generation == 1 else f"{base}@{generation}"),
            registered=wish.registered_in is not None,
            level=wish.level,
            source=wish.source,
            subject=self.actor.subject,
            created_at=now,
            touched_at=now,
            retention_until=wish.retention_until,
        )
        session.add(row)
        session.flush()
        return row

    def _refuse(self, existing: Product, early: bool = False) -> None:
        wish = self.wish
        if wish.product_id is not None and wish.product_id != existing.id:
            raise ProductExists(
                f"The product {wish.name!r} is stored under the id {existing.id!r}.",
                product=existing.id,
            )
        if wish.policy is Policy.ERROR or (wish.policy is Policy.SKIP and not early):
            raise ProductExists(
                f"The product {wish.name!r} is stored already"
                + (" with other content." if wish.policy is Policy.SKIP else "."),
                product=existing.id,
            )
        if wish.policy is Policy.REPLACE:
            removal.refuse_kept(existing)

    def _taken(self, directory: str) -> bool:
        return next(iter(self.facility.storage.list(directory)), None) is not None

    # -- receiving files ---------------------------------------------------------------------
    def store(
        self, path: str, chunks: Iterable[bytes], expected: Expected | None = None
    ) -> FileDigest:
        """Take one file; it is durable when this returns, and visible to nobody.

        Raises SizeMismatch and DigestMismatch where the bytes are not those that were expected,
        InvalidKey, TooLarge, and what the store and ``chunks`` raise.  May be called by several
        threads for different paths.
        """
        path, key = self._name(path)
        expected = expected or Expected()
        limits = self.facility.settings.limits
        if expected.size is not None and expected.size > limits.max_file_bytes:
            raise TooLarge(
                f"{path!r} has {expected.size} bytes; {limits.max_file_bytes} are allowed."
            )
        self._reserve(path)
        try:
            digester = Digester()
            checked = self._checked(path, chunks, expected, digester)
            if self.compared_with is not None:
                for _ in checked:
                    pass
            else:
                self.facility.storage.put(key, checked, expected.size)
                if self.wish.level.includes(Level.READBACK):
                    _read_back(self.facility.storage, key, digester.result())
        except BaseException:
            with self._contents.lock:
                self._contents.pending.discard(path)
            raise
        return self._received(path, key, digester.result())

    def matches(self, files: Mapping[str, Expected]) -> bool:
        """Whether the product in place is known to have just these files, without reading any."""
        if self.compared_with is None:
            return False
        with self.facility.catalog.reading() as session:
            stored = session.scalars(select(File).where(File.product_pk == self.compared_with))
            present = {file.path: file for file in stored}
        return files.keys() == present.keys() and all(
            (expected.sha256 or expected.md5)
            and expected.sha256 in (None, present[path].sha256)
            and expected.md5 in (None, present[path].md5)
            and expected.size in (None, present[path].size)
            for path, expected in files.items()
        )

    def existing(self) -> Outcome:
        """The product in place, when ``matches`` has said that nothing need be read."""
        with self.facility.catalog.reading() as session:
            return skipped(session, session.get_one(Product, self.compared_with))

    def register(
        self, path: str, key: str, chunks: Iterable[bytes], expected: Expected | None = None
    ) -> FileDigest:
        """Take one file that is in the store already: read and checked, not copied."""
        path, _ = self._name(path)
        check_key(key)
        self._reserve(path)
        digester = Digester()
        for _ in self._checked(path, chunks, expected or Expected(), digester):
            pass
        return self._received(path, key, digester.result())

    def _received(self, path: str, key: str, digest: FileDigest) -> FileDigest:
        with self._contents.lock:
            self._contents.pending.discard(path)
            self._contents.files[path] = _Received(key, digest)
        return digest

    def _name(self, path: str) -> tuple[str, str]:
        """The path as it is kept, and its key."""
        if self.facility.settings.storage.escape_names:
            path = escape(path)
        check_key(path)
        return path, check_key(join(self.directory, path))

    def _reserve(self, path: str) -> None:
        """A file is received once, and its path is not also a directory (stores differ there)."""
        parts = path.split("/")
        parents = {"/".join(parts[:count]) for count in range(1, len(parts))}
        limit = self.facility.settings.limits.max_product_files
        with self._contents.lock:
            taken = self._contents.files.keys() | self._contents.pending
            if path in taken:
                raise InvalidRequest(f"The file {path!r} comes twice.")
            if path in self._contents.directories or not taken.isdisjoint(parents):
                raise InvalidKey(f"{path!r} is a file and a directory at once.", name=path)
            if len(taken) >= limit:
                raise TooLarge(f"A product may have {limit} files.")
            self._contents.pending.add(path)
            self._contents.directories |= parents

    def _checked(
        self, path: str, chunks: Iterable[bytes], expected: Expected, digester: Digester
    ) -> Iterator[bytes]:
        """``chunks``, digested; what is wrong is raised before the store sees the end of them."""
        limits = self.facility.settings.limits
        is_manifest = path == manifest_of(self.wish.name)
        manifest: list[bytes] | None = [] if is_manifest else None
        for chunk in digester.through(chunks):
            with self._contents.lock:
                self._contents.size += len(chunk)
                total = self._contents.size
            if expected.size is not None and digester.size > expected.size:
                raise SizeMismatch(f"{path!r} has more than the {expected.size} bytes announced.")
            if digester.size > limits.max_file_bytes:
                raise TooLarge(f"{path!r} has more than {limits.max_file_bytes} bytes.")
            if total > limits.max_product_bytes:
                raise TooLarge(f"The product has more than {limits.max_product_bytes} bytes.")
            if manifest is not None and digester.size <= MAX_MANIFEST_BYTES:
                manifest.append(chunk)
            self._heartbeat()
            yield chunk
        check_digest(path, digester.result(), expected, self.wish.level)
        if manifest is not None and digester.size <= MAX_MANIFEST_BYTES:
            self._contents.manifest = b"".join(manifest)

    def _heartbeat(self) -> None:
        if self.pk is None or time.monotonic() - self._touched < _HEARTBEAT_SECONDS:
            return
        self._touched = time.monotonic()
        with self.facility.catalog.writing() as session:
            touched = changed(
                session,
                update(Product)
                .where(Product.pk == self.pk, Product.state == State.RECEIVING)
                .values(touched_at=datetime.now(UTC)),
            )
        if not touched:
            raise InProgress("The ingest was given up meanwhile; begin again.")

    # -- committing --------------------------------------------------------------------------
    def commit(self) -> Outcome:
        """Make the product exist; it is durable and visible when this returns.

        Raises ManifestMismatch, ProductExists, InProgress, and what store and catalog raise.
        After an error of the store the commit is settled later, one way or the other.
        """
        if not self._contents.files:
            raise InvalidRequest("A product needs at least one file; the source has none.")
        digest = list_digest(
            (path, item.digest.size, item.digest.sha256)
            for path, item in self._contents.files.items()
        )
        if self.wish.level.includes(Level.MANIFEST):
            self._verify_manifest()
        if self.pk is None:
            return self._compare(digest)
        existing = self._claim(digest)
        if existing is not None:
            self.discard("duplicate")
            with self.facility.catalog.reading() as session:
                return skipped(session, session.get_one(Product, existing))
        product = self._load()
        with self.facility.catalog.reading() as session:
            files = records.files_of(session, product)
        statement = records.describe(self.facility, product, files, 1).model_copy(
            update={"available_at": datetime.now(UTC)}
        )
        try:
            records.write(self.facility, records.mount_path(self.facility, product), statement)
        except StorageManagerError:
            log.exception("record not written or not confirmed", extra={"product": product.id})
            if not settle(self.facility, self.pk):
                raise
        replaced = promote(self.facility, self.pk, self.actor, statement)
        return Outcome(self._load(), Result.REPLACED if replaced else Result.CREATED, files)

    def _load(self) -> Product:
        with self.facility.catalog.reading() as session:
            return session.get_one(Product, self.pk)

    def _compare(self, digest: str) -> Outcome:
        with self.facility.catalog.reading() as session:
            existing = session.get(Product, self.compared_with)
            if existing is None or existing.state != State.AVAILABLE:
                raise InProgress(f"{self.wish.name!r} was removed meanwhile; try again.")
            if existing.list_digest != digest:
                self._refuse(existing)
            return skipped(session, existing)

    def _claim(self, digest: str) -> int | None:
        """Take the name for the commit; returns the row that makes this one superfluous."""
        deadline = time.monotonic() + _COMMIT_WAIT_SECONDS
        while True:
            try:
                with self.facility.catalog.writing() as session:
                    # In this order: who has the name's place in the commit rules over it, and
                    # nobody else can become available between the look and the decision.
                    self._enter_commit(session, digest)
                    existing = _available(session, self.wish.name)
                    if existing is not None:
                        if existing.list_digest == digest:
                            raise _SuperfluousError(existing)
                        self._refuse(existing)
                        session.execute(
                            update(Product).where(Product.pk == self.pk).values(id=existing.id)
                        )
                return None
            except _SuperfluousError as found:
                return found.pk
            except IntegrityError as error:
                self._make_way(error, deadline)

    def _enter_commit(self, session: Session, digest: str) -> None:
        items = self._contents.files.items()
        claimed = changed(
            session,
            update(Product)
            .where(Product.pk == self.pk, Product.state == State.RECEIVING)
            .values(
                state=State.COMMITTING,
                touched_at=datetime.now(UTC),
                size=sum(item.digest.size for _, item in items),
                file_count=len(items),
                list_digest=digest,
            ),
        )
        if not claimed:
            raise InProgress("The ingest was given up meanwhile; begin again.")
        known = set(session.scalars(select(File.path).where(File.product_pk == self.pk)))
        if not known <= self._contents.files.keys():
            raise InProgress("A file arrived while the upload was committed; commit again.")
        session.add_all(
            File(
                product_pk=self.pk,
                path=path,
                size=item.digest.size,
                sha256=item.digest.sha256,
                md5=item.digest.md5,
                key=item.key,
            )
            for path, item in items
            if path not in known
        )
        session.flush()

    def _make_way(self, error: IntegrityError, deadline: float) -> None:
        """Another commit has the name: wait for it, or settle it if its process is dead."""
        with self.facility.catalog.reading() as session:
            other = session.scalars(
                select(Product).where(
                    Product.name == self.wish.name, Product.state == State.COMMITTING
                )
            ).first()
            if other is None:
                taken = [item.key for item in self._contents.files.values()]
                if session.scalars(select(File.key).where(File.key.in_(taken[:500]))).first():
                    raise AlreadyExists("One of the files belongs to another product.") from error
        if other is not None and _is_stale(self.facility, other):
            settle(self.facility, other.pk)
        elif time.monotonic() > deadline:
            raise InProgress(f"Another ingest of {self.wish.name!r} is committing; try again.")
        else:
            time.sleep(0.05)

    def _verify_manifest(self) -> None:
        path = manifest_of(self.wish.name)
        if path is None:
            return
        files = {name: item.digest for name, item in self._contents.files.items()}
        manifest = self._contents.manifest
        if path in files and manifest is None:  # received in an earlier request of a session
            manifest = b"".join(
                self.facility.storage.open(self._contents.files[path].key, 0, MAX_MANIFEST_BYTES)
            )
        if manifest is None:
            raise ManifestMismatch(f"The product has no {path}.", manifest={"missing": [path]})
        report = compare(self.wish.name, manifest, files, self._other_digest)
        if not report.passed:
            raise ManifestMismatch(
                f"The product is not what its {path} says: of {report.entries} entries "
                f"{len(report.right)} are right, {len(report.wrong)} wrong, "
                f"{len(report.missing)} missing.",
                manifest=report.as_dict(),
            )

    def _other_digest(self, path: str, algorithm: str) -> str:
        """A digest that was not computed on the way in: the stored file is read for it."""
        if algorithm not in hashlib.algorithms_available:
            raise ValueError(algorithm)
        digest = hashlib.new(algorithm, usedforsecurity=False)
        if self.compared_with is not None:
            key = f"{self.directory}/{path}"
        else:
            key = self._contents.files[path].key
        for chunk in self.facility.storage.open(key):
            digest.update(chunk)
        return digest.hexdigest()

    # -- giving up ---------------------------------------------------------------------------
    def discard(self, cause: str) -> None:
        """Leave nothing of the attempt; what cannot be removed now is housekeeping's."""
        if self.pk is None:
            return
        try:
            with self.facility.catalog.writing() as session:
                given_up = give_up(session, self.pk, self.actor, cause)
            if given_up:
                removal.finish(self.facility, self.pk)
        except StorageManagerError:
            log.exception("leftovers stay for housekeeping", extra={"pk": self.pk})


def skipped(session: Session, product: Product) -> Outcome:
    """The outcome of an ingest that found its product in place."""
    return Outcome(product, Result.SKIPPED, records.files_of(session, product))


def check_digest(path: str, found: FileDigest, expected: Expected, level: Level) -> None:
    """Raise SizeMismatch or DigestMismatch where ``found`` is not what was expected."""
    if expected.size is not None and expected.size != found.size:
        raise SizeMismatch(
            f"{path!r} has {found.size} bytes; {expected.size} were announced.",
            path=path,
            expected=expected.size,
            found=found.size,
        )
    if not level.includes(Level.DIGEST):
        return
    for algorithm, wanted, computed in (
        ("sha256", expected.sha256, found.sha256),
        ("md5", expected.md5, found.md5),
    ):
        if wanted is not None and wanted.lower() != computed:
            raise DigestMismatch(
                f"{path!r} has the {algorithm} {computed}; {wanted.lower()} was announced.",
                path=path,
                algorithm=algorithm,
                expected=wanted.lower(),
                found=computed,
            )


def give_up(session: Session, pk: int, actor: Actor, cause: str) -> bool:
    """Turn an attempt that has not begun its commit into leftovers; False if it is too late."""
    given_up = changed(
        session,
        update(Product)
        .where(Product.pk == pk, Product.state == State.RECEIVING)
        .values(
            state=State.REMOVING,
            touched_at=datetime.now(UTC),
            removed_by=actor.subject,
            removed_cause=cause,
        ),
    )
    if not given_up:
        return False
    if cause != "duplicate":
        product = session.get_one(Product, pk)
        events.append(session, "ingest.failed", actor, product, cause=cause)
    return True


def settle(facility: Facility, pk: int) -> bool:
    """Finish or undo a commit whose process died or whose record was not confirmed.

    A ``void`` statement is put under the record's key: if the store takes it, there was no record
    and never will be one; if the key is taken, the record decides.  Returns whether the product
    exists now.
    """
    with facility.catalog.reading() as session:
        product = session.get_one(Product, pk)
        if product.state != State.COMMITTING:
            return product.state == State.AVAILABLE
        void = records.describe(facility, product, (), 1, "void")
    mount = records.mount_path(facility, product)
    try:
        records.write(facility, mount, void)
    except AlreadyExists:
        found = records.read(facility, mount, void)
        if found.state == "available":
            promote(facility, pk, SYSTEM, found)
            return True
    with facility.catalog.writing() as session:
        session.execute(
            update(Product)
            .where(Product.pk == pk, Product.state == State.COMMITTING)
            .values(
                state=State.REMOVING,
                number=1,
                removed_by=SYSTEM.subject,
                removed_cause="commit undone",
            )
        )
    removal.finish(facility, pk)
    return False


def promote(facility: Facility, pk: int, actor: Actor, record: Statement) -> bool:
    """Make a recorded product available and retire the one it replaces; True if there was one."""
    with facility.catalog.writing() as session:
        product = session.get_one(Product, pk)
        if product.state != State.COMMITTING:
            return False
        old = _available(session, product.name)
        if old is not None:
            removal.mark(session, old, actor, f"replaced by generation {product.generation}")
        product.state = State.AVAILABLE
        product.number = 1
        product.available_at, product.touched_at = record.available_at, datetime.now(UTC)
        events.append(
            session,
            "product.replaced" if old else "product.ingested",
            actor,
            product,
            size=product.size,
            files=product.file_count,
            generation=product.generation,
            list_digest=product.list_digest,
        )
    if old is not None:
        with contextlib.suppress(StorageManagerError):  # housekeeping finishes it
            removal.finish(facility, old.pk)
    return old is not None


def _available(session: Session, name: str) -> Product | None:
    return session.scalars(
        select(Product).where(Product.name == name, Product.state == State.AVAILABLE)
    ).first()


def _is_stale(facility: Facility, product: Product) -> bool:
    grace = timedelta(seconds=facility.settings.housekeeping.commit_grace_seconds)
    return product.touched_at < datetime.now(UTC) - grace


def _read_back(storage: Storage, key: str, digest: FileDigest) -> None:
    found = Digester()
    try:
        for _ in found.through(storage.open(key)):
            pass
    except NotFound:
        raise ReadbackMismatch(f"The store does not give back {key!r}.") from None
    if found.result() != digest:
        raise ReadbackMismatch(
            f"The store gave back other bytes for {key!r} than were written. "
            "Run `storage-manager probe`."
        )
