"""What is acknowledged stays: forced interleavings of services, housekeepers and old catalogs.

The interleavings are made by hooks at the place where the other one acts, never by waiting.
"""

from __future__ import annotations

import dataclasses
import datetime as real_datetime
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select, update

from admin_api.catalog import clock, entries
from admin_api.catalog.models import File, FileClaim, Product
from admin_api.catalog.queries import EventFilter
from admin_api.errors import (
    CatalogUnavailable,
    Forbidden,
    Held,
    InProgress,
    InvalidRequest,
    ProductExists,
    TooLarge,
    Unavailable,
)
from admin_api.products.records import Statement
from admin_api.services import (
    housekeeping,
    idempotency,
    lifecycle,
    listing,
    rebuilding,
    reception,
    records,
    removal,
    session_files,
    uploads,
)
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.removal import Keeping
from admin_api.services.wishes import Expected, Policy, Wish
from admin_api.storage.base import read_bytes
from tests.conftest import make_facility, stale_at_once

INGESTER = Principal("ingester", frozenset(["ingest"]), None)


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request, tmp_path: Path) -> Iterator[Facility]:
    """A facility on a directory, with each database; leftovers are stale at once."""
    catalog = {}
    if request.param == "postgresql":
        server = request.getfixturevalue("database")
        catalog = {
            "url": server.url(server.new_database()),
            "password_file": server.password_file,
        }
    made = make_facility(
        tmp_path,
        {"type": "posix", "root": tmp_path / "store"},
        catalog=catalog,
        housekeeping=stale_at_once(failed_seconds=1e-6),
    )
    yield made
    made.catalog.close()


def put(facility: Facility, who: Principal, name: str, data: bytes, **wish) -> object:
    return uploads.receive(
        facility, who, Wish(name, **wish), iter([data]), Expected(len(data)), None
    ).product


def rows(facility: Facility, name: str) -> list[entries.ProductEntry]:
    with facility.catalog.reading() as session:
        query = entries.products().where(Product.name == name).order_by(Product.generation)
        return entries.all_of(entries.ProductEntry, session, query)


def content(facility: Facility, who: Principal, product_id: str) -> bytes:
    _, files = listing.get_product(facility, who, product_id)
    return b"".join(read_bytes(facility.storage, file.key) for file in files)


def recorded(facility: Facility, name: str) -> list[Statement]:
    """What the store says of a product."""
    found = [item for item in records.read_all(facility) if isinstance(item, records.Found)]
    return [item.statement for item in found if item.statement.name == name]


def failing_put(facility: Facility, who: Principal, name: str) -> None:
    with pytest.raises(Exception):
        uploads.receive(facility, who, Wish(name), iter([b"x"]), Expected(2), None)


def events_of(facility: Facility, who: Principal, kind: str, product_id: str) -> int:
    found = listing.list_events(facility, who, EventFilter(), 1000)
    return sum(item.kind == kind and item.product_id == product_id for item in found)


def meanwhile(monkeypatch, owner: object, name: str, other: Callable[[], object]) -> list[object]:
    """Let ``other`` run once, just before ``owner.name`` is called for the first time."""
    original = getattr(owner, name)
    done: list[object] = []

    def hooked(*args, **kwargs):
        if not done:
            done.append(None)
            done[0] = other()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, hooked)
    return done


# -- old catalogs --------------------------------------------------------------------------------
def backup(facility: Facility, to: Path) -> None:
    source = sqlite3.connect(facility.settings.catalog.url.removeprefix("sqlite:///"))
    with sqlite3.connect(to) as target:
        source.backup(target)
    source.close()


def older(facility: Facility, copy: Path, directory: Path) -> Facility:
    """The same facility with the catalog that ``copy`` is."""
    settings = facility.settings.model_copy(
        update={
            "catalog": facility.settings.catalog.model_copy(update={"url": f"sqlite:///{copy}"})
        }
    )
    from admin_api.services.facility import open_facility

    return open_facility(settings)


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Facility]:
    made = make_facility(
        tmp_path,
        {"type": "posix", "root": tmp_path / "store"},
        housekeeping=stale_at_once(failed_seconds=1e-6),
    )
    yield made
    made.catalog.close()


@pytest.mark.parametrize("way", ["upload", "session"])
def test_a_product_committed_after_the_backup_survives_housekeeping_on_the_restored_catalog(
    embedded: Facility, operator, tmp_path: Path, way: str
) -> None:
    copy = tmp_path / "older.sqlite"
    if way == "upload":

        def body() -> Iterator[bytes]:
            backup(embedded, copy)  # the attempt is begun, nothing has arrived
            yield b"acknowledged"

        done = uploads.receive(embedded, operator, Wish("late"), body(), Expected(), None).product
    else:
        session = uploads.begin(embedded, operator, Wish("late"))
        uploads.receive_file(
            embedded, operator, session.upload.id, "late", iter([b"acknowledged"]), Expected()
        )
        backup(embedded, copy)
        done = uploads.commit(embedded, operator, session.upload.id).product
    with sqlite3.connect(copy) as old:
        assert old.execute("SELECT state FROM product").fetchall() == [("receiving",)]
        old.execute("UPDATE upload SET expires_at = '2020-01-01 00:00:00.000000'")
    restored = older(embedded, copy, tmp_path)
    housekeeping.clean(restored)
    housekeeping.clean(restored)
    assert content(restored, operator, done.id) == b"acknowledged"
    restored.catalog.close()


