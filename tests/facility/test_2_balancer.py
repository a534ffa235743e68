"""What the balancers let through: tokens, links, paths, verbs.  None of it reaches a Python process.

The second half is the list of what the proxies behind must not be relied on for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, unquote
from xml.etree import ElementTree

import pytest

from tests.support.local_facility import ADDRESSES, NODES, Facility, wait_until

SETTLED = 60  # the balancers' leeway


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def keys(facility: Facility, name: str) -> tuple[str, str]:
    kid, secret = facility.ssh("control", f"cat /etc/storage-manager/secrets/{name}.key").split()
    return kid, secret


@pytest.fixture(scope="module")
def token_key(facility: Facility) -> tuple[str, str]:
    return keys(facility, "tokens")


@pytest.fixture(scope="module")
def link_key(facility: Facility) -> tuple[str, str]:
    return keys(facility, "links")


@pytest.fixture(scope="module")
def stored(facility: Facility):
    """A product of some size, read once, so that it is cached."""
    data = os.urandom(3_000_001)
    product = facility.upload(f"balancer-{time.time_ns()}.bin", data)
    assert facility.read(facility.link(product)) == data
    yield product, data
    facility.remove(product)


def key_of(product: dict[str, Any]) -> str:
    return product["files"][0]["uri"].split("/", 3)[3]


def forge(
    key: tuple[str, str],
    claims: dict[str, Any] | None = None,
    header: dict[str, Any] | None = None,
    secret: str | None = None,
    digest: str = "sha256",
) -> str:
    now = int(time.time())
    payload: dict[str, Any] = {
        "iss": "storage-manager",
        "aud": "storage-manager",
        "sub": "ann",
        "iat": now,
        "exp": now + 300,
        "scope": "read ingest",
        **(claims or {}),
    }
    payload = {name: value for name, value in payload.items() if value is not None}
    head = {"alg": "HS256", "typ": "JWT", "kid": key[0], **(header or {})}
    head = {name: value for name, value in head.items() if value is not None}
    signed = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(payload).encode())}"
    mac = hmac.new((secret or key[1]).encode(), signed.encode(), digest).digest()
    return f"{signed}.{b64(mac)}"


def tampered(token: str) -> str:
    head, _, mac = token.split(".")
    claims = {"iss": "storage-manager", "aud": "storage-manager", "sub": "root"}
    claims |= {"exp": 9999999999, "scope": "read ingest admin"}
    return f"{head}.{b64(json.dumps(claims).encode())}.{mac}"


def unsigned(key: tuple[str, str], alg: str) -> str:
    return forge(key, header={"alg": alg}).rpartition(".")[0] + "."


FORGERIES: dict[str, Callable[[tuple[str, str]], str]] = {
    "expired": lambda key: forge(key, {"exp": int(time.time()) - SETTLED - 5}),
    "no expiry": lambda key: forge(key, {"exp": None}),
    "expiry as text": lambda key: forge(key, {"exp": "never"}),
    "expiry of 1e99": lambda key: forge(key, {"exp": 1e99}),
    "expiry of 2^63": lambda key: forge(key, {"exp": 2**63}),
    "negative expiry": lambda key: forge(key, {"exp": -1}),
    "expiry zero": lambda key: forge(key, {"exp": 0}),
    "expiry in milliseconds": lambda key: forge(key, {"exp": int(time.time() * 1000) + 10**6}),
    "not valid yet": lambda key: forge(key, {"nbf": int(time.time()) + 3600}),
    "another secret": lambda key: forge(key, secret="x" * 64),
    "an empty secret": lambda key: forge(key, secret="\0"),
    "the secret of another case": lambda key: forge(key, secret=key[1].upper()),
    "the secret in base64": lambda key: forge(
        key, secret=base64.b64encode(key[1].encode()).decode()
    ),
    "changed claims": lambda key: tampered(forge(key)),
    "alg none": lambda key: unsigned(key, "none"),
    "alg None": lambda key: unsigned(key, "None"),
    "alg NONE": lambda key: unsigned(key, "NONE"),
    "alg nOnE signed": lambda key: forge(key, header={"alg": "nOnE"}),
    "alg HS512": lambda key: forge(key, header={"alg": "HS512"}, digest="sha512"),
    "alg HS384": lambda key: forge(key, header={"alg": "HS384"}, digest="sha384"),
    "alg RS256 with the secret": lambda key: forge(key, header={"alg": "RS256"}),
    "alg ES256 with the secret": lambda key: forge(key, header={"alg": "ES256"}),
    "alg hs256": lambda key: forge(key, header={"alg": "hs256"}),
    "alg empty": lambda key: forge(key, header={"alg": ""}),
    "no alg": lambda key: forge(key, header={"alg": None}),
    "HS256 in name, no signature": lambda key: unsigned(key, "HS256"),
    "unknown kid": lambda key: forge(key, header={"kid": "k9"}),
    "no kid": lambda key: forge(key, header={"kid": None}),
    "empty kid": lambda key: forge(key, header={"kid": ""}),
    "kid as path": lambda key: forge(key, header={"kid": "../../etc/passwd"}),
    "kid as list": lambda key: forge(key, header={"kid": [key[0]]}),
    "kid with a newline": lambda key: forge(key, header={"kid": key[0] + "\nx"}),
    "kid of the stream key": lambda key: forge(key, header={"kid": "stream"}),
    "another audience": lambda key: forge(key, {"aud": "other"}),
    "no audience": lambda key: forge(key, {"aud": None}),
    "another issuer": lambda key: forge(key, {"iss": "x"}),
    "no issuer": lambda key: forge(key, {"iss": None}),
    "no subject": lambda key: forge(key, {"sub": None}),
    "subject with CRLF": lambda key: forge(key, {"sub": "a\r\nX-Evil: 1"}),
    "subject as number": lambda key: forge(key, {"sub": 7}),
    "two parts": lambda key: forge(key).rpartition(".")[0],
    "four parts": lambda key: forge(key) + ".x",
    "garbage": lambda key: "abc.def.ghi",
    "blank": lambda key: "",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_token_is_refused_by_balancer_and_api(
    facility: Facility, token_key, stored, name: str
) -> None:
    token = FORGERIES[name](token_key)
    for path in (f"/api/v1/s3/{key_of(stored[0])}", f"/v1/products/{stored[0]['id']}"):
        answer = facility.request("GET", path, token=token)
        assert answer.status == 401, (path, answer.status, answer.data[:200])


def test_a_right_token_reads_a_product_through_every_balancer(
    facility: Facility, token_key, stored
) -> None:
    for node in NODES:
        answer = facility.request(
            "GET", f"/api/v1/s3/{key_of(stored[0])}", node=node, token=forge(token_key)
        )
        assert (answer.status, answer.data) == (200, stored[1])


MATRIX = [
    # method, path ({own}: the subject's incoming area, {key}: a product), scope, claims, status
    ("GET", "/api/v1/s3/{key}", "ingest", {}, 403),
    ("GET", "/api/v1/s3/{key}", "readonly", {}, 403),
    ("GET", "/api/v1/s3/{key}", "read", {"missions": ["S1"]}, 403),
    ("GET", "/api/v1/s3/{key}", "read", {"missions": []}, 403),
    ("GET", "/api/v1/s3/{key}?acl", "read", {}, 403),
    ("GET", "/api/v1/s3/{key}?uploads", "read ingest", {}, 403),
    ("PUT", "/api/v1/s3/{key}", "read ingest remove admin", {}, 403),
    ("DELETE", "/api/v1/s3/{key}", "read ingest remove admin", {}, 403),
    ("POST", "/api/v1/s3/{key}?uploads", "read ingest", {}, 403),
    ("PUT", "/api/v1/s3/newbucket", "read ingest admin", {}, 403),
    ("DELETE", "/api/v1/s3/unsorted", "read ingest admin", {}, 403),
    ("GET", "/api/v1/s3/.products/x", "read", {}, 404),
    ("GET", "/api/v1/s3/.alluxio_s3_api_metadata/uploads", "read", {}, 404),
    ("PUT", "/api/v1/s3/incoming/bob/x", "read ingest", {}, 403),
    ("GET", "/api/v1/s3/incoming/bob/x", "read ingest", {}, 403),
    ("PUT", "/api/v1/s3/incoming/x", "read ingest", {}, 403),
    ("PUT", "/api/v1/s3/incoming/annx/x", "read ingest", {}, 403),
    ("GET", "/api/v1/s3/incoming", "read ingest", {}, 403),
    ("PUT", "{own}x", "read", {}, 403),
    ("POST", "{own}x?delete", "read ingest", {}, 403),
    ("PATCH", "{own}x", "ingest", {}, 403),
    ("POST", "/api/v1/paths//unsorted/mount?src=/etc", "read ingest admin", {}, 403),
    ("POST", "/api/v1/paths//incoming/ann/mount?src=/etc", "read ingest admin", {}, 403),
    ("POST", "/api/v1/paths//incoming/ann/unmount", "read ingest admin", {}, 403),
    ("POST", "/api/v1/paths//incoming/ann/x/rename?dst=/unsorted/x", "read ingest", {}, 403),
    ("POST", "/api/v1/paths//incoming/ann/x/set-attribute", "read ingest", {}, 403),
    ("POST", "/api/v1/paths//unsorted/x/create-file", "read ingest admin", {}, 403),
    ("POST", "/api/v1/paths//incoming/bob/x/create-file", "read ingest", {}, 403),
    ("POST", "/api/v1/paths//unsorted/delete", "read ingest remove", {}, 403),
    ("POST", "/api/v1/paths//.products/list-status", "read", {}, 404),
    ("GET", "/api/v1/proxy/info", "read admin", {}, 404),
    ("GET", "/metrics/prometheus/", "read admin", {}, 404),
    ("GET", "/api/v1/master/info", "read admin", {}, 404),
    ("GET", "/api/v1/paths/unsorted/list-status", "read", {}, 404),
    ("GET", "/index.html", "read admin", {}, 404),
    ("POST", "/api/v1/streams/1/read", "read", {}, 409),
    ("POST", "/api/v1/streams/1x/read", "read", {}, 404),
]


@pytest.mark.parametrize(("method", "path", "scope", "claims", "status"), MATRIX)
def test_only_what_is_offered_is_done(
    facility: Facility, token_key, stored, method: str, path: str, scope: str, claims, status: int
) -> None:
    path = path.format(key=key_of(stored[0]), own="/api/v1/s3/incoming/ann/")
    token = forge(token_key, {"scope": scope, **claims})
    body = b"x" if method in ("PUT", "PATCH") else None
    answer = facility.request(method, path, token=token, body=body)
    assert answer.status == status, answer.data[:300]
    if path.startswith("/api/v1/s3/"):  # its clients read nothing else
        assert answer.headers["Content-Type"] == "application/xml"
        named = {403: "AccessDenied", 404: "NoSuchKey", 411: "MissingContentLength"}
        assert s3_code(answer.data) == named[status]
    else:
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert facility.read(facility.link(stored[0])) == stored[1]


@pytest.mark.parametrize("path", ["/proseo/storage-mgr/any/v1/info", "/actuator/health"])
def test_what_proseo_asks_is_answered_by_the_admin_api_through_every_balancer(
    facility: Facility, path: str
) -> None:
    """It is not switched on here, which the API says and no balancer."""
    for node in NODES:
        answer = facility.request("GET", path, node=node)
        assert answer.status in (401, 404), answer.data
        assert answer.headers["X-Request-Id"]


def test_a_browser_finds_the_front_page_and_the_api_page_at_every_balancer(
    facility: Facility,
) -> None:
    for node in NODES:
        answer = facility.request("GET", "/", node=node)
        assert answer.status == 200 and b"<h1>Storage manager</h1>" in answer.data
        page = facility.request("GET", "/openapi/swagger", node=node)
        assert page.status == 401 and "Basic" in page.headers["WWW-Authenticate"]


def s3_code(data: bytes) -> str | None:
    """The code of a refusal in S3's form."""
    return ElementTree.fromstring(data).findtext("Code")


