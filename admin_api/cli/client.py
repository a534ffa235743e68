"""The commands' HTTP client: token from a file, problems as sentences, patience if it is busy."""

from __future__ import annotations

import functools
import json
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import click

from admin_api.cli.failures import (
    EXIT_FAILED,
    EXIT_NOT_ALLOWED,
    EXIT_NOT_FOUND,
    EXIT_REFUSED,
    EXIT_UNAVAILABLE,
    Failure,
    local_failure,
    shown,
)
from admin_api.cli.output import Progress
from admin_api.cli.parallel import Stopped, Window

if TYPE_CHECKING:
    # Loaded with the first request: a third of the time that the command takes to begin.
    import urllib3

CHUNK = 1 << 20
_OK = 300
# How long a request that is told to come again does so: while others are served, and while the
# service or its store cannot serve anybody (transfers only; other commands say so at once).
_BUSY_SECONDS = 1800.0
_DOWN_SECONDS = 60.0
_BUSY_CODES = {"busy", "too_many_requests", "too_many_connections"}
_MAX_PAUSE_SECONDS = 60.0
_DEFAULT_PAUSE_SECONDS = 2.0

_EXITS = {401: EXIT_NOT_ALLOWED, 403: EXIT_NOT_ALLOWED, 404: EXIT_NOT_FOUND, 410: EXIT_NOT_FOUND}
_EXITS |= {409: EXIT_REFUSED, 507: EXIT_REFUSED}
_EXITS |= dict.fromkeys((429, 502, 503, 504), EXIT_UNAVAILABLE)


