"""Transfers side by side that end at once: at the first failure, or when the operator says so.

Called by the commands that move many files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
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
