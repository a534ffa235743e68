"""Files that are gathered into products: hours, crashes, leases, rebuilding."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from admin_api.catalog import clock, entries
from admin_api.catalog.models import LooseKey
from admin_api.errors import (
    CatalogBehind,
    InProgress,
    Leased,
    NoSpace,
    NotFound,
    StorageManagerError,
    Unavailable,
)
from admin_api.services import gathering, housekeeping, leases, lifecycle, paths, records
from admin_api.services.facility import open_facility
from admin_api.services.gathering import Piece
from admin_api.services.histories import Histories
from admin_api.services.rebuilding import rebuild
from admin_api.services.reconciliation import Finding, reconcile
from admin_api.services.records import Found, read_all
from admin_api.settings import HousekeepingSettings
from tests.conftest import stale_at_once


def _piece(facility, name: str, content: bytes) -> Piece:
    path = facility.settings.sources.file_roots[0] / name
    path.write_bytes(content)
    return Piece(name, path.as_uri())


def _read(facility, operator, key: str) -> bytes:
    located = paths.find(facility, operator, _at(facility, key))
    return b"".join(located.read(0, located.size))


def _at(facility, key: str) -> str:
    return facility.storage.uri(key).removeprefix("file://")


def test_outputs_across_a_full_hour_have_one_parent(facility, operator) -> None:
    first, files = gathering.gather(
        facility, operator, "77", [_piece(facility, "a.nc", b"a")], "2031/2/9/7/77"
    )
    second, more = gathering.gather(
        facility, operator, "77", [_piece(facility, "b.nc", b"b")], "2031/2/9/8/77"
    )
    keys = [paths.shown_key(first, files[0]), paths.shown_key(second, more[0])]
    assert keys == ["2031/2/9/7/77/a.nc", "2031/2/9/7/77/b.nc"]


def test_a_file_is_its_products_or_nobodys_if_the_store_fails(
    facility, operator, monkeypatch
) -> None:
    gathering.gather(facility, operator, "78", [_piece(facility, "a.nc", b"a")], "2031/2/9/7/78")

    def fail(*_args, **_more):
        raise NoSpace("full")

    put = facility.storage.put
    monkeypatch.setattr(facility.storage, "put", fail)
    with pytest.raises(NoSpace):
        gathering.gather(facility, operator, "78", [_piece(facility, "b.nc", b"b")], "x/78")
    monkeypatch.setattr(facility.storage, "put", put)
    with facility.catalog.reading() as session:
        assert session.scalars(select(LooseKey.key)).all() == []
    assert [stat.key for stat in facility.storage.list("2031")] == ["2031/2/9/7/78/a.nc"]


def test_what_a_dead_request_has_left_is_cleared_away(facility, operator) -> None:
    lifecycle.claim_loose(facility, "2031/2/9/7/79/late.nc", "dead")
    facility.storage.put("2031/2/9/7/79/late.nc", [b"late"])
    with facility.catalog.writing() as session:
        session.execute(update(LooseKey).values(touched_at=clock.read(session)))
    object.__setattr__(facility.settings, "housekeeping", stale_at_once())
    housekeeping.clean(facility)
    assert list(facility.storage.list("2031")) == []


def test_a_rebuilt_catalog_has_what_was_gathered_replaced_and_withdrawn(facility, operator) -> None:
    for name, content in (("a.nc", b"a"), ("b.nc", b"b"), ("c.nc", b"c"), ("b.nc", b"other")):
        product, _ = gathering.gather(
            facility, operator, "80", [_piece(facility, name, content)], "2031/2/9/7/80"
        )
    paths.erase(facility, operator, _at(facility, "2031/2/9/7/80/c.nc"))
    with facility.catalog.reading() as session:
        before = entries.files_of(session, product.pk)
    assert [(file.path, file.size) for file in before] == [("a.nc", 1), ("b.nc", 5)]
    with Histories(Path(facility.settings.state_dir)) as histories:
        for item in read_all(facility):
            assert isinstance(item, Found), item
            histories.add(item)
        claim = histories.of("a.nc").generations[0].claims[0]
        statement = histories.load(claim.deciding)
    assert [(file.path, file.key) for file in statement.files] == [
        (file.path, file.key) for file in before
    ]
    findings = [item for item in reconcile(facility, operator) if isinstance(item, Finding)]
    assert findings == []
    with facility.catalog.writing() as session:
        session.connection().exec_driver_sql("DELETE FROM file")
        session.connection().exec_driver_sql("DELETE FROM product")
    for _ in rebuild(facility):
        pass
    assert _read(facility, operator, "2031/2/9/7/80/b.nc") == b"other"
    with pytest.raises(NotFound):
        _read(facility, operator, "2031/2/9/7/80/c.nc")


def test_a_leased_product_grows_and_loses_nothing(facility, operator) -> None:
    product, _ = gathering.gather(
        facility, operator, "81", [_piece(facility, "a.nc", b"a")], "2031/2/9/7/81"
    )
    lease = leases.take(facility, operator, [product.pk], 60)
    gathering.gather(facility, operator, "81", [_piece(facility, "b.nc", b"b")], "x/81")
    with pytest.raises(Leased):
        gathering.gather(facility, operator, "81", [_piece(facility, "a.nc", b"other")], "x/81")
    with pytest.raises(Leased):
        paths.erase(facility, operator, _at(facility, "2031/2/9/7/81/b.nc"))
    leases.end(facility, operator, lease.id)
    gathering.gather(facility, operator, "81", [_piece(facility, "a.nc", b"other")], "x/81")
    assert _read(facility, operator, "2031/2/9/7/81/a.nc") == b"other"
    assert len(list(facility.storage.list("2031/2/9/7/81"))) == 2


def test_a_withdrawn_file_that_comes_again_gets_another_key(facility, operator) -> None:
    for content in (b"one", b"two"):
        for name in ("a.nc", "b.nc"):
            gathering.gather(
                facility, operator, "82", [_piece(facility, name, content)], "2031/2/9/7/82"
            )
        keys = {stat.key for stat in facility.storage.list("2031/2/9/7/82")}
        if content == b"one":
            first = keys
            paths.erase(facility, operator, _at(facility, "2031/2/9/7/82/b.nc"))
    assert not first & keys - {"2031/2/9/7/82/a.nc"}
    assert _read(facility, operator, "2031/2/9/7/82/b.nc") == b"two"


def test_a_file_whose_record_was_not_taken_is_recorded_when_it_comes_again(
    facility, operator, monkeypatch
) -> None:
    gathering.gather(facility, operator, "83", [_piece(facility, "a.nc", b"a")], "2031/2/9/7/83")
    record = records.write_next

    def fail(*_args, **_more):
        raise Unavailable("away")

    monkeypatch.setattr(records, "write_next", fail)
    with pytest.raises(StorageManagerError):
        gathering.gather(facility, operator, "83", [_piece(facility, "b.nc", b"b")], "x/83")
    monkeypatch.setattr(records, "write_next", record)
    settings = HousekeepingSettings(commit_grace_seconds=1)
    object.__setattr__(facility.settings, "housekeeping", settings)
    product, _ = gathering.gather(
        facility, operator, "83", [_piece(facility, "b.nc", b"b")], "x/83"
    )
    with facility.catalog.reading() as session:
        now = entries.product(session, product.pk)
    assert now is not None
    assert now.recorded == now.number


def test_files_from_before_this_service_can_be_read_and_deleted(facility, operator) -> None:
    facility.storage.put("2025/1/2/3/9/old.nc", [b"old"])
    assert _read(facility, operator, "2025/1/2/3/9/old.nc") == b"old"
    assert list(paths.listed(facility, operator, "2025", lambda _: True)) == ["2025/1/2/3/9/old.nc"]
    assert paths.erase(facility, operator, _at(facility, "2025/1/2/3/9/old.nc")) == [
        "2025/1/2/3/9/old.nc"
    ]
    with pytest.raises(NotFound):
        _read(facility, operator, "2025/1/2/3/9/old.nc")


def test_an_attempt_is_not_seen_by_its_path(facility, operator) -> None:
    facility.storage.put("2031/2/9/7/84/early.nc", [b"early"])
    product, _ = gathering.gather(
        facility, operator, "84", [_piece(facility, "a.nc", b"a")], "2031/2/9/7/84"
    )
    assert product.directory == "2031/2/9/7/84@2"
    assert _read(facility, operator, "2031/2/9/7/84/early.nc") == b"early"


def test_a_writer_that_was_given_up_leaves_nothing(facility, operator, monkeypatch) -> None:
    gathering.gather(facility, operator, "85", [_piece(facility, "a.nc", b"a")], "2031/2/9/7/85")
    put = facility.storage.put

    def frozen(key, chunks, size_hint=None):
        stat = put(key, chunks, size_hint)
        with facility.catalog.writing() as session:  # as housekeeping does, long after
            session.execute(delete(LooseKey).where(LooseKey.key == key))
        return stat

    monkeypatch.setattr(facility.storage, "put", frozen)
    monkeypatch.setattr(gathering, "_OTHERS_SECONDS", 0.0)
    with pytest.raises(InProgress):
        gathering.gather(facility, operator, "85", [_piece(facility, "b.nc", b"b")], "x/85")
    assert [stat.key for stat in facility.storage.list("2031")] == ["2031/2/9/7/85/a.nc"]


def _backed_up(facility) -> Path:
    copy = facility.settings.state_dir / "backup.sqlite"
    with sqlite3.connect(facility.settings.state_dir / "catalog.sqlite") as now:
        with sqlite3.connect(copy) as target:
            now.backup(target)
    return copy


def _restored(facility, copy: Path):
    """The facility over the catalog as it was."""
    facility.catalog.close()
    for path in facility.settings.state_dir.glob("catalog.sqlite*"):
        path.unlink()
    copy.rename(facility.settings.state_dir / "catalog.sqlite")
    return open_facility(facility.settings)


def test_an_older_catalog_neither_forgets_nor_outnumbers_what_was_gathered_since(
    facility, operator
) -> None:
    gathering.gather(facility, operator, "86", [_piece(facility, "a.nc", b"a")], "2031/2/9/7/86")
    copy = _backed_up(facility)
    gathering.gather(facility, operator, "86", [_piece(facility, "b.nc", b"b")], "x/86")
    older = _restored(facility, copy)
    try:
        with pytest.raises(CatalogBehind):
            gathering.gather(older, operator, "86", [_piece(older, "c.nc", b"c")], "x/86")
        for _ in rebuild(older):
            pass
        gathering.gather(older, operator, "86", [_piece(older, "c.nc", b"c")], "x/86")
        for name in ("a", "b", "c"):
            assert _read(older, operator, f"2031/2/9/7/86/{name}.nc") == name.encode()
    finally:
        older.catalog.close()


def test_an_older_catalog_that_saw_a_file_come_does_not_sweep_it(
    facility, operator, monkeypatch
) -> None:
    gathering.gather(facility, operator, "87", [_piece(facility, "a.nc", b"a")], "2031/2/9/7/87")
    put, copies = facility.storage.put, []

    def backed_up_meanwhile(key, chunks, size_hint=None):
        if key.endswith("b.nc"):
            copies.append(_backed_up(facility))
        return put(key, chunks, size_hint)

    monkeypatch.setattr(facility.storage, "put", backed_up_meanwhile)
    gathering.gather(facility, operator, "87", [_piece(facility, "b.nc", b"b")], "x/87")
    older = _restored(facility, copies[0])
    try:
        with older.catalog.reading() as session:
            assert session.scalars(select(LooseKey.key)).all() == ["2031/2/9/7/87/b.nc"]
        object.__setattr__(older.settings, "housekeeping", stale_at_once())
        housekeeping.clean(older)
        for _ in rebuild(older):
            pass
        housekeeping.clean(older)
        assert _read(older, operator, "2031/2/9/7/87/b.nc") == b"b"
    finally:
        older.catalog.close()
