"""A client of which the service takes no notice: many connections in one thread.

A pool of threads would take the cores that are to be measured.  Used by the measures.
"""

from __future__ import annotations

import selectors
import socket
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.support.servers import Service


@dataclass
class _Connection:
    sock: socket.socket
    #: When each request that waits for its answer was to be sent.
    due: deque[float] = field(default_factory=deque)
    received: bytes = b""


def ask(
    service: Service, request: bytes, clients: int, count: int, rate: float | None = None
) -> list[tuple[float, float]]:
    """Send ``request`` ``count`` times over ``clients`` connections; every answer must be 200.

    ``rate``: so many in a second, all clients together, whether answers come or not; None: each
    client sends its next one when it has its answer.  Gives when each was due, and answered.
    """
    place = urlsplit(service.url)
    times: list[tuple[float, float]] = []
    with selectors.DefaultSelector() as poller:
        connections = [
            _Connection(socket.create_connection((place.hostname or "", place.port or 0)))
            for _ in range(clients)
        ]
        for connection in connections:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            poller.register(connection.sock, selectors.EVENT_READ, connection)
        begun, sent = time.perf_counter(), 0
        for connection in connections if rate is None else ():
            _send(connection, request, time.perf_counter())
            sent += 1
        while len(times) < count:
            wait = None
            if rate is not None:
                while sent < count and begun + sent / rate <= time.perf_counter():
                    _send(connections[sent % clients], request, begun + sent / rate)
                    sent += 1
                wait = max(0.0, begun + sent / rate - time.perf_counter())
            for key, _ in poller.select(wait if sent < count else None):
                _read(key.data)
                while _take(key.data):
                    times.append((key.data.due.popleft(), time.perf_counter()))
                    if rate is None and sent < count:
                        _send(key.data, request, time.perf_counter())
                        sent += 1
        for connection in connections:
            connection.sock.close()
    return times


def _send(connection: _Connection, request: bytes, due: float) -> None:
    connection.due.append(due)
    connection.sock.sendall(request)


def _read(connection: _Connection) -> None:
    data = connection.sock.recv(1 << 16)
    assert data, "the service has closed the connection"
    connection.received += data


def _take(connection: _Connection) -> bool:
    """Take the next answer of what was read; whether it is there to its end."""
    head, end, body = connection.received.partition(b"\r\n\r\n")
    if not end:
        return False
    assert head.startswith(b"HTTP/1.1 200 "), connection.received
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    if len(body) < length:
        return False
    connection.received = body[length:]
    return True


def p99(seconds: list[float]) -> float:
    """The 99th percentile, in milliseconds."""
    return 1000 * statistics.quantiles(seconds, n=100)[98]
