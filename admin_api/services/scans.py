"""Finding the items of a job: products beneath a directory or a prefix, or by a filter of removal.

A scan is a chunk of its job: a worker has it under a lease, and writes down with every part of its
findings the place where it is, so that another one goes on from there.  What is one product shows
in names (``products/trees.py``); every other file is one of its own, and so is a source that is a
file or an object itself.  Called by ``bulk.py``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import stat as stat_module
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from admin_api.catalog.queries import ProductFilter
from admin_api.errors import (
    CatalogUnavailable,
    InvalidKey,
    InvalidRequest,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    StorageManagerError,
)
from admin_api.keys import RESERVED, join
from admin_api.products.names import is_tree, parse_name
from admin_api.products.trees import is_one_product
from admin_api.services import jobs, listing
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.jobs import Claim, NewItem
from admin_api.services.sources import buckets
from admin_api.storage import confined
from admin_api.uris import shown

_LISTED_AT_ONCE = 500
_HOPELESS = SourceUnavailable(
    "Several workers in turn ended while they searched; the log of the hosts may say of what. What "
    "was found is carried out."
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What may be a product: where it lies beneath the source, its URI, its bytes if known.

    ``place`` is the path as it is written down, so that a scan can go on behind it.
    """

    path: str
    place: str
    uri: str
    is_product: bool
    size: int | None = None
    problem: StorageManagerError | None = None


def run(facility: Facility, claimed: Claim, stop: threading.Event) -> None:
    """Find items until all are found, or until ``stop``; what is found so far stays.

    Raises LeaseLostError, and CatalogUnavailable: whoever takes the chunk next goes on.
    """
    options = claimed.job.options
    if claimed.job.cancelled or claimed.is_hopeless:
        jobs.end_scan(facility, claimed, None if claimed.job.cancelled else _HOPELESS)
        return
    found: Iterator[tuple[str, NewItem]]
    try:
        number = claimed.job.received
        if claimed.job.kind == jobs.REMOVAL:
            found = _by_filter(facility, claimed, number)
        else:
            candidates = _candidates(facility, options["source"], claimed.place)
            found = _numbered(candidates, options, number)
        while part := list(itertools.islice(found, facility.settings.jobs.chunk_items)):
            items = [item for _, item in part]
            if not jobs.append(facility, claimed.job.pk, items, scan=(claimed, part[-1][0])):
                break
            if stop.is_set():
                jobs.give_back(facility, claimed)
                return
    except CatalogUnavailable:
        raise
    except StorageManagerError as error:
        jobs.end_scan(facility, claimed, error)
        return
    jobs.end_scan(facility, claimed, None)


def _numbered(
    candidates: Iterator[Candidate], options: dict[str, Any], number: int
) -> Iterator[tuple[str, NewItem]]:
    strays = options.get("strays") or "ingest"
    for candidate in candidates:
        is_stray = not candidate.is_product and candidate.problem is None
        if is_stray and strays == "skip":
            continue
        number += 1
        problem = candidate.problem
        if is_stray and strays == "fail":
            problem = InvalidRequest(
                f"{candidate.path!r} is not called as products are, and the request refuses these."
            )
        yield (
            candidate.place,
            NewItem(
                number,
                candidate.path,
                {"source": candidate.uri},
                candidate.size,
                problem.code if problem else None,
                problem.detail if problem else None,
            ),
        )


def _by_filter(facility: Facility, claimed: Claim, number: int) -> Iterator[tuple[str, NewItem]]:
    """The products that the filter of a removal finds, page by page."""
    told: dict[str, Any] = {
        name: datetime.fromisoformat(value) if name.endswith(("_from", "_to")) else value
        for name, value in claimed.job.options["filter"].items()
    }
    wish = ProductFilter(**told)
    cursor, number = _place(claimed.place, number)
    while True:
        page, following = listing.list_products(
            facility, claimed.principal, wish, cursor, _LISTED_AT_ONCE
        )
        for product in page:
            number += 1
            wanted = {"id": product.id, "generation": product.generation}
            # A page whose part is written is not gone through again; its rest is found twice
            # at the most, and a product that is removed twice is removed.
            yield json.dumps([cursor, number]), NewItem(number, product.name, wanted, product.size)
        if following is None:
            return
        cursor = following


