"""What may be registered in place: files that lie in the store and are nobody's yet.

Registering reads files and tells their digests, so it is confined as reading is: not the storage
manager's own places, not what belongs to a product or to an attempt at one, not the directories of
missions that the token does not have.  Called by ``services/ingest.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from admin_api.catalog.models import Product, State
from admin_api.errors import InvalidRequest, SourceDenied, SourceNotFound
from admin_api.keys import RESERVED, check_key
from admin_api.products.names import MISSIONS, parse_name
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.sources import SourceFile
from admin_api.services.wishes import Expected
from admin_api.uris import shown

_ASKED_AT_ONCE = 500


def key_of(facility: Facility, uri: str) -> str:
    """The key of ``uri`` in the namespace; raises SourceDenied for what lies elsewhere."""
    key = facility.storage.key_of(uri)
    if not key:
        raise SourceDenied(f"{shown(uri)!r} does not lie in the store, so it cannot be registered.")
    return check_key(key)


def in_place(
    facility: Facility, name: str, uri: str, expected: Expected
) -> dict[str, tuple[str, Expected]]:
    """What ``uri`` names: path in the product -> key and what is expected of the file."""
    key = key_of(facility, uri)
    tree = {
        stat.key[len(key) + 1 :]: (stat.key, Expected(size=stat.size))
        for stat in facility.storage.list(key)
    }
    return tree or {name: (key, expected)}


def source_file(facility: Facility, path: str, key: str) -> SourceFile:
    """A file of the store as one that can be received."""
    return SourceFile(path, None, lambda: facility.storage.open(key))


def admit(facility: Facility, principal: Principal, keys: Sequence[str]) -> str:
    """The directory that holds all of ``keys``, if the principal may register them.

    Raises SourceDenied with the place that is not theirs, InvalidRequest for files of two stores,
    SourceNotFound for none.
    """
    if not keys:
        raise SourceNotFound("The source has no files.")
    if len({facility.storage.mount_of(key) for key in keys}) > 1:
        raise InvalidRequest("The files of a registered product must lie in one store.")
    for key in keys:
        _refuse_reserved(facility, key)
        _refuse_missions(facility, principal, key)
    _refuse_owned(facility, keys)
    return _common_directory(keys)


def _refuse_reserved(facility: Facility, key: str) -> None:
    mount = facility.storage.mount_of(key)
    if key[len(mount) :].lstrip("/").split("/")[0] in RESERVED:
        raise SourceDenied(f"{key!r} lies where the storage manager keeps its own files.")


def _refuse_missions(facility: Facility, principal: Principal, key: str) -> None:
    """Directories of a mission, and files beneath a product's name, are that mission's."""
    if principal.missions is None:
        return
    template = facility.settings.storage.key_template
    of_missions = template.partition("{mission}")
    for part in key.split("/"):
        parsed = parse_name(part)
        if parsed is not None and not principal.sees(parsed.mission):
            raise SourceDenied(f"{key!r} is of the mission {parsed.mission}.")
    if of_missions[1]:
        for mission in MISSIONS:
            place = f"{of_missions[0]}{mission}{of_missions[2].partition('{')[0]}"
            if not principal.sees(mission) and key.startswith(place):
                raise SourceDenied(f"{key!r} lies in a directory of the mission {mission}.")


def _refuse_owned(facility: Facility, keys: Sequence[str]) -> None:
    """Nothing that is a product's, or that somebody is just sending, becomes another product."""
    above = sorted({parent for key in keys for parent in _parents(key)})
    with facility.catalog.reading() as session:
        for at in range(0, len(above), _ASKED_AT_ONCE):
            owned = session.scalars(
                select(Product.directory)
                .where(Product.directory.in_(above[at : at + _ASKED_AT_ONCE]))
                .where(Product.registered.is_(False), Product.state != State.REMOVED)
                .limit(1)
            ).first()
            if owned is not None:
                raise SourceDenied(
                    f"The directory {owned!r} belongs to a product of this facility; what lies "
                    "there cannot be registered again."
                )


def _parents(key: str) -> list[str]:
    parts = key.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _common_directory(keys: Sequence[str]) -> str:
    common = keys[0].split("/")[:-1]
    for key in keys:
        parts = key.split("/")[:-1]
        while common != parts[: len(common)]:
            common.pop()
    return "/".join(common)
