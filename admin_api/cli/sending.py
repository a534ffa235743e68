"""Local files on their way out: what of a tree is sent, one by one or in an upload session.

Called by ``ingesting``; ``pieces`` sends the large ones.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from admin_api.cli import pieces
from admin_api.cli.client import Client, Reader, once
from admin_api.cli.failures import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_UNAVAILABLE,
    Failure,
    local_failure,
    shown,
)
from admin_api.cli.output import Progress
from admin_api.cli.parallel import for_all

# How long an interrupted command takes leave of the service.
_LEAVE_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A local file and its path in the product."""

    path: Path
    inner: str
    size: int


def mode_of(path: Path) -> int:
    """The mode of a plain file or directory; refuses what products do not hold, as elsewhere."""
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise local_failure(error, path) from error
    if stat.S_ISLNK(mode):
        raise Failure(
            f"{shown(path)} is a symbolic link, which is refused: put what it points to in its "
            "place, or name that.",
            EXIT_FAILED,
        )
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise Failure(f"{shown(path)} is a special file, which is refused.", EXIT_FAILED)
    return mode


def size_of(path: Path) -> int:
    """Bytes of a local file."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise local_failure(error, path) from error


def require_utf8(path: Path) -> None:
    """Refuse a name that no product can have."""
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        raise Failure(f"The name of {shown(path)} is not valid UTF-8.", EXIT_FAILED) from None


def files_beneath(top: Path, inner: str = "") -> Iterator[LocalFile]:
    """All files of a tree; whatever cannot be part of a product is refused by its place."""
    try:
        entries = sorted((top / inner).iterdir())
    except OSError as error:
        raise local_failure(error, top / inner) from error
    for path in entries:
        require_utf8(path)
        below = f"{inner}/{path.name}" if inner else path.name
        if stat.S_ISDIR(mode_of(path)):
            yield from files_beneath(top, below)
        else:
            yield LocalFile(path, below, size_of(path))


class LeftOpenError(Exception):
    """A session that broke off with large files in it, and is worth going on with."""

    def __init__(self, session: str, failure: Failure) -> None:
        super().__init__(failure.message)
        self.session = session
        self.failure = failure


def send_in_session(
    client: Client,
    files: list[LocalFile],
    name: str,
    parallel: int,
    wishes: dict[str, Any],
    resumed: str | None,
) -> dict[str, Any]:
    """Send files in a session, and commit it; with ``resumed`` what an earlier one lacks."""
    if resumed is None:
        session = client.json("POST", "/v1/uploads", body={"name": name, **wishes})
    else:
        session = client.json("GET", f"/v1/uploads/{quote(resumed, safe='')}")
        if session["name"] != name:
            raise Failure(f"The session {resumed} is of {session['name']!r}.", EXIT_FAILED)
    base = f"/v1/uploads/{session['id']}"
    is_large = any(file.size >= pieces.LARGE_BYTES for file in files)

    def send(file: LocalFile, stop: threading.Event) -> None:
        if file.size >= pieces.LARGE_BYTES:
            with _opened(file) as opened:
                data = Reader(opened, file.size, progress.move, stop)
                pieces.send(client, session["id"], file.inner, file.size, data, stop)
        else:
            put(client, file, f"{base}/{quote(file.inner)}", progress, stop)
        progress.file_done()

    try:
        size = sum(file.size for file in files)
        with client.progress(name, size, len(files)) as progress:
            for_all(send, files, parallel)
        answer: dict[str, Any] = client.json("POST", f"{base}/commit")
    except KeyboardInterrupt:
        if is_large:
            interrupted = Failure("Interrupted.", EXIT_INTERRUPTED)
            raise LeftOpenError(session["id"], interrupted) from None
        _abort(client, base, _LEAVE_SECONDS)
        raise
    except Failure as failure:
        if is_large and failure.exit_code == EXIT_UNAVAILABLE:
            raise LeftOpenError(session["id"], failure) from failure
        _abort(client, base)
        raise
    except BaseException:
        _abort(client, base)
        raise
    return answer


def _abort(client: Client, base: str, seconds: float | None = None) -> None:
    """What cannot be taken back now, the service gives up by itself in time."""
    with suppress(Failure):
        client.request("DELETE", base, timeout=seconds)


@contextmanager
def _opened(file: LocalFile) -> Iterator[IO[bytes]]:
    try:
        opened = file.path.open("rb")
    except OSError as error:
        raise local_failure(error, file.path) from error
    with opened:
        yield opened


def put(
    client: Client,
    file: LocalFile,
    target: str,
    progress: Progress,
    stop: threading.Event | None = None,
    query: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Send a file in one request; the answer."""
    with _opened(file) as opened:
        answer: dict[str, Any] = client.json(
            "PUT",
            target,
            query=query,
            data=Reader(opened, file.size, progress.move, stop),
            headers={"Content-Length": str(file.size), **once()},
            transfer=True,
            stop=stop,
        )
    return answer
