"""Running the chunks of bulk jobs: many products imported or removed, each with its outcome.

An item is ingested by ``ingest.py`` as a single product is, with all its checks; what is here is
around it: items side by side, tries for what passes, what is stored already told without asking
source or store, outcomes written down many at a time.  Whose product an item's is shows in the mark
of the attempt that made it, so an item whose worker died after its commit is done, not skipped and
not refused.  Called by the worker (``admin_api/worker.py``).
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime
from typing import Any

from sqlalchemy.exc import IntegrityError

from admin_api.catalog import clock, entries
from admin_api.catalog.entries import ProductEntry
from admin_api.catalog.jobs import ItemEntry, JobEntry
from admin_api.catalog.models import ItemState, Product, State
from admin_api.errors import (
    Busy,
    CatalogUnavailable,
    InProgress,
    ProductExists,
    StorageManagerError,
    Unavailable,
)
from admin_api.services import groups, jobs, known, lifecycle, removal, scans
from admin_api.services import ingest as ingests
from admin_api.services.facility import Facility
from admin_api.services.groups import Asked
from admin_api.services.ingest import Order, Reference
from admin_api.services.jobs import Claim, LeaseLostError, Outcome
from admin_api.services.known import Known
from admin_api.services.wishes import Expected, Level, Policy, Result, Wish, other_digests
from admin_api.uris import shown

log = logging.getLogger(__name__)

#: Outcomes are written down so often, or when there are so many.
_FLUSH_SECONDS = 0.5
_FLUSH_ITEMS = 200
#: So often it is looked whether the job is paused or cancelled.
_LOOK_SECONDS = 2.0
#: What may be otherwise a moment later.
PASSING = frozenset(("in_progress", "catalog_unavailable", "storage_unavailable", "no_space"))
#: What a later retry may mend; the other codes need somebody to mend the item or the source.
RETRYABLE = PASSING | {"source_unavailable", "internal_error", "catalog_behind", "worker_lost"}
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 15.0


def work(facility: Facility, stop: threading.Event) -> None:
    """Run chunks until there is none to take, or until ``stop``.

    What is under way then is ended as it is, and the rest of the chunk given back.
    """
    while not stop.is_set():
        owner = uuid.uuid4().hex
        claimed = jobs.claim(facility, owner)
        if claimed is None:
            return
        with facility.heartbeat.of_owner(owner):
            try:
                _run(facility, claimed, stop)
            except LeaseLostError:
                log.warning("a chunk was taken over", extra=_named(claimed))


def _named(claimed: Claim) -> dict[str, Any]:
    return {"job": claimed.job.id, "chunk": claimed.chunk, "epoch": claimed.epoch}


def _run(facility: Facility, claimed: Claim, stop: threading.Event) -> None:
    if claimed.scan:
        scans.run(facility, claimed, stop)
        return
    items = jobs.items_of(facility, claimed)
    report = _Outcomes(facility, claimed)
    if claimed.job.cancelled or claimed.is_hopeless:
        report.add([_not_begun(claimed, item) for item in items])
    elif claimed.job.kind == jobs.REMOVAL:
        report.add(_removed(facility, claimed, items))
    else:
        _import(facility, claimed, items, report, stop)
    report.flush()
    if len(items) > report.told:
        jobs.give_back(facility, claimed)


def _not_begun(claimed: Claim, item: ItemEntry) -> Outcome:
    if claimed.job.cancelled:
        return Outcome(item.number, ItemState.CANCELLED)
    detail = (
        f"{claimed.fruitless - 1} workers in turn ended while they worked on this item and its "
        "neighbours; the log of the hosts may say of what. Retry the item alone."
    )
    return Outcome(item.number, ItemState.FAILED, None, "worker_lost", detail, True)


class _Outcomes:
    """Outcomes on their way into the catalog, some at a time."""

    def __init__(self, facility: Facility, claimed: Claim) -> None:
        self._facility, self._claimed = facility, claimed
        self._waiting: list[Outcome] = []
        self._written = time.monotonic()
        #: So many were told, and the job as it was at the last time.
        self.told = 0
        self.job: JobEntry = claimed.job

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Take note, and write down if it is time to; raises LeaseLostError."""
        new = list(outcomes)
        self._waiting += new
        self.told += len(new)
        if self._waiting and (
            len(self._waiting) >= _FLUSH_ITEMS or time.monotonic() - self._written >= _FLUSH_SECONDS
        ):
            self.flush()

    def flush(self) -> None:
        """Write down; a catalog that is away is waited for, about as long as a lease lasts.

        Raises LeaseLostError, and CatalogUnavailable after that.
        """
        pause = _FIRST_PAUSE
        grace = self._facility.settings.housekeeping.commit_grace_seconds
        deadline = time.monotonic() + max(grace, _LONGEST_PAUSE)
        while True:
            try:
                self.job = jobs.finish(self._facility, self._claimed, self._waiting)
                break
            except CatalogUnavailable:
                if time.monotonic() > deadline:
                    raise
                log.exception("outcomes wait for the catalog", extra=_named(self._claimed))
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        self._waiting = []
        self._written = time.monotonic()

    @property
    def is_wanted(self) -> bool:
        """Whether the job goes on, as it was at the last time."""
        return not (self.job.cancelled or self.job.paused)

    def look(self) -> None:
        """See, now and then, whether the job goes on though no item ends."""
        if time.monotonic() - self._written >= _LOOK_SECONDS:
            self.flush()