def broken(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What a connection raises that fails or breaks off, and ``more``."""
    from urllib3.exceptions import HTTPError

    return (HTTPError, OSError, *more)


@dataclass
class Client:
    """The API at ``url``, asked with the token of ``token_file``."""

    url: str
    token_file: Path | None
    ca_file: Path | None = None
    as_json: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        self._window = Window(32)
        self._told = self._reached = False

    @functools.cached_property
    def _pool(self) -> urllib3.PoolManager:
        import urllib3

        trusted: dict[str, Any] = {}
        if self.ca_file is not None:
            try:
                trusted["ssl_context"] = ssl.create_default_context(cafile=self.ca_file)
            except ssl.SSLError:
                raise Failure(
                    f"{shown(self.ca_file)} holds no certificates (PEM).", EXIT_FAILED
                ) from None
            except OSError as error:
                raise local_failure(error, self.ca_file) from error
        # Large blocks: urllib3 would send files in pieces of 16 KiB.
        return urllib3.PoolManager(
            maxsize=32,
            blocksize=CHUNK,
            timeout=urllib3.Timeout(connect=10, read=300),
            **trusted,
        )

    def request(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Any = None,
        data: Reader | None = None,
        headers: dict[str, str] | None = None,
        transfer: bool = False,
        stop: threading.Event | None = None,
        timeout: float | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """An answer below 300, its body not yet read; raises Failure for everything else.

        Who is told to come again waits as long as he is told to and does.  A ``transfer`` (which
        can be repeated without harm) is also patient with a service that is away for a moment.
        ``stop`` ends the waiting with Stopped.
        """
        url = self.url.rstrip("/") + path
        known = {key: value for key, value in (query or {}).items() if value is not None}
        if known:
            url += "?" + urlencode(known)
        sent = dict(headers or {})
        if self.token_file is not None:
            sent["Authorization"] = f"Bearer {self._token()}"
        if body is not None:
            sent["Content-Type"] = "application/json"
        payload = json.dumps(body).encode() if body is not None else data
        pool = self._pool
        from urllib3 import Retry

        # Only what changes nothing is tried again by itself.
        again = Retry(total=3, redirect=5, backoff_factor=0.2, respect_retry_after_header=False)
        options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        begun, broke = time.monotonic(), False
        while True:
            try:
                with self._window.place(stop) if transfer else nullcontext():
                    answer = pool.urlopen(
                        method,
                        url,
                        body=payload,
                        headers=sent,
                        retries=again if method == "GET" else False,
                        preload_content=False,
                        **options,
                    )
            except broken(ValueError) as error:
                failure = Failure(
                    f"The storage manager at {self.url} cannot be reached: {_reason(error)}",
                    EXIT_UNAVAILABLE,
                )
                failure.__cause__ = error
                # Somebody who was never there is not waited for.
                broke, pause = True, _DEFAULT_PAUSE_SECONDS
                patience = _DOWN_SECONDS if transfer and self._reached else 0.0
            else:
                self._reached = True
                if answer.status < _OK:
                    self._window.served()
                    return answer
                failure = _failure(answer)
                pause = _pause(answer)
                patience = _patience(answer, failure, transfer, broke)
                if patience:
                    self._window.refused()
            if time.monotonic() + pause > begun + patience:
                raise failure
            self._wait(pause, stop)
            if data is not None:
                data.rewind()

    def _wait(self, seconds: float, stop: threading.Event | None) -> None:
        if not self._told and not self.quiet and not self.as_json:
            self._told = True
            click.echo("The service is busy; waiting for it.", err=True)
        # Those who were refused together need not come back together.
        spread = seconds * random.uniform(1.0, 1.5)  # nosec B311 # no secret
        if stop is None:
            time.sleep(spread)
        elif stop.wait(spread):
            raise Stopped

    def json(self, method: str, path: str, **options: Any) -> Any:
        """The answer's JSON."""
        answer = self.request(method, path, **options)
        data = answer.read()
        return json.loads(data) if data else None

    def lines(self, method: str, path: str, **options: Any) -> Iterator[dict[str, Any]]:
        """The answer's JSON lines as they come; raises Failure if the work does not end well."""
        answer = self.request(method, path, **options)
        ended = False
        try:
            for line in _split(answer.stream(CHUNK)):
                item = json.loads(line)
                if item["type"] == "error":
                    raise Failure(item["detail"], EXIT_FAILED, item)
                ended = item["type"] == "summary"
                yield item
        except broken() as error:
            raise Failure(f"The answer broke off: {_reason(error)}", EXIT_UNAVAILABLE) from error
        if not ended:
            raise Failure("The answer ended without a summary.", EXIT_FAILED)

    def find(self, reference: str, removed: bool = False) -> dict[str, Any]:
        """A product by its id or its name; with ``removed`` a tombstone as well.

        Raises Failure if there is none, with the tombstone's words if there was one.
        """
        try:
            found: dict[str, Any] = self.json("GET", f"/v1/products/{quote(reference, safe='')}")
        except Failure as failure:
            if failure.exit_code != EXIT_NOT_FOUND:
                raise
            found = self._named(reference)
        if found["state"] == "removed" and not removed:
            raise gone(found)
        return found

    def _named(self, name: str) -> dict[str, Any]:
        for state in ("available", "removing", "removed"):
            query = {"name": name, "state": state, "order": "desc", "limit": 1}
            page = self.json("GET", "/v1/products", query=query)
            if page["products"]:
                # Not by its id, where this is not its newest generation but a tombstone.
                found: dict[str, Any] = page["products"][0]
                if state == "removed":
                    return {**found, "files": []}
                return self.find(found["id"])
        raise Failure(f"There is no product {name!r}.", EXIT_NOT_FOUND)

    def progress(self, what: str, total: int, files: int | None = None) -> Progress:
        """Progress of ``total`` bytes in ``files``, told as this client tells things."""
        return Progress(what, total, self.as_json, self.quiet, files=files)

    def _token(self) -> str:
        assert self.token_file is not None
        try:
            token = self.token_file.read_text(encoding="ascii").strip()
        except OSError as error:
            raise Failure(
                f"Cannot read the token file {shown(self.token_file)}: {error.strerror}",
                EXIT_NOT_ALLOWED,
            ) from error
        except UnicodeDecodeError:
            token = None
        if not token or not token.isprintable() or " " in token:
            raise Failure(
                f"{shown(self.token_file)} holds no token: one line of letters, digits, '.', '-' "
                "and '_', as `storage-manager token` prints it.",
                EXIT_NOT_ALLOWED,
            )
        return token


def gone(tombstone: dict[str, Any]) -> Failure:
    """What is said of a product that was removed."""
    return Failure(
        f"{tombstone['name']} was removed by {tombstone['removed_by']} at {tombstone['removed']}: "
        f"{tombstone['removed_cause']}.",
        EXIT_NOT_FOUND,
        {"code": "gone", "product": tombstone["id"], "removed": tombstone["removed"]},
    )


def once() -> dict[str, str]:
    """The header by which a request that is sent twice is carried out once."""
    return {"Idempotency-Key": os.urandom(16).hex()}


class Reader:
    """A file on its way out: tells how much of it was read, and that it is what it was.

    ``read`` raises Failure where the file cannot be read or changes, Stopped after ``stop``.
    """

    def __init__(
        self,
        file: IO[bytes],
        size: int,
        moved: Callable[[int], None],
        stop: threading.Event | None = None,
    ) -> None:
        self._file, self._size, self._moved, self._stop = file, size, moved, stop
        self._start, self._position, self._end = 0, 0, size

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        if self._stop is not None and self._stop.is_set():
            raise Stopped
        try:
            left = self._end - self._position
            data = self._file.read(left if size < 0 else min(size, left))
        except OSError as error:
            raise local_failure(error, self._file.name) from error
        self._position += len(data)
        is_whole = self._position == self._size == self._end
        if (not data and left) or (is_whole and self._file.read(1)):
            raise Failure(
                f"{shown(self._file.name)} changed its size while it was sent.", EXIT_FAILED
            )
        self._moved(len(data))
        return data

    def rewind(self) -> None:
        """Begin again: nothing that was read has arrived."""
        self.begin_at(self._start, self._end)

    def begin_at(self, start: int, end: int) -> None:
        """Read from ``start`` to ``end``; what is before has arrived, and nothing of the rest."""
        self._moved(start - self._position)
        self._start, self._position, self._end = start, start, end
        self._file.seek(start)


def _split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)
    if rest:
        yield rest


