"""Directories as sources: files beneath the allowed roots, no link followed, nothing but files.

Called by ``services/sources``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as stat_module
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from admin_api.errors import InvalidKey, SourceDenied, SourceNotFound, SourceUnavailable
from admin_api.keys import MAX_KEY_BYTES
from admin_api.services.sources.found import Found, SourceFile, bounded
from admin_api.storage import confined
from admin_api.storage.base import CHUNK
from admin_api.uris import shown


def find(uri: str, roots: Sequence[Path], max_files: int) -> Found:
    """What the file URI names beneath one of ``roots``.

    Raises SourceDenied outside of them and for what is no file or directory, SourceNotFound,
    SourceUnavailable, InvalidKey for names that are not UTF-8, TooLarge for too many files.
    """
    split = urlsplit(uri)
    # Names are bytes here: one that is not UTF-8 is to be found, and to be refused by its name.
    path = Path(unquote(split.path, errors="surrogateescape"))
    if split.netloc not in ("", "localhost") or "?" in uri or "#" in uri:
        raise SourceDenied(
            f"The source {shown(uri)!r} is not a plain file URI (file:///path); '?' and '#' in "
            "a name are written %3F and %23."
        )
    if not path.is_absolute() or ".." in path.parts or "\0" in split.path + str(path):
        raise SourceDenied(f"The source {shown(uri)!r} is not an absolute path without '..'.")
    for root in roots:
        if path.is_relative_to(root) and path != root:
            return _walk(root, path.relative_to(root).parts, uri, max_files)
    raise SourceDenied(f"The source {shown(uri)!r} lies beneath none of the allowed roots.")


def _walk(root: Path, parts: tuple[str, ...], uri: str, max_files: int) -> Found:
    _check_utf8("/".join(parts), uri)
    with _translated(uri), confined.directory(root, parts[:-1]) as parent:
        status = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
    name = parts[-1]
    if stat_module.S_ISREG(status.st_mode):
        return Found(name, False, [_local(root, parts, name, status)])
    if not stat_module.S_ISDIR(status.st_mode):
        raise SourceDenied(f"The source {shown(uri)!r} is {_kind(status.st_mode)}, not a file.")
    return Found(name, True, bounded(_walk_tree(root, parts, (), uri), max_files, shown(uri)))


def _walk_tree(
    root: Path, base: tuple[str, ...], inner: tuple[str, ...], uri: str
) -> Iterator[SourceFile]:
    with _translated(uri), confined.directory(root, base + inner) as directory:
        entries = [
            (name, os.stat(name, dir_fd=directory, follow_symlinks=False))
            for name in sorted(os.listdir(directory))
        ]
    for name, status in entries:
        parts = (*inner, name)
        path = "/".join(parts)
        _check_utf8(path, uri)
        if stat_module.S_ISDIR(status.st_mode):
            if len(path.encode()) > MAX_KEY_BYTES:
                raise InvalidKey(f"The source {shown(uri)!r} has too deep a directory: {path!r}.")
            yield from _walk_tree(root, base, parts, uri)
        elif stat_module.S_ISREG(status.st_mode):
            yield _local(root, base + parts, path, status)
        else:
            raise SourceDenied(
                f"{path!r} in the source {shown(uri)!r} is {_kind(status.st_mode)}, not a file."
            )


def _check_utf8(path: str, uri: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InvalidKey(
            f"The source {shown(uri)!r} has a name that is not UTF-8: {os.fsencode(path)!r}. "
            "Rename it."
        ) from None


def _kind(mode: int) -> str:
    if stat_module.S_ISLNK(mode):
        return "a symbolic link"
    if stat_module.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat_module.S_ISSOCK(mode) else "a device"


def _local(root: Path, parts: tuple[str, ...], path: str, status: os.stat_result) -> SourceFile:
    size = status.st_size

    def read() -> Iterator[bytes]:
        with _translated(path):
            fd = confined.open_file(root, parts)
            # One byte more than was listed shows a file that grows while it is read.
            yield from confined.read_descriptor(fd, 0, size + 1, CHUNK)

    def read_at(start: int, stop: int) -> Iterator[bytes]:
        with _translated(path):
            fd = confined.open_file(root, parts)
            yield from confined.read_descriptor(fd, start, stop, CHUNK)

    return SourceFile(path, size, read, read_at, version=f"{size} {status.st_mtime_ns}")


@contextlib.contextmanager
def _translated(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        match error.errno:
            case errno.ENOENT:
                raise SourceNotFound(f"The source {shown(where)!r} names nothing.") from error
            case errno.ENOTDIR | errno.ELOOP | errno.EACCES | errno.EPERM | errno.ENAMETOOLONG:
                raise SourceDenied(f"The source {shown(where)!r}: {error.strerror}.") from error
        raise SourceUnavailable(f"The source {shown(where)!r}: {error.strerror}.") from error
