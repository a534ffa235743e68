"""Bodies that must be read from anywhere, kept on the local disk for as long as that takes.

A spooled file has no name: when its process dies, the system frees it.  Called by
``services/unpacking.py``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from admin_api.errors import Busy, NoSpace, TooLarge, Unavailable
from admin_api.services.archives.seekable import ReadAt
from admin_api.storage.base import CHUNK

#: What stays free for the catalog, which may lie on the same disk.
_RESERVE_BYTES = 256 << 20


class Spool:
    """The temporary space of one process: ``limit`` bytes for all spooled files together."""

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        self._lock = threading.Lock()
        self._used = 0

    @contextlib.contextmanager
    def spooled(self, chunks: Iterable[bytes], size: int | None) -> Iterator[tuple[int, ReadAt]]:
        """``chunks``, written down: their length in bytes, and a reader of ranges of them.

        ``size`` is the length if it is known.  Raises TooLarge for what can never be spooled here,
        Busy where others have the space now, NoSpace, and what ``chunks`` raises.
        """
        taken = 0
        try:
            taken += self._take(taken, size or 0)
            with self._opened() as file:
                written = 0
                for chunk in chunks:
                    if written + len(chunk) > taken:
                        taken += self._take(taken, len(chunk))
                    _write(file.fileno(), chunk)
                    written += len(chunk)
                yield written, _reader(file.fileno())
        finally:
            with self._lock:
                self._used -= taken

    @contextlib.contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        with contextlib.ExitStack() as stack:
            with _translated():
                file = stack.enter_context(tempfile.TemporaryFile(dir=self._directory, buffering=0))
            yield file

    def _take(self, taken: int, more: int) -> int:
        """Take ``more`` bytes for a file that has ``taken`` already; returns ``more``."""
        if taken + more > self._limit:
            raise TooLarge(
                f"A zip that is sent is kept until its end has come, and {self._limit} bytes are "
                "allowed for that (limits.max_spool_bytes): send it as tar or file by file, or "
                "have it ingested by reference from where it can be read.",
                limit=self._limit,
            )
        with self._lock:
            if self._used + more > self._limit:
                raise Busy("Other zips that are being received take the space; try again.")
            self._used += more
        return more


def _write(fd: int, chunk: bytes) -> None:
    free = os.fstatvfs(fd)
    if free.f_bavail * free.f_frsize < len(chunk) + _RESERVE_BYTES:
        raise NoSpace("The service's own disk has no space left to keep a zip while it comes.")
    view = memoryview(chunk)
    with _translated():
        while view:
            view = view[os.write(fd, view) :]


def _reader(fd: int) -> ReadAt:
    def read_at(start: int, stop: int) -> Iterator[bytes]:
        while start < stop:
            with _translated():
                chunk = os.pread(fd, min(CHUNK, stop - start), start)
            if not chunk:
                return
            start += len(chunk)
            yield chunk

    return read_at


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace("The service's own disk is full.") from error
        raise Unavailable(f"The service's own disk: {error.strerror}.") from error
