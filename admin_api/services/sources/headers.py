"""What a web server's answer says of a file: length, version, name, ranges, when to ask again.

Called by ``services/sources/web.py``.  Formats: RFC 9110 (HTTP), RFC 6266 and 8187
(Content-Disposition).
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote_to_bytes

from admin_api.errors import InvalidKey
from admin_api.keys import check_part

_PARAMETER = re.compile(
    r";\s*([A-Za-z0-9!#$%&'*+.^_`|~-]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^;\"\s]*))"
)
_CONTENT_RANGE = re.compile(r"bytes\s+(\d+)-(\d+)/(\d+|\*)", re.IGNORECASE)
_STRONG_ETAG = re.compile(r'"[^"]*"')


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one version of a file from another."""

    #: In bytes; None where the server does not tell it before the end.
    size: int | None
    #: A strong ETag or a Last-Modified that is as good (RFC 9110, 8.8.2.2): for If-Range.
    validator: str | None

    def may_be(self, other: Version) -> bool:
        """Whether nothing that both say differs."""
        return all(
            mine is None or theirs is None or mine == theirs
            for mine, theirs in ((self.size, other.size), (self.validator, other.validator))
        )


@dataclass(frozen=True, slots=True)
class Span:
    """A Content-Range: first and last byte, and the size of the whole if it is told."""

    first: int
    last: int
    total: int | None


def length(headers: Mapping[str, str]) -> int | None:
    """The length of the body; None where it is not told (chunked, or until the connection ends).

    Raises ValueError for a Content-Length that is no number.
    """
    if "Transfer-Encoding" in headers or "Content-Length" not in headers:
        return None
    text = headers["Content-Length"].strip()
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError(f"sent the Content-Length {text[:40]!r}, which is no length")
    return int(text)


def strong_etag(headers: Mapping[str, str]) -> str | None:
    """The ETag, unless it is weak: two versions that differ in bytes may share a weak one."""
    etag = headers.get("ETag", "").strip()
    return etag if _STRONG_ETAG.fullmatch(etag) else None


def validator(headers: Mapping[str, str]) -> str | None:
    """What ``If-Range`` may name: the version's strong ETag, or a date that is old enough."""
    etag = strong_etag(headers)
    if etag is not None:
        return etag
    modified = headers.get("Last-Modified", "").strip()
    at = _date(modified)
    sent = _date(headers.get("Date", "")) or datetime.now(UTC)
    return modified if at is not None and sent - at >= timedelta(seconds=1) else None


def encoding(headers: Mapping[str, str]) -> str | None:
    """The name of an encoding that was not asked for; None where the body is the file itself."""
    for header, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        for token in headers.get(header, "").split(","):
            if token.strip() and token.strip().lower() != plain:
                return f"{header} {token.strip()[:40]!r}"
    return None


def content_range(headers: Mapping[str, str]) -> Span | None:
    """The range that a 206 holds; None if it does not say or says nonsense."""
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if found is None:
        return None
    first, last = int(found[1]), int(found[2])
    total = None if found[3] == "*" else int(found[3])
    return Span(first, last, total) if first <= last and last < (total or last + 1) else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, from a number or a date; None if it does not ask."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    at = _date(text)
    return None if at is None else max(0.0, (at - datetime.now(UTC)).total_seconds())


def file_name(headers: Mapping[str, str]) -> str | None:
    """The name in Content-Disposition; None if there is none, or one that no file may have.

    ``filename*`` goes before ``filename``, and of a path only the last part counts (RFC 6266, 4.3).
    """
    found: dict[str, str] = {}
    for name, quoted, plain in _PARAMETER.findall(headers.get("Content-Disposition", "")):
        found.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) or plain)
    for text in (_extended(found.get("filename*", "")), _plain(found.get("filename", ""))):
        last = re.split(r"[/\\]", text)[-1] if text else ""
        try:
            return check_part(last)
        except InvalidKey:
            continue
    return None


def _extended(value: str) -> str | None:
    """RFC 8187: charset'language'percent-encoded."""
    charset, _, rest = value.partition("'")
    if charset.lower() not in ("utf-8", "iso-8859-1"):
        return None
    try:
        return unquote_to_bytes(rest.partition("'")[2]).decode(charset)
    except UnicodeDecodeError:
        return None


def _plain(value: str) -> str:
    """Headers are read as Latin-1; many servers send UTF-8."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


def _date(text: str) -> datetime | None:
    try:
        found = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
