"""Web servers that are busy, break off, change, encode, or name their files in their own way."""

from __future__ import annotations

import email.utils
import hashlib
import io
import os
import socket
import ssl
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from admin_api.errors import InvalidRequest, SizeMismatch, SourceNotFound, SourceUnavailable
from admin_api.services.ingest import Order, Reference, ingest
from admin_api.services.sources import Sources
from admin_api.services.wishes import Expected, Wish
from admin_api.settings import LimitSettings, SourceSettings
from tests.conftest import make_facility
from tests.support.servers import free_port, wait_until
from tests.support.web_source import File, WebSource, web_source

DATA = os.urandom(5_000_000)
ETAG = {"ETag": '"one"'}
OLD = {"Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"}


@pytest.fixture
def web():
    with web_source() as source:
        yield source


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr("admin_api.services.sources.web.sleep", waited.append, raising=False)
    return waited


def sources(web: WebSource, **settings) -> Sources:
    networks = {"origins": [web.url], "private_networks": ["127.0.0.0/8"]}
    return Sources(SourceSettings(**{**networks, **settings}), LimitSettings())


def read(web: WebSource, path: str, **settings) -> bytes:
    return b"".join(sources(web, **settings).find(web.url + path).files[0].open())


def facility_for(web: WebSource, directory: Path, **settings):
    networks = {"origins": [web.url], "private_networks": ["127.0.0.0/8"]}
    backend = {"type": "posix", "root": directory / "store"}
    # Room for all that a source allows: what is tried is what the source is asked.
    limits = {"payload_memory_bytes": 256 << 20}
    return make_facility(directory, backend, sources={**networks, **settings}, limits=limits)


def listed(web: WebSource, count: int, name: str = "p") -> tuple[Wish, Order]:
    for number in range(count):
        web.files[f"/{name}/{number}"] = File(b"%d" % number)
    references = [
        Reference(f"{number}.nc", f"{web.url}/{name}/{number}", Expected())
        for number in range(count)
    ]
    return Wish(name=name), Order(references=references)


# -- how many at once --------------------------------------------------------------------------
def test_three_hundred_listed_files_take_four_connections_each_used_again(
    web, tmp_path, operator
) -> None:
    web.limit, web.refusal = 4, (429, {"Retry-After": "1"})
    facility = facility_for(web, tmp_path)
    wish, order = listed(web, 300)
    web.gather(4)
    outcome = ingest(facility, operator, wish, order)
    assert (outcome.product.file_count, web.peak, web.refused) == (300, 4, 0)
    assert len(web.asked) == 300


def test_ingests_at_the_same_time_share_the_connections_of_a_server(
    web, tmp_path, operator
) -> None:
    facility = facility_for(web, tmp_path, connections_per_origin=3)
    orders = [listed(web, 30, name) for name in ("a", "b", "c")]
    web.gather(3)
    with ThreadPoolExecutor(3) as pool:
        for outcome in pool.map(lambda item: ingest(facility, operator, *item), orders):
            assert outcome.product.file_count == 30
    assert web.peak == 3


def test_a_server_that_takes_fewer_connections_than_the_setting_is_not_given_up(
    web, tmp_path, operator, waits
) -> None:
    web.limit = 1
    # Nobody really waits here, so there are more tries instead.
    facility = facility_for(web, tmp_path, attempts=20)
    outcome = ingest(facility, operator, *listed(web, 60))
    assert (outcome.product.file_count, web.peak) == (60, 1)


def test_a_refused_connection_is_not_tried_again_while_one_that_was_taken_lies_idle(
    web, waits
) -> None:
    web.limit = 1
    web.files["/a.nc"] = web.files["/b.nc"] = File(b"data")
    taken = sources(web).find(f"{web.url}/a.nc").files[0]
    web.refusing.clear()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(read, web, "/b.nc")
        wait_until(lambda: web.refused, 60, "the second connection")
        assert b"".join(taken.open()) == b"data"
        web.refusing.set()
        assert other.result() == b"data"
    assert (web.refused, len(waits)) == (1, 1)


def test_an_answer_that_nobody_reads_gives_its_connection_back(web) -> None:
    web.files["/a.nc"] = File(DATA)
    for _ in range(10):  # more often than there are connections
        assert sources(web).find(f"{web.url}/a.nc").files[0].size == len(DATA)
    assert read(web, "/a.nc") == DATA


