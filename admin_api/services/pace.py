"""A transfer must keep a pace: one that trickles would hold a thread for ever (promise I12)."""

from __future__ import annotations

import time

#: An average over less than this says nothing.
_PROBATION_SECONDS = 30.0


class Pace:
    """Watches the average rate of one transfer."""

    def __init__(self, min_rate: int) -> None:
        """``min_rate`` in bytes per second; 0 lets everything pass."""
        self._min_rate = min_rate
        self._begun = time.monotonic()
        self._bytes = 0

    def keeps_up(self, count: int) -> bool:
        """Note ``count`` more bytes; False once the average is too low."""
        self._bytes += count
        elapsed = time.monotonic() - self._begun
        return elapsed < _PROBATION_SECONDS or self._bytes >= self._min_rate * elapsed
