"""Runs a campaign and prints its figures; ``make campaign`` calls it.

Exits with 1 on any violation; the history and the services' logs are kept then.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.campaign.driver import ALL_FAULTS, DEFAULT_FAULTS, Report, run
from tests.campaign.site import site

#: Violations printed, and characters of each: a broken promise tends to be broken many times.
_SHOWN = 40
_LINE = 600


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long clients work")
    parser.add_argument("--backend", choices=["posix", "s3"], default="posix")
    parser.add_argument("--catalog", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument(
        "--faults", default=",".join(DEFAULT_FAULTS), help=f"of {','.join(ALL_FAULTS)}; or all"
    )
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(1_000_000)
    faults = [name for name in options.faults.split(",") if name]
    if faults == ["all"]:
        faults = list(ALL_FAULTS)
        if options.catalog == "sqlite":
            faults.remove("F4")
        if options.backend == "s3":
            faults.remove("F29")
    directory = Path(tempfile.mkdtemp(prefix="campaign-"))
    print(f"seed {seed}, history in {directory}", file=sys.stderr)
    with site(directory, options.backend, options.catalog) as made:
        report = run(made, options.seconds, seed, faults)
    if options.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        print(table(report))
    if report.violations:
        return 1
    shutil.rmtree(directory)
    return 0


def table(report: Report) -> str:
    """The figures for people; violations first, which a log that is cut must still show."""
    lines = [
        f"{'violations':28}{len(report.violations):6}",
        *[str(item)[:_LINE] for item in report.violations[:_SHOWN]],
    ]
    if len(report.violations) > _SHOWN:
        lines.append(f"... and {len(report.violations) - _SHOWN} more; all with --json")
    lines.append(f"{'requests':16}{'done':>8}{'refused':>9}{'unknown':>9}")
    for kind, counts in report.operations.items():
        numbers = [counts.get(outcome, 0) for outcome in ("ok", "refused", "unknown")]
        lines.append(f"{kind:16}{numbers[0]:8}{numbers[1]:9}{numbers[2]:9}")
    lines += [f"{name:28}{count:6}" for name, count in sorted(report.faults.items())]
    lines += [
        f"{'products at the end':28}{report.products:6}",
        f"{'worst recovery':28}{report.worst_recovery:6} s",
        f"{'whole campaign':28}{report.seconds:6} s, seed {report.seed}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
