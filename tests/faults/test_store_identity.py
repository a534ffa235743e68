"""A store knows whose it is, a catalog knows its stores (faults F29, F30)."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import delete

from admin_api.catalog.models import Store
from admin_api.catalog.queries import ProductFilter
from admin_api.cli.main import main
from admin_api.errors import CatalogUnavailable, Unavailable
from admin_api.services import identity, listing, rebuilding, removal, uploads
from admin_api.services.facility import Facility, open_facility
from admin_api.services.wishes import Expected, Wish
from admin_api.settings import Settings
from admin_api.storage.base import put_bytes
from tests.conftest import make_facility, unavailable
from tests.support.fault_proxy import fault_proxy
from tests.support.servers import Service, Weed, toml, wait_until

MakeService = Callable[..., Service]


def ready(service: Service) -> tuple[bool, str]:
    """Whether it is ready, and what it says of catalog and store."""
    answer = service.request("GET", "/healthz/ready", token=None)
    checks = json.loads(answer.data)["checks"]
    return answer.status == 200, " ".join(text for text in checks.values() if text)


def becomes_ready(service: Service) -> None:
    wait_until(lambda: ready(service)[0], 60, "readiness")


def refused(service: Service, name: str) -> str:
    """The sentence that a PUT is refused with."""
    answer = service.request("PUT", f"/v1/uploads/{name}", b"new bytes")
    assert answer.status == 503, (answer.status, answer.data)
    return json.loads(answer.data)["detail"]


def put(service: Service, name: str) -> dict[str, Any]:
    return service.json("PUT", f"/v1/uploads/{name}", f"bytes of {name}".encode(), 201)


def assert_read(service: Service, product: dict[str, Any]) -> None:
    answer = service.request("GET", product["files"][0]["href"])
    if answer.status == 307:
        answer = service.pool.request("GET", answer.headers["Location"])
    assert (answer.status, answer.data) == (200, f"bytes of {product['name']}".encode())


@pytest.fixture(params=["posix", "s3"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "s3":
        server: Weed = request.getfixturevalue("s3_server")
        return server.backend()
    return {"type": "posix", "root": tmp_path / "store"}


def contents(
    backend: dict[str, Any], request: pytest.FixtureRequest | None = None
) -> dict[str, int]:
    """Every object of a store with its size, seen from beside the service."""
    if backend["type"] == "posix":
        root = Path(backend["root"])
        return {str(p.relative_to(root)): p.stat().st_size for p in root.rglob("*") if p.is_file()}
    assert request is not None
    client = request.getfixturevalue("s3_server").client()
    found = client.list_objects_v2(Bucket=backend["bucket"]).get("Contents", [])
    return {item["Key"]: item["Size"] for item in found}


def test_processes_that_start_on_a_new_bucket_take_uploads_as_soon_as_one_of_them_is_ready(
    make_service: MakeService, s3_server: Weed
) -> None:
    """The slowest hears that the bucket is new when another one has taken it already."""
    slowest, is_ready = threading.Event(), threading.Event()

    def held(method: str, path: str) -> None:
        if method == "GET" and "prefix=.products%2Fstore" in path and not slowest.is_set():
            slowest.set()
            is_ready.wait(60)

    with fault_proxy(s3_server.endpoint) as (url, faults):
        faults.answered = held
        server = {"processes": 4, "worker": False}
        service = make_service({**s3_server.backend(), "endpoint": url}, server=server)
        service.start()
        becomes_ready(service)
        assert slowest.is_set()
        is_ready.set()
        wait_until(lambda: service.log().count("the store ") >= 4, 60, "a look by each process")
        for number in range(12):
            service.pool.clear()  # a new connection can meet another process
            put(service, f"p{number}")
        assert "the store is not used" not in service.log()
        service.stop()


def test_a_second_catalog_gets_nothing_into_a_store_and_nothing_out_of_it(
    make_service: MakeService, backend, request
) -> None:
    first, second = make_service(backend), make_service(backend)
    first.start()
    products = [put(first, f"p{number}") for number in range(3)]
    before = contents(backend, request)
    second.start()
    is_ready, sentence = ready(second)
    assert not is_ready
    assert "belongs to another catalog" in sentence and "storage-manager rebuild" in sentence
    assert "belongs to another catalog" in refused(second, "p0")
    assert "belongs to another catalog" in refused(second, "q")
    assert second.json("GET", "/v1/storage")["mounts"][0]["problem"] in sentence
    assert contents(backend, request) == before
    assert ready(first)[0]
    for product in products:
        assert_read(first, product)


def test_a_lost_catalog_is_noticed_and_rebuild_takes_the_store_over(
    make_service: MakeService, backend, request
) -> None:
    service = make_service(backend)
    service.start()
    products = [put(service, f"p{number}") for number in range(3)]
    gone = put(service, "gone")
    service.json("DELETE", f"/v1/products/{gone['id']}")

    for path in (service.directory / "state").glob("catalog.sqlite*"):
        path.unlink()
    wait_until(lambda: not ready(service)[0], 15, "a service that is not ready")
    is_ready, sentence = ready(service)
    assert not is_ready and "deleted or replaced" in sentence and "rebuild" in sentence
    assert "deleted or replaced" in refused(service, "into-nothing")
    assert not list((service.directory / "state").glob("catalog.sqlite*"))

    service.stop()
    before = contents(backend, request)
    service.start()
    wait_until(lambda: not ready(service)[0], 15, "a service that is not ready")
    is_ready, sentence = ready(service)
    assert not is_ready and "storage-manager rebuild" in sentence
    assert "storage-manager rebuild" in refused(service, "too-early")
    assert contents(backend, request) == before

    service.cli("rebuild")
    becomes_ready(service)
    for product in products:
        assert_read(service, product)
    assert service.json("GET", f"/v1/products/{gone['id']}")["state"] == "removed"
    put(service, "afterwards")
    assert "0 findings" in service.cli("reconcile").stdout


def test_a_replaced_catalog_file_is_noticed(make_service: MakeService) -> None:
    service = make_service()
    service.start()
    product = put(service, "p")
    file = service.directory / "state/catalog.sqlite"
    shutil.copy(file, file.with_suffix(".copy"))
    os.rename(file, file.with_suffix(".aside"))
    os.rename(file.with_suffix(".copy"), file)
    wait_until(lambda: not ready(service)[0], 15, "a service that is not ready")
    refused(service, "q")
    os.rename(file.with_suffix(".aside"), file)
    becomes_ready(service)
    assert_read(service, product)


def test_rebuild_of_a_lost_catalog_stops_the_service_that_still_has_the_store(
    make_service: MakeService, backend
) -> None:
    first, second = make_service(backend), make_service(backend)
    first.start()
    product = put(first, "p")
    second.cli("rebuild")
    second.start()
    assert ready(second)[0]
    assert_read(second, product)
    wait_until(lambda: not ready(first)[0], 60, "the first service's notice")
    assert "belongs to another catalog" in refused(first, "late")
    put(second, "q")


def test_a_store_that_is_not_mounted_at_the_start_is_not_made_anew(
    make_service: MakeService, tmp_path: Path
) -> None:
    root, away = tmp_path / "store", tmp_path / "away"
    service = make_service({"type": "posix", "root": root})
    service.start()
    product = put(service, "p")
    service.stop()
    root.rename(away)
    root.mkdir()

    service.start()
    wait_until(lambda: not ready(service)[0], 15, "a service that is not ready")
    is_ready, sentence = ready(service)
    assert not is_ready and "not mounted" in sentence
    assert "not mounted" in refused(service, "q")
    answer = service.request("DELETE", f"/v1/products/{product['id']}")
    assert answer.status == 503 and b"not mounted" in answer.data
    assert service.request("GET", product["files"][0]["href"]).status == 503
    assert "not mounted" in service.cli("status").stdout
    assert service.cli("probe", check=False).returncode != 0
    assert list(root.iterdir()) == []

    root.rmdir()
    wait_until(lambda: not ready(service)[0], 15, "a service that is not ready")
    assert service.request("DELETE", f"/v1/products/{product['id']}").status == 503
    away.rename(root)
    becomes_ready(service)
    assert_read(service, product)
    put(service, "q")
    assert service.json("DELETE", f"/v1/products/{product['id']}")["state"] == "removed"
    assert "0 findings" in service.cli("reconcile").stdout


@pytest.mark.parametrize("what", ["nothing", "an empty directory", "another store"])
def test_a_store_that_goes_while_the_service_runs_is_told_from_what_is_there_instead(
    make_service: MakeService, tmp_path: Path, what: str
) -> None:
    root, away, other = tmp_path / "store", tmp_path / "away", tmp_path / "other"
    if what == "another store":
        foreign = make_service({"type": "posix", "root": other})
        foreign.start()
        put(foreign, "p")
        foreign.stop()
    elif what == "an empty directory":
        other.mkdir()
    service = make_service({"type": "posix", "root": root})
    service.start()
    product = put(service, "p")
    root.rename(away)
    if what != "nothing":
        other.rename(root)
    before = contents({"type": "posix", "root": root})

    word = "belongs to another catalog" if what == "another store" else "not mounted"
    assert service.request("GET", product["files"][0]["href"]).status == 503
    answer = service.request("DELETE", f"/v1/products/{product['id']}")
    assert answer.status == 503 and word in json.loads(answer.data)["detail"]
    assert word in refused(service, "q")
    wait_until(lambda: not ready(service)[0], 15, "a service that is not ready")
    is_ready, sentence = ready(service)
    assert not is_ready and word in sentence
    assert contents({"type": "posix", "root": root}) == before
    assert service.cli("reconcile", check=False).returncode != 0

    if what != "nothing":
        root.rename(other)
    away.rename(root)
    becomes_ready(service)
    assert_read(service, product)


def test_an_emptied_bucket_is_not_taken_for_the_store(
    make_service: MakeService, s3_server: Weed
) -> None:
    backend = s3_server.backend()
    service = make_service(backend)
    service.start()
    product = put(service, "p")
    client = s3_server.client()
    for item in client.list_objects_v2(Bucket=backend["bucket"])["Contents"]:
        client.delete_object(Bucket=backend["bucket"], Key=item["Key"])

    def removal() -> int:
        return service.request("DELETE", f"/v1/products/{product['id']}").status

    wait_until(lambda: not ready(service)[0], 60, "the notice")
    assert "not mounted" in refused(service, "q")
    assert removal() == 503
    service.stop()
    service.start()
    wait_until(lambda: not ready(service)[0], 15, "a service that is not ready")
    assert "Contents" not in client.list_objects_v2(Bucket=backend["bucket"])


def test_a_store_is_taken_over_by_a_command_of_its_own_only(
    make_service: MakeService, tmp_path: Path
) -> None:
    backend = {"type": "posix", "root": tmp_path / "theirs"}
    first, second = make_service(backend), make_service()
    first.start()
    theirs = put(first, "theirs")
    second.start()
    ours = put(second, "ours")
    second.stop()
    # The second facility gets the first one's store at a second mount.
    more = toml({"x": {"path": "more", "backend": backend}}).removeprefix("x = ").strip()
    settings = second.settings_file.read_text()
    second.settings_file.write_text(settings.replace("}}]", "}}, " + more + "]"))
    second.start()
    wait_until(lambda: not ready(second)[0], 15, "a service that is not ready")
    before = contents(backend)

    def local(*arguments: str) -> Result:
        given = ["--settings", str(second.settings_file)]
        return CliRunner().invoke(main, [*arguments, *given], input="n\n")

    for command, said in (
        (["rebuild"], "adopt-store"),
        (["adopt-store"], "Take over the store of mount /more?"),
        (["adopt-store", "--mount", "/nowhere", "--yes"], "/more"),
    ):
        done = local(*command)
        assert done.exit_code != 0 and said in done.output
    assert contents(backend) == before
    assert_read(first, theirs)

    done = local("adopt-store", "--mount", "/more", "--yes")
    assert "is not catalog" in done.output and "marker number 2" in done.output
    becomes_ready(second)
    assert "belongs to another catalog" in refused(first, "late")
    assert local("rebuild").exit_code == 0
    names = [item["name"] for item in second.json("GET", "/v1/products")["products"]]
    assert sorted(names) == ["ours", "theirs"]
    assert_read(second, ours)
    assert_read(second, second.json("GET", f"/v1/products/{theirs['id']}"))


@pytest.fixture
def two_tmpfs(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Mounts an empty file system at ``store``, again and again; the last one goes at the end."""
    point, mounted = tmp_path / "store", []
    point.mkdir()

    def mount() -> None:
        while mounted:
            subprocess.run(["umount", mounted.pop()], check=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(point)]
        if subprocess.run(command, capture_output=True).returncode != 0:
            unavailable("a file system cannot be mounted here (needs root)")
        mounted.append(str(point))

    yield mount
    while mounted:
        subprocess.run(["umount", "-l", mounted.pop()], check=True)


