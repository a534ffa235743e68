"""Everybody who can hold a service up, at once: idle, slow and hostile clients, slow sources, a store
that hangs.

Used by the tests and by ``bench``.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.servers import Service, Weed

IDLE, SLOW_BODIES, SLOW_INGESTS = 5000, 64, 32


@contextmanager
def slow_source() -> Iterator[str]:
    """The origin of a web server that gives a byte from time to time."""
    over = threading.Event()

    class Trickling(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            with suppress(OSError):  # the service has given it up
                while not over.wait(0.5):
                    self.wfile.write(b"x")

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Trickling)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()


def allowing(origin: str) -> dict[str, object]:
    """The service's settings for sources there."""
    return {
        "origins": [origin],
        "private_networks": ["127.0.0.0/8"],
        "connections_per_origin": 64,
    }


@contextmanager
def crowd(service: Service, store: Weed, origin: str) -> Iterator[None]:
    """All of them at the service, whose store is ``store``, while this lasts."""
    head = f"HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.token()}\r\n"
    json_head = f"POST /v1/uploads {head}Content-Type: application/json\r\n"
    clients = [_connected(service, b"GET /hea" if n % 2 else b"") for n in range(IDLE)]
    for number in range(SLOW_BODIES):
        put = f"PUT /v1/uploads/slow-{number} {head}Content-Length: 1000000\r\n\r\nx"
        body = f"{json_head}Content-Length: 200000\r\n\r\n{{"
        stranger = f"PUT /v1/uploads/s HTTP/1.1\r\nHost: x\r\nContent-Length: {10**9}\r\n\r\n"
        clients += [_connected(service, text.encode()) for text in (put, body, stranger)]

    def ingest(number: int) -> None:
        body = {"name": f"slow-ingest-{number}", "source": f"{origin}/{number}.bin"}
        service.request("POST", "/v1/products", body, timeout=120)

    pool = ThreadPoolExecutor(SLOW_INGESTS)
    for number in range(SLOW_INGESTS):
        pool.submit(ingest, number)
    store.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        store.process.send_signal(signal.SIGCONT)
        for client in clients:
            client.close()
        pool.shutdown(wait=False)


def _connected(service: Service, data: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])))
    client.sendall(data)
    return client
