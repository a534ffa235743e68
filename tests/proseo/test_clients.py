"""What prosEO's own clients do, call by call (contract, 3), with their headers, bodies and slashes.

Each client is written here as it behaves: what it sends first, what it looks at in an answer, and
what it would make of anything else.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from admin_api.services.access import Scope
from admin_api.services.callers import line_of
from tests.proseo.conftest import (
    FACILITY_USER,
    FILE_INFO,
    GUI,
    JOB_ORDER,
    PRODUCT_FS,
    WRAPPER,
    Facade,
    basic,
    facade_in,
    token,
)

_JAVA = {"User-Agent": "Java/21", "Accept": "text/html, image/gif, image/jpeg, */*; q=0.2"}
_WARNING = re.compile(r"199 +\S+ +(?P<message>\([IWEF]\d+\) .*)")
#: As the facility is configured by prosEO's sample data: with a slash at the end (1).
_FACILITY = "/proseo/storage-mgr/v1/"


class RestTemplate:
    """Spring's client: says who it is without being asked, follows no redirect of a POST."""

    def __init__(self, facade: Facade, user: tuple[str, str]) -> None:
        self._facade = facade
        self._headers = {**basic(user), **_JAVA}

    def call(self, method: str, path: str, body: dict | None = None, accept: str = ""):
        headers = {**self._headers, **({"Accept": accept} if accept else {})}
        return self._facade.call(method, path, body, None, headers)


class RestOps:
    """BaseWrapper's: Apache HttpClient, which waits to be asked who it is (3.4-3.6)."""

    headers = {
        "Accept": "application/json; charset=UTF-8",
        "User-Agent": "Apache-HttpClient/5.4 (Java/21)",
    }

    def __init__(self, facade: Facade) -> None:
        self._facade = facade

    def call(self, method: str, path: str):
        body, headers = None, dict(self.headers)
        if method == "PUT":
            body, headers = b"", {**headers, "Content-Type": "application/json"}
        first = self._facade.call(method, path, body, None, headers)
        assert first.status == 401
        challenges = first.headers.getlist("WWW-Authenticate")
        assert any(re.match(r'Basic realm="[^"]+"', item) for item in challenges)
        return self._facade.call(method, path, body, None, {**headers, **basic(WRAPPER)})


def _ingest(facade: Facade, product_id: str, mount: str, names: list[str]) -> list[str]:
    """ProductIngestor.ingestToStorageManager (3.1)."""
    client = RestTemplate(facade, FACILITY_USER)
    body = {
        "productId": product_id,
        "sourceStorageType": "POSIX",
        "targetStorageType": facade.kind,
        "sourceFilePaths": [f"{facade.inbox}/{mount}//./{name}" for name in names],
    }
    answer = client.call("POST", f"{_FACILITY}/products", body, "application/json")
    reply = facade.strict(PRODUCT_FS, answer, 201)
    assert len(reply["registeredFilesList"]) == len(body["sourceFilePaths"])
    parent = reply["registeredFilesList"][0].rpartition("/")[0]
    assert reply["registeredFilesList"] == [f"{parent}/{name}" for name in names]
    return reply["registeredFilesList"]


def test_the_ingestor_ingests_hands_out_and_deletes_file_by_file(facade: Facade) -> None:
    names = ["product.nc", "aux+1.xml", "product.zip"]
    for name in names:
        facade.file(f"drop/{name}", name.encode() * 10)
    paths = _ingest(facade, "3001", "drop", names)
    # 307 to whoever asked, who may bring credentials of somewhere else along (3.8).
    link = f"{_FACILITY}/products/download?pathInfo={quote(paths[0], safe='')}"
    got = facade.call(
        "GET",
        f"{link}&fromByte=0&toByte=9&token={token('product.nc')}",
        user=None,
        headers={"Authorization": "Bearer of-the-ingestor", "Range": "bytes=0-3"},
    )
    assert (got.status, got.data) == (206, b"product.nc")
    # Aux files first, the product file, then the zip; the path is not escaped (3.2).
    client = RestTemplate(facade, FACILITY_USER)
    for path in (paths[1], paths[0], paths[2], paths[0]):
        url = f"{_FACILITY}/products?pathInfo={path.replace(' ', '%20')}"
        answer = client.call("DELETE", url)
        assert answer.status < 400
        facade.strict(PRODUCT_FS, answer, 200)
    for path in paths:
        assert facade.fetch_answer(path).status == 404
    assert facade.service.json("GET", "/v1/products/3001")["state"] == "removed"


