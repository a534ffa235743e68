"""P4, P5, P6, P8, P9, P11, P16, P21, P25: many products at once, by jobs or by many clients.

Products are of 64 KiB where nothing else is said, digests are announced and compared, each product
has its statement in the store.  The Java storage manager that P21 and P25 name is no part of this.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from sqlalchemy import text

from admin_api.catalog.database import Catalog
from admin_api.products.digests import Digester
from admin_api.settings import JobSettings, load
from admin_api.storage.base import Storage
from admin_api.storage.posix import PosixStorage
from admin_api.storage.s3 import S3Storage
from bench.measure import Row, timed
from bench.memory import resident
from bench.payload import s5cmd, start
from tests.support import catalogs
from tests.support.servers import ACCESS_KEY, SECRET_KEY, Service, Weed

_COUNT, _SIZE, _LOOP = 1000, 64 << 10, 100
_LARGE_COUNT, _LARGE_SIZE = 4, 256 << 20
_MIDDLE_COUNT, _MIDDLE_SIZE = 200, 1 << 20
_CLIENTS, _SINGLES = 16, 160
_NDJSON = {"Content-Type": "application/x-ndjson"}
_rounds = itertools.count()


def _filled(directory: Path, count: int = _COUNT, size: int = _SIZE) -> list[dict]:
    """Files with new bytes, so that nothing is stored already; their lines."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    turn, lines = next(_rounds), []
    for number in range(count):
        path, digest = directory / f"b{turn}-{number:05}.bin", hashlib.sha256()
        with path.open("wb") as file:
            for at in range(0, size, 1 << 20):
                data = os.urandom(min(1 << 20, size - at))
                file.write(data)
                digest.update(data)
        lines.append({"source": path.as_uri(), "size": size, "sha256": digest.hexdigest()})
    os.sync()
    return lines


def _import(service: Service, lines: list[dict]) -> None:
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    job = service.json("POST", "/v1/imports", body, 202, headers=_NDJSON)
    while job["state"] != "done":
        time.sleep(0.1)
        job = service.json("GET", f"/v1/jobs/{job['id']}")
    assert job["done"] == len(lines), job


def p4(directory: Path, server: Weed, options: Namespace) -> list[Row]:
    """A bulk import of large files into a bucket beside ``s5cmd cp``, which verifies nothing."""
    backend = server.backend()
    service = start(directory, backend, "p4")
    inbox, ratios, rates = service.directory / "inbox" / "bulk", [], []
    try:
        _import(service, _filled(inbox, 1))
        for _ in range(options.repeats):
            lines = _filled(inbox, _LARGE_COUNT, _LARGE_SIZE)
            ours = timed(lambda lines=lines: _import(service, lines))
            target = f"s3://{backend['bucket']}/peer-{next(_rounds)}/"
            peer = timed(lambda target=target: s5cmd(server, "cp", f"{inbox}/*", target))
            rates.append(_LARGE_COUNT * (_LARGE_SIZE >> 20) / ours)
            ratios.append(peer / ours)
    finally:
        service.stop()
    what = f"bulk import of {_LARGE_COUNT} files of {_LARGE_SIZE >> 20} MiB (s3), digests compared"
    return [
        Row("P4", f"{what} / s5cmd cp", ratios, target=0.95, dream=1.05),
        Row("P4", what, rates, unit="MiB/s"),
    ]


def p16(directory: Path, server: Weed, options: Namespace) -> list[Row]:
    """What catalog, record and job cost: an import of 1 MiB files beside their puts alone.

    The puts have the same store, digests and threads, and nothing else.
    """
    rows = []
    for kind, backend in (
        ("directory", {"type": "posix", "root": directory / "p16-store"}),
        ("s3", server.backend()),
    ):
        service = start(directory, backend, f"p16-{kind}")
        settings = load(service.settings_file)
        if kind == "s3":
            store = S3Storage(settings.storage.mounts[0].backend)
        else:
            (directory / "p16-bare").mkdir()
            store = PosixStorage(directory / "p16-bare")
        inbox, costs = service.directory / "inbox" / "bulk", []
        try:
            _import(service, _filled(inbox, 50))
            for _ in range(options.repeats):
                lines = _filled(inbox, _MIDDLE_COUNT, _MIDDLE_SIZE)
                ours = timed(lambda of=service, lines=lines: _import(of, lines))
                paths = sorted(inbox.iterdir())
                bare = timed(lambda paths=paths, store=store: _put_all(store, paths))
                costs.append(100 * (ours - bare) / bare)
        finally:
            service.stop()
        what = f"catalog, record and job for files of 1 MiB ({kind}), beside their puts alone"
        rows.append(Row("P16", what, costs, "%", 5, 2, False))
    return rows


def _put_all(store: Storage, paths: Sequence[Path]) -> None:
    def put(path: Path) -> None:
        digester = Digester()
        store.put(f"bare/{path.name}", digester.through([path.read_bytes()]), _MIDDLE_SIZE)
        digester.result()

    with ThreadPoolExecutor(JobSettings().parallel_items) as pool:
        list(pool.map(put, paths))


def p21(directory: Path, server: Weed, options: Namespace) -> list[Row]:
    """Single ingests by reference on a directory, by one client and by sixteen."""
    service = start(directory, {"type": "posix", "root": directory / "p21-store"}, "p21")
    inbox = service.directory / "inbox" / "bulk"
    ratios, one, many = [], [], []

    def ingest(line: dict) -> None:
        service.json("POST", "/v1/products", line, 201)

    try:
        for _ in range(options.repeats):
            lines = _filled(inbox, 2 * _SINGLES)
            few, rest = lines[: _SINGLES // 4], lines[_SINGLES:]
            with ThreadPoolExecutor(_CLIENTS) as pool:
                alone = timed(lambda few=few: [ingest(line) for line in few]) / len(few)
                beside = timed(lambda rest=rest: list(pool.map(ingest, rest))) / len(rest)
            ratios.append(alone / beside)
            one.append(1 / alone)
            many.append(1 / beside)
    finally:
        service.stop()
    what = "single ingests of 64 KiB by reference (directory)"
    return [
        Row("P21", f"{what}: {_CLIENTS} clients / 1 client", ratios, target=4, dream=8),
        Row("P21", f"{what}, 1 client", one, "products/s"),
        Row("P21", f"{what}, {_CLIENTS} clients", many, "products/s"),
    ]


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
