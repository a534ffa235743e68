"""P22: how long `live` takes while everybody holds the service up, and the store hangs."""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from pathlib import Path

from bench.measure import Row
from tests.support.crowd import allowing, crowd, slow_source
from tests.support.servers import Weed, service_in, weed

_SAMPLES, _WARM_SECONDS, _PAUSE_SECONDS = 1000, 5.0, 0.01


def p22(directory: Path, _server: Weed, _options: Namespace) -> list[Row]:
    """99th percentile and maximum of `live`, over a connection of its own each time."""
    with weed(directory / "p22-weed") as store, slow_source() as origin:
        service = service_in(
            directory / "p22", store.backend(retry_seconds=1, timeout=5), sources=allowing(origin)
        )
        service.start()
        try:
            service.json("PUT", "/v1/uploads/kept.bin", b"kept", 201)
            with crowd(service, store, origin):
                time.sleep(_WARM_SECONDS)
                taken = []
                for _ in range(_SAMPLES):
                    begun = time.perf_counter()
                    answer = service.pool.request(
                        "GET", f"{service.url}/healthz/live", headers={"Connection": "close"}
                    )
                    taken.append((time.perf_counter() - begun) * 1000)
                    assert answer.status == 200
                    time.sleep(_PAUSE_SECONDS)
        finally:
            service.stop()
    what = "of live, the store hanging, 5,000 idle, 64 slow bodies, 32 slow ingests"
    p99 = statistics.quantiles(taken, n=100)[98]
    return [
        Row("P22", f"p99 {what}", [p99], "ms", 100, 20, upwards=False),
        Row("P22", f"maximum {what}", [max(taken)], "ms", upwards=False),
    ]
