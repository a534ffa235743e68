"""Whose a store is: the marker object in it, and the gate that lets nobody into a wrong store.

A marker names the store and the catalog that it belongs to.  Markers are numbered and written
create-only, so the highest number decides and two catalogs can never both have written it
(``docs/adr/0017-whose-a-store-is.md``).  Decided by ``services/identity.py``; asked by the mount
table before every operation and by the POSIX store within every one.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from admin_api.errors import StorageManagerError, Unavailable

log = logging.getLogger(__name__)

DIRECTORY = ".products/store"
MAX_BYTES = 64 * 1024

_NAME = re.compile(r"([0-9]{6})\.json")
#: Uses have a gate looked at again, but not more often than this.
_LOOK_SECONDS = 1.0


class WrongStore(Unavailable):
    """What lies at the mount is not the store that the catalog expects there."""


class Marker(BaseModel):
    """What a store says of itself; ``host`` and ``time`` tell people who wrote it and when."""

    model_config = ConfigDict(frozen=True)

    store: str
    catalog: str
    number: int
    time: datetime | None = None
    host: str = ""

    @property
    def key(self) -> str:
        """Where it lies in its store."""
        return f"{DIRECTORY}/{self.number:06d}.json"

    @property
    def is_readable(self) -> bool:
        """Whether it could be read; one that cannot has nothing but its number."""
        return bool(self.store and self.catalog)


def newest(names: Iterable[str], read: Callable[[str], bytes]) -> Marker | None:
    """The marker that decides, of those whose file names are ``names``; None if there is none."""
    found = [(int(match[1]), match[0]) for match in map(_NAME.fullmatch, names) if match]
    if not found:
        return None
    number, name = max(found)
    try:
        marker = Marker.model_validate_json(read(name))
    except ValidationError:
        log.error("the marker of a store cannot be read", extra={"object": f"{DIRECTORY}/{name}"})
        marker = Marker(store="", catalog="", number=number)
    return marker.model_copy(update={"number": number})


@dataclass(frozen=True, slots=True)
class Expected:
    """What a catalog (``catalog`` is its id) expects at a mount, ``where`` being words for it."""

    where: str
    store: str
    catalog: str

    def check(self, marker: Marker | None) -> None:
        """Raise WrongStore, with a sentence that says what to do, for any other store."""
        if marker is None:
            raise WrongStore(
                f"The store is not mounted at {self.where}: no marker in {DIRECTORY}/ says that it "
                f"is store {self.store}, which this catalog expects there. Nothing is read or "
                "written until it is mounted again; the service then goes on by itself. If the "
                "store is lost for good and this is to take its place: `storage-manager "
                "adopt-store`."
            )
        if not marker.is_readable:
            raise WrongStore(
                f"The marker {marker.key} of the store at {self.where} cannot be read, so nobody "
                "knows whose store it is. Restore that file, or write a new one with "
                "`storage-manager adopt-store`."
            )
        if marker.catalog != self.catalog:
            raise WrongStore(
                f"The store at {self.where} belongs to another catalog: {describe(marker)}; this "
                f"is catalog {self.catalog}. Nothing is read or written there. Correct the mount, "
                "or take the store over with `storage-manager adopt-store`."
            )
        if marker.store != self.store:
            raise WrongStore(
                f"Another store of this catalog lies at {self.where}: {describe(marker)}; store "
                f"{self.store} is expected. Nothing is read or written there. Mount the right one, "
                "or make this one the store of the mount with `storage-manager adopt-store`."
            )


def describe(marker: Marker) -> str:
    """Words for a marker."""
    if not marker.is_readable:
        return f"its marker {marker.key} cannot be read"
    by = f" on host {marker.host}" if marker.host else ""
    at = f" at {marker.time.isoformat(timespec='seconds')}" if marker.time else ""
    return (
        f"its marker number {marker.number} names store {marker.store} and catalog "
        f"{marker.catalog}, written{by}{at}"
    )


class Gate:
    """Whether a mount's store may be used: open, or closed with the sentence that says why."""

    def __init__(self, where: str, look: Callable[[], Expected]) -> None:
        """``look`` finds out what is expected; it raises WrongStore if that is not there."""
        self.where = where
        self.problem: str | None = f"The store at {where} has not been looked at yet; try again."
        self._expected: Expected | None = None
        self._look = look
        self._looking = threading.Lock()
        self._looked = float("-inf")

    def require(self) -> None:
        """Return if the store may be used, as far as the last look knows; raises Unavailable."""
        if self.problem is not None:
            problem = self.problem
            self._look_soon()
            raise Unavailable(problem)

    def recheck(self) -> None:
        """As ``require``, after a new look if the last one is old and nobody else is looking."""
        if (
            self.problem is None
            and time.monotonic() - self._looked >= _LOOK_SECONDS
            and not self._looking.locked()
        ):
            self.refresh()
        self.require()

    def admit(self, marker: Marker | None) -> None:
        """Return if a store with this marker may be used; raises Unavailable."""
        if self._expected is None:
            raise Unavailable(self.problem or f"The store at {self.where} is not known yet.")
        try:
            self._expected.check(marker)
        except WrongStore:
            self._look_soon()
            raise

    def refresh(self) -> None:
        """Look now; what was right stays right while nothing can be seen."""
        with self._looking:
            try:
                self._expected = self._look()
            except StorageManagerError as error:
                is_known = self.problem is None and not isinstance(error, WrongStore)
                problem = None if is_known else error.detail
            else:
                problem = None
            self._looked = time.monotonic()
            if problem != self.problem:
                if problem:
                    log.error("the store is not used: %s", problem)
                else:
                    log.info("the store at %s is the expected one", self.where)
            self.problem = problem

    def _look_soon(self) -> None:
        """Look in a thread of its own: whoever is refused may hold a transaction of the catalog."""
        if time.monotonic() - self._looked < _LOOK_SECONDS or self._looking.locked():
            return
        self._looked = time.monotonic()
        threading.Thread(target=self.refresh, name="store-gate", daemon=True).start()
