"""An Alluxio cluster as its proxies and masters show it over HTTP: metadata, cache, nodes.

Payload does not pass here.  Metadata is the cluster's, so any one proxy will do; they are asked in
turn until one answers.  Called by ``storage/alluxio.py`` and, through it, by the services.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import urllib3

from admin_api.errors import Denied, NotFound, Unavailable
from admin_api.settings import AlluxioBackend, AlluxioNode

log = logging.getLogger(__name__)

_OK = 200
_REACHABLE_SECONDS = 2.0
#: Compare with the under-store now, whatever the cluster believes to know.
_NOW: dict[str, Any] = {"commonOptions": {"syncIntervalMs": 0}}


@dataclass(frozen=True, slots=True)
class CachedBlock:
    """A block of a file and where it is cached: (node, tier) pairs."""

    offset: int
    size: int
    places: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class CachedFile:
    """What the cluster knows of a file; ``cached`` in per cent of its bytes."""

    path: str
    size: int
    cached: int
    pinned: bool
    blocks: tuple[CachedBlock, ...]


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier of a worker, in bytes."""

    name: str
    total: int
    used: int


@dataclass(frozen=True, slots=True)
class NodeState:
    """A cluster node: what the master says of its worker, whether proxy and balancer answer."""

    name: str
    worker: str
    proxy: bool
    balancer: bool
    tiers: tuple[Tier, ...]