def raw(facility: Facility, request: str, node: str = "node1") -> str:
    """A request that no client library would send; the answer's head."""
    context = ssl.create_default_context(cafile=str(facility.ca))
    with socket.create_connection((ADDRESSES[node], 8443), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname=ADDRESSES[node]) as connection:
            connection.sendall(request.encode("latin-1"))
            return connection.recv(4096).decode("latin-1").partition("\r\n\r\n")[0]


ESCAPES = [
    "/api/v1/s3/unsorted/../{bucket}",
    "/api/v1/s3/unsorted/x/../../{bucket}",
    "/api/v1/s3/unsorted/%2e%2e/{bucket}",
    "/api/v1/s3/unsorted/%2E./{bucket}",
    "/api/v1/s3/unsorted/..%2f{bucket}",
    "/api/v1/s3/unsorted%2f..%2f{bucket}",
    "/api/v1/s3/unsorted/..%5c{bucket}",
    "/api/v1/s3/unsorted/..\\{bucket}",
    "/api/v1/s3/unsorted/./{bucket}",
    "/api/v1/s3/unsorted/%2e/{bucket}",
    "/api/v1/s3/unsorted//{bucket}",
    "/api/v1/s3//unsorted/{bucket}",
    "/api/v1/s3/unsorted/x%00y",
    "/api/v1/s3/unsorted/qu%3fest",
    "/api/v1/s3/incoming/ann/../../{bucket}",
    "/api/v1/s3/incoming/ann/%2e%2e/%2e%2e/{bucket}",
    "/api/v1/paths//incoming/ann/../../{bucket}/get-status",
    "/api/v1/paths//incoming/ann/%2e%2e/x/get-status",
    "/api/v1/paths///incoming/ann/x/get-status",
    "/api/v1/s3/..",
    "/api/v1/s3/../paths//x/mount",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_no_spelling_of_a_path_leads_elsewhere(
    facility: Facility, token_key, stored, path: str
) -> None:
    target = path.format(bucket=key_of(stored[0]))
    head = raw(
        facility,
        f"GET {target} HTTP/1.1\r\nHost: {ADDRESSES['node1']}\r\n"
        f"Authorization: Bearer {forge(token_key)}\r\nConnection: close\r\n\r\n",
    )
    status = int(head.split()[1])
    assert status in (400, 404), head


def test_a_name_with_a_percent_sign_is_no_way_out(facility: Facility, token_key) -> None:
    """Decoded once it is an odd name, decoded twice it would be a path."""
    head = raw(
        facility,
        "GET /api/v1/s3/unsorted/..%252f..%252fetc HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {forge(token_key)}\r\nConnection: close\r\n\r\n",
    )
    assert int(head.split()[1]) in (400, 404), head


# -- links ---------------------------------------------------------------------------------------
def sign(link_key: tuple[str, str], path: str, expires: int, method: str = "GET") -> str:
    kid, secret = link_key
    mac = hmac.new(
        secret.encode(), f"{method}\n{path}\n{expires}\n{kid}".encode(), hashlib.sha256
    ).hexdigest()
    return f"{path}?expires={expires}&kid={kid}&sig={mac}"


def test_a_link_reads_one_object_through_every_balancer(facility: Facility, stored) -> None:
    link = facility.link(stored[0])
    for node in NODES:
        answer = facility.request("GET", facility.through(link, node))
        assert (answer.status, answer.data) == (200, stored[1])
        head = facility.request("HEAD", facility.through(link, node))
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(stored[1])))


