"""Records: statements about products, kept in the store beside the data (design rule 3).

Append-only objects of JSON lines in ``.products/``; each line is one statement about one
generation of one product.  Replaying them rebuilds the catalog (``services/rebuilding.py`` says
which statement wins).  Pure functions; ``services/records.py`` reads and writes the objects.

A line carries its checksum as its last member: ``{…,"check":"sha256:<64 hex digits>"}``, over the
bytes of the line as it would be without that member, ``{…}``.  ``version`` 2 says that there must
be one; lines of version 1 are older than checksums and are read without, or with one if they have
it.  A line that is not as it was written is no statement: nothing of it is believed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from admin_api.errors import InvalidKey
from admin_api.keys import RESERVED, beneath, check_key, check_part

DIRECTORY = ".products"
#: One line holds one product: 100,000 files with the longest keys are about 200 MiB.
MAX_LINE_BYTES = 256 << 20

_VERSIONS = (1, 2)
_TOGETHER = re.compile(r".*@(?P<group>[0-9a-f]{32})")
_CHECK = re.compile(rb',"check":"sha256:([0-9a-f]{64})"\}')
_CHECK_BYTES = len(b',"check":"sha256:"}') + 64
_KEY = re.compile(
    rf"{re.escape(DIRECTORY)}/[0-9a-f]{{2}}/(?P<id>[^/]+)-(?P<generation>\d+)-(?P<number>\d+)\.jsonl"
)


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("is before the year 1 or behind the year 9999") from error


#: Numbers and times that every catalog can hold.
Number = Annotated[int, Field(ge=1, le=2**31 - 1)]
Time = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class RecordedFile(BaseModel):
    """A file of an available product; ``key`` is that within the product's mount."""

    model_config = ConfigDict(frozen=True)

    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    md5: str = Field(pattern="^[0-9a-f]{32}$")
    key: str


class Statement(BaseModel):
    """One line: product ``id``, generation ``generation``, is now in ``state``.

    ``void`` says that a commit was undone: no product came of that generation.
    ``available`` repeats everything, so that the newest statement alone is enough; of a ``removed``
    one ``time``, ``subject`` and ``cause`` say when, by whom and why.  ``attempt`` is the mark of
    the attempt that made the generation, ``directory`` lies within the product's mount.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1, 2] = 2
    state: Literal["available", "removed", "void"]
    #: The catalog's mark of the attempt, which tells it from others with the same numbers.
    attempt: str | None = None
    #: So many statements were written in one object, this one among them; fewer lines are a cut.
    together: Annotated[int, Field(ge=1)] | None = None
    #: Of a ``void``: the id and the generation under which the attempt was committed instead.
    moved_to: tuple[str, int] | None = None
    id: str
    name: str
    generation: Number
    number: Number
    time: Time
    subject: str | None = None
    cause: str | None = None
    mission: str | None = None
    product_type: str | None = None
    sensing_start: Time | None = None
    sensing_stop: Time | None = None
    directory: str | None = None
    registered: bool = False
    level: str | None = None
    source: str | None = None
    created_at: Time | None = None
    available_at: Time | None = None
    retention_until: Time | None = None
    hold_reason: str | None = None
    hold_by: str | None = None
    list_digest: str | None = None
    files: tuple[RecordedFile, ...] = ()

    def line(self) -> bytes:
        """The statement as one JSON line with its checksum."""
        body = self.model_dump_json(exclude_none=True).encode()
        digest = hashlib.sha256(body).hexdigest().encode()
        return body[:-1] + b',"check":"sha256:' + digest + b'"}\n'


@dataclass(frozen=True, slots=True)
class Flaw:
    """A line of a record that is no statement (``line`` 0: the whole of it), and why."""

    line: int
    reason: str


def record_key(product_id: str, name: str, generation: int, number: int) -> str:
    """Where the object of a single statement lies within its mount.

    The key is fixed by what the statement is about, so that a store that creates only decides
    between a commit and its undoing.
    """
    shard = hashlib.sha256(name.encode()).hexdigest()[:2]
    safe_id = product_id.replace(":", "=")
    return f"{DIRECTORY}/{shard}/{safe_id}-{generation:06d}-{number:06d}.jsonl"


def bulk_key(mark: str) -> str:
    """Where an object with statements about many products lies within its mount."""
    return f"{DIRECTORY}/bulk/{mark}.jsonl"


def group_of(attempt: str | None) -> str | None:
    """The group with which an attempt is committed, if its mark names one (``MARK@GROUP``)."""
    match = _TOGETHER.fullmatch(attempt or "")
    return match["group"] if match else None


def group_key(group: str) -> str:
    """Where the one record of all products of a group lies within its mount."""
    return f"{DIRECTORY}/groups/{group[:2]}/{group}.jsonl"


def subject_of(key: str) -> tuple[str, int, int] | None:
    """The id, generation and number that a record's key within its mount tells, if it does."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    return match["id"].replace("=", ":"), int(match["generation"]), int(match["number"])


