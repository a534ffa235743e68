"""Taking times fairly: interleaved, repeated, reported as median and spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Row:
    """One figure, and what it should be."""

    HEADER: ClassVar = [
        "measure",
        "what",
        "median",
        "low",
        "high",
        "unit",
        "target",
        "dream",
        "met",
    ]

    measure: str
    what: str
    values_: Sequence[float]
    unit: str = "ratio"
    target: float | None = None
    dream: float | None = None
    #: Whether more is better.
    upwards: bool = True

    @property
    def median(self) -> float:
        return statistics.median(self.values_)

    def met(self) -> str:
        """Whether the target is reached, or the dream."""
        if self.target is None:
            return ""
        sign = 1 if self.upwards else -1
        if self.dream is not None and sign * (self.median - self.dream) >= 0:
            return "dream"
        return "yes" if sign * (self.median - self.target) >= 0 else "no"

    def values(self) -> list[object]:
        """For the CSV."""
        low, high = min(self.values_), max(self.values_)
        figures = [f"{value:.4g}" for value in (self.median, low, high)]
        return [self.measure, self.what, *figures, self.unit, self.target, self.dream, self.met()]

    def sentence(self) -> str:
        """For the terminal."""
        low, high = min(self.values_), max(self.values_)
        goal = f", target {self.target:g}: {self.met()}" if self.target is not None else ""
        return f"{self.what}: {self.median:.3g} ({low:.3g}-{high:.3g}) {self.unit}{goal}"

    def line(self) -> str:
        """For the page."""
        low, high = min(self.values_), max(self.values_)
        unit = "" if self.unit == "ratio" else f" {self.unit}"
        target = "" if self.target is None else f"{self.target:g}"
        dream = "" if self.dream is None else f"{self.dream:g}"
        return (
            f"| {self.measure} | {self.what} | {self.median:.3g}{unit} | {low:.3g}-{high:.3g} "
            f"| {target} | {dream} | {self.met()} |"
        )


def timed(action: Callable[[], object]) -> float:
    """Seconds that ``action`` takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def interleaved(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of both, and the ratios peer / ours (above 1: ours is faster), peer-ours-peer.

    Each of our runs is compared with the mean of the peer's runs before and behind it.
    """
    ours(), peer()  # warm
    peers, mine, ratios = [timed(peer)], [], []
    for _ in range(repeats):
        mine.append(timed(ours))
        peers.append(timed(peer))
        ratios.append((peers[-1] + peers[-2]) / 2 / mine[-1])
    return mine, peers, ratios