class Cluster:
    """The HTTP interfaces of one Alluxio cluster."""

    def __init__(self, settings: AlluxioBackend) -> None:
        """Connect lazily: a cluster that is down is a cache that is down."""
        self._settings = settings
        timeout = urllib3.Timeout(connect=2.0, read=settings.timeout)
        self._pool = urllib3.PoolManager(num_pools=32, maxsize=16, timeout=timeout, retries=False)
        self._lock = threading.Lock()
        self._reached: dict[str, tuple[float, bool]] = {}
        self._turn = 0

    # -- files -------------------------------------------------------------------------------
    def sync(self, path: str) -> None:
        """Make the cluster see what the under-store has at ``path`` now, or that it has nothing."""
        self._call(path, "get-status", _NOW, missing_is_fine=True)

    def forget(self, path: str, recursive: bool = False) -> None:
        """Drop metadata and cached data of ``path``; the under-store keeps its own."""
        options = {"alluxioOnly": True, "recursive": recursive, "unchecked": True}
        self._call(path, "delete", options, missing_is_fine=True)

    def forget_empty_directory(self, path: str) -> bool:
        """Drop the metadata of a directory that has nothing beneath it; whether it went."""
        try:
            self._call(path, "delete", {"alluxioOnly": True, "recursive": False})
        except (NotFound, Denied, Unavailable):
            return False
        return True

    def free(self, path: str) -> None:
        """Drop the cached data of a file; the cluster does so within seconds."""
        self._call(path, "free", {"recursive": False, "forced": True})

    def pin(self, path: str, pinned: bool) -> None:
        """Keep what is cached of a file (or let it go when space is needed)."""
        self._call(path, "set-attribute", {"pinned": pinned})

    def open_to_all(self, path: str) -> None:
        """Let every user of the cluster write to a directory."""
        mode = {"ownerBits": "ALL", "groupBits": "ALL", "otherBits": "ALL"}
        self._call(path, "set-attribute", {"mode": mode})

    def status(self, path: str) -> CachedFile:
        """What the cluster knows of a file; raises NotFound."""
        found = self._call(path, "get-status", {})
        blocks = []
        for item in found.get("fileBlockInfos", []):
            info = item.get("blockInfo", {})
            places = [
                (place.get("workerAddress", {}).get("host", ""), place.get("tierAlias", ""))
                for place in info.get("locations", [])
            ]
            blocks.append(
                CachedBlock(int(item.get("offset", 0)), int(info.get("length", 0)), tuple(places))
            )
        return CachedFile(
            path,
            int(found.get("length", 0)),
            int(found.get("inAlluxioPercentage", 0)),
            bool(found.get("pinned", False)),
            tuple(blocks),
        )

    def warm(self, path: str, node: AlluxioNode) -> None:
        """Have a file cached at a node: its proxy reads it once, nobody takes the bytes along.

        Raises NotFound, Unavailable.
        """
        answer = self._request(
            "GET",
            f"{node.proxy}/api/v1/s3/{quote(path, safe='/~-._')}",
            headers={
                "Authorization": "AWS4-HMAC-SHA256 Credential=alluxio/20260101/us-east-1/s3/"
                "aws4_request, SignedHeaders=host, Signature=0"
            },
            preload_content=False,
        )
        try:
            if answer.status == 404:
                raise NotFound(f"Alluxio has no object {path!r}.")
            if answer.status != _OK:
                raise Unavailable(f"The proxy of {node.name} answered {answer.status}.")
            while answer.read(4 << 20):
                pass
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(f"The proxy of {node.name} broke off.") from error
        finally:
            answer.close()

    # -- nodes -------------------------------------------------------------------------------
    def nodes(self) -> list[NodeState]:
        """Every node that is configured or known to the master."""
        try:
            workers = {item["address"]["host"]: item for item in self._master_info()["workers"]}
        except (Unavailable, KeyError):
            workers = {}
        found = []
        for node in self._settings.nodes:
            worker = workers.pop(node.name, None)
            found.append(
                NodeState(
                    node.name,
                    str(worker.get("state", "")).lower() if worker else "lost",
                    self.reaches(node.proxy),
                    self.takes_clients(node),
                    _tiers(worker or {}),
                )
            )
        found += [
            NodeState(name, str(worker.get("state", "")).lower(), False, False, _tiers(worker))
            for name, worker in sorted(workers.items())
        ]
        return found

    def nodes_by_preference(self, path: str) -> Iterator[AlluxioNode]:
        """The nodes that answer, the one that should cache ``path`` first.

        See :func:`preference`.
        """
        nodes = {node.name: node for node in self._settings.nodes}
        for name in preference(list(nodes), path):
            if self.takes_clients(nodes[name]):
                yield nodes[name]

    def reaches(self, url: str) -> bool:
        """Whether a connection to ``url`` comes about; remembered for two seconds."""
        return self._remembered(url, _connects)

    def takes_clients(self, node: AlluxioNode) -> bool:
        """Whether a node's balancer has a proxy to give and is not leaving; for two seconds."""
        return self._remembered(node.health, self._is_well)

    def _remembered(self, url: str, ask: Callable[[str], bool]) -> bool:
        now = time.monotonic()
        known = self._reached.get(url)
        if known and now - known[0] < _REACHABLE_SECONDS:
            return known[1]
        answer = ask(url)
        self._reached[url] = (now, answer)
        return answer

    def _is_well(self, url: str) -> bool:
        try:
            answer = self._pool.request(
                "GET", url, redirect=False, timeout=urllib3.Timeout(connect=0.5, read=2.0)
            )
        except (urllib3.exceptions.HTTPError, OSError):
            return False
        return answer.status == _OK

    def _master_info(self) -> dict[str, Any]:
        """Standby masters accept a connection and say nothing: whoever answers leads."""
        for url in self._settings.master_urls:
            try:
                answer = self._request("GET", f"{url}/api/v1/master/info")
                if answer.status == _OK:
                    return dict(json.loads(answer.data))
            except (Unavailable, ValueError):
                continue
        raise Unavailable("No Alluxio master answers.")

    # -- calls -------------------------------------------------------------------------------
    def _call(
        self, path: str, verb: str, options: dict[str, Any], missing_is_fine: bool = False
    ) -> dict[str, Any]:
        # The path keeps its leading slash, so there are two of them.
        target = f"/api/v1/paths//{quote(path, safe='/~-._')}/{verb}"
        problem = "no proxy is configured"
        for node in self._in_turn():
            try:
                answer = self._request(
                    "POST",
                    node.proxy + target,
                    body=json.dumps(options),
                    headers={"Content-Type": "application/json"},
                )
            except Unavailable as error:
                problem = error.detail
                continue
            if answer.status == _OK:
                return dict(json.loads(answer.data)) if answer.data.startswith(b"{") else {}
            code, message = _failure(answer.data)
            match code:
                case "NOT_FOUND" if missing_is_fine:
                    return {}
                case "NOT_FOUND":
                    raise NotFound(f"Alluxio has no object {path!r}.")
                case "PERMISSION_DENIED" | "UNAUTHENTICATED" | "FAILED_PRECONDITION":
                    raise Denied(f"Alluxio refuses {verb} of {path!r}: {message}")
            problem = f"{node.name} answered {answer.status} {code} {message}"
        raise Unavailable(f"Alluxio did not answer to {verb} of {path!r}: {problem}.")

    def _in_turn(self) -> list[AlluxioNode]:
        """All nodes, beginning with another one each time, those that answer first."""
        nodes = self._settings.nodes
        with self._lock:
            self._turn = (self._turn + 1) % len(nodes)
            turned = nodes[self._turn :] + nodes[: self._turn]
        return sorted(turned, key=lambda node: not self.reaches(node.proxy))

    def _request(self, method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(method, url, redirect=False, **options)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(f"{urlsplit(url).netloc} does not answer") from error


def _connects(url: str) -> bool:
    split = urlsplit(url)
    try:
        with urllib3.util.connection.create_connection(
            (split.hostname or "", split.port or 443), timeout=0.5
        ):
            return True
    except (OSError, urllib3.exceptions.HTTPError):
        return False


def _failure(data: bytes) -> tuple[str, str]:
    """Status code and message of an error; all of them come as HTTP 500."""
    try:
        found = json.loads(data)
        return str(found["statusCode"]), str(found.get("message", ""))[:300]
    except (ValueError, KeyError, TypeError):
        return "", ""


def preference(names: list[str], path: str) -> list[str]:
    """The names in the order in which they should serve ``path``.

    Every node has a rank for every path (rendezvous hashing), so a node that joins or leaves moves
    only its own share of the objects.
    """

    def rank(name: str) -> bytes:
        return hashlib.blake2b(f"{name}\n{path}".encode(), digest_size=8).digest()

    return sorted(names, key=rank)


def _tiers(worker: dict[str, Any]) -> tuple[Tier, ...]:
    totals = worker.get("capacityBytesOnTiers", {})
    used = worker.get("usedBytesOnTiers", {})
    return tuple(Tier(name, int(total), int(used.get(name, 0))) for name, total in totals.items())