def test_a_link_is_served_by_the_node_it_names_whichever_balancer_is_asked(
    facility: Facility, stored
) -> None:
    link = facility.link(stored[0])
    named = link.split("/dl/")[1].split("/")[0]
    served = {
        facility.request("HEAD", facility.through(link, node)).headers["X-Served-By"]
        for node in NODES
    }
    assert served == {named}


def test_links_that_were_not_given_out_are_refused(
    facility: Facility, token_key, link_key, stored
) -> None:
    link = facility.link(stored[0])
    path, _, query = link[link.index("/dl/") :].partition("?")
    now = int(time.time())
    foreign = sign(("u9", link_key[1]), path, now + 60)
    for attempt in (
        path,
        f"{path}?{query.replace('expires=', 'expires=9')}",
        f"{path}?{query.replace('expires=', 'expires=00')}",
        f"{path}x?{query}",
        f"{path.replace('/dl/node', '/dl/nodes')}?{query}",
        f"{path}?{query.rpartition('&')[0]}&sig=",
        f"{path}?{query.rpartition('&')[0]}&sig={'0' * 64}",
        sign(link_key, path, now - 1),
        sign(token_key, path, now + 60),
        sign((link_key[0], token_key[1]), path, now + 60),
        sign(link_key, path, now + 60, method="PUT"),
        foreign,
    ):
        answer = facility.request("GET", attempt)
        assert answer.status == 403, (attempt, answer.status)
    for method in ("PUT", "POST", "DELETE"):
        answer = facility.request(method, link, body=b"x")
        assert answer.status == 405, (method, answer.status)
    escaping = "/dl/node1/unsorted/../S1/x"
    head = raw(
        facility,
        f"GET {sign(link_key, escaping, now + 60)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    assert head.split()[1] == "400"


def test_nothing_added_to_a_link_changes_what_is_done(facility: Facility, stored) -> None:
    link = facility.link(stored[0])
    for extra in ("&acl", "&uploads", "&tagging", "&partNumber=1", "&expires=1"):
        answer = facility.request(
            "GET", link + extra, headers={"x-amz-copy-source": "/x/y", "Authorization": "Bearer z"}
        )
        assert (answer.status, answer.data) == (200, stored[1])


def test_a_link_of_the_longest_life_lasts_no_longer_than_a_quarter_of_an_hour(
    facility: Facility, stored
) -> None:
    expires = int(facility.link(stored[0]).split("expires=")[1].split("&")[0])
    assert expires - time.time() <= 900


# -- what the proxies do wrong -------------------------------------------------------------------
@pytest.mark.parametrize("span", ["3000001-", "3000001-3000005", "9999999-", "-0"])
def test_a_range_without_bytes_is_416_and_not_206_of_nothing(
    facility: Facility, stored, span: str
) -> None:
    answer = facility.request("GET", facility.link(stored[0]), headers={"Range": f"bytes={span}"})
    assert answer.status == 416, (answer.status, dict(answer.headers))
    assert answer.headers["Content-Range"] == "bytes */3000001"


@pytest.mark.parametrize(
    ("span", "start", "stop"),
    [("0-0", 0, 1), ("5-9", 5, 10), ("-7", 2_999_994, 3_000_001), ("2999990-", 2_999_990, None)],
)
def test_a_range_with_bytes_gives_just_them(
    facility: Facility, stored, span: str, start: int, stop: int | None
) -> None:
    answer = facility.request("GET", facility.link(stored[0]), headers={"Range": f"bytes={span}"})
    assert (answer.status, answer.data) == (206, stored[1][start:stop])


def test_an_interrupted_download_goes_on_where_it_stopped(
    facility: Facility, stored, tmp_path
) -> None:
    import subprocess

    target = tmp_path / "part"
    target.write_bytes(stored[1][:1_000_003])
    subprocess.run(
        ["curl", "-sSf", "--cacert", str(facility.ca), "-C", "-", "-o", str(target)]
        + [facility.link(stored[0])],
        check=True,
    )
    assert target.read_bytes() == stored[1]


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("If-None-Match", "{etag}", 304),
        ("If-None-Match", "W/{etag}", 304),
        ("If-None-Match", '"other", W/"another", {etag}', 304),
        ("If-None-Match", "*", 304),
        ("If-None-Match", '"other"', 200),
        ("If-Match", "{etag}", 200),
        ("If-Match", '"other", {etag}', 200),
        ("If-Match", "*", 200),
        ("If-Match", '"other"', 412),
        ("If-Match", "W/{etag}", 412),
        ("If-Modified-Since", "{date}", 304),
        ("If-Modified-Since", "Sat, 01 Jan 2000 00:00:00 GMT", 200),
        ("If-Range", "{etag}", 206),
        ("If-Range", "{date}", 206),
        ("If-Range", '"other"', 412),
        ("If-Range", "W/{etag}", 412),
    ],
)
def test_preconditions_are_those_of_rfc_9110(
    facility: Facility, stored, header: str, value: str, status: int
) -> None:
    link = facility.link(stored[0])
    head = facility.request("HEAD", link).headers
    assert head["ETag"].startswith('"')
    sent = {header: value.format(etag=head["ETag"], date=head["Last-Modified"])}
    if header == "If-Range":
        sent["Range"] = "bytes=0-9"
    answer = facility.request("GET", link, headers=sent)
    assert answer.status == status, answer.data[:300]
    if status == 304:
        assert answer.data == b"" and answer.headers["ETag"] == head["ETag"]
    if status == 206:
        assert answer.data == stored[1][:10]


