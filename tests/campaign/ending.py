"""What is left when everything has come to rest: looked at from outside, then rebuilt from nothing."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from typing import Any

from tests.campaign.checker import Violation
from tests.campaign.history import History, Sighting
from tests.campaign.site import Site
from tests.campaign.workers import Worker
from tests.support.servers import Service

#: How long something may take that must come about in the end; only a slow machine needs so much.
PATIENCE_SECONDS = 300.0
_KEPT = ("id", "name", "generation", "digest", "hold", "retention", "size", "file_count", "path")
_DAMAGES = ("truncated", "altered", "garbage", "unknown version", "missing")


def settle(site: Site, has_forgotten: bool = False) -> Iterator[Violation]:
    """Wait until nothing is left over; what is left after that is a violation each.

    Of an attempt that began after the backup that came back (``has_forgotten``) nobody knows: its
    files stay, and ``reconcile`` must tell them; files that a record names are never such.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        leftovers = list(_leftovers(site, has_forgotten))
        if not leftovers or time.monotonic() > deadline:
            break
        time.sleep(1)
    yield from leftovers
    service = site.services[0]
    yield from _reconciled(site, service, "reconcile", has_forgotten)
    chain = service.json("GET", "/v1/events/chain")
    if not chain["intact"]:
        yield Violation("event chain broken", "", f"at event {chain['first_broken']}")


def look(site: Site, worker: Worker, history: History) -> None:
    """List everything, tombstones too, and read every file; into the history as worker ``end``."""
    available: list[Sighting] = []
    for kind, state in (
        ("list", "available"),
        ("list removed", "removed"),
        ("list removed", "removing"),
    ):
        path: str | None = f"/v1/products?state={state}&limit=1000"
        while path:
            operation = history.begin("end", 0, kind)
            page = worker.client.send(operation, "GET", path)
            assert page is not None, (path, operation)
            if state == "available":
                available += operation.seen
            path = None
            if page["next"]:
                path = f"/v1/products?state={state}&limit=1000&cursor={page['next']}"
    for product in available:
        shown = worker.show(product, product.name)
        for file in shown.files or () if shown else ():
            worker.read_file(shown, file)


def events(service: Service) -> list[dict[str, Any]]:
    """The whole event log."""
    found: list[dict[str, Any]] = []
    after = 0
    while True:
        page = service.json("GET", f"/v1/events?after={after}&limit=1000")
        found += page["events"]
        if not page["events"]:
            return found
        after = page["next"]


def rebuild(site: Site, damage: int, seed: str, has_forgotten: bool = False) -> Iterator[Violation]:
    """Throw the catalog away and rebuild it from the store: the same products must come of it.

    With ``damage`` so many records are damaged before (fault F32): each that can be read must be
    told by its key, the bytes that no record names any more by ``reconcile``, and every product
    that is not theirs must be there.
    """
    before = listing(site.services[0])
    site.stop()
    damaged = _damage(site, damage, random.Random(seed))
    fresh = site.another("rebuilt")
    done = fresh.cli("rebuild", "--settings", str(fresh.settings_file), check=False)
    said = done.stdout + done.stderr
    for key, (what, _) in damaged.items():
        if what != "missing" and (key not in said or done.returncode == 0):
            yield Violation("damage not told", "", f"rebuild says nothing of {key} ({what})")
    if done.returncode != 0 and not damaged:
        yield Violation("rebuild failed", "", said[-1500:])
    fresh.start()
    try:
        after = listing(fresh)
        touched = {name for _, names in damaged.values() for name in names}
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name) and name not in touched:
                yield Violation(
                    "rebuilt otherwise", name, f"was {before.get(name)}, is {after.get(name)}"
                )
        done = fresh.cli("reconcile", check=False)
        if not damaged:
            yield from _reconciled(site, fresh, "reconcile after rebuild", has_forgotten)
        for name in sorted(touched & before.keys() - after.keys()):
            for item in before[name]:
                if item["path"].lstrip("/") not in done.stdout:
                    yield Violation(
                        "lost without a word", name, "its record was damaged; reconcile is silent"
                    )
            chain = fresh.json("GET", "/v1/events/chain")
            if not chain["intact"]:
                yield Violation("event chain broken", "", "after the rebuild")
    finally:
        fresh.stop()


