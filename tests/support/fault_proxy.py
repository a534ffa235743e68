"""A proxy before a real S3 server that does to answers and bodies what networks and clones do."""

from __future__ import annotations

import http.server
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import urllib3


@dataclass
class Faults:
    """What the proxy does to PUT requests; the tests set and count."""

    mangle: Callable[[bytes], bytes] = lambda body: body
    #: How many more answers to PUTs are lost after the server has done its work.
    lose_answers: int = 0
    only: str = ""
    puts: list[str] = field(default_factory=list)
    lost: int = 0


@contextmanager
def fault_proxy(endpoint: str) -> Iterator[tuple[str, Faults]]:
    """The URL of a proxy before ``endpoint``, and its faults.

    Signatures are checked by the server over headers and not over the body (the payload is not
    signed), so a mangled body is stored as a careless server would store it.
    """
    faults = Faults()
    host = urllib.parse.urlsplit(endpoint).netloc
    pool = urllib3.PoolManager(maxsize=16, retries=False)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length) if length else b""
            is_put = self.command == "PUT" and faults.only in self.path
            if is_put:
                faults.puts.append(self.path)
                body = faults.mangle(body)
            headers = {
                key: value for key, value in self.headers.items() if key.lower() != "content-length"
            }
            answer = pool.request(
                self.command,
                f"http://{host}{self.path}",
                body=body or None,
                headers={**headers, "Content-Length": str(len(body))}
                if is_put or body
                else headers,
                redirect=False,
                preload_content=True,
                decode_content=False,
            )
            if is_put and faults.lose_answers > 0:
                faults.lose_answers -= 1
                faults.lost += 1
                self.close_connection = True
                self.connection.close()
                return
            self.send_response_only(answer.status)
            for key, value in answer.headers.items():
                if key.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(key, value)
            given = answer.headers.get("Content-Length", "0")
            self.send_header(
                "Content-Length", given if self.command == "HEAD" else str(len(answer.data))
            )
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        server.server_close()