def parse_records(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, Statement] | Flaw]:
    """The statements of one object with their lines, and what is no statement.

    ``chunks`` are the object's bytes; whatever they raise is passed on.
    """
    found = False
    for number, line in enumerate(_lines(chunks), start=1):
        if line is None:
            found = True
            yield Flaw(number, f"is longer than {MAX_LINE_BYTES} bytes")
        elif line.strip():
            found = True
            try:
                yield line, parse_line(line)
            except ValueError as error:
                yield Flaw(number, str(error))
    if not found:
        yield Flaw(0, "is empty")


def parse_line(line: bytes) -> Statement:
    """The statement of one line; raises ValueError with what is wrong with it."""
    line = line.strip()
    check = _CHECK.fullmatch(line, max(len(line) - _CHECK_BYTES, 0))
    if check is not None:
        body = line[: check.start()] + b"}"
        if hashlib.sha256(body).hexdigest().encode() != check[1]:
            raise ValueError("is not as it was written: its checksum is another")
    try:
        content = from_json(line)
    except ValueError:
        raise ValueError("is cut or altered: it is no JSON") from None
    version = content.get("version", 1) if isinstance(content, dict) else None
    if version is None:
        raise ValueError("is no statement about a product")
    if version not in _VERSIONS:
        raise ValueError(f"has a version that is not known here: {str(version)[:20]}")
    if check is None and version != 1:
        raise ValueError("is not as it was written: its checksum is gone")
    try:
        statement = Statement.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"is no statement: {place}: {first['msg']}") from None
    refused = refusal(statement)
    if refused is not None:
        raise ValueError(refused)
    return statement


def refusal(statement: Statement) -> str | None:
    """Why ``statement`` cannot be one of ours, in words; None if it can.

    The clean-up removes what lies beneath a product's directory, and whatever has a key can be
    read: neither may be taken from a line that leads elsewhere.
    """
    try:
        for single in (statement.name, statement.id):
            if "/" in check_part(single):
                return f"names what cannot be: {single[:200]!r} holds a slash"
        if statement.directory:
            _check_place(statement.directory)
        for file in statement.files:
            check_key(file.path)
            _check_place(file.key)
    except InvalidKey as error:
        return f"names what cannot be: {error.detail}"
    directory = statement.directory or ""
    if not statement.registered:
        last = directory.rpartition("/")[2]
        # A directory is called by the product's name, or (prosEO's) by its id.
        if statement.name not in last and last.partition("@")[0] != statement.id:
            return f"names a directory that is not the product's: {directory[:200]!r}"
        for file in statement.files:
            if not beneath(file.key, directory):
                return f"names a file outside of the product: {file.key[:200]!r}"
    if (statement.state == "available") != bool(statement.files):
        return "has files although it has none to have, or none although it must"
    if len({file.path for file in statement.files}) < len(statement.files):
        return "names a file twice"
    if len({file.key for file in statement.files}) < len(statement.files):
        return "names a key twice"
    if sum(file.size for file in statement.files) >= 2**63:
        return "has more bytes than there can be"
    texts = (value for _, value in statement if isinstance(value, str))
    return "holds a NUL character" if any("\0" in text for text in texts) else None


def _check_place(key: str) -> None:
    check_key(key)
    if key.split("/")[0] in RESERVED:
        raise InvalidKey(f"{key[:200]!r} lies where the storage manager keeps its own files.")


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes | None]:
    """The lines of ``chunks``; None for one that is longer than the limit."""
    pieces: list[bytes] = []
    size = 0
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            pieces.append(piece)
            yield b"".join(pieces) if size + len(piece) <= MAX_LINE_BYTES else None
            pieces, size = [], 0
        size += len(rest)
        if size <= MAX_LINE_BYTES:
            pieces.append(rest)
        else:
            pieces = []
    if size:
        yield b"".join(pieces) if size <= MAX_LINE_BYTES else None