def listing(service: Service) -> dict[str, list[dict[str, Any]]]:
    """Available products by name, with what must survive."""
    found: dict[str, list[dict[str, Any]]] = {}
    for item in service.json("GET", "/v1/products?limit=1000")["products"]:
        found.setdefault(item["name"], []).append({key: item[key] for key in _KEPT})
    return found


def _reconciled(
    site: Site, service: Service, what: str, has_forgotten: bool
) -> Iterator[Violation]:
    done = service.cli("--json", "reconcile", check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    findings = [line for line in lines if line["type"] == "finding"]
    if has_forgotten:
        nameless = _nameless(site)
        findings = [
            item for item in findings if item["kind"] != "unknown" or item["key"] not in nameless
        ]
    if findings or done.returncode not in (0, 1):
        yield Violation(what, "", f"{findings}\n{done.stderr}"[-1500:])


def _nameless(site: Site) -> set[str]:
    """Keys in the store that no record has ever named."""
    named: set[str] = set()
    for data in site.records().values():
        for line in data.splitlines():
            named |= {file["key"] for file in json.loads(line)["files"]}
    return site.objects() - named


def _leftovers(site: Site, has_forgotten: bool) -> Iterator[Violation]:
    service = site.services[0]
    for item in service.json("GET", "/v1/products?state=removing&limit=1000")["products"]:
        yield Violation("never removed", item["name"], f"generation {item['generation']}")
    known: set[str] = set()
    told = _told(site)
    for items in listing(service).values():
        for item in items:
            shown = service.json("GET", f"/v1/products/{item['id']}")
            known |= {site.key(file["uri"]) for file in shown["files"]}
            if told.get((item["id"], item["generation"])) != (item["hold"], item["retention"]):
                yield Violation(
                    "not in its record", item["name"],
                    f"generation {item['generation']}: hold {item['hold']}, retention "
                    f"{item['retention']}",
                )  # fmt: skip
    stored = site.objects()
    nameless = _nameless(site) if has_forgotten else set()
    for key in sorted(stored - known - nameless):
        yield Violation("orphan", "", f"{key} belongs to no product")
    for key in sorted(known - stored):
        yield Violation("acknowledged and unreadable", "", f"the store has no {key}")
    for key in site.open_multiparts():
        yield Violation("orphan", "", f"an upload in parts of {key} was never ended")


def _told(site: Site) -> dict[tuple[str, int], tuple[str | None, str | None]]:
    """What the newest records say: hold and retention date by id and generation."""
    newest: dict[tuple[str, int], dict[str, Any]] = {}
    for data in site.records().values():
        for line in data.splitlines():
            said = json.loads(line)
            place = (said["id"], said["generation"])
            if place not in newest or newest[place]["number"] < said["number"]:
                newest[place] = said
    return {
        place: (said.get("hold_reason"), said.get("retention_until"))
        for place, said in newest.items()
    }


def _damage(site: Site, count: int, chance: random.Random) -> dict[str, tuple[str, set[str]]]:
    """Damage ``count`` records, each in another way: key -> the way, names of its products."""
    records = site.records()
    chosen = chance.sample(sorted(records), min(count, len(records)))
    damaged = {}
    for number, key in enumerate(chosen):
        what, data = _DAMAGES[number % len(_DAMAGES)], records[key]
        names = {json.loads(line)["name"] for line in data.splitlines() if line.strip()}
        site.overwrite(key, _damaged(what, data))
        damaged[key] = (what, names)
    return damaged


def _damaged(what: str, data: bytes) -> bytes | None:
    if what == "truncated":
        return data[: len(data) // 2]
    if what == "altered":  # one letter of what every statement has, and still a statement
        return re.sub(
            rb'("attempt": ?")(.)',
            lambda m: m[1] + (b"0" if m[2] != b"0" else b"1"),
            data,
            count=1,
        )
    if what == "garbage":
        return b"\0" * len(data)
    if what == "unknown version":
        return re.sub(rb'"version": ?[0-9]+', b'"version":99', data)
    return None
