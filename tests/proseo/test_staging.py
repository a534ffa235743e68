"""Staging: paths and leases by /v1 and the command, on a directory and on S3."""

from __future__ import annotations

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from admin_api.errors import NoSpace, ReadbackMismatch, StagingTimeout
from admin_api.services.stage_cache import StageCache, Wanted
from admin_api.settings import StagingSettings
from tests.faults.test_full import fill
from tests.faults.test_stores import small_disk  # noqa: F401 - a fixture
from tests.generator import make_s1
from tests.proseo.conftest import Facade, facade_in
from tests.support.servers import Service, wait_until


@pytest.fixture(scope="module")
def product(facade: Facade) -> dict:
    tree = make_s1(facade.inbox, seed=401)
    return facade.service.json("POST", "/v1/products", {"source": tree.as_uri()}, 201)


def _staged(service: Service, body: dict, **options) -> dict:
    return service.json("POST", "/v1/stage", body, 201, **options)


def test_a_staged_product_is_there_file_by_file_with_its_digests(facade, product) -> None:
    answer = _staged(facade.service, {"products": [product["id"]]})
    assert {file["path"] for file in answer["files"]} == {file["path"] for file in product["files"]}
    for file in answer["files"]:
        content = Path(file["local_path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
        assert Path(file["local_path"]).is_relative_to(facade.cache)
    assert answer["products"] == [product["id"]]
    single = {"product": product["id"], "path": product["files"][0]["path"]}
    assert len(_staged(facade.service, {"files": [single, single]})["files"]) == 1


def test_a_lease_keeps_its_product_until_it_ends(facade: Facade) -> None:
    path = facade.file("leased.nc", b"leased")
    made = facade.service.json("POST", "/v1/products", {"source": path.as_uri()}, 201)
    where = f"/v1/products/{made['id']}"
    lease = _staged(facade.service, {"products": [made["id"]], "lease_seconds": 600})["lease"]
    refused = facade.service.json("DELETE", where, None, 409)
    assert refused["code"] == "leased"
    path.write_bytes(b"another")
    body = {"source": path.as_uri(), "duplicates": "replace"}
    assert facade.service.json("POST", "/v1/products", body, 409)["code"] == "leased"
    uri = made["files"][0]["uri"].removeprefix("file://")
    deleted = facade.call("DELETE", f"products?pathInfo={uri}")
    assert deleted.status == 409
    renewed = facade.service.json("PATCH", f"/v1/leases/{lease}", {"lease_seconds": 1})
    assert renewed["products"] == [made["id"]]
    wait_until(
        lambda: facade.service.request("DELETE", where).status == 200, 10, "the end of the lease"
    )
    assert facade.service.request("GET", f"/v1/leases/{lease}").status == 404


def test_a_lease_that_is_ended_holds_nothing_and_others_hold_on(facade: Facade) -> None:
    path = facade.file("twice.nc", b"twice")
    made = facade.service.json("POST", "/v1/products", {"source": path.as_uri()}, 201)
    leases = [_staged(facade.service, {"products": [made["id"]]})["lease"] for _ in range(2)]
    for lease, status in zip(leases, (409, 200), strict=True):
        assert facade.service.request("DELETE", f"/v1/leases/{lease}").status == 204
        assert facade.service.request("DELETE", f"/v1/products/{made['id']}").status == status


def test_leases_are_their_subjects_own(facade: Facade, product: dict) -> None:
    mine = facade.service.token("read", subject="one")
    lease = _staged(facade.service, {"products": [product["id"]]}, token=mine)["lease"]
    other = facade.service.token("read", subject="two")
    for method, body in (("GET", None), ("PATCH", {}), ("DELETE", None)):
        assert (
            facade.service.request(method, f"/v1/leases/{lease}", body, token=other).status == 404
        )
    assert facade.service.request("DELETE", f"/v1/leases/{lease}").status == 204


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"products": ["not-there"]}, 404),
        ({"files": [{"product": "{id}", "path": "not-there"}]}, 404),
        ({"products": ["{id}"], "lease_seconds": 0}, 400),
        ({"products": ["{id}"], "lease_seconds": 1 << 30}, 400),
        ({"products": ["{id}"], "unknown": 1}, 400),
    ],
)
def test_what_cannot_be_staged_is_told_and_leaves_no_lease(facade, product, body, status) -> None:
    text = json.dumps(body).replace("{id}", product["id"])
    assert facade.service.request("POST", "/v1/stage", json.loads(text)).status == status


