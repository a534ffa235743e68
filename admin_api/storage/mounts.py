"""The mount table: one namespace made of several stores, the longest matching path wins.

It is itself a ``Storage``; the services see nothing else.  Nothing passes to a store whose gate is
closed (``marker.py``).
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO

from admin_api.errors import InvalidKey, InvalidRequest, NotFound
from admin_api.keys import beneath, check_key, join
from admin_api.settings import (
    AlluxioBackend,
    Backend,
    PosixBackend,
    S3Backend,
    StorageSettings,
)
from admin_api.storage.alluxio import AlluxioStorage
from admin_api.storage.base import Capacity, Stat, Storage
from admin_api.storage.marker import Expected, Gate
from admin_api.storage.multipart import UploadJournal
from admin_api.storage.posix import PosixStorage
from admin_api.storage.s3 import S3Storage, load_client
from admin_api.storage.untold import Untold


def open_storage(
    settings: StorageSettings,
    state_dir: Path,
    look: Callable[[Mounts, str], Expected],
    journal: Callable[[str], UploadJournal],
) -> Mounts:
    """The namespace that the settings describe, every gate closed until its first look.

    Beneath ``state_dir`` is kept what clusters could not be told.
    ``look`` says of a mount's path what is expected there; it raises WrongStore if that is not
    what is there.  ``journal`` gives the journal of multipart uploads for a mount's path.
    """
    gates: dict[str, Gate] = {}
    stores: dict[str, Storage] = {}
    mounts: Mounts

    def look_at(path: str) -> Expected:
        return look(mounts, path)

    for mount in settings.mounts:
        where = f"mount /{mount.path} ({_place(mount.backend)})"
        gates[mount.path] = Gate(where, partial(look_at, mount.path))
        untold = Untold(state_dir / "untold" / hashlib.sha256(mount.path.encode()).hexdigest()[:16])
        stores[mount.path] = _open(mount.backend, gates[mount.path], journal(mount.path), untold)
    mounts = Mounts(stores, gates)
    return mounts


def load_engines(settings: StorageSettings) -> None:
    """Have in memory what these stores need, for processes that are forked afterwards."""
    backends = [mount.backend for mount in settings.mounts]
    backends += [item.understore for item in backends if isinstance(item, AlluxioBackend)]
    if any(isinstance(item, S3Backend) for item in backends):
        load_client()


def _open(backend: Backend, gate: Gate, journal: UploadJournal, untold: Untold) -> Storage:
    match backend:
        case PosixBackend():
            return PosixStorage(backend.root, gate)
        case S3Backend():
            return S3Storage(backend, journal)
        case AlluxioBackend():
            return AlluxioStorage(backend, _open(backend.understore, gate, journal, untold), untold)


def _place(backend: Backend) -> str:
    match backend:
        case PosixBackend():
            return str(backend.root)
        case S3Backend():
            return f"s3://{join(backend.bucket, backend.prefix)}"
        case AlluxioBackend():
            return f"{_place(backend.understore)} beneath Alluxio"


class Mounts:
    """Stores by their path in the namespace."""

    def __init__(
        self, stores: Mapping[str, Storage], gates: Mapping[str, Gate] | None = None
    ) -> None:
        """``stores`` maps paths (no slash at the ends, '' for the root) to stores.

        Stores without a gate are always open.
        """
        for path in stores:
            if path:
                check_key(path)
        self.stores = dict(sorted(stores.items(), key=lambda item: len(item[0]), reverse=True))
        self.gates = dict(gates or {})

    def require(self, path: str) -> None:
        """Return if the store of the mount ``path`` may be used; raises Unavailable."""
        if path in self.gates:
            self.gates[path].require()

    def require_at(self, key: str) -> None:
        """Return if the store that holds ``key`` is the expected one now; raises Unavailable.

        For whoever is to decide something in the catalog before the store is asked.
        """
        path = self.mount_of(key)
        self._recheck(path)
        if isinstance(self._beneath_cache(path), PosixStorage):
            self.stores[path].ping()

    def _recheck(self, path: str) -> None:
        """As ``require``; a bucket, unlike a directory, is not told from another at every use."""
        if path not in self.gates:
            return
        if isinstance(self._beneath_cache(path), PosixStorage):
            self.gates[path].require()
        else:
            self.gates[path].recheck()

    def bare(self, path: str, make: bool = False) -> Storage:
        """The store of a mount without its gate and without a cache, for the marker only.

        With ``make`` a directory that is to become a store is made.
        """
        store = self._beneath_cache(path)
        return PosixStorage(store.root, make=make) if isinstance(store, PosixStorage) else store

    def _beneath_cache(self, path: str) -> Storage:
        store = self.stores[path]
        return store.understore if isinstance(store, AlluxioStorage) else store

    def mount_of(self, key: str) -> str:
        """The path of the mount that holds ``key``; raises InvalidKey if none does."""
        for path in self.stores:
            if beneath(key, path):
                return path
        raise InvalidKey(f"No store is mounted where {key!r} would lie.")

    def _resolve(self, key: str) -> tuple[str, Storage, str]:
        check_key(key)
        path = self.mount_of(key)
        return path, self.stores[path], key[len(path) + 1 :] if path else key

    def _admitted(self, key: str, to_change: bool = False) -> tuple[str, Storage, str]:
        """As ``_resolve``, for what reaches the store."""
        resolved = self._resolve(key)
        if to_change:
            self._recheck(resolved[0])
        else:
            self.require(resolved[0])
        return resolved

    def admitted(self, key: str) -> tuple[str, Storage, str]:
        """Path and store of the mount that is to be written to, and the key in it."""
        return self._admitted(key, to_change=True)

    @contextlib.contextmanager
    def _missing_told(self, path: str) -> Iterator[None]:
        """What is missing in a store that is not the expected one is not missing."""
        try:
            yield
        except NotFound:
            self._recheck(path)
            raise

    def put(self, key: str, chunks: Iterable[bytes], size_hint: int | None = None) -> Stat:
        path, store, inner = self._admitted(key, to_change=True)
        return _outer(path, store.put(inner, chunks, size_hint))

    def open(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        path, store, inner = self._admitted(key)
        with self._missing_told(path):
            return store.open(inner, start, stop)

    def stat(self, key: str) -> Stat:
        path, store, inner = self._admitted(key)
        with self._missing_told(path):
            return _outer(path, store.stat(inner))

    def delete(self, key: str) -> None:
        _, store, inner = self._admitted(key, to_change=True)
        store.delete(inner)

    def delete_many(self, keys: Iterable[str]) -> int:
        count = 0
        for path, group in itertools.groupby(map(self._resolve, keys), key=lambda item: item[0]):
            self._recheck(path)
            count += self.stores[path].delete_many(inner for _, _, inner in group)
        return count

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        if prefix:
            check_key(prefix)
        listings = []
        for path, store in self.stores.items():
            if not prefix or beneath(prefix, path) or prefix == path:
                inner_prefix = prefix[len(path) :].strip("/")
            elif beneath(path, prefix):
                inner_prefix = ""
            else:
                continue
            listings.append(self._list(path, store, inner_prefix, after))
        return heapq.merge(*listings, key=lambda stat: stat.key.encode("utf-8"))

    def _list(self, path: str, store: Storage, prefix: str, after: str) -> Iterator[Stat]:
        if path and beneath(after, path):
            after = after[len(path) + 1 :]
        elif path:
            if after.encode("utf-8") > path.encode("utf-8") + b"/":
                return
            after = ""
        self.require(path)
        for stat in store.list(prefix, after):
            outer = _outer(path, stat)
            if self.mount_of(outer.key) == path:  # hidden beneath another mount: not ours to show
                yield outer

    def strays(self, prefix: str) -> Iterator[str]:
        path, store, inner = self._resolve(prefix)
        return (join(path, key) for key in store.strays(inner))

    def capacity(self) -> Capacity:
        for path in self.stores:
            self.require(path)
        capacities = [store.capacity() for store in self.stores.values()]
        totals = [found.total for found in capacities if found.total is not None]
        frees = [found.free for found in capacities if found.free is not None]
        if len(totals) < len(capacities) or len(frees) < len(capacities):
            return Capacity(None, None)
        return Capacity(sum(totals), sum(frees))

    def ping(self) -> None:
        for path, store in self.stores.items():
            self.require(path)
            store.ping()

    def uri(self, key: str) -> str:
        _, store, inner = self._resolve(key)
        return store.uri(inner)

    def place(self, key: str) -> str:
        """The URI of the object in the store itself, beneath a cache that is in front of it."""
        path, _, inner = self._resolve(key)
        return self._beneath_cache(path).uri(inner)

    def key_of(self, uri: str) -> str | None:
        for path, store in self.stores.items():
            inner = store.key_of(uri)
            if inner is not None:
                return join(path, inner)
        return None

    def local_file(self, key: str) -> BinaryIO | None:
        _, store, inner = self._admitted(key)
        return store.local_file(inner)

    def link(self, key: str, seconds: int, file_name: str) -> str | None:
        _, store, inner = self._admitted(key)
        return store.link(inner, seconds, file_name)

    def bucket(self, mount: str) -> S3Storage | None:
        """The bucket at ``mount``, beneath a cache or not; None if none is mounted there."""
        store = self.stores.get(mount)
        if isinstance(store, AlluxioStorage):
            store = store.understore
        return store if isinstance(store, S3Storage) else None

    def prepare(self) -> None:
        """Have in memory what large objects take, whether one comes or not; raises nothing.

        For a server, whose memory is the same then whatever it is sent.
        """
        for path in self.stores:
            bucket = self.bucket(path)
            if bucket is not None:
                bucket.prepare()

    def cached_mounts(self) -> dict[str, AlluxioStorage]:
        """The mounts that have an Alluxio cluster in front of them, by path."""
        return {
            path: store for path, store in self.stores.items() if isinstance(store, AlluxioStorage)
        }

    def cached(self, key: str) -> tuple[AlluxioStorage, str]:
        """The store with a cache that holds ``key``, and the key in it; raises InvalidRequest."""
        _, store, inner = self._admitted(key)
        if not isinstance(store, AlluxioStorage):
            raise InvalidRequest("The store of this product has no cache in front of it.")
        return store, inner

    def put_memory(self, size: int | None) -> int:
        return max(store.put_memory(size) for store in self.stores.values())

    def read_memory(self) -> int:
        return max(store.read_memory() for store in self.stores.values())

    def reap(self, older_than: datetime) -> int:
        reaped = 0
        for path, store in self.stores.items():
            self.require(path)
            reaped += store.reap(older_than)
        return reaped


def _outer(path: str, stat: Stat) -> Stat:
    return Stat(join(path, stat.key), stat.size, stat.modified, stat.etag) if path else stat
