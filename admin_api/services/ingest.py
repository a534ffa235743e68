"""Ingesting one product by reference: from a source into the store, or registered in place.

Called by ``web/products.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from admin_api.errors import InvalidRequest, SourceDenied, SourceNotFound
from admin_api.keys import RESERVED
from admin_api.services import incoming
from admin_api.services.access import Principal
from admin_api.services.archives import split_suffix
from admin_api.services.facility import Facility
from admin_api.services.reception import Reception
from admin_api.services.sources import Found, SourceFile, Sources
from admin_api.services.unpacking import receive_archive, require_named_mission
from admin_api.services.wishes import Expected, Outcome, Wish

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

    ``wish.name`` may be empty: the last part of the source's path is the name then.
    Raises the errors of sources, reception and store; nothing is left behind by any of them.
    """
    if (order.source is None) == (not order.references):
        raise InvalidRequest("Name either one source or the files, not both and not neither.")
    if order.register and order.unpack:
        raise InvalidRequest("An archive that is unpacked cannot be registered in place.")
    if not wish.name:
        wish = replace(wish, name=_name_from(order))
    require_named_mission(principal, wish.name, order.unpack)
    if order.register:
        return _register(facility, principal, wish, order)
    sources = Sources(facility.settings.sources, facility.settings.limits)

    def find(uri: str) -> Found:
        if incoming.is_incoming(uri):
            return incoming.find(facility, principal, uri)
        return sources.find(uri)

    for uri, expected in _stated(order):
        incoming.require_stated(uri, expected)
    if order.unpack:
        outcome = _ingest_archive(facility, principal, wish, order, find)
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
    files, expected = _files(find, wish.name, order)
    with Reception(facility, principal.actor, wish) as reception:
        if reception.matches(expected):
            return reception.existing()
        _copy(
            [_storing(reception, file, expected.get(file.path, Expected())) for file in files],
            facility.settings.limits.parallel_files,
        )
        return reception.commit()


def _files(
    find: Finder, name: str, order: Order
) -> tuple[list[SourceFile], Mapping[str, Expected]]:
    """The files of the product by their paths in it, and what is known of each."""
    if order.references:
        files, expected = [], {}
        for reference in order.references:
            found = find(reference.source)
            if found.is_tree:
                raise InvalidRequest(f"The source {reference.source!r} is not a single file.")
            files.append(SourceFile(reference.path, found.files[0].size, found.files[0].open))
            expected[reference.path] = _narrowed(reference.expected, found.files[0].size)
        return files, expected
    assert order.source is not None
    found = find(order.source)
    if found.is_tree:
        if order.expected != Expected():
            raise InvalidRequest("Size and digests belong to a file; the source is a directory.")
        return found.files, {file.path: Expected(size=file.size) for file in found.files}
    file = found.files[0]
    return (
        [SourceFile(name, file.size, file.open)],
        {name: _narrowed(order.expected, file.size)},
    )


def _ingest_archive(
    facility: Facility, principal: Principal, wish: Wish, order: Order, find: Finder
) -> Outcome:
    if order.source is None:
        raise InvalidRequest("An archive to unpack is named as the one source.")
    found = find(order.source)
    _, kind = split_suffix(found.name)
    if found.is_tree or kind is None:
        raise InvalidRequest(f"The source {order.source!r} is not a .tar, .tar.gz, .tgz or .zip.")
    expected = _narrowed(order.expected, found.files[0].size)
    return receive_archive(facility, principal, wish, kind, found.files[0], expected)


def _register(facility: Facility, principal: Principal, wish: Wish, order: Order) -> Outcome:
    """Take in files that are in the store already: read and checked, not copied."""
    keys = _registered_keys(facility, wish.name, order)
    directory = _common_directory([key for key, _ in keys.values()])
    if len({facility.storage.mount_of(key) for key, _ in keys.values()}) > 1:
        raise InvalidRequest("The files of a registered product must lie in one store.")
    wish = replace(wish, registered_in=directory)
    with Reception(facility, principal.actor, wish) as reception:
        _copy(
            [
                _registering(facility, reception, path, key, expected)
                for path, (key, expected) in keys.items()
            ],
            facility.settings.limits.parallel_files,
        )
        return reception.commit()


def _registered_keys(
    facility: Facility, name: str, order: Order
) -> dict[str, tuple[str, Expected]]:
    """Path in the product -> key in the namespace and what is expected."""
    if order.references:
        return {
            item.path: (_own_key(facility, item.source), item.expected) for item in order.references
        }
    assert order.source is not None
    key = _own_key(facility, order.source)
    tree = {
        stat.key[len(key) + 1 :]: (stat.key, Expected(size=stat.size))
        for stat in facility.storage.list(key)
    }
    if tree:
        return tree
    return {name: (key, order.expected)}


def _own_key(facility: Facility, uri: str) -> str:
    key = facility.storage.key_of(uri)
    if key is None:
        raise SourceDenied(f"{uri!r} does not lie in the store, so it cannot be registered.")
    mount = facility.storage.mount_of(f"{key}/")
    if key[len(mount) :].strip("/").split("/")[0] in RESERVED:
        raise SourceDenied(f"{uri!r} lies where the storage manager keeps its own files.")
    return key


def _common_directory(keys: Sequence[str]) -> str:
    if not keys:
        raise SourceNotFound("The source has no files.")
    common = keys[0].split("/")[:-1]
    for key in keys:
        parts = key.split("/")[:-1]
        while common != parts[: len(common)]:
            common.pop()
    return "/".join(common)


def _storing(reception: Reception, file: SourceFile, expected: Expected) -> Callable[[], object]:
    return lambda: reception.store(file.path, file.open(), expected)


def _registering(
    facility: Facility, reception: Reception, path: str, key: str, expected: Expected
) -> Callable[[], object]:
    return lambda: reception.register(path, key, facility.storage.open(key), expected)


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


def _narrowed(expected: Expected, size: int | None) -> Expected:
    """What the caller says, filled up with what the source says."""
    return expected if expected.size is not None else replace(expected, size=size)


def _name_from(order: Order) -> str:
    if order.source is None:
        raise InvalidRequest("A product of listed files needs a name.")
    last = unquote(urlsplit(order.source).path).rstrip("/").rpartition("/")[2]
    return split_suffix(last)[0] if order.unpack else last
