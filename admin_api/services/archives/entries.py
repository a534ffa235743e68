"""What a reader of archives gives, and the names that an archive's entries may have.

Called by the readers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from admin_api.errors import InvalidKey, InvalidRequest, TooLarge
from admin_api.keys import MAX_KEY_BYTES
from admin_api.settings import LimitSettings

#: Compression ratios say nothing about small archives.
_RATIO_FREE_BYTES = 64 << 20
#: A product's name may come before the path in the product.
_MAX_NAME_BYTES = MAX_KEY_BYTES + 256


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive; ``chunks`` must be read before the next member is asked for."""

    path: str
    size: int
    chunks: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Archive:
    """The files of an archive, as they come, and all their paths where it tells them before.

    The archive was right to its end only when ``members`` has ended without an error.
    """

    members: Iterator[Member]
    paths: Sequence[str] | None = None


class Entries:
    """What an archive has named so far: within bounds, within the product, each name once."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limit = limits.max_product_files
        self._count = 0
        self._files: set[str] = set()
        self._directories: set[str] = set()

    def count(self) -> None:
        """Note one more entry of whatever kind; raises TooLarge."""
        self._count += 1
        if self._count > self._limit:
            raise _too_many(self._limit)

    def add(self, name: str, is_directory: bool = False) -> str:
        """The path of an entry; '' is the root itself.

        Raises InvalidKey for a name that leads out of the product or is a file and a directory at
        once, InvalidRequest for a file that comes twice, TooLarge for too many entries.
        """
        self.count()
        path = _confined(name)
        if is_directory:
            self._enter(path)
            return path
        if path in self._files:
            raise InvalidRequest(f"The file {path!r} comes twice.")
        if not path or path in self._directories:
            raise _both(path)
        self._enter(path.rpartition("/")[0])
        self._files.add(path)
        return path

    def _enter(self, directory: str) -> None:
        """Note a directory and those above it, up to the first that is known."""
        while directory and directory not in self._directories:
            if directory in self._files:
                raise _both(directory)
            self._directories.add(directory)
            if len(self._directories) > self._limit:
                raise _too_many(self._limit)
            directory = directory.rpartition("/")[0]


def check_ratio(packed: int, unpacked: int, limits: LimitSettings) -> None:
    """Raise TooLarge for an archive of ``packed`` bytes that swells to ``unpacked``."""
    if unpacked > _RATIO_FREE_BYTES + packed * limits.max_archive_ratio:
        raise TooLarge(
            f"The archive unpacks to more than {limits.max_archive_ratio} times its size."
        )


def _confined(name: str) -> str:
    """``name`` without ``./`` before and ``/`` behind it.

    Of the grammar of keys only what confines is checked here: settings may escape the rest.
    """
    size = len(name.encode("utf-8", "surrogateescape"))
    if size > _MAX_NAME_BYTES:
        raise InvalidKey(
            f"The name {name[:40]!r}... in the archive has {size} bytes; "
            f"{_MAX_NAME_BYTES} are allowed.",
            name=name[:255],
        )
    path = name.removesuffix("/") if name.strip("/") else name
    while path.startswith("./"):
        path = path[2:]
    if path == ".":
        return ""
    wrong = next((part for part in path.split("/") if part in ("", ".", "..")), None)
    if wrong is not None:
        raise InvalidKey(
            f"The name {name!r} in the archive leads out of the product: a path part may not be "
            f"{wrong!r}.",
            name=name,
        )
    return path


def _too_many(limit: int) -> TooLarge:
    return TooLarge(f"The archive has more than {limit} files and directories.")


def _both(path: str) -> InvalidKey:
    return InvalidKey(f"{path!r} is a file and a directory at once.", name=path)
