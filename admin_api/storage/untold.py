"""Keys of which a cluster could not be told, kept until it was: a cache never looks by itself.

One file per key in the state directory, so that any number of processes may write and clear them,
and a crash loses none.  Used by ``storage/alluxio.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path


class Untold:
    """The keys of one store."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is made when the first key comes."""
        self._folder = folder

    def add(self, key: str) -> None:
        """Keep ``key``; it may be there already."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file(key).write_text(key, encoding="utf-8")

    def drop(self, key: str) -> None:
        """The cluster knows of ``key`` now."""
        self._file(key).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[str]:
        """All that are kept, in no order."""
        if self._folder.is_dir():
            for file in self._folder.iterdir():
                try:
                    key = file.read_text(encoding="utf-8")
                except FileNotFoundError:  # another process has just told the cluster
                    continue
                if self._file(key) == file:  # else it is being written
                    yield key

    def _file(self, key: str) -> Path:
        return self._folder / hashlib.sha256(key.encode()).hexdigest()
