"""Kills an operation at every one of its steps and looks at what is left; see test_crashes.py.

A step is a call that changes something outside the process (system calls of the POSIX store,
requests of the S3 store, transactions of the catalog) or takes a piece of payload; the process is
killed before each (which is after the one before it).  Every operation runs in a forked child, and so does every look at
what it left, so that each begins as a fresh process does.

    python -m tests.faults.crashes DIRECTORY (posix | S3-BACKEND-JSON) (ingest | replace | remove | upload | import) [POSTGRESQL-JSON]
    python -m tests.faults.crashes beside SETTINGS INBOX (replace | remove)

Afterwards two housekeepers clear up at the same time, in processes of their own, until failed
attempts are forgotten as well.  ``beside`` does it to services that run: they are looked at by
HTTP, and their housekeepers clear up.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import psycopg
from sqlalchemy import func, select

from admin_api.catalog.database import Catalog
from admin_api.catalog.models import Product, State
from admin_api.catalog.queries import ProductFilter
from admin_api.errors import SizeMismatch
from admin_api.products.digests import Digester
from admin_api.services import (
    bulk,
    housekeeping,
    intake,
    jobs,
    listing,
    rebuilding,
    removal,
    uploads,
)
from admin_api.services.access import Principal
from admin_api.services.facility import Facility, open_facility
from admin_api.services.ingest import Order, ingest
from admin_api.services.jobs import JobFilter, NewItem
from admin_api.services.wishes import Expected, Level, Policy, Wish
from admin_api.settings import HousekeepingSettings, Settings, load
from admin_api.storage.multipart import MultipartUpload
from admin_api.storage.s3 import S3Storage
from tests.generator import make_s1, make_s5p, write_random

OPERATOR = Principal("operator", frozenset(["admin"]), None)
SYSTEM_CALLS = ("write", "fsync", "link", "unlink", "mkdir", "rmdir")


class Steps:
    """Counts steps and dies at one of them."""

    def __init__(self, die_at: int) -> None:
        self.count = 0
        self.die_at = die_at

    def step(self) -> None:
        self.count += 1
        if self.count == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, function: Callable) -> Callable:
        def stepping(*args, **kwargs):
            self.step()
            return function(*args, **kwargs)

        return stepping

    def install(self) -> None:
        from admin_api.storage import confined, gathering, posix

        class Library:
            syncfs = staticmethod(self.before(gathering._libc.syncfs))
            statfs = gathering._libc.statfs

        gathering._libc = Library
        # Only the store's own calls: its modules get a copy of ``os`` of their own.
        for module in (confined, gathering, posix):
            own = type(os)("os")
            own.__dict__.update(vars(os))
            for name in SYSTEM_CALLS:
                setattr(own, name, self.before(getattr(os, name)))
            module.os = own
        for name in ("put", "delete"):
            setattr(obstore, name, self.before(getattr(obstore, name)))
        for name in ("_create", "_send_part", "_ask_to_complete", "_abort"):
            setattr(MultipartUpload, name, self.before(getattr(MultipartUpload, name)))
        Digester.update = self.before(Digester.update)
        writing = Catalog.writing

        @contextlib.contextmanager
        def stepping(catalog):
            self.step()
            with writing(catalog) as session:
                yield session

        Catalog.writing = stepping


class Scene:
    """One facility, one operation, one place to look."""

    def __init__(
        self, directory: Path, backend: dict, operation: str, catalog: str, server: dict | None
    ) -> None:
        self.directory = directory
        self.operation = operation
        self.server = server
        self.settings = Settings(
            state_dir=directory / "state",
            storage={"mounts": [{"backend": backend}]},
            auth={"key_file": directory / "keys"},
            sources={"file_roots": [directory / "inbox"]},
            catalog=self.database(catalog),
            housekeeping=HousekeepingSettings.model_construct(
                grace_seconds=1e-6, commit_grace_seconds=1e-6, failed_seconds=1e-6
            ),
            limits={"parallel_files": 1},
        )

    def database(self, catalog: str) -> dict:
        """A catalog of this scene's own."""
        if self.server is None:
            return {"url": f"sqlite:///{self.directory}/{catalog}.sqlite"}
        name = f"{self.directory.name}_{catalog}".replace("-", "_")
        password = Path(self.server["password_file"]).read_text()
        with psycopg.connect(
            self.server["url"].format(database="postgres"), password=password, autocommit=True
        ) as connection:
            with contextlib.suppress(psycopg.errors.DuplicateDatabase):
                connection.execute(f'CREATE DATABASE "{name}"')
        return {
            "url": self.server["url"].format(database=name),
            "password_file": self.server["password_file"],
        }

    def facility(self) -> Facility:
        return open_facility(self.settings)

    @property
    def source(self) -> Path:
        return next(path for path in (self.directory / "inbox").iterdir())

    def prepare(self) -> None:
        """Sources, and the product that is to be replaced or removed."""
        inbox = self.directory / "inbox"
        inbox.mkdir(parents=True)
        if self.operation == "ingest":
            # Two parts where the store has parts.
            in_parts = self.settings.profile == "s3"
            make_s1(inbox, size=(8 << 20) + 1000 if in_parts else 100_000)
            return
        if self.operation == "import":
            for number in range(3):
                write_random(inbox / f"p{number}.bin", 20_000, seed=number)
            return
        path = make_s5p(inbox, size=100_000)
        if self.operation in ("replace", "remove"):
            self.act(self.facility(), "ingest")
        if self.operation == "replace":
            write_random(path, 110_000, seed=77)

    def act(self, facility: Facility, operation: str) -> None:
        name = self.source.name
        if operation == "remove":
            product = listing.list_products(facility, OPERATOR, ProductFilter(name=name), None, 1)[
                0
            ]
            for item in product:
                removal.remove(facility, OPERATOR, item.id, "test")
            return
        if operation == "upload":
            data = self.source.read_bytes()
            pieces = (data[at : at + 30_000] for at in range(0, len(data), 30_000))
            uploads.receive(facility, OPERATOR, Wish(name), pieces, Expected(len(data)), None)
            return
        if operation == "import":
            paths = sorted((self.directory / "inbox").iterdir())
            told = [
                NewItem(n, p.name, {"source": p.as_uri()}) for n, p in enumerate(paths, start=1)
            ]
            intake.receive(facility, OPERATOR, jobs.IMPORT, {}, told)
            bulk.work(facility, threading.Event())
            return
        policy = Policy.REPLACE if operation == "replace" else Policy.SKIP
        wish = Wish("", policy=policy, level=Level.MANIFEST)
        ingest(facility, OPERATOR, wish, Order(source=self.source.as_uri()))

    def look_at_once(self) -> None:
        """What must hold right after the crash; AssertionError if it does not."""
        facility = self.facility()
        self.check_whole(facility)
        (self.directory / "given").write_text(str(self.last_generation(facility)))
        with contextlib.suppress(SizeMismatch):  # a row behind those that are to be forgotten
            uploads.receive(facility, OPERATOR, Wish("filler"), iter([b""]), Expected(1), None)

    def clean(self) -> None:
        """A round of housekeeping."""
        housekeeping.clean(self.facility())

    def look(self) -> None:
        """Everything that must hold after housekeeping; AssertionError if something does not."""
        given = int((self.directory / "given").read_text())
        facility = self.facility()
        assert not self.unfinished(facility), self.unfinished(facility)
        self.check_whole(facility)
        self.check_no_orphans(facility)
        self.act(facility, self.operation)
        if given and self.last_generation(facility) != given:
            assert self.last_generation(facility) > given, "a generation was given twice"
        self.check_whole(facility)
        self.check_no_orphans(facility)
        available = self.available(facility)
        expected = {"remove": 0, "import": 3}.get(self.operation, 1)
        assert len(available) == expected, available
        if self.operation != "remove":
            found = {}
            for product in available:
                found |= self.digests(facility, product.id)
            assert found == self.sources(), "the product is not that of the last request"
        if self.operation == "import":
            for report in jobs.find(facility, OPERATOR, JobFilter(), None, 100)[0]:
                assert report.job.ended_at is not None, "a job has not ended"
                assert (report.job.failed, report.job.open) == (0, 0), report.job
        before = {(item.id, item.generation, item.list_digest) for item in available}
        self.act(facility, self.operation)
        after = {(item.id, item.generation, item.list_digest) for item in self.available(facility)}
        assert before == after, "doing it again changed something"
        self.check_no_orphans(facility)
        assert listing.verify_events(facility)[1] is None, "the chain of events is broken"
        fresh = Scene(
            self.directory, self.backend(), self.operation, "fresh", self.server
        ).facility()
        list(rebuilding.rebuild(fresh))
        rebuilt = {(item.id, item.generation, item.list_digest) for item in self.available(fresh)}
        assert rebuilt == after, f"rebuilt {rebuilt}, catalog {after}"

    def last_generation(self, facility: Facility) -> int:
        with facility.catalog.reading() as session:
            query = select(func.max(Product.generation)).where(Product.name == self.source.name)
            return session.scalar(query) or 0

    def unfinished(self, facility: Facility) -> list:
        """Rows in a state that does not last, and failed attempts that are not forgotten."""
        with facility.catalog.reading() as session:
            newest = select(func.max(Product.pk)).scalar_subquery()
            passing = Product.state.in_((State.RECEIVING, State.COMMITTING, State.REMOVING))
            failed = (Product.state == State.REMOVED) & Product.available_at.is_(None)
            query = select(Product.pk, Product.state, Product.removed_cause)
            return list(session.execute(query.where((failed & (Product.pk < newest)) | passing)))

    def backend(self) -> dict:
        return self.settings.storage.mounts[0].backend.model_dump()

    def available(self, facility: Facility) -> list:
        return list(listing.list_products(facility, OPERATOR, ProductFilter(), None, 100)[0])

    def digests(self, facility: Facility, product_id: str) -> dict[str, str]:
        _, files = listing.get_product(facility, OPERATOR, product_id)
        return {file.path: file.sha256 for file in files}

    def sources(self) -> dict[str, str]:
        source = self.source
        if self.operation == "import":
            names = {path: path.name for path in (self.directory / "inbox").iterdir()}
        else:
            paths = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
            names = {
                path: source.name if path == source else path.relative_to(source).as_posix()
                for path in paths
            }
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for path, name in names.items()}

    def check_whole(self, facility: Facility) -> None:
        """I1, I3: what is visible is complete, and its bytes are those of its digests."""
        for product in self.available(facility):
            _, files = listing.get_product(facility, OPERATOR, product.id)
            assert len(files) == product.file_count
            for file in files:
                digester = Digester()
                for _ in digester.through(facility.storage.open(file.key)):
                    pass
                assert digester.result().sha256 == file.sha256, file.path

    def check_no_orphans(self, facility: Facility) -> None:
        """I7: every object belongs to a product, and nothing temporary is left."""
        known = {
            file.key
            for product in self.available(facility)
            for file in listing.get_product(facility, OPERATOR, product.id)[1]
        }
        stored = {
            stat.key for stat in facility.storage.list() if not stat.key.startswith(".products/")
        }
        assert stored == known, f"orphans {stored - known}, missing {known - stored}"
        for store in facility.storage.stores.values():
            if isinstance(store, S3Storage):
                pending = store._admin.list_multipart_uploads(Bucket=store._settings.bucket)
                mine = [
                    item["Key"]
                    for item in pending.get("Uploads", [])
                    if item["Key"].startswith(store._settings.prefix)
                ]
                assert mine == [], f"multipart uploads {mine}"
            else:
                assert not os.listdir(store.root / ".tmp")