def _pause(answer: urllib3.BaseHTTPResponse) -> float:
    """How long the service says that one should wait, in seconds, within reason."""
    said = answer.headers.get("Retry-After", "")
    return float(min(int(said), _MAX_PAUSE_SECONDS)) if said.isdecimal() else _DEFAULT_PAUSE_SECONDS


def _patience(
    answer: urllib3.BaseHTTPResponse, failure: Failure, transfer: bool, broke: bool
) -> float:
    """How many seconds a request may go on being tried after this refusal."""
    code = failure.problem.get("code")
    if answer.status == 429 or code in _BUSY_CODES:
        return _BUSY_SECONDS
    # A balancer's own 502 or 503 has no code.
    away = answer.status in (502, 503) and (code is None or "Retry-After" in answer.headers)
    # The service has not noticed yet that the connection of the attempt before broke.
    unfinished = broke and code == "in_progress"
    return _DOWN_SECONDS if transfer and (away or unfinished) else 0.0


def _failure(answer: urllib3.BaseHTTPResponse) -> Failure:
    try:
        problem = json.loads(answer.read())
        message = f"{problem['detail']} [{problem['code']}, request {problem['request_id']}]"
    except broken(ValueError, KeyError, TypeError):
        problem, message = {}, f"The service answered {answer.status} {answer.reason}."
    return Failure(message, _EXITS.get(answer.status, EXIT_FAILED), problem)


def _reason(error: BaseException) -> str:
    """What the system says of a connection, without the layers that it came through."""
    causes = [getattr(error, "reason", None) or error]
    while True:
        # urllib3 has what the system said as the cause, or as the first word.
        inner = causes[-1].__cause__ or next(iter(causes[-1].args), None)
        if not isinstance(inner, BaseException):
            break
        causes.append(inner)
    for cause in reversed(causes):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({cause.verify_message}); see --ca-file."
        if isinstance(cause, TimeoutError):
            return "no answer in time."
        if isinstance(cause, OSError) and cause.strerror:
            return f"{cause.strerror}."
    return f"{type(causes[0]).__name__}: {causes[0]}"
