"""Real servers for the tests, on loopback: SeaweedFS (S3), PostgreSQL, and the service itself."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import psycopg
import urllib3
from botocore.config import Config

ROOT = Path(__file__).resolve().parents[2]
ACCESS_KEY = "storage-manager-test"
SECRET_KEY = secrets.token_hex(20)


#: Below those that systems give to outgoing connections: one of these may take any other meanwhile.
_PORTS = range(12_000, 32_000)


def free_port() -> int:
    """A port that nobody listens on now."""
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


#: Limits of waiting are of a quiet machine; one so many times slower fails no test.
PATIENCE = 3


def wait_until(condition, seconds: float, what: str) -> Any:
    """Whatever true thing ``condition`` gives, or an error after ``seconds`` (of a quiet machine)."""
    deadline = time.monotonic() + PATIENCE * seconds
    last: Exception | None = None
    while time.monotonic() < deadline:
        try:
            found = condition()
        except AssertionError:
            raise
        except Exception as error:
            last, found = error, None
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come about within {PATIENCE * seconds} s: {last!r}")


@dataclass
class Weed:
    """A SeaweedFS with its S3 gateway."""

    endpoint: str
    process: subprocess.Popen[bytes]
    directory: Path
    credentials_file: Path
    buckets: int = 0

    def client(self):
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def new_bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name

    def backend(self, bucket: str | None = None, **more: Any) -> dict[str, Any]:
        """The settings of an S3 backend over a (new) bucket."""
        return {
            "type": "s3",
            "bucket": bucket or self.new_bucket(),
            "endpoint": self.endpoint,
            "credentials_file": str(self.credentials_file),
            **more,
        }


@contextlib.contextmanager
def weed(directory: Path, volume_mb: int = 1024, volumes: int = 5000) -> Iterator[Weed]:
    """Run SeaweedFS in ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "s3.json"
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    credentials = directory / "credentials"
    credentials.write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    data = directory / "data"
    data.mkdir(exist_ok=True)
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    grpc = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    command = [
        str(Path(sys.executable).parent / "weed"),
        "server",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={data}",
        "-s3",
        f"-s3.config={config}",
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *(f"-{name}.port.grpc={port}" for name, port in grpc.items()),
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        f"-volume.max={volumes}",
        f"-master.volumeSizeLimitMB={volume_mb}",
        "-master.volumePreallocate=false",
    ]
    with (directory / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=directory)
    server = Weed(f"http://127.0.0.1:{ports['s3']}", process, directory, credentials)

    def usable() -> bool:
        assert process.poll() is None, (directory / "weed.log").read_text()[-2000:]
        client = server.client()
        bucket = server.new_bucket()
        client.put_object(Bucket=bucket, Key="ready", Body=b"x")
        return True

    try:
        wait_until(usable, 90, "SeaweedFS")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def postgres_bin() -> Path | None:
    """Where PostgreSQL's programs are."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else None


@dataclass
class Postgres:
    """A PostgreSQL server."""

    port: int
    directory: Path
    password_file: Path
    run_as: list[str]
    bin: Path

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        name = f"catalog_{secrets.token_hex(6)}"
        with psycopg.connect(
            f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres",
            password=self.password_file.read_text().strip(),
            autocommit=True,
        ) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return name

    def control(self, verb: str, *more: str) -> None:
        subprocess.run(
            [*self.run_as, str(self.bin / "pg_ctl"), "-D", str(self.directory), "-w", verb, *more],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@contextlib.contextmanager
def postgres(directory: Path) -> Iterator[Postgres]:
    """Run PostgreSQL in ``directory``; as its own user where the tests run as root."""
    binaries = postgres_bin()
    assert binaries is not None
    run_as: list[str] = []
    directory.mkdir(parents=True)
    password_file = directory.parent / "pg-password"
    password_file.write_text(secrets.token_hex(16))
    password_file.chmod(0o644)
    if os.geteuid() == 0:
        run_as = ["runuser", "-u", "postgres", "--"]
        shutil.chown(directory, "postgres")
        for parent in directory.parents:
            if parent.is_dir() and parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
    port = free_port()
    subprocess.run(
        [
            *run_as,
            str(binaries / "initdb"),
            "-D",
            str(directory),
            "-U",
            "postgres",
            "-A",
            "scram-sha-256",
            f"--pwfile={password_file}",
            "-E",
            "UTF8",
            "--no-sync",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    server = Postgres(port, directory, password_file, run_as, binaries)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    server.control("start", "-o", options, "-l", str(directory / "log"))
    try:
        yield server
    finally:
        server.control("stop", "-m", "immediate")


@dataclass
class Service:
    """The storage manager itself, running as its own process."""

    directory: Path
    settings_file: Path
    url: str
    metrics_url: str
    process: subprocess.Popen[bytes] | None = None
    tokens: dict[tuple[str, ...], str] = field(default_factory=dict)
    pool: urllib3.PoolManager = field(
        default_factory=lambda: urllib3.PoolManager(maxsize=64, blocksize=1 << 20, retries=False)
    )

    def start(self) -> None:
        with (self.directory / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "admin_api", "serve", "--settings", str(self.settings_file)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
            )

        def alive() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log()[-3000:]
            return self.pool.request("GET", f"{self.url}/healthz/live", timeout=2).status == 200

        wait_until(alive, 180, "the service")

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End the service's whole process group."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    def log(self) -> str:
        return (self.directory / "service.log").read_text()

    def token(
        self, *scopes: str, missions: list[str] | None = None, subject: str = "tester"
    ) -> str:
        key = (*scopes, *(missions or ()), subject)
        if key not in self.tokens:
            command = [sys.executable, "-m", "admin_api", "token"]
            command += ["--settings", str(self.settings_file), "--subject", subject]
            for scope in scopes or ("admin",):
                command += ["--scope", scope]
            for mission in missions or ():
                command += ["--mission", mission]
            self.tokens[key] = subprocess.run(
                command, check=True, capture_output=True, text=True, cwd=ROOT
            ).stdout.strip()
        return self.tokens[key]

    def token_file(self, *scopes: str) -> Path:
        path = self.directory / f"token-{'-'.join(scopes) or 'admin'}"
        path.write_text(self.token(*scopes))
        return path

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        token: str | None = "",
        **options: Any,
    ) -> urllib3.BaseHTTPResponse:
        """A request; bodies that are not bytes, files or iterators go as JSON."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token or self.token()}"
        if isinstance(body, dict | list):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        return self.pool.request(
            method, self.url + path, body=body, headers=sent, redirect=False, **options
        )

    def json(self, method: str, path: str, body: Any = None, expect: int = 200, **options: Any):
        """The JSON of an answer with the status that is expected."""
        answer = self.request(method, path, body, **options)
        assert answer.status == expect, (answer.status, answer.data[:2000])
        return json.loads(answer.data) if answer.data else None

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command as an operator would."""
        environment = {
            **os.environ,
            "STORAGE_MANAGER_URL": self.url,
            "STORAGE_MANAGER_TOKEN_FILE": str(self.token_file()),
            "STORAGE_MANAGER_SETTINGS": str(self.settings_file),
        }
        done = subprocess.run(
            [sys.executable, "-m", "admin_api", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
            timeout=300,
        )
        assert not check or done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        return done


def toml(values: dict[str, Any]) -> str:
    """Settings as TOML (JSON's scalars and inline tables are close enough to write by hand)."""

    def value(item: Any) -> str:
        if isinstance(item, dict):
            return "{" + ", ".join(f"{key} = {value(inner)}" for key, inner in item.items()) + "}"
        if isinstance(item, list):
            return "[" + ", ".join(value(inner) for inner in item) + "]"
        if isinstance(item, bool | int | float):
            return json.dumps(item)
        return json.dumps(str(item))

    return "".join(f"{key} = {value(item)}\n" for key, item in values.items())


def service_in(
    directory: Path, backend: dict[str, Any], database: Postgres | None = None, **sections: Any
) -> Service:
    """A service over ``backend``, set up in ``directory`` and not yet started.

    ``sections`` are merged into the settings.
    """
    directory.mkdir(parents=True, exist_ok=True)
    keys = directory / "keys"
    if not keys.exists():
        keys.write_text(f"k1 {secrets.token_hex(32)}\n")
    inbox = directory / "inbox"
    inbox.mkdir(exist_ok=True)
    port, metrics_port = free_port(), free_port()
    settings: dict[str, Any] = {
        "state_dir": directory / "state",
        "storage": {"mounts": [{"backend": backend}]},
        "auth": {"key_file": keys},
        "sources": {"file_roots": [inbox]},
        "housekeeping": {"interval_seconds": 0.5},
        "server": {"port": port, "metrics_port": metrics_port},
    }
    if database is not None:
        settings["catalog"] = {
            "url": database.url(database.new_database()),
            "password_file": database.password_file,
        }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values} if name != "state_dir" else values
    settings_file = directory / "settings.toml"
    settings_file.write_text(toml(settings))
    return Service(
        directory,
        settings_file,
        f"http://127.0.0.1:{port}",
        f"http://127.0.0.1:{metrics_port}",
    )
