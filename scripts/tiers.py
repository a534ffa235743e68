"""Runs the test tiers and says what each took.  Called by `make test`.

The local facility mostly waits, so the other tiers run beside it, at a low priority and one after
another, two of their files at once; their output comes when they end.  The last of them are facilities
on hosts of their own.  With paths as arguments only those are run, as one tier.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time

TWO_AT_ONCE = ("-n", "2", "--dist", "loadfile")
#: With what its tests print of themselves: reads, failures and seconds of each fault.
TELLING = ("-rP", "--durations=30")
FACILITY = {"facility": ("tests/facility", "--ignore", "tests/facility/apart", *TELLING)}
BESIDE = {
    "unit and contract": ("tests/unit", "tests/contract", *TWO_AT_ONCE),
    "service, jobs, proseo, faults": (
        *("tests/api", "tests/jobs", "tests/proseo", "tests/faults", "tests/campaign"),
        *TWO_AT_ONCE,
    ),
    "terraform": ("tests/terraform", *TWO_AT_ONCE),
    "facilities apart": ("tests/facility/apart", *TELLING),
}
#: So much less than the facility, whose tests count what clients are refused.
_NICE = 15

Took = dict[str, tuple[int, float]]


def run(tiers: dict[str, tuple[str, ...]], took: Took, aside: bool = False) -> None:
    """Run pytest for each tier; exit code and seconds go into ``took``."""
    for name, arguments in tiers.items():
        command = [sys.executable, "-m", "pytest", *arguments]
        begun = time.monotonic()
        if aside:
            with tempfile.TemporaryFile() as output:
                code = subprocess.call(
                    ["nice", "-n", str(_NICE), *command], stdout=output, stderr=output
                )
                output.seek(0)
                sys.stdout.buffer.write(b"\n" + output.read())
                sys.stdout.buffer.flush()
        else:
            code = subprocess.call(command)
        took[name] = (code, time.monotonic() - begun)


def main() -> int:
    """0 if every tier passed; all of them are run whatever happens."""
    took: Took = {}
    begun = time.monotonic()
    if sys.argv[1:]:
        run({" ".join(sys.argv[1:]): tuple(sys.argv[1:])}, took)
    else:
        beside = threading.Thread(target=run, args=(BESIDE, took, True))
        beside.start()
        run(FACILITY, took)
        beside.join()
    print("\nWhat each tier took:")
    for name, (code, seconds) in took.items():
        outcome = "passed" if code == 0 else f"FAILED (pytest's exit code {code})"
        print(f"  {name:28} {seconds / 60:5.1f} min  {outcome}")
    print(f"  {'all':28} {(time.monotonic() - begun) / 60:5.1f} min", flush=True)
    return 1 if any(code for code, _ in took.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
