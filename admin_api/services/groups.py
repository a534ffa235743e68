"""Small products of a chunk taken in together: one set of statements, one sync, one record.

Every step of an ingest is done for the whole group: begin (one transaction), store (side by side,
made durable in one go), commit (one transaction, one record, one transaction).  A group is for
what is plain: files that are copied, of a name that nothing has or had.  Whatever is not, or goes
wrong in any way, is left to the caller, who does it alone (``ingest.py``) and tells what is wrong.

Called by ``bulk.py``.  ``lifecycle.begin_many`` and ``commit_many`` are the transitions.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from admin_api.catalog.entries import FileEntry, ProductEntry
from admin_api.errors import Busy, StorageManagerError
from admin_api.keys import check_key
from admin_api.products.names import check_name, directory_of
from admin_api.services import incoming, lifecycle, reception
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.ingest import Order, files_in, narrowed
from admin_api.services.reception import Storing
from admin_api.services.sources import SourceFile, Sources
from admin_api.services.transfers import Hold, Kind, Need
from admin_api.services.unpacking import require_named_mission
from admin_api.services.wishes import Expected, Wish
from admin_api.storage.gathering import Gathering

log = logging.getLogger(__name__)

#: Products of a group, bytes and files of one: what is larger gains nothing from company, and the
#: record of all is held in memory.
MOST = 250
_MOST_BYTES = 2 << 20
_MOST_FILES = 200
#: For room in the budget of the process is asked again after so long.
_PAUSE = 0.05

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Asked:
    """A product that is wanted; ``number`` is the caller's."""

    number: int
    wish: Wish
    order: Order


@dataclass(slots=True)
class _Member:
    """A product on its way in."""

    asked: Asked
    wish: Wish
    files: Sequence[SourceFile]
    expected: Mapping[str, Expected]
    receiving: Storing | None = None


def may_join(asked: Asked) -> bool:
    """Whether the product can be one of a group, as far as its order tells."""
    order, sizes = asked.order, [asked.order.expected.size]
    if order.references:
        sizes = [item.expected.size for item in order.references]
    uris = [order.source] if order.source else [item.source for item in order.references]
    return (
        not order.register
        and not order.unpack
        and asked.wish.product_id is None
        and bool(uris)
        and (order.source is None or not order.references)
        and all(uri.startswith(("file:", "s3:")) and not incoming.is_incoming(uri) for uri in uris)
        and sum(size for size in sizes if size is not None) <= _MOST_BYTES
    )


def ingest(
    facility: Facility,
    principal: Principal,
    asked: Sequence[Asked],
    parallel: int,
    stop: threading.Event,
) -> dict[int, ProductEntry]:
    """Take in what is plain of ``asked`` and return it, durable and visible, by its numbers.

    What is not returned is as if it had not been asked for, or is about to be settled by whoever
    asks for it next.
    """
    hold = _room(facility, parallel, stop)
    if hold is None:
        return {}
    group = uuid.uuid4().hex
    with hold, ThreadPoolExecutor(hold.count, thread_name_prefix="group") as pool:
        work = _Work(facility, principal, group, pool, hold.count)
        try:
            return work.run(asked)
        except Exception:
            log.exception("a group is done one by one", extra={"group": group})
        finally:
            work.give_up()
    return {}


def _room(facility: Facility, parallel: int, stop: threading.Event) -> Hold | None:
    """Room for copying so many small files side by side, or for as many as there is."""
    storage = facility.storage
    reading = min(storage.read_memory(), _MOST_BYTES)
    need = Need(memory=storage.put_memory(_MOST_BYTES) + reading, sources=1)
    while not stop.is_set():
        with contextlib.suppress(Busy):
            return facility.transfers.take_some(Kind.INGEST, need, parallel)
        time.sleep(_PAUSE)
    return None


