"""The commands' HTTP client: token from a file, problems as sentences, meaningful exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlencode

import click
import urllib3

CHUNK = 1 << 20
_OK = 300

#: Exit codes; 0 is success, 1 a failed check or operation, 2 a wrong command line.
EXIT_FAILED = 1
EXIT_NOT_FOUND = 3
EXIT_REFUSED = 4
EXIT_NOT_ALLOWED = 5
EXIT_UNAVAILABLE = 6
_EXITS = {401: EXIT_NOT_ALLOWED, 403: EXIT_NOT_ALLOWED, 404: EXIT_NOT_FOUND, 409: EXIT_REFUSED}
_EXITS |= {410: EXIT_NOT_FOUND, 502: EXIT_UNAVAILABLE, 503: EXIT_UNAVAILABLE, 507: EXIT_REFUSED}


class Failure(click.ClickException):
    """A failure with a sentence and an exit code."""

    def __init__(self, message: str, exit_code: int, problem: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it for the class
        self.problem = problem or {}


@dataclass
class Client:
    """The API at ``url``, asked with the token of ``token_file``."""

    url: str
    token_file: Path | None
    as_json: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        # Large blocks: urllib3 would send files in pieces of 16 KiB.
        self._pool = urllib3.PoolManager(
            maxsize=32, blocksize=CHUNK, timeout=urllib3.Timeout(connect=10, read=300)
        )

    def request(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Any = None,
        data: IO[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """An answer below 300, its body not yet read; raises Failure for everything else."""
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
        # Only what changes nothing is tried again by itself.
        again = urllib3.Retry(total=3, redirect=5, backoff_factor=0.2) if method == "GET" else False
        try:
            answer = self._pool.urlopen(
                method, url, body=payload, headers=sent, retries=again, preload_content=False
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Failure(
                f"The storage manager at {self.url} cannot be reached: {_reason(error)}",
                EXIT_UNAVAILABLE,
            ) from error
        if answer.status >= _OK:
            raise _failure(answer)
        return answer

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
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Failure(f"The answer broke off: {_reason(error)}", EXIT_UNAVAILABLE) from error
        if not ended:
            raise Failure("The answer ended without a summary.", EXIT_FAILED)

    def find(self, reference: str) -> dict[str, Any]:
        """A product by its id or its name."""
        try:
            found: dict[str, Any] = self.json("GET", f"/v1/products/{quote(reference, safe='')}")
        except Failure as failure:
            if failure.exit_code != EXIT_NOT_FOUND:
                raise
            page = self.json("GET", "/v1/products", query={"name": reference, "limit": 1})
            if not page["products"]:
                raise Failure(f"There is no product {reference!r}.", EXIT_NOT_FOUND) from None
            found = self.json("GET", f"/v1/products/{page['products'][0]['id']}")
        return found

    def _token(self) -> str:
        assert self.token_file is not None
        try:
            return self.token_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise Failure(
                f"Cannot read the token file {self.token_file}: {error.strerror}", EXIT_NOT_ALLOWED
            ) from error


class Reader:
    """A file that tells how much of it was read."""

    def __init__(self, file: IO[bytes], moved: Callable[[int], None]) -> None:
        self._file, self._moved = file, moved

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self._file.read(size)
        self._moved(len(data))
        return data


def _split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)
    if rest:
        yield rest


def _failure(answer: urllib3.BaseHTTPResponse) -> Failure:
    try:
        problem = json.loads(answer.read())
        message = f"{problem['detail']} [{problem['code']}, request {problem['request_id']}]"
    except (ValueError, KeyError, TypeError):
        problem, message = {}, f"The service answered {answer.status} {answer.reason}."
    return Failure(message, _EXITS.get(answer.status, EXIT_FAILED), problem)


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None) or error
    return f"{type(inner).__name__}: {inner}"
