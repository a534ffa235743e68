"""Runs the test tiers and says what each took.  Called by `make test`.

The local facility mostly waits, so the other tiers run beside it, at a low priority and one after
another, three of their files at once (they wait for their stores, too); their output comes when
they end.  The last of them are facilities on hosts of their own.  With paths as arguments only those
are run, as one tier.

Where a few tests failed, these are run once more when everything else has ended, and the end of the
output names them: beside a dozen hosts on two cores a test may lack the machine rather than the
product its promise.  A test that fails alone as well has failed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

#: In the order of the paths: files that take long and have few tests would come last otherwise.
THREE_AT_ONCE = ("-n", "3", "--dist", "loadfile", "--no-loadscope-reorder")
#: With what its tests print of themselves: reads, failures and seconds of each fault.
TELLING = ("-rP", "--durations=30")
#: More failures than these have a common cause that a quiet machine does not mend.
FEW = 5
#: So much less than the facility, whose tests count what clients are refused.
_NICE = 15


@dataclass
class Tier:
    """Some tests that are run together, and what came of them."""

    name: str
    paths: tuple[str, ...]
    options: tuple[str, ...] = ()
    code: int = 0
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)

    def run(self, tests: tuple[str, ...], options: tuple[str, ...], aside: bool) -> None:
        """Run pytest for these of its tests; beside another tier its output comes at the end."""
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            report = Path(directory) / "report.xml"
            command = [sys.executable, "-m", "pytest", *tests, *options, f"--junitxml={report}"]
            if aside:
                with (Path(directory) / "output").open("w+b") as output:
                    self.code = subprocess.call(
                        ["nice", "-n", str(_NICE), *command], stdout=output, stderr=output
                    )
                    output.seek(0)
                    sys.stdout.buffer.write(b"\n" + output.read())
                    sys.stdout.buffer.flush()
            else:
                self.code = subprocess.call(command)
            self.failed = failures(report) if self.code == 1 else []
        self.seconds += time.monotonic() - begun

    @property
    def outcome(self) -> str:
        return "passed" if self.code == 0 else f"FAILED (pytest's exit code {self.code})"


FACILITY = [Tier("facility", ("tests/facility", "--ignore", "tests/facility/apart"), TELLING)]
BESIDE = [
    Tier("unit and contract", ("tests/unit", "tests/contract"), THREE_AT_ONCE),
    Tier(
        "service, jobs, proseo, faults",
        ("tests/faults", "tests/campaign", "tests/jobs", "tests/proseo", "tests/api"),
        THREE_AT_ONCE,
    ),
    Tier("terraform", ("tests/terraform",), THREE_AT_ONCE),
    Tier("facilities apart", ("tests/facility/apart",), TELLING),
]


def failures(report: Path) -> list[str]:
    """The tests that a JUnit report says failed, as pytest takes them."""
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            path = case.get("classname", "").replace(".", "/")
            found.append(f"{path}.py::{case.get('name')}")
    return list(dict.fromkeys(found))


def run(tiers: list[Tier], aside: bool = False) -> None:
    """Run these tiers, one after another, whatever comes of them."""
    for tier in tiers:
        tier.run(tier.paths, tier.options, aside)


def run_again(tiers: list[Tier]) -> list[str]:
    """Run what failed once more, alone, where that was little; the tests that passed now."""
    passed_now = []
    for tier in tiers:
        failed = tier.failed
        if 0 < len(failed) <= FEW:
            print(f"\nOnce more, with the machine to themselves: {', '.join(failed)}", flush=True)
            tier.run(tuple(failed), TELLING, aside=False)
            passed_now += [test for test in failed if test not in tier.failed and tier.code < 2]
    return passed_now


def main() -> int:
    """0 if every tier passed; all of them are run whatever happens."""
    begun = time.monotonic()
    if sys.argv[1:]:
        tiers = [Tier(" ".join(sys.argv[1:]), tuple(sys.argv[1:]))]
        run(tiers)
        passed_now = []
    else:
        tiers = [*FACILITY, *BESIDE]
        beside = threading.Thread(target=run, args=(BESIDE, True))
        beside.start()
        run(FACILITY)
        beside.join()
        passed_now = run_again(tiers)
    print("\nWhat each tier took:")
    for tier in tiers:
        print(f"  {tier.name:30} {tier.seconds / 60:5.1f} min  {tier.outcome}")
    print(f"  {'all':30} {(time.monotonic() - begun) / 60:5.1f} min")
    for test in passed_now:
        print(f"  PASSED ONLY AT THE SECOND TRY, to be looked at: {test}")
    sys.stdout.flush()
    return 1 if any(tier.code for tier in tiers) else 0


if __name__ == "__main__":
    raise SystemExit(main())