class _Work:
    """One group on its way."""

    def __init__(
        self,
        facility: Facility,
        principal: Principal,
        group: str,
        pool: ThreadPoolExecutor,
        parallel: int,
    ) -> None:
        self._facility, self._principal, self._group = facility, principal, group
        self._pool, self._parallel = pool, parallel
        self._sources = Sources(facility.settings.sources, facility.settings.limits)
        self._waiting: set[Storing] = set()

    def run(self, asked: Sequence[Asked]) -> dict[int, ProductEntry]:
        """All steps; what drops out at one of them is not in the next."""
        members = _of_one_name(self._each(self._look, asked))
        attempts = lifecycle.begin_many(
            self._facility, self._principal, [member.wish for member in members]
        )
        begun = [attempt for attempt in attempts if attempt is not None]
        taken = lifecycle.leave_taken(self._facility, self._principal, begun)
        with Gathering(self._facility.storage) as gathering:
            for member, attempt in zip(members, attempts, strict=True):
                if attempt is not None and attempt.pk not in taken:
                    member.receiving = Storing(
                        self._facility, self._principal, member.wish, attempt, gathering.put
                    )
                    self._waiting.add(member.receiving)
            receiving = [member for member in members if member.receiving is not None]
            stored = self._each(self._store, receiving)
            gathering.settle()
        ready = self._each(self._ready, stored)
        committed = lifecycle.commit_many(
            self._facility, self._principal.actor, self._group, [item for _, item in ready]
        )
        done: dict[int, ProductEntry] = {}
        for member, (attempt, _, _) in ready:
            if attempt.pk in committed and member.receiving is not None:
                done[member.asked.number] = committed[attempt.pk]
                self._waiting.discard(member.receiving)
                member.receiving.__exit__(None, None, None)
        return done

    def give_up(self) -> None:
        """Nothing stays of what was begun and is not committed."""
        for receiving in self._waiting:
            receiving.discard(lifecycle.ALONE)
            receiving.__exit__(None, None, None)

    def _each(self, action: Callable[[T], U | None], things: Sequence[T]) -> list[U]:
        """What ``action`` gives for each, side by side; what it gives None for drops out."""
        remaining, lock = iter(things), threading.Lock()
        found: list[U] = []

        def work() -> None:
            while True:
                with lock:
                    thing = next(remaining, None)
                if thing is None:
                    return
                try:
                    result = action(thing)
                except StorageManagerError:
                    continue  # it is done again, alone, and told then
                if result is not None:
                    found.append(result)

        for future in [self._pool.submit(work) for _ in range(min(self._parallel, len(things)))]:
            future.result()
        return found

    def _look(self, asked: Asked) -> _Member | None:
        """Find the sources; nothing is read."""
        order, wish = asked.order, asked.wish
        if order.source is not None:
            name = wish.name or self._sources.find(order.source).name
        else:
            name = wish.name
        files, expected = files_in(self._sources.find, name, order)
        sizes = [file.size for file in files]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes) or len(files) > _MOST_FILES or sum(known) > _MOST_BYTES:
            return None
        wish = replace(wish, name=name, group=self._group)
        require_named_mission(self._principal, name)
        reception.check(self._facility, self._principal, wish)
        check_name(name)
        storage = self._facility.settings.storage
        check_key(directory_of(name, storage.key_template, storage.unsorted_template))
        return _Member(asked, wish, files, expected)

    def _store(self, member: _Member) -> _Member:
        assert member.receiving is not None
        for file in member.files:
            wanted = narrowed(member.expected.get(file.path, Expected()), file.size)
            member.receiving.store(file.path, file.open(), wanted)
        return member

    def _ready(
        self, member: _Member
    ) -> tuple[_Member, tuple[ProductEntry, Sequence[FileEntry], str]]:
        assert member.receiving is not None
        files, digest = member.receiving.ready()
        return member, (member.receiving.attempt, files, digest)


def _of_one_name(members: Iterable[_Member]) -> list[_Member]:
    """Of those with the same name the first one: the others have to meet it."""
    by_name: dict[str, _Member] = {}
    for member in sorted(members, key=lambda member: member.asked.number):
        by_name.setdefault(member.wish.name, member)
    return list(by_name.values())
