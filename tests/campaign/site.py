"""The place where a campaign happens: a store, a catalog, and two services over both."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.servers import Postgres, Service, Weed, postgres, service_in, weed

#: Short, so that the slow are taken for dead as well and overtaken.  But failed attempts are
#: remembered for longer than a process stands still or is slow: a writer that writes later, and
#: is killed before it clears up, leaves what nobody sweeps any more (``reconcile`` tells it).
HOUSEKEEPING = {
    "interval_seconds": 0.5,
    "grace_seconds": 4.0,
    "commit_grace_seconds": 2.0,
    "failed_seconds": 20.0,
    "upload_seconds": 6.0,
}


@dataclass
class Site:
    """Two services with the same settings but their ports; either may be killed at any time."""

    directory: Path
    backend: dict[str, Any]
    services: list[Service]
    weed: Weed | None
    postgres: Postgres | None
    database: str
    #: Last words of services that ended without being killed.
    ended: list[str] = field(default_factory=list)

    @property
    def inbox(self) -> Path:
        return self.directory / "inbox"

    @property
    def store(self) -> Path:
        """The store's directory."""
        return Path(self.backend["root"])

    def another(self, name: str) -> Service:
        """A service with a catalog of its own over the same store, not started."""
        directory = self.directory / name
        catalog: dict[str, Any] = {}
        if self.postgres is not None:
            catalog = _on_postgres(self.postgres, self.postgres.new_database())
        return _service(directory, self.directory, self.backend, catalog, processes=1)

    # -- processes ---------------------------------------------------------------------------
    def kill(self, number: int) -> None:
        """Kill a whole service."""
        service = self.services[number]
        if service.process is not None:
            service.stop(signal.SIGKILL)

    def children(self, number: int) -> list[int]:
        """The server processes of a service."""
        process = self.services[number].process
        if process is None:
            return []
        path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        with contextlib.suppress(OSError):
            return [int(pid) for pid in path.read_text().split()]
        return []

    def revive(self) -> int:
        """Start what does not run, as a supervisor would; how many that were."""
        for service in self.services:
            if service.process is not None and service.process.poll() is not None:
                self.ended.append(service.log()[-300:])
                service.stop()
        dead = [service for service in self.services if service.process is None]
        with ThreadPoolExecutor(len(self.services)) as pool:
            list(pool.map(Service.start, dead))
        return len(dead)

    # -- the catalog, as an operator backs it up ---------------------------------------------
    def back_up(self) -> Path:
        """A consistent copy of the catalog as it is now."""
        copy = self.directory / "backup"
        if self.postgres is None:
            with (
                contextlib.closing(sqlite3.connect(self._sqlite)) as source,
                contextlib.closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
        else:
            self._postgres_program("pg_dump", "-Fc", "-f", str(copy), self.database)
        return copy

    def restore(self, copy: Path) -> None:
        """Put a copy back; no service runs."""
        if self.postgres is None:
            for suffix in ("-wal", "-shm"):
                Path(f"{self._sqlite}{suffix}").unlink(missing_ok=True)
            shutil.copy(copy, self._sqlite)
        else:
            self._postgres_program("dropdb", "--force", self.database)
            self._postgres_program("createdb", self.database)
            self._postgres_program("pg_restore", "-d", self.database, str(copy))

    @property
    def _sqlite(self) -> Path:
        return self.directory / "catalog.sqlite"

    def _postgres_program(self, program: str, *arguments: str) -> None:
        assert self.postgres is not None
        subprocess.run(
            [
                str(self.postgres.bin / program), "-h", "127.0.0.1",
                "-p", str(self.postgres.port), "-U", "postgres", *arguments,
            ],
            check=True,
            capture_output=True,
            env={**os.environ, "PGPASSWORD": self.postgres.password_file.read_text().strip()},
        )  # fmt: skip

    # -- the store, as it is -----------------------------------------------------------------
    def objects(self) -> set[str]:
        """Keys of everything in the store but what is the storage manager's own."""
        if self.weed is None:
            keys = {
                path.relative_to(self.store).as_posix()
                for path in self.store.rglob("*")
                if not path.is_dir()
            }
        else:
            pages = (
                self.weed.client()
                .get_paginator("list_objects_v2")
                .paginate(Bucket=self.backend["bucket"])
            )
            keys = {item["Key"] for page in pages for item in page.get("Contents", ())}
        return {key for key in keys if not key.startswith(".") or key.startswith(".tmp/")}

    def open_multiparts(self) -> list[str]:
        """Keys of uploads in parts that nobody has ended."""
        if self.weed is None:
            return []
        answer = self.weed.client().list_multipart_uploads(Bucket=self.backend["bucket"])
        return [item["Key"] for item in answer.get("Uploads", ())]

    def key(self, uri: str) -> str:
        """The key in the store that a product's answer names by its URI."""
        path = unquote(urlsplit(uri).path)
        root = f"{self.store}/" if self.weed is None else "/"
        return path.removeprefix(root)

    def records(self) -> dict[str, bytes]:
        """The record objects (``docs/architecture.md``) by their keys."""
        if self.weed is None:
            return {
                path.relative_to(self.store).as_posix(): path.read_bytes()
                for path in (self.store / ".products").rglob("*.jsonl")
            }
        client, bucket = self.weed.client(), self.backend["bucket"]
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=".products/")
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return {
            key: client.get_object(Bucket=bucket, Key=key)["Body"].read()
            for key in keys
            if key.endswith(".jsonl")
        }

    def overwrite(self, key: str, data: bytes | None) -> None:
        """Put other bytes under a key, or none, behind the storage manager's back."""
        if self.weed is None:
            path = self.store / key
            path.unlink()
            if data is not None:
                path.write_bytes(data)
            return
        client, bucket = self.weed.client(), self.backend["bucket"]
        if data is None:
            client.delete_object(Bucket=bucket, Key=key)
        else:
            client.put_object(Bucket=bucket, Key=key, Body=data)

    def stop(self) -> None:
        for service in self.services:
            service.stop(signal.SIGKILL)