class Beside(Scene):
    """A step's operation on the store and catalog of services that run meanwhile."""

    def __init__(self, directory: Path, settings: Settings, operation: str, number: int) -> None:
        self.directory = directory
        self.operation = operation
        self.number = number
        limits = settings.limits.model_copy(update={"parallel_files": 1})
        self.settings = settings.model_copy(update={"limits": limits})

    def prepare(self) -> None:
        """A product of the step's own, so that no step meets another's leftovers."""
        inbox = self.directory / "inbox"
        inbox.mkdir(parents=True)
        path = make_s5p(inbox, seed=self.number, size=100_000)
        self.act(self.facility(), "ingest")
        if self.operation == "replace":
            write_random(path, 110_000, seed=1000 + self.number)


def beside(settings_file: Path, inbox: Path, operation: str) -> int:
    """Kill ``operation`` at each of its steps, one after the other, beside running services.

    Says of each, as a line of JSON, the product's name and the digests that it may have then (null:
    it may be gone), and waits for a line before the next.  Ends with 1 where a step went wrong.
    """
    settings = load(settings_file)
    for number in itertools.count(1):
        scene = Beside(inbox / f"step-{number}", settings, operation, number)

        def crash(scene: Beside = scene, number: int = number) -> None:
            facility = scene.facility()
            Steps(number).install()
            scene.act(facility, operation)

        _, said = in_child(scene.prepare)
        if said:
            print(said)
            return 1
        old = make_s5p(scene.directory, seed=number, size=100_000)
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (old, scene.source)]
        may_have = [digests[0], None if operation == "remove" else digests[1]]
        killed, said = in_child(crash)
        if said:
            print(said)
            return 1
        if not killed:
            return 0
        print(json.dumps({"name": scene.source.name, "digests": may_have}), flush=True)
        sys.stdin.readline()
    raise AssertionError("an operation has an end")


