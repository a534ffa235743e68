"""What is stored already as it is announced is told while the manifest is read, by the catalog alone."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from admin_api.catalog.jobs import ItemEntry
from admin_api.services import bulk, intake, jobs
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.intake import Asked
from tests.conftest import make_facility
from tests.jobs.support import files


@pytest.fixture(params=["sqlite", "postgresql"])
def facility(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A facility over a directory, on each kind of catalog."""
    sections: dict[str, Any] = {}
    if request.param == "postgresql":
        database = request.getfixturevalue("database")
        sections["catalog"] = {
            "url": database.url(database.new_database()),
            "password_file": database.password_file,
        }
    made = make_facility(tmp_path, {"type": "posix", "root": tmp_path / "store"}, **sections)
    yield made
    made.catalog.close()


def _asked(line: object) -> Asked:
    assert isinstance(line, dict)
    return Asked(line, str(line.get("source", "")).rpartition("/")[2], line.get("size"))


def _told(facility: Facility, who: Principal, lines: list[dict[str, Any]], **options: Any) -> Any:
    """The job when all is told and before any worker looks."""
    told = intake.listed(lines, _asked)
    job = intake.receive(facility, who, jobs.IMPORT, options, told).id
    return jobs.show(facility, who, job).job


def _work(facility: Facility) -> None:
    bulk.work(facility, threading.Event())


def _items(facility: Facility, who: Principal, job: Any) -> list[ItemEntry]:
    return list(jobs.items(facility, who, job.id, None, 0, None))


def test_an_import_that_is_run_again_is_over_when_its_manifest_is_read(
    facility: Facility, operator, tmp_path
) -> None:
    lines = files(tmp_path / "inbox", 20, 1)
    first = _told(facility, operator, lines)
    assert (first.skipped, first.open) == (0, 20)
    _work(facility)
    for path in (tmp_path / "inbox").iterdir():
        path.unlink()
    again = _told(facility, operator, lines)
    assert (again.state, again.skipped, again.open, again.done) == ("done", 20, 0, 0)
    assert again.started_at is not None
    assert jobs.claim(facility, "a worker") is None
    made = {item.number: item.product_id for item in _items(facility, operator, first)}
    found = _items(facility, operator, again)
    assert {item.number: item.product_id for item in found} == made
    assert {(item.state, item.result, item.bytes, item.wanted) for item in found} == {
        ("skipped", "skipped", 2000, None)
    }
    assert sorted(item.sequence for item in found) == list(range(1, 21))


def test_only_what_is_announced_just_as_it_is_stored_is_told_so(
    facility: Facility, operator, tmp_path
) -> None:
    lines = files(tmp_path / "inbox", 8, 1)
    _told(facility, operator, lines)
    _work(facility)
    name = "p1-00005.bin"
    two = [{"path": name, **lines[5]}, {"path": "b", **lines[6]}]
    odd = [
        {**lines[0], "sha256": "0" * 64},
        {**lines[1], "size": 17},
        {"source": lines[2]["source"]},
        {**lines[3], "duplicates": "error"},
        {**lines[4], "unpack": True},
        {"name": name, "files": two},
        {**lines[6], "id": "another"},
        {**lines[7], "name": "p1-nowhere.bin"},
    ]
    job = _told(facility, operator, odd)
    assert (job.skipped, job.open) == (0, 8)
    assert _told(facility, operator, lines, duplicates="replace").skipped == 0
    same = _told(facility, operator, [{"name": name, "files": two[:1]}, {"broken": 1}, lines[0]])
    assert (same.skipped, same.open) == (2, 1)


def test_of_missions_that_the_token_has_not_nothing_is_told(
    facility: Facility, operator, tmp_path
) -> None:
    lines = files(tmp_path / "inbox", 2, 1)
    name = "S5P_OFFL_L2__HCHO___20200328T053329_20200328T071459_12724_01_010108_20200330T103521.nc"
    lines[0]["name"] = name
    _told(facility, operator, lines)
    _work(facility)
    other = replace(operator, scopes=frozenset(["ingest"]), missions=frozenset(["S1"]))
    assert _told(facility, other, [lines[0]]).skipped == 0
    mine = replace(other, missions=frozenset(["S5P"]))
    assert _told(facility, mine, [lines[0]]).skipped == 1


def test_sqlite_walks_neither_all_products_nor_all_items_for_those_of_a_chunk(
    tmp_path, operator
) -> None:
    made = make_facility(tmp_path, {"type": "posix", "root": tmp_path / "store"})
    walks: list[str] = []

    def explain(connection: Any, _cursor: Any, statement: str, values: Any, _c: Any, many: bool):
        if not re.match("SELECT|UPDATE|DELETE", statement):
            return
        cursor = connection.connection.dbapi_connection.cursor()
        plan = cursor.execute(f"EXPLAIN QUERY PLAN {statement}", values[0] if many else values)
        for _, _, _, step in plan:
            # Of states it looks only for those in which there are hardly any products.
            is_rare = "product.state IN" in statement or "touched_at <" in statement
            if (re.search(r"SCAN (product|item|file)\b|item\S* USING .*\(job_pk=\?\)", step)) or (
                re.search(r"product USING .*\(state=\?\)", step) and not is_rare
            ):
                walks.append(f"{step}: {statement}")

    event.listen(made.catalog._engine, "before_cursor_execute", explain)
    lines = files(tmp_path / "inbox", 60, 1)
    for options in ({}, {}, {"duplicates": "error"}):
        _told(made, operator, lines, **options)
        _work(made)
    assert walks == []
    made.catalog.close()
