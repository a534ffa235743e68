"""Opening files beneath a directory so that no name and no symbolic link leads out of it.

Every component is opened relative to its parent with ``O_NOFOLLOW`` (promise I9).  Used by the
POSIX store and by ``file:`` sources.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as stat_module
from collections.abc import Iterator, Sequence
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def directory(root: Path | int, parts: Sequence[str], create: bool = False) -> Iterator[int]:
    """The descriptor of the directory ``parts`` beneath ``root`` (a path or a descriptor).

    With ``create``, missing directories are made and made durable.  Raises FileNotFoundError,
    NotADirectoryError (also for a symbolic link) and whatever else the system says.
    """
    fd = os.dup(root) if isinstance(root, int) else open_root(root)
    try:
        for part in parts:
            try:
                inner = enter(fd, part)
            except FileNotFoundError:
                if not create:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=fd)
                    os.fsync(fd)
                inner = enter(fd, part)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def enter(parent: int, name: str) -> int:
    """The descriptor of the directory ``name`` in the directory ``parent``; errors as above."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except OSError as error:
        if error.errno == errno.ELOOP:  # O_NOFOLLOW met a symbolic link
            raise NotADirectoryError(errno.ENOTDIR, "symbolic link", name) from error
        raise


def open_root(root: Path) -> int:
    """A descriptor of the directory ``root`` itself; a link that leads there is followed."""
    return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def open_file(root: Path | int, parts: Sequence[str]) -> int:
    """A read descriptor of the regular file ``parts`` beneath ``root``.

    Raises FileNotFoundError also where the name is not a regular file (a directory, a symbolic
    link, a device): to the caller such a thing does not exist.
    """
    with directory(root, parts[:-1]) as parent:
        try:
            fd = os.open(
                parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent
            )
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise FileNotFoundError(errno.ENOENT, "not a regular file", parts[-1]) from error
            raise
    if not stat_module.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "not a regular file", parts[-1])
    return fd


def read_descriptor(fd: int, start: int, stop: int, chunk: int) -> Iterator[bytes]:
    """Bytes ``start`` to ``stop`` of a descriptor, which is closed at the end.

    Ends early where the file does; the caller compares lengths.
    """
    try:
        position = start
        while position < stop:
            data = os.pread(fd, min(chunk, stop - position), position)
            if not data:
                return
            position += len(data)
            yield data
    finally:
        os.close(fd)