def test_the_command_prints_paths_and_ends_leases(facade: Facade, product: dict) -> None:
    done = facade.service.cli("stage", product["name"])
    paths = done.stdout.split()
    assert len(paths) == len(product["files"])
    assert all(Path(path).is_file() for path in paths)
    lease = done.stderr.split()[1]
    file = product["files"][0]["path"]
    one = json.loads(
        facade.service.cli("--json", "stage", "--file", f"{product['id']}/{file}").stdout
    )
    assert [item["path"] for item in one["files"]] == [file]
    facade.service.cli("stage", "--renew", lease, "--seconds", "60")
    facade.service.cli("stage", "--release", lease)
    assert facade.service.cli("stage", "--release", lease, check=False).returncode == 3


def test_a_damaged_or_wiped_cache_fills_again(facade: Facade) -> None:
    content = os.urandom(100_000)
    path = facade.ingest("2001", facade.file("wiped.nc", content))["registeredFilesList"][0]
    there = Path(facade.fetch(path)["filePath"])
    there.chmod(0o644)
    for damage in (
        lambda: there.write_bytes(content[:-1]),
        lambda: there.write_bytes(b"x" * 100_000),
    ):
        damage()
        assert facade.fetch(path)["filePath"] == str(there)
        assert there.read_bytes() == content
        there.chmod(0o644)
    there.unlink()
    assert Path(facade.fetch(path)["filePath"]).read_bytes() == content
    facade.delete(path)
    assert not there.exists()


