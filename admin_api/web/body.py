"""Request bodies: raw payload in large pieces, and what headers say of it.  Called by the views."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import time
from collections.abc import Iterator
from typing import cast

from flask import Request

from admin_api.buffers import Buffers
from admin_api.errors import (
    ClientDisconnected,
    ClientStalled,
    InvalidRequest,
    TooLarge,
    UnsupportedMediaType,
)
from admin_api.services.wishes import Expected
from admin_api.settings import LimitSettings
from admin_api.storage.base import CHUNK
from admin_api.web.connections import fill

#: Lines are read in pieces that grow from here, back to here after one that was waited for.
_FIRST_READ = 1024
_QUICK_SECONDS = 0.02
#: Payload is received in pieces of this size: few enough for the threads that digest them, and
#: small enough to be in the processor's cache still when they are written.
_PIECE = CHUNK // 2
_DIGEST_ITEM = re.compile(r"\s*([a-z0-9-]+)\s*=\s*:([A-Za-z0-9+/=]*):\s*")
_DIGEST_BYTES = {"sha-256": 32, "md5": 16}
_SINGLE_DIGESTS = {"Content-MD5": "md5", "x-amz-checksum-sha256": "sha-256"}
_HEX_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
#: Codings that leave the bytes as they are; the server itself takes the chunks apart.
_PLAIN = {
    "Content-Encoding": {"identity"},
    "Transfer-Encoding": {"identity", "chunked"},
    "Content-Transfer-Encoding": {"identity", "binary", "8bit", "7bit"},
}
#: Media types that are never a file's bytes alone.
_WRAPPED = {
    "application/x-www-form-urlencoded",
    "application/partial-upload",
    "application/http",
    "message/http",
}


def payload(request: Request, limits: LimitSettings, is_piece: bool = False) -> Iterator[bytes]:
    """The raw body; the client must be authenticated before this is called.

    Its pieces are bytes or memoryviews: whoever needs more of bytes than their buffer copies them.
    With ``is_piece`` it may be a part of a file.  Raises at once InvalidRequest for a part of one
    where the whole is meant, UnsupportedMediaType for a body that is not the file's bytes as they
    are, and TooLarge for a Content-Length that is not allowed; while reading ClientStalled,
    ClientDisconnected.
    """
    if not is_piece:
        _refuse_part(request)
    _refuse_encoded(request)
    length = request.content_length
    if length is not None and length > limits.max_product_bytes:
        raise TooLarge(
            f"The body has {length} bytes; {limits.max_product_bytes} are allowed.",
            limit=limits.max_product_bytes,
        )
    return _read(request, None) if length is None else _received(request, length)


def manifest(request: Request, limits: LimitSettings) -> Iterator[bytes]:
    """A body of lines as it arrives: little at a time from a client that takes its time.

    Errors as ``payload``.
    """
    _refuse_part(request)
    _refuse_encoded(request)
    length = request.content_length
    if length is not None and length > limits.max_product_bytes:
        raise TooLarge(
            f"The body has {length} bytes; {limits.max_product_bytes} are allowed.",
            limit=limits.max_product_bytes,
        )
    return _read(request, length, _FIRST_READ)


def _refuse_part(request: Request) -> None:
    """A PUT of a part would be taken for the whole (RFC 9110, section 14.5)."""
    headers = request.headers
    for name in ("Content-Range", "Upload-Offset"):
        if name in headers:
            raise InvalidRequest(
                f"The header {name} says that the body is a part of a file; files are sent whole. "
                "An upload session goes on with the files that are missing."
            )
    for name, whole in (("Upload-Complete", "?1"), ("Upload-Incomplete", "?0")):
        if headers.get(name, whole).strip() != whole:
            raise InvalidRequest(f"The header {name} says that more is to come; send it all.")


def _refuse_encoded(request: Request) -> None:
    headers = request.headers
    for name, plain in _PLAIN.items():
        codings = {item.strip().lower() for item in headers.get(name, "").split(",")} - {""}
        if not codings <= plain:
            raise UnsupportedMediaType(
                f"The header {name} says that the body is encoded ({headers[name]!r}); send the "
                "file's bytes as they are. A file that is compressed itself needs no such header."
            )
    signed = headers.get("x-amz-content-sha256", "")
    if "x-amz-decoded-content-length" in headers or signed.upper().startswith("STREAMING-"):
        raise UnsupportedMediaType(
            "The body is in the signed chunks of S3 clients; send the file's bytes as they are."
        )
    kind = request.mimetype
    if kind.startswith("multipart/") or kind in _WRAPPED:
        raise UnsupportedMediaType(
            f"A body of the type {kind} is a form or a wrapped message, not a file; send the bytes "
            "alone, as `curl -T FILE URL` does, or with `--data-binary @FILE` and "
            "`-H 'Content-Type: application/octet-stream'`."
        )


def _received(request: Request, length: int) -> Iterator[bytes]:
    """The body in large pieces, each in a buffer that is used again when nobody holds the piece."""
    buffers, received = Buffers(min(_PIECE, length)), 0
    while received < length:
        view = memoryview(buffers.take())
        with _broken_off_told():
            count = fill(request.environ["wsgi.input"], view)
        if count is None:
            yield from _read(request, length)
            return
        if not count:
            break
        received += count
        yield cast("bytes", view[:count])
    _require_whole(received, length)


def _read(request: Request, length: int | None, first: int = CHUNK) -> Iterator[bytes]:
    """The body in pieces of ``first`` bytes, and of more as long as they come at once."""
    received, size = 0, first
    while length is None or received < length:
        begun = time.monotonic()
        with _broken_off_told():
            chunk = request.stream.read(size)
        if not chunk:
            break
        received += len(chunk)
        is_quick = time.monotonic() - begun < _QUICK_SECONDS
        size = min(2 * size, CHUNK) if is_quick else first
        yield chunk
    _require_whole(received, length)


@contextlib.contextmanager
def _broken_off_told() -> Iterator[None]:
    try:
        yield
    except ClientStalled:  # the server's connection watches over the pace
        raise
    except Exception as error:
        raise ClientDisconnected("The body broke off or is not framed correctly.") from error


def _require_whole(received: int, length: int | None) -> None:
    if length is not None and received < length:
        raise ClientDisconnected(f"The body ended after {received} of {length} bytes.")


def expected(request: Request) -> Expected:
    """Size and digests that the request announces.

    ``Repr-Digest`` and ``Content-Digest`` (RFC 9530), ``Content-MD5`` (RFC 1864) and what S3
    clients send.  Raises InvalidRequest where they are malformed or contradict each other.
    """
    found: dict[str, str] = {}
    for header in ("Repr-Digest", "Content-Digest"):
        for item in filter(None, request.headers.get(header, "").split(",")):
            match = _DIGEST_ITEM.fullmatch(item)
            if match is None:
                raise InvalidRequest(f"The header {header} is not a digest field of RFC 9530.")
            if match[1] in _DIGEST_BYTES:
                _note(found, match[1], match[2], header)
    for header, algorithm in _SINGLE_DIGESTS.items():
        if header in request.headers:
            _note(found, algorithm, request.headers[header], header)
    signed = request.headers.get("x-amz-content-sha256", "")
    if _HEX_SHA256.fullmatch(signed):
        value = base64.b64encode(bytes.fromhex(signed)).decode()
        _note(found, "sha-256", value, "x-amz-content-sha256")
    return Expected(request.content_length, found.get("sha-256"), found.get("md5"))


def _note(found: dict[str, str], algorithm: str, value: str, header: str) -> None:
    try:
        digest = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != _DIGEST_BYTES[algorithm]:
        raise InvalidRequest(f"The {algorithm} in {header} is not the base64 of such a digest.")
    if found.setdefault(algorithm, digest.hex()) != digest.hex():
        raise InvalidRequest(f"Two headers give different {algorithm} digests.")