def in_child(action: Callable[[], None]) -> tuple[bool, str]:
    """Run ``action`` in a fork: whether it was killed, and what it said."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            action()
        except BaseException:
            os.write(write, traceback.format_exc()[-3000:].encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status), said


def at_once(*actions: Callable[[], None]) -> str:
    """Run the actions side by side, each in a fork; what they said."""
    with ThreadPoolExecutor(len(actions)) as pool:
        return "".join(said for _, said in pool.map(in_child, actions))


def main(root: Path, backend: str, operation: str, server: str = "null") -> int:
    def scene(number: int) -> Scene:
        directory = root / f"{operation}-{number}"
        if backend == "posix":
            where = {"type": "posix", "root": directory / "store"}
        else:
            where = {**json.loads(backend), "prefix": f"{operation}-{number}"}
        return Scene(directory, where, operation, "catalog", json.loads(server))

    def crash(number: int) -> None:
        facility = scene(number).facility()
        Steps(number).install()
        scene(number).act(facility, operation)

    failures = []
    # Signs of life are steps, too, and come by the clock: how many there are shows at the end only.
    for number in itertools.count(1):
        killed, said = False, in_child(scene(number).prepare)[1]
        if not said:
            killed, said = in_child(lambda number=number: crash(number))
        if not killed:
            if said:
                failures.append(f"step {number}: not killed. {said}")
            break
        _, said = in_child(lambda number=number: scene(number).look_at_once())
        for _ in range(2):
            said = said or at_once(scene(number).clean, scene(number).clean)
        if not said:
            _, said = in_child(lambda number=number: scene(number).look())
        if said:
            failures.append(f"step {number}: {said}")
        else:
            shutil.rmtree(scene(number).directory)
    print(json.dumps({"steps": number - 1, "failures": failures[:5], "failed": len(failures)}))
    return 1 if failures else 0


if __name__ == "__main__":
    if sys.argv[1] == "beside":
        raise SystemExit(beside(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]))
    raise SystemExit(main(Path(sys.argv[1]), *sys.argv[2:]))
