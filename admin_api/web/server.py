"""The HTTP server: gunicorn with threads, hardened against slow clients.

Called by ``storage-manager serve``.  gunicorn's threaded worker gives a thread to every new
connection and lets it wait there for the request; thousands of idle or trickling connections
would starve all others.  Here a connection gets a thread only when its request's headers are
complete, and no socket operation waits for ever (fault F26).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import resource
import selectors
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from gunicorn import glogging
from gunicorn.app.base import BaseApplication
from gunicorn.workers.gthread import TConn, ThreadWorker

from admin_api.catalog.database import Catalog
from admin_api.errors import StorageManagerError
from admin_api.services import housekeeping, identity, monitoring
from admin_api.services.access import Authority, Principal
from admin_api.services.facility import Facility, join, open_catalog
from admin_api.settings import Settings
from admin_api.web import logs

log = logging.getLogger(__name__)

# Parameters of mallopt(3), from malloc.h.
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
#: A file system in memory, on Linux; a directory of our own is made in it.
_MEMORY = Path("/dev/shm")  # noqa: S108  # nosec B108 # own directory within
_MAX_HEAD_BYTES = 64 * 1024
_READ_HEAD_BYTES = 16 * 1024
_END_OF_HEAD = b"\r\n\r\n"
#: As long as the balancers wait for a request.
_TRANSFER_SECONDS = 3600
_TOO_LONG = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n"
    b"Content-Length: 0\r\n\r\n"
)
_TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
#: The service itself, when it measures what is stored.
_EVERYTHING = Principal("system", frozenset(["read"]), None)


class PatientWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's threaded worker, with the heads of requests read by its poller."""

    settings: Settings

    def accept(self, listener: socket.socket) -> None:
        """Take a connection and wait for its head without a thread."""
        try:
            client, address = listener.accept()
        except OSError:
            return  # gone again, or another process was faster
        self.nr_conns += 1
        connection = TConn(self.cfg, client, address, listener.getsockname())
        self._await_head(connection)

    def on_client_socket_readable(self, conn: TConn, client: socket.socket) -> None:
        """A kept connection has something to say: wait for the whole head again."""
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._await_head(conn)

    def _await_head(self, conn: TConn, head: bytes = b"") -> None:
        conn.head = head
        if _END_OF_HEAD in head:
            self.enqueue_req(conn)
            return
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + self.settings.server.header_seconds
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._read_head, conn))

    def _read_head(self, conn: TConn, client: socket.socket) -> None:
        try:
            data = client.recv(_READ_HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        conn.head += data
        complete, too_long = _END_OF_HEAD in conn.head, len(conn.head) > _MAX_HEAD_BYTES
        if data and not complete and not too_long:
            return
        self.poller.unregister(client)
        self.pending_conns.remove(conn)
        if complete:
            self.enqueue_req(conn)
        else:
            self._drop(conn, _TOO_LONG if data else b"")

    def murder_pending(self) -> None:
        """Answer 408 to the heads that do not come to their end, close what said nothing."""
        now = time.monotonic()
        while self.pending_conns and self.pending_conns[0].timeout <= now:
            conn = self.pending_conns.popleft()
            self.poller.unregister(conn.sock)
            self._drop(conn, _TIMED_OUT if conn.head else b"")

    def _drop(self, conn: TConn, farewell: bytes = b"") -> None:
        if farewell:
            with contextlib.suppress(OSError):  # the client may be gone
                conn.sock.send(farewell)
        self.nr_conns -= 1
        conn.close()

    def handle(self, conn: TConn) -> Any:
        """Serve a request whose head has been read; runs in a thread."""
        conn.data_ready = True
        conn.sock.setblocking(True)
        conn.init()
        if conn.head:
            conn.parser.unreader.unread(conn.head)
            conn.head = b""
        return super().handle(conn)

    def handle_request(self, req: Any, conn: TConn) -> Any:
        """Serve it with a limit on every wait for the client."""
        conn.sock.settimeout(self.settings.limits.transfer_idle_seconds)
        return super().handle_request(req, conn)

    def finish_request(self, conn: TConn, fs: Any) -> None:
        """Keep the connection; what was pipelined behind the request is the next head."""
        if not fs.cancelled() and not fs.exception() and fs.result() is True:
            rest = conn.parser.unreader.take_buffered()
            if rest:
                self._await_head(conn, rest)
                return
        super().finish_request(conn, fs)

    def init_process(self) -> None:
        """Run; an old process that was replaced may take as long as its transfers do."""
        self.cfg.set("graceful_timeout", _TRANSFER_SECONDS)
        super().init_process()

    def load_wsgi(self) -> None:
        """Open the facility in this process (connections survive no fork) and watch over it."""
        _bound_heap()
        super().load_wsgi()
        facility: Facility = self.wsgi.facility
        threading.Thread(
            target=housekeeping.run,
            args=(facility, threading.Event(), partial(_note, facility)),
            name="housekeeping",
            daemon=True,
        ).start()
        threading.Thread(
            target=identity.watch,
            args=(facility.storage, threading.Event()),
            name="store-watch",
            daemon=True,
        ).start()


class _Logger(glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's messages go where all others go."""

    def setup(self, cfg: Any) -> None:
        self.error_log.propagate = True
        self.error_log.setLevel(logging.getLogger().level)


class _Dispatcher:
    """The WSGI application: the API on one socket, the metrics on the other."""

    def __init__(self, settings: Settings) -> None:
        from admin_api.web.app import create_app
        from admin_api.web.metrics import metrics_app

        # The tables were brought up to date before the fork; a database that is away right now
        # makes the service not ready, and does not end it.
        self.facility = join(settings, Catalog(settings.catalog))
        self._api = create_app(self.facility)
        self._metrics = metrics_app
        self._metrics_address = (settings.server.metrics_host, settings.server.metrics_port)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        address = environ["gunicorn.socket"].getsockname()
        if address[1] == self._metrics_address[1]:
            return self._metrics(environ, start_response)
        return self._api(environ, start_response)


class _Application(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's frame, configured from our settings and from nowhere else."""

    def __init__(self, load_settings: Callable[[], Settings]) -> None:
        self._load_settings = load_settings
        self.settings = load_settings()
        super().__init__()

    def reload(self) -> None:
        """Take up new settings (SIGHUP); with wrong ones, go on with those that were right."""
        try:
            settings = self._load_settings()
            _check(settings)
        except StorageManagerError as error:
            log.error("The settings are not taken up: %s", error.detail)
        else:
            self.settings = settings
            log.info("The settings are read anew.")
        super().reload()

    def load_config(self) -> None:
        server, limits = self.settings.server, self.settings.limits
        worker = type("Worker", (PatientWorker,), {"settings": self.settings})
        values: dict[str, Any] = {
            "bind": [
                f"{server.host}:{server.port}",
                f"{server.metrics_host}:{server.metrics_port}",
            ],
            "workers": server.processes,
            "threads": server.threads,
            "worker_class": worker,
            "worker_connections": server.max_connections,
            "keepalive": max(1, int(server.idle_seconds)),
            "timeout": 60,
            "graceful_timeout": int(limits.transfer_idle_seconds),
            "backlog": 2048,
            "limit_request_line": 0,  # heads are limited as they are read
            "accesslog": None,
            "logger_class": _Logger,
            "control_socket_disable": True,
            "proc_name": "storage-manager",
            "child_exit": _forget_process,
            "on_exit": _forget_counts,
            "forwarder_headers": "",  # no header moves the service to another path
        }
        for name, value in values.items():
            self.cfg.set(name, value)

    def load(self) -> Callable[..., Iterable[bytes]]:
        return _Dispatcher(self.settings)


def serve(load_settings: Callable[[], Settings]) -> None:
    """Serve until a signal ends it; raises ConfigurationError before anything is opened.

    SIGHUP has the settings loaded again, for new processes; the old ones finish what they do.
    """
    application = _Application(load_settings)
    settings = application.settings
    _check(settings)
    logs.configure(settings.server.log_level)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(_metrics_directory(settings.state_dir))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    application.run()


def _metrics_directory(state_dir: Path) -> Path:
    """An empty directory for the counts that the processes share.

    In memory where that can be: the files are mapped, and on a full disk a process that touches a
    page without a block behind it is killed (SIGBUS).
    """
    name = hashlib.sha256(os.fsencode(state_dir.absolute())).hexdigest()[:16]
    in_memory = _MEMORY / f"storage-manager-{os.getuid()}-{name}"
    with contextlib.suppress(OSError):
        shutil.rmtree(in_memory, ignore_errors=True)
        in_memory.mkdir(mode=0o700)  # fails on what somebody else has put there
        return in_memory
    on_disk = state_dir / "metrics"
    shutil.rmtree(on_disk, ignore_errors=True)
    on_disk.mkdir(parents=True)
    return on_disk


def _check(settings: Settings) -> None:
    Authority(settings.auth)
    open_catalog(settings).close()


def _bound_heap() -> None:
    """Give payload buffers back to the system when they are freed.

    glibc keeps a heap per thread and raises the size from which it maps memory by itself; with many
    threads moving buffers of megabytes that grows far beyond what is in use (mallopt(3)).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library does without
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_THRESHOLD, 512 * 1024)
        mallopt(_M_ARENA_MAX, 2)


def _forget_process(_arbiter: Any, worker: Any) -> None:
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]  # it has no types


def _forget_counts(_arbiter: Any) -> None:
    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)


def _note(facility: Facility, cleared: housekeeping.Cleared) -> None:
    """Put what housekeeping did, and what is stored, into the metrics."""
    from admin_api.web import metrics

    for kind in housekeeping.Cleared.__dataclass_fields__:
        metrics.CLEARED.labels(kind).inc(getattr(cleared, kind))
    try:
        for mount in monitoring.mounts(facility):
            for kind, value in (("total", mount.capacity.total), ("free", mount.capacity.free)):
                if value is not None:
                    metrics.CAPACITY.labels(f"/{mount.path}", kind).set(value)
        for item in monitoring.usage(facility, _EVERYTHING):
            labels = (item.mission or "", item.product_type or "")
            metrics.STORED.labels(*labels).set(item.bytes)
            metrics.PRODUCTS.labels(*labels).set(item.products)
    except StorageManagerError:
        log.exception("what is stored could not be measured")
