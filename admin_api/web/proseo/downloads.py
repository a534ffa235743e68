"""``GET /products/download``: bytes for whoever has a download token (2.5, 4).

Any ``Authorization`` header is another service's and is left alone.  Ranges come by the query, as
the contract has them, or by ``Range`` (RFC 9110); where both do, the query counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

from flask import Response, g, request

from admin_api import errors
from admin_api.errors import StorageManagerError, Unauthorized
from admin_api.services import paths
from admin_api.services.access import Principal, Scope
from admin_api.services.download_tokens import Expired
from admin_api.services.paths import Located
from admin_api.web.proseo import replies, wire
from admin_api.web.proseo.entry import download_tokens, facility
from admin_api.web.streams import streamed

_EXTENSION = re.compile(r"[a-z0-9][a-z0-9.+_-]*")


def download(version: str) -> Response:
    """The file or a part of it; checked in this order: token, file, range."""
    for name in ("pathInfo", "token"):
        if name not in request.args:
            return replies.of_framework(400, f"The parameter {name} is missing.")
    span: list[int | None] = []
    for name in ("fromByte", "toByte"):
        given = request.args.get(name)
        number = None if given in (None, "") else wire.whole_number(given)
        if number is None and given not in (None, ""):
            return replies.of_framework(400, f"{name} must be a whole number.")
        span.append(number)
    candidates = wire.path_candidates()
    try:
        subject = download_tokens().check(request.args["token"])
    except Expired as error:
        return replies.failure(401, replies.text_of("E5533", wire.java_time(error.at)))
    except Unauthorized as error:
        return replies.failure(401, replies.text_of("E5532", error.detail))
    allowed = [path for path in candidates if _name(path) == subject]
    if not allowed:
        return replies.failure(401, replies.text_of("E5534", _name(candidates[0])))
    # The Ingestor has decided that this file may be had.
    reader = Principal("download-token", frozenset([Scope.READ]), None, g.request_id)
    for path in allowed:
        try:
            located = paths.find(facility(), reader, path)
        except (errors.NotFound, errors.SourceDenied, errors.InvalidRequest, errors.InvalidKey):
            continue
        return _answer(located, span[0], span[1])
    return replies.failure(404, replies.text_of("E5504", allowed[0]))


def _name(path: str) -> str:
    return path.strip().replace("\\", "/").rpartition("/")[2]


def _answer(located: Located, first: int | None, last: int | None) -> Response:
    size, by_query = located.size, first is not None or last is not None
    if by_query:
        # Negative ends are those of numbers that had no room in 32 bits (section 4).
        start = max(first or 0, 0)
        stop = size if last is None or last < 0 else min(last + 1, size)
        if start >= stop:
            return _unsatisfiable(size)
    else:
        found = _by_header(size)
        if found is None:
            return _unsatisfiable(size)
        start, stop = found
    partial = by_query or (start, stop) != (0, size) or _is_ranged(size)
    response = _payload(located, start, stop)
    headers = response.headers
    headers["Content-Length"] = str(stop - start)
    headers["Accept-Ranges"] = "bytes"
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Content-Disposition"] = _disposition(located.name)
    headers["Content-Type"] = _media_type(located.name)
    if partial:
        response.status_code = 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    if by_query:
        headers["Range"] = f"bytes={start}-{stop - 1}"
        headers["Content-Type"] = "multipart/byteranges"
    return response


def _is_ranged(size: int) -> bool:
    asked = request.range
    return (
        request.method == "GET"
        and "If-Range" not in request.headers
        and asked is not None
        and asked.units == "bytes"
        and len(asked.ranges) == 1
        and size > 0
    )


def _by_header(size: int) -> tuple[int, int] | None:
    """The span that ``Range`` asks for (RFC 9110, 14.2); None if the file has none of it."""
    asked = request.range
    if not _is_ranged(size) or asked is None:
        return 0, size
    span = asked.range_for_length(size)
    if span is None or span[0] is None or span[1] is None or span[0] >= span[1]:
        return None
    return span[0], span[1]


def _unsatisfiable(size: int) -> Response:
    said = f"The file has {size} bytes; none are in the range."
    response = replies.failure(416, replies.text_of("E5501", said))
    response.headers["Content-Range"] = f"bytes */{size}"
    return response


def _media_type(name: str) -> str:
    extension = name.rpartition(".")[2].lower() if "." in name.strip(".") else ""
    if not _EXTENSION.fullmatch(extension):
        return "application/octet-stream"
    return f"application/{extension}"


def _disposition(name: str) -> str:
    plain = re.sub(r'[^\x20-\x7e]|["\\]', "_", name)
    also = "" if plain == name else f"; filename*=UTF-8''{quote(name)}"
    return f'form-data; name="attachment"; filename="{plain}"{also}'


def _payload(located: Located, start: int, stop: int) -> Response:
    if request.method == "HEAD" or start == stop:
        return Response(b"")
    wrapper = request.environ.get("wsgi.file_wrapper")
    # Only this server stops at Content-Length when it sends a file.
    by_kernel = wrapper is not None and "gunicorn.socket" in request.environ
    opened = located.open_local() if by_kernel else None
    if opened is not None and wrapper is not None:
        opened.seek(start)
        return Response(wrapper(opened), direct_passthrough=True)
    return streamed(facility(), lambda: _exactly(located.read(start, stop), stop - start))


def _exactly(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """``chunks``; an error breaks the connection where they are not ``size`` bytes."""
    sent = 0
    for chunk in chunks:
        sent += len(chunk)
        if sent > size:
            break
        yield chunk
    if sent != size:
        raise StorageManagerError(f"The store gave {sent} bytes; {size} are right.")
