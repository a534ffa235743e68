"""Records: statements about products, kept in the store beside the data (design rule 3).

Append-only objects of JSON lines in ``.products/``; each line is one statement about one
generation of one product.  Replaying them, the newest statement (highest number) winning,
rebuilds the catalog.  Pure functions; ``services/records.py`` reads and writes the objects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from admin_api.errors import InvalidRequest

DIRECTORY = ".products"


class RecordedFile(BaseModel):
    """A file of an available product."""

    model_config = ConfigDict(frozen=True)

    path: str
    size: int
    sha256: str
    md5: str
    key: str


class Statement(BaseModel):
    """One line: product ``id``, generation ``generation``, is now in ``state``.

    ``void`` says that a commit was undone: no product came of that generation.
    ``available`` repeats everything, so that the newest statement alone is enough.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    state: Literal["available", "removed", "void"]
    #: The catalog's mark of the attempt, which tells it from others with the same numbers.
    attempt: str | None = None
    id: str
    name: str
    generation: int
    number: int
    time: datetime
    subject: str | None = None
    cause: str | None = None
    mission: str | None = None
    product_type: str | None = None
    sensing_start: datetime | None = None
    sensing_stop: datetime | None = None
    directory: str | None = None
    registered: bool = False
    level: str | None = None
    source: str | None = None
    created_at: datetime | None = None
    available_at: datetime | None = None
    retention_until: datetime | None = None
    hold_reason: str | None = None
    hold_by: str | None = None
    list_digest: str | None = None
    files: tuple[RecordedFile, ...] = ()

    def line(self) -> bytes:
        """The statement as one JSON line."""
        return self.model_dump_json(exclude_none=True).encode() + b"\n"


def record_key(product_id: str, name: str, generation: int, number: int) -> str:
    """Where the object of a single statement lies within its mount.

    The key is fixed by what the statement is about, so that a store that creates only decides
    between a commit and its undoing.
    """
    shard = hashlib.sha256(name.encode()).hexdigest()[:2]
    safe_id = product_id.replace(":", "=")
    return f"{DIRECTORY}/{shard}/{safe_id}-{generation:06d}-{number:06d}.jsonl"


def parse_records(data: bytes, where: str) -> Iterator[Statement]:
    """The statements of one object; raises InvalidRequest with the line that is no statement."""
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield Statement.model_validate(json.loads(line))
        except (ValueError, ValidationError) as error:
            raise InvalidRequest(
                f"Line {number} of the record {where!r} is no statement."
            ) from error
