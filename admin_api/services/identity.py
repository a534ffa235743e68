"""Whose a store is: a catalog knows its stores, and a store knows its catalog.

The catalog has an id and, for every mount, the store that it expects there; the store has markers
(``storage/marker.py``).  A store without a marker is taken at the first start; one that is another
catalog's is refused until a command takes it over: ``rebuild`` where the catalog was lost,
``adopt-store`` else.  ``docs/adr/0017-whose-a-store-is.md`` has the cases.

Called when a facility is opened, by the gates of its mounts, by a watcher in every server process,
and by the commands.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import and_, not_, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql import ColumnElement

from admin_api.catalog import events
from admin_api.catalog.database import Catalog
from admin_api.catalog.models import Identity, Product, Store
from admin_api.errors import AlreadyExists, InProgress, InvalidRequest
from admin_api.keys import beneath
from admin_api.storage import marker as markers
from admin_api.storage.base import put_bytes, read_bytes
from admin_api.storage.marker import Expected, Marker, WrongStore
from admin_api.storage.mounts import Mounts

log = logging.getLogger(__name__)

_RECORDS = ".products"
WATCH_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Situation:
    """What catalog and store say of each other at one mount."""

    path: str
    where: str
    catalog: str
    #: What the catalog expects; None until it has met a store there.
    store: str | None
    marker: Marker | None
    #: Whether the catalog knows, or knew, a product on this mount; on any mount.
    has_products: bool
    is_used: bool
    #: Another mount of this catalog that has the same store.
    twin: str | None

    @property
    def is_ours(self) -> bool:
        """Whether the store is the expected one, or nothing speaks against expecting it."""
        return (
            self.marker is not None
            and self.marker.is_readable
            and self.marker.catalog == self.catalog
            and self.store in (None, self.marker.store)
            and self.twin is None
        )


def situation(catalog: Catalog, mounts: Mounts, path: str) -> Situation:
    """Look at both sides; raises what store and catalog raise."""
    with catalog.reading() as session:
        rows = {row.mount: row for row in session.scalars(select(Store))}
        row = rows.pop(path, None)
        catalog_id = session.scalars(select(Identity.catalog_id)).one()
        existed = select(Product.pk).where(Product.available_at.is_not(None)).limit(1)
        is_used = session.scalar(existed) is not None
        has_products = (
            is_used and session.scalar(existed.where(_on_mount(mounts, path))) is not None
        )
    # After the catalog: a process that takes a new store writes the marker first and the row then,
    # so whoever sees the row sees the marker, too.
    marker = _newest(mounts, path)
    twins = [
        mount
        for mount, other in rows.items()
        if marker is not None and other.store_id == marker.store and mount in mounts.stores
    ]
    return Situation(
        path=path,
        where=mounts.gates[path].where,
        catalog=catalog_id,
        store=row.store_id if row else None,
        marker=marker,
        has_products=has_products,
        is_used=is_used,
        twin=twins[0] if twins and row is None else None,
    )


def look(catalog: Catalog, mounts: Mounts, path: str) -> Expected:
    """What is expected at a mount, once it is there; a new store is taken.

    Raises WrongStore with the sentence for anything else, and what store and catalog raise.
    """
    seen = situation(catalog, mounts, path)
    if seen.store is not None:
        expected = Expected(seen.where, seen.store, seen.catalog)
        expected.check(seen.marker)
        return expected
    if seen.marker is None:
        _refuse_doubtful(mounts, seen)
        _write(mounts, path, _new_marker(uuid.uuid4().hex, seen.catalog, 1))
        seen = situation(catalog, mounts, path)  # whoever was first has won
    if not seen.is_ours:
        raise WrongStore(_unexpected(seen))
    assert seen.marker is not None
    _remember(catalog, path, seen.marker)
    return Expected(seen.where, seen.marker.store, seen.catalog)


def look_at_all(mounts: Mounts, seconds: float) -> None:
    """Look at every mount, and wait so long for the answers; late ones open their gates later."""
    threads = [
        threading.Thread(target=gate.refresh, name="store-gate", daemon=True)
        for gate in mounts.gates.values()
    ]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def watch(mounts: Mounts, stop: threading.Event) -> None:
    """Look again and again until ``stop`` is set: a bucket tells only those who ask."""
    while not stop.wait(WATCH_SECONDS):
        look_again(mounts)


def look_again(mounts: Mounts) -> None:
    """Look at every mount once more."""
    for gate in mounts.gates.values():
        try:
            gate.refresh()
        except Exception:
            log.exception("a look at the store failed; it will be tried again")


def take_back(catalog: Catalog, mounts: Mounts) -> None:
    """Take the stores over for a catalog that knows no product: its predecessor was lost.

    The deliberate step of ``rebuild``.  Raises WrongStore, before anything is changed, where the
    catalog knows products and a store is not its own, or where the store is not mounted.
    """
    lost = []
    for path in mounts.stores:
        seen = situation(catalog, mounts, path)
        is_foreign = seen.marker is not None and not seen.is_ours
        is_orphan = seen.marker is None and seen.store is None and _has_records(mounts, path)
        if not seen.is_used and (is_foreign or is_orphan):
            lost.append(path)
        else:
            look(catalog, mounts, path)
    for path in lost:
        adopt(catalog, mounts, path)
    for path, gate in mounts.gates.items():
        gate.refresh()
        mounts.require(path)


def adopt(catalog: Catalog, mounts: Mounts, path: str) -> Marker:
    """Make what lies at the mount the store of this catalog, whosever it was.

    The next marker is written, which tells a service that still works with the store to stop.
    Raises InProgress if somebody else does the same right now, and what store and catalog raise.
    """
    seen = situation(catalog, mounts, path)
    marker = seen.marker
    if marker is None or not marker.is_readable or marker.catalog != seen.catalog or seen.twin:
        keeps_id = marker is not None and marker.is_readable and not seen.twin
        store = marker.store if keeps_id and marker is not None else uuid.uuid4().hex
        wanted = _new_marker(store, seen.catalog, marker.number + 1 if marker else 1)
        _write(mounts, path, wanted)
        marker = _newest(mounts, path)
        if marker is None or marker.catalog != seen.catalog:
            raise InProgress(
                f"Somebody else has taken over the store at {seen.where} at the same moment."
            )
    _remember(catalog, path, marker)
    with catalog.writing() as session:
        told = events.Happening(
            "store.adopted",
            None,
            {
                "mount": f"/{path}",
                "store": marker.store,
                "number": marker.number,
                "before": markers.describe(seen.marker) if seen.marker else "no marker",
            },
        )
        events.append(session, events.SYSTEM, [told])
    log.warning("the store at %s was taken over", seen.where)
    mounts.gates[path].refresh()
    return marker


def report(catalog: Catalog, mounts: Mounts, path: str | None) -> Iterator[tuple[str, str, bool]]:
    """Of every mount (or of ``path``): path, a sentence on whose its store is, whether it is ours.

    Raises InvalidRequest for a mount that there is not.
    """
    if path is not None and path not in mounts.stores:
        known = ", ".join(f"/{mount}" for mount in mounts.stores)
        raise InvalidRequest(f"There is no mount /{path}; the settings have {known}.")
    for mount in mounts.stores if path is None else [path]:
        seen = situation(catalog, mounts, mount)
        found = markers.describe(seen.marker) if seen.marker else "it has no marker"
        is_ours = seen.is_ours and seen.store is not None
        whose = "is this catalog's" if is_ours else f"is not catalog {seen.catalog}'s"
        yield mount, f"The store at {seen.where} {whose}: {found}.", is_ours


def _refuse_doubtful(mounts: Mounts, seen: Situation) -> None:
    """A store without a marker is new, unless catalog and store do not fit each other."""
    has_records = _has_records(mounts, seen.path)
    if has_records and _newest(mounts, seen.path) is not None:
        return  # somebody has taken it, and stored in it, since the marker was looked for
    if seen.has_products and not has_records:
        raise WrongStore(
            f"The store is not mounted at {seen.where}: the catalog knows products there, and the "
            "store has no records. Nothing is read or written until it is mounted again; the "
            "service then goes on by itself. If the store is lost for good: `storage-manager "
            "adopt-store`."
        )
    if has_records and not seen.is_used:
        raise WrongStore(
            f"The store at {seen.where} holds records of products, and this catalog is empty. Run "
            "`storage-manager rebuild`, which takes the store over and reads its records."
        )


def _unexpected(seen: Situation) -> str:
    """The sentence on a store that a catalog meets for the first time and may not have."""
    assert seen.marker is not None
    found = markers.describe(seen.marker)
    if seen.marker.is_readable and seen.twin is not None:
        return (
            f"The store at {seen.where} is that of mount /{seen.twin} already: {found}. Nothing "
            "is read or written there. Correct the mounts."
        )
    if not seen.is_used:
        return (
            f"The store at {seen.where} belongs to another catalog: {found}; this is catalog "
            f"{seen.catalog}, new and empty. Nothing is read or written there. If the catalog was "
            "lost, run `storage-manager rebuild`, which takes the store over and reads its "
            "records. If the store is another facility's, correct storage.mounts."
        )
    return (
        f"The store at {seen.where} belongs to another catalog: {found}; this is catalog "
        f"{seen.catalog}. Nothing is read or written there. Correct storage.mounts, or take the "
        "store over with `storage-manager adopt-store`."
    )


def _newest(mounts: Mounts, path: str) -> Marker | None:
    store = mounts.bare(path)
    names = [stat.key.rpartition("/")[2] for stat in store.list(markers.DIRECTORY)]
    return markers.newest(
        names, lambda name: read_bytes(store, f"{markers.DIRECTORY}/{name}", markers.MAX_BYTES)
    )


def _has_records(mounts: Mounts, path: str) -> bool:
    return any(
        not beneath(stat.key, markers.DIRECTORY) for stat in mounts.bare(path).list(_RECORDS)
    )


def _new_marker(store: str, catalog: str, number: int) -> Marker:
    return Marker(
        store=store,
        catalog=catalog,
        number=number,
        time=datetime.now(UTC),
        host=socket.gethostname(),
    )


def _write(mounts: Mounts, path: str, marker: Marker) -> None:
    """Put a marker; if its number is taken already, whoever reads it next sees by whom."""
    try:
        put_bytes(mounts.bare(path, make=True), marker.key, marker.model_dump_json().encode())
    except AlreadyExists:
        log.warning("somebody else was faster", extra={"object": marker.key})


def _remember(catalog: Catalog, path: str, marker: Marker) -> None:
    # Where a process of the same catalog is faster, its row says the same.
    with contextlib.suppress(IntegrityError), catalog.writing() as session:
        session.merge(Store(mount=path, store_id=marker.store, number=marker.number))


def _on_mount(mounts: Mounts, path: str) -> ColumnElement[bool]:
    """Products whose directory lies on the mount, and on no mount within it."""

    def within(mount: str) -> ColumnElement[bool]:
        # "0" follows "/" in the order of bytes.
        return or_(
            Product.directory == mount,
            and_(Product.directory >= f"{mount}/", Product.directory < f"{mount}0"),
        )

    inner = [not_(within(other)) for other in mounts.stores if other and beneath(other, path)]
    return and_(*([within(path)] if path else []), *inner, Product.pk > 0)
