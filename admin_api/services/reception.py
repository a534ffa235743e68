"""Receiving one product: from the first byte to the moment it exists, or to nothing.

Every way in gets a reception from ``begin`` (bytes come) or ``register`` (they are there), gives
it the files, and commits.  ``Storing`` copies into the store, ``Registering`` reads what lies
there, ``Comparing`` only compares with the product in place, which the policy ``skip`` keeps.
Digests are checked while the bytes pass; what happens to the product is ``lifecycle``'s.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Self

from admin_api.catalog import clock, entries
from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.catalog.models import State
from admin_api.errors import (
    AlreadyExists,
    DigestMismatch,
    InProgress,
    InvalidRequest,
    NotFound,
    ProductExists,
    ReadbackMismatch,
    SizeMismatch,
    StorageManagerError,
    TooLarge,
)
from admin_api.keys import check_key, escape, join
from admin_api.products.digests import Digester, FileDigest, digests_of, list_digest
from admin_api.products.manifests import MAX_MANIFEST_BYTES, compare, find_manifest
from admin_api.products.names import check_id, check_name
from admin_api.services import lifecycle
from admin_api.services.access import Principal
from admin_api.services.contents import Contents, Received
from admin_api.services.facility import Facility
from admin_api.services.wishes import Expected, Level, Outcome, Result, Wish
from admin_api.storage.base import Storage


class Reception(ABC):
    """One product on its way in; a context manager that leaves nothing behind on error."""

    def __init__(self, facility: Facility, principal: Principal, wish: Wish) -> None:
        self.facility = facility
        self.principal = principal
        self.wish = wish
        self.contents = Contents(facility.settings.limits)
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._resources:
            if error is not None:
                code = error.code if isinstance(error, StorageManagerError) else "internal_error"
                self.discard(code)

    def store(
        self, path: str, chunks: Iterable[bytes], expected: Expected | None = None
    ) -> FileDigest:
        """Take one file; it is durable when this returns, and visible to nobody.

        Raises SizeMismatch and DigestMismatch where the bytes are not those that were expected,
        InvalidKey, TooLarge, and what the store and ``chunks`` raise.  May be called by several
        threads for different paths.
        """
        path = kept_path(self.facility, path)
        expected = expected or Expected()
        refuse_size(self.facility, path, expected)
        self.contents.expect(path)
        try:
            digester = Digester(algorithm for algorithm, _ in expected.others)
            checked = self._checked(path, chunks, expected, digester)
            key = self._take(path, checked, expected, digester)
        except BaseException:
            self.contents.failed(path)
            raise
        self.contents.arrived(path, key, digester.result())
        return digester.result()

    @abstractmethod
    def commit(self) -> Outcome:
        """Make the product exist; it is durable and visible when this returns.

        Raises ManifestMismatch, ProductExists, InProgress, and what store and catalog raise.
        """

    @abstractmethod
    def discard(self, cause: str) -> None:
        """Leave nothing of the attempt; what cannot be removed now is housekeeping's."""

    @abstractmethod
    def _take(
        self, path: str, chunks: Iterator[bytes], expected: Expected, digester: Digester
    ) -> str:
        """Do with the bytes what is to be done, all digested then; returns the file's key."""

    def _checked(
        self, path: str, chunks: Iterable[bytes], expected: Expected, digester: Digester
    ) -> Iterator[bytes]:
        """``chunks``; what is wrong is raised before the store sees the end of them."""
        yield from self.contents.counted(path, chunks, expected, digester)
        check_digest(path, digester.result(), expected, self.wish.level, digester.others())

    def _list_digest(self) -> str:
        if not self.contents.files:
            raise InvalidRequest("A product needs at least one file; the source has none.")
        return list_digest(
            (path, item.digest.size, item.digest.sha256)
            for path, item in self.contents.files.items()
        )


class Comparing(Reception):
    """Nothing is stored: the bytes are compared with the product that is in place."""

    def __init__(
        self, facility: Facility, principal: Principal, wish: Wish, existing: ProductEntry
    ) -> None:
        super().__init__(facility, principal, wish)
        self._existing = existing
        with facility.catalog.reading() as session:
            self._present = {file.path: file for file in entries.files_of(session, existing.pk)}

    def matches(self, files: Mapping[str, Expected]) -> bool:
        """Whether the product in place is known to have just these files, without reading any."""
        return files.keys() == self._present.keys() and all(
            (expected.sha256 or expected.md5)
            and expected.sha256 in (None, self._present[path].sha256)
            and expected.md5 in (None, self._present[path].md5)
            and expected.size in (None, self._present[path].size)
            for path, expected in files.items()
        )

    def existing(self) -> Outcome:
        """The product in place, when ``matches`` has said that nothing need be read."""
        return Outcome(self._existing, Result.SKIPPED, list(self._present.values()))

    def commit(self) -> Outcome:
        digest = self._list_digest()
        with self.facility.catalog.reading() as session:
            now = entries.product(session, self._existing.pk)
        if now is None or now.state != State.AVAILABLE:
            raise InProgress(f"{self.wish.name!r} was removed meanwhile; try again.")
        if now.list_digest != digest:
            raise ProductExists(
                f"The product {now.name!r} is stored already with other content.", product=now.id
            )
        # The same bytes: where the manifest needs another digest, the stored ones are read.
        stored = {
            path: Received(self._present[path].key, item.digest)
            for path, item in self.contents.files.items()
        }
        if self.wish.level.includes(Level.MANIFEST):
            _verify_manifest(self, stored)
        return self.existing()

    def discard(self, cause: str) -> None:
        """Nothing was begun."""

    def _take(
        self, path: str, chunks: Iterator[bytes], expected: Expected, digester: Digester
    ) -> str:
        for _ in chunks:
            pass
        return path


