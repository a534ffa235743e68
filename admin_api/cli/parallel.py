"""Transfers side by side: as many at once as the service takes, ended by a failure or an interrupt.

Called by the commands that move many files, and by their HTTP client.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class Stopped(Exception):  # nothing is wrong with what is stopped
    """Another transfer failed, or the operator interrupted: this one need not go on."""


def for_all(
    action: Callable[[Item, threading.Event], object], items: Iterable[Item], parallel: int
) -> None:
    """Do ``action(item, stop)`` for all items, ``parallel`` of them at once.

    The first exception sets ``stop``, ends the others at their next chunk, and is raised when they
    have ended.  An interrupt is raised at once: the threads are daemons, nobody waits for them.
    """
    stop, lock, todo = threading.Event(), threading.Lock(), iter(items)
    errors: list[BaseException] = []

    def work() -> None:
        while not stop.is_set():
            with lock:
                item = next(todo, None)
            if item is None:
                return
            try:
                action(item, stop)
            except BaseException as error:  # noqa: BLE001 # raised below, for who asked
                errors.append(error)
                stop.set()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(parallel)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        stop.set()
        raise
    if errors:
        raise next((error for error in errors if not isinstance(error, Stopped)), errors[0])


class Window:
    """How many transfers a client has under way: fewer once it was refused, slowly more again.

    As TCP does (additive increase, multiplicative decrease): clients of one busy service come to
    share it, and what one transfer of a client waits for, another need not.
    """

    def __init__(self, largest: int) -> None:
        self._largest = self._size = float(largest)
        self._active = 0
        self._changed = threading.Condition()

    @contextmanager
    def place(self, stop: threading.Event | None) -> Iterator[None]:
        """A place for one transfer; waits for it, raises Stopped after ``stop``."""
        with self._changed:
            while self._active >= int(self._size):
                if stop is not None and stop.is_set():
                    raise Stopped
                self._changed.wait(0.2)
            self._active += 1
        try:
            yield
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify()

    def served(self) -> None:
        """A transfer came through."""
        with self._changed:
            self._size = min(self._largest, self._size + 1 / self._size)
            self._changed.notify()

    def refused(self) -> None:
        """A transfer was told to come again."""
        with self._changed:
            self._size = max(1.0, min(self._size, self._active) / 2)
