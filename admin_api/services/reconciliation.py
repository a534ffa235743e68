"""Comparing the catalog with the store, safely while ingests and removals run.

Two snapshots around the listing: an object is *missing* only if its product was available before
its part of the listing was read and still is, and *unknown* only if no product, not even one that
is just being received, has it after its part of the listing was read, and it is still there then.
The listing and the catalog are walked side by side, page by page, so memory stays constant; a
service that lists in another order than the catalog costs look-ups and hides nothing, since the
catalog's ranges join and every finding is confirmed by itself.
Called by ``web/maintenance.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from admin_api.catalog.models import File, Product, State
from admin_api.errors import NotFound
from admin_api.keys import RESERVED, beneath
from admin_api.services import records
from admin_api.services.facility import Facility
from admin_api.storage.base import Stat

_PAGE = 1000
#: Clocks of several hosts may differ by so much.
_CLOCK_MARGIN = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Finding:
    """An object that the catalog and the store do not agree on."""

    kind: Literal["missing", "wrong_size", "unknown", "unregistered"]
    key: str
    size: int
    product_id: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the comparison has come."""

    objects: int
    key: str


def reconcile(facility: Facility) -> Iterator[Finding | Progress]:
    """Every disagreement, with progress in between."""
    count, after = 0, ""
    listing = (stat for stat in facility.storage.list() if not _is_own(facility, stat.key))
    while True:
        begun = datetime.now(UTC) - _CLOCK_MARGIN
        page = list(islice(listing, _PAGE))
        upto = page[-1].key if len(page) == _PAGE else None
        yield from _compare(facility, page, after, upto, begun)
        count += len(page)
        if upto is None:
            break
        after = upto
        yield Progress(count, upto)
    yield from _unregistered(facility)
    yield Progress(count, "")


def _is_own(facility: Facility, key: str) -> bool:
    mount = facility.storage.mount_of(key)
    return key[len(mount) :].lstrip("/").split("/")[0] in RESERVED


def _compare(
    facility: Facility, page: Sequence[Stat], after: str, upto: str | None, begun: datetime
) -> Iterator[Finding]:
    listed = {stat.key: stat for stat in page}
    with facility.catalog.reading() as session:
        # Read before the files: an attempt that commits in between is found among them.
        receiving = _receiving(session)
        known = _known(session, after, upto)
    for key, (file, product) in known.items():
        stat = listed.pop(key, None)
        if product.state != State.AVAILABLE:
            continue
        if stat is None and product.available_at and product.available_at < begun:
            if _is_missing(facility, file):
                yield Finding("missing", key, file.size, product.id)
        elif stat is not None and stat.size != file.size:
            yield Finding("wrong_size", key, stat.size, product.id)
    for key, stat in listed.items():
        if not any(beneath(key, directory) for directory in receiving) and _is_unknown(
            facility, key
        ):
            yield Finding("unknown", key, stat.size)


def _receiving(session: Session) -> set[str]:
    """Directories of attempts that are under way or being cleared."""
    return set(
        session.scalars(
            select(Product.directory).where(
                Product.state.in_((State.RECEIVING, State.COMMITTING, State.REMOVING))
            )
        )
    )


def _known(session: Session, after: str, upto: str | None) -> dict[str, tuple[File, Product]]:
    query = (
        select(File, Product)
        .join(Product, Product.pk == File.product_pk)
        .where(File.key > after)
        .order_by(File.key)
    )
    if upto is not None:
        query = query.where(File.key <= upto)
    return {file.key: (file, product) for file, product in session.execute(query)}


def _is_missing(facility: Facility, file: File) -> bool:
    with contextlib.suppress(NotFound):
        facility.storage.stat(file.key)
        return False
    with facility.catalog.reading() as session:
        product = session.get(Product, file.product_pk)
        return product is not None and product.state == State.AVAILABLE


def _is_unknown(facility: Facility, key: str) -> bool:
    try:
        facility.storage.stat(key)
    except NotFound:
        return False
    with facility.catalog.reading() as session:
        known = session.scalars(select(File.key).where(File.key == key)).first()
        return known is None and not any(
            beneath(key, directory) for directory in _receiving(session)
        )


def _unregistered(facility: Facility) -> Iterator[Finding]:
    """Records that the catalog does not know; `storage-manager rebuild` takes them in."""
    for mount, statement in records.read_all(facility):
        with facility.catalog.reading() as session:
            row = session.scalars(
                select(Product).where(
                    Product.name == statement.name, Product.generation == statement.generation
                )
            ).first()
        unsettled = row is not None and row.state in (State.COMMITTING, State.REMOVING)
        if not unsettled and (row is None or row.number < statement.number):
            key = records.key_of(mount, statement)
            yield Finding("unregistered", key, len(statement.line()), statement.id)
