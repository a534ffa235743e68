"""Breaks things while the clients work, by a seeded choice.

kill: a whole service, or one of its server processes, dies (SIGKILL) and is started again (F1, F2).
freeze: a server process stands still for seconds and goes on (F16).
F4: PostgreSQL is killed and started again.
F29: the store is not mounted: an empty directory lies in its place, while the services run or
     while they start; then it is back.
F30: a service with another catalog is started over the same store and asked to take products in.
F31: an older copy of the catalog comes back; the services run on it; then it is rebuilt.

What the service has to refuse in such a state (503) is no violation; what it must not do is.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import urllib3

from tests.campaign.checker import Violation
from tests.campaign.history import History
from tests.campaign.site import Site
from tests.campaign.workers import NAMES, Gate
from tests.support.servers import Service, wait_until

FAULTS = ("kill", "freeze", "F4", "F29", "F30", "F31")


class Chaos:
    """One thread that does one thing at a time."""

    def __init__(
        self, site: Site, history: History, gate: Gate, faults: Iterable[str], seed: str
    ) -> None:
        self.site = site
        self.history = history
        self.gate = gate
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.worst_recovery = 0.0
        #: Whether an older catalog came back: the event log is not whole then.
        self.forgot = False
        actions: dict[str, list[Callable[[], None]]] = {
            "kill": [self.kill_service, self.kill_service, self.kill_process],
            "freeze": [self.freeze],
            "F4": [self.kill_database],
            "F29": [self.not_mounted],
            "F30": [self.another_catalog],
            "F31": [self.older_catalog],
        }
        self._actions = [action for name in FAULTS if name in faults for action in actions[name]]

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(self.random.uniform(0.5, 2.5)):
            if not self._actions:
                continue
            action = self.random.choice(self._actions)
            self.history.note(action.__name__)
            self.counts[action.__name__.replace("_", " ")] += 1
            try:
                action()
            except Exception as error:
                self._say("campaign broken", f"{action.__name__}: {error!r}"[:2000])
                stop.set()
                raise

    def _say(self, kind: str, sentence: str) -> None:
        self.violations.append(Violation(kind, "", sentence))

    # -- processes ---------------------------------------------------------------------------
    def kill_service(self) -> None:
        for number in self.random.choice([[0], [1], [0], [1], [0, 1]]):
            self.site.kill(number)
        time.sleep(self.random.choice([0, 0, 1.0]))
        self.recover()

    def recover(self) -> None:
        """Start what was killed; how long until a request is answered again."""
        begun = time.monotonic()
        wait_until(self._answers, 300, "a listing by both services")
        self.worst_recovery = max(self.worst_recovery, time.monotonic() - begun)

    def _answers(self) -> bool:
        self.counts["restarts"] += self.site.revive()
        return all(map(_lists, self.site.services))

    def kill_process(self) -> None:
        number = self.random.randrange(2)
        children = self.site.children(number)
        if children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.random.choice(children), signal.SIGKILL)

    def freeze(self) -> None:
        children = self.site.children(self.random.randrange(2))
        if not children:
            return
        pid = self.random.choice(children)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self.random.uniform(1, 6))
            os.kill(pid, signal.SIGCONT)

    def kill_database(self) -> None:
        assert self.site.postgres is not None
        self.site.postgres.control("stop", "-m", "immediate")
        time.sleep(self.random.uniform(0, 2))
        self.site.postgres.control("restart", "-l", str(self.site.postgres.directory / "log"))
        self.recover()

    # -- stores and catalogs that are not those expected ---------------------------------------
    def not_mounted(self) -> None:
        away, wrong = Path(f"{self.site.store}.away"), self.site.directory / "not-the-store"
        restarted = self.random.random() < 0.5
        if restarted:
            self.site.kill(0)
            self.site.kill(1)
        self.site.store.rename(away)
        self.site.store.mkdir()
        try:
            if restarted:
                self.counts["restarts"] += self.site.revive()
            time.sleep(3)
            for service in self.site.services:
                try:
                    wait_until(lambda service=service: not _is_ready(service), 30, "the notice")
                except AssertionError:
                    self._say("ready without its store", "an empty directory lay in its place")
            written = [path for path in self.site.store.rglob("*") if path.is_file()]
            if written:
                names = ", ".join(str(path.relative_to(self.site.store)) for path in written[:3])
                self._say("written beside the store", f"into an empty directory: {names}")
        finally:
            self.site.store.rename(wrong)
            away.rename(self.site.store)
            shutil.rmtree(wrong, ignore_errors=True)
        for service in self.site.services:
            wait_until(lambda service=service: _is_ready(service), 180, "the store is back: ready")

    def another_catalog(self) -> None:
        intruder = self.site.another(f"intruder-{self.counts['another catalog']}")
        try:
            intruder.start()
        except AssertionError:
            self.history.note("the intruder did not start")
            intruder.stop(signal.SIGKILL)
            return
        self.counts["services of other catalogs"] += 1
        try:
            if _is_ready(intruder):
                self._say("ready over another's store", "a service with another catalog")
            taken = 0
            for number in range(12):
                name = self.random.choice(NAMES)
                with contextlib.suppress(urllib3.exceptions.HTTPError):
                    answer = intruder.request(
                        "PUT",
                        f"/v1/uploads/{name}?duplicates=replace",
                        f"intruder {number} ".encode() * 1000,
                    )
                    taken += answer.status < 300
                time.sleep(0.1)
            time.sleep(1.5)  # a round or two of its housekeeping
            if taken:
                self._say(
                    "taken into another's store",
                    f"a service with another catalog took {taken} of 12 products in",
                )
        finally:
            intruder.stop(signal.SIGKILL)

    def older_catalog(self) -> None:
        copy = self.site.back_up()
        time.sleep(self.random.uniform(1, 4))
        with self.gate.held():
            for number in range(2):
                self.site.kill(number)
            self.site.restore(copy)
            self.forgot = True
            self.counts["restarts"] += self.site.revive()
            time.sleep(6)  # housekeeping gives up what the old catalog takes for running
            done = self.site.services[0].cli(
                "rebuild", "--settings", str(self.site.services[0].settings_file), check=False
            )
            if done.returncode != 0:
                self._say("rebuild failed", (done.stdout + done.stderr)[-1500:])
            self.recover()
        copy.unlink()


def _is_ready(service: Service) -> bool:
    with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
        url = f"{service.url}/healthz/ready"
        return service.pool.request("GET", url, timeout=5).status == 200
    return False


def _lists(service: Service) -> bool:
    return service.request("GET", "/v1/products?limit=1", timeout=30).status == 200
