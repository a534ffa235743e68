"""``make bench-facility``: the measures of the local facility, ratios in one run.

    python -m bench.facility [p1] [p14] [p17] [p18] [p20] [rss] [--repeats 5]

The facility must stand (`make facility`).  Clients, balancers, proxies, workers and under-store share
this machine's cores, so ratios count and absolute figures do not.  Bandwidth is limited with ``tc`` on
the hosts' interfaces where a measure says so.  P19 is printed by the facility tests.  P20 makes six
more hosts (another 6 GiB of memory) and takes them away again; it is measured only when it is named.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from admin_api.storage.alluxio_cluster import preference
from bench.measure import Row
from tests.support.local_facility import ADDRESSES, NODES, Facility

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20
PROXY_HEADER = (
    "Authorization: AWS4-HMAC-SHA256 Credential=alluxio/20260101/us-east-1/s3/aws4_request,"
    " SignedHeaders=host, Signature=0"
)


class Bench:
    """One run over a standing facility."""

    def __init__(self, repeats: int) -> None:
        self.facility = Facility()
        self.repeats = repeats
        self.made: list[dict[str, Any]] = []
        ca = self.facility.ssh("control", "cat /etc/storage-manager/secrets/ca.crt")
        for node in NODES:
            self.facility.ssh(node, f"cat > /tmp/ca.crt <<'E'\n{ca}\nE")

    def product(self, size: int, node: str) -> dict[str, Any]:
        """A product of incompressible bytes that ``node`` should serve."""
        while True:
            name = f"bench-{time.time_ns()}.bin"
            if preference([*NODES], f"unsorted/{name}/{name}")[0] == node:
                break
        product = self.facility.upload(name, os.urandom(size))
        self.made.append(product)
        return product

    def clear(self) -> None:
        for product in self.made:
            self.facility.remove(product)
        self.made = []

    def link(self, product: dict[str, Any]) -> str:
        link = self.facility.link(product)
        return link[link.index("/dl/") :]

    def seconds(self, host: str, url: str, options: str = "") -> float:
        """How long curl takes on a host."""
        command = "curl -s --cacert /tmp/ca.crt -o /dev/null -w '%{time_total} %{http_code}'"
        command += f" {options} {shlex.quote(url)}"
        total, code = self.facility.ssh(host, command).split()
        assert code == "200", (host, url, code)
        return float(total)

    def interleaved(self, ours: Any, direct: Any) -> list[float]:
        """direct / ours for every repeat: 1 is as fast as without us."""
        ours(), direct()
        ratios = []
        for _ in range(self.repeats):
            first, between, last = direct(), ours(), direct()
            ratios.append((first + last) / 2 / between)
        return ratios

    @contextmanager
    def limited(self, hosts: list[str], rate: str) -> Iterator[None]:
        """The hosts' outgoing bandwidth."""
        rule = f"tc qdisc replace dev eth0 root tbf rate {rate} burst 1mb latency 100ms"
        for host in hosts:
            self.facility.ssh(host, rule)
        try:
            yield
        finally:
            for host in hosts:
                self.facility.ssh(host, "tc qdisc del dev eth0 root")

    def balancer_cpu(self, node: str) -> float:
        """Seconds of CPU that the balancer of a node has used."""
        ticks = self.facility.ssh(
            node, "for p in $(pidof haproxy); do cut -d' ' -f14,15 /proc/$p/stat; done"
        )
        return sum(map(int, ticks.split())) / os.sysconf("SC_CLK_TCK")

    # -- measures ----------------------------------------------------------------------------
    def p1(self) -> list[Row]:
        product = self.product(256 * MIB, "node2")
        link, key = self.link(product), f"unsorted/{product['name']}/{product['name']}"
        own = ADDRESSES["node2"]
        proxy = (f"http://{own}:39999/api/v1/s3/{key}", f"-H '{PROXY_HEADER}'")
        self.seconds("node2", f"http://127.0.0.1:8081{link}")
        rows = []
        for what, url in (
            ("plain", f"http://127.0.0.1:8081{link}"),
            ("TLS", f"https://{own}:8443{link}"),
        ):
            ratios = self.interleaved(
                lambda url=url: self.seconds("node2", url), lambda: self.seconds("node2", *proxy)
            )
            text = f"256 MiB by link ({what}) / at the proxy, all on 2 shared cores"
            rows.append(Row("P1", text, ratios, target=0.7, dream=0.9))
            used = []
            for _ in range(self.repeats):
                before = self.balancer_cpu("node2")
                for _ in range(4):
                    self.seconds("node2", url)
                used.append(self.balancer_cpu("node2") - before)
            goal = (1.0, 0.8) if what == "plain" else (1.5, 1.3)
            text = f"CPU seconds of the balancer per GiB ({what})"
            rows.append(Row("P1", text, used, "s", *goal, upwards=False))
        with self.limited(["node2"], "1gbit"):
            ratios = self.interleaved(
                lambda: self.seconds("node1", f"https://{own}:8443{link}"),
                lambda: self.seconds("node1", *proxy),
            )
        text = "256 MiB by link (TLS) / at the proxy, over 1 Gbit/s"
        rows.append(Row("P1", text, ratios, target=0.97, dream=0.99))
        return rows

    def p14(self) -> list[Row]:
        product = self.product(1024, "node2")
        link, key = self.link(product), f"unsorted/{product['name']}/{product['name']}"
        program = f"""
import http.client, json, ssl, statistics, time
context = ssl.create_default_context(cafile="/tmp/ca.crt")
ways = {{
    "proxy": (http.client.HTTPConnection("{ADDRESSES["node2"]}", 39999), "/api/v1/s3/{key}",
              {{"Authorization": {PROXY_HEADER.partition(": ")[2]!r}}}),
    "plain": (http.client.HTTPConnection("127.0.0.1", 8081), {link!r}, {{}}),
    "TLS": (http.client.HTTPSConnection("{ADDRESSES["node2"]}", 8443, context=context), {link!r}, {{}}),
}}
times = {{way: [] for way in ways}}
for turn in range(900):
    for way, (connection, path, headers) in ways.items():
        begun = time.perf_counter()
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        assert answer.status == 200 and len(answer.read()) == 1024, way
        if turn >= 300:
            times[way].append((time.perf_counter() - begun) * 1000)
print(json.dumps({{way: statistics.median(found) for way, found in times.items()}}))
"""
        found: dict[str, list[float]] = {"plain": [], "TLS": []}
        for _ in range(self.repeats):
            medians = json.loads(self.facility.ssh("node2", f"python3 - <<'E'\n{program}E"))
            for way in found:
                found[way].append(medians[way] - medians["proxy"])
        return [
            Row(
                "P14",
                f"ms added to a 1 KiB read by link ({way}), p50",
                values,
                "ms",
                3,
                1,
                upwards=False,
            )
            for way, values in found.items()
        ]

    def p17(self) -> list[Row]:
        rows = []
        for size in (64 * MIB, 256 * MIB):
            ratios = []
            with self.limited(["s3"], "200mbit"):
                for _ in range(min(3, self.repeats)):
                    product = self.product(size, "node2")
                    url = f"https://{ADDRESSES['node2']}:8443{self.link(product)}"
                    cold = self.seconds("node2", url)
                    warm = statistics.median(self.seconds("node2", url) for _ in range(3))
                    ratios.append(cold / warm)
            text = f"cold / warm read of {size // MIB} MiB, under-store limited to 200 Mbit/s"
            rows.append(Row("P17", text, ratios, target=3))
        return rows

    def p18(self) -> list[Row]:
        size, count = 32 * MIB, 30
        spread = [self.product(size, NODES[number % 3]) for number in range(count)]
        alone = [self.product(size, "node1") for _ in range(count)]

        def read(products: list[dict[str, Any]]) -> float:
            links = [self.facility.link(product) for product in products]
            begun = time.monotonic()
            with ThreadPoolExecutor(6) as pool:
                assert all(len(data) == size for data in pool.map(self.facility.read, links))
            return time.monotonic() - begun

        read(spread), read(alone)
        ratios = []
        with self.limited([*NODES], "200mbit"):
            for _ in range(min(3, self.repeats)):
                ratios.append(read(alone) / read(spread))
        text = f"{count} x 32 MiB by 6 clients: 3 nodes / 1 node, nodes limited to 200 Mbit/s"
        return [Row("P18", text, ratios, target=2.5, dream=2.9)]

    def p20(self) -> list[Row]:
        """As an operator does it: the host is made, then `site.yml` is run."""
        facility = self.facility
        more = {f"node{number}": f"10.89.8.{10 + number}" for number in range(4, 10)}
        facility.hosts("up", *(f"{node}={address}" for node, address in more.items()))

        def site(nodes: list[str]) -> float:
            groups = {
                "alluxio_masters": ["control"],
                "admin": ["control"],
                "monitoring": ["control"],
            }
            inventory = facility.inventory("p20", {**groups, "alluxio_workers": nodes})
            (inventory / "host_vars").mkdir(exist_ok=True)
            for node, address in more.items():
                said = json.dumps({"facility_address": address})
                (inventory / "host_vars" / f"{node}.yml").write_text(said)
            begun = time.monotonic()
            facility.playbook("site.yml", "-i", str(inventory), inventory="")
            return time.monotonic() - begun

        try:
            at_three = site([*NODES, *[*more][:1]])
            site([*NODES, *[*more][:5]])
            at_eight = site([*NODES, *more])
        finally:
            facility.hosts("down", *more)
            site([*NODES])
        return [
            Row("P20", "a node joins 3 nodes", [at_three], "s"),
            Row("P20", "a node joins 8 nodes", [at_eight], "s"),
            Row(
                "P20",
                "8 nodes / 3 nodes",
                [at_eight / at_three],
                target=1.3,
                dream=1.1,
                upwards=False,
            ),
        ]

    def rss(self) -> list[Row]:
        rows = []
        for host in ("control", *NODES):
            found = self.facility.ssh(host, "ps -eo rss=,args= --sort=-rss | head -12")
            for line in found.splitlines():
                size, _, command = line.strip().partition(" ")
                if int(size) > 10 * 1024:
                    words = [
                        word for word in command.split() if word[0] not in "-/" or "bin" in word
                    ]
                    name = command.split()[-1] if "java" in command else " ".join(words)[:40]
                    rows.append(Row("RSS", f"{host}: {name}", [int(size) / 1024], "MiB"))
        return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.facility", description=__doc__)
    parser.add_argument("measures", nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    bench, rows = Bench(options.repeats), []
    for name in options.measures or ["p1", "p14", "p17", "p18", "rss"]:
        print(f"== {name}", flush=True)
        try:
            for row in getattr(bench, name)():
                print(f"   {row.sentence()}", flush=True)
                rows.append(row)
        finally:
            bench.clear()
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "facility.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row.HEADER)
        writer.writerows(row.values() for row in rows)
    print(f"Wrote {RESULTS / 'facility.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