def test_a_download_by_link_bears_the_name_of_its_file(facility: Facility) -> None:
    name = f'caf\u00e9 "{time.time_ns()}"; a=b.bin'
    product = facility.upload(name, b"named")
    said = facility.request("GET", facility.link(product)).headers["Content-Disposition"]
    assert said.startswith("attachment; filename*=UTF-8''")
    assert unquote(said.split("''")[1]) == name
    facility.remove(product)


@pytest.mark.parametrize("path", ["", "incoming", "incoming/", "incoming/ann/", "unsorted/"])
def test_a_directory_is_not_listed_as_an_object_and_the_answer_says_what_is(
    facility: Facility, token_key, path: str
) -> None:
    token = forge(token_key, {"sub": "ann"})
    answer = facility.request("GET", f"/api/v1/s3/{path}", token=token)
    assert answer.status == 403
    assert b"<Error>" in answer.data and b".products" not in answer.data
    if path == "incoming/ann/":
        assert b"list-status" in answer.data


def test_an_sdk_that_names_its_operation_is_served(facility: Facility, token_key, stored) -> None:
    token = forge(token_key, {"sub": "ann"})
    path = f"/api/v1/s3/{key_of(stored[0])}"
    answer = facility.request("GET", f"{path}?x-id=GetObject", token=token)
    assert (answer.status, answer.data) == (200, stored[1])
    answer = facility.request("GET", f"{path}?x-id=GetObjectAcl&acl", token=token)
    assert answer.status == 403


