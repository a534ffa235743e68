"""An archive becomes a product: what it is called, where its files go, and that it is whole.

Called by ``services/ingest.py`` (archives by reference) and ``services/uploads.py`` (sent ones).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from admin_api.errors import InvalidArchive, InvalidRequest
from admin_api.products.digests import Digester
from admin_api.products.names import TREE_SUFFIXES, is_tree, parse_name
from admin_api.services.access import Principal
from admin_api.services.archives.entries import Archive
from admin_api.services.archives.seekable import Seekable
from admin_api.services.archives.tar_in import read_tar
from admin_api.services.archives.zip_in import read_zip
from admin_api.services.facility import Facility
from admin_api.services.reception import begin, check_digest
from admin_api.services.sources import SourceFile
from admin_api.services.wishes import Expected, Level, Outcome, Wish


def receive_archive(
    facility: Facility,
    principal: Principal,
    wish: Wish,
    kind: str,
    source: SourceFile,
    expected: Expected,
) -> Outcome:
    """Unpack ``source`` and make it a product, once it has been read and checked to its end.

    ``expected`` is of the archive itself.  A single top folder that is a product's name names the
    product, unless ``wish`` names another one; the folder is no part of the paths then.

    Raises InvalidArchive, InvalidKey and TooLarge for archives that are damaged, hostile or hold
    something else than one product, Forbidden for products of other missions, Busy and NoSpace
    where a sent zip cannot be kept, SizeMismatch and DigestMismatch, and what reception raises.
    """
    with _opened(facility, wish.level, kind, source, expected) as archive:
        members = archive.members
        first = next(members, None)
        if first is None:
            for _ in members:
                pass
            raise InvalidRequest("A product needs at least one file; the archive has none.")
        places = _places(wish.name, archive, first.path)
        require_named_mission(principal, places.name)
        with begin(facility, principal, replace(wish, name=places.name)) as receiving:
            for member in chain([first], members):
                path = places.path(member.path)
                receiving.store(path, member.chunks, Expected(size=member.size))
            return receiving.commit()


def require_named_mission(principal: Principal, name: str, may_change: bool = False) -> None:
    """Raise Forbidden where ``principal`` may not have products of this name's mission.

    With ``may_change`` a name that tells no mission passes: an archive may name the product yet.
    """
    parsed = parse_name(name)
    if parsed is not None or not may_change:
        principal.require_mission(parsed.mission if parsed else None)


@contextlib.contextmanager
def _opened(
    facility: Facility, level: Level, kind: str, source: SourceFile, expected: Expected
) -> Iterator[Archive]:
    """The archive, its own size and digests being compared on the way."""
    limits = facility.settings.limits
    if kind != "zip":
        yield read_tar(kind, _compared(source, expected, level), limits)
    elif source.read_at is not None and source.size is not None:
        has_digest = expected.sha256 or expected.md5 or expected.others
        if expected.size not in (None, source.size) or has_digest:
            for _ in _compared(source, expected, level):
                pass
        yield read_zip(Seekable(source.size, source.read_at), limits)
    else:
        chunks = _compared(source, expected, level)
        with facility.spool.spooled(chunks, expected.size) as (size, read_at):
            yield read_zip(Seekable(size, read_at), limits)


def _compared(source: SourceFile, expected: Expected, level: Level) -> Iterator[bytes]:
    digester = Digester(algorithm for algorithm, _ in expected.others)
    yield from digester.through(source.open())
    check_digest(source.path, digester.result(), expected, level, digester.others())


@dataclass(frozen=True, slots=True)
class _Places:
    """The product's name and the archive's folder that is taken off ('' for none)."""

    name: str
    folder: str

    def path(self, path: str) -> str:
        """Where the file ``path`` of the archive lies in the product."""
        if self.folder:
            if not path.startswith(self.folder + "/"):
                raise _scattered(path, self.folder)
            return path[len(self.folder) + 1 :]
        folder = _product_folder(path)
        if folder:
            raise _scattered("", folder)
        return path


def _places(given: str, archive: Archive, first: str) -> _Places:
    """What becomes of an archive whose file name or caller says ``given``.

    Where the archive does not tell all paths beforehand, its ``first`` file decides; one that lies
    elsewhere is refused when it comes.
    """
    paths = archive.paths or (first,)
    folders, tops = {_product_folder(path) for path in paths}, {_top(path) for path in paths}
    top = tops.pop() if len(tops) == 1 else ""
    if len(folders) == 1 and "" not in folders:
        folder = folders.pop()
        name = folder.rpartition("/")[2]
        if _is_whole_name(given) and given not in (name, _stem(name)):
            raise InvalidArchive(
                f"The archive holds the product {name!r}; it cannot be stored as {given!r}. Name "
                "it after its product."
            )
        places = _Places(name, folder)
    elif top and top in (given, _stem(given)):
        places = _Places(given, top)
    else:
        places = _Places(given, "")
    for path in archive.paths or ():
        places.path(path)
    return places


def _top(path: str) -> str:
    """The topmost folder of a path, '' for a file that lies in none."""
    return path.partition("/")[0] if "/" in path else ""


def _product_folder(path: str) -> str:
    """The outermost folder of a path that is a product, '' if there is none.

    At the top its name may be any that is known; deeper, where products have folders with names of
    their own, only one that says that it is a product's.
    """
    parts = path.split("/")[:-1]
    for depth, part in enumerate(parts):
        if is_tree(part) or (depth == 0 and parse_name(part) is not None):
            return "/".join(parts[: depth + 1])
    return ""


def _stem(name: str) -> str:
    return next((name.removesuffix(end) for end in TREE_SUFFIXES if name.endswith(end)), name)


def _is_whole_name(name: str) -> bool:
    """Whether a name is a product's, and not just begins like one (``S1B_latest``)."""
    parsed = parse_name(name)
    return is_tree(name) or (parsed is not None and parsed.product_type is not None)


def _scattered(path: str, folder: str) -> InvalidArchive:
    outside = f"{path!r} lies" if path else "other files lie"
    return InvalidArchive(
        f"The archive holds the product {folder!r}, but {outside} outside of that folder. An "
        "archive holds one product: in one folder of its name, or without a folder."
    )
