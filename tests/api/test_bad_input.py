"""Bad input (goals F22, F23, F26): a problem with a code and the place; nothing changed or stored."""

from __future__ import annotations

import gzip
import io
import json
import socket
import tarfile
import threading
import zipfile
from urllib.parse import quote

import pytest

from tests.support.servers import Service, wait_until


def count(service: Service) -> tuple[int, int]:
    storage = service.json("GET", "/v1/storage")
    return storage["products"], storage["bytes"]


@pytest.fixture(autouse=True)
def nothing_is_stored(request, service: Service):
    """Whatever a test here sends: no product comes of it, unless the test says so."""
    before = count(service)
    yield
    if "stores" not in request.keywords:
        assert count(service) == before


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "body"),
        (b"{", "line 1, column 2"),
        (b'{"source":\n  "file:///x",,}', "line 2"),
        (b"\xff\xfe", "UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        (b'"text"', "JSON object"),
        (b"{}", "either one source or the files"),
        (b'{"source": 5}', "source"),
        (b'{"source": ""}', "source"),
        (b'{"source": "file:///x\\u0000"}', "control characters"),
        (b'{"source": "file:///x", "sorce": 1}', "sorce"),
        (b'{"source": "file:///x", "sha256": "abc"}', "sha256"),
        (b'{"source": "file:///x", "size": -1}', "size"),
        (b'{"source": "file:///x", "duplicates": "maybe"}', "duplicates"),
        (b'{"source": "file:///x", "verification": "all"}', "verification"),
        (b'{"source": "file:///x", "retention": "tomorrow"}', "retention"),
        (b'{"source": "file:///x", "retention": "2020-01-01T00:00:00"}', "timezone"),
        (b'{"source": "file:///x", "retention": "2031"}', "RFC 3339"),
        (b'{"source": "file:///x", "retention": 2031}', "RFC 3339"),
        (b'{"source": "file:///x", "files": [{"path": "a", "source": "file:///x"}]}', "either"),
        (b'{"files": [{"path": "a"}]}', "files.0.source"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_wrong_ingest_request_is_told_with_the_place(service, body: bytes, said: str) -> None:
    problem = service.json(
        "POST", "/v1/products", body, 400, headers={"Content-Type": "application/json"}
    )
    assert problem["code"] == "invalid_request"
    assert said in problem["detail"], problem["detail"]
    assert problem["request_id"]


def test_a_body_that_is_too_long_or_not_json_is_refused(service: Service) -> None:
    long = b'{"source": "' + b"x" * (9 << 20) + b'"}'
    answer = service.json(
        "POST", "/v1/products", long, 413, headers={"Content-Type": "application/json"}
    )
    assert answer["code"] == "too_large"
    answer = service.json(
        "POST", "/v1/products", b"<a/>", 415, headers={"Content-Type": "text/xml"}
    )
    assert answer["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    ("source", "status", "code"),
    [
        ("file:///etc/passwd", 403, "source_denied"),
        ("file:///proc/self/environ", 403, "source_denied"),
        ("s3://not-configured/key", 403, "source_denied"),
        ("https://data.example.org/x", 403, "source_denied"),
        ("http://169.254.169.254/latest", 403, "source_denied"),
        ("ftp://x/y", 403, "source_denied"),
        ("no-scheme", 403, "source_denied"),
        ("https://[x/", 400, "invalid_request"),
        ("INBOX/not-there", 422, "source_not_found"),
        ("INBOX/../secret", 403, "source_denied"),
    ],
)
def test_sources_that_may_not_be_or_are_not_are_told(service, source, status, code) -> None:
    source = source.replace("INBOX", (service.directory / "inbox").as_uri())
    problem = service.json("POST", "/v1/products", {"source": source, "name": "x"}, status)
    assert problem["code"] == code
    assert "root:" not in json.dumps(problem)


HOSTILE = [
    "..",
    ".",
    "a\x00b",
    "a\nb",
    "a\x7fb",
    "a?b",
    "a\\b",
    "x" * 300,
    ".products",
    ".tmp",
    "x@3",
    "\u2028line",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_product_names_are_refused(service: Service, name: str) -> None:
    answer = service.request("PUT", f"/v1/uploads/{quote(name, safe='')}", b"x")
    assert answer.status in (400, 404), answer.data
    assert json.loads(answer.data)["code"] in ("invalid_key", "invalid_request", "not_found")
    body = {"name": name, "files": [{"path": "f", "source": "file:///nowhere"}]}
    assert service.request("POST", "/v1/products", body).status in (400, 403)


@pytest.mark.parametrize(
    "path",
    ["../up", "a/../../up", "/abs", "a//b", "a/", "./a", "a/./b", "a\x00b", "a\rb", "a?b", "a\\b"]
    + ["n" * 256, "/".join(["d" * 200] * 5)],
)
def test_hostile_paths_in_a_session_are_refused(service: Service, path: str) -> None:
    session = service.json("POST", "/v1/uploads", {"name": "hostile-session"}, expect=201)
    raw = f"/v1/uploads/{session['id']}/{quote(path, safe='')}".encode()
    with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as client:
        client.sendall(
            b"PUT " + raw + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nConnection: close\r\n"
            b"Authorization: Bearer " + service.token().encode() + b"\r\n\r\nx"
        )
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.split(b" ", 2)[1] in (b"400", b"404"), answer[:300]
    assert service.json("GET", f"/v1/uploads/{session['id']}")["files"] == []


@pytest.mark.stores
@pytest.mark.parametrize(
    "name",
    [
        "with space.nc",
        "100%25.nc",
        "\u00e9-nfc",
        "e\u0301-nfd",
        "trailing_",
        "dots...",
        "CASE",
        "case",
    ]
    + ["n" * 240, "#~'\"[]{}|<>^`*;:,=&+$!()"],
)
def test_odd_but_honest_names_are_stored_exactly(service: Service, name: str) -> None:
    product = service.json("PUT", f"/v1/uploads/{quote(name, safe='')}", name.encode(), 201)
    assert product["name"] == name
    found = service.request("GET", product["files"][0]["href"] + "?redirect=false")
    assert found.data == name.encode()
    listed = service.json("GET", f"/v1/products?name={quote(name, safe='')}")["products"]
    assert [item["name"] for item in listed] == [name]


def test_a_path_that_is_not_utf8_is_refused(service: Service) -> None:
    assert service.json("PUT", "/v1/uploads/%ff%fe", b"x", 400)["code"] == "invalid_request"


def tar_with(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_with(*entries: tuple[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return sink.getvalue()


GOOD_TAR = tar_with((member("a"), b"x" * 5000), (member("b"), b"y" * 5000))
GOOD_ZIP = zip_with(("a", b"x" * 5000), ("b", b"y" * 5000))
ARCHIVES = {
    "slip.tar": (tar_with((member("../../evil"), b"x")), 400, "invalid_key"),
    "absolute.tar": (tar_with((member("/etc/evil"), b"x")), 400, "invalid_key"),
    "symlink.tar": (
        tar_with((member("l", tarfile.SYMTYPE, "/etc/passwd"), b"")),
        422,
        "invalid_archive",
    ),
    "hardlink.tar": (tar_with((member("l", tarfile.LNKTYPE, "a"), b"")), 422, "invalid_archive"),
    "device.tar": (tar_with((member("d", tarfile.CHRTYPE), b"")), 422, "invalid_archive"),
    "fifo.tar": (tar_with((member("d", tarfile.FIFOTYPE), b"")), 422, "invalid_archive"),
    "twice.tar": (tar_with((member("a"), b"1"), (member("a"), b"2")), 400, "invalid_request"),
    "file-and-directory.tar": (
        tar_with((member("a"), b"1"), (member("a/b"), b"2")),
        400,
        "invalid_key",
    ),
    "directory-and-file.tar": (
        tar_with((member("a/b"), b"1"), (member("a"), b"2")),
        400,
        "invalid_key",
    ),
    "empty.tar": (tar_with(), 400, "invalid_request"),
    "not-utf8.tar": (
        GOOD_TAR[:512].replace(b"a\0", b"\xe4\0", 1)[:148]
        + b"%06o\0 " % (int(GOOD_TAR[148:154], 8) - ord("a") + 0xE4)
        + GOOD_TAR[156:],
        400,
        "invalid_key",
    ),
    "cut-between-members.tar": (GOOD_TAR[: 512 + 5120], 422, "invalid_archive"),
    "bad-header-within.tar": (GOOD_TAR.replace(b"b\0", b"c\0", 1), 422, "invalid_archive"),
    "flipped.tar.gz": (
        gzip.compress(GOOD_TAR, 0).replace(b"xxx", b"xyx", 1),
        422,
        "invalid_archive",
    ),
    "joined.tar": (GOOD_TAR + GOOD_TAR, 422, "invalid_archive"),
    "cut.tar": (GOOD_TAR[:3000], 422, "invalid_archive"),
    "no.tar": (b"this is no tar archive" * 100, 422, "invalid_archive"),
    "no.tar.gz": (b"this is no gzip" * 100, 422, "invalid_archive"),
    "slip.zip": (zip_with(("../evil", b"x")), 400, "invalid_key"),
    "backslash.zip": (zip_with(("..\\evil", b"x")), 400, "invalid_key"),
    "twice.zip": (
        zip_with(("a", b"1"), ("z", b"2")).replace(b"z", b"a"),
        400,
        "invalid_request",
    ),
    "cut.zip": (GOOD_ZIP[:60], 422, "invalid_archive"),
    "no.zip": (b"this is no zip archive" * 100, 422, "invalid_archive"),
    "flipped.zip": (GOOD_ZIP[:40] + b"\xff\xff" + GOOD_ZIP[42:], 422, "invalid_archive"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_are_broken_or_hostile_are_refused_whole(service, name: str) -> None:
    data, status, code = ARCHIVES[name]
    problem = service.json("PUT", f"/v1/uploads/archive-{name}?unpack=true", data, status)
    assert problem["code"] == code, problem


def test_a_zip_bomb_is_stopped_while_it_unpacks(service: Service) -> None:
    bomb = zip_with(("bomb", bytes(300 << 20)))
    assert len(bomb) < 400_000
    problem = service.json("PUT", "/v1/uploads/bomb.zip?unpack=true", bomb, 413)
    assert problem["code"] == "too_large"


PARTIAL = {
    "range": {"Content-Range": "bytes 100-199/200"},
    "range of unknown size": {"Content-Range": "bytes 0-99/*"},
    "resumed": {"Upload-Offset": "100"},
    "to be resumed": {"Upload-Complete": "?0"},
}
ENCODED = {
    "gzip": {"Content-Encoding": "gzip"},
    "gzip by transfer": {"Transfer-Encoding": "gzip, chunked"},
    "twice": {"Content-Encoding": "identity, br"},
    "S3's chunks": {"Content-Encoding": "aws-chunked"},
    "S3's signed chunks": {"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"},
    "S3's chunks with a trailer": {"x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"},
    "S3's length": {"x-amz-decoded-content-length": "10"},
    "mail": {"Content-Transfer-Encoding": "base64"},
    "form": {"Content-Type": "multipart/form-data; boundary=x"},
    "curl --data-binary": {"Content-Type": "application/x-www-form-urlencoded"},
    "ranges": {"Content-Type": "multipart/byteranges; boundary=x"},
}


@pytest.mark.parametrize("case", [*PARTIAL, *ENCODED])
def test_a_body_that_is_a_part_or_encoded_is_refused_and_nothing_is_stored(
    service: Service, case: str
) -> None:
    status, code = (400, "invalid_request") if case in PARTIAL else (415, "unsupported_media_type")
    headers = {**PARTIAL, **ENCODED}[case]
    body = iter([b"x" * 100]) if "Transfer-Encoding" in headers else b"x" * 100
    name = quote(f"partial {case}.tar", safe="")
    for query in ("", "?unpack=true"):
        answer = service.json("PUT", f"/v1/uploads/{name}{query}", body, status, headers=headers)
        assert answer["code"] == code, answer
        assert next(iter(headers)).lower() in answer["detail"].lower() or code != "invalid_request"
    assert service.json("GET", f"/v1/products?name={name}")["products"] == []
    session = service.json("POST", "/v1/uploads", {"name": f"session {case}"}, 201)
    path = f"/v1/uploads/{session['id']}/a"
    answer = service.json("PUT", path, body, status, headers=headers)
    assert answer["code"] == code, answer
    assert service.json("GET", f"/v1/uploads/{session['id']}")["files"] == []
    service.json("DELETE", f"/v1/uploads/{session['id']}", expect=204)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/products?limit=0",
        "/v1/products?limit=1001",
        "/v1/products?limit=x",
        "/v1/products?cursor=nonsense",
        "/v1/products?cursor=cDk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk",
        "/v1/products?mision=S1",
        "/v1/products?sensing_from=yesterday",
        "/v1/products?sensing_from=0000-01-01T00:00:00Z",
        "/v1/products?state=gone",
        "/v1/events?after=-1",
        "/v1/events?after=99999999999999999999",
    ],
)
def test_wrong_queries_are_told(service: Service, path: str) -> None:
    assert service.json("GET", path, expect=400)["code"] == "invalid_request"


def test_digest_headers_that_are_none_are_told(service: Service) -> None:
    for headers in (
        {"Repr-Digest": "sha-256=abc"},
        {"Repr-Digest": "sha-256=:abc:"},
        {"Content-MD5": "!"},
        {"Content-MD5": "AAAA"},
        {"Repr-Digest": "md5=:" + "A" * 22 + "==:", "Content-MD5": "B" * 22 + "=="},
        {"Idempotency-Key": "x" * 300},
    ):
        answer = service.json("PUT", "/v1/uploads/x.bin", b"x", 400, headers=headers)
        assert answer["code"] == "invalid_request"


def raw(service: Service, data: bytes, wait: float = 30) -> bytes:
    with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as client:
        client.settimeout(wait)
        client.sendall(data)
        answer = b""
        try:
            while chunk := client.recv(65536):
                answer += chunk
        except TimeoutError:
            pass
        return answer


def test_a_body_of_a_terabyte_is_refused_before_it_comes(service: Service) -> None:
    head = f"PUT /v1/uploads/huge.bin HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.token()}\r\n"
    answer = raw(service, f"{head}Content-Length: 1000000000000\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 413"), answer[:200]
    assert b'"too_large"' in answer


@pytest.mark.parametrize(
    "request_text",
    [
        "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "NONSENSE\r\n\r\n",
        "GET / HTTP/1.1\r\n" + "X-A: b\r\n" * 500 + "\r\n",
        "GET /" + "a" * 9000 + " HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nX: " + "a" * 70_000,
        "\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    ],
)
def test_requests_that_break_http_are_refused_and_others_go_on(service, request_text: str) -> None:
    answer = raw(service, request_text.encode("latin-1"), wait=5)
    assert answer == b"" or answer.split(b" ")[1].startswith((b"4", b"5")), answer[:200]
    assert b"Traceback" not in answer
    assert service.json("GET", "/healthz/live", token=None)["status"] == "ok"


def test_thousands_of_idle_and_trickling_connections_leave_others_unaffected(make_service) -> None:
    service = make_service(server={"header_seconds": 4.0})
    service.start()
    port = int(service.url.rpartition(":")[2])
    clients = []
    for number in range(5000):
        client = socket.create_connection(("127.0.0.1", port))
        if number % 2:
            client.sendall(b"GET /healthz/live HT")
        clients.append(client)
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.5):
            for client in clients[1:400:2]:
                try:
                    client.sendall(b"x")
                except OSError:
                    pass

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        for number in range(20):
            assert service.json("PUT", f"/v1/uploads/beside-{number}", b"x" * 1000, 201)
        clients[1].settimeout(60)
        answer = clients[1].recv(1000)
        assert answer.startswith(b"HTTP/1.1 408") or answer == b""
        clients[0].settimeout(60)
        assert clients[0].recv(1000) == b""
    finally:
        stop.set()
        thread.join()
        for client in clients:
            client.close()
    assert service.json("GET", "/v1/storage")["products"] == 20


def test_a_body_that_stalls_is_given_up_and_nothing_is_stored(make_service) -> None:
    service = make_service(limits={"transfer_idle_seconds": 1.5})
    service.start()
    head = f"PUT /v1/uploads/slow.bin HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.token()}\r\n"
    answer = raw(service, f"{head}Content-Length: 1000\r\n\r\nabc".encode(), wait=60)
    assert answer.startswith(b"HTTP/1.1 408"), answer[:300]
    assert service.json("GET", "/v1/storage")["products"] == 0
    stored = [p for p in (service.directory / "store").rglob("*") if p.is_file()]
    assert not [path for path in stored if ".products/store/" not in path.as_posix()]


def test_more_transfers_than_threads_are_told_to_come_again(make_service) -> None:
    service = make_service(server={"threads": 6})
    service.start()
    port = int(service.url.rpartition(":")[2])
    head = f"HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.token()}\r\n"
    waiting = []
    for number in range(3):  # one of the class's own, and the two that all classes share
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(f"PUT /v1/uploads/w{number} {head}Content-Length: 10\r\n\r\nx".encode())
        waiting.append(client)
    temporary = service.directory / "store/.tmp"
    wait_until(lambda: len(list(temporary.iterdir())) == 3, 60, "the beginning of all three")
    answer = service.request("PUT", "/v1/uploads/fourth", b"x")
    assert (answer.status, json.loads(answer.data)["code"]) == (503, "busy")
    assert answer.headers["Retry-After"]
    assert service.json("GET", "/v1/storage")["products"] == 0
    for client in waiting:
        client.sendall(b"x" * 9)
        assert client.recv(100).startswith(b"HTTP/1.1 201")
        client.close()
    assert service.json("PUT", "/v1/uploads/fourth", b"x", 201)


@pytest.mark.parametrize("time", ["2031", "20311231", "-1", "1956528000"])
def test_a_number_is_no_time(service: Service, time: str) -> None:
    """It would be taken for seconds since 1970, and the product would be purged at once."""
    for method, path in (
        ("PUT", f"/v1/uploads/kept.nc?retention={time}"),
        ("GET", f"/v1/products?created_from={time}"),
    ):
        answer = service.json(method, path, b"x" if method == "PUT" else None, 400)
        assert "RFC 3339" in answer["detail"], answer


def test_a_line_break_in_a_files_name_is_refused_as_a_name(service) -> None:
    session = service.json("POST", "/v1/uploads", {"name": "broken-lines"}, 201)
    answer = service.request("PUT", f"/v1/uploads/{session['id']}/a%0Ab", b"x")
    assert (answer.status, json.loads(answer.data)["code"]) == (400, "invalid_key")
    assert service.request("DELETE", f"/v1/uploads/{session['id']}").status == 204


def test_a_number_of_thousands_of_digits_is_the_clients_mistake(service) -> None:
    body = b'{"name": "x", "size": ' + b"9" * 5000 + b"}"
    sent = {"Content-Type": "application/json"}
    answer = service.request("POST", "/v1/products", body, headers=sent)
    assert (answer.status, json.loads(answer.data)["code"]) == (400, "invalid_request")


def test_no_header_moves_the_service_to_another_path(service) -> None:
    moved = {"SCRIPT_NAME": "/healthz", "PATH_INFO": "/v1/storage"}
    answer = service.request("GET", "/healthz/v1/storage", headers=moved)
    assert answer.status in (400, 404)


def test_invented_methods_make_no_label_each(service) -> None:
    for number in range(20):
        service.request(f"BREW{number}", "/v1/products", token=None)
    text = service.pool.request("GET", f"{service.metrics_url}/metrics").data.decode()
    assert "BREW" not in text
    assert 'method="other"' in text