def test_a_write_that_depends_on_what_is_there_is_refused_and_writes_nothing(
    facility: Facility, token_key
) -> None:
    token = forge(token_key, {"sub": "ann", "scope": "read ingest"})
    path = f"/api/v1/s3/incoming/ann/cond-{time.time_ns()}"
    answer = facility.request("PUT", path, token=token, body=b"x", headers={"If-None-Match": "*"})
    assert answer.status == 501 and b"<Code>NotImplemented</Code>" in answer.data
    assert facility.request("HEAD", path, token=token).status == 404


def test_the_client_s_token_does_not_reach_the_proxies(
    facility: Facility, token_key, stored
) -> None:
    """Their log has every Authorization header; the balancers put a fixed one in its place."""
    token = forge(token_key, {"sub": "canary-subject"})
    assert facility.request("GET", f"/api/v1/s3/{key_of(stored[0])}", token=token).status == 200
    for node in NODES:
        log = facility.ssh(node, "journalctl --unit alluxio-proxy --no-pager --lines 2000")
        assert "Bearer" not in log
        assert "canary-subject" not in log


def test_a_client_cannot_call_itself_somebody_else(facility: Facility, token_key) -> None:
    """Without a token an Authorization that the proxies would believe is worth nothing."""
    header = "AWS4-HMAC-SHA256 Credential=alluxio/20260101/us-east-1/s3/aws4_request, "
    header += "SignedHeaders=host, Signature=0"
    answer = facility.request("GET", "/api/v1/s3/unsorted/x", headers={"Authorization": header})
    assert answer.status == 401


