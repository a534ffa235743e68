"""The secrets in a source's URI are in nothing that a service answers, keeps or logs."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest

from tests.support.servers import Service
from tests.support.web_source import File, WebSource, web_source

CANARY = "canary-7c1f9e"


@pytest.fixture
def web() -> Iterator[WebSource]:
    with web_source() as source:
        yield source


def test_no_secret_of_a_source_uri_is_answered_kept_or_logged(make_service, web) -> None:
    signed = {"Location": f"{web.url}/signed.nc?X-Amz-Signature={CANARY}"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("T/a.nc"), io.BytesIO())
    web.files = {
        **{f"/{name}.nc": File(b"data") for name in ("plain", "signed", "one", "two")},
        "/T.tar": File(packed.getvalue()),
        "/short.nc": File(b"data" * 100, breaks=9),
        "/led.nc": File(b"", refusals=[(302, signed)] * 9),
        "/lost.nc": File(b"", refusals=[(302, {"Location": f"/gone?token={CANARY}"})] * 9),
        "/away.nc": File(b"", refusals=[(302, {"Location": f"https://u:{CANARY}@x/?{CANARY}"})]),
        "/odd.nc": File(b"", refusals=[(302, {"Location": f"http://[{CANARY}/?{CANARY}"})]),
        "/error.nc": File(b"", refusals=[(500, {})] * 9),
        "/denied.nc": File(b"", refusals=[(403, {})] * 9),
    }
    service: Service = make_service(
        sources={"origins": [web.url], "private_networks": ["127.0.0.0/8"], "attempts": 1},
        server={"log_level": "DEBUG"},
    )
    service.start()
    secret = f"X-Amz-Credential=me&X-Amz-Signature={CANARY}&token={CANARY}#access_token={CANARY}"
    host = web.url.removeprefix("http://")
    listed = [{"path": name, "source": f"{web.url}/{name}.nc?{secret}"} for name in ("one", "two")]
    bodies: list[tuple[int, dict]] = [
        (201, {"source": f"{web.url}/plain.nc?{secret}"}),
        (200, {"source": f"{web.url}/plain.nc?{secret}"}),
        (409, {"source": f"{web.url}/plain.nc?{secret}", "duplicates": "error"}),
        (201, {"source": f"{web.url}/led.nc?{secret}"}),
        (201, {"source": f"{web.url}/T.tar?{secret}", "unpack": True}),
        (400, {"source": f"{web.url}/plain.nc?{secret}", "unpack": True}),
        (201, {"name": "listed", "files": listed}),
        (422, {"source": f"{web.url}/missing.nc?{secret}"}),
        (422, {"source": f"{web.url}/lost.nc?{secret}"}),
        (403, {"source": f"{web.url}/away.nc?{secret}"}),
        (403, {"source": f"{web.url}/odd.nc?{secret}"}),
        (502, {"source": f"{web.url}/error.nc?{secret}"}),
        (502, {"source": f"{web.url}/denied.nc?{secret}"}),
        (502, {"source": f"{web.url}/short.nc?{secret}"}),
        (403, {"source": f"http://me:{CANARY}@{host}/plain.nc?{secret}"}),
        (403, {"source": f"http://me:{CANARY}/x@{host}/plain.nc?{secret}"}),
        (403, {"source": f"https://elsewhere.test/x?{secret}"}),
        (403, {"source": f"ftp://me:{CANARY}@{host}/x?{secret}"}),
        (403, {"source": f"file:///etc/passwd?{secret}"}),
        (403, {"source": f"s3://bucket/key?{secret}"}),
        (403, {"source": f"alluxio:///incoming/x?{secret}", "size": 1, "md5": "0" * 32}),
        (400, {"source": f"alluxio:///incoming/x?{secret}"}),
        (400, {"source": f"http://[me:{CANARY}@{host}/x?{secret}"}),
        (403, {"source": f"{web.url}/plain.nc?{secret}", "mode": "register"}),
        (400, {"source": [f"{web.url}/plain.nc?{secret}"]}),
        (400, {"source": f"{web.url}/plain.nc?{secret}\n"}),
        (400, {"source": f"{web.url}/plain.nc?{secret}", "name": "a/b", "size": -1}),
    ]
    answers = []
    for number, (status, body) in enumerate(bodies):
        answer = service.request(
            "POST", "/v1/products", body, headers={"Idempotency-Key": f"key-{number}"}
        )
        assert answer.status == status, (body, answer.status, answer.data)
        answers.append(answer.data + str(answer.headers).encode())
    asked = " ".join(item.path for item in web.asked)
    assert CANARY in asked  # the source was given its secret
    products = service.json("GET", "/v1/products")["products"]
    assert {item["source"] for item in products} == {
        f"{web.url}/plain.nc", f"{web.url}/led.nc", f"{web.url}/T.tar", None
    }  # fmt: skip
    for path in ("/v1/products", "/v1/events?limit=1000", "/v1/storage"):
        answers.append(service.request("GET", path).data)
    answers.append(service.pool.request("GET", service.metrics_url + "/metrics").data)
    answers.append(service.cli("rebuild", check=False).stderr.encode())
    service.stop()
    assert not [answer for answer in answers if CANARY.encode() in answer]
    left = [path for path in service.directory.rglob("*") if path.is_file()]
    assert len(left) > 10
    assert not [path for path in left if CANARY.encode() in path.read_bytes()]
