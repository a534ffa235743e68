"""A file that operators change while the service runs: keys, secrets, who may call.

Called by ``access.py``, ``callers.py`` and ``download_tokens.py``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from admin_api.errors import ConfigurationError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Watched(Generic[T]):
    """What a file says; it is read again when it has changed.

    A file that is away or cannot be used any more is told in the log, once until it is another
    problem, and what was read before it counts on: a slip of the pen must not lock everybody out.
    """

    def __init__(self, path: Path, what: str, read: Callable[[Path], T]) -> None:
        """Read it; ``what`` names it in sentences.

        ``read`` may raise OSError and UnicodeError; this raises ConfigurationError alone.
        """
        self._path, self._what, self._read = path, what, read
        self._lock = threading.Lock()
        self._problem: str | None = None
        try:
            self._stamp: tuple[int, int] | None = self._now()
            self._value = read(path)
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(self._cannot_read(error)) from error

    def current(self) -> T:
        """What it says now; never raises."""
        with self._lock:
            try:
                stamp = self._now()
                if stamp != self._stamp:
                    self._stamp = stamp
                    self._value = self._read(self._path)
                    self._problem = None
            except (OSError, UnicodeError) as error:
                self._tell(self._cannot_read(error))
            except ConfigurationError as error:
                self._tell(error.detail)
            return self._value

    def _now(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size

    def _cannot_read(self, error: OSError | UnicodeError) -> str:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        return f"Cannot read the {self._what} {self._path}: {why}."

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            log.error("%s What the %s said before counts on.", problem, self._what)
        self._problem = problem
        self._stamp = None  # looked at again: rights change without a trace in the stamp