def test_objects_of_the_bucket_outside_the_warehouse_cannot_be_reached(
    facility: Facility, token_key
) -> None:
    token = forge(token_key)
    for path in ("facility/warehouse/x", "warehouse/x", "x"):
        answer = facility.request("GET", f"/api/v1/s3/{quote(path)}", token=token)
        assert answer.status in (400, 404), (path, answer.status)


# -- limits ----------------------------------------------------------------------------------------
def test_who_asks_too_often_is_told_when_to_ask_again_and_nobody_else_is(
    facility: Facility, stored, token_key
) -> None:
    path = f"/api/v1/s3/{key_of(stored[0])}"
    ask = {
        subject: {"Authorization": f"Bearer {forge(token_key, {'sub': subject})}"}
        for subject in ("greedy", "modest")
    }
    assert facility.request("HEAD", path, headers=ask["greedy"]).status == 200
    # As if it had sent that many within the ten seconds.
    facility.ssh(
        "node1",
        "echo 'set table subjects key greedy data.http_req_rate 30000'"
        " | socat - UNIX-CONNECT:/run/haproxy/admin.sock",
    )
    answer = facility.request("GET", path, headers=ask["greedy"])
    assert (answer.status, s3_code(answer.data)) == (429, "SlowDown")
    assert int(answer.headers["Retry-After"]) > 0
    assert facility.request("HEAD", path, headers=ask["modest"]).status == 200
    wait_until(
        lambda: facility.request("HEAD", path, headers=ask["greedy"]).status == 200, 30, "mercy"
    )