class _Attempting(Reception):
    """A reception that has an attempt in the catalog, alive as long as it lasts."""

    def __init__(
        self, facility: Facility, principal: Principal, wish: Wish, attempt: ProductEntry
    ) -> None:
        super().__init__(facility, principal, wish)
        self.attempt = attempt
        #: The keys that this attempt has written, which go with it.
        self.written: list[str] = []
        self._resources.enter_context(facility.heartbeat.of_attempt(attempt))

    def alive(self) -> contextlib.AbstractContextManager[object]:
        """For what lasts longer than this reception: alive, and not discarded at an error."""
        return self._resources

    def ready(self) -> tuple[list[FileEntry], str]:
        """What is to be committed: all files, and the digest of their list.

        Raises ManifestMismatch, and ProductExists where other content is to stay.
        """
        digest = self._list_digest()
        if self.wish.level.includes(Level.MANIFEST):
            lifecycle.refuse_other(self.facility, self.principal, self.wish, digest)
            _verify_manifest(self, self.contents.files)
        return [
            FileEntry(
                self.attempt.pk,
                path,
                item.digest.size,
                item.digest.sha256,
                item.digest.md5,
                item.key,
            )
            for path, item in sorted(self.contents.files.items())
        ], digest

    def commit(self) -> Outcome:
        files, digest = self.ready()
        try:
            done = lifecycle.commit(
                self.facility,
                self.principal,
                self.wish,
                self.attempt,
                files,
                digest,
                lambda existing: is_sound(self.facility, existing),
            )
        except lifecycle.SuperfluousError as found:
            self.discard("duplicate")
            return Outcome(found.existing, Result.SKIPPED, found.files)
        return Outcome(
            done.product, Result.REPLACED if done.replaced else Result.CREATED, done.files
        )

    def discard(self, cause: str) -> None:
        lifecycle.discard(self.facility, self.attempt, self.principal.actor, cause, self.written)

    def _checked(
        self, path: str, chunks: Iterable[bytes], expected: Expected, digester: Digester
    ) -> Iterator[bytes]:
        for chunk in super()._checked(path, chunks, expected, digester):
            if self.facility.heartbeat.is_lost(self.attempt):
                raise InProgress("The ingest was given up meanwhile; begin again.")
            yield chunk


class Storing(_Attempting):
    """The bytes are copied into the store."""

    def __init__(
        self,
        facility: Facility,
        principal: Principal,
        wish: Wish,
        attempt: ProductEntry,
        put: Callable[[str, Iterator[bytes], int | None], object] | None = None,
    ) -> None:
        """``put`` writes files, if it is not the store that does (``storage/gathering.py``)."""
        super().__init__(facility, principal, wish, attempt)
        self._put = put or facility.storage.put

    def _take(
        self, path: str, chunks: Iterator[bytes], expected: Expected, digester: Digester
    ) -> str:
        key = check_key(join(self.attempt.directory, path))
        self.written.append(key)
        try:
            self._put(key, chunks, expected.size)
        except AlreadyExists:
            self.written.remove(key)  # somebody else's bytes, not ours to take away
            raise
        if self.wish.level.includes(Level.READBACK):
            read_back(self.facility.storage, key, digester.result())
        return key


class Registering(_Attempting):
    """The bytes are in the store already: they are read and checked, and stay where they are."""

    def __init__(
        self,
        facility: Facility,
        principal: Principal,
        wish: Wish,
        attempt: ProductEntry,
        keys: Mapping[str, str],
    ) -> None:
        super().__init__(facility, principal, wish, attempt)
        self._keys = keys

    def _take(
        self, path: str, chunks: Iterator[bytes], expected: Expected, digester: Digester
    ) -> str:
        for _ in chunks:
            pass
        return self._keys[path]


def begin(facility: Facility, principal: Principal, wish: Wish) -> Storing | Comparing:
    """Begin to receive a product whose bytes will come.

    Raises InvalidKey for names, InvalidRequest for a retention too far ahead, ProductExists,
    Held, Retained and Forbidden where another product has the name and stays.
    """
    check(facility, principal, wish)
    row = lifecycle.begin(facility, principal, wish, compare=True)
    if row.state == State.AVAILABLE:
        return Comparing(facility, principal, wish, row)
    return Storing(facility, principal, wish, row)


