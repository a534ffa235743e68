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

import urllib3

from admin_api import keyfiles
from admin_api.errors import Unavailable
from admin_api.settings import AlluxioBackend, AlluxioNode
from admin_api.storage.alluxio_cluster import Cluster
from admin_api.storage.base import Capacity, Stat, Storage
from admin_api.storage.untold import Untold

log = logging.getLogger(__name__)

_PARALLEL = 8
#: Longer than a proxy tries to find a worker, or the under-store.
_READ_SECONDS = 25
_READ = (200, 206)
_REFUSED = 403


class AlluxioStorage:
    """The ``Storage`` protocol over an under-store with Alluxio in front of it."""

    def __init__(self, settings: AlluxioBackend, understore: Storage, untold: Untold) -> None:
        """``understore`` is what the cluster has mounted at its root."""
        self._settings = settings
        self._untold = untold
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
        return self._link_at(node, key, seconds)

    def _link_at(self, node: AlluxioNode, key: str, seconds: int) -> str | None:
        # Read anew each time: it is rotated without a restart.
        key_that_signs = keyfiles.signing(self._settings.link_key_file)
        if key_that_signs is None:
            return None
        kid, secret = key_that_signs
        path = f"/dl/{node.name}/{quote(key, safe='/~-._')}"
        expires = int(time.time()) + seconds
        signed = f"GET\n{path}\n{expires}\n{kid}"
        signature = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).hexdigest()
        base = self._settings.public_url or node.balancer
        return f"{base.rstrip('/')}{path}?expires={expires}&kid={quote(kid)}&sig={signature}"

    @property
    def nodes(self) -> Sequence[AlluxioNode]:
        """The nodes of the cluster, as configured."""
        return self._settings.nodes

    def read_through(self, node: AlluxioNode, key: str, size: int) -> None:
        """Read the first ``size`` bytes through a node's balancer, proxy and worker, as a client.

        Raises Unavailable with a sentence that says which of them is not well.
        """
        link = self._link_at(node, key, _READ_SECONDS * 2)
        if link is None:
            raise Unavailable("The balancers have no link key of this host: run site.yml.")
        # Through this node's own balancer, whatever address is common to all.
        url = node.balancer.rstrip("/") + link[link.index("/dl/") :]
        own = self._settings.ca_file
        trust = {"ca_certs": str(own)} if own else {"assert_hostname": False}
        timeout = urllib3.Timeout(connect=3.0, read=_READ_SECONDS)
        try:
            with urllib3.PoolManager(timeout=timeout, retries=False, **trust) as pool:
                answer = pool.request("GET", url, headers={"Range": f"bytes=0-{size - 1}"})
        except urllib3.exceptions.SSLError as error:
            raise Unavailable(f"Its balancer's certificate does not hold: {error}.") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(f"Its balancer does not answer ({type(error).__name__}).") from error
        if answer.status == _REFUSED:
            raise Unavailable("Its balancer has other link keys: run site.yml.")
        if answer.status not in _READ or len(answer.data) != size:
            raise Unavailable(
                f"A read through its proxy was answered {answer.status} with {len(answer.data)} "
                f"bytes of {size}: look at alluxio-proxy and alluxio-worker there."
            )
        served = answer.headers.get("X-Served-By", node.name)
        if served != node.name:
            raise Unavailable(f"Its balancer had {served} serve it: look at alluxio-proxy there.")

    def put_memory(self, size: int | None) -> int:
        return self.understore.put_memory(size)

    def read_memory(self) -> int:
        return self.understore.read_memory()

    def reap(self, older_than: datetime) -> int:
        self.tell_again()
        return self.understore.reap(older_than)

    def tell_again(self) -> int:
        """Have the cluster look at what it could not be told of; how many keys it knows now.

        Ends at the first that fails: a cluster that is down is asked again at the next round.
        """
        told = 0
        for key in self._untold:
            try:
                self.cluster.sync(key)
            except Unavailable:
                break
            self._untold.drop(key)
            told += 1
        return told

    def _forget(self, keys: Sequence[str]) -> None:
        self._make_known(keys, self.cluster.forget)
        # Directories that became empty would stay in the master's metadata for ever.
        for directory in {key.rpartition("/")[0] for key in keys if not _hidden(key)}:
            while directory and self.cluster.forget_empty_directory(directory):
                directory = directory.rpartition("/")[0]

    def make_known(self, keys: Sequence[str]) -> None:
        """Have the cluster look at keys that were written beneath it."""
        self._make_known(keys, self.cluster.sync)

    def _make_known(self, keys: Sequence[str], tell: Callable[[str], None]) -> None:
        """Tell the cluster, now or (``tell_again``) later: it never looks by itself."""
        visible = [key for key in keys if not _hidden(key)]

        def attempt(key: str) -> None:
            try:
                tell(key)
            except Unavailable as error:
                self._untold.add(key)
                log.warning("cluster not told", extra={"key": key, "problem": error.detail})

        if len(visible) == 1:
            attempt(visible[0])
        elif visible:
            with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="alluxio") as pool:
                list(pool.map(attempt, visible))


def _hidden(key: str) -> bool:
    """Records and temporary objects are nothing for readers of the cluster."""
    return key.startswith(".")