@contextlib.contextmanager
def site(
    directory: Path,
    backend: str,
    catalog: str,
    s3: Weed | None = None,
    database: Postgres | None = None,
) -> Iterator[Site]:
    """A site in ``directory``; ``s3`` and ``database`` are servers that run already."""
    with contextlib.ExitStack() as stack:
        if backend == "s3" and s3 is None:
            s3 = stack.enter_context(weed(directory / "weed"))
        if catalog == "postgresql" and database is None:
            database = stack.enter_context(postgres(directory / "postgres" / "data"))
        if backend == "s3":
            assert s3 is not None
            where = s3.backend()
        else:
            where = {"type": "posix", "root": directory / "store"}
        name, settings = "", {"url": f"sqlite:///{directory / 'catalog.sqlite'}"}
        if catalog == "postgresql":
            assert database is not None
            name = database.new_database()
            settings = _on_postgres(database, name)
        (directory / "inbox").mkdir()
        services = [
            _service(directory / f"service-{number}", directory, where, settings, processes)
            for number, processes in enumerate((2, 1))
        ]
        made = Site(
            directory,
            where,
            services,
            s3 if backend == "s3" else None,
            database if catalog == "postgresql" else None,
            name,
        )
        stack.callback(made.stop)
        yield made


def _on_postgres(server: Postgres, name: str) -> dict[str, Any]:
    return {"url": server.url(name), "password_file": server.password_file}


def _service(
    directory: Path, shared: Path, backend: dict[str, Any], catalog: dict[str, Any], processes: int
) -> Service:
    directory.mkdir(parents=True)
    keys = shared / "keys"
    if keys.exists():
        shutil.copy(keys, directory / "keys")
    made = service_in(
        directory,
        backend,
        catalog=catalog,
        sources={"file_roots": [shared / "inbox"]},
        housekeeping=HOUSEKEEPING,
        server={"processes": processes},
    )
    if not keys.exists():
        shutil.copy(directory / "keys", keys)
    assert "catalog" in tomllib.loads(made.settings_file.read_text())
    return made
