"""The worker: bulk jobs, and what a facility does by itself, outside of the web server.

Every kind of work has a thread of its own and is never done twice at once; the main loop gives a
sign of life every second whatever they are waiting for.  Any number of workers may run: every
action is a compare-and-set.  ``storage-manager worker`` runs it; embedded, ``serve`` does, as a
process of its own.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial

from admin_api import memory
from admin_api.catalog.database import Catalog
from admin_api.services import bulk, housekeeping, identity, monitoring, node_reads
from admin_api.services.access import Principal
from admin_api.services.facility import Facility, join
from admin_api.settings import Settings
from admin_api.web import counts, logs

log = logging.getLogger(__name__)

_BEAT_SECONDS = 1.0
_GAUGES_SECONDS = 60.0
#: So often a worker without work looks for chunks of jobs.
_LOOK_SECONDS = 0.25
_JOBS = "jobs"
#: How long a worker that is told to end waits for the items that it has begun; whoever takes their
#: chunks up afterwards begins them again.
_DRAIN_SECONDS = 20.0
#: So many missions and types have gauges of their own; names of products are clients'.
_MAX_LABELS = 200
#: The service itself, when it measures what is stored.
_EVERYTHING = Principal("system", frozenset(["read"]), None)


def work(settings: Settings, parent: int | None = None) -> None:
    """Work until a signal ends it, or until the process ``parent`` is gone.

    What is under way then and does not end in a moment is left as it is: any other worker takes it
    up.
    """
    # They are waited for: a handler runs in the midst of whatever the loop does, and a second one
    # in the midst of the first, where both would wait for the same lock for ever.
    signals = {signal.SIGTERM} if parent else {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    memory.bound_heap()
    if parent is None:
        logs.configure(settings.server.log_level)
    counts.begin(settings.state_dir, "worker")
    log.info("the worker begins", extra={"pid": os.getpid()})
    facility = join(settings, Catalog(settings.catalog))

    def is_over(seconds: float) -> bool:
        """Whether a signal comes within so long, or nobody wants the worker any more."""
        is_told = signal.sigtimedwait(signals, seconds) is not None
        return is_told or (parent is not None and os.getppid() != parent)

    stop = threading.Event()
    _run(_works(facility, stop), is_over, stop)
    counts.end()


def _run(
    works: Mapping[str, tuple[Callable[[], object], float]],
    is_over: Callable[[float], bool],
    stop: threading.Event,
) -> None:
    """Do each of ``works`` (action and seconds between its rounds), and beat, until ``is_over``.

    Then ``stop`` is set, and the chunks of jobs are waited for: each ends the items that it has
    begun and gives the rest back.
    """
    from admin_api.web import metrics

    threads = [
        threading.Thread(
            target=partial(_rounds, name, action, seconds, stop), name=name, daemon=True
        )
        for name, (action, seconds) in works.items()
    ]
    for thread in threads:
        thread.start()
    metrics.WORKER_ALIVE.set(time.time())
    while not is_over(_BEAT_SECONDS):
        metrics.WORKER_ALIVE.set(time.time())
    stop.set()
    deadline = time.monotonic() + _DRAIN_SECONDS
    for thread in threads:
        if thread.name.startswith(_JOBS):
            thread.join(max(deadline - time.monotonic(), 0))


def _rounds(name: str, action: Callable[[], object], seconds: float, stop: threading.Event) -> None:
    """Rounds of one kind of work; a failing one is logged and the next one tries again."""
    from admin_api.web import metrics

    while not stop.wait(seconds):
        try:
            action()
        except Exception:
            log.exception("%s failed; it will be tried again", name)
        else:
            metrics.WORK_DONE.labels(name).set(time.time())


def _works(
    facility: Facility, stop: threading.Event
) -> Mapping[str, tuple[Callable[[], object], float]]:
    interval = facility.settings.housekeeping.interval_seconds
    return {
        "housekeeping": (partial(_clean, facility), interval),
        "gauges": (partial(_measure, facility), min(interval, _GAUGES_SECONDS)),
        "nodes": (partial(_look, facility), interval),
        "stores": (partial(identity.look_again, facility.storage), identity.WATCH_SECONDS),
        **{
            f"{_JOBS}-{number}": (partial(bulk.work, facility, stop), _LOOK_SECONDS)
            for number in range(1, facility.settings.jobs.chunks + 1)
        },
    }


def _clean(facility: Facility) -> None:
    from admin_api.web import metrics

    cleared = housekeeping.clean(facility)
    for kind in housekeeping.Cleared.__dataclass_fields__:
        metrics.CLEARED.labels(kind).inc(getattr(cleared, kind))


def _look(facility: Facility) -> None:
    """Put what does not answer, and where clients cannot read, into the metrics."""
    from admin_api.web import metrics

    for part, problem in monitoring.readiness(facility).items():
        metrics.FAILING.labels(part).set(problem is not None)
    for read in node_reads.read_through_nodes(facility):
        metrics.NODE_FAILING.labels(read.node).set(read.problem is not None)
        if read.problem:
            log.warning("a node cannot be read through", extra=asdict(read))


def _measure(facility: Facility) -> None:
    """Put what is stored, and how full the stores are, into the metrics."""
    from admin_api.web import metrics

    for mount in monitoring.mounts(facility):
        for kind, value in (("total", mount.capacity.total), ("free", mount.capacity.free)):
            if value is not None:
                metrics.CAPACITY.labels(f"/{mount.path}", kind).set(value)
    for state, seconds in monitoring.oldest_work(facility).items():
        metrics.OLDEST.labels(state).set(seconds)
    sums: dict[tuple[str, str], list[int]] = {}
    usage = sorted(monitoring.usage(facility, _EVERYTHING), key=lambda item: -item.bytes)
    for number, item in enumerate(usage):
        labels = (item.mission or "", item.product_type or "")
        total = sums.setdefault(labels if number < _MAX_LABELS else ("other", "other"), [0, 0])
        total[0] += item.bytes
        total[1] += item.products
    for labels, (size, products) in sums.items():
        metrics.STORED.labels(*labels).set(size)
        metrics.PRODUCTS.labels(*labels).set(products)