def test_uploads_that_say_nothing_keep_no_proxy_busy_and_are_limited_for_each_subject(
    facility: Facility, stored, token_key
) -> None:
    """More than a proxy takes at once; they say how long they are and send nothing."""
    context = ssl.create_default_context(cafile=str(facility.ca))
    token = forge(token_key, {"sub": "idle"})
    path = "/api/v1/s3/incoming/idle/one-more"
    head = (
        "PUT /api/v1/s3/incoming/idle/{} HTTP/1.1\r\nHost: node1\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: 10000000\r\n\r\n"
    )

    def silent_upload(number: int) -> ssl.SSLSocket:
        plain = socket.create_connection((ADDRESSES["node1"], 8443), timeout=20)
        connection = context.wrap_socket(plain, server_hostname=ADDRESSES["node1"])
        connection.sendall(head.format(number).encode())
        return connection

    silent: list[ssl.SSLSocket] = []
    try:
        # The balancer ends them after 10 s: on a busy machine the first may be gone by the last.
        for _ in range(5):
            begun = time.monotonic()
            with ThreadPoolExecutor(16) as threads:
                silent = list(threads.map(silent_upload, range(64)))
            answer = facility.request("PUT", path, token=token, body=b"1")
            if time.monotonic() - begun < 9:
                break
            for connection in silent:
                connection.close()
        assert answer.status == 429, answer.data
        assert s3_code(answer.data) == "SlowDown"
        assert facility.read(facility.through(facility.link(stored[0]), "node1")) == stored[1]
        stats = facility.ssh(
            "node1", "echo 'show stat' | socat - UNIX-CONNECT:/run/haproxy/admin.sock"
        )
        busy = [
            int(line.split(",")[4])
            for line in stats.splitlines()
            if line.split(",")[:2] in [["proxies_write", node] for node in NODES]
        ]
        assert len(busy) == len(NODES)
        assert sum(busy) < 5, busy
    finally:
        for connection in silent:
            connection.close()
    wait_until(
        lambda: facility.request("PUT", path, token=token, body=b"1").status == 200, 20, "room"
    )
    assert facility.request("DELETE", path, token=token).status in (200, 204)
