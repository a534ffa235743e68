"""The HTTP server: gunicorn's frame around ``web/connections.py`` and the application.

Called by ``storage-manager serve``.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from gunicorn import glogging
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from admin_api import memory, worker
from admin_api.catalog.database import Catalog
from admin_api.errors import StorageManagerError
from admin_api.services import identity
from admin_api.services.access import Authority
from admin_api.services.callers import Callers
from admin_api.services.download_tokens import DownloadTokens
from admin_api.services.facility import Facility, join, open_catalog
from admin_api.settings import Settings
from admin_api.storage.mounts import load_engines
from admin_api.web import counts, logs
from admin_api.web.connections import PatientWorker, is_here

log = logging.getLogger(__name__)

#: As long as the balancers wait for a request.
_TRANSFER_SECONDS = 3600


class _Worker(PatientWorker):
    """A server process with its facility."""

    def init_process(self) -> None:
        """Run; an old process that was replaced may take as long as its transfers do."""
        self.cfg.set("graceful_timeout", _TRANSFER_SECONDS)
        super().init_process()

    def load_wsgi(self) -> None:
        """Open the facility in this process (connections survive no fork) and watch over it."""
        memory.bound_heap()
        super().load_wsgi()
        facility: Facility = self.wsgi.facility
        self.transfers = facility.transfers
        facility.watch.start()
        threading.Thread(target=facility.storage.prepare, name="store-memory", daemon=True).start()
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
        self._metrics = partial(metrics_app, counts.directories(settings.state_dir))
        self._metrics_address = (settings.server.metrics_host, settings.server.metrics_port)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        address = environ["gunicorn.socket"].getsockname()
        if address[1] == self._metrics_address[1]:
            return self._metrics(environ, start_response)

        def start(*arguments: Any) -> Any:
            if not is_here(environ["wsgi.input"]):
                start_response.__self__.force_close()
            return start_response(*arguments)

        return self._api(environ, start)


class _Arbiter(Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's parent process, which also keeps the worker (``admin_api/worker.py``) running."""

    worker_pid = 0

    def manage_workers(self) -> None:
        """Called every second: start what is missing."""
        super().manage_workers()
        if self.app.settings.server.worker and not self._has_worker():
            self.worker_pid = self._start_worker()

    def reload(self) -> None:
        """New settings are for the worker, too; it is started again with them."""
        super().reload()
        self._end_worker()

    def stop(self, graceful: bool = True) -> None:
        self._end_worker()
        super().stop(graceful)

    def _has_worker(self) -> bool:
        # gunicorn waits for every child that ends, so one that is gone is no zombie.
        return self.worker_pid != 0 and Path(f"/proc/{self.worker_pid}").exists()

    def _end_worker(self) -> None:
        if self._has_worker():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.worker_pid, signal.SIGTERM)

    def _start_worker(self) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2"):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for listener in self.LISTENERS:
                listener.sock.close()
            worker.work(self.app.settings, parent)
        except BaseException:
            log.exception("the worker ended")
        os._exit(0)


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

    def run(self) -> None:
        """Serve until a signal ends it."""
        _Arbiter(self).run()

    def load_config(self) -> None:
        server, limits = self.settings.server, self.settings.limits
        worker = type("Worker", (_Worker,), {"settings": self.settings})
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
    _migrate_apart(settings)
    _check(settings)
    logs.configure(settings.server.log_level)
    counts.begin(settings.state_dir, "server")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _share(settings)
    application.run()


def _share(settings: Settings) -> None:
    """Import what every process needs before the first is forked: the memory is had once then.

    The collector leaves alone what is there now; it would write to all of it, and pages that are
    written to are no longer shared.
    """
    importlib.import_module("admin_api.web.app")
    load_engines(settings.storage)
    gc.collect()
    gc.freeze()


def _migrate_apart(settings: Settings) -> None:
    """Migrate the catalog in a process that takes with it what only migrating needs.

    What fails there is met again, and told, by whoever opens the catalog next.
    """
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        with contextlib.suppress(StorageManagerError):
            open_catalog(settings).close()
    finally:
        os._exit(0)


def _check(settings: Settings) -> None:
    Authority(settings.auth)
    if settings.proseo.enabled:
        Callers(settings.proseo)
        DownloadTokens(settings.proseo)
    open_catalog(settings).close()


def _forget_process(_arbiter: Any, worker: Any) -> None:
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]  # it has no types


def _forget_counts(_arbiter: Any) -> None:
    counts.end()
