"""One campaign from its beginning to its figures."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.campaign import checker, ending
from tests.campaign.bodies import Bodies
from tests.campaign.chaos import Chaos
from tests.campaign.client import Client
from tests.campaign.history import History
from tests.campaign.site import Site
from tests.campaign.workers import Gate, Worker

DEFAULT_FAULTS = ("kill", "freeze", "drop")
ALL_FAULTS = (*DEFAULT_FAULTS, "F4", "F29", "F30", "F31", "F32")
WORKERS = 7


@dataclass
class Report:
    """The figures of a campaign."""

    seed: int
    seconds: float
    operations: dict[str, dict[str, int]] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    products: int = 0
    worst_recovery: float = 0.0
    violations: list[checker.Violation] = field(default_factory=list)


def run(site: Site, seconds: float, seed: int, faults: Sequence[str], at_least: int = 0) -> Report:
    """Let clients work and faults happen for ``seconds``, then compare everything.

    On a busy machine it goes on until ``at_least`` so many requests were made, up to six times as
    long.
    Raises ValueError where the site cannot have one of the faults.
    """
    _require_possible(site, faults)
    begun = time.monotonic()
    history = History(site.directory / "history.jsonl")
    bodies = Bodies(seed)
    site.revive()
    token = site.services[0].token()
    for service in site.services:
        service.tokens[()] = token

    def worker(name: str, patience: float = 0.0) -> Worker:
        client = Client(site.services, token, history, name, patience)
        return Worker(
            client, bodies, site.inbox, f"{seed}-{name}", "drop" in faults, site.weed is not None
        )

    gate, stop = Gate(), threading.Event()
    chaos = Chaos(site, history, gate, faults, f"{seed}-chaos")
    with ThreadPoolExecutor(WORKERS + 1) as pool:
        running = [pool.submit(worker(str(n)).run, gate, stop) for n in range(WORKERS)]
        running.append(pool.submit(chaos.run, stop))
        stop.wait(seconds)
        while len(history.operations) < at_least and time.monotonic() < begun + 6 * seconds:
            stop.wait(1)
        stop.set()
    for future in running:
        future.result()
    site.revive()
    report = Report(seed, 0.0)
    report.violations = [*chaos.violations, *ending.settle(site, chaos.forgot)]
    report.violations += [checker.Violation("service ended", "", words) for words in site.ended]
    ending.look(site, worker("end", ending.PATIENCE_SECONDS), history)
    report.violations += checker.check(history.operations, bodies)
    if not chaos.forgot:
        report.violations += checker.check_events(
            history.operations, ending.events(site.services[0])
        )
    report.products = len(ending.listing(site.services[0]))
    report.violations += ending.rebuild(
        site, 5 if "F32" in faults else 0, f"{seed}-damage", chaos.forgot
    )
    counted: dict[str, Counter[str]] = {}
    for operation in history.operations:
        kind = operation.request.get("way", operation.kind)
        counted.setdefault(kind, Counter())[operation.outcome] += 1
    report.operations = {kind: dict(counts) for kind, counts in sorted(counted.items())}
    report.faults = dict(chaos.counts)
    report.worst_recovery = round(chaos.worst_recovery, 1)
    report.seconds = round(time.monotonic() - begun, 1)
    return report


def _require_possible(site: Site, faults: Sequence[str]) -> None:
    if unknown := set(faults) - set(ALL_FAULTS):
        raise ValueError(f"no such faults: {', '.join(sorted(unknown))}; {', '.join(ALL_FAULTS)}")
    if "F4" in faults and site.postgres is None:
        raise ValueError("F4 kills PostgreSQL: it needs CATALOG=postgresql")
    if "F29" in faults and site.weed is not None:
        raise ValueError("F29 moves a directory away: it needs BACKEND=posix")