def test_a_share_that_is_swapped_is_noticed_though_device_and_inode_are_the_same(
    make_service: MakeService, two_tmpfs: Callable[[], None], tmp_path: Path
) -> None:
    two_tmpfs()
    service = make_service({"type": "posix", "root": tmp_path / "store"})
    service.start()
    put(service, "p")
    before = os.stat(tmp_path / "store")
    two_tmpfs()
    after = os.stat(tmp_path / "store")
    assert (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino)
    assert "not mounted" in refused(service, "q")
    assert list((tmp_path / "store").iterdir()) == []


# -- in this process: what cannot be forced from outside -------------------------------------------


def store_one(facility: Facility, operator, name: str, pieces=(b"bytes",)):
    return uploads.receive(facility, operator, Wish(name), iter(pieces), Expected(), None).product


def second_facility(directory: Path, facility: Facility) -> Facility:
    """A facility with a catalog of its own over the same store."""
    directory.mkdir()
    backend = facility.settings.storage.mounts[0].backend.model_dump()
    return make_facility(directory, backend)


def test_of_two_new_catalogs_one_gets_the_new_store(facility, tmp_path: Path, operator) -> None:
    """The other one had looked before the first wrote its marker."""
    other = second_facility(tmp_path / "other", facility)
    mounts = other.storage
    for made in (facility, other):
        with made.catalog.writing() as session:
            session.execute(delete(Store))
    bare = mounts.bare("")
    bare.delete_many([stat.key for stat in bare.list(".products")])
    look = identity._refuse_doubtful
    both = threading.Barrier(2)

    def together(*arguments: Any) -> None:
        look(*arguments)
        both.wait(30)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "_refuse_doubtful", together)
        threads = [
            threading.Thread(target=made.storage.gates[""].refresh) for made in (facility, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    problems = [made.storage.gates[""].problem for made in (facility, other)]
    assert sorted(problem is None for problem in problems) == [False, True]


@pytest.mark.parametrize("has_stored", [False, True], ids=["took the store", "and stored in it"])
def test_a_process_that_looked_before_another_one_took_the_new_store_uses_it_too(
    tmp_path: Path, backend, operator, has_stored: bool
) -> None:
    faster = make_facility(tmp_path, backend)
    with faster.catalog.writing() as session:
        session.execute(delete(Store))
    bare = faster.storage.bare("")
    bare.delete_many([stat.key for stat in bare.list(".products")])
    look, looks = identity._newest, []

    def overtaken(*arguments: Any) -> Any:
        seen = look(*arguments)
        looks.append(seen)
        if len(looks) == 1:
            faster.storage.gates[""].refresh()
            if has_stored:
                store_one(faster, operator, "first")
        return seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "_newest", overtaken)
        slower = open_facility(faster.settings)
    assert looks[0] is None
    assert [made.storage.gates[""].problem for made in (faster, slower)] == [None, None]
    store_one(slower, operator, "second")


def test_a_writer_that_lost_the_store_on_its_way_leaves_nothing(tmp_path: Path, operator) -> None:
    facility = make_facility(tmp_path, {"type": "posix", "root": tmp_path / "store"})
    store_one(facility, operator, "before")
    fresh = second_facility(tmp_path / "fresh", facility)

    def pieces() -> Iterator[bytes]:
        yield b"first half"
        list(rebuilding.rebuild(fresh))
        yield b"second half"

    with pytest.raises(Unavailable, match="belongs to another catalog"):
        store_one(facility, operator, "late", pieces())
    assert [stat.key for stat in fresh.storage.list("unsorted")] == [
        "unsorted/before/before",
    ]
    assert not list((tmp_path / "store/.tmp").iterdir())


def test_a_store_from_before_the_markers_is_taken_if_it_is_the_catalogs(facility, operator) -> None:
    product = store_one(facility, operator, "old")
    bare = facility.storage.bare("")
    bare.delete_many([stat.key for stat in bare.list(".products/store")])
    with facility.catalog.writing() as session:
        session.execute(delete(Store))
    facility.storage.gates[""].refresh()
    assert facility.storage.gates[""].problem is None
    assert [stat.key for stat in bare.list(".products/store")] == [".products/store/000001.json"]

    with facility.catalog.writing() as session:
        session.execute(delete(Store))
    bare.delete_many([stat.key for stat in bare.list(".products")])
    facility.storage.gates[""].refresh()
    assert "not mounted" in (facility.storage.gates[""].problem or "")
    with pytest.raises(Unavailable):
        removal.remove(facility, operator, product.id, "test")
    shown, _ = listing.get_product(facility, operator, product.id)
    assert shown.state == "available"


def test_records_without_a_marker_are_nothing_for_an_empty_catalog(
    facility, operator, tmp_path: Path
) -> None:
    store_one(facility, operator, "old")
    bare = facility.storage.bare("")
    bare.delete_many([stat.key for stat in bare.list(".products/store")])
    fresh = second_facility(tmp_path / "fresh", facility)
    assert "storage-manager rebuild" in (fresh.storage.gates[""].problem or "")
    list(rebuilding.rebuild(fresh))
    page, _ = listing.list_products(fresh, operator, ProductFilter(), None, 10)
    assert [item.name for item in page] == ["old"]


def test_a_bucket_that_another_catalog_takes_is_let_go_at_the_next_change(
    tmp_path: Path, s3_server: Weed, operator
) -> None:
    """No watcher runs here: the writer looks by itself."""
    facility = make_facility(tmp_path, s3_server.backend())
    product = store_one(facility, operator, "p")
    fresh = second_facility(tmp_path / "fresh", facility)
    list(rebuilding.rebuild(fresh))
    facility.storage.gates[""]._looked = float("-inf")  # a second has passed
    with pytest.raises(Unavailable, match="belongs to another catalog"):
        removal.remove(facility, operator, product.id, "test")
    with pytest.raises(Unavailable, match="belongs to another catalog"):
        store_one(facility, operator, "q")
    _, files = listing.get_product(fresh, operator, product.id)
    assert b"".join(fresh.storage.open(files[0].key)) == b"bytes"


def test_an_object_missing_in_a_bucket_that_was_emptied_is_not_called_missing(
    tmp_path: Path, s3_server: Weed, operator
) -> None:
    facility = make_facility(tmp_path, s3_server.backend())
    store_one(facility, operator, "p")
    bare = facility.storage.bare("")
    bare.delete_many([stat.key for stat in bare.list()])
    facility.storage.gates[""]._looked = float("-inf")
    with pytest.raises(Unavailable, match="not mounted"):
        facility.storage.stat("unsorted/p/p")


def test_a_database_that_was_made_anew_is_noticed(tmp_path: Path, database) -> None:
    name = database.new_database()
    catalog = {"url": database.url(name), "password_file": database.password_file}
    backend = {"type": "posix", "root": tmp_path / "store"}
    facility = make_facility(tmp_path, backend, catalog=catalog)
    facility.catalog.ping()
    facility.catalog.close()
    with psycopg.connect(
        f"host=127.0.0.1 port={database.port} user=postgres dbname=postgres",
        password=database.password_file.read_text().strip(),
        autocommit=True,
    ) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        connection.execute(f"CREATE DATABASE {name}".encode())
    with pytest.raises(CatalogUnavailable, match="storage-manager rebuild"):
        facility.catalog.ping()
    facility.catalog.close()


def test_a_marker_that_cannot_be_read_closes_the_store_until_it_is_adopted(
    facility, operator
) -> None:
    store_one(facility, operator, "p")
    put_bytes(facility.storage.bare(""), ".products/store/000007.json", b'{"store": ')
    facility.storage.gates[""].refresh()
    with pytest.raises(Unavailable, match="cannot be read"):
        store_one(facility, operator, "q")
    assert identity.adopt(facility.catalog, facility.storage, "").number == 8
    store_one(facility, operator, "q")


def test_mounts_that_change_places_are_told_apart(tmp_path: Path, operator) -> None:
    def opened(first: str, second: str) -> Facility:
        mounts = [
            {"backend": {"type": "posix", "root": tmp_path / first}},
            {"path": "b", "backend": {"type": "posix", "root": tmp_path / second}},
        ]
        storage = {"mounts": mounts}
        return open_facility(
            Settings(state_dir=tmp_path / "state", storage=storage, auth={"key_file": keys})
        )

    keys = tmp_path / "keys"
    keys.write_text(f"k1 {secrets.token_hex(32)}\n")

    store_one(opened("x", "y"), operator, "p")
    swapped = opened("y", "x")
    for gate in swapped.storage.gates.values():
        assert "Another store of this catalog" in (gate.problem or "")
    twice = opened("x", "x")
    assert twice.storage.gates[""].problem is None
    assert "Another store of this catalog" in (twice.storage.gates["b"].problem or "")


def test_restored_catalogs_and_second_processes_are_at_home(facility, operator, tmp_path) -> None:
    store_one(facility, operator, "p")
    with facility.catalog.writing() as session:
        session.execute(delete(Store))  # a backup from between marker and row
    again = make_facility(tmp_path, facility.settings.storage.mounts[0].backend.model_dump())
    assert again.storage.gates[""].problem is None
    store_one(again, operator, "q")
