"""What the commands say: text for people, ``--json`` for machines, progress for both."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

if TYPE_CHECKING:
    from tqdm import tqdm

_PLAIN_SECONDS = 5.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
#: What a bar has besides the name, at the most: per cent, files, bytes, rate and time left.
_COUNTS_WIDTH = 64
_SHORTEST_NAME = 16


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


def part(done: float, total: float) -> str:
    """So many bytes of a total, as 1.2/4.0 GiB."""
    number, unit = human(total).split()
    scale = 1024 ** _UNITS.index(unit)
    return f"{done / scale:.{1 if '.' in number else 0}f}/{number} {unit}"


def width() -> int:
    """Columns of the terminal."""
    return shutil.get_terminal_size().columns


def shortened(text: str, length: int) -> str:
    """``text`` in ``length`` characters: of product names both ends tell, not the middle."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def duration(seconds: float) -> str:
    """Seconds for people, as 0:07 or 2:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """What is done: a bar with rate and ETA on a terminal, plain lines elsewhere, or JSON lines.

    Counts bytes, or ``unit``, and beside them ``files`` if it is told how many there are.  Goes to
    standard error, so that results can be piped.  May be moved by several threads.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        as_json: bool,
        quiet: bool,
        unit: str = "bytes",
        files: int | None = None,
    ) -> None:
        self._what, self._total, self._json, self._quiet = what, total, as_json, quiet
        self._unit, self._files = unit, files
        self._lock = threading.Lock()
        self._done = self._files_done = 0
        self._begun = self._said = time.monotonic()
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        if not self._quiet and not self._json and sys.stderr.isatty():
            self._bar = self._new_bar()
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

    def file_done(self) -> None:
        """One more file is whole."""
        with self._lock:
            self._files_done += 1

    def _new_bar(self) -> tqdm[Any]:
        from tqdm import tqdm

        outer = self

        class Bar(tqdm):  # type: ignore[type-arg]  # only its types are generic
            """tqdm's timing, with the name shortened and everything counted in binary units."""

            @property
            def format_dict(self) -> dict[str, Any]:
                values = super().format_dict
                room = max((values["ncols"] or width()) - _COUNTS_WIDTH, _SHORTEST_NAME)
                counts = outer._counts(values["n"], values["rate"])
                return {**values, "name": shortened(outer._what, room), "counts": counts}

        # Gone when it is done: the result that follows says what there is.
        layout = "{name} {percentage:3.0f}% {counts} {bar}" if self._total else "{name} {counts}"
        return Bar(total=self._total, bar_format=layout, dynamic_ncols=True, leave=False)

    def _counts(self, done: float, rate: float | None) -> str:
        """How far it is: files, bytes, rate, time left."""
        rate = rate or done / max(time.monotonic() - self._begun, 1e-6)
        is_bytes = self._unit == "bytes"
        if self._total is None:
            counted = self._counted(done)
        elif is_bytes:
            counted = part(done, self._total)
        else:
            counted = f"{done:,.0f}/{self._counted(self._total)}"
        told = [f"{self._files_done}/{self._files} files"] if (self._files or 0) > 1 else []
        told += [counted, f"{human(rate)}/s" if is_bytes else f"{rate:,.0f}/s"]
        if self._total and rate and done < self._total:
            told.append(f"ETA {duration((self._total - done) / rate)}")
        return " ".join(told)

    def _say(self) -> None:
        if self._quiet:
            return
        if not self._json:
            click.echo(f"{self._what}: {self._counts(self._done, None)}", err=True)
            return
        rate = self._done / max(time.monotonic() - self._begun, 1e-6)
        left = (self._total - self._done) / rate if self._total and rate else None
        line = {
            "progress": self._what,
            self._unit: self._done,
            "total": self._total,
            "rate": round(rate),
            "eta": None if left is None else round(left, 1),
        }
        if self._files is not None:
            line |= {"files": self._files_done, "total_files": self._files}
        click.echo(json.dumps(line), err=True)

    def _counted(self, number: float) -> str:
        return human(number) if self._unit == "bytes" else f"{number:,.0f} {self._unit}"
