"""P15: staged files: read against ``cat``, staged cold against a direct download, asked for hot.

And a cache of many entries: how long a restart takes, and a hit.
"""

from __future__ import annotations

import base64
import math
import os
import subprocess
import time
from argparse import Namespace
from pathlib import Path
from urllib.parse import quote

from admin_api.services.access import Scope
from admin_api.services.callers import line_of
from bench.asking import ask, p99
from bench.measure import Row, interleaved, timed
from tests.support.servers import Service, Weed, service_in, wait_until
from tests.support.slow_proxy import slow_proxy

_SIZE = 256 << 20
_HITS, _CLIENTS, _PACE, _WAITERS = 4000, 16, 500, (16, 100)
_USER = ("bench", "bench-password")
_BLOCK = 1 << 20
_SMALL = 1 << 20


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
            rows += [_waiting(service, slowness, many, options.repeats) for many in _WAITERS]
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


def _request(path: str) -> bytes:
    credentials = base64.b64encode(":".join(_USER).encode()).decode()
    return (
        f"GET /proseo/storage-mgr/v1/productfiles?pathInfo={quote(path, safe='')} HTTP/1.1\r\n"
        f"Host: localhost\r\nAuthorization: Basic {credentials}\r\n"
        "Accept: application/json; charset=UTF-8\r\n\r\n"
    ).encode()


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
    request = _request(_product(service, "hot.bin", 1 << 20)["files"][0]["uri"])
    ask(service, request, _CLIENTS, _CLIENTS)
    rates, paced, crowded = [], [], []
    for _ in range(repeats):
        cpu = _cpu(service)
        times = ask(service, request, _CLIENTS, _HITS)
        rates.append(_HITS / (_cpu(service) - cpu))
        crowded.append(p99([end - due for due, end in times]))
        times = ask(service, request, _CLIENTS, _HITS, _PACE)
        paced.append(p99([end - due for due, end in times]))
    return [
        Row("P15", "hits of GET /productfiles per core and second", rates, "1/s", 1000),
        Row(
            "P15",
            f"p99 of hits, {_CLIENTS} clients, together {_PACE} in a second",
            paced,
            "ms",
            20,
            upwards=False,
        ),
        Row("P15", f"p99 of hits, {_CLIENTS} clients that never pause", crowded, "ms"),
    ]


def _waiting(service: Service, slowness, clients: int, repeats: int) -> Row:
    """How much later the last of many who wait has its answer than the first."""
    late = []
    for turn in range(repeats):
        name = f"wait-{clients}-{turn}.bin"
        path = _product(service, name, 4 << 20)["files"][0]["uri"]
        slowness.rate = 2 << 20
        ends = sorted(end for _, end in ask(service, _request(path), clients, clients))
        slowness.rate = None
        late.append(1000 * (ends[math.ceil(0.99 * clients) - 1] - ends[0]))
    what = f"waiters' extra latency, p99 of {clients} (client and service on the same cores)"
    return Row("P15", what, late, "ms", 10, upwards=False)


# -- many entries ------------------------------------------------------------------------------
def entries(directory: Path, _server: Weed, options: Namespace) -> list[Row]:
    """A cache of few entries and of ``--entries``: a restart, its sum of sizes, hits."""
    here = directory / "entries"
    (here / "store").mkdir(parents=True)
    (here / "callers").write_text(line_of(*_USER, list(Scope), None))
    service = service_in(
        here,
        {"type": "posix", "root": here / "store"},
        staging={"directory": here / "cache", "in_place": False},
        proseo={"enabled": True, "accept": ["basic"], "callers_file": here / "callers"},
    )
    service.start()
    try:
        path = _product(service, "hot.bin", _SMALL)["files"][0]["uri"].removeprefix("file://")
        request = _request(path)
        ask(service, request, 1, 1)
        rows = _restarted(service, request, "1 entry", options.repeats)
        _fill(here / "cache", options.entries)
        rows += _restarted(service, request, f"{options.entries} entries", options.repeats)
    finally:
        service.stop()
    return rows


def _fill(cache: Path, count: int) -> None:
    """Empty files, a thousand in a directory."""
    for number in range(count):
        if number % 1000 == 0:
            inner = cache / f"filler/{number // 1_000_000}/{number // 1000}"
            inner.mkdir(parents=True)
        os.close(os.open(f"{inner}/{number}.nc", os.O_WRONLY | os.O_CREAT))


def _restarted(service: Service, request: bytes, what: str, repeats: int) -> list[Row]:
    first, summed, early, rates, late = [], [], [], [], []
    for _ in range(repeats):
        service.stop()
        (service.directory / "cache/.cache/bytes").write_text("7\n")
        service.start()
        begun = time.perf_counter()
        first.append(1000 * timed(lambda: ask(service, request, 1, 1)))
        times = ask(service, request, _CLIENTS, _PACE, _PACE)
        early.append(p99([end - due for due, end in times]))
        wait_until(lambda: _sum(service) == _SMALL, 600, "the sum of sizes")
        summed.append(time.perf_counter() - begun)
        cpu = _cpu(service)
        ask(service, request, _CLIENTS, _HITS)
        rates.append(_HITS / (_cpu(service) - cpu))
        times = ask(service, request, _CLIENTS, _HITS, _PACE)
        late.append(p99([end - due for due, end in times]))
    paced = f"{_CLIENTS} clients, together {_PACE} in a second"
    return [
        Row("P15", f"{what}: first hit after a restart", first, "ms", upwards=False),
        Row("P15", f"{what}: p99 of hits in the second after that, {paced}", early, "ms"),
        Row("P15", f"{what}: until the sizes are summed up again", summed, "s", upwards=False),
        Row("P15", f"{what}: hits per core and second", rates, "1/s", 1000),
        Row("P15", f"{what}: p99 of hits, {paced}", late, "ms", 20, upwards=False),
    ]


def _sum(service: Service) -> int:
    return int((service.directory / "cache/.cache/bytes").read_text())
