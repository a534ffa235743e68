"""A reserve on the catalog's disk, so that a full one can be emptied.

Removing a product writes to the catalog before it frees anything.  With SQLite the catalog lies in
the state directory, often on the same disk as the store; a file there is given up when a removal
finds no room, and made again by housekeeping once there is.  Used by ``lifecycle.remove``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import make_url

from admin_api.errors import NoSpace
from admin_api.settings import MIB, Settings

_BYTES = 4 * MIB
_Result = TypeVar("_Result")


class Reserve:
    """Space that only removals may use; without effect where the catalog is a server's."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is set aside yet; ``fill`` does."""
        url = make_url(settings.catalog.url)
        self._is_needed = url.get_backend_name() == "sqlite" and bool(url.database)
        self._path = Path(url.database or "").with_name("catalog.reserve")

    def fill(self) -> None:
        """Set the space aside, if there is room for it."""
        if not self._is_needed or self._path.exists():
            return
        with contextlib.suppress(OSError):  # no room now: again in the next round
            with open(self._path, "xb") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, _BYTES)
                except OSError:
                    self._path.unlink(missing_ok=True)

    def spend_on(self, action: Callable[[], _Result]) -> _Result:
        """Do ``action``; where it finds no space, once more with the reserve given up."""
        try:
            return action()
        except NoSpace:
            if not self._path.exists():
                raise
            self._path.unlink(missing_ok=True)
            return action()