def test_an_ingest_that_ends_before_it_reads_gives_its_connection_back(
    web, tmp_path, operator
) -> None:
    web.files["/a.nc"] = File(DATA)
    facility = facility_for(web, tmp_path, connections_per_origin=1)
    wrong = Expected(size=7)
    listed = [Reference(name, f"{web.url}/a.nc", wrong) for name in ("a", "b")]
    orders = [Order(source=f"{web.url}/a.nc", unpack=True), Order(references=listed)] * 2
    kept = []  # an error keeps what it went through alive, readers too
    for number, order in enumerate(orders):
        with pytest.raises((InvalidRequest, SizeMismatch)) as caught:
            ingest(facility, operator, Wish(name=str(number)), order)
        kept.append(caught.value)
    assert len(web.asked) >= len(orders)


def test_a_server_that_takes_no_connections_at_one_address_is_asked_at_the_next(
    web, waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["/a.nc"] = File(DATA)
    port = int(web.url.rpartition(":")[2])
    two = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
        for address in ("127.0.0.2", "127.0.0.1")
    ]
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **rest: two if host == "two.test" else real(host, *more, **rest),
    )
    web.url = f"http://two.test:{port}"
    assert read(web, "/a.nc") == DATA
    assert waits == []


# -- busy --------------------------------------------------------------------------------------
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_waited_for_with_some_jitter(web, waits, status, as_date) -> None:
    asked = email.utils.formatdate(time.time() + 31, usegmt=True) if as_date else "30"
    web.files["/a.nc"] = File(DATA, refusals=[(status, {"Retry-After": asked})] * 2)
    assert read(web, "/a.nc") == DATA
    assert len(waits) == 2
    assert all(29 <= wait <= 33 for wait in waits)
    assert as_date or waits[0] != waits[1]


def test_a_busy_server_without_retry_after_is_asked_less_and_less_and_then_given_up(
    web, waits
) -> None:
    web.files["/a.nc"] = File(DATA, refusals=[(503, {})] * 100)
    with pytest.raises(SourceUnavailable, match=r"answered 503 Service Unavailable \(5 tries\)"):
        read(web, "/a.nc")
    assert len(web.asked) == 5
    assert [int(wait * 2) for wait in (waits[0], waits[2])] == [1, 4]


def test_a_server_that_asks_for_too_long_a_wait_is_told_of_and_not_asked_again(web, waits) -> None:
    web.files["/a.nc"] = File(DATA, refusals=[(503, {"Retry-After": "86400"})] * 100)
    with pytest.raises(SourceUnavailable, match="come back in 86400 s"):
        read(web, "/a.nc")
    assert (len(web.asked), waits) == (1, [])


# -- broken off --------------------------------------------------------------------------------
@pytest.mark.parametrize("validator", [ETAG, OLD])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("breaks", [1, 3])
def test_a_body_that_breaks_off_is_gone_on_with_where_it_stopped(
    web, waits, validator, chunked, breaks
) -> None:
    web.files["/a.nc"] = File(DATA, headers=validator, breaks=breaks, chunked=chunked)
    assert read(web, "/a.nc") == DATA
    again = web.asked[1:]
    assert len(again) == breaks
    assert all(item.headers["If-Range"] in validator.values() for item in again)
    # What was had before is not asked for again.
    assert int(web.ranges_asked()[0].strip("bytes=-")) >= 1_000_000


def test_a_body_that_stalls_is_gone_on_with(web, waits) -> None:
    web.files["/a.nc"] = File(DATA, headers=ETAG, breaks=1, stalls=True, share=0.5)
    assert read(web, "/a.nc", timeout=2) == DATA


def test_a_server_without_ranges_sends_the_same_file_again_and_no_byte_comes_twice(
    web, waits
) -> None:
    web.files["/a.nc"] = File(DATA, headers=ETAG, breaks=2, ranges=False)
    assert read(web, "/a.nc") == DATA


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    ("before", "after"),
    [(ETAG, {"ETag": '"two"'}), (OLD, {"Last-Modified": "Thu, 02 Jan 2020 00:00:00 GMT"})],
)
def test_a_file_that_changes_between_two_answers_is_never_mixed(
    web, waits, ranges, before, after
) -> None:
    other = File(os.urandom(len(DATA)), headers=after, ranges=ranges)
    web.files["/a.nc"] = File(DATA, headers=before, breaks=1, ranges=ranges, then=other)
    with pytest.raises(SourceUnavailable, match="changed while it was read"):
        read(web, "/a.nc")


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}])
def test_without_a_strong_validator_the_message_says_where_and_why_it_ended(
    web, waits, headers
) -> None:
    web.files["/a.nc"] = File(DATA, headers=headers, breaks=1)
    cause = r"closed the connection after \d+ of 5000000 bytes.*ETag nor a Last-Modified"
    with pytest.raises(SourceUnavailable, match=cause):
        read(web, "/a.nc")


