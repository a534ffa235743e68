"""What sources find: files and trees of files, and how their URIs may be shown.

Called by the kinds of sources beside this module and by whoever receives or shows a source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from admin_api.errors import TooLarge


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that a source has: its path in the product, its size in bytes if known.

    ``read_at(start, stop)`` gives a range (``stop`` exclusive) where the source can be read from
    anywhere and its size is known; None where it can only be read from its beginning.

    ``asked`` is set where the source was not asked yet: it asks, and gives the file as the source
    describes it.  ``delimited`` is false where only the end of a connection ends the file, so that
    nobody can tell a whole one from one that broke off.  ``drop`` is what :meth:`close` does.
    ``version`` changes when the bytes do, where the source says anything of the kind.
    """

    path: str
    size: int | None
    open: Callable[[], Iterator[bytes]]
    read_at: Callable[[int, int], Iterator[bytes]] | None = None
    asked: Callable[[], SourceFile] | None = None
    delimited: bool = True
    drop: Callable[[], None] | None = None
    version: str = ""

    def ready(self) -> SourceFile:
        """The file as its source describes it; to be called when the file's turn has come."""
        return self.asked() if self.asked is not None else self

    def close(self) -> None:
        """Give back the connections that are held for reading; an error may keep a reader alive."""
        if self.drop is not None:
            self.drop()


@dataclass(frozen=True, slots=True)
class Found:
    """What a source URI names: a file (``is_tree`` false) or a tree of files."""

    name: str
    is_tree: bool
    files: list[SourceFile]

    def close(self) -> None:
        """To be called when all is read, or nothing more will be."""
        for file in self.files:
            file.close()


def bounded(files: Iterator[SourceFile], limit: int, where: str) -> list[SourceFile]:
    """``files`` as a list; raises TooLarge for more than ``limit`` before all are listed."""
    taken: list[SourceFile] = []
    for file in files:
        if len(taken) >= limit:
            raise TooLarge(f"The source {where!r} has more than {limit} files.")
        taken.append(file)
    return taken
