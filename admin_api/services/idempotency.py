"""Idempotency-Key: a request sent again gives the answer of the first time.

Semantics of the IETF draft ``draft-ietf-httpapi-idempotency-key-header``: the same key with
another request is an error, a request still running is told as such, failures are not kept.
Called by the web layer around ingests.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError

from admin_api.catalog.models import Idempotency
from admin_api.errors import IdempotencyConflict, InProgress, InvalidRequest
from admin_api.services.facility import Facility

_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_Answer = tuple[int, dict[str, Any]]
#: This process, for telling requests that run from those whose process died.
_instance = uuid.uuid4().hex


def once(
    facility: Facility,
    subject: str,
    key: str | None,
    fingerprint: str,
    action: Callable[[], _Answer],
) -> _Answer:
    """The kept answer (status and body) for ``key``, or that of ``action``, which is kept then.

    Raises IdempotencyConflict for another fingerprint, InProgress while the first one runs, and
    what ``action`` raises.
    """
    if key is None:
        return action()
    if not _KEY.fullmatch(key):
        raise InvalidRequest("An Idempotency-Key has 1 to 200 printable ASCII characters.")
    kept = _claim(facility, subject, key, fingerprint)
    if kept is not None:
        return kept
    try:
        status, body = action()
    except BaseException:
        with facility.catalog.writing() as session:
            session.execute(
                delete(Idempotency).where(Idempotency.subject == subject, Idempotency.key == key)
            )
        raise
    with facility.catalog.writing() as session:
        session.execute(
            update(Idempotency)
            .where(Idempotency.subject == subject, Idempotency.key == key)
            .values(status=status, body=body, touched_at=datetime.now(UTC))
        )
    return status, body


def _claim(facility: Facility, subject: str, key: str, fingerprint: str) -> _Answer | None:
    now = datetime.now(UTC)
    stale = now - timedelta(seconds=facility.settings.housekeeping.commit_grace_seconds)
    try:
        with facility.catalog.writing() as session:
            row = session.scalars(
                select(Idempotency).where(Idempotency.subject == subject, Idempotency.key == key)
            ).first()
            if row is None:
                session.add(
                    Idempotency(
                        subject=subject,
                        key=key,
                        fingerprint=fingerprint,
                        instance=_instance,
                        touched_at=now,
                    )
                )
                return None
            if row.fingerprint != fingerprint:
                raise IdempotencyConflict(
                    "This Idempotency-Key was used for another request; take a new one."
                )
            if row.status is not None and row.body is not None:
                return row.status, row.body
            if row.touched_at > stale:
                raise InProgress("The first request with this Idempotency-Key is still running.")
            row.touched_at, row.instance = now, _instance  # its process died: taken over
            return None
    except IntegrityError:
        raise InProgress("The first request with this Idempotency-Key is still running.") from None


def beat(facility: Facility) -> None:
    """Say that the requests of this process still run; called every few seconds."""
    with facility.catalog.writing() as session:
        session.execute(
            update(Idempotency)
            .where(Idempotency.instance == _instance, Idempotency.status.is_(None))
            .values(touched_at=datetime.now(UTC))
        )
