"""Leases: products, and what is staged of them, stay while somebody works with them.

A lease is rows in the catalog with a time at which it ends by itself; whoever still needs it renews
it.  While it lasts nothing removes or replaces its products (promise I11, ``lifecycle``) and the
staging cache keeps their files (``stage_cache``).  Called by ``staging``, ``web/staging.py`` and
housekeeping.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from admin_api.catalog import clock
from admin_api.catalog.models import Lease, LeasedProduct, Product
from admin_api.errors import InProgress, InvalidRequest, NotFound
from admin_api.services import lifecycle
from admin_api.services.access import Principal
from admin_api.services.facility import Facility


@dataclass(frozen=True, slots=True)
class LeaseEntry:
    """A lease: whose it is, until when, and the ids of its products."""

    id: str
    subject: str
    created_at: datetime
    expires_at: datetime
    products: Sequence[str]


def take(
    facility: Facility, principal: Principal, pks: Sequence[int], seconds: int | None
) -> LeaseEntry:
    """A lease on generations of products for ``seconds`` (None: as the settings say).

    Raises InvalidRequest for longer than the settings allow, InProgress where one of the products
    is being removed or replaced.
    """
    lifetime = _lifetime(facility, seconds)
    lease_id = uuid.uuid4().hex
    with facility.catalog.writing() as session:
        now = clock.read(session)
        stay = lifecycle.lease(session, pks, now + lifetime)
        if len(stay) != len(set(pks)):
            raise InProgress("A product is being removed or replaced; look at it again.")
        session.execute(
            insert(Lease).values(
                id=lease_id,
                subject=principal.subject,
                created_at=now,
                expires_at=now + lifetime,
            )
        )
        session.execute(
            insert(LeasedProduct), [{"lease_id": lease_id, "product_pk": pk} for pk in set(pks)]
        )
    names = sorted(product.id for product in stay)
    return LeaseEntry(lease_id, principal.subject, now, now + lifetime, names)


def show(facility: Facility, principal: Principal, lease_id: str) -> LeaseEntry:
    """A lease that has not ended; raises NotFound, also for the leases of others."""
    with facility.catalog.reading() as session:
        return _find(session, principal, lease_id)


def renew(
    facility: Facility, principal: Principal, lease_id: str, seconds: int | None
) -> LeaseEntry:
    """Let a lease last for ``seconds`` from now; errors as ``take`` and ``show``."""
    lifetime = _lifetime(facility, seconds)
    with facility.catalog.writing() as session:
        _find(session, principal, lease_id)
        until = clock.read(session) + lifetime
        session.execute(
            update(Lease).where(Lease.id == lease_id).values(expires_at=until),
            execution_options={"synchronize_session": False},
        )
        pks = _pks(session, lease_id)
        lifecycle.lease(session, pks, until)
        lifecycle.unlease(session, pks)
        return _find(session, principal, lease_id)


def end(facility: Facility, principal: Principal, lease_id: str) -> None:
    """End a lease now; errors as ``show``."""
    with facility.catalog.writing() as session:
        _find(session, principal, lease_id)
        pks = _pks(session, lease_id)
        session.execute(delete(Lease).where(Lease.id == lease_id))
        lifecycle.unlease(session, pks)


def forget(facility: Facility, at_once: int) -> int:
    """Drop the rows of leases that have ended; returns how many."""
    with facility.catalog.writing() as session:
        over = session.scalars(
            select(Lease.id).where(Lease.expires_at <= clock.now()).limit(at_once)
        ).all()
        session.execute(delete(Lease).where(Lease.id.in_(over)))
    return len(over)


def _lifetime(facility: Facility, seconds: int | None) -> timedelta:
    settings = facility.settings.staging
    wanted = settings.lease_seconds if seconds is None else seconds
    if wanted > settings.max_lease_seconds:
        raise InvalidRequest(
            f"A lease may last {settings.max_lease_seconds} seconds; renew it for longer."
        )
    return timedelta(seconds=min(wanted, settings.max_lease_seconds))


def _find(session: Session, principal: Principal, lease_id: str) -> LeaseEntry:
    row = session.execute(
        select(Lease.id, Lease.subject, Lease.created_at, Lease.expires_at).where(
            Lease.id == lease_id, Lease.expires_at > clock.now()
        )
    ).first()
    if row is None or (row.subject != principal.subject and not principal.is_admin):
        raise NotFound(f"There is no lease {lease_id!r}, or it has ended.")
    names = session.scalars(
        select(Product.id)
        .join(LeasedProduct, LeasedProduct.product_pk == Product.pk)
        .where(LeasedProduct.lease_id == lease_id)
        .order_by(Product.id)
    ).all()
    return LeaseEntry(row.id, row.subject, row.created_at, row.expires_at, names)


def _pks(session: Session, lease_id: str) -> Sequence[int]:
    return session.scalars(
        select(LeasedProduct.product_pk).where(LeasedProduct.lease_id == lease_id)
    ).all()
