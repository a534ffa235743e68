"""Connections to web servers: so many to each at once, kept open and used again.

One :class:`Server` per origin for the whole process, whatever number of ingests read from it.
Called by ``services/sources/web.py``.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import urllib3

from admin_api.services.sources.addresses import Target

#: The body of an answer that is no file is read to its end if it is so short: a connection that
#: can be used again costs less than a new one.
_DRAINED_BYTES = 64 << 10
#: After so many answers a server that once had too many connections is tried with one more.
_PROBATION = 16
#: What has come after so long is handed on.
_PATIENCE_SECONDS = 5.0


class Answer:
    """An answer whose body is being read; it has one of the server's connections until closed."""

    def __init__(self, response: urllib3.BaseHTTPResponse, leave: Callable[[], None]) -> None:
        self._response = response
        self._leave: Callable[[], None] | None = leave
        self.status = response.status
        self.headers = response.headers

    def read(self, size: int) -> bytes:
        """The next bytes of the body, at most ``size`` of them; b'' after its end.

        They are fewer at the end, and where a slow server would have to be waited for long.
        Raises urllib3's errors, also where the body is shorter than its Content-Length.
        """
        found, count = [], 0
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while count < size and (count == 0 or time.monotonic() < deadline):
            piece = self._response.read1(size - count, decode_content=False)
            if not piece:
                break
            found.append(piece)
            count += len(piece)
        return found[0] if len(found) == 1 else b"".join(found)

    def close(self) -> None:
        """Give the connection back: for another request if the body was read to its end."""
        leave, self._leave = self._leave, None
        if leave is not None:
            self._response.close()
            leave()

    def dismiss(self) -> None:
        """Close an answer whose body nobody wants."""
        length = self.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) <= _DRAINED_BYTES:
            with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
                while self.read(_DRAINED_BYTES):
                    pass
        self.close()

    def __del__(self) -> None:
        self.close()


class Server:
    """One origin: its connections, and how many of them it takes at once."""

    def __init__(self, limit: int, timeout: float, ca_file: Path | None) -> None:
        self._limit = limit
        self._timeout = urllib3.Timeout(connect=min(timeout, 10.0), read=timeout)
        self._ca_file = ca_file
        self._turn = threading.Condition()
        self._allowed = limit
        self._active = 0
        self._answers = 0
        self._pool: urllib3.HTTPConnectionPool | None = None
        self._address: str | None = None
        self._unreachable = 0

    def ask(self, target: Target, addresses: Sequence[str], headers: dict[str, str]) -> Answer:
        """GET ``target`` at one of the checked ``addresses``, once one more connection may be made.

        Raises urllib3's errors.
        """
        self._enter()
        try:
            response = self._request(target, addresses, headers)
        except BaseException:
            self._leave()
            raise
        return Answer(response, self._leave)

    def _request(
        self, target: Target, addresses: Sequence[str], headers: dict[str, str]
    ) -> urllib3.BaseHTTPResponse:
        """The answer of the first address that takes a connection."""
        for left in range(len(addresses) - 1, -1, -1):
            pool = self._pool_to(target, addresses)
            try:
                return pool.urlopen(
                    "GET",
                    target.request,
                    headers={"Host": target.host_header, "Accept-Encoding": "identity", **headers},
                    redirect=False,
                    retries=False,
                    preload_content=False,
                    decode_content=False,
                )
            except (
                urllib3.exceptions.NewConnectionError,
                urllib3.exceptions.ConnectTimeoutError,
            ):
                self._try_another_address(pool)
                if not left:
                    raise
        raise AssertionError("a name has at least one address")

    def refused(self, answer: Answer) -> None:
        """``answer`` says that the server is asked too much: no more connections than the others.

        Its connection is not kept.  It would be the next to be used, and be refused again while
        one that the server has taken lies idle.
        """
        with self._turn:
            self._allowed = min(self._allowed, max(1, self._active - 1))
        answer.close()

    def _enter(self) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._active < self._allowed)
            self._active += 1

    def _leave(self) -> None:
        with self._turn:
            self._active -= 1
            self._answers += 1
            if self._allowed < self._limit and self._answers % _PROBATION == 0:
                self._allowed += 1
            self._turn.notify_all()

    def _pool_to(self, target: Target, addresses: Sequence[str]) -> urllib3.HTTPConnectionPool:
        """The pool of connections; a new one if the server has moved to other addresses."""
        with self._turn:
            if self._pool is None or self._address not in addresses:
                if self._pool is not None:
                    self._pool.close()
                self._address = addresses[self._unreachable % len(addresses)]
                self._pool = self._new_pool(target, self._address)
            return self._pool

    def _try_another_address(self, pool: urllib3.HTTPConnectionPool) -> None:
        with self._turn:
            if self._pool is pool:
                pool.close()
                self._pool, self._unreachable = None, self._unreachable + 1

    def _new_pool(self, target: Target, address: str) -> urllib3.HTTPConnectionPool:
        if target.scheme == "http":
            return urllib3.HTTPConnectionPool(
                address, target.port, timeout=self._timeout, maxsize=self._limit
            )
        return urllib3.HTTPSConnectionPool(
            address,
            target.port,
            timeout=self._timeout,
            maxsize=self._limit,
            cert_reqs="CERT_REQUIRED",
            ca_certs=str(self._ca_file) if self._ca_file else None,
            server_hostname=target.host,
            assert_hostname=target.host,
        )


_servers: dict[tuple[str, int, float, Path | None], Server] = {}
_lock = threading.Lock()


def server(origin: str, limit: int, timeout: float, ca_file: Path | None) -> Server:
    """The one ``Server`` of this process for ``origin`` under these settings."""
    with _lock:
        key = (origin, limit, timeout, ca_file)
        if key not in _servers:
            _servers[key] = Server(limit, timeout, ca_file)
        return _servers[key]
