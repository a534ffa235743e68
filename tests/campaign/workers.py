"""Clients that ingest, remove, keep and read a few products all at once, by a seeded choice.

Several threads make the order of things, so a seed gives the same choices, not the same history.
"""

from __future__ import annotations

import base64
import hashlib
import random
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.campaign.bodies import Bodies, pack, unpack_tar
from tests.campaign.client import Client
from tests.campaign.history import Operation, Sighting

KIB = 1 << 10
MIB = 1 << 20
#: Few, so that requests meet; two of them are the names of real products, with folders of days.
NAMES = (
    "campaign-1.nc",
    "campaign-2",
    "campaign-3.bin",
    "S5P_OFFL_L2__HCHO___20200328T053329_20200328T071459_12725_01_010108_20200330T103521.nc",
    "S3B_SL_1_RBT____20190116T050535_20190116T050835_20190117T125958_0179_021_048_0000_"
    "LN2_O_NT_003.SEN3",
)


class Gate:
    """Lets the campaign hold all clients between two requests."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._busy = 0
        self._held = False

    @contextmanager
    def passing(self):
        with self._condition:
            self._condition.wait_for(lambda: not self._held)
            self._busy += 1
        try:
            yield
        finally:
            with self._condition:
                self._busy -= 1
                self._condition.notify_all()

    @contextmanager
    def held(self):
        with self._condition:
            self._held = True
            self._condition.wait_for(lambda: self._busy == 0)
        try:
            yield
        finally:
            with self._condition:
                self._held = False
                self._condition.notify_all()


class Worker:
    """One client."""

    def __init__(
        self, client: Client, bodies: Bodies, inbox: Path, seed: str, drops: bool, large: bool
    ) -> None:
        self.client = client
        self.bodies = bodies
        self.inbox = inbox
        self.random = random.Random(seed)
        self.large = large
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="second")
        self._actions: list[tuple[Callable[[str], None], int]] = [
            (self.upload, 22),
            (self.upload_again, 6),
            (self.session, 12),
            (self.reference, 8),
            (self.archive, 8),
            (self.wrong_digest, 2),
            (self.remove, 13),
            (self.keep, 12),
            (self.read, 18),
            (self.read_archive, 3),
            (self.list_all, 6),
            (self.drop, 6 if drops else 0),
        ]

    def run(self, gate: Gate, stop: threading.Event) -> None:
        actions, weights = zip(*self._actions, strict=True)
        while not stop.is_set():
            with gate.passing():
                (action,) = self.random.choices(actions, weights)
                action(self.random.choice(NAMES))
            stop.wait(self.random.uniform(0, 0.05))
        self._pool.shutdown()

    # -- ways in -----------------------------------------------------------------------------
    def upload(self, name: str) -> None:
        data, sha256 = self._body(name, name)
        self._put(self._ingest(name, "upload", {name: [sha256]}), data)

    def upload_again(self, name: str) -> None:
        """The same request twice: at once, or with one Idempotency-Key, by whichever service."""
        data, sha256 = self._body(name, name)
        if self.random.random() < 0.4:
            one, other = (self._ingest(name, "upload", {name: [sha256]}) for _ in range(2))
            self._together(lambda: self._put(one, data), lambda: self._put(other, data))
            return
        first = self._ingest(name, "upload", {name: [sha256]})
        headers = {"Idempotency-Key": f"key-{first.number}"}
        self._put(first, data, headers)
        again = self._ingest(name, "upload", {name: [sha256]}, replay=first.number)
        again.request["policy"] = first.request["policy"]
        self._put(again, data, headers)

    def wrong_digest(self, name: str) -> None:
        data, sha256 = self._body(name, name)
        other = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
        operation = self._ingest(name, "upload", {name: [sha256]}, must="refused")
        self._put(operation, data, {"Repr-Digest": f"sha-256=:{other}:"})

    def drop(self, name: str) -> None:
        data, sha256 = self._body(name, name)
        keep = self.random.choice([0.0, 0.3, 0.9, 1.0])
        chunked = self.random.random() < 0.3
        operation = self._ingest(name, "dropped", {name: [sha256]})
        self.client.drop(operation, self._path(operation), data, keep, chunked)

    def archive(self, name: str) -> None:
        files, sent = self._tree(name)
        kind = self.random.choice(["tar", "tar.gz", "zip"])
        operation = self._ingest(name, kind, sent)
        path = f"/v1/uploads/{quote(name)}.{kind}?unpack=true&{self._query(operation)}"
        self.client.send(operation, "PUT", path, pack(kind, name, files))

    def reference(self, name: str) -> None:
        files, sent = self._tree(name)
        operation = self._ingest(name, "reference", sent)
        tree = self.inbox / str(operation.number)
        for path, data in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(data)
        order = {"source": tree.as_uri(), "name": name, "duplicates": operation.request["policy"]}
        self.client.send(operation, "POST", "/v1/products", order)

    def session(self, name: str) -> None:
        """A product of several requests; one path comes twice at once, with other bytes."""
        policy = self._policy()
        beginning = self._begin("begin", name)
        begun = self.client.send(
            beginning, "POST", "/v1/uploads", {"name": name, "duplicates": policy}
        )
        if begun is None:
            return
        paths = ["a.bin", "folder/b.bin", "folder/c.bin"][: self.random.randint(1, 3)]
        arrived: dict[str, list[Operation]] = {}
        for number, path in enumerate(paths):
            first = self._file_sender(begun["id"], name, path, big=number == 0)
            second = self._file_sender(begun["id"], name, path, big=number == 0)
            sent = self._together(first, second) if number == 0 else (first(),)
            arrived[path] = list(sent)
        fate = self.random.random()
        if fate < 0.1:
            return  # forgotten by its client
        if fate < 0.2:
            abort = self._begin("abort", name, session=begun["id"])
            self.client.send(abort, "DELETE", f"/v1/uploads/{begun['id']}")
            return
        sent_files = {
            path: possible for path, files in arrived.items() if (possible := _possible(files))
        }
        for _ in range(2):
            operation = self._ingest(name, "session", sent_files, policy=policy)
            operation.request["session"] = begun["id"]
            self.client.send(operation, "POST", f"/v1/uploads/{begun['id']}/commit")
            if operation.outcome != "unknown":
                return

    def _file_sender(
        self, session: str, name: str, path: str, big: bool
    ) -> Callable[[], Operation]:
        data, sha256 = self._body(name, path, big)
        service = self._service()

        def send() -> Operation:
            operation = self.client.history.begin(
                self.client.worker, service, "file", name,
                session=session, path=path, sha256=sha256,
            )  # fmt: skip
            self.client.send(operation, "PUT", f"/v1/uploads/{session}/{path}", data)
            return operation

        return send

    # -- what happens to products ------------------------------------------------------------
    def remove(self, name: str) -> None:
        product = self._look(name)
        if product is None:
            return

        def sender() -> Callable[[], None]:
            service = self._service()

            def send() -> None:
                operation = self.client.history.begin(self.client.worker, service, "remove", name)
                cause = operation.request["cause"] = f"removal-{operation.number}"
                self.client.send(operation, "DELETE", f"/v1/products/{product.id}?cause={cause}")

            return send

        if self.random.random() < 0.3:
            self._together(sender(), sender())
        else:
            sender()()

    def keep(self, name: str) -> None:
        """Hold, release or date a product; sometimes two such requests at once."""
        product = self._look(name)
        if product is None:
            return

        def sender(change: str) -> Callable[[], None]:
            service = self._service()
            day = self.random.randint(1, 28)

            def send() -> None:
                operation = self.client.history.begin(self.client.worker, service, "keep", name)
                if change == "retention":  # long past, so that it keeps nobody from removing
                    wish = {"retention": f"20{operation.number % 20:02d}-01-{day:02d}T00:00:00Z"}
                elif change == "hold":
                    wish = {"hold": f"hold-{operation.number}"}
                else:
                    wish = {"hold": None}
                operation.request.update(wish)
                self.client.send(operation, "PATCH", f"/v1/products/{product.id}", wish)

            return send

        if product.hold is not None:
            if self.random.random() < 0.6:
                sender("release")()
        elif self.random.random() < 0.5:
            self._together(sender("hold"), sender("retention"))
        else:
            sender(self.random.choice(["hold", "retention"]))()

    # -- looking and reading -----------------------------------------------------------------
    def _look(self, name: str) -> Sighting | None:
        operation = self._begin("list", name)
        answer = self.client.send(operation, "GET", f"/v1/products?name={quote(name)}")
        if answer is None:
            return None
        if not operation.seen:
            operation.seen.append(Sighting("absent", name))
            return None
        return operation.seen[0]

    def list_all(self, name: str) -> None:
        operation = self._begin("list")
        if self.client.send(operation, "GET", "/v1/products?limit=1000") is not None:
            present = {item.name for item in operation.seen}
            operation.seen += [Sighting("absent", item) for item in NAMES if item not in present]

    def show(self, product: Sighting, name: str) -> Sighting | None:
        operation = self._begin("show", name, id=product.id)
        answer = self.client.send(operation, "GET", f"/v1/products/{product.id}")
        if operation.status == 404:
            operation.seen.append(Sighting("absent", name))
        return operation.seen[0] if answer is not None else None

    def read(self, name: str) -> None:
        """A file of a product, whole or in part."""
        product = self._look(name)
        shown = self.show(product, name) if product else None
        if shown is None or not shown.files:
            return
        path = self.random.choice(sorted(shown.files))
        if self.random.random() < 0.3:
            self._read_range(shown, path)
        else:
            self.read_file(shown, path)

    def read_file(self, shown: Sighting, path: str) -> None:
        """A whole file; what came goes into the history."""
        operation = self._begin(
            "read", shown.name, path=path, generation=shown.generation, sha256=None, whole=True
        )
        data = self.client.send(operation, "GET", _href(shown, path))
        if data is not None:
            operation.request["sha256"] = hashlib.sha256(data).hexdigest()

    def _read_range(self, shown: Sighting, path: str) -> None:
        assert shown.files is not None
        body = self.bodies.find(shown.files[path])
        if body is None:
            return  # the checker says so from what was shown
        start = self.random.randrange(body.size)
        stop = min(body.size, start + self.random.randint(1, 100 * KIB))
        operation = self._begin(
            "read", shown.name, path=path, generation=shown.generation, sha256=None, whole=False
        )
        header = {"Range": f"bytes={start}-{stop - 1}", "If-Match": f'"{shown.files[path]}"'}
        way = self.random.choice(["", "?redirect=false"])
        data = self.client.send(operation, "GET", _href(shown, path) + way, headers=header)
        if data is not None:
            right = data == body.data()[start:stop]
            operation.request["sha256"] = shown.files[path] if right else "other bytes"

    def read_archive(self, name: str) -> None:
        product = self._look(name)
        if product is None:
            return
        operation = self._begin("read archive", name)
        data = self.client.send(operation, "GET", f"/v1/products/{product.id}/archive")
        if data is None:
            return
        try:
            files = unpack_tar(data)
        except tarfile.TarError as error:
            operation.request["broken"] = str(error)
            return
        operation.request["files"] = {
            path.removeprefix(f"{name}/"): hashlib.sha256(content).hexdigest()
            for path, content in files.items()
        }

    # -- helpers -----------------------------------------------------------------------------
    def _together(self, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
        other: Future[Any] = self._pool.submit(second)
        return first(), other.result()

    def _service(self) -> int:
        return self.random.randrange(len(self.client.services))

    def _begin(self, kind: str, name: str = "", **request: Any) -> Operation:
        return self.client.history.begin(self.client.worker, self._service(), kind, name, **request)

    def _policy(self) -> str:
        return self.random.choices(["replace", "skip", "error"], [6, 3, 1])[0]

    def _ingest(self, name: str, way: str, sent: dict[str, Any], **more: Any) -> Operation:
        policy = more.pop("policy", None) or self._policy()
        return self._begin("ingest", name, way=way, policy=policy, sent=sent, **more)

    def _query(self, operation: Operation) -> str:
        return f"duplicates={operation.request['policy']}"

    def _path(self, operation: Operation) -> str:
        return f"/v1/uploads/{quote(operation.name)}?{self._query(operation)}"

    def _put(
        self, operation: Operation, data: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self.client.send(operation, "PUT", self._path(operation), data, headers)

    def _body(self, name: str, path: str, big: bool = False) -> tuple[bytes, str]:
        chance = self.random.random()
        if chance < (0.4 if big else 0.1):
            size = self.random.randint(5 * MIB + 1, 7 * MIB) if self.large else MIB
        elif chance < 0.5:
            size = self.random.randint(64 * KIB, 400 * KIB)
        else:
            size = self.random.randint(200, 64 * KIB)
        return self.bodies.make(name, path, size)

    def _tree(self, name: str) -> tuple[dict[str, bytes], dict[str, list[str | None]]]:
        files, sent = {}, {}
        for path in ("data.bin", "folder/more.bin", "folder/deep/last.bin")[
            : self.random.randint(1, 3)
        ]:
            files[path], sha256 = self._body(name, path)
            sent[path] = [sha256]
        return files, sent


def _possible(files: list[Operation]) -> list[str | None]:
    """Which bytes may lie under a path of a session after these requests for it."""
    acknowledged = [file.request["sha256"] for file in files if file.outcome == "ok"]
    if acknowledged:
        return acknowledged
    unknown = [file.request["sha256"] for file in files if file.outcome == "unknown"]
    return [*unknown, None] if unknown else []


def _href(shown: Sighting, path: str) -> str:
    return f"/v1/products/{quote(shown.id)}/files/{quote(path)}"
