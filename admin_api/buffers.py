"""Buffers for payload that are used again: fresh memory costs a page fault for each 4 KiB of it.

A buffer is used again when nobody holds it any more, which its count of references tells: whoever
keeps a chunk keeps the buffer that it lies in, and nobody has to say that they are done with it.
Used where bytes arrive (``web/body.py``).
"""

from __future__ import annotations

import sys

#: What is referred to by the list, the loop and the call that counts only.
_UNHELD = 3
#: One that is filled, one that is digested and written, and one that is about to be let go.
_KEPT = 3


class Buffers:
    """The buffers of one transfer; for one thread."""

    def __init__(self, size: int) -> None:
        """Each has ``size`` bytes."""
        self._size = size
        self._kept: list[bytearray] = []

    def take(self) -> bytearray:
        """One that nobody holds, with whatever was in it before."""
        for buffer in self._kept:
            if sys.getrefcount(buffer) == _UNHELD:
                return buffer
        buffer = bytearray(self._size)
        if len(self._kept) < _KEPT:
            self._kept.append(buffer)
        return buffer
