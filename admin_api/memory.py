"""What a process tells the C library about its heap.  Called once by each process that serves."""

from __future__ import annotations

import contextlib
import ctypes

# Parameters of mallopt(3), from malloc.h.
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def bound_heap() -> None:
    """Give payload buffers back to the system when they are freed.

    glibc keeps a heap per thread and raises the size from which it maps memory by itself; with many
    threads moving buffers of megabytes that grows far beyond what is in use (mallopt(3)).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library does without
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_THRESHOLD, 512 * 1024)
        mallopt(_M_ARENA_MAX, 2)
