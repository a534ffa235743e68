"""P23: a bulk import by three nodes, each behind a link of its own, beside one by one node."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path

from bench.measure import Row, timed
from bench.payload import start
from tests.support.servers import ROOT, Weed
from tests.support.slow_proxy import slow_proxy

_COUNT, _SIZE = 36, 4 << 20
#: Bytes per second of a node's link, shared by all its connections.
_LINK = 12 << 20
_NODES = 3
_rounds = itertools.count()


def p23(directory: Path, server: Weed, options: Namespace) -> list[Row]:
    """Workers on one catalog and one store, which read their sources each over a link of its own."""
    source = server.backend()
    sections = {"server": {"worker": False}, "jobs": {"chunks": 2, "parallel_items": 4}}
    store = {"type": "posix", "root": directory / "p23-store"}
    sections["sources"] = {"s3": [{"backend": source}]}
    service = start(directory, store, "p23", **sections)
    ratios = []
    try:
        with contextlib.ExitStack() as stack:
            nodes = [_settings(service.settings_file, number, server, stack) for number in range(3)]
            for _ in range(options.repeats):
                seconds = {}
                for count in (1, _NODES):
                    lines = _sources(server, source["bucket"])
                    with _workers(nodes[:count]):
                        time.sleep(3)  # they have begun to look for work then
                        seconds[count] = timed(lambda lines=lines: _import(service, lines))
                ratios.append(seconds[1] / seconds[_NODES])
    finally:
        service.stop()
    link = f"{_LINK >> 20} MiB/s"
    what = f"bulk import of {_COUNT} files of {_SIZE >> 20} MiB from s3 by {_NODES} nodes of {link}"
    return [Row("P23", f"{what} / by 1 node", ratios, target=2.5, dream=2.9)]


def _settings(common: Path, number: int, server: Weed, stack: contextlib.ExitStack) -> Path:
    """A node's settings: the common ones, but for the way to the sources."""
    endpoint, slowness = stack.enter_context(slow_proxy(server.endpoint))
    slowness.rate, slowness.link = _LINK, threading.Lock()
    path = common.with_name(f"node-{number}.toml")
    path.write_text(common.read_text().replace(server.endpoint, endpoint))
    return path


@contextlib.contextmanager
def _workers(settings: list[Path]):
    command = [sys.executable, "-m", "admin_api", "worker", "--settings"]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(settings[0].with_name("workers.log").open("ab"))
        workers = [
            subprocess.Popen([*command, str(path)], cwd=ROOT, stdout=log, stderr=log)
            for path in settings
        ]
        try:
            yield
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.wait()


def _sources(server: Weed, bucket: str) -> list[dict]:
    """New objects in the bucket; their lines."""
    client, turn, lines = server.client(), next(_rounds), []
    for number in range(_COUNT):
        key, data = f"in/n{turn}-{number:03}.bin", os.urandom(_SIZE)
        client.put_object(Bucket=bucket, Key=key, Body=data)
        digest = hashlib.sha256(data).hexdigest()
        lines.append({"source": f"s3://{bucket}/{key}", "size": _SIZE, "sha256": digest})
    return lines


def _import(service, lines: list[dict]) -> None:
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    headers = {"Content-Type": "application/x-ndjson"}
    job = service.json("POST", "/v1/imports", body, 202, headers=headers)
    while job["state"] != "done":
        time.sleep(0.1)
        job = service.json("GET", f"/v1/jobs/{job['id']}")
    assert job["done"] == len(lines), job
