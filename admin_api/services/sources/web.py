"""Web servers as sources: asked in turn, asked again when busy, resumed where they break off.

Called by ``services/sources``.  Messages name the cause and never hold a query: signatures and
tokens lie there.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from time import monotonic, sleep
from urllib.parse import unquote, urljoin, urlsplit

import urllib3

from admin_api.errors import SourceDenied, SourceNotFound, SourceUnavailable
from admin_api.services.pace import Pace
from admin_api.services.sources import headers
from admin_api.services.sources.addresses import AllowList
from admin_api.services.sources.connections import Answer, Server, server
from admin_api.services.sources.found import Found, SourceFile
from admin_api.settings import LimitSettings, SourceSettings
from admin_api.storage.base import CHUNK
from admin_api.uris import shown

_OK, _PARTIAL = 200, 206
_REDIRECTS = (301, 302, 303, 307, 308)
_MISSING = (404, 410)
#: "You ask too much": more connections would be refused, too.
_BUSY = (429, 503)
#: What may be otherwise a moment later.
_PASSING = (*_BUSY, 408, 500, 502, 504)
_LONGEST_BACKOFF = 30.0
#: Ranges are fetched in pieces that are whole in memory before they are handed on, so that nobody
#: holds a connection while it does something else.
_PIECE = 4 * CHUNK


class _PassingError(Exception):
    """Something that may be otherwise a moment later; ``wait`` is what the server asks for."""

    def __init__(self, cause: str, wait: float | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.wait = wait


@dataclass(frozen=True, slots=True)
class _About:
    """What the first answer says of a file."""

    name: str
    version: headers.Version
    #: Whether the end of the body shows; else it ends with the connection.
    delimited: bool
    ranges: str

    @property
    def readable_anywhere(self) -> bool:
        return (
            self.ranges == "bytes"
            and self.version.size is not None
            and self.version.validator is not None
        )


class _Opened:
    """The answers that are open for one file; the first one told what it is."""

    def __init__(self, first: Answer) -> None:
        self._first: Answer | None = first
        self._open = [first]

    def take(self) -> Answer | None:
        """The first answer, once."""
        first, self._first = self._first, None
        return first

    def add(self, answer: Answer) -> Answer:
        """Remember another answer for the same file."""
        self._open = [answer]
        return answer

    def close(self) -> None:
        """Give the connections back; nothing is read after this."""
        for answer in self._open:
            answer.close()


class Web:
    """The allowed web servers."""

    def __init__(self, settings: SourceSettings, limits: LimitSettings) -> None:
        """Raises ValueError for origins and networks that are none."""
        self._settings = settings
        self._min_rate = limits.transfer_min_rate
        self._allowed = AllowList(settings.origins, settings.private_networks)

    def find(self, uri: str) -> Found:
        """Ask for the file; the answer stays open for the first reading, or until it is closed."""
        answer = self._request(uri, {})
        about = _describe(uri, answer)
        return Found(about.name, False, [self._file(uri, about, _Opened(answer))])

    def listed(self, uri: str) -> Found:
        """The file without asking for it yet; raises SourceDenied if it may not be asked for."""
        self._allowed.check(uri)
        name = _last_part(uri)

        def read() -> Iterator[bytes]:
            yield from self.find(uri).files[0].open()

        def asked() -> SourceFile:
            return self.find(uri).files[0]

        return Found(name, False, [SourceFile(name, None, read, asked=asked)])

    def _file(self, uri: str, about: _About, opened: _Opened) -> SourceFile:
        def read() -> Iterator[bytes]:
            return self._read(uri, about, opened)

        def read_at(start: int, stop: int) -> Iterator[bytes]:
            opened.take()
            opened.close()
            for first in range(start, stop, _PIECE):
                yield self._piece(uri, about, first, min(first + _PIECE, stop))

        return SourceFile(
            about.name,
            about.version.size,
            read,
            read_at if about.readable_anywhere else None,
            delimited=about.delimited,
            drop=opened.close,
        )

    # -- asking ------------------------------------------------------------------------------
    def _request(self, uri: str, asked: dict[str, str]) -> Answer:
        """The answer to a GET with the headers ``asked``: 200, or 206 if they ask for a range.

        Raises SourceDenied, SourceNotFound, and SourceUnavailable once all tries have failed.
        """
        for attempt in range(1, self._settings.attempts + 1):
            try:
                return self._follow(uri, asked)
            except _PassingError as error:
                tries = f" ({attempt} tries)" if attempt > 1 else ""
                failed = SourceUnavailable(f"The source {shown(uri)!r} {error.cause}{tries}.")
                if attempt == self._settings.attempts:
                    raise failed from error
                self._wait(uri, error, attempt)
        raise AssertionError("there is at least one try")

    def _wait(self, uri: str, error: _PassingError, attempt: int) -> None:
        wait = error.wait
        if wait is not None and wait > self._settings.retry_after_seconds:
            raise SourceUnavailable(
                f"The source {shown(uri)!r} {error.cause} and asks to come back in {wait:.0f} s; "
                f"sources.retry_after_seconds grants {self._settings.retry_after_seconds:.0f} s."
            ) from error
        if not wait:
            wait = _backoff(attempt)
        # Those who were refused together shall not come back together.
        sleep(wait + random.uniform(0, min(1.0, 0.1 + 0.1 * wait)))

    def _follow(self, uri: str, asked: dict[str, str]) -> Answer:
        """One try: the answer at the end of the redirects, each of them checked."""
        place = uri
        for _ in range(self._settings.redirects + 1):
            answer = self._ask(place, asked)
            via = "" if place == uri else f" (redirected to {urlsplit(place).hostname})"
            if answer.status in _REDIRECTS and "Location" in answer.headers:
                place = _redirected(place, answer)
                continue
            encoded = headers.encoding(answer.headers)
            if answer.status == _OK or (answer.status == _PARTIAL and "Range" in asked):
                if encoded is None:
                    return answer
                answer.close()
                raise SourceUnavailable(
                    f"The source {shown(uri)!r} answered with the {encoded}{via}; the file as it "
                    "is was asked for."
                )
            status = answer.status
            wait = headers.retry_after(answer.headers) if status in _PASSING else None
            if status in _BUSY:
                self._server(place).refused(answer)
            else:
                answer.dismiss()
            cause = f"answered {_described(status)}{via}"
            if status in _MISSING:
                raise SourceNotFound(f"The source {shown(uri)!r} {cause}.")
            if status in _PASSING:
                raise _PassingError(cause, wait)
            raise SourceUnavailable(f"The source {shown(uri)!r} {cause}.")
        raise SourceUnavailable(
            f"The source {shown(uri)!r} redirects more than {self._settings.redirects} times."
        )

    def _ask(self, uri: str, asked: dict[str, str]) -> Answer:
        target = self._allowed.check(uri)
        addresses = self._allowed.resolve(target.host, target.port)
        try:
            return self._server(uri).ask(target, addresses, asked)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            certificate = _certificate_problem(error)
            if certificate is not None:
                raise SourceUnavailable(f"The source {shown(uri)!r}: {certificate}.") from None
            # The library's own words may hold the query; what is logged must not.
            raise _PassingError(f"cannot be reached: {self._reason(error)}") from None

    def _server(self, uri: str) -> Server:
        settings = self._settings
        return server(
            self._allowed.check(uri).origin,
            settings.connections_per_origin,
            settings.timeout,
            settings.ca_file,
        )

    # -- reading -----------------------------------------------------------------------------
    def _read(self, uri: str, about: _About, opened: _Opened) -> Iterator[bytes]:
        """The body from its first to its last byte, over as many answers as that takes."""
        size = about.version.size
        position = mark = 0  # handed on; handed on when the body broke off the last time
        skip = 0  # bytes of this answer that were handed on before
        failures = 0
        pace = Pace(self._min_rate)
        answer = opened.take()
        try:
            if answer is None:
                answer = opened.add(self._request(uri, {}))
                _require_same(uri, about, answer)
            while True:
                begun = monotonic()
                chunk, broken = self._next(answer, position, size, skip)
                if chunk:
                    if not pace.keeps_up(len(chunk), monotonic() - begun):
                        raise SourceUnavailable(f"The source {shown(uri)!r} is too slow.")
                    fresh, skip = chunk[skip:], max(0, skip - len(chunk))
                    position += len(fresh)
                    if size is not None and position > size:
                        raise SourceUnavailable(
                            f"The source {shown(uri)!r} sent more than the {size} bytes that it "
                            "announced."
                        )
                    if fresh:
                        yield fresh
                    continue
                if broken is None:
                    return
                failures = 1 if position - mark >= CHUNK else failures + 1
                mark = position
                answer.close()
                if failures >= self._settings.attempts:
                    raise SourceUnavailable(f"The source {shown(uri)!r} {broken}.")
                if failures > 1:
                    sleep(_backoff(failures - 1))
                answer = opened.add(self._resumed(uri, about, position, broken))
                skip = position if answer.status == _OK else 0
                if size is None and answer.status == _PARTIAL:
                    span = headers.content_range(answer.headers)
                    size = span.total if span is not None else None
                pace = Pace(self._min_rate)
        finally:
            if answer is not None:
                answer.close()

    def _next(
        self, answer: Answer, position: int, size: int | None, skip: int
    ) -> tuple[bytes, str | None]:
        """The next bytes; without any, why the body ended too early (None: it is whole)."""
        of = f"after {position} of {size} bytes" if size is not None else f"after {position} bytes"
        try:
            chunk = answer.read(CHUNK)
        except urllib3.exceptions.ReadTimeoutError:
            return b"", f"sent nothing for {self._settings.timeout:g} s {of}"
        except (urllib3.exceptions.HTTPError, OSError):
            return b"", f"closed the connection {of}"
        if not chunk and (skip or (size is not None and position < size)):
            return b"", f"closed the connection {of}"
        return chunk, None

    def _resumed(self, uri: str, about: _About, position: int, broken: str) -> Answer:
        """An answer that goes on at ``position`` (206), or has the whole same file again (200)."""
        validator = about.version.validator
        if position and validator is None:
            raise SourceUnavailable(
                f"The source {shown(uri)!r} {broken}. It cannot be gone on with: the server "
                "names neither a strong ETag nor a Last-Modified by which to tell that it is "
                "still the same file."
            )
        ranged = position and validator is not None and about.ranges != "none"
        answer = self._request(uri, _range(validator or "", position, None) if ranged else {})
        if answer.status == _OK:
            _require_same(uri, about, answer, broken if position else "")
        else:
            _require_range(uri, about, answer, position, broken)
        return answer

    def _piece(self, uri: str, about: _About, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` (exclusive), all of them."""
        assert about.version.validator is not None
        broken = ""
        for attempt in range(1, self._settings.attempts + 1):
            answer = self._request(uri, _range(about.version.validator, start, stop))
            try:
                if answer.status == _OK:
                    raise SourceUnavailable(
                        f"The source {shown(uri)!r} changed while it was read, or gives no "
                        "ranges any more."
                    )
                _require_range(uri, about, answer, start)
                data = bytearray()
                while chunk := answer.read(stop - start):
                    data += chunk
            except (urllib3.exceptions.HTTPError, OSError) as error:
                broken = f"broke off: {self._reason(error)}"
            else:
                if len(data) == stop - start:
                    return bytes(data)
                broken = f"gave {len(data)} of {stop - start} bytes asked for"
            finally:
                answer.close()
            if attempt < self._settings.attempts:
                sleep(_backoff(attempt))
        raise SourceUnavailable(f"The source {shown(uri)!r} {broken}.")

    def _reason(self, error: BaseException) -> str:
        """What went wrong on a connection, in words of ours: those of libraries hold addresses."""
        chain = list(_chain(error))
        for item in chain:
            if isinstance(item, ssl.SSLError):
                return f"TLS: {item.reason or 'the handshake failed'}"
            if isinstance(item, OSError) and item.strerror:
                return item.strerror
        # After the system's words: urllib3 takes a refused connection for a kind of timeout.
        if any(isinstance(item, TimeoutError | urllib3.exceptions.TimeoutError) for item in chain):
            return "no answer in time"
        return "the connection was closed without an answer"


