"""What a caller wants of an ingest, and what comes of it: the words of every way in.

Called by the web layer and by the services that receive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.errors import InvalidRequest
from admin_api.products.digests import algorithm_named, hasher


class Policy(StrEnum):
    """What to do with a product whose name is there already."""

    SKIP = "skip"
    ERROR = "error"
    REPLACE = "replace"


class Level(StrEnum):
    """How much is verified before a product exists; each level includes those before it."""

    SIZE = "size"
    DIGEST = "digest"
    MANIFEST = "manifest"
    READBACK = "readback"

    def includes(self, other: Level) -> bool:
        """Whether this level verifies what ``other`` does."""
        order = list(Level)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller wants of an ingest."""

    name: str
    product_id: str | None = None
    policy: Policy = Policy.SKIP
    level: Level = Level.DIGEST
    retention_until: datetime | None = None
    source: str | None = None
    #: Directory of files that are registered in place; None: the bytes are copied.
    registered_in: str | None = None
    #: What the mark of the attempt begins with: its product is known again by it.
    mark: str | None = None
    #: With these others it is committed: the last part of the mark, which must tell it from them.
    group: str | None = None
    #: Directory that the product is to have, where the caller's own form of paths says so.
    directory: str | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What the source or the caller says of a file; None where it says nothing."""

    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    #: Algorithms of ``products/digests.py`` and what each gives, lower-case hex.
    others: tuple[tuple[str, str], ...] = ()


def other_digests(told: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Digests by the names that people give algorithms (``SHA3-256``), for ``Expected.others``.

    Raises InvalidRequest for what cannot be computed here: nothing is passed over silently.
    """
    found = []
    for name, value in told.items():
        algorithm = algorithm_named(name)
        if algorithm is None:
            raise InvalidRequest(f"The digest {name[:50]!r} cannot be computed here.")
        length = len(hasher(algorithm).hexdigest())
        if re.fullmatch(r"[0-9A-Fa-f]*", value) is None or len(value) != length:
            raise InvalidRequest(f"The digest {name[:50]!r} has {length} hexadecimal digits.")
        found.append((algorithm, value.lower()))
    return tuple(found)


class Result(StrEnum):
    """What came of an ingest."""

    CREATED = "created"
    SKIPPED = "skipped"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The product that now exists, and whether this ingest made it."""

    product: ProductEntry
    result: Result
    files: list[FileEntry]
