"""A proxy before a real S3 server that does to answers and bodies what networks and clones do."""

from __future__ import annotations

import http.server
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import urllib3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.support.servers import ACCESS_KEY, SECRET_KEY

#: Headers by which a service would notice altered bytes.
CHECKSUMS = ("content-md5", "x-amz-checksum", "x-amz-sdk-checksum")
CONDITIONS = ("if-none-match",)


@dataclass
class Faults:
    """What the proxy does to requests; the tests set and count."""

    mangle: Callable[[bytes], bytes] = lambda body: body
    #: Like ``mangle``, for tests that look at the path first.
    mangle_at: Callable[[str, bytes], bytes] = lambda path, body: body
    #: Beginnings of headers that the server does not get to see, as if it did not know them.
    ignore: tuple[str, ...] = ()
    #: The server's ETags say nothing about the bytes.
    opaque_etags: bool = False
    #: Called with method and path before anything is passed on: waits, and says what happens:
    #: nothing (""), the connection breaks ("reset"), the answer does ("lost"), the answer is an
    #: error that comes with status 200 ("failed"), or the server has too much to do ("busy").
    meet: Callable[[str, str], str] = lambda method, path: ""
    #: Called with method and path when the server has answered; the answer waits for it.
    answered: Callable[[str, str], None] = lambda method, path: None
    #: How many more answers to PUTs are lost after the server has done its work.
    lose_answers: int = 0
    only: str = ""
    puts: list[str] = field(default_factory=list)
    lost: int = 0


#: An opaque ETag as a client tells it, and the server's own of an object of several parts.
_TOLD = re.compile(rb"x([0-9a-f]{32})")
_MADE = re.compile(rb"([0-9a-f]{32}-\d+)")
_ERRORS = {"failed": (200, "InternalError"), "busy": (503, "SlowDown")}
_OWN = ("content-length", "authorization", "x-amz-date", "x-amz-content-sha256", "host")


class _Unsigned(S3SigV4Auth):
    def payload(self, request: AWSRequest) -> str:
        return "UNSIGNED-PAYLOAD"


@contextmanager
def fault_proxy(endpoint: str) -> Iterator[tuple[str, Faults]]:
    """The URL of a proxy before ``endpoint``, and its faults.

    Requests are signed anew, without their payload: a mangled body is stored as a careless server
    would store it.
    """
    faults = Faults()
    host = urllib.parse.urlsplit(endpoint).netloc
    pool = urllib3.PoolManager(maxsize=16, retries=False)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length) if length else b""
            body = _TOLD.sub(rb"\1", body) if self.command == "POST" else body
            mood = faults.meet(self.command, self.path)
            if mood == "reset":
                return self.hang_up()
            if mood in _ERRORS:
                status, code = _ERRORS[mood]
                text = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>"
                return self.answer(status, {"Content-Type": "application/xml"}, text.encode())
            is_put = self.command == "PUT" and faults.only in self.path
            if is_put:
                faults.puts.append(self.path)
                body = faults.mangle_at(self.path, faults.mangle(body))
            headers = {
                key: value
                for key, value in self.headers.items()
                if not key.lower().startswith((*_OWN, *faults.ignore))
            }
            if is_put or body:
                headers["Content-Length"] = str(len(body))
            answer = pool.request(
                self.command,
                f"http://{host}{self.path}",
                body=body or None,
                headers=self.signed(headers),
                redirect=False,
                preload_content=True,
                decode_content=False,
            )
            faults.answered(self.command, self.path)
            if mood == "lost":
                return self.hang_up()
            if is_put and faults.lose_answers > 0:
                faults.lose_answers -= 1
                faults.lost += 1
                return self.hang_up()
            given, data = dict(answer.headers.items()), answer.data
            for key in given:
                if faults.opaque_etags and key.lower() == "etag":
                    given[key] = given[key].replace('"', '"x', 1)
            if faults.opaque_etags and self.command == "POST":
                data = _MADE.sub(rb"x\1", data)
            self.answer(answer.status, given, data)

        def signed(self, headers: dict[str, str]) -> dict[str, str]:
            if "Authorization" not in self.headers:
                return {**headers, "Host": self.headers["Host"]}  # a signed link
            request = AWSRequest(self.command, f"http://{host}{self.path}", headers)
            _Unsigned(Credentials(ACCESS_KEY, SECRET_KEY), "s3", "us-east-1").add_auth(request)
            return dict(request.headers.items())

        def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response_only(status)
            length = str(len(data))
            for key, value in headers.items():
                if key.lower() == "content-length" and self.command == "HEAD":
                    length = value
                elif key.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(key, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def hang_up(self) -> None:
            self.close_connection = True
            self.connection.close()

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
