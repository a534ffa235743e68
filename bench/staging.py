"""P15: staged files: read against ``cat``, staged cold against a direct download, asked for hot."""

from __future__ import annotations

import base64
import os
import resource
import statistics
import subprocess
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import urllib3

from admin_api.services.access import Scope
from admin_api.services.callers import line_of
from bench.measure import Row, interleaved
from tests.support.servers import Service, Weed, service_in
from tests.support.slow_proxy import slow_proxy

_SIZE = 256 << 20
_HITS, _CLIENTS, _WAITERS = 4000, 4, 100
_USER = ("bench", "bench-password")
_BLOCK = 1 << 20


def p15(directory: Path, server: Weed, options: Namespace) -> list[Row]:
    """A facility over S3 with a staging cache, and prosEO's facade before it."""
    backend = server.backend()
    here = directory / "p15"
    here.mkdir()
    (here / "callers").write_text(line_of(*_USER, list(Scope), None))
    with slow_proxy(server.endpoint) as (url, slowness):
        service = service_in(
            here,
            {**backend, "endpoint": url},
            staging={"directory": here / "cache", "keep_seconds": 0},
            proseo={"enabled": True, "accept": ["basic"], "callers_file": here / "callers"},
        )
        service.start()
        try:
            rows = _reads(service, server, backend["bucket"], here, options.repeats)
            rows += _hits(service, options.repeats)
            rows.append(_waiting(service, slowness, options.repeats))
        finally:
            service.stop()
    return rows


def _product(service: Service, name: str, size: int) -> dict:
    with (service.directory / name).open("wb") as file:
        for _ in range(0, size, _BLOCK):
            file.write(os.urandom(min(_BLOCK, size)))
    with (service.directory / name).open("rb") as file:
        made: dict = service.json("PUT", f"/v1/uploads/{name}", file, 201)
    (service.directory / name).unlink()
    return made


def _reads(service: Service, server: Weed, bucket: str, here: Path, repeats: int) -> list[Row]:
    made = _product(service, "large.bin", _SIZE)
    key = made["files"][0]["uri"].removeprefix(f"s3://{bucket}/")
    cached, direct = here / "cache" / key, here / "direct.bin"

    def stage() -> None:
        cached.unlink(missing_ok=True)
        service.json("POST", "/v1/stage", {"products": [made["id"]]}, 201)

    def download() -> None:
        direct.unlink(missing_ok=True)
        with direct.open("wb") as file:
            for chunk in (
                server.client().get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(_BLOCK)
            ):
                file.write(chunk)
            os.fsync(file.fileno())

    _, _, cold = interleaved(stage, download, repeats)
    direct.write_bytes(cached.read_bytes())

    def cat(path: Path) -> None:
        subprocess.run(["cat", str(path)], stdout=subprocess.DEVNULL, check=True)

    def ask_and_read() -> None:
        answer = service.json("POST", "/v1/stage", {"products": [made["id"]]}, 201)
        cat(Path(answer["files"][0]["local_path"]))

    _, _, hot = interleaved(lambda: cat(cached), lambda: cat(direct), repeats)
    _, _, asked = interleaved(ask_and_read, lambda: cat(direct), repeats)
    return [
        Row("P15", "hot read of a staged file of 256 MiB / cat of it", hot, target=0.9, dream=0.98),
        Row("P15", "the same, with the request for its path", asked),
        Row("P15", "stage cold / direct download and sync (s3, 256 MiB)", cold),
    ]


def _headers() -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(":".join(_USER).encode()).decode()}


def _fetch(pool: urllib3.PoolManager, service: Service, path: str) -> float:
    url = f"{service.url}/proseo/storage-mgr/v1/productfiles?pathInfo={quote(path, safe='')}"
    begun = time.perf_counter()
    answer = pool.request("GET", url, headers=_headers())
    assert answer.status == 200, answer.data
    return time.perf_counter() - begun


def _cpu(service: Service) -> float:
    """CPU seconds that the service has taken."""
    ticks, group = 0, os.getpgid(service.process.pid) if service.process else 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _hits(service: Service, repeats: int) -> list[Row]:
    path = _product(service, "hot.bin", 1 << 20)["files"][0]["uri"]
    pool = urllib3.PoolManager(maxsize=_CLIENTS)
    _fetch(pool, service, path)
    rates, lasts = [], []
    for _ in range(repeats):
        cpu = _cpu(service)
        with ThreadPoolExecutor(_CLIENTS) as threads:
            times = list(threads.map(lambda _: _fetch(pool, service, path), range(_HITS)))
        rates.append(_HITS / (_cpu(service) - cpu))
        lasts.append(1000 * statistics.quantiles(times, n=100)[-1])
    return [
        Row("P15", "hits of GET /productfiles per core and second", rates, "1/s", 1000),
        Row("P15", f"p99 of them, {_CLIENTS} clients", lasts, "ms", 20, upwards=False),
    ]


def _waiting(service: Service, slowness, repeats: int) -> Row:
    """How much later the last of many who wait has its answer than the first."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    late = []
    for turn in range(repeats):
        path = _product(service, f"wait-{turn}.bin", 4 << 20)["files"][0]["uri"]
        slowness.rate = 2 << 20
        ends = sorted(_all_wait(service, path))
        slowness.rate = None
        late.append(1000 * (ends[int(0.99 * len(ends)) - 1] - ends[0]))
    what = f"waiters' extra latency, p99 of {_WAITERS} (client and service on the same cores)"
    return Row("P15", what, late, "ms", 10, upwards=False)


def _all_wait(service: Service, path: str) -> list[float]:
    """When each of many who want one file at once has its answer."""
    pool = urllib3.PoolManager(maxsize=_WAITERS)

    def wait(_: int) -> float:
        _fetch(pool, service, path)
        return time.perf_counter()

    with ThreadPoolExecutor(_WAITERS) as threads:
        return list(threads.map(wait, range(_WAITERS)))