def test_what_somebody_has_put_in_a_files_place_is_not_handed_out(facade: Facade) -> None:
    content = os.urandom(10_000)
    path = facade.ingest("2002", facade.file("place.nc", content))["registeredFilesList"][0]
    there = Path(facade.fetch(path)["filePath"])
    sealed = there.stat()
    elsewhere = there.with_name("elsewhere")
    there.rename(elsewhere)
    there.symlink_to(elsewhere)
    assert facade.fetch(path)["filePath"] == str(there)
    assert not there.is_symlink()
    os.chmod(there, 0o644)
    with there.open("r+b") as file:
        file.truncate(5000)
    os.utime(there, ns=(sealed.st_atime_ns, there.stat().st_mtime_ns // 10**9 * 10**9))
    os.utime(there, ns=(sealed.st_atime_ns, sealed.st_mtime_ns))  # cut, and its time put back
    assert Path(facade.fetch(path)["filePath"]).read_bytes() == content


def test_what_is_leased_stays_in_a_cache_that_overflows(tmp_path: Path, request) -> None:
    facade = facade_in(
        tmp_path / "leases",
        request,
        "POSIX",
        staging={"max_bytes": 1_000_000, "high_percent": 80, "low_percent": 20},
    )
    facade.service.start()
    try:
        made = [
            facade.service.json("PUT", f"/v1/uploads/e{number}.nc", os.urandom(200_000), 201)
            for number in range(8)
        ]
        first = _staged(facade.service, {"products": [made[0]["id"]], "lease_seconds": 600})
        kept = Path(first["files"][0]["local_path"])
        others = []
        for product in made[1:]:
            answer = _staged(facade.service, {"products": [product["id"]]})
            others.append(Path(answer["files"][0]["local_path"]))
            facade.service.request("DELETE", f"/v1/leases/{answer['lease']}")
        assert kept.exists()
        assert not all(path.exists() for path in others)
        facade.service.request("DELETE", f"/v1/leases/{first['lease']}")
        for product in made[1:]:
            answer = _staged(facade.service, {"products": [product["id"]]})
            facade.service.request("DELETE", f"/v1/leases/{answer['lease']}")
        assert not kept.exists()
    finally:
        facade.service.stop()


def test_a_full_disk_is_told_as_507_and_staging_goes_on_once_it_is_freed(
    tmp_path: Path,
    small_disk: Path,  # noqa: F811 - the fixture
    request,
) -> None:
    facade = facade_in(
        tmp_path / "full-disk", request, "POSIX", staging={"directory": small_disk / "cache"}
    )
    facade.service.start()
    try:
        product = facade.service.json("PUT", "/v1/uploads/big.nc", os.urandom(4 << 20), 201)
        path = product["files"][0]["uri"].removeprefix("file://")
        fill(small_disk)
        body = {"products": [product["id"]]}
        assert facade.service.json("POST", "/v1/stage", body, 507)["code"] == "no_space"
        answer = facade.fetch_answer(path)
        assert answer.status == 507
        assert answer.headers["Warning"]
        assert facade.service.request("DELETE", f"/v1/products/{product['id']}").status == 200
        product = facade.service.json("PUT", "/v1/uploads/big.nc", os.urandom(4 << 20), 201)
        (small_disk / "filler").unlink()
        _staged(facade.service, {"products": [product["id"]]})
    finally:
        facade.service.stop()


def test_of_who_leases_and_who_removes_at_once_one_is_told(facade: Facade) -> None:
    for turn in range(8):
        path = facade.file(f"contested-{turn}.nc", b"contested")
        made = facade.service.json("POST", "/v1/products", {"source": path.as_uri()}, 201)
        where = f"/v1/products/{made['id']}"
        with ThreadPoolExecutor(4) as pool:
            staging = [
                pool.submit(facade.service.request, "POST", "/v1/stage", {"products": [made["id"]]})
                for _ in range(2)
            ]
            removing = [pool.submit(facade.service.request, "DELETE", where) for _ in range(2)]
            leases = [item.result() for item in staging if item.result().status == 201]
            removed = [item.result().status for item in removing]
            refused = {item.result().status for item in staging} - {201}
        state = facade.service.json("GET", where)["state"]
        assert refused <= {404, 409, 410}, refused
        if leases:
            assert state == "available"
            assert set(removed) == {409}
        else:
            assert state in ("removing", "removed")
        for lease in leases:
            held = json.loads(lease.data)["lease"]
            assert facade.service.request("DELETE", f"/v1/leases/{held}").status == 204


# -- the cache alone -----------------------------------------------------------------------------
def _wanted(key: str, content: bytes, reads: list[str], pause: float = 0.0) -> Wanted:
    def read():
        reads.append(key)
        time.sleep(pause)
        yield content

    digest = hashlib.sha256(content).hexdigest()
    return Wanted(key, len(content), digest, digest, read)


def _cache(path: Path, leased=lambda keys: set(), **settings) -> StageCache:
    settings = {"directory": path, "keep_seconds": 0, **settings}
    return StageCache(StagingSettings(**settings), leased)


def test_two_hundred_at_once_have_one_copy_made(tmp_path: Path) -> None:
    cache, reads = _cache(tmp_path), []
    wanted = _wanted("a/b.nc", bytes(1 << 20), reads, 0.3)
    with ThreadPoolExecutor(200) as pool:
        paths = set(pool.map(lambda _: cache.get(wanted), range(200)))
    assert paths == {tmp_path / "a/b.nc"}
    assert reads == ["a/b.nc"]


def test_two_processes_have_one_copy_made(tmp_path: Path) -> None:
    reads: list[str] = []
    wanted = _wanted("a/b.nc", bytes(1 << 20), reads, 0.3)
    caches = [_cache(tmp_path) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda cache: cache.get(wanted), caches))
    assert reads == ["a/b.nc"]


def test_bytes_that_are_not_those_that_were_stored_are_not_handed_out(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    good = _wanted("a.nc", b"right", [])
    wrong = Wanted("a.nc", 5, good.version, good.sha256, lambda: iter([b"wrong"]))
    short = Wanted("a.nc", 5, good.version, good.sha256, lambda: iter([b"righ"]))
    long = Wanted("a.nc", 5, good.version, good.sha256, lambda: iter([b"right", b"!"]))
    for bad in (wrong, short, long):
        with pytest.raises(ReadbackMismatch):
            cache.get(bad)
    assert not (tmp_path / "a.nc").exists()
    assert cache.get(good).read_bytes() == b"right"


def test_what_is_leased_or_was_just_handed_out_is_not_evicted(tmp_path: Path) -> None:
    leased = {"leased.nc"}
    cache = _cache(
        tmp_path,
        lambda keys: leased.intersection(keys),
        max_bytes=1000,
        high_percent=80,
        low_percent=30,
        keep_seconds=1.0,
    )
    for name in ("leased.nc", "old.nc"):
        cache.get(_wanted(name, bytes(300), []))
    old = time.time_ns() - 3600 * 10**9
    for name in ("leased.nc", "old.nc"):
        path = tmp_path / name
        os.utime(path, ns=(old, path.stat().st_mtime_ns))
    cache.get(_wanted("new.nc", bytes(300), []))
    assert (tmp_path / "leased.nc").exists()
    assert not (tmp_path / "old.nc").exists()
    with pytest.raises(NoSpace, match="leased or was just handed out"):
        cache.get(_wanted("more.nc", bytes(500), []))
    leased.clear()
    cache.get(_wanted("more.nc", bytes(500), []))
    assert (tmp_path / "new.nc").exists()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["this process", "another process"])
def test_what_is_handed_out_while_the_evictor_looks_stays(tmp_path: Path, elsewhere: bool) -> None:
    old = _wanted("old.nc", bytes(300), [])
    caches: list[StageCache] = []

    def leased(keys) -> set[str]:
        """None; but before the evictor has its answer somebody is given the file."""
        caches[elsewhere].get(old)
        return set()

    caches += [_cache(tmp_path, leased, max_bytes=1000, high_percent=80) for _ in range(2)]
    caches[0].get(old)
    hour_ago = time.time_ns() - 3600 * 10**9
    os.utime(tmp_path / "old.nc", ns=(hour_ago, (tmp_path / "old.nc").stat().st_mtime_ns))
    with pytest.raises(NoSpace):
        caches[0].get(_wanted("new.nc", bytes(800), []))
    assert (tmp_path / "old.nc").read_bytes() == bytes(300)


def test_a_file_for_which_no_disk_is_large_enough_is_refused_before_it_is_read(tmp_path) -> None:
    reads: list[str] = []
    wanted = _wanted("huge.nc", b"", reads)
    with pytest.raises(NoSpace):
        _cache(tmp_path).get(Wanted("huge.nc", 1 << 60, wanted.version, None, wanted.read))
    assert reads == []


def test_a_disk_that_is_full_in_the_midst_of_a_copy_leaves_nothing_behind(
    small_disk: Path,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As over a quota, where the file system says that there is room."""
    cache = _cache(small_disk / "cache")
    monkeypatch.setattr(cache, "_usage", lambda: (1 << 40, 0, 1 << 40))
    with pytest.raises(NoSpace, match="full"):
        cache.get(_wanted("large.nc", bytes(32 << 20), []))
    assert list((small_disk / "cache/.cache/filling").iterdir()) == []
    assert cache.get(_wanted("small.nc", b"small", [])).read_bytes() == b"small"


def test_who_waits_for_other_bytes_under_the_same_name_gets_its_own(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(cache.get, _wanted("v.nc", b"one", [], 0.3))
        wait_until(lambda: cache._filling, 10, "the first copy")
        assert cache.get(_wanted("v.nc", b"two", [])).read_bytes() == b"two"
        one.result()


def test_a_link_that_looks_like_the_file_is_not_handed_out(tmp_path: Path) -> None:
    cache, target = _cache(tmp_path / "cache"), tmp_path / "target"
    content = b"x" * len(str(target))  # as long as the link
    there = cache.get(_wanted("a.nc", content, []))
    sealed = there.stat().st_mtime_ns
    there.unlink()
    there.symlink_to(target)
    os.utime(there, ns=(sealed, sealed), follow_symlinks=False)
    again = cache.get(_wanted("a.nc", content, []))
    assert not again.is_symlink()
    assert again.read_bytes() == content


def test_a_hit_writes_nothing(tmp_path: Path) -> None:
    cache, reads = _cache(tmp_path, keep_seconds=600), []
    wanted = _wanted("hit.nc", b"hit", reads)
    path = cache.get(wanted)
    before = path.stat()
    for _ in range(100):
        cache.get(wanted)
    assert path.stat() == before
    assert len(reads) == 1


def test_a_restart_knows_what_is_there_and_clears_what_was_cut_off(tmp_path: Path) -> None:
    reads: list[str] = []
    _cache(tmp_path).get(_wanted("kept.nc", b"kept", reads))
    part = tmp_path / ".cache/filling/0123"
    part.write_bytes(b"half")
    again = _cache(tmp_path, max_bytes=1000)
    again.get(_wanted("kept.nc", b"kept", reads))
    assert reads == ["kept.nc"]
    assert not part.exists()
    wait_until(lambda: int((tmp_path / ".cache/bytes").read_text()) == 4, 10, "the sum of sizes")


def test_another_version_of_a_file_takes_its_place(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    cache.get(_wanted("v.nc", b"one", []))
    assert cache.get(_wanted("v.nc", b"two", [])).read_bytes() == b"two"


def test_who_waits_is_told_after_the_time_of_the_settings(tmp_path: Path) -> None:
    cache = _cache(tmp_path, wait_seconds=0.2)
    wanted = _wanted("slow.nc", b"slow", [], 1.5)
    with ThreadPoolExecutor(1) as pool:
        owner = pool.submit(cache.get, wanted)
        time.sleep(0.1)
        with pytest.raises(StagingTimeout):
            cache.get(wanted)
        assert owner.result().read_bytes() == b"slow"


def test_a_thousand_entries_more_do_not_make_a_hit_slower_to_answer(tmp_path: Path) -> None:
    cache, reads = _cache(tmp_path), []
    for number in range(1000):
        cache.get(_wanted(f"many/{number}.nc", b"x", reads))
    for number in range(1000):
        cache.get(_wanted(f"many/{number}.nc", b"x", reads))
    assert len(reads) == 1000


def test_what_is_staged_can_be_read_by_everybody_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        path = _cache(tmp_path).get(_wanted("a/b/c.nc", b"c", []))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o444
    assert [item.stat().st_mode & 0o777 for item in path.parents[:2]] == [0o755, 0o755]
