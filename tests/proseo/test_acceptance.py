"""The acceptance set of the contract (9.3), over HTTP, on a directory and on S3."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
import urllib3

from admin_api.services.download_tokens import derive
from tests.generator import make_s1
from tests.proseo.conftest import (
    BASE,
    FACILITY_USER,
    GUI,
    JOB_ORDER,
    PRODUCT_FS,
    WRAPPER,
    Facade,
    basic,
    facade_in,
    token,
    wait_for_hour,
)
from tests.support.servers import wait_until
from tests.support.slow_proxy import slow_proxy

WARNING = re.compile(r"\d{3} proseo-storage-mgr \(.\d+\) .+")


def test_two_files_become_a_product_with_length_order_and_parent(facade: Facade) -> None:
    wait_for_hour()
    second, first = facade.file("b1.nc", b"b" * 100), facade.file("a1.xml", b"a" * 50)
    answer = facade.ingest("1001", second, first)
    listed = answer["registeredFilesList"]
    assert [path.rpartition("/")[2] for path in listed] == ["b1.nc", "a1.xml"]
    assert answer["registeredFilesCount"] == 2
    parents = {path.rpartition("/")[0] for path in listed}
    assert len(parents) == 1
    now = time.gmtime()
    folder = f"{now.tm_year}/{now.tm_mon}/{now.tm_mday}/{now.tm_hour}/1001"
    assert parents == {f"{facade.root}/{folder}"}
    assert answer["registered"] is True
    assert answer["deleted"] is False
    assert answer["targetStorageId"] == ("" if facade.bucket else facade.root)
    slash = "/" if facade.bucket else "//"
    assert answer["registeredFilePath"] == f"{facade.root}/{folder}{slash}"


def test_what_is_ingested_here_is_a_product_there_with_digests_and_events(facade: Facade) -> None:
    name = "S5P_OFFL_L2__HCHO___20200328T053329_20200328T071459_12724_01_010108_20200330T103521.nc"
    content = b"sentinel" * 1000
    facade.ingest("1002", facade.file(name, content))
    product = facade.service.json("GET", "/v1/products/1002")
    assert product["name"] == name
    assert product["mission"] == "S5P"
    assert product["files"][0]["sha256"] == hashlib.sha256(content).hexdigest()
    events = facade.service.json("GET", "/v1/events?product_id=1002")["events"]
    assert [event["kind"] for event in events] == ["product.ingested"]
    assert events[0]["subject"] == FACILITY_USER[0]
    got = facade.service.request("GET", f"/v1/products/1002/files/{name}?redirect=false")
    assert got.data == content


def test_what_is_ingested_there_is_a_file_here(facade: Facade) -> None:
    path = facade.file("there.nc", b"from the other side")
    product = facade.service.json("POST", "/v1/products", {"source": path.as_uri()}, 201)
    uri = product["files"][0]["uri"].removeprefix("file://")
    info = facade.fetch(uri)
    assert Path(info["filePath"]).read_bytes() == b"from the other side"
    facade.delete(uri)
    shown = facade.service.json("GET", f"/v1/products/{product['id']}")
    assert shown["state"] == "removed"


def test_unknown_members_and_nulls_of_a_request_are_no_error(facade: Facade) -> None:
    path = facade.file("c1.nc", b"c")
    body = {
        "productId": "1003",
        "sourceStorageType": None,
        "targetStorageType": None,
        "registered": None,
        "sourceFilePaths": [str(path)],
        "address": "unknown",
    }
    answer = facade.strict(PRODUCT_FS, facade.call("POST", "products", body), 201)
    assert answer["registeredFilesCount"] == 1
    strings = dict.fromkeys(PRODUCT_FS, "text")
    assert facade.call("POST", "products", {**strings, "address": "x"}).status == 400


def test_a_deletion_takes_what_it_names_and_nothing_beside_it_again_and_again(facade) -> None:
    files = [facade.file(f"d{name}", name.encode()) for name in ("1.nc", "1.nc.zip", "2.nc")]
    paths = facade.ingest("1004", *files)["registeredFilesList"]
    neighbour = facade.ingest("10041", facade.file("d3.nc", b"3"))["registeredFilesList"][0]
    first = facade.delete(paths[0])
    assert first["deleted"] is True
    assert first["registeredFilesList"] == []
    assert first["targetStorageId"] is None
    key = paths[0].removeprefix(f"s3://{facade.bucket}/") if facade.bucket else paths[0]
    assert first["sourceFilePaths"] == [key]
    assert facade.delete(paths[0])["sourceFilePaths"] == []
    assert facade.fetch_answer(paths[0]).status == 404
    for path in (paths[1], paths[2], neighbour):
        assert facade.fetch_answer(path).status == 200
    left = facade.service.json("GET", "/v1/products/1004")
    assert {file["path"] for file in left["files"]} == {"d1.nc.zip", "d2.nc"}
    for path in paths[1:]:
        facade.delete(path)
    assert facade.service.json("GET", "/v1/products/1004")["state"] == "removed"
    assert facade.fetch_answer(neighbour).status == 200


def test_no_deletion_empties_the_store(facade: Facade) -> None:
    paths = [
        facade.ingest(f"105{number}", facade.file(f"e{number}.nc", b"e"))["registeredFilesList"][0]
        for number in range(3)
    ]
    order = facade.strict(
        JOB_ORDER, facade.call("POST", "joborders", {"jobOrderStringBase64": "QQ=="}), 201
    )["pathInfo"]
    year = "/".join(paths[0].split("/")[: facade.root.count("/") + 2])
    for path in (
        "",
        "/",
        facade.root,
        f"{facade.root}/",
        f"{facade.root}//",
        f"{facade.root}/nope",
        f"{facade.root}/../",
        f"{facade.root}/.products",
        f"{facade.root}/.products/",
        f"{facade.root}/joborders/",
        f"{year}/",
        paths[0].rpartition("/")[0].rpartition("/")[0],
        "/path",
        "/nonexistent/dir/",
        "s3://",
        "s3://another-bucket/" + paths[0].removeprefix(f"{facade.root}/"),
    ):
        answer = facade.call("DELETE", f"products?pathInfo={quote(path, safe='')}")
        assert answer.status in (200, 400, 403), (path, answer.data)
        if answer.status == 200:
            assert json.loads(answer.data)["sourceFilePaths"] == []
    for path in paths:
        assert facade.fetch_answer(path).status == 200
    assert facade.call("GET", f"joborders?pathInfo={quote(order)}").status == 200
    assert facade.service.json("GET", "/v1/products/1050")["state"] == "available"


def test_a_tree_gives_its_product_its_name_and_mission(facade: Facade) -> None:
    tree = make_s1(facade.inbox, seed=501)
    answer = facade.ingest("1059", f"{tree}/")
    product = facade.service.json("GET", "/v1/products/1059")
    assert (product["name"], product["mission"]) == (tree.name, "S1")
    assert answer["registeredFilesList"][0].endswith("/1059/manifest.safe")
    assert answer["registeredFilesCount"] == len(product["files"]) == 5


def test_a_products_directory_can_be_deleted_whole(facade: Facade) -> None:
    tree = facade.inbox / "tree1"
    for name in ("z.txt", "a/inner.txt", "b.txt"):
        facade.file(f"tree1/{name}", name.encode())
    paths = facade.ingest("1060", tree)["registeredFilesList"]
    parent = f"{facade.root}/" + "/".join(paths[0].removeprefix(f"{facade.root}/").split("/")[:5])
    assert [path.removeprefix(f"{parent}/") for path in paths] == ["b.txt", "z.txt", "a/inner.txt"]
    assert len(facade.delete(f"{parent}/")["sourceFilePaths"]) == 3
    assert facade.fetch_answer(paths[0]).status == 404


@pytest.mark.parametrize("text", ["", "QQ==", base64.b64encode(b"<IPF/>" * 5000).decode()])
def test_a_job_order_comes_back_byte_by_byte(facade: Facade, text: str) -> None:
    body = {
        "jobOrderStringBase64": text,
        "uploaded": None,
        "fsType": "S3",
        "pathInfo": None,
        "message": None,
    }
    answer = facade.strict(JOB_ORDER, facade.call("POST", "joborders", body), 201)
    assert answer["uploaded"] is True
    assert answer["fsType"] == facade.kind
    assert re.fullmatch(
        rf"{re.escape(facade.root)}/joborders/\d{{4}}/\d+/\d+/\d+/[0-9a-f-]{{36}}\.xml",
        answer["pathInfo"],
    )
    for accept in ("application/json; charset=UTF-8", "text/plain", "image/png"):
        path = f"joborders?pathInfo={quote(answer['pathInfo'])}"
        got = facade.call("GET", path, headers={"Accept": accept})
        assert (got.status, got.data) == (200, text.encode())
    assert facade.delete(answer["pathInfo"])["deleted"] is True
    gone = facade.call("GET", f"joborders?pathInfo={quote(answer['pathInfo'])}")
    assert gone.status == 404
    assert gone.data.startswith(b"(E5523)")


@pytest.mark.parametrize("text", ["###", "QQ=", "QQ==\n", "Q Q=", "QQ", "QQ_-", "Ä"])
def test_what_is_not_base64_is_refused_and_not_uploaded(facade: Facade, text: str) -> None:
    answer = facade.call("POST", "joborders", {"jobOrderStringBase64": text})
    assert facade.strict(JOB_ORDER, answer, 403) == {
        "jobOrderStringBase64": text,
        "uploaded": False,
        "fsType": None,
        "pathInfo": "n/a",
        "message": "(E5512) Attribute jobOrderStringBase64 is not Base64-encoded",
    }
    assert WARNING.fullmatch(answer.headers["Warning"])


def test_twenty_who_want_a_file_at_once_get_one_copy_of_it(facade: Facade) -> None:
    content = bytes(range(256)) * 4096
    path = facade.ingest("1070", facade.file("f1.nc", content))["registeredFilesList"][0]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(facade.fetch, [path] * 20))
    assert len({json.dumps(answer) for answer in answers}) == 1
    there = Path(answers[0]["filePath"])
    assert there == facade.cache / path.removeprefix(f"{facade.root}/")
    assert there.read_bytes() == content
    assert answers[0]["fileSize"] == len(content)
    assert there.stat().st_mode & 0o777 == 0o444


def test_an_output_that_comes_again_with_other_bytes_is_what_is_stored_then(facade) -> None:
    source = facade.file("g1.nc", b"first")
    first = facade.push(1080, source)
    assert Path(facade.fetch(first["filePath"])["filePath"]).read_bytes() == b"first"
    assert facade.push(1080, source) == first
    source.write_bytes(b"second, and longer")
    second = facade.push(1080, source)
    assert second["filePath"] == first["filePath"]
    assert second["fileSize"] == 18
    there = Path(facade.fetch(second["filePath"])["filePath"])
    assert there.read_bytes() == b"second, and longer"
    assert facade.download(second["filePath"]).data == b"second, and longer"
    files = facade.service.json("GET", "/v1/products/1080")["files"]
    assert [(file["path"], file["size"]) for file in files] == [("g1.nc", 18)]
    facade.delete(second["filePath"])
    assert facade.fetch_answer(first["filePath"]).status == 404


def test_outputs_of_one_product_lie_together_whenever_they_come(facade: Facade) -> None:
    first = facade.push(1090, facade.file("h1.nc", b"one"))

    second = facade.push(1090, facade.file("h2.nc", b"two"))
    third = facade.push(1090, facade.file("h3.nc", b"three"))
    assert len({item["filePath"].rpartition("/")[0] for item in (first, second, third)}) == 1
    product = facade.service.json("GET", "/v1/products/1090")
    assert [file["path"] for file in product["files"]] == ["h1.nc", "h2.nc", "h3.nc"]
    kinds = [
        event["kind"]
        for event in facade.service.json("GET", "/v1/events?product_id=1090")["events"]
    ]
    assert kinds == ["product.ingested", "product.extended", "product.extended"]


def test_outputs_that_come_side_by_side_make_one_product(facade: Facade) -> None:
    files = [facade.file(f"i{number}.nc", bytes([number]) * 1000) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda path: facade.push(1100, path), files))
    assert len({answer["filePath"].rpartition("/")[0] for answer in answers}) == 1
    product = facade.service.json("GET", "/v1/products/1100")
    assert len(product["files"]) == 8


def test_an_output_of_another_size_than_was_said_is_not_taken(facade: Facade) -> None:
    source = facade.file("j1.nc", b"five!")
    answer = facade.push_answer(1110, source, 7)
    assert answer.status == 422
    assert WARNING.fullmatch(answer.headers["Warning"])
    assert facade.service.request("GET", "/v1/products/1110").status == 404
    assert facade.push(1110, source, 0)["fileSize"] == 5


@pytest.fixture(scope="module")
def download(facade: Facade) -> str:
    content = bytes(range(250)) * 4
    return facade.ingest("1120", facade.file("k1.NC", content))["registeredFilesList"][0]


def test_a_token_opens_its_file(facade: Facade, download: str) -> None:
    answer = facade.download(download)
    assert answer.status == 200
    assert answer.data == bytes(range(250)) * 4
    assert answer.headers["Content-Type"] == "application/nc"
    assert answer.headers["Content-Length"] == "1000"
    assert answer.headers["Content-Disposition"] == 'form-data; name="attachment"; filename="k1.NC"'


def test_the_vector_of_the_contract_is_what_the_key_gives() -> None:
    assert token("ABC_L2__NO2____20260102T030405.nc").endswith(
        ".PlDaO5rW20OdezK9isauw6_5WgciVg8nMKal3epoMN0"
    )
    assert derive("x" * 40) == b"x" * 32
    assert derive("short") == b"short" + b" " * 16 + b"\0" * 11
    assert derive("ä" * 20) == ("ä" * 16).encode()


@pytest.mark.parametrize(
    ("made", "code"),
    [
        ({"exp": 1000}, "E5533"),
        ({"sub": "other.nc"}, "E5534"),
        ({"sub": "/k1.NC"}, "E5534"),
        ({"secret": "wrong-secret-of-somebody"}, "E5532"),
        ({"header": {"alg": "none"}}, "E5532"),
        ({"header": {"alg": "HS384"}}, "E5532"),
        ({"header": {"alg": "HS512", "typ": "JWT"}}, "E5532"),
        ({"header": {"alg": "RS256"}}, "E5532"),
        ({"header": {"alg": "hs256"}}, "E5532"),
        ({"header": {"typ": "JWT"}}, "E5532"),
        ({"header": {"alg": "HS256", "crit": ["exp"]}}, "E5532"),
        ({"exp": None}, "E5532"),
        ({"sub": None}, "E5532"),
        ({"exp": "4102444800"}, "E5532"),
        ({"exp": 4102444800.5}, "E5532"),
        ({"exp": 1 << 60}, "E5532"),
        ({"exp": -1}, "E5532"),
        ({"exp": True}, "E5532"),
        ({"nbf": 4102444800}, "E5532"),
        ({"aud": "somebody-else"}, "E5532"),
        ({"sub": ["k1.NC"]}, "E5532"),
    ],
)
def test_no_other_token_does(facade: Facade, download: str, made: dict, code: str) -> None:
    wrong = token(**{"sub": "k1.NC", **made})
    answer = facade.call(
        "GET", f"products/download?pathInfo={quote(download)}&token={wrong}", user=None
    )
    assert answer.status == 401, answer.data
    assert f"({code})" in answer.headers["Warning"]
    assert wrong not in answer.headers["Warning"]


@pytest.mark.parametrize("text", ["", "xxx", "a.b.c", "....", "%00", "x" * 20_000])
def test_what_is_no_token_opens_nothing(facade: Facade, download: str, text: str) -> None:
    answer = facade.call(
        "GET", f"products/download?pathInfo={quote(download)}&token={text}", user=None
    )
    assert answer.status == 401
    missing = facade.call("GET", f"products/download?pathInfo={quote(download)}", user=None)
    assert missing.status == 400


@pytest.mark.parametrize(
    ("query", "start", "stop"),
    [
        ("&fromByte=8&toByte=17", 8, 18),
        ("&fromByte=990", 990, 1000),
        ("&toByte=4", 0, 5),
        ("&fromByte=990&toByte=5000", 990, 1000),
        ("&fromByte=5&toByte=-3", 5, 1000),
        ("&fromByte=-7&toByte=3", 0, 4),
        ("&fromByte=0&toByte=0", 0, 1),
    ],
)
def test_ranges_by_the_query_have_both_ends(facade, download, query, start, stop) -> None:
    answer = facade.download(download, query, headers={"Range": "bytes=0-1"})
    assert answer.status == 206
    assert answer.data == (bytes(range(250)) * 4)[start:stop]
    assert answer.headers["Content-Length"] == str(stop - start)
    assert answer.headers["Range"] == f"bytes={start}-{stop - 1}"
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/1000"


@pytest.mark.parametrize("query", ["&fromByte=1000", "&fromByte=20&toByte=10"])
def test_ranges_without_a_byte_are_told(facade: Facade, download: str, query: str) -> None:
    answer = facade.download(download, query)
    assert answer.status == 416
    assert answer.headers["Content-Range"] == "bytes */1000"
    assert WARNING.fullmatch(answer.headers["Warning"])


@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("bytes=8-17", 206, 8, 18),
        ("bytes=990-", 206, 990, 1000),
        ("bytes=-10", 206, 990, 1000),
        ("bytes=0-", 206, 0, 1000),
        ("bytes=0-1,4-5", 200, 0, 1000),
        ("lines=1-2", 200, 0, 1000),
        ("bytes=5000-", 416, 0, 0),
    ],
)
def test_ranges_by_the_header_are_those_of_rfc_9110(
    facade: Facade, download: str, asked: str, status: int, start: int, stop: int
) -> None:
    answer = facade.download(download, headers={"Range": asked})
    assert answer.status == status
    if status != 416:
        assert answer.data == (bytes(range(250)) * 4)[start:stop]
        assert answer.headers["Content-Type"] == "application/nc"


def test_credentials_of_other_services_are_left_alone_on_a_download(facade, download) -> None:
    for value in ("Basic eDp5", "Bearer x.y.z", "nonsense"):
        answer = facade.download(download, headers={"Authorization": value})
        assert answer.status == 200


@pytest.mark.parametrize(
    "form", ["{}//products", "{}/products/", "{}//products//", "/{}/products", "{}/products///"]
)
def test_slashes_too_many_are_taken_without_a_redirect(facade: Facade, form: str) -> None:
    path = form.format(BASE)
    body = {"productId": "1130", "sourceFilePaths": [str(facade.file("l1.nc", b"l"))]}
    assert facade.call("POST", path, body).status == 201
    assert facade.call("GET", path + f"?storageType={facade.kind}").status == 200
    assert facade.call("GET", "//actuator//health/", user=None).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "nothing"),
        ("GET", ""),
        ("PUT", "products"),
        ("DELETE", "joborders"),
        ("PATCH", "productfiles"),
        ("GET", "products?storageType=OTHER"),
        ("GET", "productfiles"),
        ("GET", "productfiles?pathInfo="),
        ("GET", "productfiles?pathInfo=%2Fetc%2Fpasswd"),
        ("GET", "productfiles?pathInfo=%2F.."),
        ("GET", "productfiles?pathInfo=%00"),
        ("GET", "productfiles?pathInfo=s3%3A%2F%2Fother%2Fkey"),
        ("PUT", "productfiles?pathInfo=%2Fx&productId=x&fileSize=7"),
        ("PUT", "productfiles?pathInfo=%2Fx&productId=1"),
        ("PUT", "productfiles?pathInfo=%2Fetc%2Fpasswd&productId=1&fileSize=7"),
        ("PUT", "productfiles?pathInfo=%2Fx&productId=99999999999999999999&fileSize=7"),
        ("GET", "joborders"),
        ("GET", "joborders?pathInfo=%2F.."),
        ("POST", "products"),
        ("POST", "joborders"),
        ("DELETE", "products"),
        ("DELETE", "products?pathInfo=%2F.."),
        ("GET", "products/download?pathInfo=a"),
        ("GET", "products/download?pathInfo=a&token=b&fromByte=x"),
        ("GET", "products/download?pathInfo=a&token=b"),
    ],
)
def test_every_error_has_the_header_that_clients_look_for(facade, method, path) -> None:
    answer = facade.call(method, path)
    assert 400 <= answer.status < 600
    assert WARNING.fullmatch(answer.headers["Warning"]), answer.headers
    assert b"Traceback" not in answer.data


def test_hostile_names_do_not_make_headers(facade: Facade) -> None:
    path = "/x\r\nSet-Cookie: a=b\r\n\r\n\u2603" + "y" * 5000
    answer = facade.call("GET", f"productfiles?pathInfo={quote(path)}")
    assert answer.status >= 400
    assert "Set-Cookie" not in answer.headers
    assert len(answer.headers["Warning"]) <= 1000


def test_missing_sources_are_told_and_nothing_is_stored(facade: Facade) -> None:
    good = facade.file("m1.nc", b"m")
    body = {"productId": "1140", "sourceFilePaths": [str(facade.inbox / "no"), str(good)]}
    answer = facade.call("POST", "products", body)
    assert answer.status == 500
    assert "(E5501)" in answer.headers["Warning"]
    assert "(E5502)" in answer.headers["Warning"]
    assert facade.service.request("GET", "/v1/products/1140").status == 404


def test_the_listing_has_what_is_there_and_nothing_else(facade: Facade) -> None:
    paths = facade.ingest("1150", facade.file("n1.nc", b"1"), facade.file("n2.nc", b"2"))
    for query in ("", f"?storageType={facade.kind}", f"?storageType={facade.kind}&prefix="):
        listed = json.loads(facade.call("GET", f"products{query}").data)
        assert {f"{facade.kind}|{path}" for path in paths["registeredFilesList"]} <= set(listed)
        assert not any(".products" in item for item in listed)
    folder = paths["registeredFilesList"][0].rpartition("/")[0].removeprefix(f"{facade.root}/")
    one = json.loads(facade.call("GET", f"products?storageType={facade.kind}&prefix={folder}").data)
    assert one == [f"{facade.kind}|{path}" for path in paths["registeredFilesList"]]
    other = "S3" if facade.kind == "POSIX" else "POSIX"
    assert json.loads(facade.call("GET", f"products?storageType={other}").data) == []


def test_names_with_signs_of_urls_are_found_in_every_spelling(facade: Facade) -> None:
    path = facade.ingest("1160", facade.file("o+1 %41.nc", b"o"))["registeredFilesList"][0]
    for spelled in (quote(path, safe=""), quote(path, safe=":/+"), quote(quote(path, safe=""))):
        answer = facade.call("GET", f"productfiles?pathInfo={spelled}")
        assert answer.status == 200, spelled
    assert len(facade.delete(path)["sourceFilePaths"]) == 1


def test_only_who_has_said_who_it_is_comes_in_and_only_as_far_as_it_may(facade: Facade) -> None:
    answer = facade.call("GET", "info", user=None)
    assert answer.status == 401
    challenges = answer.headers.getlist("WWW-Authenticate")
    assert any(item.startswith("Basic realm=") for item in challenges)
    for user in (("UTM-wrapper", "wrong"), ("nobody", "wrapper-password"), ("", "")):
        assert facade.call("GET", "info", user=user).status == 401
    bearer = {"Authorization": f"Bearer {facade.service.token('read')}"}
    assert facade.call("GET", "info", user=None, headers=bearer).status == 200
    gui = ("UTM-gui", "gui-password-1")
    wrapper = ("UTM-wrapper", "wrapper-password")
    assert facade.call("GET", "info", user=gui).status == 200
    for method, path, user in (
        ("POST", "products", gui),
        ("PUT", "productfiles?pathInfo=%2Fx&productId=1&fileSize=0", gui),
        ("POST", "joborders", gui),
        ("DELETE", "products?pathInfo=%2Fx", gui),
        ("DELETE", "products?pathInfo=%2Fx", wrapper),
    ):
        assert facade.call(method, path, user=user).status == 403, path


_EVERYBODY = {None, GUI, WRAPPER, FACILITY_USER}
_MATRIX = [
    ("GET", "info", {GUI, WRAPPER, FACILITY_USER}),
    ("GET", "products", {GUI, WRAPPER, FACILITY_USER}),
    ("POST", "products", {WRAPPER, FACILITY_USER}),
    ("DELETE", "products?pathInfo=%2Fx", {FACILITY_USER}),
    ("GET", "products/download?pathInfo=a&token=b", _EVERYBODY),
    ("GET", "productfiles?pathInfo=%2Fx", {GUI, WRAPPER, FACILITY_USER}),
    ("PUT", "productfiles?pathInfo=%2Fx&productId=1&fileSize=0", {WRAPPER, FACILITY_USER}),
    ("POST", "joborders", {WRAPPER, FACILITY_USER}),
    ("GET", "joborders?pathInfo=%2Fx", {GUI, WRAPPER, FACILITY_USER}),
    ("GET", "/actuator/health", _EVERYBODY),
]


@pytest.mark.parametrize(("method", "path", "who"), _MATRIX)
def test_every_endpoint_asks_who_it_is_and_what_he_may(facade: Facade, method, path, who) -> None:
    for user in _EVERYBODY:
        answer = facade.call(method, path, user=user)
        refused = answer.status == 403 or (user is None and answer.status == 401)
        if "download" in path:
            assert b"(E5532)" in answer.data  # its own token, whoever comes
        elif "pathInfo=%2Fx" in path and user in who:
            assert b"needs a token" not in answer.data
        else:
            assert refused == (user not in who), (user, answer.status, answer.data)


def test_the_facade_is_not_there_unless_it_is_enabled(make_service) -> None:
    service = make_service()
    service.start()
    for path in (f"{BASE}/info", "/actuator/health"):
        assert service.request("GET", path).status == 404


def test_secrets_of_the_facade_are_in_no_log(facade: Facade, download: str) -> None:
    secret = token("k1.NC")
    facade.download(download)
    log = facade.service.log()
    for text in (
        secret,
        "facility-password",
        "demo-shared-secret",
        basic(FACILITY_USER)["Authorization"].split()[1],
    ):
        assert text not in log


def test_head_is_answered_wherever_get_is(facade: Facade, download: str) -> None:
    for path in ("info", f"products?storageType={facade.kind}"):
        answer = facade.call("HEAD", path)
        assert (answer.status, answer.data) == (200, b"")
    answer = facade.download(download, method="HEAD")
    assert (answer.status, answer.headers["Content-Length"]) == (200, "1000")


# -- with a service of their own -----------------------------------------------------------------
@pytest.fixture
def slow(tmp_path: Path, request: pytest.FixtureRequest):
    """A facade whose S3 service hands out at a trickle when it is told to."""
    made = facade_in(
        tmp_path / "slow", request, "S3", staging={"wait_seconds": getattr(request, "param", 1.0)}
    )
    assert made.weed is not None
    with slow_proxy(made.weed.endpoint) as (url, slowness):
        text = made.service.settings_file.read_text()
        made.service.settings_file.write_text(text.replace(made.weed.endpoint, url))
        made.service.start()
        yield made, slowness
        made.service.stop()


def test_who_waits_too_long_for_another_ones_copy_is_told_so(slow) -> None:
    facade, slowness = slow
    path = facade.ingest("1", facade.file("p1.nc", bytes(6 << 20)))["registeredFilesList"][0]
    slowness.rate = 1 << 19
    with ThreadPoolExecutor(1) as pool:
        owner = pool.submit(facade.fetch_answer, path)
        time.sleep(0.7)
        waiter = facade.fetch_answer(path)
        assert waiter.status == 503
        assert "(E5561)" in waiter.headers["Warning"]
        health = facade.call("GET", "/actuator/health", user=None)
        assert (health.status, health.data) == (200, b'{"status":"UP"}')
        assert not owner.done()
        assert owner.result().status == 200
    assert facade.fetch(path)["fileSize"] == 6 << 20


@pytest.mark.parametrize("slow", [120.0], indirect=True)
def test_two_hundred_requests_for_one_file_move_it_once(slow) -> None:
    facade, slowness = slow
    path = facade.ingest("3", facade.file("t1.nc", bytes(8 << 20)))["registeredFilesList"][0]
    facade.service.pool = urllib3.PoolManager(maxsize=200, retries=False)
    slowness.rate, before = 16 << 20, slowness.passed
    with ThreadPoolExecutor(200) as pool:
        sizes = [answer["fileSize"] for answer in pool.map(facade.fetch, [path] * 200)]
    assert sizes == [8 << 20] * 200
    assert slowness.passed - before < 9 << 20


def test_a_copy_that_was_cut_off_is_cleared_away_at_the_next_start(slow) -> None:
    facade, slowness = slow
    path = facade.ingest("2", facade.file("q1.nc", bytes(6 << 20)))["registeredFilesList"][0]
    slowness.rate = 1 << 20
    filling = facade.cache / ".cache/filling"
    with ThreadPoolExecutor(1) as pool:
        cut_off = pool.submit(facade.fetch_answer, path)
        wait_until(lambda: list(filling.glob("*")), 20, "a copy under way")
        facade.service.stop(9)
        assert cut_off.exception() is not None
    assert list(filling.glob("*"))
    slowness.rate = None
    facade.service.start()
    assert facade.fetch(path)["fileSize"] == 6 << 20
    assert list(filling.glob("*")) == []


def test_the_cache_is_kept_between_its_marks(tmp_path: Path, request) -> None:
    facade = facade_in(
        tmp_path / "full",
        request,
        "S3",
        staging={"max_bytes": 10_000_000, "high_percent": 80, "low_percent": 50},
    )
    facade.service.start()
    try:
        paths = [
            facade.ingest(str(number), facade.file(f"r{number}.nc", bytes(1_000_000)))[
                "registeredFilesList"
            ][0]
            for number in range(1, 13)
        ]
        for path in paths[:8]:
            facade.fetch(path)
            time.sleep(0.02)
        there = set(facade.cache.rglob("*.nc"))
        assert len(there) == 8
        for path in paths[8:]:
            facade.fetch(path)
            assert sum(path.stat().st_size for path in facade.cache.rglob("*.nc")) <= 8_000_000
        assert not (facade.cache / paths[0].removeprefix(f"{facade.root}/")).exists()
        assert (facade.cache / paths[7].removeprefix(f"{facade.root}/")).exists()
    finally:
        facade.service.stop()