def test_a_job_goes_from_the_planner_through_the_wrapper_to_the_clean_up(facade: Facade) -> None:
    data = facade.file("auxiliary.nc", b"input" * 100)
    stored = _ingest(facade, "3010", ".", [data.name])[0]
    # Planner: the job order (3.3).
    text = base64.b64encode(b"<Ipf_Job_Order/>" * 50).decode()
    order = {
        "jobOrderStringBase64": text,
        "uploaded": None,
        "fsType": facade.kind,
        "pathInfo": None,
        "message": None,
    }
    planner = RestTemplate(facade, FACILITY_USER)
    answer = planner.call("POST", f"{_FACILITY}/joborders", order, "application/json, */*")
    kept = facade.strict(JOB_ORDER, answer, 201)
    assert kept["uploaded"] is True
    # BaseWrapper: job order, inputs, outputs (3.4 to 3.6).
    wrapper = RestOps(facade)
    got = wrapper.call("GET", f"{_FACILITY}/joborders?pathInfo={quote(kept['pathInfo'], safe='')}")
    assert got.status == 200
    assert base64.b64decode(got.data, validate=True) == b"<Ipf_Job_Order/>" * 50
    got = wrapper.call("GET", f"{_FACILITY}/productfiles?pathInfo={quote(stored, safe='')}")
    info = facade.strict(FILE_INFO, got, 200)
    local = Path(info["filePath"])
    assert local.stat().st_size >= info["fileSize"] == 500
    outputs = [facade.file(f"work/out{number}.nc", local.read_bytes()) for number in range(3)]
    replies = []
    for number, path in enumerate(outputs):
        size = 0 if number == 2 else path.stat().st_size  # what it cannot stat is 0
        url = f"{_FACILITY}/productfiles?pathInfo={quote(str(path), safe='')}&productId=3011"
        answer = wrapper.call("PUT", f"{url}&fileSize={size}")
        replies.append(facade.strict(FILE_INFO, answer, 201))
        if number == 0:  # an answer that got lost: the wrapper repeats itself
            again = wrapper.call("PUT", f"{url}&fileSize={size}")
            assert facade.strict(FILE_INFO, again, 201) == replies[0]
    assert len({reply["filePath"].rpartition("/")[0] for reply in replies}) == 1
    assert {reply["storageType"] for reply in replies} == {facade.kind}
    # PRIP: the link, everything escaped (3.9).
    path = replies[1]["filePath"]
    got = facade.call(
        "GET",
        f"{_FACILITY}/products/download?pathInfo={quote(path, safe='')}&token={token('out1.nc')}",
        user=None,
        headers={"Authorization": "Basic " + base64.b64encode(b"UTM-user:pw").decode()},
    )
    assert (got.status, got.data) == (200, b"input" * 100)
    # Job step's end: Planner or Order Manager delete the job order (3.7).
    for _ in range(2):
        answer = planner.call("DELETE", f"{_FACILITY}/products?pathInfo={kept['pathInfo']}")
        assert answer.status == 200
    assert facade.fetch_answer(stored).status == 200
    assert facade.fetch_answer(path).status == 200


def test_the_gui_shows_a_job_order_and_takes_errors_by_their_header(facade: Facade) -> None:
    made = facade.call("POST", "joborders", {"jobOrderStringBase64": "PEE+PC9BPg=="})
    path = json.loads(made.data)["pathInfo"]
    gui = RestTemplate(facade, GUI)
    got = gui.call("GET", f"{_FACILITY}/joborders?pathInfo={path}", accept="text/plain, */*")
    assert (got.status, got.data) == (200, b"PEE+PC9BPg==")
    gone = gui.call("GET", f"{_FACILITY}/joborders?pathInfo={path}x", accept="text/plain")
    assert _WARNING.fullmatch(gone.headers["Warning"])["message"].startswith("(E5523)")