def test_a_body_that_always_breaks_off_ends_the_ingest(web, waits) -> None:
    web.files["/a.nc"] = File(DATA[:3000], headers=ETAG, breaks=10**9, share=0.0)
    with pytest.raises(SourceUnavailable, match="closed the connection after 0 of 3000 bytes"):
        read(web, "/a.nc")
    assert len(web.asked) == 5


def test_a_range_of_another_place_is_not_taken(web, waits) -> None:
    web.files["/a.nc"] = File(DATA, headers=ETAG, breaks=1)
    web.files["/a.nc"].then = File(DATA, headers={**ETAG, "Content-Range": "bytes 0-9/10"})
    with pytest.raises(SourceUnavailable, match="another range"):
        read(web, "/a.nc")


def test_a_body_without_any_length_is_taken_only_if_it_is_known_what_it_should_be(
    web, tmp_path, operator
) -> None:
    web.files["/a.nc"] = File(DATA, endless=True)
    facility = facility_for(web, tmp_path)
    with pytest.raises(InvalidRequest, match="must be stated"):
        ingest(facility, operator, Wish(name=""), Order(source=f"{web.url}/a.nc"))
    known = Expected(sha256=hashlib.sha256(DATA).hexdigest())
    order = Order(source=f"{web.url}/a.nc", expected=known)
    assert ingest(facility, operator, Wish(name=""), order).product.size == len(DATA)


# -- read from anywhere --------------------------------------------------------------------------
def test_a_server_with_ranges_is_read_from_anywhere_and_broken_pieces_come_again(
    web, waits
) -> None:
    web.files["/a.zip"] = File(DATA, headers=ETAG)
    file = sources(web).find(f"{web.url}/a.zip").files[0]
    web.files["/a.zip"].breaks = 1
    assert file.read_at is not None
    assert b"".join(file.read_at(100, 4_900_000)) == DATA[100:4_900_000]
    web.files["/a.zip"].headers = {"ETag": '"two"'}
    with pytest.raises(SourceUnavailable, match="changed while it was read"):
        list(file.read_at(0, 10))


@pytest.mark.parametrize(("headers", "ranges"), [({}, True), (ETAG, False)])
def test_a_server_without_ranges_or_versions_is_read_from_the_beginning_only(
    web, headers, ranges
) -> None:
    web.files["/a.zip"] = File(DATA, headers=headers, ranges=ranges)
    assert sources(web).find(f"{web.url}/a.zip").files[0].read_at is None


# -- names and encodings -----------------------------------------------------------------------
def tar_of(name: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo(f"{name}/a.nc")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"data"))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("path", "disposition", "name"),
    [
        ("/Products(1)/$value", 'attachment; filename="X.SAFE"', "X.SAFE"),
        ("/Products(1)/$value", "attachment; filename=X.SAFE", "X.SAFE"),
        ("/get?id=1", "attachment; filename=\"no\"; filename*=UTF-8''X%C3%A9.nc", "Xé.nc"),
        ("/get.php?id=1", 'inline; FileName="a \\"b\\".nc"', 'a "b".nc'),
        ("/download", 'attachment; filename="../../etc/X.nc"', "X.nc"),
        ("/download", 'attachment; filename="C:\\\\data\\\\X.nc"', "X.nc"),
        ("/download", 'attachment; filename=".."', "download"),
        ("/download", "attachment; filename*=UTF-8''%00", "download"),
        ("/download", "", "download"),
        ("/own.nc", 'attachment; filename="other.nc"', "own.nc"),
        ("/own.nc?X-Amz-Signature=s", "", "own.nc"),
    ],
)
def test_a_file_is_called_as_its_uri_ends_or_as_the_server_says(
    web, path, disposition, name
) -> None:
    headers = {"Content-Disposition": disposition} if disposition else {}
    web.files[path.partition("?")[0]] = File(b"data", headers=headers)
    assert sources(web).find(web.url + path).name == name


