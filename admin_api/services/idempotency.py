"""Idempotency-Key: a request sent again gives the answer of the first time.

Semantics of the IETF draft ``draft-ietf-httpapi-idempotency-key-header``: the same key with
another request is an error, a request still running is told as such, failures are not kept.
A fingerprint covers method, path, query, what is announced of the body, and the body itself: a
payload is digested as it passes, and a replay sends it again to be compared.
Called by the web layer around ingests.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from admin_api.catalog import clock
from admin_api.catalog.models import Idempotency
from admin_api.errors import IdempotencyConflict, InProgress, InvalidRequest
from admin_api.services.access import Principal
from admin_api.services.facility import Facility

_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_Answer = tuple[int, dict[str, Any]]
_REUSED = "This Idempotency-Key was used for another request; take a new one."


class Payload:
    """The body of a request, digested while it is read once."""

    def __init__(self, chunks: Callable[[], Iterator[bytes]]) -> None:
        self._chunks = chunks
        self._digest = hashlib.sha256()

    def read(self) -> Iterator[bytes]:
        """The bytes, digested on the way."""
        for chunk in self._chunks():
            self._digest.update(chunk)
            yield chunk

    def digest(self) -> str:
        """The digest of what was read."""
        return self._digest.hexdigest()


def once(
    facility: Facility,
    principal: Principal,
    key: str | None,
    fingerprint: str,
    action: Callable[[Callable[[], Iterator[bytes]]], _Answer],
    body: Callable[[], Iterator[bytes]] = lambda: iter(()),
) -> _Answer:
    """The kept answer (status and body) for ``key``, or that of ``action``, which is kept then.

    ``action`` is given the request's payload to read.  Raises IdempotencyConflict for another
    request or payload, InProgress while the first one runs, Forbidden where the token may not see
    any more what the answer is about, and what ``action`` raises.
    """
    if key is None:
        return action(body)
    if not _KEY.fullmatch(key):
        raise InvalidRequest("An Idempotency-Key has 1 to 200 printable ASCII characters.")
    owner, payload = uuid.uuid4().hex, Payload(body)
    with facility.heartbeat.of_owner(owner):
        kept = _claim(facility, principal.subject, key, fingerprint, owner)
        if kept is not None:
            return _replayed(principal, kept, fingerprint, payload)
        mine = (
            Idempotency.subject == principal.subject,
            Idempotency.key == key,
            Idempotency.instance == owner,
        )
        try:
            status, answer = action(payload.read)
        except BaseException:
            with facility.catalog.writing() as session:
                session.execute(delete(Idempotency).where(*mine, Idempotency.status.is_(None)))
            raise
        with facility.catalog.writing() as session:
            session.execute(
                update(Idempotency)
                .where(*mine)
                .values(
                    status=status,
                    body=answer,
                    fingerprint=f"{fingerprint}:{payload.digest()}",
                    touched_at=clock.now(),
                )
            )
    return status, answer


def _claim(
    facility: Facility, subject: str, key: str, fingerprint: str, owner: str
) -> Idempotency | None:
    """Take the key for this request, or the row that has the answer of the first one."""
    mine = (Idempotency.subject == subject, Idempotency.key == key)
    grace = timedelta(seconds=facility.settings.housekeeping.commit_grace_seconds)
    try:
        with facility.catalog.writing() as session:
            now = clock.read(session)
            row = session.scalars(select(Idempotency).where(*mine)).first()
            if row is None:
                session.execute(
                    insert(Idempotency).values(
                        subject=subject,
                        key=key,
                        fingerprint=fingerprint,
                        instance=owner,
                        touched_at=now,
                    )
                )
                return None
            if row.fingerprint.partition(":")[0] != fingerprint:
                raise IdempotencyConflict(_REUSED)
            if row.status is not None:
                return row
            taken_over = session.scalars(  # if its process is dead
                update(Idempotency)
                .where(*mine, Idempotency.instance == row.instance)
                .where(Idempotency.status.is_(None), Idempotency.touched_at <= now - grace)
                .values(instance=owner, touched_at=now)
                .returning(Idempotency.key)
                .execution_options(synchronize_session=False)
            ).first()
            if taken_over is not None:
                return None
    except IntegrityError:
        pass
    raise InProgress("The first request with this Idempotency-Key is still running.")


def _replayed(
    principal: Principal, row: Idempotency, fingerprint: str, payload: Payload
) -> _Answer:
    for _ in payload.read():
        pass
    if row.fingerprint not in (fingerprint, f"{fingerprint}:{payload.digest()}"):
        raise IdempotencyConflict(_REUSED)
    assert row.status is not None
    answer = row.body or {}
    if "mission" in answer:  # it is about a product; jobs are their subject's
        principal.require_mission(answer["mission"])
    return row.status, answer


def forget(facility: Facility, before: datetime) -> None:
    """Drop the answers that were kept long enough."""
    with facility.catalog.writing() as session:
        session.execute(delete(Idempotency).where(Idempotency.touched_at < before))
