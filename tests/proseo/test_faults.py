"""Hostile names, races, full and vanishing caches: in the contract's own form, and nothing lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.proseo.conftest import BASE, WRAPPER, Facade
from tests.support.servers import wait_until

_NAMES = [
    "x" * 240 + ".nc",
    "x" * 252 + ".nc",
    "ü\u0308.nc",
    "u\u0308.nc",
    "name with blanks.nc",
    "trailing.",
    "trailing_",
    "..nc",
    "...",
    "UPPER.NC",
    "upper.nc",
    "percent%41.nc",
    "plus+plus.nc",
    "amp&amp;.nc",
    "hash#1.nc",
    "quote'\".nc",
    "semi;colon.nc",
    "a@2",
    "@r5",
    ".hidden",
    ".products",
    "joborders",
    "incoming",
    "line\nbreak.nc",
    "tab\t.nc",
    "back\\slash.nc",
    "question?.nc",
    "\u2603.nc",
]


@pytest.mark.parametrize("number", range(len(_NAMES)))
def test_a_strange_name_is_stored_exactly_or_refused_with_a_sentence(facade, number: int) -> None:
    name = _NAMES[number]
    source = facade.file(f"strange-{number}/{name}", f"content of {number}".encode())
    answer = facade.push_answer(5000 + number, source)
    if answer.status != 201:
        assert answer.status in (400, 500), answer.data
        assert answer.status == 400 or "names nothing" in answer.headers["Warning"]
        assert facade.service.request("GET", f"/v1/products/{5000 + number}").status == 404
        return
    info = json.loads(answer.data)
    assert info["fileName"] == name
    got = facade.fetch(info["filePath"])
    assert Path(got["filePath"]).read_bytes() == f"content of {number}".encode()
    assert facade.download(info["filePath"]).data == f"content of {number}".encode()
    assert len(facade.delete(info["filePath"])["sourceFilePaths"]) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "{inbox}/../store/x",
        "{inbox}/link",
        "{inbox}/directory-link/file",
        "{inbox}/fifo",
        "{inbox}",
        "/proc/self/environ",
        "s3:///key",
        "s3://",
        "http://127.0.0.1/x",
        "file:///etc/passwd",
        "\0",
    ],
)
def test_nothing_outside_the_roots_is_taken_in_or_handed_out(facade: Facade, path: str) -> None:
    (facade.inbox / "directory").mkdir(exist_ok=True)
    (facade.inbox / "directory/file").write_bytes(b"x")
    for name, target in (("link", "/etc/passwd"), ("directory-link", "directory")):
        if not (facade.inbox / name).is_symlink():
            (facade.inbox / name).symlink_to(target)
    if not (facade.inbox / "fifo").exists():
        os.mkfifo(facade.inbox / "fifo")
    path = path.format(inbox=facade.inbox)
    for answer in (
        facade.push_answer(5900, path, 0),
        facade.fetch_answer(path),
        facade.download(path),
        facade.call("POST", "products", {"productId": "5900", "sourceFilePaths": [path]}),
    ):
        if answer.status == 201 and path == str(facade.inbox):
            continue  # a directory beneath a root's parent would be one; the root itself is none
        assert answer.status in (400, 401, 403, 404, 500), (answer.status, answer.data[:300])
        assert answer.headers["Warning"]
    assert facade.service.request("GET", "/v1/products/5900").status == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{" * 100_000,
        b'{"productId": "1"',
        b'{"productId": "1", "sourceFilePaths": "x"}',
        b'{"productId": "1", "sourceFilePaths": [{}]}',
        b'{"productId": "1", "sourceFilePaths": [null]}',
        b'{"productId": {}, "sourceFilePaths": []}',
        b'{"productId": "../x", "sourceFilePaths": ["/x"]}',
        b'{"productId": "a/b", "sourceFilePaths": ["/x"]}',
        b'{"productId": "", "sourceFilePaths": ["/x"]}',
        b'\xff\xfe{"productId": "1"}',
        b'{"registered": "maybe", "sourceFilePaths": []}',
        b"1" * 10_000,
    ],
)
def test_a_body_that_is_none_is_refused_whatever_it_is(facade: Facade, body: bytes) -> None:
    answer = facade.call("POST", "products", body, headers={"Content-Type": "application/json"})
    assert answer.status in (400, 403), (answer.status, answer.data)
    assert answer.headers["Warning"]
    answer = facade.call("POST", "joborders", body)
    assert answer.status in (400, 500), (answer.status, answer.data)
    assert answer.headers["Warning"]


def test_a_body_that_is_too_long_is_not_read(facade: Facade) -> None:
    answer = facade.call("POST", "joborders", b'{"jobOrderStringBase64": "' + b"A" * 21_000_000)
    assert answer.status == 413
    assert answer.headers["Warning"]


def test_whoever_races_gets_whole_files_or_an_answer_that_says_why(facade: Facade) -> None:
    contents = [bytes([65 + number]) * 50_000 for number in range(4)]
    sources = [facade.file(f"race-{number}/race.nc", data) for number, data in enumerate(contents)]
    beside = facade.file("race-5/beside.nc", b"beside")
    path = facade.push(6000, sources[0])["filePath"]
    facade.push(6000, beside)
    until, wrong = time.monotonic() + 3, []

    def worker(seed: int) -> int:
        choice, count = random.Random(seed), 0
        while time.monotonic() < until:
            count += 1
            match choice.randrange(5):
                case 0:
                    answer = facade.push_answer(6000, choice.choice(sources))
                    good = answer.status in (201, 409)
                case 1:
                    answer = facade.call("DELETE", f"products?pathInfo={quote(path)}")
                    good = answer.status in (200, 409)
                case 2:
                    answer = facade.fetch_answer(path)
                    good = answer.status in (200, 404)
                case 3:
                    answer = facade.download(path)
                    good = answer.status in (200, 404, 503) and (
                        answer.status != 200 or answer.data in contents
                    )
                case _:
                    answer = facade.push_answer(6000, beside)
                    good = answer.status in (201, 409)
            if not good:
                wrong.append((answer.status, answer.headers.get("Warning"), answer.data[:200]))
        return count

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(worker, range(6))) > 20
    assert wrong == []
    facade.push(6000, sources[1])
    got = facade.download(json.loads(facade.push_answer(6000, sources[1]).data)["filePath"])
    assert got.data == contents[1]
    findings = facade.service.request("POST", "/v1/maintenance/reconciliation").data
    kinds = {json.loads(line).get("kind") for line in findings.splitlines()}
    assert not kinds & {"missing", "differing"}, findings[-2000:]


def test_a_cache_that_is_wiped_again_and_again_hands_out_whole_files(facade: Facade) -> None:
    content = bytes(range(256)) * 2000
    paths = [
        facade.ingest(f"61{number:02}", facade.file(f"wipe{number}.nc", content))[
            "registeredFilesList"
        ][0]
        for number in range(3)
    ]
    over = threading.Event()

    def wipe() -> None:
        while not over.wait(0.05):
            for item in facade.cache.iterdir():
                if item.name != ".cache":
                    shutil.rmtree(item, ignore_errors=True)

    with ThreadPoolExecutor(5) as pool:
        wiper = pool.submit(wipe)
        answers = [pool.submit(facade.fetch_answer, paths[turn % 3]) for turn in range(60)]
        found = {answer.result().status for answer in answers}
        over.set()
        wiper.result()
    assert found <= {200, 500}
    assert 200 in found
    for path in paths:
        assert Path(facade.fetch(path)["filePath"]).read_bytes() == content


def test_an_empty_file_is_a_file(facade: Facade) -> None:
    path = facade.push(6200, facade.file("empty.nc", b""))["filePath"]
    assert facade.fetch(path)["fileSize"] == 0
    answer = facade.download(path)
    assert (answer.status, answer.data) == (200, b"")
    assert facade.download(path, "&fromByte=0").status == 416


def test_an_output_that_is_being_taken_in_when_the_service_dies_is_not_half_there(
    facade: Facade,
) -> None:
    source = facade.file("dying.nc", bytes(64 << 20))
    facade.push(6300, facade.file("alive.nc", b"alive"))
    with ThreadPoolExecutor(1) as pool:
        push = pool.submit(facade.push_answer, 6300, source)
        time.sleep(0.15)
        facade.service.stop(9)
        push.exception()
    facade.service.start()
    files = facade.service.json("GET", "/v1/products/6300")["files"]
    assert [file["path"] for file in files] in (["alive.nc"], ["alive.nc", "dying.nc"])
    wait_until(
        lambda: facade.push_answer(6300, source).status == 201, 90, "the output that comes again"
    )
    files = facade.service.json("GET", "/v1/products/6300")["files"]
    assert [(file["path"], file["size"]) for file in files] == [
        ("alive.nc", 5),
        ("dying.nc", 64 << 20),
    ]


def test_a_wrapper_that_goes_away_does_not_end_the_copy_that_others_wait_for(facade) -> None:
    content = bytes(8 << 20)
    path = facade.ingest("6400", facade.file("leaving.nc", content))["registeredFilesList"][0]
    url = f"{BASE}/productfiles?pathInfo={quote(path, safe='')}"
    with pytest.raises(Exception, match="timed out"):
        facade.call("GET", url, user=WRAPPER, timeout=0.001, retries=False)
    there = facade.cache / path.removeprefix(f"{facade.root}/")
    facade.fetch(path)
    assert there.stat().st_size == len(content)
