"""A file that is read by ranges, as a seekable file object.  Called by the zip reader."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator

_SMALL = 64 << 10
_LARGE = 8 << 20

ReadAt = Callable[[int, int], Iterator[bytes]]


class Seekable(io.RawIOBase):
    """``size`` bytes that ``read_at(start, stop)`` gives.

    Ranges grow while reading goes straight on; one chunk of what comes is held in memory.
    """

    def __init__(self, size: int, read_at: ReadAt) -> None:
        self.size = size
        self._read_at = read_at
        self._position = 0
        self._start, self._chunk = 0, b""
        self._chunks: Iterator[bytes] = iter(())
        self._span = _SMALL

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "a place before the beginning")  # as files do
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(self.size - self._position, 0)
        left = left if size < 0 else min(size, left)
        pieces = []
        while left and (piece := self._piece(left)):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from ``start`` to ``stop`` (exclusive) as they come."""
        self.seek(start)
        while self._position < stop and (piece := self._piece(stop - self._position)):
            yield piece

    def ending(self, stop: int, end: bytes) -> Seekable:
        """The bytes before ``stop``, then those of ``end``, as a file of its own."""

        def read_at(first: int, last: int) -> Iterator[bytes]:
            if first < stop:
                return self._read_at(first, min(last, stop))
            return iter([end[first - stop : last - stop]])

        return Seekable(stop + len(end), read_at)

    def _piece(self, size: int) -> bytes:
        """At least one byte at the position; b'' where the source has fewer bytes than it said."""
        while not 0 <= self._position - self._start < len(self._chunk):
            if not self._advance():
                return b""
        offset = self._position - self._start
        piece = self._chunk[offset : offset + size]
        self._position += len(piece)
        return piece

    def _advance(self) -> bool:
        end = self._start + len(self._chunk)
        if self._position == end and (chunk := next(self._chunks, b"")):
            self._start, self._chunk = end, chunk
            return True
        self._span = min(self._span * 4, _LARGE) if self._position == end else _SMALL
        self._chunks = self._read_at(self._position, min(self._position + self._span, self.size))
        self._start, self._chunk = self._position, next(self._chunks, b"")
        return bool(self._chunk)