# -- importing -----------------------------------------------------------------------------------
def _import(
    facility: Facility,
    claimed: Claim,
    items: Sequence[ItemEntry],
    report: _Outcomes,
    stop: threading.Event,
) -> None:
    stored = _stored(facility, claimed, items)
    report.add(stored.values())
    parallel = facility.settings.jobs.parallel_items
    if claimed.job.concurrency is not None:
        parallel = min(parallel, claimed.job.concurrency)
    left = [item for item in items if item.number not in stored]
    left = _import_groups(facility, claimed, left, report, parallel, stop)
    todo = iter(left)
    ended = threading.Event()  # this chunk's: also when the lease is lost
    with ThreadPoolExecutor(parallel, thread_name_prefix="item") as pool:
        running: set[Future[Outcome | None]] = set()
        try:
            while True:
                while len(running) < parallel and report.is_wanted and not stop.is_set():
                    item = next(todo, None)
                    if item is None:
                        break
                    running.add(pool.submit(_one, facility, claimed, item, stop, ended))
                if not running:
                    return
                done, running = wait(running, _FLUSH_SECONDS, FIRST_COMPLETED)
                report.add(found for found in (one.result() for one in done) if found is not None)
                report.look()
        finally:
            ended.set()


def _import_groups(
    facility: Facility,
    claimed: Claim,
    items: Sequence[ItemEntry],
    report: _Outcomes,
    parallel: int,
    stop: threading.Event,
) -> list[ItemEntry]:
    """Import what can be imported together; returns what is to be done item by item."""
    if claimed.job.options.get("dry_run"):
        return list(items)
    joining: list[tuple[ItemEntry, Asked]] = []
    left: list[ItemEntry] = []
    for item in items:
        asked = Asked(item.number, *_asked(claimed.job, item))
        if groups.may_join(asked):
            joining.append((item, asked))
        else:
            left.append(item)
    for at in range(0, len(joining), groups.MOST):
        part = joining[at : at + groups.MOST]
        if len(part) == 1 or stop.is_set() or not report.is_wanted:
            left += [item for item, _ in part]
            continue
        asked_for = [asked for _, asked in part]
        made = groups.ingest(facility, claimed.principal, asked_for, parallel, stop)
        left += [item for item, _ in part if item.number not in made]
        report.add(
            _told(item, made[item.number], Result.CREATED)
            for item, _ in part
            if item.number in made
        )
    return left


