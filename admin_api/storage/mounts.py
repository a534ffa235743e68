"""The mount table: one namespace made of several stores, the longest matching path wins.

It is itself a ``Storage``; the services see nothing else.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import BinaryIO

from admin_api.errors import InvalidKey, InvalidRequest
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
from admin_api.storage.multipart import UploadJournal
from admin_api.storage.posix import PosixStorage
from admin_api.storage.s3 import S3Storage


def open_storage(
    settings: StorageSettings, journal: Callable[[str], UploadJournal] | None = None
) -> Mounts:
    """The namespace that the settings describe.

    ``journal`` gives the journal of multipart uploads for the path of a mount.
    """
    return Mounts(
        {
            mount.path: _open(mount.backend, journal(mount.path) if journal else None)
            for mount in settings.mounts
        }
    )


def _open(backend: Backend, journal: UploadJournal | None) -> Storage:
    match backend:
        case PosixBackend():
            return PosixStorage(backend.root)
        case S3Backend():
            return S3Storage(backend, journal)
        case AlluxioBackend():
            return AlluxioStorage(backend, _open(backend.understore, journal))


class Mounts:
    """Stores by their path in the namespace."""

    def __init__(self, stores: Mapping[str, Storage]) -> None:
        """``stores`` maps paths (no slash at the ends, '' for the root) to stores."""
        for path in stores:
            if path:
                check_key(path)
        self.stores = dict(sorted(stores.items(), key=lambda item: len(item[0]), reverse=True))

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

    def put(self, key: str, chunks: Iterable[bytes], size_hint: int | None = None) -> Stat:
        path, store, inner = self._resolve(key)
        return _outer(path, store.put(inner, chunks, size_hint))

    def open(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        _, store, inner = self._resolve(key)
        return store.open(inner, start, stop)

    def stat(self, key: str) -> Stat:
        path, store, inner = self._resolve(key)
        return _outer(path, store.stat(inner))

    def delete(self, key: str) -> None:
        _, store, inner = self._resolve(key)
        store.delete(inner)

    def delete_many(self, keys: Iterable[str]) -> int:
        count = 0
        for _, group in itertools.groupby(map(self._resolve, keys), key=lambda item: item[0]):
            items = list(group)
            count += items[0][1].delete_many(inner for _, _, inner in items)
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
        for stat in store.list(prefix, after):
            outer = _outer(path, stat)
            if self.mount_of(outer.key) == path:  # hidden beneath another mount: not ours to show
                yield outer

    def capacity(self) -> Capacity:
        capacities = [store.capacity() for store in self.stores.values()]
        totals = [found.total for found in capacities if found.total is not None]
        frees = [found.free for found in capacities if found.free is not None]
        if len(totals) < len(capacities) or len(frees) < len(capacities):
            return Capacity(None, None)
        return Capacity(sum(totals), sum(frees))

    def ping(self) -> None:
        for store in self.stores.values():
            store.ping()

    def uri(self, key: str) -> str:
        _, store, inner = self._resolve(key)
        return store.uri(inner)

    def key_of(self, uri: str) -> str | None:
        for path, store in self.stores.items():
            inner = store.key_of(uri)
            if inner is not None:
                return join(path, inner)
        return None

    def local_file(self, key: str) -> BinaryIO | None:
        _, store, inner = self._resolve(key)
        return store.local_file(inner)

    def link(self, key: str, seconds: int, file_name: str) -> str | None:
        _, store, inner = self._resolve(key)
        return store.link(inner, seconds, file_name)

    def bucket(self, mount: str) -> S3Storage | None:
        """The bucket at ``mount``, beneath a cache or not; None if none is mounted there."""
        store = self.stores.get(mount)
        if isinstance(store, AlluxioStorage):
            store = store.understore
        return store if isinstance(store, S3Storage) else None

    def cached_mounts(self) -> dict[str, AlluxioStorage]:
        """The mounts that have an Alluxio cluster in front of them, by path."""
        return {
            path: store for path, store in self.stores.items() if isinstance(store, AlluxioStorage)
        }

    def cached(self, key: str) -> tuple[AlluxioStorage, str]:
        """The store with a cache that holds ``key``, and the key in it; raises InvalidRequest."""
        _, store, inner = self._resolve(key)
        if not isinstance(store, AlluxioStorage):
            raise InvalidRequest("The store of this product has no cache in front of it.")
        return store, inner

    def reap(self, older_than: datetime) -> int:
        return sum(store.reap(older_than) for store in self.stores.values())


def _outer(path: str, stat: Stat) -> Stat:
    return Stat(join(path, stat.key), stat.size, stat.modified, stat.etag) if path else stat
