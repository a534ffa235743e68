"""Faults F1 and F2: killed at every step, an operation leaves a whole product or none.

After each kill: what is visible is complete (I1, I3), housekeeping leaves no orphan (I7), doing it
again succeeds and then changes nothing (I4), the catalog can be rebuilt from the records alone
(I2), the event log is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.campaign import ending
from tests.campaign.site import site
from tests.support.servers import ROOT, Service, wait_until


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        ("posix-sqlite", "ingest"),
        pytest.param("posix-sqlite", "upload", marks=pytest.mark.drill),
        pytest.param("posix-sqlite", "replace", marks=pytest.mark.drill),
        pytest.param("posix-sqlite", "remove", marks=pytest.mark.drill),
        pytest.param("posix-sqlite", "import", marks=pytest.mark.drill),
        ("s3-postgresql", "import"),
        pytest.param("s3-sqlite", "ingest", marks=pytest.mark.drill),
        ("s3-postgresql", "upload"),
        ("s3-postgresql", "replace"),
        pytest.param("posix-postgresql", "remove", marks=pytest.mark.drill),
    ],
)
def test_killed_at_every_step_nothing_is_torn_lost_or_left(
    kind: str, operation: str, tmp_path: Path, request
) -> None:
    backend, catalog = "posix", "null"
    if kind.startswith("s3"):
        backend = json.dumps(request.getfixturevalue("s3_server").backend())
    if kind.endswith("postgresql"):
        server = request.getfixturevalue("database")
        catalog = json.dumps(
            {"url": server.url("{database}"), "password_file": str(server.password_file)}
        )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.faults.crashes"),
            *(str(tmp_path), backend, operation, catalog),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    print(f"{kind} {operation}: killed at each of {report['steps']} steps")
    assert report["steps"] >= 4


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        pytest.param("posix-sqlite", "replace", marks=pytest.mark.drill),
        ("posix-sqlite", "remove"),
        pytest.param("s3-postgresql", "replace", marks=pytest.mark.drill),
        pytest.param("s3-postgresql", "remove", marks=pytest.mark.drill),
    ],
)
def test_two_services_beside_a_process_killed_at_every_step_show_a_whole_product_or_none(
    kind: str, operation: str, tmp_path: Path, request
) -> None:
    backend, catalog = kind.split("-")
    s3 = request.getfixturevalue("s3_server") if backend == "s3" else None
    database = request.getfixturevalue("database") if catalog == "postgresql" else None
    steps = []
    with site(tmp_path, backend, catalog, s3, database) as made:
        made.revive()
        command = [sys.executable, "-m", "tests.faults.crashes", "beside"]
        command += [str(made.services[0].settings_file), str(made.inbox), operation]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            for line in process.stdout:
                assert line.startswith("{"), line + process.stdout.read()
                step = json.loads(line)
                steps.append(step)
                for service in made.services:
                    assert shown(service, step["name"]) in step["digests"], (len(steps), step)
                process.stdin.write("\n")
                process.stdin.flush()
        assert process.returncode == 0
        assert len(steps) >= 4
        print(f"{kind} {operation}: killed at each of {len(steps)} steps beside two services")
        assert list(ending.settle(made)) == []
        for number, step in enumerate(steps):
            found = [shown(service, step["name"]) for service in made.services]
            assert found[0] == found[1], (number, step)
            assert found[0] in step["digests"], (number, step)
            again(made.services[number % 2], made.inbox / f"step-{number + 1}", operation)
        after = [shown(made.services[0], step["name"]) for step in steps]
        assert after == [step["digests"][1] for step in steps]
        assert list(ending.settle(made)) == []
        assert list(ending.rebuild(made, 0, "")) == []


def shown(service: Service, name: str) -> str | None:
    """The digest of what a service gives out for a product of one file; None if it has none."""
    listed = service.json("GET", f"/v1/products?name={name}")["products"]
    assert len(listed) <= 1, listed
    if not listed:
        return None
    product = service.json("GET", f"/v1/products/{listed[0]['id']}")
    if product["state"] != "available":
        return None  # a housekeeper has gone on with its removal
    (file,) = product["files"]
    answer = service.request("GET", f"/v1/products/{product['id']}/files/{file['path']}")
    if answer.status == 307:
        answer = service.pool.request("GET", answer.headers["Location"])
    if answer.status in (404, 410):  # or with its replacement: then the other one is there
        return shown(service, name)
    digest = hashlib.sha256(answer.data).hexdigest()
    assert digest == file["sha256"], "not the bytes that are listed"
    return digest


def again(service: Service, directory: Path, operation: str) -> None:
    """What was killed is asked for again, as its client would."""
    (source,) = (directory / "inbox").iterdir()
    if operation == "remove":
        for item in service.json("GET", f"/v1/products?name={source.name}")["products"]:
            service.json("DELETE", f"/v1/products/{item['id']}?cause=test")
        return
    order = {"source": source.as_uri(), "duplicates": "replace", "verification": "manifest"}
    answer = service.request("POST", "/v1/products", order)
    assert answer.status in (200, 201), answer.data


@pytest.mark.parametrize("kind", ["posix", "s3"])
@pytest.mark.parametrize("megabytes", [3, 30])
def test_a_service_killed_during_an_upload_shows_nothing_and_takes_it_again(
    make_service, request, kind: str, megabytes: int
) -> None:
    backend = request.getfixturevalue("s3_server").backend() if kind == "s3" else None
    service = make_service(
        backend,
        housekeeping={"interval_seconds": 0.3, "grace_seconds": 5.0, "commit_grace_seconds": 1.0},
    )
    service.start()
    data = os.urandom(megabytes << 20)
    sending = threading.Event()

    def half():
        yield data[: len(data) // 2]
        sending.set()
        time.sleep(30)

    def send() -> None:
        try:
            service.request(
                "PUT",
                "/v1/uploads/killed.bin",
                half(),
                headers={"Content-Length": str(len(data)), "Idempotency-Key": "killed-upload"},
            )
        except Exception:
            pass  # what the client sees is a broken connection

    token = service.token()
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    assert sending.wait(60)
    time.sleep(0.5)
    service.stop(signal.SIGKILL)
    service.start()
    assert service.json("GET", "/v1/products", token=token)["products"] == []
    headers = {"Idempotency-Key": "killed-upload"}

    def again() -> bool:
        answer = service.request("PUT", "/v1/uploads/killed.bin", data, headers=headers)
        return answer.status == 201

    wait_until(again, 60, "the retry")
    wait_until(
        lambda: "0 findings" in service.cli("reconcile", check=False).stdout, 60, "no leftovers"
    )
    if kind == "s3":
        client = request.getfixturevalue("s3_server").client()
        wait_until(
            lambda: not client.list_multipart_uploads(Bucket=backend["bucket"]).get("Uploads"),
            60,
            "the end of every multipart upload",
        )
    else:
        temporary = service.directory / "store/.tmp"
        wait_until(lambda: not list(temporary.iterdir()), 60, "the end of every temporary file")


@pytest.mark.parametrize("kind", ["posix", "s3"])
def test_a_client_that_drops_half_way_leaves_nothing(make_service, request, kind: str) -> None:
    import socket

    backend = request.getfixturevalue("s3_server").backend() if kind == "s3" else None
    service = make_service(backend)
    service.start()
    port = int(service.url.rpartition(":")[2])
    for framing, body in (
        ("Content-Length: 30000000", os.urandom(20_000_000)),
        ("Transfer-Encoding: chunked", b"f4240\r\n" + os.urandom(1_000_000) + b"\r\n"),
    ):
        with socket.create_connection(("127.0.0.1", port)) as client:
            head = f"PUT /v1/uploads/drop.bin HTTP/1.1\r\nHost: x\r\n{framing}\r\n"
            client.sendall(f"{head}Authorization: Bearer {service.token()}\r\n\r\n".encode())
            client.sendall(body)
    wait_until(
        lambda: "broke off" in service.log() or "ended after" in service.log(), 60, "the refusal"
    )
    assert service.json("GET", "/v1/products")["products"] == []
    wait_until(
        lambda: "0 findings" in service.cli("reconcile", check=False).stdout, 60, "no leftovers"
    )
    assert service.json("PUT", "/v1/uploads/drop.bin", b"whole", 201)["size"] == 5
