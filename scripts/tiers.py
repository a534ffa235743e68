"""Runs the test tiers one after another and says what each took.  Called by `make test`.

Within the tiers that only need this machine's cores, two test files run side by side; the local
facility has the machine to itself, since its tests count failed reads.  With paths as arguments only
those are run, as one tier.
"""

from __future__ import annotations

import subprocess
import sys
import time

BESIDE_EACH_OTHER = ("-n", "2", "--dist", "loadfile")
TIERS: dict[str, tuple[str, ...]] = {
    "unit and contract": ("tests/unit", "tests/contract", *BESIDE_EACH_OTHER),
    "service, faults, campaign": (
        "tests/api",
        "tests/faults",
        "tests/campaign",
        *BESIDE_EACH_OTHER,
    ),
    "terraform": ("tests/terraform", *BESIDE_EACH_OTHER),
    "facility": ("tests/facility",),
}


def run(arguments: tuple[str, ...]) -> tuple[int, float]:
    """Exit code and seconds of one pytest."""
    begun = time.monotonic()
    code = subprocess.call([sys.executable, "-m", "pytest", *arguments])
    return code, time.monotonic() - begun


def main() -> int:
    """0 if every tier passed; all of them are run whatever happens."""
    chosen = {" ".join(sys.argv[1:]): tuple(sys.argv[1:])} if sys.argv[1:] else TIERS
    took = {name: run(arguments) for name, arguments in chosen.items()}
    print("\nWhat each tier took:")
    for name, (code, seconds) in took.items():
        outcome = "passed" if code == 0 else f"FAILED (pytest's exit code {code})"
        print(f"  {name:28} {seconds / 60:5.1f} min  {outcome}")
    return 1 if any(code for code, _ in took.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