def _place(place: str | None, number: int) -> tuple[str | None, int]:
    return (json.loads(place)[0], number) if place else (None, number)


# -- where products lie --------------------------------------------------------------------------
def check(facility: Facility, principal: Principal, source: str, register: bool) -> None:
    """Raise SourceDenied, SourceNotFound or InvalidRequest for what no scan may begin with."""
    scheme = _scheme(source)
    if _is_in_store(facility, source):
        if not register:
            raise SourceDenied(
                f"The source {shown(source)!r} lies in the store itself; what is there already is "
                "taken in with the mode 'register'."
            )
        if principal.missions is not None:
            raise SourceDenied("A token that is restricted to missions names what it registers.")
        return
    if scheme == "file":
        root, parts = _root(facility, source)
        if _plain_file(root, parts) is None:
            with _told(parts), confined.directory(root, parts):
                pass
    elif scheme == "s3":
        buckets.place(source, facility.settings.sources.s3)
    else:
        raise SourceDenied(
            f"The source {shown(source)!r} cannot be searched; a directory (file:) or a prefix of "
            "a bucket (s3:) can. URLs are listed one by one."
        )


def _scheme(source: str) -> str:
    try:
        return urlsplit(source).scheme
    except ValueError:
        raise InvalidRequest(f"The source {shown(source)!r} is not a URI.") from None


def _candidates(facility: Facility, source: str, after: str | None) -> Iterator[Candidate]:
    if _scheme(source) == "s3" and not _is_in_store(facility, source):
        backend, key = buckets.place(source, facility.settings.sources.s3)
        listed = buckets.walk(backend, key, unquote(after) if after else "", source)
        found = _grouped(listed, lambda path: f"s3://{backend.bucket}/{quote(join(key, path))}")
        return _or_itself(found, key, source, after)
    if _is_in_store(facility, source):
        key = facility.storage.key_of(source) or ""
        found = _in_store(facility, key, unquote(after) if after else "")
        return _or_itself(found, key, source, after)
    return _in_directory(facility, source, after)


def _is_in_store(facility: Facility, source: str) -> bool:
    return facility.storage.key_of(source) is not None


def _or_itself(
    found: Iterator[Candidate], key: str, source: str, after: str | None
) -> Iterator[Candidate]:
    """What was found beneath a key, or the key itself: a tree by its name, or a single object."""
    name = key.rpartition("/")[2]
    first = None if is_tree(name) else next(found, None)
    if first is not None:
        yield first
        yield from found
    elif name and not after:
        is_product = is_tree(name) or parse_name(name) is not None
        yield Candidate(name, quote(f"{name}0"), source, is_product)


def _in_store(facility: Facility, key: str, after: str) -> Iterator[Candidate]:
    """What lies in the store itself, to be registered."""
    skip = len(key) + 1 if key else 0
    listed = (
        (stat.key[skip:], stat.size)
        for stat in facility.storage.list(key, join(key, after) if after else "")
        if stat.key.split("/")[0] not in RESERVED
    )
    return _grouped(listed, lambda path: facility.storage.uri(join(key, path)))


def _grouped(
    listed: Iterator[tuple[str, int]], uri_of: Callable[[str], str]
) -> Iterator[Candidate]:
    """Files in the order of their keys; those of one product follow each other."""
    tree = ""
    for path, size in listed:
        if tree and path.startswith(f"{tree}/"):
            continue
        parts = path.split("/")
        depth = next((at for at, part in enumerate(parts[:-1], 1) if is_tree(part)), 0)
        if depth:
            tree = "/".join(parts[:depth])
            # Behind all of its files: a scan that goes on finds none of them again.
            yield Candidate(tree, quote(f"{tree}0"), uri_of(tree), True)
        else:
            is_product = parse_name(parts[-1]) is not None
            yield Candidate(path, quote(path), uri_of(path), is_product, size)