def _one(
    facility: Facility,
    claimed: Claim,
    item: ItemEntry,
    stop: threading.Event,
    ended: threading.Event,
) -> Outcome | None:
    """What becomes of an item; None where the worker ends before that is known.

    For room in the budget of this process its own items are waited for, however long they take.
    """
    pause, left = _FIRST_PAUSE, facility.settings.jobs.attempts
    while True:
        try:
            return _done(facility, claimed, item)
        except Busy:
            pause = min(pause, _FLUSH_SECONDS)
        except StorageManagerError as error:
            left -= 1
            if error.code not in PASSING or not left:
                return _failed(item, error)
        except IntegrityError:
            left -= 1
            if not left:
                clash = InProgress("Another request changed the same thing; try again.")
                return _failed(item, clash)
        except Exception:
            log.exception("an item failed unexpectedly", extra=_named(claimed))
            return Outcome(
                item.number,
                ItemState.FAILED,
                code="internal_error",
                detail="Something unexpected went wrong; the worker's log has it under this job.",
                retryable=True,
            )
        if stop.wait(pause) or ended.is_set():
            return None
        pause = min(2 * pause, _LONGEST_PAUSE)


def _done(facility: Facility, claimed: Claim, item: ItemEntry) -> Outcome:
    assert item.wanted is not None
    wish, order = _asked(claimed.job, item)
    if claimed.job.options.get("dry_run"):
        return _foreseen(facility, claimed, item, wish, order)
    try:
        outcome = ingests.ingest(facility, claimed.principal, wish, order)
    except ProductExists as error:
        ours = _made_before(facility, wish, error)
        if ours is None:
            raise
        return _told(item, ours, Result.CREATED)
    if outcome.result is Result.SKIPPED and _is_ours(outcome.product, wish):
        return _told(item, outcome.product, Result.CREATED)
    return _told(item, outcome.product, outcome.result)


def _asked(job: JobEntry, item: ItemEntry) -> tuple[Wish, Order]:
    """What the item asks for, with what the job says for all."""
    wanted: Mapping[str, Any] = item.wanted or {}
    options = job.options
    retention = wanted.get("retention") or options.get("retention")
    source = wanted.get("source")
    wish = Wish(
        name=wanted.get("name") or "",
        product_id=wanted.get("id"),
        policy=Policy(wanted.get("duplicates") or options.get("duplicates") or Policy.SKIP),
        level=Level(wanted.get("verification") or options.get("verification") or Level.DIGEST),
        retention_until=datetime.fromisoformat(retention) if retention else None,
        source=shown(source) if source else None,
        mark=_mark(job, item.number),
    )
    order = Order(
        source=source,
        references=[
            Reference(file["path"], file["source"], _expected(file))
            for file in wanted.get("files", ())
        ],
        expected=_expected(wanted),
        register=(wanted.get("mode") or options.get("mode")) == "register",
        unpack=bool(wanted.get("unpack")),
    )
    return wish, order


def _expected(told: Mapping[str, Any]) -> Expected:
    others = other_digests(told.get("digests") or {})
    return Expected(told.get("size"), told.get("sha256"), told.get("md5"), others)


def _told(item: ItemEntry, product: ProductEntry, result: Result) -> Outcome:
    state = ItemState.SKIPPED if result is Result.SKIPPED else ItemState.DONE
    return Outcome(item.number, state, result.value, product_id=product.id, bytes=product.size)


def _is_ours(product: ProductEntry, wish: Wish) -> bool:
    """Whether an earlier try of this very item has made the product."""
    return wish.mark is not None and product.attempt.startswith(wish.mark)


def _made_before(facility: Facility, wish: Wish, error: ProductExists) -> ProductEntry | None:
    with facility.catalog.reading() as session:
        found = entries.all_of(
            ProductEntry,
            session,
            entries.products().where(
                Product.id == error.extra.get("product"), Product.state == State.AVAILABLE
            ),
        )
    return next((product for product in found if _is_ours(product, wish)), None)


def _foreseen(
    facility: Facility, claimed: Claim, item: ItemEntry, wish: Wish, order: Order
) -> Outcome:
    """What would become of the item, as far as it shows without reading or writing a byte."""
    name, size = ingests.look(facility, claimed.principal, wish, order)
    there = lifecycle.foresee(facility, claimed.principal, Wish(name, wish.product_id, wish.policy))
    result = "would be created"
    if there is not None:
        result = "is there" if wish.policy is Policy.SKIP else "would be replaced"
    state = ItemState.SKIPPED if result == "is there" else ItemState.DONE
    product_id = there.id if there else None
    return Outcome(item.number, state, result, product_id=product_id, bytes=size)