def _describe(uri: str, answer: Answer) -> _About:
    """What the answer says of the file; the answer is closed where that is nonsense."""
    try:
        size = headers.length(answer.headers)
    except ValueError as error:
        answer.close()
        raise SourceUnavailable(f"The source {shown(uri)!r} {error}.") from error
    return _About(
        _name(uri, answer),
        headers.Version(size, headers.validator(answer.headers)),
        size is not None or "Transfer-Encoding" in answer.headers,
        answer.headers.get("Accept-Ranges", "").strip().lower(),
    )


def _name(uri: str, answer: Answer) -> str:
    """The last part of the URI's path if that is a name, else what the server calls the file.

    It is none where it has no suffix (``$value``, ``download``) and where the query chooses.
    """
    last = _last_part(uri)
    if "." in last.strip(".") and not last.startswith("$") and not urlsplit(uri).query:
        return last
    return headers.file_name(answer.headers) or last


def _last_part(uri: str) -> str:
    return unquote(urlsplit(uri).path).rpartition("/")[2]


def _redirected(place: str, answer: Answer) -> str:
    location = answer.headers["Location"]
    answer.dismiss()
    try:
        return urljoin(place, location)
    except ValueError:
        raise SourceDenied(f"The source {shown(place)!r} redirects to what is no URI.") from None


