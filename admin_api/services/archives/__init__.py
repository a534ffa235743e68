"""Archives: read and checked to their end on the way in, packed while they stream on the way out.

``tar_in`` and ``zip_in`` read, ``writing`` packs, ``entries`` says what a reader gives and which
names it takes.  Which product an archive becomes is ``services/unpacking.py``.
"""

from __future__ import annotations

_SUFFIXES = {".tar": "tar", ".tar.gz": "tar.gz", ".tgz": "tar.gz", ".zip": "zip"}


def split_suffix(name: str) -> tuple[str, str | None]:
    """The name without its archive suffix, and the archive's format (None: no archive)."""
    for suffix, kind in _SUFFIXES.items():
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], kind
    return name, None
