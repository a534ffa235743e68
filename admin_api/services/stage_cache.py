"""The staging cache: files as paths in one directory, each copied once, the longest unused go.

Nothing is written on a hit and nothing has to be remembered: a file lies under the key of its
bytes, and the nanoseconds of its modification time are a seal made of its digest, so one ``stat``
tells whether it is whole and the right one (another size, another time: copied again).  Its access
time, moved now and then, says when it was last handed out.  So a restart has nothing to rebuild but
the sum of the sizes, and several processes, or hosts over NFS, can share a directory.

One request has a file copied, the others wait for that on a condition; across processes a lock of
the file system keeps the copies apart.  A copy goes on if those who wait go away.  Beneath
``.cache/`` lie copies that are under way (locked while they are), locks, and the sum of the sizes.
Opened by ``services/facility.py``, used by ``services/staging.py``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import heapq
import logging
import os
import stat as stat_module
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from admin_api.errors import (
    ConfigurationError,
    InvalidKey,
    NoSpace,
    ReadbackMismatch,
    StagingTimeout,
    StorageManagerError,
    Unavailable,
)
from admin_api.settings import StagingSettings

log = logging.getLogger(__name__)

_OWN = ".cache"
_LOCKS = 1024
_NANO = 1_000_000_000
#: The access time is moved at most so often: a hit is one ``stat`` otherwise.
_TOUCH_SECONDS = 60.0
#: When nothing could go, nobody looks again for so long while there is room all the same.
_FRUITLESS_SECONDS = 30.0
_ASKED_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that is to be had as a path.

    ``key`` is its place in the cache, ``size`` its bytes, ``version`` what tells its bytes from
    others under the same key (its SHA-256 where that is known, and then it is compared).
    """

    key: str
    size: int
    version: str
    sha256: str | None
    read: Callable[[], Iterator[bytes]]


class _Filling:
    """A copy that is under way, and those who wait for it."""

    def __init__(self, version: str) -> None:
        self.version = version
        self._changed = threading.Condition()
        self._begun: float | None = None
        self._over = False
        self.error: StorageManagerError | None = None

    def begin(self) -> None:
        """It has got its turn: from here on the time of those who wait runs."""
        with self._changed:
            self._begun = time.monotonic()
            self._changed.notify_all()

    def end(self, error: StorageManagerError | None) -> None:
        with self._changed:
            self.error, self._over = error, True
            self._changed.notify_all()

    def wait(self, seconds: float | None) -> bool:
        """Until it is over, or so long since it began; whether it is over."""
        arrived = time.monotonic()
        with self._changed:
            while not self._over:
                if seconds is None or self._begun is None:
                    self._changed.wait()
                    continue
                left = max(self._begun, arrived) + seconds - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True


