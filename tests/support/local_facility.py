"""The local facility as an operator, a client and a processor see it.

Used by ``tests/facility``, by ``bench`` and by ``scripts/facility_tour.py``.  Its hosts are made by
``local_hosts/hosts.py``; commands on them go over ssh, requests through the balancers.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.client import RemoteDisconnected
from pathlib import Path
from typing import Any
from urllib.parse import quote

import urllib3

from tests.support.servers import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = {
    "bastion": "10.89.8.3",
    "s3": "10.89.8.5",
    "control": "10.89.8.10",
    "node1": "10.89.8.11",
    "node2": "10.89.8.12",
    "node3": "10.89.8.13",
    "node4": "10.89.8.14",
}
NODES = ("node1", "node2", "node3")
READY_SECONDS = 90.0
#: So long a client that is told to come again does so.
AGAIN_SECONDS = 60.0
OPERATOR = ROOT / "local_hosts/operator.sh"


class _ClosedWhileIdle(RemoteDisconnected):
    """The other side has closed a connection that had answered before: no request was lost."""


class _Connection(urllib3.connection.HTTPSConnection):
    """Tells a connection that was closed while it lay idle from one that was never answered."""

    has_answered = False

    def connect(self) -> None:
        self.has_answered = False
        super().connect()

    def getresponse(self) -> urllib3.response.HTTPResponse:
        try:
            response = super().getresponse()
        except RemoteDisconnected as error:
            raise (_ClosedWhileIdle(*error.args) if self.has_answered else error) from None
        self.has_answered = True
        return response


class _Pool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Connection


class Facility:
    """The hosts of the local facility."""

    def __init__(self, directory: Path | None = None) -> None:
        default = os.environ.get("LOCAL_HOSTS", str(ROOT / ".facility" / "hosts"))
        self.directory = directory or Path(default)
        self._tokens: dict[tuple[str, ...], str] = {}
        self._pool: urllib3.PoolManager | None = None

    # -- hosts -------------------------------------------------------------------------------
    def ssh(self, host: str, command: str, check: bool = True, timeout: float = 120) -> str:
        """Run a shell command on a host as root, by the operator's sudo; its output.

        The command comes in by stdin: in an argument it would be in sudo's journal.
        """
        done = subprocess.run(
            ["ssh", "-F", str(self.directory / "ssh_config"), host, "sudo -n bash -s"],
            input=f"{{\n{command}\n}} </dev/null\n",
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{host}: {command}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def hosts(self, *arguments: str) -> None:
        """``local_hosts/hosts.py`` with these arguments."""
        subprocess.run(
            [sys.executable, str(ROOT / "local_hosts/hosts.py"), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def hosts_that_stand(self) -> list[str]:
        done = subprocess.run(
            [
                "podman",
                "ps",
                "--all",
                "--filter",
                "network=storage-manager",
                "--format",
                "{{.Names}}",
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.split()

    def power_off(self, host: str) -> None:
        """As if the plug was pulled."""
        subprocess.run(["podman", "kill", host], check=True, capture_output=True)

    def power_on(self, host: str) -> None:
        subprocess.run(["podman", "start", host], check=True, capture_output=True)

    def reboot(self, *hosts: str) -> None:
        """Stop every unit of these hosts and boot them, side by side; until they are up."""
        running = [
            subprocess.Popen(
                ["podman", "restart", "--time", "90", host],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for host in hosts
        ]
        for process in running:
            _, said = process.communicate(timeout=180)
            assert process.returncode == 0, said
        for host in hosts:

            def up(host: str = host) -> bool:
                command = ["podman", "exec", host, "systemctl", "is-system-running"]
                done = subprocess.run(command, capture_output=True, text=True)
                return done.stdout.strip() == "running"

            wait_until(up, 120, f"{host} to be up again, all units well")

    def playbook(self, *arguments: str, check: bool = True, inventory: str = "local") -> str:
        """Run ``ansible-playbook`` as the operator, who is not root; what it printed.

        With the local inventory, or without any if ``inventory`` is empty.
        """
        command = [str(OPERATOR), str(Path(sys.executable).parent / "ansible-playbook")]
        command += ["-i", f"inventory/{inventory}"] if inventory else []
        environment = {**os.environ, "LOCAL_HOSTS": str(self.directory), "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment
        )
        if check and done.returncode != 0:
            raise AssertionError(done.stdout[-6000:] + done.stderr[-2000:])
        return done.stdout

    def inventory(self, name: str, groups: dict[str, Iterable[str]]) -> Path:
        """An inventory with these hosts in these groups, reached and set as the local one's are."""
        folder = self.directory / name
        folder.mkdir(exist_ok=True)
        for shared in ("connection.yml", "group_vars"):
            if not (folder / shared).exists():
                (folder / shared).symlink_to(ROOT / "inventory/local" / shared)
        children = {group: {"hosts": dict.fromkeys(hosts)} for group, hosts in groups.items()}
        (folder / "hosts.yml").write_text(json.dumps({"all": {"children": children}}))
        return folder

    @property
    def home(self) -> Path:
        """The operator's home: the only place that playbooks write to on the control side."""
        return self.directory / "operator"

    # -- clients -----------------------------------------------------------------------------
    @property
    def ca(self) -> Path:
        """The certificate of the facility's authority, fetched from the admin host."""
        path = self.directory / "ca.crt"
        path.write_text(self.ssh("control", "cat /etc/storage-manager/secrets/ca.crt") + "\n")
        return path

    @property
    def pool(self) -> urllib3.PoolManager:
        if self._pool is None:
            self._pool = urllib3.PoolManager(
                ca_certs=str(self.ca),
                retries=False,
                maxsize=64,
                block=False,
                timeout=urllib3.Timeout(connect=5, read=120),
            )
            schemes = self._pool.pool_classes_by_scheme
            self._pool.pool_classes_by_scheme = {**schemes, "https": _Pool}
        return self._pool

    def token(self, *scopes: str, subject: str = "tester", missions: tuple[str, ...] = ()) -> str:
        """A token made on the admin host."""
        key = (subject, *scopes, "|", *missions)
        if key not in self._tokens:
            options = "".join(f" --scope {scope}" for scope in scopes)
            options += "".join(f" --mission {mission}" for mission in missions)
            self._tokens[key] = self.ssh(
                "control",
                "storage-manager token --settings /etc/storage-manager/settings.toml"
                f" --subject {subject}{options}",
            )
        return self._tokens[key]

    def forget_tokens(self) -> None:
        """Their key is gone: new ones are made when they are needed; and trust the new authority."""
        self._tokens.clear()
        self._pool = None

    @property
    def operator(self) -> str:
        return self.token("read", "ingest", "remove", "admin")

    def url(self, node: str = "node1") -> str:
        return f"https://{ADDRESSES[node]}:8443"

    def request(
        self,
        method: str,
        path: str,
        *,
        node: str = "node1",
        token: str | None = None,
        body: Any = None,
        headers: dict[str, str] | None = None,
        preload: bool = True,
    ) -> urllib3.BaseHTTPResponse:
        """One request through a node's balancer; ``path`` may be a whole URL."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        url = path if path.startswith("http") else self.url(node) + path
        # urllib3 sends a body under the limit for connecting: a node that stalls is no failure.
        patient = {"timeout": urllib3.Timeout(120)} if body is not None else {}
        return self.pool.request(
            method, url, body=body, headers=sent, redirect=False, preload_content=preload, **patient
        )

    def get(
        self, path: str, reopened: Callable[[], None] | None = None, **options: Any
    ) -> urllib3.BaseHTTPResponse:
        """A GET; a connection that was closed while it lay idle is opened again (RFC 9112, 9.3.1).

        ``reopened`` is called then.
        """
        try:
            return self.request("GET", path, **options)
        except urllib3.exceptions.ProtocolError as error:
            if not isinstance(error.args[-1], _ClosedWhileIdle):
                raise
        if reopened:
            reopened()
        headers = {**(options.pop("headers", None) or {}), "Connection": "close"}
        return self.request("GET", path, headers=headers, **options)

    def asked_again(self, method: str, path: str, **options: Any) -> urllib3.BaseHTTPResponse:
        """A request that comes again while it is told to, as a client's does."""
        begun = time.monotonic()
        send = self.get if method == "GET" else partial(self.request, method)
        while True:
            answer = send(path, **options)
            told = answer.status == 503 and "Retry-After" in answer.headers
            if not told or time.monotonic() - begun > AGAIN_SECONDS:
                return answer
            time.sleep(1)

    def json(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The answer's JSON; the operator's token; fails on everything from 300."""
        options.setdefault("token", self.operator)
        answer = self.asked_again(method, path, body=body, **options)
        assert answer.status < 300, (answer.status, answer.data[:2000])
        return json.loads(answer.data)

    def upload(self, name: str, data: bytes, query: str = "", **options: Any) -> dict[str, Any]:
        """A product of one file; the answer."""
        return dict(self.json("PUT", f"/v1/uploads/{quote(name)}{query}", data, **options))

    def link(self, product: dict[str, Any], path: str | None = None) -> str:
        """The signed link to a product's (first) file."""
        path = path or product["files"][0]["path"]
        answer = self.asked_again(
            "GET", f"/v1/products/{product['id']}/files/{quote(path)}", token=self.operator
        )
        assert answer.status == 307, (answer.status, answer.data[:500])
        return str(answer.headers["Location"])

    def through(self, link: str, node: str) -> str:
        """The same link at another node's balancer."""
        return self.url(node) + link[link.index("/dl/") :]

    def read(self, link: str) -> bytes:
        answer = self.asked_again("GET", link)
        assert answer.status == 200, (answer.status, answer.data[:500])
        return answer.data

    def remove(self, product: dict[str, Any]) -> None:
        self.json("DELETE", f"/v1/products/{product['id']}")

    # -- Alluxio -----------------------------------------------------------------------------
    def proxy(self, path: str, verb: str, options: Any = None, node: str = "node1") -> Any:
        """A REST call at a proxy itself, from the admin host."""
        command = (
            "curl --silent --max-time 60 --request POST --header 'Content-Type: application/json'"
            f" --data '{json.dumps(options or {})}'"
            f" 'http://{ADDRESSES[node]}:39999/api/v1/paths//{quote(path)}/{verb}'"
        )
        output = self.ssh("control", command)
        return json.loads(output) if output else None

    def master(self) -> dict[str, Any]:
        command = (
            f"curl --silent --max-time 10 http://{ADDRESSES['control']}:19999/api/v1/master/info"
        )
        return dict(json.loads(self.ssh("control", command)))

    def metric(self, name: str) -> float:
        """A number of the master's metrics."""
        text = self.ssh(
            "control",
            f"curl --silent http://{ADDRESSES['control']}:19999/metrics/prometheus/",
        )
        for line in text.splitlines():
            if line.split(" ")[0] == name:
                return float(line.split(" ")[1])
        return 0.0

    def wait_ready(self, nodes: tuple[str, ...] = NODES, seconds: float = READY_SECONDS) -> None:
        """Until API, master, workers, proxies and balancers of these nodes are up."""

        def ready() -> bool:
            found = self.json("GET", "/v1/nodes", node=nodes[0])["nodes"]
            up = {
                item["name"]
                for item in found
                if item["worker"] == "active" and item["proxy"] == item["balancer"] == "up"
            }
            answers = [self.request("GET", "/lb-health", node=node).status for node in nodes]
            return up >= set(nodes) and answers == [200] * len(nodes)

        wait_until(ready, seconds, f"{', '.join(nodes)} to be up")


@contextmanager
def ground(what: str, alone: bool = False) -> Iterator[None]:
    """Keep what several test runs stand upon (the hosts, the origin) as it is, or have it to oneself."""
    folder = ROOT / ".facility"
    folder.mkdir(exist_ok=True)
    with (folder / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> float:
    """Wait for a condition, on a quiet machine no longer than this; how long it took."""
    seconds *= PATIENCE
    begun = time.monotonic()
    problem: object = None
    while time.monotonic() - begun < seconds:
        try:
            if condition():
                return time.monotonic() - begun
            problem = None
        except (AssertionError, OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            problem = error
        time.sleep(0.5)
    raise AssertionError(f"Waited {seconds} s in vain for {what} ({problem}).")


@dataclass
class Load:
    """What came of reading under load."""

    requests: int = 0
    #: (seconds since the beginning, what went wrong)
    failures: list[tuple[float, str]] = field(default_factory=list)
    #: What went wrong at the first try of those that succeeded at a later one.
    first_problems: list[tuple[float, str]] = field(default_factory=list)
    slowest: float = 0.0
    #: Connections that were closed while they lay idle, and opened again.
    reopened: int = 0
    done: list[float] = field(default_factory=list)

    @property
    def longest_gap(self) -> float:
        """The longest time without any answer, in seconds."""
        times = sorted(self.done)
        return max((b - a for a, b in zip(times, times[1:], strict=False)), default=0.0)

    def sentence(self) -> str:
        return (
            f"{self.requests} reads, {len(self.failures)} failed, {len(self.first_problems)} only succeeded "
            f"at another try, {self.reopened} connections opened again, longest gap {self.longest_gap:.1f} s, slowest {self.slowest:.1f} s"
            + "".join(f"\n  {when:.1f} s: {what}" for when, what in self.failures[:10])
        )


@contextmanager
def reading(
    facility: Facility,
    files: list[tuple[dict[str, Any], bytes]],
    nodes: tuple[str, ...] = NODES,
    threads: int = 6,
    tries: int = 1,
    pause: float = 0.0,
) -> Iterator[Load]:
    """Read whole files by link, side by side, and compare every byte.

    With ``tries`` a client does what a client does: ask for a link again, at another balancer.
    Without it too a connection that was closed while it lay idle is opened again (RFC 9112, 9.3.1).
    ``pause`` seconds between reads leave something of the machine to what is tried meanwhile.
    """
    load, lock, stop = Load(), threading.Lock(), threading.Event()
    begun = time.monotonic()
    token = facility.token("read")

    def reopened() -> None:
        with lock:
            load.reopened += 1

    def once(product: dict[str, Any], data: bytes, node: str) -> str | None:
        try:
            path = f"/v1/products/{product['id']}/files/{quote(product['files'][0]['path'])}"
            answer = facility.get(path, reopened, node=node, token=token)
            if answer.status == 307:
                answer = facility.get(answer.headers["Location"], reopened)
            if answer.status != 200:
                return f"read: {answer.status} {answer.data[:200]!r}"
            return None if answer.data == data else f"WRONG BYTES ({len(answer.data)})"
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return f"{type(error).__name__}: {error}"

    def work(number: int) -> None:
        turn = number
        while not stop.wait(pause):
            product, data = files[turn % len(files)]
            turn += 1
            before = time.monotonic()
            problem: str | None = "not tried"
            first: tuple[float, str] | None = None
            for attempt in range(tries):
                problem = once(product, data, nodes[(turn + attempt) % len(nodes)])
                if problem is None or "WRONG" in problem:
                    break
                first = first or (time.monotonic() - begun, problem)
                time.sleep(0.3 * (attempt + 1))
            now = time.monotonic()
            with lock:
                load.requests += 1
                load.slowest = max(load.slowest, now - before)
                load.done.append(now)
                if problem is not None:
                    load.failures.append((now - begun, problem))
                elif first:
                    load.first_problems.append(first)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield load
    finally:
        stop.set()
        for worker in workers:
            worker.join()
