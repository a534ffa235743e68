"""Alluxio over an under-store: writes go beneath it, reads come through it by signed link.

The under-store is the truth (design rule 1): whatever this service reads itself it reads there,
and nothing is lost or refused when the cluster is down.  What Alluxio believes is brought up to
date after every write and removal, since it never looks by itself.  Called through the mount table.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit

from admin_api.errors import ConfigurationError, Unavailable
from admin_api.settings import AlluxioBackend
from admin_api.storage.alluxio_cluster import Cluster
from admin_api.storage.base import Capacity, Stat, Storage

log = logging.getLogger(__name__)

_PARALLEL = 8


class AlluxioStorage:
    """The ``Storage`` protocol over an under-store with Alluxio in front of it."""

    def __init__(self, settings: AlluxioBackend, understore: Storage) -> None:
        """``understore`` is what the cluster has mounted at its root."""
        self._settings = settings
        self.understore = understore
        self.cluster = Cluster(settings)

    def put(self, key: str, chunks: Iterable[bytes], size_hint: int | None = None) -> Stat:
        stat = self.understore.put(key, chunks, size_hint)
        self._make_known([key], self.cluster.sync)
        return stat

    def open(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        return self.understore.open(key, start, stop)

    def stat(self, key: str) -> Stat:
        return self.understore.stat(key)

    def delete(self, key: str) -> None:
        self.understore.delete(key)
        self._forget([key])

    def delete_many(self, keys: Iterable[str]) -> int:
        named = list(keys)
        count = self.understore.delete_many(named)
        self._forget(named)
        return count

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        return self.understore.list(prefix, after)

    def strays(self, prefix: str) -> Iterator[str]:
        return self.understore.strays(prefix)

    def capacity(self) -> Capacity:
        return self.understore.capacity()

    def ping(self) -> None:
        self.understore.ping()

    def uri(self, key: str) -> str:
        return f"alluxio://{','.join(self._settings.masters)}/{quote(key)}"

    def key_of(self, uri: str) -> str | None:
        split = urlsplit(uri)
        if split.scheme != "alluxio":
            return self.understore.key_of(uri)
        if split.netloc not in ("", ",".join(self._settings.masters), *self._settings.masters):
            return None
        return unquote(split.path).strip("/")

    def local_file(self, key: str) -> BinaryIO | None:
        return self.understore.local_file(key)

    def link(self, key: str, seconds: int, file_name: str) -> str | None:
        if self._settings.understore_links:
            return self.understore.link(key, seconds, file_name)
        # The S3 API of the proxies calls the first part of a key its bucket.
        if "/" not in key or _hidden(key):
            return None
        node = next(self.cluster.nodes_by_preference(key), None)
        if node is None:
            return None
        kid, secret = _signing_key(self._settings)
        path = f"/dl/{node.name}/{quote(key, safe='/~-._')}"
        expires = int(time.time()) + seconds
        signed = f"GET\n{path}\n{expires}\n{kid}"
        signature = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).hexdigest()
        base = self._settings.public_url or node.balancer
        return f"{base.rstrip('/')}{path}?expires={expires}&kid={quote(kid)}&sig={signature}"

    def reap(self, older_than: datetime) -> int:
        return self.understore.reap(older_than)

    def _forget(self, keys: Sequence[str]) -> None:
        self._make_known(keys, self.cluster.forget)
        # Directories that became empty would stay in the master's metadata for ever.
        for directory in {key.rpartition("/")[0] for key in keys if not _hidden(key)}:
            while directory and self.cluster.forget_empty_directory(directory):
                directory = directory.rpartition("/")[0]

    def _make_known(self, keys: Sequence[str], tell: Callable[[str], None]) -> None:
        """Tell the cluster; what it cannot be told now it finds out itself at its next look."""
        visible = [key for key in keys if not _hidden(key)]

        def attempt(key: str) -> None:
            try:
                tell(key)
            except Unavailable as error:
                log.warning("cluster not told", extra={"key": key, "problem": error.detail})

        if len(visible) == 1:
            attempt(visible[0])
        elif visible:
            with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="alluxio") as pool:
                list(pool.map(attempt, visible))


def _hidden(key: str) -> bool:
    """Records and temporary objects are nothing for readers of the cluster."""
    return key.startswith(".")


def _signing_key(settings: AlluxioBackend) -> tuple[str, str]:
    """The first ``kid key`` of the link key file, read anew: it is rotated without a restart."""
    try:
        lines = settings.link_key_file.read_text(encoding="utf-8").splitlines()
        kid, secret = next(line.split() for line in lines if line.strip() and line[0] != "#")
    except (OSError, ValueError, StopIteration) as error:
        raise ConfigurationError(
            f"The link key file {settings.link_key_file} holds no line `kid key`."
        ) from error
    return kid, secret