class StageCache:
    """The cache of one directory, for one process."""

    def __init__(
        self, settings: StagingSettings, leased: Callable[[Collection[str]], set[str]]
    ) -> None:
        """``leased`` says which of some keys are in use; the directory is touched at first use."""
        self._settings = settings
        self._leased = leased
        self._lock = threading.Lock()
        #: Held for moments: nothing is handed out while the evictor takes a file away.
        self._going = threading.Lock()
        self._filling: dict[str, _Filling] = {}
        self._pool = ThreadPoolExecutor(settings.fills, thread_name_prefix="stage")
        self._ready: Path | None = None
        self._fruitless = -_FRUITLESS_SECONDS

    @property
    def is_configured(self) -> bool:
        """Whether there is a directory at all."""
        return self._settings.directory is not None

    def start(self, wanted: Wanted) -> None:
        """Have the file copied if it is not there; does not wait."""
        if self._hit(wanted) is None:
            self._begin(wanted)

    def get(self, wanted: Wanted) -> Path:
        """The path of the file, which is whole; waits until it is.

        Raises StagingTimeout where another request has it copied and that takes longer than the
        settings say, NoSpace, ReadbackMismatch where the bytes are not those that were wanted,
        ConfigurationError, and what reading raises.
        """
        for _ in range(3):
            path = self._hit(wanted)
            if path is not None:
                return path
            filling, is_ours = self._begin(wanted)
            seconds = self._settings.wait_seconds
            if not filling.wait(None if is_ours else seconds):
                raise StagingTimeout(
                    f"{wanted.key!r} is still being copied after {seconds:g} seconds; try again."
                )
            if filling.error is not None:
                raise type(filling.error)(filling.error.detail, **filling.error.extra)
            if filling.version == wanted.version:
                return self._path(wanted.key)
        raise Unavailable(f"Others want other bytes as {wanted.key!r} all the time; try again.")

    def forget(self, key: str) -> None:
        """The file need not be kept: its product is gone."""
        if self._settings.directory is None:
            return
        with contextlib.suppress(OSError, InvalidKey):
            path = self._path(key)
            size = path.stat().st_size
            path.unlink()
            self._count(-size)
            self._prune(path)

    # -- hits ----------------------------------------------------------------------------------
    def _path(self, key: str) -> Path:
        if key.split("/")[0] == _OWN:
            raise InvalidKey(f"{key!r} cannot be staged: {_OWN!r} is the cache's own.", name=key)
        return self._directory() / key

    def _hit(self, wanted: Wanted) -> Path | None:
        path = self._path(wanted.key)
        with self._going:
            try:
                found = os.lstat(path)
            except OSError:
                return None
            if (
                not stat_module.S_ISREG(found.st_mode)
                or found.st_size != wanted.size
                or found.st_mtime_ns % _NANO != _seal(wanted.version)
            ):
                return None
            now = time.time_ns()
            pause = min(_TOUCH_SECONDS, self._settings.keep_seconds / 4)
            if now - found.st_atime_ns > pause * _NANO:
                with contextlib.suppress(OSError):
                    os.utime(path, ns=(now, found.st_mtime_ns))
        return path

    # -- copies --------------------------------------------------------------------------------
    def _begin(self, wanted: Wanted) -> tuple[_Filling, bool]:
        with self._lock:
            filling = self._filling.get(wanted.key)
            if filling is not None:
                return filling, False
            filling = self._filling[wanted.key] = _Filling(wanted.version)
        self._pool.submit(self._fill, wanted, filling)
        return filling, True

    def _fill(self, wanted: Wanted, filling: _Filling) -> None:
        error: StorageManagerError | None = None
        try:
            with self._locked(f"{zlib.crc32(wanted.key.encode()) % _LOCKS}"):
                if self._hit(wanted) is None:  # another process may have been faster
                    filling.begin()
                    self._copy(wanted)
        except StorageManagerError as failed:
            error = failed
        except OSError as failed:
            error = _translate(failed, wanted.key)
        except BaseException as failed:
            log.exception("a file was not staged", extra={"object": wanted.key})
            error = Unavailable(f"{wanted.key!r} could not be staged: {type(failed).__name__}.")
        finally:
            with self._lock:
                del self._filling[wanted.key]
            filling.end(error)

    def _copy(self, wanted: Wanted) -> None:
        self._make_room(wanted)
        path = self._path(wanted.key)
        temporary = self._directory() / _OWN / "filling" / uuid.uuid4().hex
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                _write(fd, wanted)
                os.fchmod(fd, 0o444)
                second = int(time.time()) * _NANO
                os.utime(fd, ns=(time.time_ns(), second + _seal(wanted.version)))
                os.fsync(fd)
                before = self._place(temporary, path)
            finally:
                os.close(fd)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise
        self._count(wanted.size - before)

    def _make_directory(self, path: Path) -> None:
        """Make ``path`` beneath the cache's directory, for everybody to read whatever the umask."""
        missing = []
        while path != self._directory() and not path.is_dir():
            missing.append(path)
            path = path.parent
        for inner in reversed(missing):
            inner.mkdir(exist_ok=True)
            inner.chmod(0o755)

    def _place(self, temporary: Path, path: Path) -> int:
        """Give the copy its name; returns the size of what had it before."""
        for _ in range(10):
            before = 0
            with contextlib.suppress(OSError):
                before = os.lstat(path).st_size
            try:
                self._make_directory(path.parent)
                temporary.replace(path)
            except FileNotFoundError:
                if not temporary.exists():
                    raise
                continue  # the directory was empty and was removed
            return before
        raise Unavailable(f"The directory of {str(path)!r} keeps vanishing; try again.")

    # -- room ----------------------------------------------------------------------------------
    def _make_room(self, wanted: Wanted) -> None:
        total, used, free = self._usage()
        high, low = self._settings.high_percent, self._settings.low_percent
        needs = wanted.size
        if used + needs > total * high // 100 or needs > free:
            patient = time.monotonic() < self._fruitless + _FRUITLESS_SECONDS
            if not patient or used + needs > total or needs > free:
                with self._locked("evict"):
                    total, used, free = self._usage()
                    if used + needs > total * high // 100 or needs > free:
                        room = max(used + needs - total * low // 100, needs - free)
                        if self._evict(room) == 0:
                            self._fruitless = time.monotonic()
                total, used, free = self._usage()
        if used + needs > total or needs > free:
            raise NoSpace(
                f"The staging cache has no room for {wanted.key!r} ({needs} bytes): what is in it "
                "is leased or was just handed out. Enlarge it, or end leases."
            )

    def _usage(self) -> tuple[int, int, int]:
        """Bytes in all, taken, and free in the file system."""
        found = os.statvfs(self._directory())
        free = found.f_bavail * found.f_frsize
        if self._settings.max_bytes is not None:
            return self._settings.max_bytes, self._count(0), free
        total = found.f_blocks * found.f_frsize
        return total, total - free, free

    def _evict(self, room: int) -> int:
        """Take away what was not used for longest, until ``room`` bytes went; returns how many."""
        total, went = 0, 0
        old: list[tuple[float, str, int]] = []
        before = time.time() - self._settings.keep_seconds
        for key, found in self._walk():
            total += found.st_size
            if found.st_atime <= before:
                old.append((found.st_atime, key, found.st_size))
        heapq.heapify(old)
        while old and went < room:
            batch = [heapq.heappop(old) for _ in range(min(_ASKED_AT_ONCE, len(old)))]
            leased = self._leased([key for _, key, _ in batch])
            for _, key, size in batch:
                if went < room and key not in leased and self._take_away(key, before):
                    went += size
        self._count(total - went, absolute=True)
        log.info("staging cache evicted", extra={"bytes": went, "wanted": room})
        return went

    def _take_away(self, key: str, before: float) -> bool:
        """Remove a file, unless it was handed out meanwhile."""
        path = self._path(key)
        aside = self._directory() / _OWN / "filling" / uuid.uuid4().hex
        with self._going:
            try:
                path.rename(aside)
                if aside.lstat().st_atime > before:
                    aside.rename(path)  # another process has just handed it out
                    return False
                aside.unlink()
            except OSError:
                return False
        self._prune(path)
        return True

    def _prune(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            for parent in path.parents:
                if parent == self._directory():
                    return
                parent.rmdir()

    def _walk(self) -> Iterator[tuple[str, os.stat_result]]:
        """Every file of the cache and what the file system says of it."""
        root = self._directory()
        waiting = [""]
        while waiting:
            inner = waiting.pop()
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                with os.scandir(root / inner) as entries:
                    for entry in entries:
                        key = f"{inner}/{entry.name}" if inner else entry.name
                        if key == _OWN:
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(key)
                        elif entry.is_file(follow_symlinks=False):
                            with contextlib.suppress(FileNotFoundError):
                                yield key, entry.stat(follow_symlinks=False)

    # -- the directory's own -------------------------------------------------------------------
    def _directory(self) -> Path:
        if self._ready is None:
            with self._lock:
                if self._ready is None:
                    self._ready = self._prepare()
        return self._ready

    def _prepare(self) -> Path:
        root = self._settings.directory
        if root is None:
            raise ConfigurationError(
                "What lies in no directory cannot be staged: staging.directory is not set."
            )
        try:
            for inner in ("filling", "locks"):
                (root / _OWN / inner).mkdir(parents=True, exist_ok=True)
            _clear(root / _OWN / "filling")
            _require_nanoseconds(root / _OWN / "filling")
        except OSError as error:
            raise _translate(error, str(root)) from error
        threading.Thread(target=self._recount, name="stage-count", daemon=True).start()
        return root

    def _recount(self) -> None:
        """Sum up what is there: a crash or an operator may have changed it."""
        with contextlib.suppress(OSError), self._locked("evict"):
            self._count(sum(found.st_size for _, found in self._walk()), absolute=True)

    def _count(self, change: int, absolute: bool = False) -> int:
        """Change the sum of sizes, which all processes share; returns it."""
        path = self._directory() / _OWN / "bytes"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            text = os.pread(fd, 32, 0).strip()
            total = max(0, change if absolute else int(text or 0) + change)
            if change or absolute:
                os.pwrite(fd, f"{total:<31}\n".encode(), 0)
            return total
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Alone among all processes that share the directory; waits in the kernel."""
        path = self._directory() / _OWN / "locks" / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _seal(version: str) -> int:
    """Nanoseconds below a second that stand for the version of a file's bytes."""
    return int(hashlib.sha256(version.encode()).hexdigest()[:15], 16) % (_NANO // 100) * 100


def _write(fd: int, wanted: Wanted) -> None:
    digest, size = hashlib.sha256(), 0
    for chunk in wanted.read():
        size += len(chunk)
        if size > wanted.size:
            break
        digest.update(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view) :]
    if size != wanted.size or (wanted.sha256 or digest.hexdigest()) != digest.hexdigest():
        raise ReadbackMismatch(
            f"The store gave other bytes for {wanted.key!r} than were stored. "
            "Run `storage-manager reconcile`, and verify the product."
        )


def _clear(directory: Path) -> None:
    """Remove copies that nobody works at any more."""
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            fd = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (directory / name).unlink()
            finally:
                os.close(fd)


def _require_nanoseconds(directory: Path) -> None:
    probe = directory / f"probe-{uuid.uuid4().hex}"
    probe.touch()
    try:
        os.utime(probe, ns=(0, _seal("probe")))
        if probe.stat().st_mtime_ns != _seal("probe"):
            raise ConfigurationError(
                f"The file system of {directory} does not keep nanoseconds of modification times; "
                "staging.directory must lie on one that does (ext4, xfs, NFS over them)."
            )
    finally:
        probe.unlink()


def _translate(error: OSError, key: str) -> StorageManagerError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpace(f"The staging cache is full (while copying {key!r}).")
    if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
        return InvalidKey(f"The cache's file system refuses {key!r}: {error.strerror}.", name=key)
    return Unavailable(f"The staging cache failed on {key!r}: {error.strerror or error}.")