def _in_directory(facility: Facility, source: str, after: str | None) -> Iterator[Candidate]:
    root, base = _root(facility, source)
    status = _plain_file(root, base)
    if status is not None:
        if not after:
            is_product = parse_name(base[-1]) is not None
            yield _candidate(root, base[:-1], base[-1:], is_product, status)
        return
    start = os.fsdecode(unquote_to_bytes(after)).split("/") if after else []
    yield from _walk(root, base, (), tuple(start))


def _plain_file(root: Path, parts: tuple[str, ...]) -> os.stat_result | None:
    """The status of a source that is a file, and so has nothing to be searched; else None."""
    if not parts:
        return None
    try:
        with confined.directory(root, parts[:-1]) as fd:
            status = os.stat(parts[-1], dir_fd=fd, follow_symlinks=False)
    except OSError:
        return None  # told where it is opened as a directory
    return status if stat_module.S_ISREG(status.st_mode) else None


def _walk(
    root: Path, base: tuple[str, ...], inner: tuple[str, ...], start: tuple[str, ...]
) -> Iterator[Candidate]:
    with contextlib.ExitStack() as opened:
        with _told(inner or base):
            fd = opened.enter_context(confined.directory(root, base + inner))
            names = sorted(os.listdir(fd))
        called = (*base, *inner)[-1] if base or inner else ""
        if is_one_product(called, names):
            if inner != start or not inner:
                yield _candidate(root, base, inner, True)
            return
        for name in names:
            parts = (*inner, name)
            if parts < start[: len(parts)] or parts == start:
                continue
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue  # it went while we looked
            if stat_module.S_ISDIR(status.st_mode):
                yield from _walk(root, base, parts, start)
            else:
                is_product = parse_name(name) is not None
                yield _candidate(root, base, parts, is_product, status)


def _candidate(
    root: Path,
    base: tuple[str, ...],
    inner: tuple[str, ...],
    is_product: bool,
    status: os.stat_result | None = None,
) -> Candidate:
    raw = os.fsencode("/".join(inner))
    path = raw.decode(errors="backslashreplace") or (base[-1] if base else str(root))
    uri = "file://" + quote(os.fsencode(root.joinpath(*base, *inner)))
    size: int | None = None
    problem: StorageManagerError | None = None
    if status is not None and not stat_module.S_ISREG(status.st_mode):
        problem = SourceDenied(f"{path!r} is a link or a special file, not a file.")
    elif status is not None:
        size = status.st_size
    try:
        raw.decode()
    except UnicodeDecodeError:
        problem = InvalidKey(f"The name {path!r} is not UTF-8. Rename it.")
    return Candidate(path, quote(raw), uri, is_product, size, problem)


@contextlib.contextmanager
def _told(parts: tuple[str, ...]) -> Iterator[None]:
    where = os.fsencode("/".join(parts)).decode(errors="backslashreplace")
    try:
        yield
    except FileNotFoundError as error:
        raise SourceNotFound(f"The directory {where!r} is not there.") from error
    except NotADirectoryError as error:
        raise SourceDenied(f"{where!r} is not a directory.") from error
    except OSError as error:
        raise SourceUnavailable(f"The directory {where!r}: {error.strerror}.") from error


def _root(facility: Facility, source: str) -> tuple[Path, tuple[str, ...]]:
    """The allowed root that ``source`` lies in, and the parts of its path beneath that."""
    split = urlsplit(source)
    path = Path(unquote(split.path, errors="surrogateescape"))
    if split.netloc not in ("", "localhost") or "?" in source or "#" in source:
        raise SourceDenied(f"The source {shown(source)!r} is not a plain file URI (file:///path).")
    if not path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise SourceDenied(f"The source {shown(source)!r} is not an absolute path without '..'.")
    for root in facility.settings.sources.file_roots:
        if path.is_relative_to(root):
            return root, path.relative_to(root).parts
    raise SourceDenied(f"The source {shown(source)!r} lies beneath none of the allowed roots.")
