"""A TCP proxy before a server whose answers can be made to trickle.  Used by tests of waiting."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

_CHUNK = 64 << 10


class Slowness:
    """Bytes per second of every answer; None: as fast as it goes.  Counts what has passed.

    With a lock as ``link`` all answers share the rate.
    """

    def __init__(self) -> None:
        self.rate: int | None = None
        self.passed = 0
        self.link: contextlib.AbstractContextManager[object] = contextlib.nullcontext()


@contextlib.contextmanager
def slow_proxy(endpoint: str) -> Iterator[tuple[str, Slowness]]:
    """The URL of a proxy before ``endpoint``, and how slow it is."""
    split, slowness = urlsplit(endpoint), Slowness()
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                if is_answer:
                    slowness.passed += len(data)
                    if slowness.rate is not None:
                        with slowness.link:
                            time.sleep(len(data) / slowness.rate)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection((split.hostname or "", split.port or 80))
            except OSError:
                return
            for pair in ((client, server, False), (server, client, True)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", slowness
    finally:
        listener.close()
