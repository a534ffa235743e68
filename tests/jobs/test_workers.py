"""Workers that die, freeze or are told to end, and connections that are cut, in the midst of a job."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.jobs.support import begin, counts, ended, files, items, names
from tests.support.fault_proxy import fault_proxy
from tests.support.servers import ROOT, Service, service_in, wait_until

#: Short leases, so that what is silent is taken over within the test.
SHORT = {"interval_seconds": 0.5, "grace_seconds": 6.0, "commit_grace_seconds": 2.0}
Start = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture(params=["posix-sqlite", "s3-postgresql"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Service, Start]]:
    """A service without a worker of its own, and what starts one."""
    store, catalog = request.param.split("-")
    backend: dict[str, Any] = {"type": "posix", "root": tmp_path / "store"}
    if store == "s3":
        backend = request.getfixturevalue("s3_server").backend()
    database = request.getfixturevalue("database") if catalog == "postgresql" else None
    with _site(tmp_path, backend, database, SHORT) as made:
        yield made


@contextlib.contextmanager
def _site(
    directory: Path, backend: dict[str, Any], database: Any, housekeeping: dict[str, Any]
) -> Iterator[tuple[Service, Start]]:
    service = service_in(
        directory,
        backend,
        database,
        server={"worker": False},
        housekeeping=housekeeping,
        jobs={"chunk_items": 10, "parallel_items": 4},
        catalog={"busy_seconds": 9.0},
    )
    workers: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with (directory / "worker.log").open("ab") as log:
            command = [sys.executable, "-m", "admin_api", "worker"]
            command += ["--settings", str(service.settings_file)]
            workers.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT))
        return workers[-1]

    service.start()
    try:
        yield service, start
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(signal.SIGCONT)
            worker.kill()
            worker.wait()
        service.stop()


def _require_one_outcome_each(service: Service, job: dict[str, Any], prefix: str) -> None:
    """Every item is done, once, and its product is there, once."""
    assert counts(job) == {"received": job["received"], "done": job["received"]}
    found = items(service, job["id"])
    assert sorted(item["sequence"] for item in found) == list(range(1, len(found) + 1))
    assert len({item["product"] for item in found}) == len(names(service, prefix)) == len(found)
    events = service.json("GET", "/v1/events?limit=1000&order=desc")["events"]
    ingested = [
        event["product_name"]
        for event in events
        if event["kind"] == "product.ingested" and event["product_name"].startswith(prefix)
    ]
    assert len(ingested) == len(set(ingested)) == len(found)


def _some_done(service: Service, job_id: str, least: int = 1) -> None:
    def look() -> bool:
        return service.json("GET", f"/v1/jobs/{job_id}")["done"] >= least

    wait_until(look, 90, f"{least} items that are done")


@pytest.mark.timeout(1800)
def test_a_worker_killed_again_and_again_loses_and_doubles_nothing(site) -> None:
    service, start = site
    chance = random.Random(7)
    job_id = begin(service, files(service.directory / "inbox", 80, seed=1), "?duplicates=error")
    for _ in range(6):
        worker = start()
        time.sleep(chance.uniform(1.5, 4.0))  # a random moment, not a wait for something
        worker.kill()
        worker.wait()
    start()
    _require_one_outcome_each(service, ended(service, job_id, 180), "p1-")
    leftovers = service.cli("reconcile", check=False).stdout
    assert "missing" not in leftovers, leftovers


def _freeze(service: Service, worker: subprocess.Popen[bytes]) -> None:
    """Stop a worker in the midst of an item; who stops in a write to SQLite stops everybody."""
    catalog = service.directory / "state/catalog.sqlite"

    def is_still() -> bool:
        worker.send_signal(signal.SIGSTOP)
        if not catalog.exists():
            return True
        with contextlib.closing(sqlite3.connect(catalog, timeout=0.3)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                worker.send_signal(signal.SIGCONT)
                return False
        return True

    wait_until(is_still, 60, "a moment in which the worker does not write")


@pytest.mark.timeout(1800)
def test_a_worker_frozen_past_its_lease_finds_its_chunk_done_by_another(site) -> None:
    service, start = site
    job_id = begin(service, files(service.directory / "inbox", 60, seed=2), "?duplicates=error")
    frozen = start()
    _some_done(service, job_id)
    _freeze(service, frozen)
    start()
    ended(service, job_id, 180)
    frozen.send_signal(signal.SIGCONT)
    again = ended(service, begin(service, files(service.directory / "inbox", 5, seed=3)))
    assert again["done"] == 5
    _require_one_outcome_each(service, ended(service, job_id), "p2-")


@pytest.mark.timeout(1800)
def test_a_worker_that_is_told_to_end_gives_back_what_it_has_not_begun(tmp_path) -> None:
    long = {"interval_seconds": 0.5, "commit_grace_seconds": 600.0}
    backend = {"type": "posix", "root": tmp_path / "store"}
    with _site(tmp_path, backend, None, long) as (service, start):
        job_id = begin(service, files(service.directory / "inbox", 120, seed=4))
        worker = start()
        _some_done(service, job_id)
        worker.terminate()
        worker.wait(30)
        assert service.json("GET", f"/v1/jobs/{job_id}")["running"] == 0
        start()
        # A lease of ten minutes would be waited for, had the chunk not been given back.
        _require_one_outcome_each(service, ended(service, job_id, 120), "p4-")


@pytest.mark.timeout(1800)
def test_connections_to_the_database_are_cut_all_the_time_and_the_job_ends_right(
    tmp_path, database, s3_server
) -> None:
    with _site(tmp_path, s3_server.backend(), database, SHORT) as (service, start):
        start()
        over = threading.Event()

        def cut() -> None:
            with psycopg.connect(
                f"host=127.0.0.1 port={database.port} user=postgres dbname=postgres",
                password=database.password_file.read_text().strip(),
                autocommit=True,
            ) as connection:
                pause = 0.7
                while not over.wait(pause):
                    pause *= 1.05  # what is slower than the cuts gets its turn in the end
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname LIKE 'catalog_%' AND state <> 'idle'"
                    )

        job_id = begin(service, files(service.directory / "inbox", 60, seed=5))
        cutter = threading.Thread(target=cut)
        cutter.start()

        def is_far() -> bool:
            answer = service.request("GET", f"/v1/jobs/{job_id}")
            return answer.status == 200 and b'"state":"done"' in answer.data

        try:
            wait_until(is_far, 120, "the end of the job")
        finally:
            over.set()
            cutter.join()
        job = ended(service, job_id)
        assert job["done"] + job["failed"] == 60
        service.json("POST", f"/v1/jobs/{job_id}/retry")
        job = ended(service, job_id)
        assert job["done"] == 60
        assert len(names(service, "p5-")) == 60


@pytest.mark.timeout(1800)
def test_a_finished_import_that_is_run_again_asks_nothing_of_the_store(tmp_path, s3_server) -> None:
    with fault_proxy(s3_server.endpoint) as (endpoint, faults):
        backend = s3_server.backend() | {"endpoint": endpoint}
        with _site(tmp_path, backend, None, SHORT) as (service, start):
            start()
            lines = files(service.directory / "inbox", 50, seed=6)
            ended(service, begin(service, lines))
            asked: list[str] = []

            def meet(method: str, path: str) -> str:
                # Whose the store is, and what housekeeping looks for, is asked all the time.
                if method in ("PUT", "POST", "DELETE") or "p6-" in path:
                    asked.append(f"{method} {path}")
                return ""

            faults.meet = meet
            assert counts(ended(service, begin(service, lines))) == {"received": 50, "skipped": 50}
            assert asked == []


def test_a_worker_goes_on_beside_a_service_that_is_gone(site) -> None:
    service, start = site
    job_id = begin(service, files(service.directory / "inbox", 30, seed=8))
    service.stop(signal.SIGKILL)
    worker = start()
    time.sleep(2.0)  # on its own for a while
    assert worker.poll() is None
    assert os.path.exists(service.settings_file)
    service.start()
    _require_one_outcome_each(service, ended(service, job_id), "p8-")
