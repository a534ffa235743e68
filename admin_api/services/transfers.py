"""One budget for all that a process does at once, by class of request.

Everything that moves payload asks here before it begins: for a thread to be served by, for the
bytes that it will have in memory, for the sources that it will have open.  Nobody waits inside:
who cannot be served is refused with Busy (503 with Retry-After) and comes again.

Each class has a part of every resource that no other class gets, and shares the rest with them, so
none can starve another.  Asked by the web server (threads), reception, ingest, retrieval and
verification.
"""

from __future__ import annotations

import threading
from dataclasses import astuple, dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

from admin_api.errors import Busy

#: Of every resource each class has this part for itself.
_OWN = 8


class Kind(StrEnum):
    """The classes of requests."""

    CONTROL = "control"
    UPLOAD = "upload"
    DOWNLOAD = "download"
    #: What the service moves by itself for somebody: ingest by reference, verification, commits.
    INGEST = "ingest"


@dataclass(frozen=True, slots=True)
class Need:
    """What a piece of work takes while it lasts: threads of the server, bytes, open sources."""

    threads: int = 0
    memory: int = 0
    sources: int = 0

    def times(self, count: int) -> Need:
        """The need of ``count`` such pieces."""
        return Need(*(count * part for part in astuple(self)))


class Hold:
    """What was granted, until it is given back (once; also as a context manager)."""

    def __init__(self, transfers: Transfers, kind: Kind, need: Need, count: int = 1) -> None:
        self._transfers = transfers
        self._kind = kind
        self._need: Need | None = need.times(count)
        #: For how many pieces of work it is.
        self.count = count

    def give_back(self) -> None:
        """Others may have it."""
        need, self._need = self._need, None
        if need is not None:
            self._transfers._give(self._kind, need)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.give_back()


class Transfers:
    """The budget of one process."""

    def __init__(self, threads: int, memory: int, sources: int) -> None:
        """``memory`` in bytes."""
        self._totals = (threads, memory, sources)
        self._lock = threading.Lock()
        self._held = {kind: [0, 0, 0] for kind in Kind}

    def take(self, kind: Kind, need: Need) -> Hold:
        """Take ``need`` for one piece of work; raises Busy."""
        return self.take_some(kind, need, 1)

    def take_some(self, kind: Kind, need: Need, most: int) -> Hold:
        """Take ``need`` for as many pieces of work side by side as can be had, at most ``most``.

        Raises Busy if it cannot be had for one.  A class that holds nothing yet gets what it asks
        for one piece, however large: it would be refused for ever.
        """
        with self._lock:
            count = 0
            while count < max(1, most) and self._fits(kind, need.times(count + 1)):
                count += 1
                if not self._fits(kind, need.times(2 * count + 1)):
                    break  # what one has beyond the first leaves as much for those who come next
            if count == 0:
                if any(self._held[kind][1:]) or need.threads:
                    raise Busy(f"Too many {kind} requests are at work; try again in a moment.")
                count = 1
            for place, amount in enumerate(astuple(need.times(count))):
                self._held[kind][place] += amount
        return Hold(self, kind, need, count)

    def held(self, kind: Kind) -> Need:
        """What a class has now."""
        with self._lock:
            return Need(*self._held[kind])

    def _fits(self, kind: Kind, need: Need) -> bool:
        for place, amount in enumerate(astuple(need)):
            if not amount:
                continue
            total = self._totals[place]
            own = max(1, total // _OWN)
            shared = total - own * len(Kind)
            # What each class has beyond its own part comes out of what is shared.
            taken = sum(
                max(0, held[place] + (amount if other is kind else 0) - own)
                for other, held in self._held.items()
            )
            beyond = self._held[kind][place] + amount > own
            if beyond and taken > shared:
                return False
        return True

    def _give(self, kind: Kind, need: Need) -> None:
        with self._lock:
            for place, amount in enumerate(astuple(need)):
                self._held[kind][place] -= amount