@pytest.mark.parametrize(
    ("disposition", "asked"),
    [("X.SAFE.tar", ""), ("X.SAFE.tar", "X.SAFE"), (None, "X.SAFE.tar")],
)
def test_an_archive_behind_value_is_unpacked_by_the_servers_or_the_callers_name(
    web, tmp_path, operator, disposition, asked
) -> None:
    said = {"Content-Disposition": f'attachment; filename="{disposition}"'} if disposition else {}
    web.files["/Products(1)/$value"] = File(tar_of("X.SAFE"), headers=said)
    order = Order(source=f"{web.url}/Products(1)/$value", unpack=True)
    outcome = ingest(facility_for(web, tmp_path), operator, Wish(name=asked), order)
    assert (outcome.product.name, outcome.files[0].path) == ("X.SAFE", "a.nc")
    assert len(web.asked) == 1


def test_an_archive_that_nobody_names_is_refused_with_what_to_do(web, tmp_path, operator) -> None:
    web.files["/$value"] = File(tar_of("X.SAFE"))
    order = Order(source=f"{web.url}/$value?token=canary", unpack=True)
    with pytest.raises(InvalidRequest, match=r"give the archive's name .*NAME\.zip") as caught:
        ingest(facility_for(web, tmp_path), operator, Wish(name="X.SAFE"), order)
    assert "canary" not in str(caught.value)


def test_identity_is_no_encoding_and_others_are_refused_by_name(web) -> None:
    web.files["/a.nc"] = File(DATA, headers={"Content-Encoding": "identity"})
    assert read(web, "/a.nc") == DATA
    web.files["/a.nc"] = File(DATA, headers={"Content-Encoding": "gzip"})
    with pytest.raises(SourceUnavailable, match="Content-Encoding 'gzip'"):
        read(web, "/a.nc")
    assert all(item.headers["Accept-Encoding"] == "identity" for item in web.asked)


# -- causes ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, SourceUnavailable, "answered 401 Unauthorized"),
        (403, SourceUnavailable, "answered 403 Forbidden"),
        (404, SourceNotFound, "answered 404 Not Found"),
        (500, SourceUnavailable, "answered 500 Internal Server Error"),
        (204, SourceUnavailable, "answered 204 No Content"),
    ],
)
def test_messages_name_the_answer_and_never_the_query(web, waits, status, kind, words) -> None:
    web.files["/a.nc"] = File(DATA, refusals=[(status, {})] * 9)
    with pytest.raises(kind, match=words) as caught:
        read(web, "/a.nc?token=canary#canary")
    assert "canary" not in str(caught.value)


def test_messages_name_what_a_redirect_led_to_and_not_its_signature(web, waits) -> None:
    location = {"Location": f"{web.url}/b.nc?X-Amz-Signature=canary"}
    web.files["/a.nc"] = File(DATA, refusals=[(302, location)])
    web.files["/b.nc"] = File(DATA, refusals=[(403, {})])
    with pytest.raises(SourceUnavailable, match=r"403 Forbidden \(redirected to 127") as caught:
        read(web, "/a.nc")
    assert "canary" not in str(caught.value)


def test_a_server_that_is_not_there_is_told_with_the_systems_words(waits) -> None:
    gone = WebSource()
    gone.url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(SourceUnavailable, match="cannot be reached: Connection refused"):
        read(gone, "/a.nc")


def certificate(directory: Path, host: str, days: int) -> ssl.SSLContext:
    """A server's side of TLS, with a certificate of its own that ends in so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=3))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    return context


@pytest.mark.parametrize(
    ("host", "days", "trusted", "words"),
    [
        ("localhost", 2, True, None),
        ("elsewhere.test", 2, True, "certificate verify failed: .*localhost"),
        ("localhost", -1, True, "certificate verify failed: certificate has expired"),
        ("localhost", 2, False, "certificate verify failed: self.signed certificate"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_said(
    tmp_path, waits, host, days, trusted, words
) -> None:
    context = certificate(tmp_path, host, days)

    def wrap(server) -> None:
        server.socket = context.wrap_socket(server.socket, server_side=True)

    with web_source(wrap) as web:
        web.url = web.url.replace("http://127.0.0.1", "https://localhost")
        web.files["/a.nc"] = File(DATA)
        own = {"ca_file": tmp_path / "cert.pem"} if trusted else {}
        settings = {"private_networks": ["127.0.0.0/8", "::1/128"], **own}
        if words is None:
            assert read(web, "/a.nc", **settings) == DATA
            return
        with pytest.raises(SourceUnavailable, match=words):
            read(web, "/a.nc", **settings)
        assert (web.asked, waits) == ([], [])
