"""Items of a job as they are told: a manifest of JSON lines that is still arriving, or a list.

Every line is an item or says of itself what is wrong with it; no line stops the others, and no line
is held that is longer than the settings allow.  Items are written down in chunks as they come, the
first ones few, so that work begins while the manifest arrives.  Called by ``web/jobs.py``, which
knows what a line may say.  What is stored already as announced gets its outcome here, so an import
that is run again is over when its manifest is read.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from admin_api.catalog.jobs import JobEntry
from admin_api.catalog.models import ItemState
from admin_api.errors import InvalidRequest, StorageManagerError, TooLarge
from admin_api.services import jobs, known
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.jobs import LeaseLostError, NewItem, Outcome
from admin_api.services.known import Known
from admin_api.services.wishes import Result

_BOM = b"\xef\xbb\xbf"
#: The first chunk has so many items, each next one twice as many, up to the setting.
_FIRST_ITEMS = 8
#: What has come is written down after so long, though it be little.
_LONGEST_SECONDS = 0.2
#: So many items of unknown size fill a chunk.
_UNKNOWN = 100


@dataclass(frozen=True, slots=True)
class Asked:
    """What a line asks for: as the runner reads it, as people do, and bytes if announced."""

    wanted: dict[str, Any]
    label: str
    size: int | None


#: Understands one entry; raises InvalidRequest with what is wrong.
Reader = Callable[[object], Asked]


def receive(
    facility: Facility,
    principal: Principal,
    kind: str,
    options: Mapping[str, Any],
    told: Iterable[NewItem | None],
    priority: int = 0,
    concurrency: int | None = None,
) -> JobEntry:
    """Make a job of what is told; None among the items says that the next may take its time.

    Returns when all is told.  What breaks off is carried out as far as it came: the job says so,
    and the error is raised.
    """
    owner = uuid.uuid4().hex
    job = jobs.create(facility, principal, kind, options, owner, priority, concurrency)
    with facility.heartbeat.of_owner(owner):
        try:
            for part in _parts(facility, principal, kind, options, told):
                if not jobs.append(facility, job.pk, part, owner):
                    break
        except LeaseLostError:
            pass  # housekeeping took this process for dead; the job says so
        except StorageManagerError as error:
            _end(facility, job, owner, error)
            raise
        except BaseException:
            _end(facility, job, owner, jobs.broken_off())
            raise
        else:
            jobs.received(facility, job.pk, owner)
    return job


def _without_known(
    facility: Facility,
    principal: Principal,
    options: Mapping[str, Any],
    part: Sequence[NewItem],
) -> list[NewItem]:
    """The items, those that are stored already as announced with their outcome."""
    wanted = [(item.number, item.wanted) for item in part if item.wanted is not None]
    found = known.find(facility, principal, options, wanted)
    return [_with(item, found.get(item.number)) for item in part]


def _with(item: NewItem, product: Known | None) -> NewItem:
    if product is None:
        return item
    result = Result.SKIPPED.value
    outcome = Outcome(
        item.number, ItemState.SKIPPED, result, product_id=product.id, bytes=product.size
    )
    return NewItem(item.number, item.label, known=outcome)


def _end(facility: Facility, job: JobEntry, owner: str, error: StorageManagerError) -> None:
    told = jobs.broken_off() if error.code in ("client_stalled", "incomplete_body") else error
    with contextlib.suppress(StorageManagerError):  # housekeeping does it otherwise
        jobs.received(facility, job.pk, owner, told)


def _parts(
    facility: Facility,
    principal: Principal,
    kind: str,
    options: Mapping[str, Any],
    told: Iterable[NewItem | None],
) -> Iterator[Sequence[NewItem]]:
    """What is told, in parts that are written down each as a chunk."""
    settings = facility.settings.jobs
    for batch in _batches(told, settings.chunk_items):
        items = batch
        if kind == jobs.IMPORT:
            items = _without_known(facility, principal, options, batch)
        part: list[NewItem] = []
        size = 0
        for item in items:
            part.append(item)
            if item.known is None:
                size += item.size if item.size is not None else settings.chunk_bytes // _UNKNOWN
            if size >= settings.chunk_bytes:
                yield part
                part, size = [], 0
        if part:
            yield part


def _batches(told: Iterable[NewItem | None], at_once: int) -> Iterator[list[NewItem]]:
    """As many as are looked at together: few at first, and whatever has come for a while."""
    most, written = _FIRST_ITEMS, time.monotonic()
    batch: list[NewItem] = []
    for item in told:
        if item is not None:
            batch.append(item)
        is_late = item is None and time.monotonic() - written >= _LONGEST_SECONDS
        if batch and (is_late or len(batch) >= min(most, at_once)):
            yield batch
            batch, written, most = [], time.monotonic(), 2 * most
    if batch:
        yield batch


def listed(entries: Iterable[object], read: Reader) -> Iterator[NewItem]:
    """The items of a list, numbered from 1."""
    for number, entry in enumerate(entries, start=1):
        yield _item(number, read, partial(_as_it_is, entry))


def lines(chunks: Iterable[bytes], read: Reader, max_line_bytes: int) -> Iterator[NewItem | None]:
    """The items of a manifest of JSON lines, with the numbers of the lines; empty ones are none."""
    for number, line in _numbered(chunks, max_line_bytes):
        if number == 0:
            yield None
        elif line is None:
            yield _refused(
                number,
                TooLarge(f"The line is longer than {max_line_bytes} bytes (jobs.max_line_bytes)."),
            )
        elif line.strip():
            yield _item(number, read, partial(_parsed, line))


def _numbered(chunks: Iterable[bytes], max_line_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers; None for one that is too long; number 0 where a chunk has ended."""
    number, rest, is_dropped = 1, b"", False
    for chunk in chunks:
        *ended, rest = (rest + chunk).split(b"\n")
        for line in ended:
            if number == 1:
                line = line.removeprefix(_BOM)
            is_too_long = is_dropped or len(line) > max_line_bytes
            yield number, None if is_too_long else line
            number, is_dropped = number + 1, False
        if len(rest) > max_line_bytes:
            rest, is_dropped = b"", True
        yield 0, None
    if rest or is_dropped:
        line = rest.removeprefix(_BOM) if number == 1 else rest
        yield number, None if is_dropped else line


def _as_it_is(entry: object) -> object:
    return entry


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The line is not valid UTF-8: byte {error.start + 1} is 0x{line[error.start]:02X}."
        ) from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"The line is not JSON: column {error.colno}: {error.msg}.") from None
    except RecursionError:
        raise InvalidRequest("The line is nested too deeply.") from None
    except ValueError:  # Python's own limit for the digits of a number
        raise InvalidRequest("The line holds a number with too many digits.") from None


def _item(number: int, read: Reader, entry: Callable[[], object]) -> NewItem:
    try:
        asked = read(entry())
    except StorageManagerError as error:
        return _refused(number, error)
    return NewItem(number, asked.label, asked.wanted, asked.size)


def _refused(number: int, error: StorageManagerError) -> NewItem:
    # Nothing of the line itself: it may hold a URI with its secrets.
    return NewItem(number, f"line {number}", None, None, error.code, error.detail)