def test_numbers_that_the_store_knows_and_a_restored_catalog_does_not_make_no_mixed_product(
    embedded: Facility, operator, tmp_path: Path
) -> None:
    copy = tmp_path / "older.sqlite"
    backup(embedded, copy)
    put(embedded, operator, "twice", b"first life", product_id="same")
    removal.remove(embedded, operator, "same", "test")
    restored = older(embedded, copy, tmp_path)
    with pytest.raises(Exception) as refused:
        put(restored, operator, "twice", b"second life", product_id="same")
    assert refused.value.code == "catalog_behind"
    assert "rebuild" in refused.value.detail
    again = put(restored, operator, "twice", b"second life", product_id="same")
    assert again.generation == 2
    assert content(restored, operator, again.id) == b"second life"
    restored.catalog.close()


def test_what_only_the_store_knows_is_neither_written_to_nor_cleared_by_an_older_catalog(
    embedded: Facility, operator, tmp_path: Path
) -> None:
    copy = tmp_path / "older.sqlite"
    backup(embedded, copy)
    done = put(embedded, operator, "unknown", b"acknowledged")
    restored = older(embedded, copy, tmp_path)
    failing_put(restored, operator, "unknown")
    put(restored, operator, "newest", b"its row stays")
    housekeeping.clean(restored)
    for _ in rebuilding.rebuild(restored):
        pass
    assert content(restored, operator, done.id) == b"acknowledged"
    restored.catalog.close()


def test_a_commit_after_the_look_at_the_store_keeps_its_bytes_though_the_attempt_is_given_up(
    embedded: Facility, operator, tmp_path: Path, monkeypatch
) -> None:
    copy = tmp_path / "older.sqlite"
    upload = uploads.begin(embedded, operator, Wish("late")).upload.id
    backup(embedded, copy)
    with sqlite3.connect(copy) as old:
        old.execute("UPDATE upload SET expires_at = '2020-01-01 00:00:00.000000'")
    restored = older(embedded, copy, tmp_path)

    def commit() -> str:
        send(embedded, operator, upload, "late", b"acknowledged")
        return uploads.commit(embedded, operator, upload).product.id

    done = meanwhile(monkeypatch, lifecycle.transitions, "give_up", commit)
    housekeeping.clean(restored)
    for _ in rebuilding.rebuild(restored):
        pass
    assert content(restored, operator, done[0]) == b"acknowledged"
    restored.catalog.close()


# -- two housekeepers ----------------------------------------------------------------------------
def test_a_housekeeper_that_is_late_sweeps_no_product_that_came_meanwhile(
    either: Facility, operator, monkeypatch
) -> None:
    failing_put(either, operator, "again")
    put(either, operator, "another", b"the newest row stays")
    made: list[object] = []

    def other() -> None:
        lifecycle.forget(either, *_long_from_now(either))
        made.append(put(either, operator, "again", b"acknowledged"))

    meanwhile(monkeypatch, lifecycle.removing, "clear", other)
    lifecycle.forget(either, *_long_from_now(either))
    assert made[0].generation == 2
    assert content(either, operator, made[0].id) == b"acknowledged"


def test_a_failed_attempt_that_turned_out_to_be_a_product_meanwhile_is_not_forgotten(
    either: Facility, operator, monkeypatch
) -> None:
    failing_put(either, operator, "again")
    put(either, operator, "another", b"the newest row stays")

    def taken_in() -> None:  # as by a rebuild
        values = {"state": "available", "available_at": clock.now()}
        with either.catalog.writing() as session:
            session.execute(update(Product).where(Product.name == "again").values(**values))

    meanwhile(monkeypatch, lifecycle.removing, "clear", taken_in)
    assert lifecycle.forget(either, *_long_from_now(either)) == 0
    assert [row.state for row in rows(either, "again")] == ["available"]


def test_an_attempt_that_gives_a_sign_of_life_after_the_look_is_not_given_up(
    either: Facility, operator, monkeypatch
) -> None:
    def body() -> Iterator[bytes]:
        yield b"a"
        (row,) = rows(either, "slow")
        stale = row.touched_at + real_datetime.timedelta(microseconds=1)
        meanwhile(monkeypatch, lifecycle.settling, "take_in", either.heartbeat.beat)
        assert not lifecycle.expire(either, row, "no sign of life", stale)
        yield b"b"

    product = uploads.receive(either, operator, Wish("slow"), body(), Expected(), None).product
    assert content(either, operator, product.id) == b"ab"