def begin_lasting(facility: Facility, principal: Principal, wish: Wish) -> ProductEntry:
    """Begin an attempt that outlives this request (an upload session); errors as ``begin``."""
    check(facility, principal, wish)
    return lifecycle.begin(facility, principal, wish)


def resume(facility: Facility, principal: Principal, wish: Wish, attempt: ProductEntry) -> Storing:
    """The reception of a session's attempt, with the files that it has got."""
    reception = Storing(facility, principal, wish, attempt)
    with facility.catalog.reading() as session:
        files = entries.files_of(session, attempt.pk)
    for file in files:
        digest = FileDigest(file.size, file.sha256, file.md5)
        reception.contents.arrived(file.path, file.key, digest)
        reception.written.append(file.key)
    return reception


def register(
    facility: Facility, principal: Principal, wish: Wish, keys: Mapping[str, str]
) -> Registering:
    """Begin to take in files that are in the store: ``keys`` by their paths in the product."""
    check(facility, principal, wish)
    attempt = lifecycle.begin(facility, principal, wish)
    kept = {kept_path(facility, path): key for path, key in keys.items()}
    return Registering(facility, principal, wish, attempt, kept)


def check(facility: Facility, principal: Principal, wish: Wish) -> None:
    """Raise InvalidKey for names and ids that are none, InvalidRequest for the retention."""
    check_name(wish.name)
    if wish.product_id is not None:
        check_id(wish.product_id)
    if wish.retention_until is not None and not principal.is_admin:
        with facility.catalog.reading() as session:
            now = clock.read(session)
        days = facility.settings.limits.max_retention_days
        if wish.retention_until > now + timedelta(days=days):
            raise InvalidRequest(
                f"The retention date {wish.retention_until.isoformat()} is more than {days} days "
                "ahead; an administrator may set a later one."
            )


def kept_path(facility: Facility, path: str) -> str:
    """The path of a file as it is kept; raises InvalidKey."""
    return check_key(escape(path) if facility.settings.storage.escape_names else path)


def refuse_size(facility: Facility, path: str, expected: Expected) -> None:
    """Raise TooLarge for a file that is announced with more bytes than are allowed."""
    limit = facility.settings.limits.max_file_bytes
    if expected.size is not None and expected.size > limit:
        raise TooLarge(f"{path!r} has {expected.size} bytes; {limit} are allowed.")


def check_digest(
    path: str,
    found: FileDigest,
    expected: Expected,
    level: Level,
    others: Mapping[str, str] | None = None,
) -> None:
    """Raise SizeMismatch or DigestMismatch where ``found`` is not what was expected.

    ``others`` are the digests by the other algorithms that are expected.
    """
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
        *((name, wanted, (others or {}).get(name, "")) for name, wanted in expected.others),
    ):
        if wanted is not None and wanted.lower() != computed:
            raise DigestMismatch(
                f"{path!r} has the {algorithm} {computed}; {wanted.lower()} was announced.",
                path=path,
                algorithm=algorithm,
                expected=wanted.lower(),
                found=computed,
            )


def is_sound(facility: Facility, product: ProductEntry) -> bool:
    """Whether the store still has every byte of an available product; each file is read."""
    with facility.catalog.reading() as session:
        files = entries.files_of(session, product.pk)
    try:
        for file in files:
            read_back(facility.storage, file.key, FileDigest(file.size, file.sha256, file.md5))
    except ReadbackMismatch:
        return False
    return True


def read_back(storage: Storage, key: str, digest: FileDigest) -> None:
    """Raise ReadbackMismatch unless the store gives the bytes of ``digest`` for ``key``."""
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


def _verify_manifest(reception: Reception, files: Mapping[str, Received]) -> None:
    """Compare with the manifest; ``files`` say where each file lies in the store.

    It lies at the product's top, or where everything lies in one folder at the top of that.
    """
    storage, manifests = reception.facility.storage, reception.contents.manifests
    path = find_manifest(reception.wish.name, files)
    tops = {path.partition("/")[0] for path in files}
    if (path is None or path not in files) and len(tops) == 1:
        skip = len(tops.pop()) + 1
        inner = {path[skip:]: item for path, item in files.items()}
        found = find_manifest(reception.wish.name, inner)
        if found in inner:
            path, files, manifests = found, inner, {}
    if path is None:
        return
    manifest = manifests.get(path)
    if path in files and manifest is None:  # received in an earlier request of a session
        manifest = b"".join(storage.open(files[path].key, 0, MAX_MANIFEST_BYTES))
    compare(
        reception.wish.name,
        path,
        manifest,
        {path: item.digest for path, item in files.items()},
        # Digests that were not computed on the way in: the stored file is read for them.
        lambda name, algorithms: digests_of(storage.open(files[name].key), algorithms),
    ).require_passed()
