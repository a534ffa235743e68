"""P12 and P24: look-ups and listings with a million products against a thousand.

Two services side by side, their catalogs filled by the database itself; asked in turns, so that
whatever else the machine does meets both.  SQLite and PostgreSQL.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

from admin_api.catalog.database import Catalog
from admin_api.settings import load
from bench.measure import Row
from tests.support.catalogs import BEGIN, fill, product_id
from tests.support.servers import Postgres, Service, Weed, postgres, postgres_bin, service_in

FEW = 1000
_CLIENTS = 8
_ROUNDS = 40


def _day(number: int) -> str:
    return quote((BEGIN + timedelta(days=number)).isoformat())


#: Every filter, alone and with those that it is used with.
LISTINGS = {
    "first page": "/v1/products?",
    "newest first": "/v1/products?order=desc",
    "mission": "/v1/products?mission=S2",
    "mission and type": "/v1/products?mission=S1&product_type=IW_SLC__1S",
    "type": "/v1/products?product_type=OL_1_EFR___",
    "name": "/v1/products?name=S1_IW_SLC__1S_0000000919",
    "name prefix": "/v1/products?name_prefix=S2_MSIL1C_",
    "sensing window": f"/v1/products?sensing_from={_day(30)}&sensing_to={_day(90)}",
    "mission, type, sensing window": "/v1/products?mission=S3&product_type=OL_1_EFR___"
    f"&sensing_from={_day(30)}&sensing_to={_day(330)}",
    "created from": f"/v1/products?created_from={_day(200)}",
    "removed": "/v1/products?state=removed",
    "removed of a mission, newest first": "/v1/products?state=removed&mission=S2&order=desc",
    "events": "/v1/events?",
    "events, newest first": "/v1/events?order=desc",
    "events of a mission": "/v1/events?mission=S3",
    "events of a mission without any": "/v1/events?mission=S9",
    "events of a product": f"/v1/events?product_id={product_id(77)}",
    "what is stored": "/v1/storage",
}


def p12(directory: Path, server: Weed, options: Namespace) -> list[Row]:
    """Look-ups by id and by name while eight clients ask: p99, and many against few."""
    rows = []
    for kind, few, many in _pairs(directory / "p12", options.products):
        ratios, tails = [], []
        for _ in range(options.repeats):
            small, large = _under_load(few), _under_load(many)
            ratios.append(statistics.median(large) / statistics.median(small))
            tails.append(statistics.quantiles(large, n=100)[98] * 1000)
        what = f"look-up with {options.products:,} products ({kind}), {_CLIENTS} clients"
        rows.append(Row("P12", f"{what}: p99", tails, "ms", 50, 10, upwards=False))
        against = f"{what}: / {FEW:,} products"
        rows.append(Row("P12", against, ratios, target=1.5, dream=1.1, upwards=False))
    return rows


def p24(directory: Path, server: Weed, options: Namespace) -> list[Row]:
    """Every filter of every listing, many products against few."""
    rows = []
    for kind, few, many in _pairs(directory / "p24", options.products):
        for name, path in LISTINGS.items():
            ratios, seconds = _ratios(few, many, path, options.repeats)
            what = f"{name}: {options.products:,} / {FEW:,} products ({kind}, {seconds:.1f} ms)"
            rows.append(Row("P24", what, ratios, target=1.5, dream=1.1, upwards=False))
            print(f"   {rows[-1].sentence()}", flush=True)
    return rows


def _ratios(few: Service, many: Service, path: str, repeats: int) -> tuple[list[float], float]:
    """Ratios of the medians of several rounds, and the milliseconds with many products."""
    ratios, medians = [], []
    for service in (few, many):
        service.json("GET", path)  # warm
    for _ in range(repeats):
        taken: dict[str, list[float]] = {"few": [], "many": []}
        for _ in range(_ROUNDS):
            for name, service in (("few", few), ("many", many)):
                taken[name].append(_asked(lambda service=service: service.json("GET", path)))
        small, large = (statistics.median(taken[name]) for name in ("few", "many"))
        ratios.append(large / small)
        medians.append(large * 1000)
    return ratios, statistics.median(medians)


def _under_load(service: Service) -> list[float]:
    """Seconds of single look-ups."""

    def ask(client: int) -> list[float]:
        taken = []
        for turn in range(_ROUNDS):
            number = (client * _ROUNDS + turn) * 7 % (FEW - 10) + 1
            taken.append(
                _asked(
                    lambda number=number: service.json("GET", f"/v1/products/{product_id(number)}")
                )
            )
        return taken

    service.json("GET", f"/v1/products/{product_id(1)}")
    with ThreadPoolExecutor(_CLIENTS) as pool:
        return [item for found in pool.map(ask, range(_CLIENTS)) for item in found]


def _asked(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def _pairs(directory: Path, products: int) -> Iterator[tuple[str, Service, Service]]:
    """For each database: a service with few products and one with many."""
    with contextlib.ExitStack() as stack:
        yield "SQLite", *(_service(stack, directory, None, count) for count in (FEW, products))
    if postgres_bin() is None:
        print("   PostgreSQL is not installed: not measured", flush=True)
        return
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(postgres(directory / "postgres" / "data"))
        yield (
            "PostgreSQL",
            *(_service(stack, directory, database, count) for count in (FEW, products)),
        )


def _service(
    stack: contextlib.ExitStack, directory: Path, database: Postgres | None, count: int
) -> Service:
    here = directory / f"{'sqlite' if database is None else 'postgresql'}-{count}"
    backend = {"type": "posix", "root": here / "store"}
    service = service_in(here, backend, database, housekeeping={"interval_seconds": 600})
    service.start()  # makes the tables
    catalog = Catalog(load(service.settings_file).catalog)
    begun = time.monotonic()
    fill(catalog, count)
    catalog.close()
    print(f"   {count:,} products in {time.monotonic() - begun:.0f} s", flush=True)
    stack.callback(service.stop)
    return service