def test_the_monitor_sees_that_it_is_up_without_saying_who_it_is(facade: Facade) -> None:
    answer = facade.call("GET", "/actuator/health", user=None, timeout=5)
    assert answer.status == 200
    assert json.loads(answer.data)["status"].upper() == "UP"


def test_a_wrapper_of_one_mission_reaches_no_other_ones_products(tmp_path, request) -> None:
    s3 = "S3B_SL_1_RBT____20190116T050535_20190116T050835_20190117T125958_0179_021_048_0000_LN2_O_NT_003"
    facade = facade_in(tmp_path / "missions", request, "POSIX")
    with (facade.service.directory / "callers").open("a") as file:
        line = line_of("S5P-wrapper", "s5p-password", [Scope.READ, Scope.INGEST], ["S5P"])
        file.write(f"\n{line}\n")
    facade.service.start()
    try:
        path = facade.ingest("1", facade.file(f"{s3}.nc", b"s3"))["registeredFilesList"][0]
        mine = ("S5P-wrapper", "s5p-password")
        assert facade.call("GET", f"productfiles?pathInfo={path}", user=mine).status == 404
        url = f"productfiles?pathInfo={facade.inbox}/{s3}.nc&productId=1&fileSize=0"
        assert facade.call("PUT", url, b"", mine).status == 403
        assert facade.call("GET", f"productfiles?pathInfo={path}").status == 200
    finally:
        facade.service.stop()