def _stored(facility: Facility, claimed: Claim, items: Sequence[ItemEntry]) -> dict[int, Outcome]:
    """The items that are stored already with the digests that were announced."""
    job, by_number = claimed.job, {item.number: item for item in items}
    wanted = [(item.number, item.wanted or {}) for item in items]
    found = known.find(facility, claimed.principal, job.options, wanted)
    return {
        number: _known(by_number[number], product, _mark(job, number))
        for number, product in found.items()
    }


def _known(item: ItemEntry, product: Known, mark: str) -> Outcome:
    is_ours = product.attempt.startswith(mark)
    state = ItemState.DONE if is_ours else ItemState.SKIPPED
    result = Result.CREATED if is_ours else Result.SKIPPED
    return Outcome(item.number, state, result.value, product_id=product.id, bytes=product.size)


def _mark(job: JobEntry, number: int) -> str:
    """What the mark of every attempt begins with that is made for the item."""
    return f"{job.id}.{number}."


# -- removing ------------------------------------------------------------------------------------
def _removed(facility: Facility, claimed: Claim, items: Sequence[ItemEntry]) -> list[Outcome]:
    """Remove the products of a chunk together; each item has its own outcome."""
    principal, job = claimed.principal, claimed.job
    sought = removal.sought(facility, principal, [item.wanted or {} for item in items])
    with facility.catalog.reading() as session:
        now = clock.read(session)
    outcomes: list[Outcome] = []
    going: dict[int, tuple[ItemEntry, ProductEntry]] = {}
    for item, product in zip(items, sought, strict=True):
        try:
            if isinstance(product, StorageManagerError):
                raise product
            if product.state != State.AVAILABLE or product.pk in going:
                outcomes.append(_was_removed(claimed, item, product))
                continue
            lifecycle.refuse_kept(product, now)
        except StorageManagerError as error:
            outcomes.append(_failed(item, error))
        else:
            going[product.pk] = (item, product)
    if job.options.get("dry_run"):
        return outcomes + [
            _gone(item, product, "would be removed") for item, product in going.values()
        ]
    try:
        products = [product for _, product in going.values()]
        there = removal.in_their_stores(facility, products)
        cause = job.options.get("cause") or "requested"
        lifecycle.remove_many(facility, there, principal.actor, cause)
        with facility.catalog.reading() as session:
            left = {found.pk: found for found in entries.products_by_pk(session, list(going))}
    except StorageManagerError as error:
        return outcomes + [_failed(item, error) for item, _ in going.values()]
    for pk, (item, product) in going.items():
        found = left.get(pk, product)
        if found.state == State.AVAILABLE:
            outcomes.append(_stays(item, found, now))
        else:
            outcomes.append(_gone(item, product, "removed"))
    return outcomes


def _gone(item: ItemEntry, product: ProductEntry, result: str) -> Outcome:
    return Outcome(item.number, ItemState.DONE, result, product_id=product.id, bytes=product.size)


def _was_removed(claimed: Claim, item: ItemEntry, product: ProductEntry) -> Outcome:
    """Skipped, unless it was an earlier worker on this chunk who has removed the product."""
    begun = claimed.job.started_at
    if (
        claimed.epoch > 1
        and product.state != State.AVAILABLE
        and product.removed_by == claimed.job.subject
        and begun is not None
        and product.removed_at is not None
        and product.removed_at >= begun
    ):
        return _gone(item, product, "removed")
    return Outcome(item.number, ItemState.SKIPPED, "was removed", product_id=product.id)


def _stays(item: ItemEntry, product: ProductEntry, now: datetime) -> Outcome:
    """Why a product is still there: held or retained meanwhile, or its store is not there."""
    try:
        lifecycle.refuse_kept(product, now)
        raise Unavailable("The product's store is not there, or is not the expected one.")
    except StorageManagerError as error:
        return _failed(item, error)


def _failed(item: ItemEntry, error: StorageManagerError) -> Outcome:
    return Outcome(
        item.number,
        ItemState.FAILED,
        code=error.code,
        detail=error.detail,
        retryable=error.code in RETRYABLE,
    )
