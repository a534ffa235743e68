"""Says which test tiers can run on this machine, and what the others lack.  Called by `make test`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.servers import postgres_bin

NEEDS = {
    "PostgreSQL (s3-postgresql variants of api and faults)": postgres_bin() is not None,
    "curl (resuming retrieval)": shutil.which("curl") is not None,
    "openssl (https sources)": shutil.which("openssl") is not None,
    "root (small file systems for full disks)": os.geteuid() == 0,
    "root, Maven, a JDK, wget and aria2 (the local facility with real Alluxio)": os.geteuid() == 0
    and all(map(shutil.which, ("mvn", "javac", "ssh", "wget", "aria2c"))),
}
INSTALL = "apt-get install postgresql curl openssl maven openjdk-17-jdk-headless openssh-client wget aria2; run as root"


def main() -> int:
    """0 if every tier can run; in CI anything missing is a failure."""
    missing = [name for name, there in NEEDS.items() if not there]
    for name in missing:
        print(f"NOT RUN without: {name}")
    if missing:
        print(f"  ({INSTALL})")
    return 1 if missing and os.environ.get("CI") else 0


if __name__ == "__main__":
    raise SystemExit(main())
