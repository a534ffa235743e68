"""Files of keys: lines `kid key`, the newest first, and which of them signs.

Who signs and who checks are several hosts, so a new line comes to all of them first and signs then.
Beside a file `NAME` lies `NAME.known`: the SHA-256 of every line that all balancers have, written
by the playbooks when that is so.  Used for tokens (`services/access.py`) and links
(`storage/alluxio.py`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from admin_api.errors import ConfigurationError


def read(path: Path) -> dict[str, str]:
    """The keys by their kid, in the order of the file; raises ConfigurationError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigurationError(f"Cannot read the key file {path}: {error.strerror}.") from error
    keys: dict[str, str] = {}
    for line in lines:
        if line.strip() and not line.startswith("#"):
            kid, _, key = line.strip().partition(" ")
            if not key.strip():
                raise ConfigurationError(f"{path} has a line that is not `kid key`.")
            keys[kid] = key.strip()
    if not keys:
        raise ConfigurationError(f"The key file {path} holds no line `kid key`.")
    return keys


def signing(path: Path) -> tuple[str, str] | None:
    """Kid and key that sign: the first line that all balancers have; None if they have none.

    Where nobody has said what they have (there are no balancers), the first line.
    Raises ConfigurationError.
    """
    keys = read(path)
    try:
        known = path.with_name(f"{path.name}.known").read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return next(iter(keys.items()))
    except OSError as error:
        raise ConfigurationError(f"Cannot read {path}.known: {error.strerror}.") from error
    for kid, key in keys.items():
        if hashlib.sha256(f"{kid} {key}".encode()).hexdigest() in known:
            return kid, key
    return None
