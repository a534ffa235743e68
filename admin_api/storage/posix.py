"""A directory as store: local disk or an NFS mount.

Every operation opens the root once, looks whether it is still the expected store (a share can be
unmounted or swapped at any time), and works beneath that very descriptor.  A put writes a
temporary file in ``.tmp/``, makes it durable, and links it to its key, which is atomic and
create-only on local file systems and on NFS.  Called through the mount table.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit

from admin_api.errors import (
    AlreadyExists,
    Denied,
    InvalidKey,
    NoSpace,
    NotFound,
    StorageManagerError,
    Unavailable,
)
from admin_api.keys import beneath, check_key
from admin_api.storage import confined, marker
from admin_api.storage.base import CHUNK, Capacity, Stat

log = logging.getLogger(__name__)

TEMPORARY = ".tmp"
_LOST_RACE_ATTEMPTS = 10
_DELETED_AT_ONCE = 1000
#: The disk is given what has been written in runs of so many bytes.
_WRITE_BACK = 16 * CHUNK


class PosixStorage:
    """The ``Storage`` protocol over a directory."""

    def __init__(self, root: Path, gate: marker.Gate | None = None, make: bool = True) -> None:
        """Take ``root`` as the store; with a gate, only while it holds the marker that is expected.

        Without a gate it is made if its parent exists, unless ``make`` is false.
        Raises Unavailable or Denied if it cannot be made.
        """
        self.root = root.absolute()
        self._gate = gate
        #: The state of the markers' directory when they were read and found right.
        self._verified: tuple[int, ...] | None = None
        if gate is None and make:
            with _translated(str(self.root)):
                try:
                    self.root.mkdir(exist_ok=True)
                except FileNotFoundError:
                    raise Unavailable(
                        f"The store {self.root} cannot be made: {self.root.parent} is not there."
                    ) from None
                (self.root / TEMPORARY).mkdir(exist_ok=True)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """A descriptor of the root, which is the expected store."""
        try:
            root = confined.open_root(self.root)
        except (FileNotFoundError, NotADirectoryError):
            if self._gate is not None:
                self._gate.admit(None)  # never lets nothing pass
            raise
        try:
            self._verify(root)
            yield root
        finally:
            os.close(root)

    def _verify(self, root: int) -> None:
        """Read the markers again if their directory is not as it was; raises Unavailable.

        Device and inode of the root alone would not do: the next file system that is mounted may
        have the same.
        """
        if self._gate is None:
            return
        try:
            found = os.stat(marker.DIRECTORY, dir_fd=root, follow_symlinks=False)
            state = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
            if state == self._verified:
                return
            newest = _newest_marker(root)
        except (FileNotFoundError, NotADirectoryError):
            newest = None
        self._gate.admit(newest)
        self._verified = state

    def put(self, key: str, chunks: Iterable[bytes], size_hint: int | None = None) -> Stat:
        parts = check_key(key).split("/")
        temporary = f"{uuid.uuid4().hex}.part"
        with (
            _translated(key),
            self._opened() as root,
            confined.directory(root, [TEMPORARY], create=True) as temporary_dir,
        ):
            free = _capacity(root).free
            if size_hint is not None and free is not None and free < size_hint:
                raise NoSpace(f"The store has {free} bytes left; {size_hint} are needed.")
            fd = os.open(
                temporary,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
                0o644,
                dir_fd=temporary_dir,
            )
            try:
                try:
                    _write_all(fd, chunks)
                    os.fsync(fd)
                    written = os.fstat(fd)
                finally:
                    os.close(fd)  # on NFS this is where a late EIO or ENOSPC shows
                self._verify(root)  # the payload may have taken hours
                _link(root, temporary, temporary_dir, parts)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=temporary_dir)
        return Stat(key, written.st_size, _time(written.st_mtime))

    def open(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        fd = self._descriptor(key)
        size = os.fstat(fd).st_size
        end = size if stop is None else min(stop, size)
        os.posix_fadvise(fd, start, max(end - start, 0), os.POSIX_FADV_SEQUENTIAL)
        return self._read(key, fd, start, end)

    def _read(self, key: str, fd: int, start: int, stop: int) -> Iterator[bytes]:
        with _translated(key):
            yield from confined.read_descriptor(fd, start, stop, CHUNK)

    def stat(self, key: str) -> Stat:
        fd = self._descriptor(key)
        try:
            found = os.fstat(fd)
        finally:
            os.close(fd)
        return Stat(key, found.st_size, _time(found.st_mtime))

    def delete(self, key: str) -> None:
        parts = check_key(key).split("/")
        with _translated(key), self._opened() as root:
            with confined.directory(root, parts[:-1]) as parent:
                os.unlink(parts[-1], dir_fd=parent)
                os.fsync(parent)
            _prune(root, parts[:-1])

    def delete_many(self, keys: Iterable[str]) -> int:
        count = 0
        remaining = iter(keys)
        while batch := [check_key(key) for key in itertools.islice(remaining, _DELETED_AT_ONCE)]:
            with _translated(batch[0]), self._opened() as root:
                for parent, group in itertools.groupby(
                    batch, key=lambda key: key.rpartition("/")[0]
                ):
                    names = [key.rpartition("/")[2] for key in group]
                    _unlink(root, parent.split("/") if parent else [], names)
            count += len(batch)
        return count

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        if prefix:
            check_key(prefix)
        return self._list(prefix, after)

    def _list(self, prefix: str, after: str) -> Iterator[Stat]:
        try:
            with (
                self._opened() as root,
                confined.directory(root, prefix.split("/") if prefix else []) as directory,
            ):
                yield from _walk(directory, prefix, after)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _translate(error, prefix) from error

    def strays(self, prefix: str) -> Iterator[str]:
        waiting = [str(self.root / check_key(prefix))]
        while waiting:
            try:
                with os.scandir(waiting.pop()) as entries:
                    found = list(entries)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise _translate(error, prefix) from error
            for entry in found:
                key = os.path.relpath(entry.path, self.root)
                shown = os.fsencode(key).decode(errors="backslashreplace")
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_file(follow_symlinks=False) or shown != key:
                    yield shown

    def capacity(self) -> Capacity:
        with _translated(str(self.root)), self._opened() as root:
            return _capacity(root)

    def ping(self) -> None:
        with _translated(str(self.root)), self._opened():
            pass

    def uri(self, key: str) -> str:
        return "file://" + quote(f"{self.root}/{key}")

    def key_of(self, uri: str) -> str | None:
        split = urlsplit(uri)
        path, root = unquote(split.path), f"{self.root}/"
        if split.scheme != "file" or split.netloc or not path.startswith(root):
            return None
        return path.removeprefix(root).rstrip("/")

    def local_file(self, key: str) -> BinaryIO | None:
        return os.fdopen(self._descriptor(key), "rb", buffering=0)

    def link(self, key: str, seconds: int, file_name: str) -> str | None:
        return None

    def put_memory(self, size: int | None) -> int:
        # A chunk is received while the one before is digested and written.
        return 4 * CHUNK if size is None else min(4 * CHUNK, 2 * size)

    def read_memory(self) -> int:
        return 2 * CHUNK

    def reap(self, older_than: datetime) -> int:
        reaped = 0
        with (
            _translated(TEMPORARY),
            self._opened() as root,
            confined.directory(root, [TEMPORARY], create=True) as directory,
        ):
            for name in os.listdir(directory):
                with contextlib.suppress(FileNotFoundError):
                    if _time(os.stat(name, dir_fd=directory).st_mtime) < older_than:
                        os.unlink(name, dir_fd=directory)
                        reaped += 1
        return reaped

    def _descriptor(self, key: str) -> int:
        with _translated(key), self._opened() as root:
            return confined.open_file(root, check_key(key).split("/"))


def _link(root: int, temporary: str, temporary_dir: int, parts: list[str]) -> None:
    """Give the finished file its key; a directory pruned meanwhile is made again."""
    for _ in range(_LOST_RACE_ATTEMPTS):
        try:
            with confined.directory(root, parts[:-1], create=True) as parent:
                os.link(temporary, parts[-1], src_dir_fd=temporary_dir, dst_dir_fd=parent)
                os.fsync(parent)
                return
        except FileNotFoundError:
            continue
        except NotADirectoryError:
            raise InvalidKey(
                f"A part of the path {'/'.join(parts)!r} is a file or a link, not a directory."
            ) from None
    raise Unavailable(f"The directory of {'/'.join(parts)!r} keeps vanishing; try again.")


def _unlink(root: int, parts: list[str], names: Sequence[str]) -> None:
    """Delete files of one directory, durably and with one fsync; what is not there is fine."""
    try:
        with confined.directory(root, parts) as parent:
            for name in names:
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(name, dir_fd=parent)
            os.fsync(parent)
    except (FileNotFoundError, NotADirectoryError):
        return
    _prune(root, parts)


def _prune(root: int, parts: list[str]) -> None:
    """Remove directories that a delete has left empty, innermost first."""
    while parts:
        try:
            with confined.directory(root, parts[:-1]) as parent:
                os.rmdir(parts[-1], dir_fd=parent)
        except OSError:
            return  # not empty, or somebody else was faster: both are fine
        parts = parts[:-1]


def _write_all(fd: int, chunks: Iterable[bytes]) -> None:
    """Write, and let the disk begin while the rest arrives, or the sync at the end waits for all.

    That the bytes will not be needed (POSIX_FADV_DONTNEED) makes Linux begin to write out those
    that are not on the disk; it keeps them in memory until they are.
    """
    begun = written = 0
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            count = os.write(fd, view)
            view, written = view[count:], written + count
        if written - begun >= _WRITE_BACK:
            os.posix_fadvise(fd, begun, written - begun, os.POSIX_FADV_DONTNEED)
            begun = written


def _walk(directory: int, prefix: str, after: str) -> Iterator[Stat]:
    """What lies beneath a directory, all in the tree that was opened for the listing."""
    with os.scandir(directory) as entries:
        found = list(entries)
    named: list[tuple[bytes, str, os.DirEntry[str]]] = []
    for entry in found:
        key = f"{prefix}/{entry.name}" if prefix else entry.name
        is_directory = entry.is_dir(follow_symlinks=False)
        if key == TEMPORARY or not (is_directory or entry.is_file(follow_symlinks=False)):
            continue
        # A directory sorts as its keys do: with the slash behind its name.
        named.append((os.fsencode(key + "/" if is_directory else key), key, entry))
    for order, key, entry in sorted(named, key=lambda item: item[0]):
        if order.endswith(b"/"):
            if not after or order > os.fsencode(after) or beneath(after, key):
                with (
                    contextlib.suppress(FileNotFoundError, NotADirectoryError),  # pruned meanwhile
                    confined.directory(directory, [entry.name]) as inner,
                ):
                    yield from _walk(inner, key, after)
        elif order > os.fsencode(after):
            try:
                key.encode("utf-8")
                status = entry.stat(follow_symlinks=False)
            except UnicodeEncodeError:
                log.warning("file name is not UTF-8, not listed", extra={"object": repr(key)})
            except FileNotFoundError:
                continue  # deleted while the listing was on its way
            else:
                yield Stat(key, status.st_size, _time(status.st_mtime))


def _newest_marker(root: int) -> marker.Marker | None:
    parts = marker.DIRECTORY.split("/")

    def read(name: str) -> bytes:
        fd = confined.open_file(root, [*parts, name])
        return b"".join(confined.read_descriptor(fd, 0, marker.MAX_BYTES, CHUNK))

    with confined.directory(root, parts) as directory:
        return marker.newest(os.listdir(directory), read)


def _capacity(root: int) -> Capacity:
    found = os.statvfs(root)
    return Capacity(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@contextlib.contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _translate(error, key) from error


def _translate(error: OSError, key: str) -> StorageManagerError:
    match error.errno:
        case errno.EEXIST:
            return AlreadyExists(f"The key {key!r} is written already.")
        case errno.ENOENT | errno.ENOTDIR | errno.EISDIR:
            return NotFound(f"There is no object {key!r}.")
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return NoSpace(f"The store is full (while working on {key!r}).")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return Denied(f"The store does not permit this on {key!r}: {error.strerror}.")
        case errno.ENAMETOOLONG | errno.EILSEQ | errno.EINVAL:
            return InvalidKey(f"The file system refuses the name {key!r}: {error.strerror}.")
        case _:
            return Unavailable(f"The store failed on {key!r}: {error.strerror or error}.")
