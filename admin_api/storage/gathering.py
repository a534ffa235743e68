"""Many small objects written beside each other and made durable in one go.

A put of a store is durable when it returns, which on a directory costs a sync for each file.  What
nobody can see yet need not be: a gathering takes puts that may be torn by a crash, and ``settle``
makes all of them durable at once.  Whoever writes the record of a product (which makes it exist)
does so after ``settle``, so a torn object is always an attempt's that comes to nothing.

Called by ``services/groups.py``.  Where one sync does not do (buckets, file systems in user space,
old kernels) every put is durable by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from admin_api.errors import InvalidKey
from admin_api.keys import check_key
from admin_api.storage import confined
from admin_api.storage.alluxio import AlluxioStorage
from admin_api.storage.base import Storage
from admin_api.storage.mounts import Mounts
from admin_api.storage.posix import PosixStorage, _translated, _write_all

#: From this kernel on syncfs tells of every write that failed since the descriptor was opened.
_TELLING_KERNEL = (5, 8)
#: File systems (statfs(2)) on which it reaches disk or server, bytes and names alike: ext, XFS,
#: btrfs, F2FS, ZFS, bcachefs, tmpfs, overlayfs, NFS, CephFS.  Of what runs in user space (FUSE) it
#: asks nothing.
_SYNCED_AT_ONCE = {
    0xEF53,
    0x58465342,
    0x9123683E,
    0xF2F52010,
    0x2FC12FC1,
    0xCA451A4E,
    0x01021994,
    0x794C7630,
    0x6969,
    0x00C36400,
}
_STATFS_BYTES = 512
#: So many directories are kept open between two puts.
_KEPT_OPEN = 64

_libc = ctypes.CDLL(None, use_errno=True)


class Gathering:
    """Puts into the namespace that become durable together; a context manager, for threads."""

    def __init__(self, storage: Mounts) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._directories: dict[str, _Directory] = {}
        self._told: dict[str, list[str]] = {}
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resources.close()

    def put(self, key: str, chunks: Iterable[bytes], size_hint: int | None = None) -> None:
        """Write a new object; durable, and known to a cache, once ``settle`` has returned.

        Raises what ``Storage.put`` does; nothing is left under the key then, but by a crash.
        """
        path, store, inner = self._storage.admitted(key)
        directory = self._directory_of(path, store)
        if directory is None:
            store.put(inner, chunks, size_hint)
            return
        directory.put(inner, chunks)
        if isinstance(store, AlluxioStorage):
            with self._lock:
                self._told.setdefault(path, []).append(inner)

    def settle(self) -> None:
        """Make durable what was put; raises Unavailable and NoSpace where that cannot be said."""
        for directory in self._directories.values():
            directory.settle()
        for path, keys in self._told.items():
            store = self._storage.stores[path]
            assert isinstance(store, AlluxioStorage)
            store.make_known(keys)
        self._told = {}

    def _directory_of(self, path: str, store: Storage) -> _Directory | None:
        with self._lock:
            if path not in self._directories:
                beneath = store.understore if isinstance(store, AlluxioStorage) else store
                if not isinstance(beneath, PosixStorage) or not syncs_at_once(beneath.root):
                    return None
                self._directories[path] = self._resources.enter_context(_Directory(beneath))
            return self._directories[path]


class _Directory:
    """The part of a gathering that lies in one directory, beneath one descriptor of its root."""

    def __init__(self, store: PosixStorage) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._open: dict[tuple[str, ...], int] = {}
        self._resources = contextlib.ExitStack()
        with _translated(str(store.root)):
            self._root = self._resources.enter_context(store._opened())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._resources.close()

    def put(self, key: str, chunks: Iterable[bytes]) -> None:
        """Write a file under its key at once: its length says nothing before ``settle``."""
        *parts, name = check_key(key).split("/")
        with _translated(key):
            self._store._verify(self._root)
            with self._made(tuple(parts), key) as parent:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(name, flags, 0o644, dir_fd=parent)
                try:
                    try:
                        _write_all(fd, chunks)
                    finally:
                        os.close(fd)  # on NFS this is where a late EIO or ENOSPC shows
                except BaseException:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=parent)
                    raise

    def settle(self) -> None:
        """One sync of the file system, directories included, instead of one for each file."""
        with _translated(str(self._store.root)):
            self._store._verify(self._root)
            if _libc.syncfs(self._root) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))

    @contextlib.contextmanager
    def _made(self, parts: tuple[str, ...], key: str) -> Iterator[int]:
        """A descriptor of the directory ``parts``, which is made where it is not there."""
        try:
            with self._parent(parts[:-1]) as parent:
                if not parts:
                    yield parent
                    return
                inner = _enter(parent, parts[-1])
        except NotADirectoryError:
            raise InvalidKey(
                f"A part of the path {key!r} is a file or a link, not a directory."
            ) from None
        try:
            yield inner
        finally:
            os.close(inner)

    @contextlib.contextmanager
    def _parent(self, parts: tuple[str, ...]) -> Iterator[int]:
        """The same of a directory that others are in, too; some of these stay open."""
        with self._lock:
            known = self._open.get(parts)
        if known is not None:
            yield known
            return
        fd = os.dup(self._root)
        try:
            for part in parts:
                inner = _enter(fd, part)
                os.close(fd)
                fd = inner
        except BaseException:
            os.close(fd)
            raise
        with self._lock:
            is_kept = len(self._open) < _KEPT_OPEN and parts not in self._open
            if is_kept:
                self._open[parts] = fd
        try:
            yield fd
        finally:
            if not is_kept:
                os.close(fd)


def _enter(parent: int, name: str) -> int:
    """The descriptor of a directory in ``parent``, made where it is not there."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=parent)
    return confined.enter(parent, name)


def syncs_at_once(root: Path) -> bool:
    """Whether one sync of the file system says of all files in it that they are safe."""
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    if release is None or (int(release[1]), int(release[2])) < _TELLING_KERNEL:
        return False
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.statfs(os.fsencode(root), answer) != 0:
        return False
    return ctypes.c_long.from_buffer(answer).value & 0xFFFFFFFF in _SYNCED_AT_ONCE