def test_a_certificate_counts_where_the_facilitys_proxy_says_so(tmp_path, request) -> None:
    accept = ["basic", "certificate"]
    for name, proxies, status in (("own", ["127.0.0.0/8"], 200), ("other", ["10.0.0.0/8"], 401)):
        settings = {"accept": accept, "proxies": proxies}
        facade = facade_in(tmp_path / name, request, "POSIX", proseo=settings)
        with (facade.service.directory / "callers").open("a") as file:
            file.write("\n" + line_of("node7.example.org", None, [Scope.READ], None) + "\n")
        facade.service.start()
        try:
            sent = {"X-SSL-Client-CN": "node7.example.org"}
            assert facade.call("GET", "info", user=None, headers=sent).status == status
            for wrong in ("node8.example.org", FACILITY_USER[0], ""):
                sent = {"X-SSL-Client-CN": wrong}
                assert facade.call("GET", "info", user=None, headers=sent).status == 401
            # A password is none for who has a certificate.
            assert (
                facade.call("GET", "info", user=("node7.example.org", "certificate")).status == 401
            )
            bearer = {"Authorization": f"Bearer {facade.service.token('read')}"}
            assert facade.call("GET", "info", user=None, headers=bearer).status == 401
        finally:
            facade.service.stop()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"secret_text": "MyVeryLongSecretMustBeAtLeast32Bytes"}, "the one that prosEO ships"),
        ({"secret_text": ""}, "is empty"),
        ({"secret_text": "short"}, "fewer than 16 characters"),
        ({"callers_text": "one two\n"}, "line 1 is not"),
        ({"callers_text": "a plain read\n"}, "none that"),
        ({"callers_text": "a certificate write\n"}, "no scope 'write'"),
        ({"mount": "nowhere"}, "is the path of no mount"),
    ],
)
def test_no_start_with_secrets_and_settings_that_must_not_be(
    tmp_path, request, settings, said
) -> None:
    texts = {name: settings.pop(f"{name}_text", None) for name in ("secret", "callers")}
    facade = facade_in(tmp_path / "x", request, "POSIX", proseo=settings)
    for name, text in texts.items():
        if text is not None:
            (facade.service.directory / name).write_text(text)
    settings_file = str(facade.service.settings_file)
    done = subprocess.run(
        [sys.executable, "-m", "admin_api", "serve", "--settings", settings_file],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_short_secret_is_taken_where_the_settings_say_so(tmp_path, request) -> None:
    facade = facade_in(tmp_path / "short", request, "POSIX", proseo={"weak_secret": True})
    (facade.service.directory / "secret").write_text("short")
    facade.service.start()
    try:
        path = facade.ingest("1", facade.file("s.nc", b"s"))["registeredFilesList"][0]
        url = f"products/download?pathInfo={quote(path)}&token="
        assert facade.call("GET", url + token("s.nc", secret="short"), user=None).status == 200
        assert facade.call("GET", url + token("s.nc"), user=None).status == 401
        # A new secret is taken up as it is.
        (facade.service.directory / "secret").write_text("x" * 40)
        assert facade.call("GET", url + token("s.nc", secret="x" * 32), user=None).status == 200
    finally:
        facade.service.stop()


def test_places_that_are_not_the_stores_are_read_and_never_deleted(tmp_path, request) -> None:
    foreign = request.getfixturevalue("s3_server")
    bucket = foreign.new_bucket()
    for key in ("dir/k.nc", "2031/1/1/1/5/k.nc"):
        foreign.client().put_object(Bucket=bucket, Key=key, Body=b"foreign")
    sources = {
        "file_roots": [tmp_path / "f/inbox", tmp_path / "mnt"],
        "s3": [{"backend": foreign.backend(bucket), "prefixes": [""]}],
    }
    facade = facade_in(tmp_path / "f", request, "S3", sources=sources)
    own = "2031/1/1/1/5/k.nc"
    foreign.client().put_object(Bucket=facade.bucket, Key=own, Body=b"own")
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt/k.nc").write_bytes(b"mounted")
    facade.service.start()
    try:
        there = [f"s3://{bucket}/dir/k.nc", f"s3://{bucket}/{own}", str(tmp_path / "mnt/k.nc")]
        answers = [facade.fetch(path) for path in (*there, f"s3://{facade.bucket}/{own}")]
        contents = [Path(answer["filePath"]).read_bytes() for answer in answers]
        assert contents == [b"foreign", b"foreign", b"mounted", b"own"]
        assert len({answer["filePath"] for answer in answers}) == 4
        for path, status in zip(there, (403, 403, 200), strict=True):
            answer = facade.call("DELETE", f"products?pathInfo={quote(path, safe='')}")
            assert answer.status == status
        for path in (*there, f"s3://{facade.bucket}/{own}"):
            assert facade.download(path).status == 200
        assert facade.fetch_answer("/etc/passwd").status == 403
        (tmp_path / "mnt/k.nc").write_bytes(b"another one")
        assert Path(facade.fetch(there[2])["filePath"]).read_bytes() == b"another one"
    finally:
        facade.service.stop()


@pytest.mark.parametrize("kind", ["POSIX", "S3"])
def test_several_processes_make_one_product_and_one_copy(tmp_path, request, kind: str) -> None:
    facade = facade_in(tmp_path / "several", request, kind)
    text = facade.service.settings_file.read_text()
    facade.service.settings_file.write_text(text.replace("server = {", "server = {processes = 3, "))
    facade.service.start()
    try:
        files = [facade.file(f"p{number}.nc", bytes([number]) * 10_000) for number in range(12)]
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda path: facade.push(7000, path), files))
        assert len({answer["filePath"].rpartition("/")[0] for answer in answers}) == 1
        product = facade.service.json("GET", "/v1/products/7000")
        assert len(product["files"]) == 12
        with ThreadPoolExecutor(12) as pool:
            there = list(pool.map(facade.fetch, [answers[3]["filePath"]] * 24))
        assert len({item["filePath"] for item in there}) == 1
        assert Path(there[0]["filePath"]).read_bytes() == bytes([3]) * 10_000
        assert len(list(facade.cache.rglob("*.nc"))) == 1
    finally:
        facade.service.stop()