def _long_from_now(facility: Facility) -> tuple[real_datetime.datetime, int]:
    return real_datetime.datetime.now(real_datetime.UTC) + real_datetime.timedelta(days=1), 100


def test_generations_and_rows_are_never_numbered_twice(either: Facility, operator) -> None:
    seen: set[tuple[str, int]] = set()
    keys: set[int] = set()
    for _ in range(4):
        failing_put(either, operator, "numbered")
        (row,) = rows(either, "numbered")
        assert (row.name, row.generation) not in seen
        assert row.pk not in keys
        seen.add((row.name, row.generation))
        keys.add(row.pk)
        failing_put(either, operator, "filler")  # the newest row is not forgotten
        lifecycle.forget(either, *_long_from_now(either))
        assert rows(either, "numbered") == []
    assert [item[1] for item in sorted(seen)] == [1, 2, 3, 4]


def test_two_housekeepers_that_finish_one_removal_write_one_record(
    either: Facility, operator, monkeypatch
) -> None:
    product = put(either, operator, "removed-once", b"x")
    meanwhile(
        monkeypatch,
        lifecycle.removing,
        "_record_removal",
        lambda: lifecycle.finish(either, product.pk),
    )
    removal.remove(either, operator, product.id, "test")
    (row,) = rows(either, "removed-once")
    assert (row.state, row.number) == ("removed", 2)
    lines = [item.state for item in recorded(either, "removed-once")]
    assert sorted(lines) == ["available", "removed"]


# -- one product, two requests -------------------------------------------------------------------
def test_a_hold_is_not_lost_to_a_retention_change_at_the_same_time(
    either: Facility, operator, monkeypatch
) -> None:
    product = put(either, operator, "kept", b"x")
    until = real_datetime.datetime(2999, 1, 1, tzinfo=real_datetime.UTC)
    meanwhile(
        monkeypatch,
        records,
        "write_next",
        lambda: removal.keep(
            either, operator, product.id, Keeping(change_retention=True, retention_until=until)
        ),
    )
    removal.keep(either, operator, product.id, Keeping(change_hold=True, hold_reason="review"))
    (row,) = rows(either, "kept")
    assert (row.hold_reason, row.retention_until) == ("review", until)
    assert row.recorded == row.number == 3
    newest = max(
        recorded(either, "kept"),
        key=lambda item: item.number,
    )
    assert (newest.hold_reason, newest.retention_until) == ("review", until)


def test_of_a_hold_and_a_removal_at_once_one_wins_in_catalog_and_store(
    either: Facility, operator
) -> None:
    for number in range(20):
        product = put(either, operator, f"contended-{number}", b"x")

        def hold(product=product) -> bool:
            try:
                removal.keep(
                    either, operator, product.id, Keeping(change_hold=True, hold_reason="mine")
                )
            except (InProgress, InvalidRequest):
                return False
            return True

        def remove(product=product) -> bool:
            try:
                return removal.remove(either, operator, product.id, "test").state == "removed"
            except Held:
                return False

        with ThreadPoolExecutor(2) as pool:
            held, removed = (item.result() for item in (pool.submit(hold), pool.submit(remove)))
        (row,) = rows(either, product.name)
        assert row.state == ("removed" if removed else "available")
        assert held or removed
        if not removed:
            assert row.hold_reason == "mine"
        states = {item.number: item.state for item in recorded(either, product.name)}
        assert states[max(states)] == ("removed" if removed else "available")
        assert events_of(either, operator, "product.removed", product.id) == removed


def test_a_product_removed_by_eight_at_once_is_removed_once(either: Facility, operator) -> None:
    product = put(either, operator, "popular", b"x")
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda _: removal.remove(either, operator, product.id, "test"), range(8))
        )
    assert {item.state for item in found} <= {"removing", "removed"}
    assert events_of(either, operator, "product.removed", product.id) == 1
    assert rows(either, "popular")[0].state == "removed"


def test_a_product_about_to_be_replaced_cannot_be_held_any_more(
    either: Facility, operator, monkeypatch
) -> None:
    product = put(either, operator, "replaced", b"old")

    def hold() -> object:
        with pytest.raises(InProgress):
            removal.keep(
                either, operator, product.id, Keeping(change_hold=True, hold_reason="too late")
            )
        return True

    done = meanwhile(monkeypatch, lifecycle.promoting, "promote", hold)
    newer = put(either, operator, "replaced", b"new", policy=Policy.REPLACE)
    assert done == [True]
    assert content(either, operator, newer.id) == b"new"


def test_a_row_that_is_another_attempts_by_now_is_not_committed(
    either: Facility, operator, monkeypatch
) -> None:
    """So it is after an older catalog came back: rows are given anew, marks never are."""

    def given_anew() -> None:
        with either.catalog.writing() as session:
            session.execute(update(Product).where(Product.name == "anew").values(attempt="f" * 32))

    meanwhile(monkeypatch, lifecycle, "commit", given_anew)
    with pytest.raises(InProgress):
        put(either, operator, "anew", b"x")
    (row,) = rows(either, "anew")
    assert (row.state, row.attempt) == ("receiving", "f" * 32)


