"""Small products that are taken in together: one decision of the store, one record, each its own life."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from admin_api.catalog import entries
from admin_api.catalog.entries import ProductEntry
from admin_api.catalog.models import Product, State
from admin_api.errors import Unavailable
from admin_api.products.records import group_of
from admin_api.services import bulk, groups, intake, jobs, lifecycle, listing, rebuilding, records
from admin_api.services import ingest as ingests
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.ingest import Order
from admin_api.services.intake import Asked
from admin_api.services.reconciliation import Finding, reconcile
from admin_api.services.records import Unreadable
from admin_api.services.removal import remove
from admin_api.services.wishes import Policy, Wish
from admin_api.storage import gathering, posix
from admin_api.storage.gathering import Gathering
from tests.conftest import make_facility, stale_at_once
from tests.jobs.support import files


def _asked(line: object) -> Asked:
    assert isinstance(line, dict)
    return Asked(line, str(line.get("source", "")).rpartition("/")[2], line.get("size"))


def _import(facility: Facility, who: Principal, lines: list[dict[str, Any]]) -> Any:
    told = intake.listed(lines, _asked)
    job = intake.receive(facility, who, jobs.IMPORT, {}, told).id
    bulk.work(facility, threading.Event())
    return jobs.show(facility, who, job).job


def _available(facility: Facility, who: Principal) -> dict[str, tuple[str, int, str]]:
    page, _ = listing.list_products(facility, who, listing.ProductFilter(), None, 1000)
    return {item.name: (item.id, item.generation, item.list_digest) for item in page}


def _states(facility: Facility) -> list[str]:
    with facility.catalog.reading() as session:
        return list(session.scalars(select(Product.state)))


def _records(facility: Facility) -> list[str]:
    return [stat.key for stat in facility.storage.list(".products") if "jsonl" in stat.key]


def _rebuilt(facility: Facility, directory: Path, who: Principal) -> tuple[dict, list[Unreadable]]:
    """What a catalog knows that is made anew from the records, and what could not be read."""
    directory.mkdir()
    backend = facility.settings.storage.mounts[0].backend.model_dump()
    fresh = make_facility(directory, backend)
    problems = [item for item in rebuilding.rebuild(fresh) if isinstance(item, Unreadable)]
    found = _available(fresh, who)
    fresh.catalog.close()
    return found, problems


def _findings(facility: Facility, who: Principal) -> list[tuple[str, str | None]]:
    found = [item for item in reconcile(facility, who) if isinstance(item, Finding)]
    return [(item.kind, item.reason) for item in found]


@pytest.fixture
def stale(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Facility]:
    """A facility in which whoever looks dead is dead at once."""
    backend = {"type": "posix", "root": tmp_path / "store"}
    made = make_facility(tmp_path, backend, housekeeping=stale_at_once())
    yield made
    made.catalog.close()


def test_many_small_products_share_one_record_and_a_rebuilt_catalog_has_each(
    facility: Facility, operator, tmp_path
) -> None:
    job = _import(facility, operator, files(tmp_path / "inbox", 8, 1))
    assert (job.done, job.failed) == (8, 0)
    assert len([key for key in _records(facility) if "/groups/" in key]) == 1
    assert len(_records(facility)) == 1
    before = _available(facility, operator)
    assert len(before) == 8
    assert _findings(facility, operator) == []
    found, problems = _rebuilt(facility, tmp_path / "again", operator)
    assert (found, problems) == (before, [])
    assert listing.verify_events(facility)[1] is None


def test_of_a_group_each_product_is_removed_replaced_and_kept_by_itself_and_rebuilt_so(
    facility: Facility, operator, actor, tmp_path
) -> None:
    lines = files(tmp_path / "inbox", 6, 1)
    _import(facility, operator, lines)
    before = _available(facility, operator)
    remove(facility, operator, before["p1-00000.bin"][0], "not wanted")
    (tmp_path / "inbox/p1-00001.bin").write_bytes(b"other bytes")
    wish = Wish("", policy=Policy.REPLACE)
    ingests.ingest(facility, operator, wish, Order(source=lines[1]["source"]))
    kept = lifecycle.of_name(facility, "p1-00002.bin")
    assert kept is not None
    lifecycle.keep(facility, kept, actor, {"hold_reason": "inquiry", "hold_by": "operator"})
    after = _available(facility, operator)
    assert len(after) == 5
    assert after["p1-00001.bin"][1] == 2
    assert _findings(facility, operator) == []
    found, problems = _rebuilt(facility, tmp_path / "again", operator)
    assert (found, problems) == (after, [])


def test_a_group_whose_writer_was_taken_for_dead_is_undone_as_a_whole_and_done_again(
    stale: Facility, operator, tmp_path, monkeypatch
) -> None:
    write, group = records.write_group, []

    def taken_over(facility: Facility, mount: str, mark: str, said: Any) -> None:
        with facility.catalog.reading() as session:
            pk = session.scalars(select(Product.pk).where(Product.id == said[2].id)).one()
            found = entries.product(session, pk)
        assert lifecycle.settle(facility, found) is False
        group.append(mark)
        write(facility, mount, mark, said)

    monkeypatch.setattr(records, "write_group", taken_over)
    job = _import(stale, operator, files(tmp_path / "inbox", 5, 1))
    assert len(group) == 1
    assert (job.done, job.failed, job.skipped) == (5, 0, 0)
    after = _available(stale, operator)
    assert {generation for _, generation, _ in after.values()} == {2}
    assert _findings(stale, operator) == []
    found, problems = _rebuilt(stale, tmp_path / "again", operator)
    assert (found, problems) == (after, [])


def test_a_record_whose_answer_was_lost_decides_for_all_of_the_group(
    facility: Facility, operator, tmp_path, monkeypatch
) -> None:
    write = records.write_group

    def loses(facility: Facility, *arguments: Any) -> None:
        write(facility, *arguments)
        raise Unavailable("The answer got lost.")

    monkeypatch.setattr(records, "write_group", loses)
    job = _import(facility, operator, files(tmp_path / "inbox", 5, 1))
    assert (job.done, job.failed, job.skipped) == (5, 0, 0)
    assert {item[1] for item in _available(facility, operator).values()} == {1}
    assert len(_records(facility)) == 1


def test_a_worker_that_dies_behind_the_record_has_made_the_products_and_before_it_none(
    stale: Facility, operator, tmp_path, monkeypatch
) -> None:
    class Died(BaseException):
        pass

    def dies(*_arguments: Any) -> None:
        raise Died

    def gone(self: Any) -> None:
        """A dead process clears nothing up."""

    monkeypatch.setattr(groups._Work, "give_up", gone)
    lines = files(tmp_path / "inbox", 4, 1)
    steps = ((records, "write_group", 0), (lifecycle.promoting, "promote_all", 4))
    for module, step, expected in steps:
        with monkeypatch.context() as patch:
            patch.setattr(module, step, dies)
            with pytest.raises(Died):
                _import(stale, operator, lines)
        assert _available(stale, operator) == {}
        with stale.catalog.reading() as session:
            query = entries.products().where(Product.state == State.COMMITTING)
            waiting = entries.all_of(ProductEntry, session, query)
        assert len(waiting) == 4
        assert sum(lifecycle.settle(stale, product) for product in waiting) == expected
        assert len(_available(stale, operator)) == expected
    assert _rebuilt(stale, tmp_path / "again", operator)[0] == _available(stale, operator)


def test_nothing_of_a_group_is_recorded_before_all_its_bytes_are_synced(
    tmp_path, operator, monkeypatch
) -> None:
    made = make_facility(tmp_path, {"type": "posix", "root": tmp_path / "store"})
    happened: list[str] = []

    def noting(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **more: Any) -> Any:
            happened.append(what)
            return function(*arguments, **more)

        return noted

    class Library:
        syncfs = staticmethod(noting("sync", gathering._libc.syncfs))
        statfs = gathering._libc.statfs

    monkeypatch.setattr(gathering, "_libc", Library)
    monkeypatch.setattr(gathering, "_write_all", noting("bytes", posix._write_all))
    monkeypatch.setattr(records, "write_group", noting("record", records.write_group))
    assert _import(made, operator, files(tmp_path / "inbox", 5, 1)).done == 5
    assert happened == ["bytes"] * 5 + ["sync", "record"]
    made.catalog.close()


def test_a_sync_that_fails_commits_nothing_of_the_group_and_leaves_nothing_of_it(
    facility: Facility, operator, tmp_path, monkeypatch
) -> None:
    tried: list[bool] = []

    def fails(_self: Gathering) -> None:
        tried.append(True)
        assert State.AVAILABLE not in _states(facility)
        raise Unavailable("The disk did not answer.")

    monkeypatch.setattr(Gathering, "settle", fails)
    job = _import(facility, operator, files(tmp_path / "inbox", 5, 1))
    assert tried == [True]
    assert (job.done, job.failed) == (5, 0)  # one by one
    assert not [key for key in _records(facility) if "/groups/" in key]
    known = _available(facility, operator)
    stored = [stat.key for stat in facility.storage.list() if not stat.key.startswith(".products")]
    assert len(stored) == len(known) == 5


@pytest.mark.parametrize("why", ["an old kernel", "a file system in user space"])
def test_where_one_sync_does_not_do_each_file_is_made_durable_by_itself(
    why: str, tmp_path, operator, monkeypatch
) -> None:
    made = make_facility(tmp_path, {"type": "posix", "root": tmp_path / "store"})
    put, keys = posix.PosixStorage.put, []

    def noted(self: Any, key: str, *arguments: Any) -> Any:
        keys.append(key)
        return put(self, key, *arguments)

    monkeypatch.setattr(posix.PosixStorage, "put", noted)
    if why == "an old kernel":
        monkeypatch.setattr(gathering.platform, "release", lambda: "4.19.0-27-amd64")
    else:
        fuse = 0x65735546

        class Library:
            def statfs(self, _path: bytes, answer: Any) -> int:
                answer[:8] = fuse.to_bytes(8, sys.byteorder)
                return 0

        monkeypatch.setattr(gathering, "_libc", Library())
    assert _import(made, operator, files(tmp_path / "inbox", 5, 1)).done == 5
    assert len([key for key in keys if "p1-" in key]) == 5
    made.catalog.close()


def test_a_record_of_a_group_that_was_cut_is_told_with_each_product_that_it_lost(
    tmp_path, operator
) -> None:
    made = make_facility(tmp_path, {"type": "posix", "root": tmp_path / "store"})
    _import(made, operator, files(tmp_path / "inbox", 5, 1))
    (key,) = _records(made)
    path = tmp_path / "store" / key
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    kinds = [kind for kind, _ in _findings(made, operator)]
    assert sorted(kinds) == ["record_missing", "record_missing", "unreadable"]
    found, problems = _rebuilt(made, tmp_path / "again", operator)
    assert len(found) == 3
    assert [item.reason for item in problems] == ["is cut: it has 3 of 5 lines"]
    made.catalog.close()


def test_what_lies_where_a_product_of_the_group_would_come_is_left_alone(
    facility: Facility, operator, tmp_path
) -> None:
    lines = files(tmp_path / "inbox", 4, 1)
    foreign = "unsorted/p1-00002.bin/of a later life"
    facility.storage.put(foreign, [b"committed by a catalog that was lost"])
    assert _import(facility, operator, lines).done == 4
    found = _available(facility, operator)
    assert [found[name][1] for name in sorted(found)] == [1, 1, 2, 1]
    remove(facility, operator, found["p1-00002.bin"][0], "test")
    assert facility.storage.stat(foreign).size == 36


def test_what_is_not_plain_is_done_alone_and_told_as_ever(
    facility: Facility, operator, tmp_path
) -> None:
    lines = files(tmp_path / "inbox", 9, 1)
    _import(facility, operator, [lines[0]])
    remove(facility, operator, _available(facility, operator)["p1-00000.bin"][0], "test")
    _import(facility, operator, [lines[1]])
    odd = [
        {**lines[3], "sha256": "0" * 64},
        {**lines[4], "size": 17},
        {"source": (tmp_path / "inbox/nowhere").as_uri()},
        {**lines[5], "id": "mine"},
        {**lines[6], "name": "bad\x01name"},
        {"source": lines[2]["source"], "name": "twice"},
        {"source": lines[7]["source"], "name": "twice"},
        {"source": lines[1]["source"], "duplicates": "error"},
    ]
    job = _import(facility, operator, [lines[0], *odd, lines[8], lines[2]])
    codes = {code: entry["count"] for code, entry in job.errors.items()}
    assert codes == {
        "digest_mismatch": 1,
        "size_mismatch": 1,
        "source_not_found": 1,
        "invalid_key": 1,
        "product_exists": 2,
    }
    assert (job.done, job.failed) == (5, 6)
    found = _available(facility, operator)
    assert found["p1-00000.bin"][1] == 2
    assert found["p1-00005.bin"][0] == "mine"
    with facility.catalog.reading() as session:
        marks = dict(session.execute(select(Product.name, Product.attempt)).all())
    assert group_of(marks["p1-00008.bin"]) is not None
    assert group_of(marks["p1-00000.bin"]) is None
    known = set(found)
    stored = {
        stat.key.split("/")[-2].partition("@")[0] for stat in facility.storage.list("unsorted")
    }
    assert stored == known
