"""Whether the stores and the catalog answer, watched in the background.

One thread for each asks again and again; whoever wants to know gets the newest answer at once.
What has not answered within two seconds does not answer, and is still asked by one thread only.
Used by ``monitoring``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from admin_api.catalog.database import Catalog
from admin_api.errors import StorageManagerError
from admin_api.storage.base import Capacity, Storage
from admin_api.storage.mounts import Mounts

log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 1.0
#: What takes longer does not answer.
LIMIT_SECONDS = 2.0
_NOTHING = Capacity(None, None)


class Watched:
    """One thing that is asked by a thread of its own."""

    def __init__(self, ask: Callable[[], Capacity]) -> None:
        self._ask = ask
        self._begun: float | None = None
        self._problem: str | None = None
        self._answered = threading.Event()
        self.capacity = _NOTHING

    def run(self) -> None:
        """Ask for ever."""
        while True:
            self._begun = time.monotonic()
            try:
                self.capacity, self._problem = self._ask(), None
            except StorageManagerError as error:
                self._problem = error.detail
            except Exception:
                log.exception("a check failed unexpectedly")
                self._problem = "The check itself failed; the log says how."
            self._begun = None
            self._answered.set()
            time.sleep(_INTERVAL_SECONDS)

    def problem(self) -> str | None:
        """The sentence of what is wrong, None if all is well."""
        begun = self._begun
        waited = time.monotonic() - begun if begun is not None else 0.0
        if waited > LIMIT_SECONDS:
            return f"It has not answered for {waited:.0f} seconds."
        return self._problem if self._answered.is_set() else "It has not been asked yet."

    def wait(self, seconds: float) -> None:
        """Wait for the first answer."""
        self._answered.wait(seconds)


class Watch:
    """All that a process needs to work; its threads begin when it is first asked."""

    def __init__(self, catalog: Catalog, storage: Mounts) -> None:
        """Nothing is asked yet."""
        self.catalog = Watched(partial(_catalog, catalog))
        self.stores = {
            path: Watched(partial(_store, storage, path, store))
            for path, store in storage.stores.items()
        }
        self._lock = threading.Lock()
        self._is_running = False

    def start(self) -> None:
        """Begin to ask, and wait at most two seconds for the first answers; repeatable."""
        with self._lock:
            if self._is_running:
                return
            self._is_running = True
        everything = [self.catalog, *self.stores.values()]
        for item in everything:
            threading.Thread(target=item.run, name="watch", daemon=True).start()
        deadline = time.monotonic() + LIMIT_SECONDS
        for item in everything:
            item.wait(max(0.0, deadline - time.monotonic()))


def _catalog(catalog: Catalog) -> Capacity:
    catalog.ping()
    return _NOTHING


def _store(storage: Mounts, path: str, store: Storage) -> Capacity:
    storage.require(path)
    store.ping()
    return store.capacity()
