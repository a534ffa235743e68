"""Ingesting one product by reference: from a source into the store, or registered in place.

Called by ``web/products.py``, and by ``bulk.py`` for the items of jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from urllib.parse import unquote

from admin_api.errors import InvalidRequest, SizeMismatch
from admin_api.products.names import check_name
from admin_api.services import incoming, reception, registration
from admin_api.services.access import Principal
from admin_api.services.archives import split_suffix
from admin_api.services.facility import Facility
from admin_api.services.reception import Comparing, Reception
from admin_api.services.sources import Found, SourceFile, Sources
from admin_api.services.transfers import Hold, Kind, Need
from admin_api.services.unpacking import receive_archive, require_named_mission
from admin_api.services.wishes import Expected, Outcome, Wish
from admin_api.uris import shown

Finder = Callable[[str], Found]


@dataclass(frozen=True, slots=True)
class Reference:
    """One file of a product that the caller lists: its path, where it is, what it should be."""

    path: str
    source: str
    expected: Expected


@dataclass(frozen=True, slots=True)
class Order:
    """What to ingest: a ``source`` (file, tree or archive), or listed ``references``."""

    source: str | None = None
    references: Sequence[Reference] = ()
    expected: Expected = Expected()
    register: bool = False
    unpack: bool = False


def ingest(facility: Facility, principal: Principal, wish: Wish, order: Order) -> Outcome:
    """Ingest the product and return what came of it; it is durable and visible then.

    ``wish.name`` may be empty: the last part of the source's path is the name then, or what a web
    server calls the file.
    Raises the errors of sources, reception and store; nothing is left behind by any of them.
    """
    _require_sense(order)
    find, close = _finder(facility, principal, order)
    try:
        return _ingest(facility, principal, wish, order, find)
    finally:
        close()


def look(facility: Facility, principal: Principal, wish: Wish, order: Order) -> tuple[str, int]:
    """Name of the product and bytes of its files as the source tells them; nothing is read.

    Raises what ``ingest`` would for the order itself, for its sources, and for stated sizes.
    """
    _require_sense(order)
    find, close = _finder(facility, principal, order)
    try:
        name = wish.name or _name_from(order, find)
        if order.unpack:
            name = split_suffix(name)[0]
        check_name(name)
        require_named_mission(principal, name, order.unpack)
        if order.register:
            keys = _in_place(facility, name, order)
            registration.admit(facility, principal, [key for key, _ in keys.values()])
            sizes = [facility.storage.stat(key).size for key, _ in keys.values()]
            told = [expected.size for _, expected in keys.values()]
        else:
            files, expected = files_in(find, name, order)
            sizes = [file.size or 0 for file in files]
            told = [expected.get(file.path, Expected()).size for file in files]
        for size, said in zip(sizes, told, strict=True):
            if said is not None and size and said != size:
                raise SizeMismatch(f"The source has {size} bytes; {said} were announced.")
        return name, sum(sizes)
    finally:
        close()


def _require_sense(order: Order) -> None:
    if (order.source is None) == (not order.references):
        raise InvalidRequest("Name either one source or the files, not both and not neither.")
    if order.register and order.unpack:
        raise InvalidRequest("An archive that is unpacked cannot be registered in place.")
    if not order.register:
        for uri, expected in _stated(order):
            incoming.require_stated(uri, expected)


def _finder(
    facility: Facility, principal: Principal, order: Order
) -> tuple[Finder, Callable[[], None]]:
    """What finds sources, each once, and what is to be called when all are read."""
    sources = Sources(facility.settings.sources, facility.settings.limits)
    known: dict[str, Found] = {}

    def find(uri: str) -> Found:
        if uri not in known:
            if incoming.is_incoming(uri):
                known[uri] = incoming.find(facility, principal, uri)
            else:
                known[uri] = sources.find(uri, ask=order.source is not None)
        return known[uri]

    def close() -> None:
        for found in known.values():
            found.close()

    return find, close


def _ingest(
    facility: Facility, principal: Principal, wish: Wish, order: Order, find: Finder
) -> Outcome:
    name, kind = wish.name or _name_from(order, find), None
    if order.unpack:  # a name that ends like an archive is the archive's
        name, kind = split_suffix(name)
    wish = replace(wish, name=name)
    require_named_mission(principal, wish.name, order.unpack)
    if order.register:
        return _register(facility, principal, wish, order)
    if order.unpack:
        outcome = _ingest_archive(facility, principal, wish, order, find, kind)
    else:
        outcome = _ingest_files(facility, principal, wish, order, find)
    incoming.clear(facility, principal, [uri for uri, _ in _stated(order)])
    return outcome


def _stated(order: Order) -> list[tuple[str, Expected]]:
    """Every source of the order and what the caller says of it."""
    if order.source is not None:
        return [(order.source, order.expected)]
    return [(item.source, item.expected) for item in order.references]


def _ingest_files(
    facility: Facility, principal: Principal, wish: Wish, order: Order, find: Finder
) -> Outcome:
    files, expected = files_in(find, wish.name, order)
    sizes = [expected.get(file.path, Expected()).size for file in files]
    with (
        _shares(facility, sizes) as shares,
        reception.begin(facility, principal, wish) as receiving,
    ):
        if isinstance(receiving, Comparing) and receiving.matches(expected):
            return receiving.existing()
        _copy(
            [_storing(receiving, file, expected.get(file.path, Expected())) for file in files],
            shares.count,
        )
        return receiving.commit()


def files_in(
    find: Finder, name: str, order: Order
) -> tuple[list[SourceFile], Mapping[str, Expected]]:
    """The files of the product ``name`` by their paths in it, and what is known of each."""
    if order.references:
        files, expected = [], {}
        for reference in order.references:
            found = find(reference.source)
            if found.is_tree:
                raise InvalidRequest(
                    f"The source {shown(reference.source)!r} is not a single file."
                )
            files.append(replace(found.files[0], path=reference.path))
            expected[reference.path] = narrowed(reference.expected, found.files[0].size)
        return files, expected
    assert order.source is not None
    found = find(order.source)
    if found.is_tree:
        if order.expected != Expected():
            raise InvalidRequest("Size and digests belong to a file; the source is a directory.")
        return found.files, {file.path: Expected(size=file.size) for file in found.files}
    file = found.files[0]
    return [replace(file, path=name)], {name: narrowed(order.expected, file.size)}


def _ingest_archive(
    facility: Facility,
    principal: Principal,
    wish: Wish,
    order: Order,
    find: Finder,
    named_kind: str | None,
) -> Outcome:
    if order.source is None:
        raise InvalidRequest("An archive to unpack is named as the one source.")
    found = find(order.source)
    kind = split_suffix(found.name)[1] or named_kind
    if found.is_tree or kind is None:
        raise InvalidRequest(
            f"The source {shown(order.source)!r} is not a .tar, .tar.gz, .tgz or .zip. If it is "
            "one by another name, give the archive's name as the product's (NAME.zip)."
        )
    expected = narrowed(order.expected, found.files[0].size)
    with _shares(facility, [None]):
        return receive_archive(facility, principal, wish, kind, found.files[0], expected)


def _register(facility: Facility, principal: Principal, wish: Wish, order: Order) -> Outcome:
    """Take in files that are in the store already: read and checked, not copied."""
    found = _in_place(facility, wish.name, order)
    keys = {path: key for path, (key, _) in found.items()}
    directory = registration.admit(facility, principal, list(keys.values()))
    wish = replace(wish, registered_in=directory)
    with (
        _shares(facility, [0] * len(keys)) as shares,
        reception.register(facility, principal, wish, keys) as receiving,
    ):
        _copy(
            [
                _storing(receiving, registration.source_file(facility, path, key), expected)
                for path, (key, expected) in found.items()
            ],
            shares.count,
        )
        return receiving.commit()


def _in_place(facility: Facility, name: str, order: Order) -> dict[str, tuple[str, Expected]]:
    """Path in the product -> key in the store and what is expected of the file."""
    if order.source is not None:
        return registration.in_place(facility, name, order.source, order.expected)
    return {
        item.path: (registration.key_of(facility, item.source), item.expected)
        for item in order.references
    }


def _shares(facility: Facility, sizes: Sequence[int | None]) -> Hold:
    """Room for copying files of these sizes, as many side by side as there is room for now."""
    known = [size for size in sizes if size is not None]
    largest = max(known, default=0) if len(known) == len(sizes) else None
    storage = facility.storage
    reading = min(storage.read_memory(), largest or storage.read_memory())
    need = Need(memory=storage.put_memory(largest) + reading, sources=1)
    most = min(len(sizes), facility.settings.limits.parallel_files)
    return facility.transfers.take_some(Kind.INGEST, need, most)


def _storing(receiving: Reception, file: SourceFile, expected: Expected) -> Callable[[], object]:
    def store() -> None:
        ready = file.ready()
        try:
            wanted = narrowed(expected, ready.size)
            if not ready.delimited and wanted == Expected():
                raise InvalidRequest(
                    f"Of {file.path!r} size, sha256 or md5 must be stated: the server gives no "
                    "length, so a file that breaks off would look whole."
                )
            receiving.store(file.path, ready.open(), wanted)
        finally:
            ready.close()

    return store


def _copy(actions: Sequence[Callable[[], object]], parallel: int) -> None:
    """Do all, some side by side; the first failure stops those not yet begun and is raised."""
    if len(actions) == 1:
        actions[0]()
        return
    with ThreadPoolExecutor(parallel, thread_name_prefix="copy") as pool:
        futures = [pool.submit(action) for action in actions]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failed = next((future for future in done if future.exception() is not None), None)
        if failed is not None:
            pool.shutdown(wait=True, cancel_futures=True)
            failed.result()


def narrowed(expected: Expected, size: int | None) -> Expected:
    """What the caller says, filled up with what the source says."""
    return expected if expected.size is not None else replace(expected, size=size)


def _name_from(order: Order, find: Finder) -> str:
    if order.source is None:
        raise InvalidRequest("A product of listed files needs a name.")
    if not order.register:
        name = find(order.source).name
        if name.startswith("$"):  # the last word of a request, not the name of what it gives
            raise InvalidRequest(
                f"The source {shown(order.source)!r} does not tell what the product is called; say "
                "it with 'name'."
            )
        return name
    path = shown(order.source).rstrip("/")
    return unquote(path.rpartition("/")[2])
