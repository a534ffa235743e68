"""Where the processes of a service keep their counts, so that any of them can show all.

The server and the worker each have a directory, which is emptied when they start: one of them can
be started anew while the other runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

#: A file system in memory, on Linux; directories of our own are made in it.
_MEMORY = Path("/dev/shm")  # noqa: S108  # nosec B108 # own directories within
_PARTS = ("server", "worker")
_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


def begin(state_dir: Path, part: str) -> None:
    """Let this process and those that it forks count in the emptied directory of ``part``.

    To be called before ``web/metrics.py`` is imported.  In memory where that can be: the files are
    mapped, and on a full disk a process that touches a page without a block behind it is killed.
    """
    in_memory, on_disk = _places(state_dir, part)
    with contextlib.suppress(OSError):
        shutil.rmtree(in_memory, ignore_errors=True)
        in_memory.mkdir(mode=0o700)  # fails on what somebody else has put there
        os.environ[_VARIABLE] = str(in_memory)
        return
    shutil.rmtree(on_disk, ignore_errors=True)
    on_disk.mkdir(parents=True)
    os.environ[_VARIABLE] = str(on_disk)


def directories(state_dir: Path) -> list[Path]:
    """Where counts may be; not all of them need be there."""
    return [place for part in _PARTS for place in _places(state_dir, part)]


def end() -> None:
    """Take the directory of this process away."""
    shutil.rmtree(os.environ[_VARIABLE], ignore_errors=True)


def _places(state_dir: Path, part: str) -> tuple[Path, Path]:
    name = hashlib.sha256(os.fsencode(state_dir.absolute())).hexdigest()[:16]
    return (
        _MEMORY / f"storage-manager-{os.getuid()}-{name}-{part}",
        state_dir / "metrics" / part,
    )
