"""Slow and hostile clients, slow sources and a hanging store, all at once (fault F26)."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.memory import resident
from tests.support.crowd import allowing, crowd, slow_source
from tests.support.servers import Service, wait_until, weed


def test_live_answers_and_nothing_is_lost_whatever_hangs(make_service, tmp_path: Path) -> None:
    with weed(tmp_path / "weed") as server, slow_source() as origin:
        service = make_service(server.backend(retry_seconds=1, timeout=5), sources=allowing(origin))
        service.start()
        data = secrets.token_bytes(100_000)
        kept = service.json("PUT", "/v1/uploads/kept.bin", data, 201)
        with crowd(service, server, origin):
            for _ in range(30):
                live = service.pool.request("GET", f"{service.url}/healthz/live", timeout=10)
                metrics = service.pool.request("GET", service.metrics_url, timeout=10)
                assert (live.status, metrics.status) == (200, 200)
                time.sleep(0.2)
            wait_until(
                lambda: service.request("GET", "/healthz/ready", token=None).status == 503,
                20,
                "the notice of a store that hangs",
            )
            # Refusals need neither a store nor a thread that a slow client has.
            assert service.request("PUT", "/v1/uploads/x", b"x", token=None).status in (401, 503)
            assert resident(service) < 200
        put = f"/v1/uploads/after-{os.getpid()}"
        wait_until(lambda: service.request("PUT", put, b"x").status in (200, 201), 60, "recovery")
        href = kept["files"][0]["href"] + "?redirect=false"
        assert service.request("GET", href).data == data


def test_the_worker_gives_signs_of_life_while_its_work_hangs_and_is_started_again(
    make_service, tmp_path: Path
) -> None:
    with weed(tmp_path / "weed") as server:
        service = make_service(server.backend(retry_seconds=30, timeout=30))
        service.start()

        def beat() -> float:
            text = service.pool.request("GET", f"{service.metrics_url}/metrics").data.decode()
            name = "storage_manager_worker_alive_timestamp_seconds"
            found = re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
            return float(found[1]) if found else 0.0

        first = wait_until(beat, 30, "a sign of life")
        server.process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: beat() > first + 4, 30, "signs of life beside a store that hangs")
        finally:
            server.process.send_signal(signal.SIGCONT)
        before = workers(service)
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: workers(service) not in ([], before), 30, "another worker")
        killed = beat()
        wait_until(lambda: beat() > killed, 30, "its signs of life")


_TOLD_AGAIN = """
import os, pathlib, signal, sys, threading
from admin_api import settings, worker

wake = threading.Condition.notify_all

def told_again(condition):
    os.kill(os.getpid(), signal.SIGTERM)
    wake(condition)

threading.Condition.notify_all = told_again
worker.work(settings.load(pathlib.Path(sys.argv[1])))
"""


def test_a_worker_that_is_told_to_end_while_it_ends_already_ends(make_service) -> None:
    """Its parent and a signal to their whole group tell it in the same moment."""
    service = make_service()
    done = subprocess.run([sys.executable, "-c", _TOLD_AGAIN, service.settings_file], timeout=60)
    assert done.returncode == 0


def workers(service: Service) -> list[int]:
    """The children of the service that listen nowhere."""
    assert service.process is not None
    pid = service.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if is_worker(int(child))]


def is_worker(pid: int) -> bool:
    """Whether a process has none of the server's sockets."""
    inodes = {
        fields[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if (fields := line.split())[3] == "0A"
    }
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(link)
        if target.startswith("socket:[") and target[8:-1] in inodes:
            return False
    return True