def test_a_record_that_could_not_be_read_back_is_not_written(
    either: Facility, operator, monkeypatch
) -> None:
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 100)
    with pytest.raises(TooLarge, match="The record of 'many-files'.*100 are allowed"):
        put(either, operator, "many-files", b"x")
    assert recorded(either, "many-files") == []
    assert [row.state for row in rows(either, "many-files") if row.available_at] == []


def test_a_product_held_while_its_replacement_was_on_its_way_is_not_replaced(
    either: Facility, operator, monkeypatch
) -> None:
    product = put(either, operator, "held-late", b"old")
    keeping = Keeping(change_hold=True, hold_reason="just in time")
    # As late as can be: PostgreSQL lets others write in the middle of a commit, SQLite does not.
    sqlite = either.settings.catalog.url.startswith("sqlite")
    meanwhile(
        monkeypatch,
        *((lifecycle, "commit") if sqlite else (lifecycle.committing, "_succeed")),
        lambda: removal.keep(either, operator, product.id, keeping),
    )
    with pytest.raises((Held, InProgress)):
        put(either, operator, "held-late", b"new", policy=Policy.REPLACE)
    assert content(either, operator, product.id) == b"old"
    assert rows(either, "held-late")[0].state == "available"


def test_a_product_held_after_the_look_at_it_is_not_removed(
    either: Facility, operator, monkeypatch
) -> None:
    product = put(either, operator, "held-after", b"old")
    keeping = Keeping(change_hold=True, hold_reason="just in time")
    meanwhile(
        monkeypatch,
        lifecycle,
        "remove",
        lambda: removal.keep(either, operator, product.id, keeping),
    )
    with pytest.raises(Held):
        removal.remove(either, operator, product.id, "test")
    assert content(either, operator, product.id) == b"old"


def test_a_change_that_could_not_be_recorded_is_recorded_by_housekeeping(
    either: Facility, operator, monkeypatch
) -> None:
    product = put(either, operator, "unrecorded", b"x")

    def full(*_args, **_kwargs):
        from admin_api.errors import NoSpace

        raise NoSpace("The store is full.")

    monkeypatch.setattr(records, "write_next", full)
    with pytest.raises(Exception, match="full"):
        removal.keep(either, operator, product.id, Keeping(change_hold=True, hold_reason="firm"))
    monkeypatch.undo()
    assert rows(either, "unrecorded")[0].hold_reason == "firm"
    housekeeping.clean(either)
    newest = max(
        recorded(either, "unrecorded"),
        key=lambda item: item.number,
    )
    assert newest.hold_reason == "firm"


def test_a_commit_whose_outcome_is_not_known_keeps_its_bytes_until_it_is(
    either: Facility, operator, monkeypatch
) -> None:
    """The record was put, its answer got lost, and then the store was away."""
    real = records.write

    def put_and_lost(*args) -> None:
        real(*args)
        monkeypatch.setattr(records, "write", away)
        raise Unavailable("The answer got lost.")

    def away(*_args) -> None:
        raise Unavailable("The store is away.")

    monkeypatch.setattr(records, "write", put_and_lost)
    with pytest.raises(Unavailable):
        put(either, operator, "unsure", b"whole")
    monkeypatch.undo()
    assert [row.state for row in rows(either, "unsure")] == ["committing"]
    housekeeping.clean(either)
    (row,) = rows(either, "unsure")
    assert row.state == "available"
    assert content(either, operator, row.id) == b"whole"


