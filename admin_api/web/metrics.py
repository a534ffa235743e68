"""Prometheus metrics; served on their own port by ``web/server.py``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    make_wsgi_app,
    multiprocess,
)

REQUESTS = Counter("storage_manager_requests_total", "HTTP requests", ["method", "route", "status"])
SECONDS = Histogram(
    "storage_manager_request_seconds",
    "Seconds until the answer's headers",
    ["method", "route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
RUNNING = Gauge(
    "storage_manager_requests_running", "HTTP requests at work", multiprocess_mode="livesum"
)
REFUSED = Counter(
    "storage_manager_requests_refused_total",
    "Requests told to come again before they had a thread",
    ["kind"],
)
PAYLOAD_IN = Counter("storage_manager_payload_received_bytes_total", "Bytes of request bodies")
PAYLOAD_OUT = Counter("storage_manager_payload_sent_bytes_total", "Bytes of files handed out")
WORKER_ALIVE = Gauge(
    "storage_manager_worker_alive_timestamp_seconds",
    "When the worker gave its last sign of life, whatever its work was waiting for",
    multiprocess_mode="mostrecent",
)
WORK_DONE = Gauge(
    "storage_manager_work_done_timestamp_seconds",
    "When a kind of the worker's work last came to its end",
    ["work"],
    multiprocess_mode="mostrecent",
)
CLEARED = Counter(
    "storage_manager_housekeeping_cleared_total", "Leftovers cleared by housekeeping", ["kind"]
)
CAPACITY = Gauge(
    "storage_manager_store_bytes",
    "Capacity of a store",
    ["mount", "kind"],
    multiprocess_mode="mostrecent",
)
FAILING = Gauge(
    "storage_manager_part_failing",
    "1 while the catalog or a store does not answer, or is not the expected one",
    ["part"],
    multiprocess_mode="mostrecent",
)
NODE_FAILING = Gauge(
    "storage_manager_node_read_failing",
    "1 while a product cannot be read through a node",
    ["node"],
    multiprocess_mode="mostrecent",
)
OLDEST = Gauge(
    "storage_manager_oldest_work_seconds",
    "Seconds without a sign of life of the product that has been longest in a passing state",
    ["state"],
    multiprocess_mode="mostrecent",
)
STORED = Gauge(
    "storage_manager_stored_bytes",
    "Bytes of available products",
    ["mission", "product_type"],
    multiprocess_mode="mostrecent",
)
PRODUCTS = Gauge(
    "storage_manager_products",
    "Available products",
    ["mission", "product_type"],
    multiprocess_mode="mostrecent",
)


def metrics_app(
    directories: Sequence[Path], environ: dict[str, Any], start_response: Any
) -> Iterable[bytes]:
    """The WSGI application of the metrics port: everything that processes have counted."""
    if environ.get("PATH_INFO") not in ("/metrics", "/"):
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"Metrics are at /metrics.\n"]
    registry = CollectorRegistry()
    for directory in directories:
        if directory.is_dir():
            multiprocess.MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]  # it has no types
    return make_wsgi_app(registry)(environ, start_response)  # type: ignore[no-any-return]  # it has no types
