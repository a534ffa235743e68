"""P13: removing many products at once, against ``s5cmd rm`` of as many objects."""

from __future__ import annotations

import itertools
import json
import os
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.measure import Row, timed
from bench.payload import s5cmd, start
from tests.support.servers import Service, Weed

_PRODUCTS, _SIZE, _CLIENTS = 2000, 64 << 10, 16
_rounds = itertools.count()


def p13(directory: Path, server: Weed, options: Namespace) -> list[Row]:
    """`purge` of products whose retention has ended; each run of ours beside one of the peer."""
    backend = server.backend()
    service = start(directory, backend, "p13")
    source = directory / "p13-peer"
    source.mkdir()
    for number in range(_PRODUCTS):
        (source / f"{number}.bin").write_bytes(os.urandom(_SIZE))
    target = f"s3://{backend['bucket']}/peer/"
    ratios = []
    try:
        for _ in range(options.repeats):
            _fill(service)
            s5cmd(server, "cp", f"{source}/*", target)
            ours = timed(lambda: _purge(service))
            ratios.append(timed(lambda: s5cmd(server, "rm", f"{target}*")) / ours)
    finally:
        service.stop()
    what = f"purge of {_PRODUCTS:,} products, recorded / s5cmd rm of as many objects of 64 KiB (s3)"
    return [Row("P13", what, ratios, target=0.8, dream=1.0)]


def _fill(service: Service) -> None:
    """Products that may go when this returns."""
    ends = datetime.now(UTC) + timedelta(seconds=1)
    query = f"?retention={ends.isoformat().replace('+00:00', 'Z')}"
    turn = next(_rounds)

    def put(number: int) -> None:
        path = f"/v1/uploads/p13-{turn}-{number}.bin{query}"
        service.json("PUT", path, os.urandom(_SIZE), 201)

    with ThreadPoolExecutor(_CLIENTS) as pool:
        list(pool.map(put, range(_PRODUCTS)))
    time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds() + 0.1))


def _purge(service: Service) -> None:
    answer = service.request("POST", "/v1/maintenance/purge")
    summary = json.loads(answer.data.splitlines()[-1])
    assert summary["products"] == _PRODUCTS, summary