# -- clocks and signs of life --------------------------------------------------------------------
def test_a_clock_one_hour_ahead_gives_up_nothing_that_is_alive(
    database, tmp_path: Path, operator, monkeypatch
) -> None:
    facility = make_facility(
        tmp_path,
        {"type": "posix", "root": tmp_path / "store"},
        catalog={
            "url": database.url(database.new_database()),
            "password_file": database.password_file,
        },
        housekeeping={"grace_seconds": 600.0},
    )

    class Ahead(real_datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return real_datetime.datetime.now(tz) + real_datetime.timedelta(hours=1)

    def body() -> Iterator[bytes]:
        yield b"before "
        for module in (housekeeping, lifecycle.giving_up, lifecycle.loose, reception, uploads):
            monkeypatch.setattr(module, "datetime", Ahead, raising=False)
        housekeeping.clean(facility)
        yield b"after"

    done = uploads.receive(facility, operator, Wish("timely"), body(), Expected(), None)
    assert content(facility, operator, done.product.id) == b"before after"
    facility.catalog.close()


def test_an_ingest_whose_source_is_silent_for_long_is_kept_alive(
    either: Facility, operator
) -> None:
    def body() -> Iterator[bytes]:
        (row,) = rows(either, "silent")
        before = row.touched_at
        either.heartbeat.beat()
        assert rows(either, "silent")[0].touched_at > before
        yield b"x"

    uploads.receive(either, operator, Wish("silent"), body(), Expected(), None)


def test_work_that_waits_gives_signs_of_life_by_itself_and_oftener_than_the_grace_times(
    tmp_path: Path, operator
) -> None:
    grace = {"grace_seconds": 2.0, "commit_grace_seconds": 1.0}
    facility = make_facility(
        tmp_path, {"type": "posix", "root": tmp_path / "store"}, housekeeping=grace
    )

    def body() -> Iterator[bytes]:
        before = rows(facility, "waiting")[0].touched_at
        until = time.monotonic() + 60
        while rows(facility, "waiting")[0].touched_at == before and time.monotonic() < until:
            time.sleep(0.05)
        assert rows(facility, "waiting")[0].touched_at > before
        yield b"x"

    uploads.receive(facility, operator, Wish("waiting"), body(), Expected(), None)
    assert facility.heartbeat.beat_seconds <= 0.25
    facility.catalog.close()


def test_a_frozen_ingest_that_was_given_up_meanwhile_commits_nothing(
    either: Facility, operator
) -> None:
    def body() -> Iterator[bytes]:
        yield b"x"
        housekeeping.clean(either)  # it was frozen for longer than the grace time
        yield b"y"

    with pytest.raises((InProgress, Unavailable)):  # the temporary file is gone, too
        uploads.receive(either, operator, Wish("frozen"), body(), Expected(), None)
    assert [row.state for row in rows(either, "frozen")] == ["removed"]
    assert [stat.key for stat in either.storage.list("unsorted")] == []


def forgotten(facility: Facility, who: Principal, name: str) -> None:
    """The attempt was given up, and so long ago that its row is gone, too."""
    (attempt,) = rows(facility, name)
    assert lifecycle.expire(facility, attempt, "no sign of life", None)
    failing_put(facility, who, "filler")  # the newest row is not forgotten
    lifecycle.forget(facility, *_long_from_now(facility))
    assert rows(facility, name) == []


def test_an_ingest_that_wakes_up_when_nobody_remembers_it_takes_its_bytes_with_it(
    either: Facility, operator
) -> None:
    def body() -> Iterator[bytes]:
        yield b"x"
        forgotten(either, operator, "late")
        yield b"y"

    with pytest.raises(InProgress):
        uploads.receive(either, operator, Wish("late"), body(), Expected(), None)
    assert [stat.key for stat in either.storage.list("unsorted")] == []


def test_a_sessions_file_that_arrives_when_nobody_remembers_the_session_goes(
    either: Facility, operator
) -> None:
    session = uploads.begin(either, operator, Wish("late"))

    def body() -> Iterator[bytes]:
        forgotten(either, operator, "late")
        yield b"x"

    with pytest.raises(InProgress):
        uploads.receive_file(either, operator, session.upload.id, "late", body(), Expected())
    assert [stat.key for stat in either.storage.list("unsorted")] == []


def test_bytes_of_a_late_attempt_that_a_rebuilt_catalog_knows_as_a_product_stay(
    either: Facility, operator
) -> None:
    product = put(either, operator, "rebuilt", b"acknowledged")
    with either.catalog.reading() as session:
        (file,) = entries.files_of(session, product.pk)
    unknown = dataclasses.replace(product, pk=product.pk + 1000)  # as in another catalog
    lifecycle.discard(either, unknown, operator.actor, "test", [file.key])
    assert content(either, operator, product.id) == b"acknowledged"


def test_what_began_earlier_and_commits_later_is_the_newer_generation(
    either: Facility, operator
) -> None:
    """And nothing of the name or of housekeeping hangs on the order."""
    session = uploads.begin(either, operator, Wish("overtaken", policy=Policy.REPLACE))
    uploads.receive_file(
        either, operator, session.upload.id, "overtaken", iter([b"late"]), Expected(4)
    )
    first = put(either, operator, "overtaken", b"early", policy=Policy.REPLACE)
    done = uploads.commit(either, operator, session.upload.id)
    assert (done.result, done.product.id) == ("replaced", first.id)
    assert done.product.generation > first.generation
    assert content(either, operator, first.id) == b"late"
    housekeeping.clean(either)
    states = {row.generation: row.state for row in rows(either, "overtaken")}
    assert states == {first.generation: "removed", done.product.generation: "available"}
    assert put(either, operator, "overtaken", b"last", policy=Policy.REPLACE)


def test_an_older_catalog_finds_a_product_that_was_committed_under_other_numbers(
    embedded: Facility, operator, tmp_path: Path
) -> None:
    copy = tmp_path / "older.sqlite"
    session = uploads.begin(embedded, operator, Wish("moved", policy=Policy.REPLACE))
    uploads.receive_file(
        embedded, operator, session.upload.id, "moved", iter([b"late"]), Expected(4)
    )
    backup(embedded, copy)
    put(embedded, operator, "moved", b"early", policy=Policy.REPLACE)
    done = uploads.commit(embedded, operator, session.upload.id).product
    with sqlite3.connect(copy) as old:
        old.execute("UPDATE upload SET expires_at = '2020-01-01 00:00:00.000000'")
    restored = older(embedded, copy, tmp_path)
    housekeeping.clean(restored)
    housekeeping.clean(restored)
    assert content(restored, operator, done.id) == b"late"
    restored.catalog.close()


# -- upload sessions -----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["posix", "s3"])
def test_of_two_requests_for_one_path_of_a_session_one_stores_and_the_other_is_refused(
    kind: str, request, tmp_path: Path, operator
) -> None:
    backend = {"type": "posix", "root": tmp_path / "store"}
    if kind == "s3":
        backend = request.getfixturevalue("s3_server").backend()
    facility = make_facility(tmp_path, backend)
    for number in range(3):
        session = uploads.begin(facility, operator, Wish(f"raced-{number}"))
        gate = threading.Barrier(2)

        def send(fill: bytes, session=session, gate=gate) -> bytes | None:
            gate.wait()
            body = (fill * (1 << 20) for _ in range(6))
            try:
                uploads.receive_file(
                    facility, operator, session.upload.id, "big", body, Expected(6 << 20)
                )
            except Exception:
                return None
            return fill

        with ThreadPoolExecutor(2) as pool:
            won = [fill for fill in pool.map(send, (b"a", b"b")) if fill is not None]
        done = uploads.commit(facility, operator, session.upload.id).product
        assert content(facility, operator, done.id) == won[0] * (6 << 20)
        assert len(won) == 1
    facility.catalog.close()


def test_a_session_that_turns_out_superfluous_leaves_nothing(either: Facility, operator) -> None:
    put(either, operator, "there", b"same")
    before = {stat.key for stat in either.storage.list("unsorted")}
    session = uploads.begin(either, operator, Wish("there"))
    uploads.receive_file(either, operator, session.upload.id, "there", iter([b"same"]), Expected())
    assert uploads.commit(either, operator, session.upload.id).result == "skipped"
    assert {stat.key for stat in either.storage.list("unsorted")} == before


def test_a_file_that_a_dead_request_has_half_sent_can_be_sent_again(
    either: Facility, operator
) -> None:
    session = uploads.begin(either, operator, Wish("taken-over"))
    key = f"{session.product.directory}/part"
    with either.catalog.writing() as catalog:
        catalog.add(
            FileClaim(
                product_pk=session.product.pk,
                path="part",
                owner="dead",
                touched_at=real_datetime.datetime(2020, 1, 1, tzinfo=real_datetime.UTC),
            )
        )
    either.storage.put(key, iter([b"what the dead one left"]))
    file, new = uploads.receive_file(
        either, operator, session.upload.id, "part", iter([b"whole"]), Expected(5)
    )
    assert (file.size, new) == (5, True)
    done = uploads.commit(either, operator, session.upload.id).product
    assert content(either, operator, done.id) == b"whole"


def test_escaped_names_work_in_sessions_as_by_reference(tmp_path: Path, operator) -> None:
    facility = make_facility(tmp_path, {"type": "posix", "root": tmp_path / "store"})
    settings = facility.settings.model_copy(
        update={"storage": facility.settings.storage.model_copy(update={"escape_names": True})}
    )
    from admin_api.services.facility import open_facility

    facility = open_facility(settings)
    session = uploads.begin(facility, operator, Wish("escaped"))
    for body in (b"x", b"x"):
        file, _ = uploads.receive_file(
            facility, operator, session.upload.id, "what?.nc", iter([body]), Expected(1)
        )
        assert file.path == "what%3F.nc"
    done = uploads.commit(facility, operator, session.upload.id)
    assert content(facility, operator, done.product.id) == b"x"
    removal.remove(facility, operator, done.product.id, "test")
    assert [stat.key for stat in facility.storage.list("unsorted")] == []
    facility.catalog.close()


# -- who may -------------------------------------------------------------------------------------
def test_an_ingester_replaces_own_products_and_not_those_of_others(
    either: Facility, operator
) -> None:
    put(either, operator, "of-others", b"theirs")
    with pytest.raises(Forbidden):
        put(either, INGESTER, "of-others", b"mine", policy=Policy.REPLACE)
    put(either, INGESTER, "own", b"old")
    assert put(either, INGESTER, "own", b"new", policy=Policy.REPLACE).generation == 2
    put(either, operator, "own", b"newest", policy=Policy.REPLACE)
    (available,) = [row for row in rows(either, "of-others") if row.state == "available"]
    assert content(either, operator, available.id) == b"theirs"


def test_an_ingester_cannot_keep_a_product_for_ever(either: Facility, operator) -> None:
    late = real_datetime.datetime(9999, 1, 1, tzinfo=real_datetime.UTC)
    with pytest.raises(InvalidRequest, match="3660 days"):
        put(either, INGESTER, "for-ever", b"x", retention_until=late)
    assert put(either, operator, "for-ever", b"x", retention_until=late)


def test_the_id_of_a_foreign_mission_is_taken_and_nothing_more_is_told(
    either: Facility, operator
) -> None:
    put(either, operator, "S5P_OFFL_L2__HCHO___20200328T053329_20200328T071459_12724_01_010108_"
        "20200330T103521.nc", b"x", product_id="taken")  # fmt: skip
    limited = Principal("limited", frozenset(["ingest"]), frozenset(["S1"]))
    name = "S1B_IW_GRDH_1SDV_20210401T052623_20210401T052648_026269_032297_ECC8.SAFE"
    with pytest.raises(ProductExists) as refused:
        put(either, limited, name, b"x", product_id="taken")
    assert "S5P" not in refused.value.detail


def test_a_kept_answer_is_not_told_to_a_token_that_has_lost_the_mission(
    either: Facility,
) -> None:
    def action(_body) -> tuple[int, dict]:
        return 201, {"mission": "S5P", "name": "secret"}

    before = Principal("someone", frozenset(["ingest"]), frozenset(["S1", "S5P"]))
    after = Principal("someone", frozenset(["ingest"]), frozenset(["S1"]))
    assert idempotency.once(either, before, "key-1", "same", action)[0] == 201
    with pytest.raises(Forbidden):
        idempotency.once(either, after, "key-1", "same", action)


# -- Idempotency-Key -----------------------------------------------------------------------------
def test_an_idempotency_key_with_another_body_of_the_same_length_is_refused(
    either: Facility, operator
) -> None:
    def send(data: bytes) -> tuple[int, dict]:
        return idempotency.once(
            either,
            operator,
            "key-2",
            "PUT same head",
            lambda body: (201, {"size": sum(len(chunk) for chunk in body())}),
            lambda: iter([data]),
        )

    assert send(b"aaaa") == (201, {"size": 4})
    assert send(b"aaaa") == (201, {"size": 4})
    with pytest.raises(Exception) as refused:
        send(b"bbbb")
    assert refused.value.code == "idempotency_key_reused"


def test_an_action_that_outlasts_the_grace_time_is_not_done_twice(
    either: Facility, operator, monkeypatch
) -> None:
    done: list[int] = []
    settings = either.settings.model_copy(
        update={
            "housekeeping": either.settings.housekeeping.model_copy(
                update={"commit_grace_seconds": 30.0}
            )
        }
    )
    patient = dataclasses.replace(either, settings=settings)

    def again() -> object:
        return idempotency.once(patient, operator, "key-3", "same", action)

    def action(_body) -> tuple[int, dict]:
        done.append(1)
        with either.catalog.writing() as session:  # as if it had begun a minute ago
            from admin_api.catalog.models import Idempotency

            session.execute(
                update(Idempotency).values(
                    touched_at=real_datetime.datetime.now(real_datetime.UTC)
                    - real_datetime.timedelta(seconds=60)
                )
            )
        either.heartbeat.beat()
        with pytest.raises(InProgress):
            again()
        return 200, {}

    assert idempotency.once(patient, operator, "key-3", "same", action) == (200, {})
    assert done == [1]


# -- repair --------------------------------------------------------------------------------------
@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_replace_mends_a_damaged_product_and_leaves_a_whole_one(
    either: Facility, operator, damage: str
) -> None:
    product = put(either, operator, "damaged", b"good bytes")
    again = put(either, operator, "damaged", b"good bytes", policy=Policy.REPLACE)
    assert again.generation == product.generation
    with either.catalog.reading() as session:
        key = session.scalars(select(File.key).where(File.product_pk == product.pk)).one()
    path = either.settings.storage.mounts[0].backend.root / key
    path.write_bytes(b"bad  bytes") if damage == "flipped" else path.unlink()
    mended = put(either, operator, "damaged", b"good bytes", policy=Policy.REPLACE)
    assert mended.generation > product.generation
    assert content(either, operator, mended.id) == b"good bytes"
    assert mended.id == product.id


# -- clean-up touches nothing that is another's ----------------------------------------------------
def test_clearing_an_attempt_spares_what_others_have_beneath_its_directory(
    either: Facility, operator
) -> None:
    """Bytes that were registered by somebody, and the directories of other products."""
    session = uploads.begin(either, operator, Wish("outer"))
    directory = session.product.directory
    either.storage.put(f"{directory}/foreign", iter([b"registered"]))
    with either.catalog.writing() as catalog:
        catalog.execute(
            update(Product).where(Product.pk == session.product.pk).values(registered=True)
        )
    registered = reception.register(
        either, operator, Wish("registered", registered_in=directory),
        {"foreign": f"{directory}/foreign"},
    )  # fmt: skip
    with registered:
        registered.store("foreign", either.storage.open(f"{directory}/foreign"))
        kept = registered.commit().product
    with either.catalog.writing() as catalog:
        catalog.execute(
            update(Product).where(Product.pk == session.product.pk).values(registered=False)
        )
    uploads.abort(either, operator, session.upload.id)
    housekeeping.clean(either)
    assert content(either, operator, kept.id) == b"registered"


def test_a_catalog_that_fails_once_between_record_and_promotion_costs_no_bytes(
    either: Facility, operator, monkeypatch
) -> None:
    promote = lifecycle.promote

    def away(*_args, **_kwargs):
        monkeypatch.setattr(lifecycle.promoting, "promote", promote)
        raise CatalogUnavailable("The catalog database cannot be reached or written now.")

    monkeypatch.setattr(lifecycle.promoting, "promote", away)
    with pytest.raises(CatalogUnavailable):
        put(either, operator, "unlucky", b"recorded")
    housekeeping.clean(either)
    row = rows(either, "unlucky")[0]
    assert row.state == "available"
    assert content(either, operator, row.id) == b"recorded"


def test_a_catalog_that_is_away_once_while_a_product_is_replaced_loses_neither(
    either: Facility, operator, monkeypatch
) -> None:
    put(either, operator, "twice", b"first")
    promote = lifecycle.promote

    def away(*args, **kwargs):
        monkeypatch.setattr(lifecycle.promoting, "promote", promote)
        promote(*args, **kwargs)
        raise CatalogUnavailable("The catalog database cannot be reached or written now.")

    monkeypatch.setattr(lifecycle.promoting, "promote", away)
    with pytest.raises(CatalogUnavailable):
        put(either, operator, "twice", b"second", policy=Policy.REPLACE)
    housekeeping.clean(either)
    row = rows(either, "twice")[-1]
    assert (row.state, row.generation) == ("available", 2)
    assert content(either, operator, row.id) == b"second"


def _committed_after_the_backup(facility: Facility, who: Principal, copy: Path) -> str:
    """A session that the backup takes for open, with one file of its two."""
    upload = uploads.begin(facility, who, Wish("session")).upload.id
    send(facility, who, upload, "one", b"1")
    backup(facility, copy)
    send(facility, who, upload, "two", b"22")
    assert uploads.commit(facility, who, upload).product.file_count == 2
    return upload


def send(facility: Facility, who: Principal, upload: str, path: str, data: bytes) -> None:
    uploads.receive_file(facility, who, upload, path, iter([data]), Expected(len(data)))


@pytest.mark.parametrize("way", ["commit", "more", "abort", "claim"])
def test_what_is_done_to_a_session_that_only_an_older_catalog_takes_for_open_costs_nothing(
    embedded: Facility, operator, tmp_path: Path, way: str
) -> None:
    copy = tmp_path / "older.sqlite"
    upload = _committed_after_the_backup(embedded, operator, copy)
    restored = older(embedded, copy, tmp_path)
    if way == "commit":
        outcome = uploads.commit(restored, operator, upload)
        assert [file.path for file in outcome.files] == ["one", "two"]
    elif way == "more":
        send(restored, operator, upload, "three", b"333")
        with pytest.raises(InProgress, match="other files"):
            uploads.commit(restored, operator, upload)
    elif way == "abort":
        with pytest.raises(InProgress, match="committed already"):
            uploads.abort(restored, operator, upload)
    else:  # a request that was running at the backup
        pk = session_files.load(restored, operator, upload).product.pk
        with restored.catalog.writing() as session:
            session.add(
                FileClaim(
                    product_pk=pk,
                    path="two",
                    owner="dead",
                    touched_at=real_datetime.datetime(2000, 1, 1, tzinfo=real_datetime.UTC),
                )
            )
        with pytest.raises(InProgress, match="committed already"):
            send(restored, operator, upload, "two", b"22")
    outcome = uploads.commit(restored, operator, upload)
    assert [file.path for file in outcome.files] == ["one", "two"]
    assert content(restored, operator, outcome.product.id) == b"122"
    stored = {stat.key for stat in restored.storage.list(outcome.product.directory)}
    assert stored == {file.key for file in outcome.files}
    restored.catalog.close()


def test_what_was_skipped_is_told_with_its_files_though_it_goes_a_moment_later(
    either: Facility, operator, monkeypatch
) -> None:
    first = put(either, operator, "same", b"content")
    discard = lifecycle.discard

    def meanwhile_removed(*args):
        discard(*args)
        removal.remove(either, operator, first.id, "meanwhile")

    monkeypatch.setattr(lifecycle, "discard", meanwhile_removed)
    outcome = uploads.receive(
        either,
        operator,
        Wish("same", policy=Policy.REPLACE),
        iter([b"content"]),
        Expected(7),
        None,
    )
    assert [file.path for file in outcome.files] == ["same"]


def test_what_began_before_a_generation_that_came_and_went_is_later_than_that(
    either: Facility, operator
) -> None:
    upload = uploads.begin(either, operator, Wish("slow")).upload.id
    send(either, operator, upload, "file", b"slow")
    removal.remove(either, operator, put(either, operator, "slow", b"quick").id, "meanwhile")
    done = uploads.commit(either, operator, upload).product
    assert done.generation > 2
    removal.keep(either, operator, done.id, Keeping(change_hold=True, hold_reason="needed"))
    list(rebuilding.rebuild(either))
    housekeeping.clean(either)
    assert content(either, operator, done.id) == b"slow"
