"""What the commands say: text for people, ``--json`` for machines, progress for both."""

from __future__ import annotations

import json
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

import click
from tqdm import tqdm

_PLAIN_SECONDS = 5.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def emit(as_json: bool, data: Any, text: str) -> None:
    """The result: ``data`` as one JSON line, or ``text``."""
    click.echo(json.dumps(data, ensure_ascii=False) if as_json else text)


def human(size: float) -> str:
    """A number of bytes for people, with binary units."""
    for unit in _UNITS[:-1]:
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"


class Progress:
    """What is done: a bar with rate and ETA on a terminal, plain lines elsewhere, or JSON lines.

    Counts bytes, or ``unit``.  Goes to standard error, so that results can be piped.  May be moved
    by several threads.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        as_json: bool,
        quiet: bool,
        unit: str = "bytes",
    ) -> None:
        self._what, self._total, self._json, self._quiet = what, total, as_json, quiet
        self._unit = unit
        self._lock = threading.Lock()
        self._done = 0
        self._begun = self._said = time.monotonic()
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        if not self._quiet and not self._json and sys.stderr.isatty():
            scale: dict[str, Any] = {"unit": f" {self._unit}"}
            if self._unit == "bytes":
                scale = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
            self._bar = tqdm(total=self._total, desc=self._what, **scale)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif error is None:
            self._say()

    def move(self, count: int) -> None:
        """``count`` more are done."""
        with self._lock:
            self._done += count
            if self._bar is not None:
                self._bar.update(count)
            elif time.monotonic() - self._said >= _PLAIN_SECONDS:
                self._said = time.monotonic()
                self._say()

    def reach(self, done: int) -> None:
        """``done`` are done in all."""
        self.move(done - self._done)

    def _say(self) -> None:
        if self._quiet:
            return
        elapsed = max(time.monotonic() - self._begun, 1e-6)
        rate = self._done / elapsed
        left = (self._total - self._done) / rate if self._total and rate else None
        if self._json:
            line = {
                "progress": self._what,
                self._unit: self._done,
                "total": self._total,
                "rate": round(rate),
                "eta": None if left is None else round(left, 1),
            }
            click.echo(json.dumps(line), err=True)
        else:
            total = f" of {self._counted(self._total)}" if self._total is not None else ""
            eta = f", {left:.0f} s left" if left else ""
            counts = f"{self._counted(self._done)}{total}, {self._counted(rate)}/s"
            click.echo(f"{self._what}: {counts}{eta}", err=True)

    def _counted(self, number: float) -> str:
        return human(number) if self._unit == "bytes" else f"{number:,.0f} {self._unit}"
