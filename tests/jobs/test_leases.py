"""Chunks under leases: taken over once, fenced, given up; in this process, with forced moments."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from admin_api.catalog.database import Catalog
from admin_api.errors import CatalogUnavailable
from admin_api.services import bulk, intake, jobs, lifecycle, listing
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.intake import Asked
from admin_api.services.jobs import LeaseLostError, Outcome
from tests.conftest import make_facility, stale_at_once
from tests.jobs.support import files


def _asked(line: object) -> Asked:
    assert isinstance(line, dict)
    return Asked(line, str(line.get("source", "")).rpartition("/")[2], line.get("size"))


def _job(facility: Facility, who: Principal, lines: list[dict[str, Any]], **more: Any) -> str:
    told = intake.listed(lines, _asked)
    return intake.receive(facility, who, jobs.IMPORT, more.pop("options", {}), told, **more).id


def _work(facility: Facility) -> None:
    bulk.work(facility, threading.Event())


@pytest.fixture
def stale(tmp_path: Path) -> Iterator[Facility]:
    """A facility in which every lease is dead at once."""
    backend = {"type": "posix", "root": tmp_path / "store"}
    made = make_facility(tmp_path, backend, housekeeping=stale_at_once())
    yield made
    made.catalog.close()


@pytest.fixture
def calm(tmp_path: Path) -> Iterator[Facility]:
    """A facility with the leases of an operator."""
    backend = {"type": "posix", "root": tmp_path / "store"}
    made = make_facility(tmp_path, backend, jobs={"chunk_items": 2})
    yield made
    made.catalog.close()


def test_who_was_taken_over_writes_nothing_any_more(stale: Facility, operator, tmp_path) -> None:
    job = _job(stale, operator, files(tmp_path / "inbox", 2, 1))
    first = jobs.claim(stale, "one")
    second = jobs.claim(stale, "two")
    assert first is not None
    assert second is not None
    assert (first.chunk, second.epoch) == (second.chunk, first.epoch + 1)
    with pytest.raises(LeaseLostError):
        jobs.finish(stale, first, [Outcome(1, "done")])
    with pytest.raises(LeaseLostError):
        jobs.give_back(stale, first)
    jobs.finish(stale, second, [Outcome(1, "done"), Outcome(2, "failed", code="busy")])
    with pytest.raises(LeaseLostError):
        jobs.finish(stale, first, [Outcome(2, "done")])
    report = jobs.show(stale, operator, job)
    assert (report.job.state, report.job.done, report.job.failed) == ("done", 1, 1)


def test_an_outcome_that_is_told_twice_is_counted_once(calm: Facility, operator, tmp_path) -> None:
    job = _job(calm, operator, files(tmp_path / "inbox", 2, 1))
    claimed = jobs.claim(calm, "one")
    assert claimed is not None
    both = [Outcome(1, "done", bytes=5), Outcome(2, "done", bytes=5)]
    jobs.finish(calm, claimed, both[:1])
    jobs.finish(calm, claimed, both)
    jobs.finish(calm, claimed, both)  # the chunk has ended by now
    found = jobs.show(calm, operator, job).job
    assert (found.done, found.bytes, found.open, found.state) == (2, 10, 0, "done")


def test_a_chunk_that_only_kills_its_workers_is_given_up(stale, operator, tmp_path) -> None:
    job = _job(stale, operator, files(tmp_path / "inbox", 2, 1))
    for number in range(8):
        assert jobs.claim(stale, f"dies-{number}") is not None
    _work(stale)
    report = jobs.show(stale, operator, job).job
    assert (report.state, report.failed) == ("done", 2)
    assert report.errors["worker_lost"]["count"] == 2
    assert jobs.retry(stale, operator, job)[1] == 2
    _work(stale)
    assert jobs.show(stale, operator, job).job.done == 2


def test_a_job_with_a_limit_has_one_chunk_at_a_time(calm: Facility, operator, tmp_path) -> None:
    lines = files(tmp_path / "inbox", 6, 1)
    _job(calm, operator, lines, concurrency=2)
    first = jobs.claim(calm, "one")
    assert first is not None
    assert jobs.claim(calm, "two") is None
    jobs.give_back(calm, first)
    assert jobs.claim(calm, "two") is not None


def test_jobs_of_one_priority_take_turns_and_higher_ones_come_first(
    calm, operator, tmp_path
) -> None:
    lines = files(tmp_path / "inbox", 4, 1)
    low = [_job(calm, operator, lines), _job(calm, operator, lines)]
    high = _job(calm, operator, lines[:2], priority=1)
    order = []
    for number in range(5):
        claimed = jobs.claim(calm, str(number))
        assert claimed is not None
        order.append(claimed.job.id)
    assert order == [high, *low, *low]
    assert jobs.claim(calm, "none is left") is None


def test_a_product_whose_worker_died_before_it_told_is_done_and_no_duplicate(
    facility: Facility, operator, tmp_path, monkeypatch
) -> None:
    lines = files(tmp_path / "inbox", 5, 1)
    job = _job(facility, operator, lines, options={"duplicates": "error"})
    finish = jobs.finish

    def dies(*_arguments: object) -> None:
        raise LeaseLostError

    monkeypatch.setattr(jobs, "finish", dies)
    _claim_once(facility, monkeypatch)
    assert jobs.show(facility, operator, job).job.done == 0
    monkeypatch.setattr(jobs, "finish", finish)
    monkeypatch.setattr(jobs, "_dead", lambda _facility, now: now)
    _work(facility)
    found = jobs.show(facility, operator, job).job
    assert (found.done, found.failed, found.skipped) == (5, 0, 0)
    assert _generations(facility, operator) == {f"p1-{number:05}.bin": 1 for number in range(5)}


def _claim_once(facility: Facility, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, taken = jobs.claim, []

    def once(*arguments: Any) -> Any:
        if taken:
            return None
        taken.append(claim(*arguments))
        return taken[0]

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "claim", once)
        _work(facility)


def _generations(facility: Facility, who: Principal) -> dict[str, int]:
    page, _ = listing.list_products(facility, who, listing.ProductFilter(), None, 1000)
    return {product.name: product.generation for product in page}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_connection_that_breaks_in_any_commit_leaves_one_outcome_per_item(
    kind: str, when: str, tmp_path, operator, request, monkeypatch
) -> None:
    sections: dict[str, Any] = {"jobs": {"parallel_items": 3}, "housekeeping": stale_at_once()}
    if kind == "postgresql":
        database = request.getfixturevalue("database")
        sections["catalog"] = {
            "url": database.url(database.new_database()),
            "password_file": database.password_file,
        }
    facility = make_facility(tmp_path, {"type": "posix", "root": tmp_path / "store"}, **sections)
    monkeypatch.setattr(bulk, "_FIRST_PAUSE", 0.01)
    broken = 0
    for victim in range(1, 40):
        lines = files(tmp_path / "inbox", 3, seed=victim)
        job = _job(facility, operator, lines)
        with _breaking(monkeypatch, victim, when) as count:
            with contextlib.suppress(CatalogUnavailable):
                _work(facility)
        _work(facility)
        found = jobs.show(facility, operator, job).job
        assert (found.state, found.done, found.failed) == ("done", 3, 0), (victim, found)
        if not count["broken"]:
            break
        broken += 1
    facility.catalog.close()
    assert broken >= 5


@contextlib.contextmanager
def _breaking(monkeypatch: pytest.MonkeyPatch, victim: int, when: str) -> Iterator[dict[str, int]]:
    """The ``victim``-th transaction that writes is lost, or is committed and its answer lost."""
    writing: Callable[..., Any] = Catalog.writing
    count, lock = {"all": 0, "broken": 0}, threading.Lock()

    @contextlib.contextmanager
    def breaks(self: Catalog) -> Iterator[Any]:
        with lock:
            count["all"] += 1
            is_victim = count["all"] == victim
            count["broken"] += is_victim
        with writing(self) as session:
            yield session
            if is_victim and when == "before":
                raise CatalogUnavailable("The connection broke before the commit.")
        if is_victim:
            raise CatalogUnavailable("The connection broke after the commit.")

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "writing", breaks)
        yield count


def test_many_begin_together_and_each_gets_its_own(facility: Facility, operator, tmp_path) -> None:
    lines = files(tmp_path / "inbox", 40, 1)
    odd = [
        {**lines[3]},
        {**lines[4], "sha256": "0" * 64},
        {"source": lines[0]["source"], "id": "x"},
    ]
    job = _job(facility, operator, [*lines, *odd])
    _work(facility)
    found = jobs.show(facility, operator, job).job
    assert (found.done, found.skipped, found.failed) == (40, 1, 2)
    assert len(_generations(facility, operator)) == 40
    assert listing.verify_events(facility)[1] is None
    assert lifecycle.of_name(facility, "p1-00003.bin") is not None


def test_a_manifest_whose_server_died_is_carried_out_as_far_as_it_came(
    stale: Facility, operator, tmp_path
) -> None:
    lines = files(tmp_path / "inbox", 3, 1)
    job = jobs.create(stale, operator, jobs.IMPORT, {}, "a dead request")
    part = list(intake.listed(lines, _asked))
    jobs.append(stale, job.pk, part, "a dead request")
    assert jobs.expire(stale) == 1
    with pytest.raises(LeaseLostError):
        jobs.append(stale, job.pk, part, "a dead request")
    _work(stale)
    found = jobs.show(stale, operator, job.id).job
    assert (found.state, found.done) == ("done", 3)
    assert found.problem is not None
    assert found.problem["code"] == "incomplete_body"


def test_jobs_that_ended_long_ago_are_forgotten_with_their_items(calm, operator, tmp_path) -> None:
    job = _job(calm, operator, files(tmp_path / "inbox", 3, 1))
    _work(calm)
    ended = jobs.show(calm, operator, job).job.ended_at
    assert ended is not None
    assert jobs.forget(calm, ended) == 0
    assert jobs.forget(calm, ended.replace(year=ended.year + 1)) == 1
    assert jobs.find(calm, operator, jobs.JobFilter(), None, 10) == ([], None)
