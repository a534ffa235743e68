"""A web server on loopback that can be told how to misbehave, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import http.server
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Headers = dict[str, str]


@dataclass
class File:
    """A file of the server, and what is wrong with it."""

    data: bytes
    headers: Headers = field(default_factory=dict)
    ranges: bool = True
    #: So many answers break off after this share of what they announced.
    breaks: int = 0
    share: float = 1 / 3
    #: They stall instead: nothing more comes until the server ends.
    stalls: bool = False
    #: After the first answer the file is another one.
    then: File | None = None
    #: Statuses and headers of the first answers, before the file is handed out.
    refusals: list[tuple[int, Headers]] = field(default_factory=list)
    chunked: bool = False
    #: No length: the body ends with the connection.
    endless: bool = False


@dataclass
class Request:
    path: str
    headers: Headers


class WebSource:
    """The server: its files by path, and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.asked: list[Request] = []
        self.lock = threading.Lock()
        self.open = 0  # connections now
        self.peak = 0
        #: More connections than this are refused; None: none are.
        self.limit: int | None = None
        self.refusal: tuple[int, Headers] = (503, {"Retry-After": "1"})
        self.refused = 0
        #: They are refused once this is set.
        self.refusing = threading.Event()
        self.refusing.set()
        #: The first so many requests are answered once all of them are there.
        self.gathering: threading.Barrier | None = None
        self.ended = threading.Event()
        self.url = ""

    def gather(self, count: int) -> None:
        self.gathering = threading.Barrier(count)
        self._gathered = 0

    def ranges_asked(self) -> list[str]:
        return [item.headers["Range"] for item in self.asked if "Range" in item.headers]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    source: WebSource

    def setup(self) -> None:
        super().setup()
        source = self.source
        with source.lock:
            self.counted = source.limit is None or source.open < source.limit
            if self.counted:
                source.open += 1
                source.peak = max(source.peak, source.open)
            else:
                source.refused += 1

    def finish(self) -> None:
        with self.source.lock:
            self.source.open -= self.counted
        super().finish()

    def do_GET(self) -> None:
        source = self.source
        with source.lock:
            source.asked.append(Request(self.path, dict(self.headers.items())))
            gathering = source.gathering if len(source.asked) <= _parties(source) else None
        if not self.counted:
            source.refusing.wait(60)
            self._refuse(*source.refusal)
            return
        if gathering is not None:
            gathering.wait(30)
        file = source.files.get(self.path.partition("?")[0])
        if file is None:
            self._refuse(404, {})
        elif file.refusals:
            self._refuse(*file.refusals.pop(0))
        else:
            self._hand_out(file)
            if file.then is not None:
                source.files[self.path.partition("?")[0]] = file.then

    def _refuse(self, status: int, headers: Headers) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        if not self.counted:
            self.send_header("Connection", "close")
        self.end_headers()

    def _hand_out(self, file: File) -> None:
        start, stop = self._span(file)
        body = file.data[start:stop]
        self.send_response(200 if (start, stop) == (0, len(file.data)) else 206)
        if (start, stop) != (0, len(file.data)):
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(file.data)}")
        for name, value in file.headers.items():
            self.send_header(name, value)
        if file.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if file.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif not file.endless:
            self.send_header("Content-Length", str(len(body)))
        self.close_connection = file.endless
        self.end_headers()
        breaking = file.breaks > 0
        file.breaks -= breaking
        sent = body[: int(len(body) * file.share)] if breaking else body
        with contextlib.suppress(OSError):
            if file.chunked:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent) if sent else b"")
                self.wfile.write(b"" if breaking else b"0\r\n\r\n")
            else:
                self.wfile.write(sent)
            self.wfile.flush()
        if breaking:
            if file.stalls:
                self.source.ended.wait(60)
            self.close_connection = True

    def _span(self, file: File) -> tuple[int, int]:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        current = (file.headers.get("ETag"), file.headers.get("Last-Modified"))
        if found is None or not file.ranges or (condition and condition not in current):
            return 0, len(file.data)
        return int(found[1]), int(found[2]) + 1 if found[2] else len(file.data)

    def log_message(self, *args: object) -> None:
        pass


def _parties(source: WebSource) -> int:
    return source.gathering.parties if source.gathering is not None else 0


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, *_: object) -> None:
        """Clients that go away are what is tested."""


@contextlib.contextmanager
def web_source(wrap: Callable[[_Server], None] = lambda _: None) -> Iterator[WebSource]:
    """A running server; ``wrap`` may put TLS around its socket."""
    source = WebSource()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"source": source}))
    wrap(server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield source
    finally:
        source.ended.set()
        server.shutdown()
        server.server_close()
