"""Sources that end early, stall, have another length or other bytes (faults F6, F7)."""

from __future__ import annotations

import hashlib
import http.server
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import Service

DATA = os.urandom(3_000_000)


class _Source(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        kind = self.path.rpartition("/")[2].partition(".")[0]
        length = {"longer": len(DATA) + 10, "shorter": len(DATA) - 10}.get(kind, len(DATA))
        self.send_response(404 if kind == "missing" else 500 if kind == "broken" else 200)
        if kind == "encoded":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()
        body = DATA
        if kind == "flipped":
            body = DATA[:1000] + bytes([DATA[1000] ^ 1]) + DATA[1001:]
        if kind in ("short", "stalled"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if kind == "stalled":
                time.sleep(8)
            return
        self.wfile.write(body[:length])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An https server on loopback with a certificate of its own."""
    directory = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2"
    command += " -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run(command.split(), cwd=directory, check=True, capture_output=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Source)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}", directory / "cert.pem"
    server.shutdown()
    server.server_close()


@pytest.fixture
def service(make_service, web) -> Service:
    origin, certificate = web
    made = make_service(
        sources={
            "origins": [origin],
            "private_networks": ["127.0.0.0/8", "::1/128"],
            "ca_file": certificate,
            "timeout": 2.0,
            "attempts": 2,
        }
    )
    made.start()
    return made


def test_a_good_web_source_is_ingested(service: Service, web) -> None:
    body = {"source": f"{web[0]}/data/good.nc", "sha256": hashlib.sha256(DATA).hexdigest()}
    product = service.json("POST", "/v1/products", body, 201)
    assert (product["name"], product["size"]) == ("good.nc", len(DATA))
    assert service.request("GET", product["files"][0]["href"]).data == DATA


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("short", 502, "source_unavailable"),
        ("stalled", 502, "source_unavailable"),
        ("longer", 502, "source_unavailable"),
        ("shorter", 422, "digest_mismatch"),
        ("flipped", 422, "digest_mismatch"),
        ("missing", 422, "source_not_found"),
        ("broken", 502, "source_unavailable"),
        ("encoded", 502, "source_unavailable"),
    ],
)
def test_a_bad_web_source_is_never_committed(service, web, kind, status, code) -> None:
    body = {"source": f"{web[0]}/data/{kind}.nc", "sha256": hashlib.sha256(DATA).hexdigest()}
    problem = service.json("POST", "/v1/products", body, status)
    assert problem["code"] == code
    assert service.json("GET", "/v1/products")["products"] == []
    assert "0 findings" in service.cli("reconcile").stdout
    stored = [path for path in (service.directory / "store").rglob("*") if path.is_file()]
    assert not [path for path in stored if ".products/store/" not in path.as_posix()]


def test_a_certificate_of_another_name_is_refused(service: Service, web) -> None:
    origin = web[0].replace("localhost", "127.0.0.1")
    text = service.settings_file.read_text().replace(web[0], origin)
    service.stop()
    service.settings_file.write_text(text)
    service.start()
    problem = service.json("POST", "/v1/products", {"source": f"{origin}/data/good.nc"}, 502)
    assert problem["code"] == "source_unavailable"


def test_a_file_that_changes_its_length_while_it_is_read_is_refused(service: Service) -> None:
    path = service.directory / "inbox/growing.nc"
    path.write_bytes(b"x" * 1000)
    problem = service.json("POST", "/v1/products", {"source": path.as_uri(), "size": 999}, 422)
    assert problem["code"] == "size_mismatch"
    listed = {"name": "p", "files": [{"path": "a", "source": path.as_uri(), "size": 1001}]}
    assert service.json("POST", "/v1/products", listed, 422)["code"] == "size_mismatch"


def test_flipped_bytes_of_a_bucket_source_are_refused(make_service, s3_server) -> None:
    backend = s3_server.backend()
    service = make_service(sources={"s3": [{"backend": backend, "prefixes": ["in"]}]})
    service.start()
    client = s3_server.client()
    client.put_object(Bucket=backend["bucket"], Key="in/good.nc", Body=DATA)
    client.put_object(Bucket=backend["bucket"], Key="elsewhere/x.nc", Body=DATA)
    uri = f"s3://{backend['bucket']}/in/good.nc"
    wrong = {"source": uri, "sha256": hashlib.sha256(DATA + b"x").hexdigest()}
    assert service.json("POST", "/v1/products", wrong, 422)["code"] == "digest_mismatch"
    outside = {"source": f"s3://{backend['bucket']}/elsewhere/x.nc"}
    assert service.json("POST", "/v1/products", outside, 403)["code"] == "source_denied"
    assert service.json("POST", "/v1/products", {"source": uri}, 201)["size"] == len(DATA)
    tree = {"source": f"s3://{backend['bucket']}/in", "name": "tree"}
    assert service.json("POST", "/v1/products", tree, 201)["files"][0]["path"] == "good.nc"
