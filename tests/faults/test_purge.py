"""Removing many at once: what cannot go stays and is told, and the store is asked seldom."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, text, update

from admin_api.catalog import usage
from admin_api.catalog.models import Product
from admin_api.errors import Denied
from admin_api.services import housekeeping, reconciliation, removal, uploads
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.rebuilding import rebuild
from admin_api.services.wishes import Expected, Wish
from admin_api.storage.mounts import Mounts
from tests.conftest import make_facility


def put(facility: Facility, who: Principal, name: str) -> None:
    uploads.receive(facility, who, Wish(name), iter([b"x"]), Expected(1), None)


def expire(facility: Facility) -> None:
    """Let the retention of every product end."""
    with facility.catalog.writing() as session:
        session.execute(
            update(Product).values(retention_until=datetime.now(UTC) - timedelta(days=1))
        )


def purged(facility: Facility, who: Principal) -> dict[str, str]:
    return {item.name: item.state for item in removal.purge(facility, who, dry_run=False)}


def test_what_the_store_does_not_let_go_is_told_and_the_others_go(
    facility: Facility, operator: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        put(facility, operator, f"p{number}")
    expire(facility)
    true = Mounts.delete_many

    def refuses_one(self: Mounts, keys: Any) -> int:
        keys = list(keys)
        if any("p3" in key for key in keys):
            raise Denied("Not this one.")
        return true(self, keys)

    monkeypatch.setattr(Mounts, "delete_many", refuses_one)
    states = purged(facility, operator)
    assert states == {f"p{number}": "removing" if number == 3 else "removed" for number in range(6)}
    monkeypatch.undo()
    with facility.catalog.writing() as session:
        session.execute(update(Product).values(touched_at=datetime.now(UTC) - timedelta(days=9)))
    assert housekeeping.clean(facility).finished == 1
    assert [stat.key for stat in facility.storage.list("unsorted")] == []
    with facility.catalog.reading() as session:
        assert usage.differences(session) == []


def test_a_rebuilt_catalog_knows_what_was_purged(facility: Facility, operator: Principal) -> None:
    for number in range(5):
        put(facility, operator, f"p{number}")
    expire(facility)
    assert set(purged(facility, operator).values()) == {"removed"}
    found = list(reconciliation.reconcile(facility, operator))
    assert [item for item in found if isinstance(item, reconciliation.Finding)] == []
    with facility.catalog.writing() as session:
        session.execute(delete(Product))
        session.execute(text("UPDATE usage SET products = 17"))
    list(rebuild(facility))
    with facility.catalog.reading() as session:
        states = session.execute(text("SELECT state, removed_cause FROM product")).all()
        assert [tuple(row) for row in states] == [("removed", "retention ended")] * 5
        assert usage.differences(session) == []


def test_a_purge_lists_once_and_syncs_once_for_each_directory(
    tmp_path: Path, operator: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    facility = make_facility(tmp_path, {"type": "posix", "root": tmp_path / "store"})
    for number in range(30):
        put(facility, operator, f"p{number}")
    expire(facility)
    listed, synced = [], []
    true_list, true_sync = Mounts.list, os.fsync
    monkeypatch.setattr(
        Mounts, "list", lambda self, *args: listed.append(args) or true_list(self, *args)
    )
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(fd) or true_sync(fd))
    assert len(purged(facility, operator)) == 30
    assert len(listed) == 1
    assert len(synced) <= 30 + 5  # each product's own directory, and the record's
    facility.catalog.close()
