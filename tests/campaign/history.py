"""What was asked and what was answered: one line per request, kept for the checker and for people.

Times are seconds of this machine's monotonic clock; a request without an end has no answer.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

#: ``refused``: it has certainly not happened.  ``unknown``: no answer, or one that promises nothing.
Outcome = Literal["ok", "refused", "unknown"]


@dataclass
class Sighting:
    """What an answer says of one product: a generation of it, its tombstone, or that there is none."""

    state: Literal["available", "removed", "absent"]
    name: str
    id: str = ""
    generation: int = 0
    digest: str | None = None
    #: Path -> SHA-256; None where the answer does not list the files.
    files: dict[str, str] | None = None
    hold: str | None = None
    retention: str | None = None
    cause: str | None = None


@dataclass
class Operation:
    """One request.  ``request`` holds what matters of it, by kind:

    ingest: ``way``, ``policy``, ``content`` (a label of the bytes), ``sent`` (path -> the SHA-256
    that may lie there, None: perhaps no such file), ``replay`` (number of the request that is
    sent again).  file: ``session``, ``path``, ``sha256``.  remove: ``cause``.  keep: ``hold`` and
    ``retention`` where they are changed.  read: ``path``, ``sha256`` of what came, ``whole``.
    """

    number: int
    worker: str
    service: int
    kind: str
    name: str
    request: dict[str, Any]
    start: float
    end: float | None = None
    outcome: Outcome = "unknown"
    status: int | None = None
    code: str | None = None
    result: str | None = None
    seen: list[Sighting] = field(default_factory=list)


class History:
    """Collects operations and notes, on disk as they come (JSON lines)."""

    def __init__(
        self, path: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.operations: list[Operation] = []
        self.clock = clock
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._file = path.open("w", encoding="utf-8") if path else None

    def begin(
        self, worker: str, service: int, kind: str, name: str = "", **request: Any
    ) -> Operation:
        with self._lock:
            operation = Operation(
                next(self._numbers), worker, service, kind, name, request, self.clock()
            )
            self.operations.append(operation)
            return operation

    def end(self, operation: Operation, outcome: Outcome) -> None:
        operation.end, operation.outcome = self.clock(), outcome
        self._write(asdict(operation))

    def note(self, what: str, **more: Any) -> None:
        """Something that the campaign itself did: a kill, a fault."""
        self._write({"note": what, "at": self.clock(), **more})

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
