"""A transfer must keep a pace: one that trickles would hold a thread for ever (promise I12)."""

from __future__ import annotations

#: An average over less than this says nothing.
_PROBATION_SECONDS = 30.0


class Pace:
    """Watches the average rate of one transfer.

    Only the time counts in which the other side was waited for: whoever is slow because our own
    store is, is not to blame.
    """

    def __init__(self, min_rate: int) -> None:
        """``min_rate`` in bytes per second; 0 lets everything pass."""
        self._min_rate = min_rate
        self._waited = 0.0
        self._bytes = 0

    def keeps_up(self, count: int, waited: float) -> bool:
        """Note ``count`` bytes that took ``waited`` seconds; False once the average is too low."""
        self._bytes += count
        self._waited += waited
        return self._waited < _PROBATION_SECONDS or self._bytes >= self._min_rate * self._waited
