"""Rebuild: a catalog is made anew from the records of very many products.

The records are written as the service writes them, for products of two files; their data are not
there, which a rebuild does not ask for.  SQLite over a directory, and PostgreSQL over S3.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from admin_api.products.records import RecordedFile, Statement, record_key
from admin_api.services.facility import open_facility
from admin_api.settings import load
from admin_api.storage.base import put_bytes
from bench.measure import Row
from tests.support.servers import Weed, postgres, postgres_bin, service_in

_BEGIN = datetime(2020, 1, 1, tzinfo=UTC)
_FILES = 2
#: Ten minutes for a million products, on two quiet cores.
_TARGET = 1_000_000 / 600
_WRITERS = 16


def rebuild(directory: Path, server: Weed, options: Namespace) -> list[Row]:
    """Products a second of ``storage-manager rebuild``, and its memory."""
    count = min(options.products, 1_000_000)
    backend = {"type": "posix", "root": str(directory / "rebuild-store")}
    (directory / "rebuild-store").mkdir()
    rows = _measure(directory / "rebuild-posix", backend, None, count, "posix, SQLite")
    if postgres_bin() is None:
        return rows
    # A bucket takes a record in a millisecond: a tenth is enough to see the rate.
    with postgres(directory / "rebuild-postgres") as database:
        backend = server.backend()
        rows += _measure(directory / "rebuild-s3", backend, database, count // 10, "s3, PostgreSQL")
    return rows


def _measure(directory: Path, backend: dict, database: object, count: int, what: str) -> list[Row]:
    service = service_in(directory, backend, database)  # type: ignore[arg-type]  # a Postgres or none
    storage = open_facility(load(service.settings_file)).storage

    def put(number: int) -> None:
        said = _statement(number)
        put_bytes(storage, record_key(said.id, said.name, 1, 1), said.line())

    with ThreadPoolExecutor(_WRITERS) as pool:
        for _ in pool.map(put, range(count)):
            pass
    command = [str(Path(sys.executable).parent / "storage-manager"), "rebuild", "--json"]
    begun, memory = time.monotonic(), 0
    with (directory / "said").open("w+b") as output:
        running = subprocess.Popen(
            [*command, "--settings", str(service.settings_file)],
            stdout=output,
            stderr=subprocess.DEVNULL,
        )
        # Not wait4's maximum: that remembers the process it was forked from.
        while not (found := os.wait4(running.pid, os.WNOHANG))[0]:
            memory = max(memory, _high_water(running.pid))
            time.sleep(0.1)
        output.seek(0)
        said = output.read()
    seconds, status, used = time.monotonic() - begun, found[1], found[2]
    assert status == 0 and json.loads(said.splitlines()[-1])["statements"] == count, said[-500:]
    cpu = used.ru_utime + used.ru_stime
    about = f"rebuild of {count:,} products ({what}, {cpu / count * 1e3:.2f} ms of CPU each)"
    return [
        Row("REBUILD", about, [count / seconds], "products/s", target=_TARGET),
        Row("REBUILD", f"{about}: memory", [memory / 1024], "MiB", 200, upwards=False),
    ]


def _high_water(pid: int) -> int:
    """Most resident memory so far, in KiB; 0 for one that has just ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def _statement(number: int) -> Statement:
    name = f"S1A_IW_SLC__1SDV_{number:012d}.SAFE"
    time = _BEGIN + timedelta(seconds=number)
    digest = hashlib.sha256(name.encode()).hexdigest()
    directory = f"S1/IW_SLC__1S/{time:%Y/%m/%d}/{name}"
    return Statement(
        state="available",
        attempt=digest[:32],
        id=digest[32:],
        name=name,
        generation=1,
        number=1,
        time=time,
        subject="bench",
        mission="S1",
        product_type="IW_SLC__1S",
        sensing_start=time,
        sensing_stop=time + timedelta(seconds=25),
        directory=directory,
        level="digest",
        created_at=time,
        available_at=time,
        list_digest=digest,
        files=tuple(_files(directory, digest)),
    )


def _files(directory: str, digest: str) -> Iterator[RecordedFile]:
    for path in [f"measurement/{part}.tiff" for part in range(_FILES)]:
        yield RecordedFile(
            path=path, size=1 << 20, sha256=digest, md5=digest[:32], key=f"{directory}/{path}"
        )
