"""Every statement of every store, sorted by product: what rebuilding and reconciliation read.

The records come in no order, and there may be more of them than memory holds, so their lines are
put into a scratch file (SQLite) first; it has no name once it is open, so nothing is left of it.
Which statement wins is decided here, from all that is said of a generation, so that the order in
which the stores are read cannot matter.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from admin_api.errors import NoSpace, StorageManagerError, Unavailable
from admin_api.products.records import Statement, parse_line
from admin_api.services.records import Found, Unreadable

_TABLES = """
CREATE TABLE statement (
    number_of_line INTEGER PRIMARY KEY, name TEXT, generation INTEGER, id TEXT, number INTEGER,
    state TEXT, mount TEXT, key TEXT, line BLOB
);
CREATE INDEX by_product ON statement (name, generation, id, number);
CREATE TABLE unreadable (id TEXT, generation INTEGER, number INTEGER);
CREATE INDEX by_subject ON unreadable (id, generation);
"""
_COLUMNS = "SELECT number_of_line, name, generation, id, number, state, mount, key FROM statement "
_ORDER = "ORDER BY name, generation, id, number, key, number_of_line"
_ALL = _COLUMNS + _ORDER
_OF_ONE = _COLUMNS + "WHERE name = ? " + _ORDER
_STATES = ("available", "removed", "void")


@dataclass(frozen=True, slots=True)
class Entry:
    """A statement by what it is about; ``Histories.load`` gives the whole of it."""

    row: int
    name: str
    generation: int
    id: str
    number: int
    state: str
    mount: str
    key: str


@dataclass(frozen=True, slots=True)
class Claim:
    """All that is said of one generation of a name under one id.

    A generation that was ever removed is so for ever, an ``available`` with a higher number is a
    ghost; a ``void`` counts only where nothing else is said.
    """

    entries: Sequence[Entry]
    #: The highest number seen, those in the keys of unreadable records included.
    number: int

    @property
    def id(self) -> str:
        """The product's id."""
        return self.entries[0].id

    @property
    def state(self) -> str:
        """``removed``, else ``available``, else ``void``."""
        states = {entry.state for entry in self.entries}
        return next(state for state in ("removed", "available", "void") if state in states)

    @property
    def is_uncertain(self) -> bool:
        """Whether the newest statement cannot be read."""
        return self.number > self.entries[-1].number

    @property
    def available(self) -> Entry | None:
        """The newest statement that describes the product, or None."""
        return self._newest("available")

    @property
    def deciding(self) -> Entry:
        """The statement that says what became of the generation; of removals the first."""
        if self.state == "removed":
            return next(entry for entry in self.entries if entry.state == "removed")
        newest = self._newest(self.state)
        assert newest is not None
        return newest

    def _newest(self, state: str) -> Entry | None:
        return next((entry for entry in reversed(self.entries) if entry.state == state), None)


@dataclass(frozen=True, slots=True)
class Generation:
    """All that is said of one generation of a name; several ids may claim it."""

    number: int
    claims: Sequence[Claim]

    def strongest(self) -> list[Claim]:
        """The claims that no other beats: available before removed before void."""
        rank = min(_STATES.index(claim.state) for claim in self.claims)
        return [claim for claim in self.claims if _STATES.index(claim.state) == rank]

    @property
    def existed(self) -> bool:
        """Whether a product came of it."""
        return any(claim.state != "void" for claim in self.claims)


@dataclass(slots=True)
class History:
    """All that is said of one name, its generations in order."""

    name: str
    generations: list[Generation] = field(default_factory=list)

    @property
    def statements(self) -> int:
        """How many there are."""
        return sum(len(claim.entries) for item in self.generations for claim in item.claims)


class Histories:
    """The scratch file; a context manager."""

    def __init__(self, directory: Path) -> None:
        """Make the scratch file in ``directory``; raises NoSpace and Unavailable."""
        with _translated(), tempfile.TemporaryDirectory(prefix="records-", dir=directory) as where:
            # The threads of a server hand a long answer from one to the other.
            self._file = sqlite3.connect(
                Path(where) / "statements", isolation_level=None, check_same_thread=False
            )
            self._file.execute("PRAGMA journal_mode = OFF")
            self._file.execute("PRAGMA synchronous = OFF")
            self._file.executescript(_TABLES)
            self._file.execute("BEGIN")  # and never ended: nobody else reads it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, found: Found) -> None:
        """Take in one statement."""
        said = found.statement
        if said.moved_to is not None:
            return  # it points to another statement, which says all
        with _translated():
            self._file.execute(
                "INSERT INTO statement VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    said.name,
                    said.generation,
                    said.id,
                    said.number,
                    said.state,
                    found.mount,
                    found.key,
                    zlib.compress(found.line, 1),
                ),
            )

    def note(self, unreadable: Unreadable) -> None:
        """Remember the number that an unreadable record has taken."""
        if unreadable.subject is not None and unreadable.subject[2] < 2**31:
            with _translated():
                self._file.execute("INSERT INTO unreadable VALUES (?, ?, ?)", unreadable.subject)

    def __iter__(self) -> Iterator[History]:
        """The histories, by name in the order of UTF-8 bytes."""
        return self._histories(_ALL, ())

    def of(self, name: str) -> History:
        """The history of one name that is known to have one."""
        return next(self._histories(_OF_ONE, (name,)))

    def _histories(self, query: str, values: Sequence[str]) -> Iterator[History]:
        with _translated():
            rows = self._file.execute(query, values)
            entries = (Entry(*row) for row in rows)
            for name, of_name in itertools.groupby(entries, key=lambda entry: entry.name):
                history = History(name)
                for number, group in itertools.groupby(of_name, key=lambda item: item.generation):
                    by_id = itertools.groupby(group, key=lambda item: item.id)
                    claims = [self._claim(list(items)) for _, items in by_id]
                    history.generations.append(Generation(number, claims))
                yield history

    def _claim(self, entries: list[Entry]) -> Claim:
        row = self._file.execute(
            "SELECT max(number) FROM unreadable WHERE id = ? AND generation = ?",
            (entries[0].id, entries[0].generation),
        ).fetchone()
        return Claim(entries, max(entries[-1].number, row[0] or 0))

    def has(self, name: str, generation: int, product_id: str, number: int) -> bool:
        """Whether there is such a statement."""
        with _translated():
            return (
                self._file.execute(
                    "SELECT 1 FROM statement "
                    "WHERE name = ? AND generation = ? AND id = ? AND number = ?",
                    (name, generation, product_id, number),
                ).fetchone()
                is not None
            )

    def load(self, entry: Entry) -> Statement:
        """The whole statement."""
        with _translated():
            (line,) = self._file.execute(
                "SELECT line FROM statement WHERE number_of_line = ?", (entry.row,)
            ).fetchone()
        return parse_line(zlib.decompress(line))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except StorageManagerError:
        raise
    except (sqlite3.Error, OSError) as error:
        if "full" in str(error) or "No space left" in str(error):
            raise NoSpace("The disk of the state directory is full.") from error
        raise Unavailable(f"The scratch file for the records failed: {error}.") from error