def _range(validator: str, start: int, stop: int | None) -> dict[str, str]:
    last = "" if stop is None else str(stop - 1)
    return {"Range": f"bytes={start}-{last}", "If-Range": validator}


def _require_same(uri: str, known: _About, answer: Answer, broken: str = "") -> None:
    """Raise SourceUnavailable if a 200 has not the version that was begun."""
    now = _describe(uri, answer)
    # Once bytes were handed on, not contradicting is not enough.
    proven = not broken or known.version.validator == now.version.validator
    if not proven or not known.version.may_be(now.version):
        answer.close()
        because = f" {broken}, and then" if broken else ""
        raise SourceUnavailable(
            f"The source {shown(uri)!r}{because} changed while it was read; begin again."
        )


def _require_range(uri: str, known: _About, answer: Answer, start: int, broken: str = "") -> None:
    """Raise SourceUnavailable unless a 206 goes on at ``start`` in the version that was begun."""
    span = headers.content_range(answer.headers)
    etag = headers.strong_etag(answer.headers)
    size, validator = known.version.size, known.version.validator or ""
    if (
        span is None
        or span.first != start
        or (size is not None and span.total not in (None, size))
        or (etag is not None and validator.startswith('"') and etag != validator)
        or answer.headers.get("Content-Length") not in (None, str(span.last - span.first + 1))
    ):
        answer.close()
        because = f" {broken}, and then" if broken else ""
        raise SourceUnavailable(
            f"The source {shown(uri)!r}{because} answered with another range than was asked for, "
            "or of another version."
        )


def _backoff(attempt: int) -> float:
    """Seconds before the next try: half a second, doubled each time."""
    return float(min(_LONGEST_BACKOFF, 0.5 * 2 ** (attempt - 1)))


def _described(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _certificate_problem(error: BaseException) -> str | None:
    """What is wrong with a server's certificate; None if nothing is known to be."""
    for item in _chain(error):
        if isinstance(item, ssl.SSLCertVerificationError):
            return f"certificate verify failed: {item.verify_message}"
        if isinstance(item, urllib3.util.ssl_match_hostname.CertificateError):
            return f"certificate verify failed: {item}"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it comes from, as libraries wrap them."""
    known: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        item = waiting.pop(0)
        if isinstance(item, BaseException) and item not in known:
            known.append(item)
            waiting += [*item.args, item.__cause__, item.__context__]
    yield from known
