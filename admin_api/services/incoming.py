"""Uploads that came through an Alluxio proxy, and how they become products.

A proxy takes an upload that broke off for a whole one, so what lies in the incoming area is no
product: it becomes one when its sender registers it with size and digest and both are right.
Called by ``services/ingest.py`` and by housekeeping.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from datetime import datetime
from urllib.parse import urlsplit

from admin_api.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    SourceDenied,
    SourceNotFound,
    Unavailable,
)
from admin_api.keys import INCOMING, beneath, check_key, join
from admin_api.services.access import Principal, Scope
from admin_api.services.facility import Facility
from admin_api.services.sources import Found, SourceFile
from admin_api.services.wishes import Expected
from admin_api.storage.base import put_bytes
from admin_api.uris import shown

log = logging.getLogger(__name__)

_SCHEME = "alluxio"
_README = "README"
_README_TEXT = b"""Uploads to the storage manager: write beneath incoming/SUBJECT/, then register
the file with POST /v1/products, stating size and digest.  What is not registered goes.
"""


def is_incoming(uri: str) -> bool:
    """Whether ``uri`` is one of this module's."""
    with contextlib.suppress(ValueError):
        return urlsplit(uri).scheme == _SCHEME
    return False


def find(facility: Facility, principal: Principal, uri: str) -> Found:
    """The upload that ``uri`` (``alluxio:///incoming/SUBJECT/...``) names.

    Raises SourceDenied outside the subject's own area, SourceNotFound.
    """
    key = _key(facility, principal, uri)
    try:
        size = facility.storage.stat(key).size
    except NotFound:
        raise SourceNotFound(
            f"The source {shown(uri)!r} names nothing; a directory cannot be registered, "
            "list its files."
        ) from None
    name = key.rpartition("/")[2]
    file = SourceFile(
        name,
        size,
        lambda: facility.storage.open(key),
        lambda start, stop: facility.storage.open(key, start, stop),
    )
    return Found(name, False, [file])


def require_stated(uri: str, expected: Expected) -> None:
    """Refuse an upload of which the sender does not say what it should be."""
    if is_incoming(uri) and (expected.size is None or not (expected.sha256 or expected.md5)):
        raise InvalidRequest(
            f"Of {shown(uri)!r} size and sha256 or md5 must be stated: an upload through a "
            "proxy may have broken off without anybody noticing."
        )


def clear(facility: Facility, principal: Principal, uris: Sequence[str]) -> None:
    """Remove the uploads that have become a product."""
    keys = [_key(facility, principal, uri) for uri in uris if is_incoming(uri)]
    if keys:
        facility.storage.delete_many(keys)


def prepare(facility: Facility) -> None:
    """See to it that every cluster has an incoming area that processors can write to.

    They write as whoever they are; the cluster forgets access rights when it is wiped.
    """
    for path, store in facility.storage.cached_mounts().items():
        with contextlib.suppress(AlreadyExists):
            put_bytes(facility.storage, join(path, INCOMING, _README), _README_TEXT)
        try:
            store.cluster.open_to_all(INCOMING)
        except (NotFound, Unavailable) as error:
            log.warning("incoming area not prepared", extra={"problem": error.detail})


def expire(facility: Facility, older_than: datetime) -> int:
    """Remove what has lain in the incoming areas for too long; returns how many files."""
    keys = [
        stat.key
        for path in facility.storage.cached_mounts()
        for stat in facility.storage.list(join(path, INCOMING))
        if stat.modified < older_than and not stat.key.endswith(f"{INCOMING}/{_README}")
    ]
    return facility.storage.delete_many(keys) if keys else 0


def _key(facility: Facility, principal: Principal, uri: str) -> str:
    key = facility.storage.key_of(uri)
    if key is None:
        raise SourceDenied(f"The source {shown(uri)!r} names no cluster of this facility.")
    check_key(key)
    for path in facility.storage.cached_mounts():
        if beneath(key, join(path, INCOMING, principal.subject)):
            return key
        if Scope.ADMIN in principal.scopes and beneath(key, join(path, INCOMING)):
            return key
    raise SourceDenied(f"The source {shown(uri)!r} lies outside {INCOMING}/{principal.subject}/.")
