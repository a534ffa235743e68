"""P5, P6, P8, P9, P11, P25: many products at once, by jobs.

Products are of 64 KiB, digests are announced and compared, each has its record.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import boto3
from sqlalchemy import text

from admin_api.catalog.database import Catalog
from admin_api.settings import load
from bench.measure import Row, timed
from bench.memory import resident
from bench.payload import s5cmd, start
from tests.support import catalogs
from tests.support.servers import ACCESS_KEY, SECRET_KEY, Service, Weed

_COUNT, _SIZE, _LOOP = 1000, 64 << 10, 100
_NDJSON = {"Content-Type": "application/x-ndjson"}
_rounds = itertools.count()


def _filled(directory: Path) -> list[dict]:
    """Files with new bytes, so that nothing is stored already; their lines."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    turn, lines = next(_rounds), []
    for number in range(_COUNT):
        path, data = directory / f"b{turn}-{number:05}.bin", os.urandom(_SIZE)
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        lines.append({"source": path.as_uri(), "size": _SIZE, "sha256": digest})
    os.sync()
    return lines


def _import(service: Service, lines: list[dict]) -> None:
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    job = service.json("POST", "/v1/imports", body, 202, headers=_NDJSON)
    while job["state"] != "done":
        time.sleep(0.1)
        job = service.json("GET", f"/v1/jobs/{job['id']}")
    assert job["done"] == len(lines), job


def p5(directory: Path, server: Weed, options: Namespace) -> list[Row]:
    """A bulk import into a bucket beside ``s5cmd cp``, and beside a loop with a client per file."""
    backend = server.backend()
    service = start(directory, backend, "p5")
    inbox = service.directory / "inbox" / "bulk"
    to_s5cmd, to_loop, rates = [], [], []
    try:
        _import(service, _filled(inbox)[:50])
        for _ in range(options.repeats):
            lines = _filled(inbox)
            ours = timed(lambda lines=lines: _import(service, lines))
            target = f"s3://{backend['bucket']}/peer-{next(_rounds)}/"
            peer = timed(lambda target=target: s5cmd(server, "cp", f"{inbox}/*", target))
            loop = timed(lambda: _loop(server, inbox)) * _COUNT / _LOOP
            rates.append(_COUNT / ours)
            to_s5cmd.append(peer / ours)
            to_loop.append(loop / ours)
    finally:
        service.stop()
    what = f"bulk import of {_COUNT} files of 64 KiB (s3), digested and recorded"
    return [
        Row("P5", f"{what} / s5cmd cp", to_s5cmd, target=0.9, dream=1.1),
        Row("P6", f"{what} / a loop with a client per file", to_loop, target=3, dream=10),
        Row("P5", what, rates, unit="products/s"),
    ]


def _loop(server: Weed, inbox: Path) -> None:
    """What is done where nobody thought of many: a client for each file, one after the other."""
    bucket = server.new_bucket()
    for path in sorted(inbox.iterdir())[:_LOOP]:
        client = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )
        client.upload_file(str(path), bucket, path.name)


def p25(directory: Path, server: Weed, options: Namespace) -> list[Row]:
    """A bulk import into a directory beside ``cp -r`` and ``sync``."""
    store = directory / "p25-store"
    service = start(directory, {"type": "posix", "root": store}, "p25")
    inbox = service.directory / "inbox" / "bulk"
    ratios, rates = [], []
    try:
        _import(service, _filled(inbox)[:50])
        for _ in range(options.repeats):
            lines = _filled(inbox)
            ours = timed(lambda lines=lines: _import(service, lines))
            copy = directory / f"p25-copy-{next(_rounds)}"
            command = f"cp -r {inbox} {copy} && sync -f {copy}"
            peer = timed(lambda command=command: subprocess.run(["sh", "-c", command], check=True))
            rates.append(_COUNT / ours)
            ratios.append(peer / ours)
    finally:
        service.stop()
    what = f"bulk import of {_COUNT} files of 64 KiB (directory), digested, recorded, durable"
    return [
        Row("P25", f"{what} / cp -r and sync", ratios, target=0.5, dream=0.8),
        Row("P25", what, rates, unit="products/s"),
    ]


def p11(directory: Path, server: Weed, options: Namespace) -> list[Row]:
    """A finished import of many products that is run again: begin, rate, memory."""
    count = options.products
    service = start(directory, {"type": "posix", "root": directory / "p11-store"}, "p11")
    try:
        _fill(service, count)
        begun = time.perf_counter()
        before = resident(service)
        job = service.json("POST", "/v1/imports", _again(count), 202, headers=_NDJSON)
        first = (job["started_at"], job["created_at"])
        sizes = [resident(service)]
        while job["state"] != "done":
            time.sleep(0.5)
            job = service.json("GET", f"/v1/jobs/{job['id']}")
            sizes.append(resident(service))
        seconds = time.perf_counter() - begun
        assert job["skipped"] == count, job
    finally:
        service.stop()
    moving = (_seconds(first[0]) - _seconds(first[1])) % 86400
    slope = (max(sizes) - before) / max(count / 100_000, 1)
    what = f"of {count:,} products"
    return [
        Row("P11", f"a finished import {what}, run again", [count / seconds], "items/s", 20_000),
        Row("P9", f"a manifest {what}: first item moving", [moving], "s", 2, 0.5, False),
        Row("P8", f"a job {what}: memory per 100,000 items", [slope], "MiB", 1, 0, False),
    ]


def _seconds(time_: str) -> float:
    hours, minutes, seconds = time_.partition("T")[2].rstrip("Z").partition("+")[0].split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _fill(service: Service, count: int) -> None:
    catalog = Catalog(load(service.settings_file).catalog)
    catalogs.fill(catalog, count * 10 // 9 + 10)  # every tenth is removed
    with catalog.writing() as session:
        session.execute(text("UPDATE file SET sha256 = printf('%064d', product_pk)"))
    catalog.close()


def _again(count: int) -> Iterator[bytes]:
    numbers = (number for number in itertools.count(1) if number % 10)
    total = count * 10 // 9 + 10
    for _ in range(count // 1000 + 1):
        part = list(itertools.islice(numbers, min(1000, count)))
        count -= len(part)
        lines = []
        for number in part:
            mission, kind, _ = catalogs.KINDS[number % len(catalogs.KINDS)]
            file = {"path": "file", "source": "file:///away/file", "sha256": f"{number:064}"}
            name = f"{mission}_{kind}_{number * 7919 % total:010}"
            lines.append(json.dumps({"name": name, "files": [file]}))
        if lines:
            yield ("\n".join(lines) + "\n").encode()
