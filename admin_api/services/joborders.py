"""Job orders of prosEO: texts kept in the default storage, as they came.

What is stored is the Base64 text itself, under a name that ends in ``.xml`` (contract, 2.8: those
that are there must stay readable).  Called by ``web/proseo``.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from admin_api.errors import NotFound, TooLarge
from admin_api.keys import beneath, join
from admin_api.services import paths
from admin_api.services.facility import Facility
from admin_api.storage.base import put_bytes

#: As large as the Java service's proxies let a body be.
MAX_BYTES = 20_000_000


def keep(facility: Facility, text: str) -> str:
    """Store a job order; durable when this returns its key.  Raises what the store raises."""
    now = datetime.now(UTC)
    folder = f"{now.year}/{now.month}/{now.day}/{now.hour}"
    key = join(paths.joborders(facility), folder, f"{uuid.uuid4()}.xml")
    put_bytes(facility.storage, key, text.encode())
    return key


def read(facility: Facility, path: str) -> bytes:
    """A job order as it was stored; raises NotFound, also for what is no job order."""
    key = paths.key_of(facility, path)
    if key is None or not beneath(key, paths.joborders(facility)):
        raise NotFound(f"There is no job order {path!r}.")
    size = facility.storage.stat(key).size
    if size > MAX_BYTES:
        raise TooLarge(f"The job order {path!r} has {size} bytes; {MAX_BYTES} are allowed.")
    return b"".join(facility.storage.open(key))
