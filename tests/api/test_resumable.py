"""Files in pieces: the service as clients of the tus protocol use it, tuspy among them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tusclient.client import TusClient

from tests.support.servers import Service, wait_until

PIECE = "application/offset+octet-stream"
MIB = 1 << 20


def metadata(**values: str) -> str:
    return ",".join(f"{k} {base64.b64encode(v.encode()).decode()}" for k, v in values.items())


def session(service: Service, **wishes: Any) -> tuple[str, str]:
    """The URL and the product's name of a new session."""
    name = f"resumable-{time.time_ns()}"
    made = service.json("POST", "/v1/uploads", {"name": name, **wishes}, expect=201)
    return f"/v1/uploads/{made['id']}", name


def tus(url: str) -> str:
    """Where the session, or a file of it, is sent in pieces."""
    return url.replace("/v1/uploads/", "/v1/tus/")


def announce(service: Service, base: str, path: str, size: int, **digests: str) -> Any:
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(size)}
    headers["Upload-Metadata"] = metadata(filename=path, **digests)
    return service.request("POST", tus(base), headers=headers)


def patch(service: Service, target: str, offset: int, data: bytes, **headers: str) -> Any:
    sent = {"Tus-Resumable": "1.0.0", "Content-Type": PIECE, "Upload-Offset": str(offset)}
    return service.request("PATCH", tus(target), data, headers=sent | headers)


def offset(service: Service, target: str) -> int:
    answer = service.request("HEAD", tus(target), headers={"Tus-Resumable": "1.0.0"})
    assert answer.status == 204, answer.status
    assert answer.headers["Cache-Control"] == "no-store"
    return int(answer.headers["Upload-Offset"])


def broken_patch(service: Service, target: str, data: bytes, announced: int) -> None:
    """A client that announces so many bytes, sends ``data``, and is gone."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = (
            f"PATCH {tus(target)} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {service.token()}\r\n"
            f"Tus-Resumable: 1.0.0\r\nContent-Type: {PIECE}\r\nUpload-Offset: 0\r\n"
            f"Content-Length: {announced}\r\n\r\n"
        )
        connection.sendall(head.encode() + data)
        time.sleep(0.5)


def content(service: Service, product: dict[str, Any], path: str) -> bytes:
    [item] = [item for item in product["files"] if item["path"] == path]
    answer = service.request("GET", item["href"])
    if answer.status == 307:
        answer = service.pool.request("GET", answer.headers["Location"])
    return bytes(answer.data)


def test_the_public_client_goes_on_where_it_broke_off_and_the_file_is_whole(
    service: Service, tmp_path: Path
) -> None:
    data = os.urandom(20 * MIB + 17)
    (tmp_path / "big.bin").write_bytes(data)
    base, _ = session(service)
    headers = {"Authorization": f"Bearer {service.token()}"}
    client = TusClient(service.url + tus(base), headers=headers)
    assert {"creation", "expiration", "termination"} <= set(
        service.request("OPTIONS", tus(base)).headers["Tus-Extension"].split(",")
    )
    digest = hashlib.sha256(data).hexdigest()
    first = client.uploader(
        str(tmp_path / "big.bin"),
        chunk_size=6 * MIB,
        metadata={"filename": "data/big.bin", "sha256": digest},
    )
    first.upload_chunk()
    assert first.url == f"{service.url}{tus(base)}/data/big.bin"
    assert offset(service, f"{base}/data/big.bin") == 6 * MIB
    again = client.uploader(str(tmp_path / "big.bin"), url=first.url, chunk_size=7 * MIB)
    assert again.offset == 6 * MIB
    again.upload()
    assert offset(service, f"{base}/data/big.bin") == len(data)
    product = service.json("POST", f"{base}/commit", expect=201)
    assert [item["sha256"] for item in product["files"]] == [digest]
    assert content(service, product, "data/big.bin") == data
    assert product["size"] == len(data)


def test_what_arrived_before_a_break_or_a_kill_is_not_sent_again(
    make_service: Callable[..., Service], s3_server: Any
) -> None:
    for backend in (None, s3_server.backend()):
        service = make_service(backend)
        service.start()
        data = os.urandom(9 * MIB)
        base, _ = session(service)
        target = f"{base}/f.bin"
        md5 = hashlib.md5(data).hexdigest()
        assert announce(service, base, "f.bin", len(data), md5=md5).status == 201
        broken_patch(service, target, data[: 5 * MIB], len(data))
        wait_until(lambda target=target: offset(service, target) > 0, 20, "what arrived")
        before = offset(service, target)
        assert before >= 4 * MIB  # all but what the last read had not ended
        service.stop(signal.SIGKILL)
        service.start()
        assert offset(service, target) == before
        assert patch(service, target, before, data[before:]).status == 204
        product = service.json("POST", f"{base}/commit", expect=201)
        assert content(service, product, "f.bin") == data
        service.stop()


def test_a_kill_while_a_piece_comes_leaves_nothing_in_the_way(
    make_service: Callable[..., Service],
) -> None:
    service = make_service(
        housekeeping={"grace_seconds": 2, "commit_grace_seconds": 2, "interval_seconds": 0.5}
    )
    service.start()
    data = os.urandom(6 * MIB)
    base, _ = session(service)
    target = f"{base}/f.bin"
    announce(service, base, "f.bin", len(data))
    sending = threading.Thread(target=broken_patch, args=(service, target, data[:MIB], len(data)))
    sending.start()
    time.sleep(0.3)
    service.stop(signal.SIGKILL)
    sending.join()
    service.start()
    assert offset(service, target) == 0
    # Until its claim is stale, the dead request might come back.
    wait_until(lambda: patch(service, target, 0, data).status == 204, 30, "the claim's end")
    product = service.json("POST", f"{base}/commit", expect=201)
    assert content(service, product, "f.bin") == data
    store = service.directory / "store"
    assert [path for path in store.rglob("*") if path.name.startswith(".piece")] == []


def test_only_one_of_two_sends_a_piece_and_a_wrong_place_is_told(service: Service) -> None:
    data = os.urandom(3 * MIB)
    base, _ = session(service)
    target = f"{base}/f.bin"
    announce(service, base, "f.bin", len(data))
    assert patch(service, target, 5, b"x").status == 409
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(patch(service, target, 0, data).status))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses.count(204) == 1, statuses
    assert set(statuses) <= {204, 409, 503}, statuses  # 503: too many at work at once
    # The answer may have got lost: the end, told again, is no error.
    assert patch(service, target, len(data), b"").status == 204
    problem = service.json("PUT", target, b"other", 409)
    assert problem["code"] == "already_exists"
    assert service.json("POST", f"{base}/commit", expect=201)["size"] == len(data)


def test_other_bytes_than_announced_are_refused_and_can_be_sent_anew(service: Service) -> None:
    data = os.urandom(MIB)
    base, _ = session(service)
    target = f"{base}/f.bin"
    wrong = hashlib.sha256(b"other").hexdigest()
    announce(service, base, "f.bin", len(data), sha256=wrong)
    answer = patch(service, target, 0, data)
    assert (answer.status, answer.json()["code"]) == (422, "digest_mismatch")
    assert service.request("HEAD", tus(target)).status == 404
    announce(service, base, "f.bin", len(data), sha256=hashlib.sha256(data).hexdigest())
    assert patch(service, target, 0, data + b"x").status == 422
    assert offset(service, target) == 0
    assert patch(service, target, 0, data).status == 204
    assert service.json("POST", f"{base}/commit", expect=201)["file_count"] == 1


def test_a_session_with_half_a_file_is_not_committed_until_it_is_whole_or_given_up(
    service: Service,
) -> None:
    base, _ = session(service)
    service.json("PUT", f"{base}/whole", b"whole", 201)
    announce(service, base, "half", 10)
    assert patch(service, f"{base}/half", 0, b"12345").status == 204
    problem = service.json("POST", f"{base}/commit", expect=409)
    assert "5 of 10" in problem["detail"]
    assert service.json("PUT", f"{base}/half", b"x", 409)["code"] == "in_progress"
    assert announce(service, base, "half", 10).status == 409
    assert announce(service, base, "half/below", 10).status == 400
    assert service.request("DELETE", tus(f"{base}/half")).status == 204
    assert service.request("DELETE", tus(f"{base}/half")).status == 404
    assert announce(service, base, "empty", 0).status == 201
    product = service.json("POST", f"{base}/commit", expect=201)
    assert {item["path"]: item["size"] for item in product["files"]} == {"whole": 5, "empty": 0}


def test_what_was_sent_of_an_aborted_or_expired_session_is_removed(
    make_service: Callable[..., Service],
) -> None:
    service = make_service(housekeeping={"upload_seconds": 3, "interval_seconds": 0.5})
    service.start()

    def pieces() -> list[Path]:
        store = service.directory / "store"
        return [path for path in store.rglob("*") if path.name.startswith(".piece")]

    for end in ("abort", "expire"):
        base, _ = session(service)
        announce(service, base, "f", 10)
        assert patch(service, f"{base}/f", 0, b"12345").status == 204
        assert len(pieces()) == 1
        if end == "abort":
            assert service.request("DELETE", base).status == 204
        wait_until(lambda: not pieces(), 20, f"the piece to go ({end})")


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {}, 400),
        ("POST", {"Upload-Length": "-1", "Upload-Metadata": metadata(filename="f")}, 400),
        ("POST", {"Upload-Length": "1e3", "Upload-Metadata": metadata(filename="f")}, 400),
        ("POST", {"Upload-Length": "9" * 18, "Upload-Metadata": metadata(filename="f")}, 413),
        ("POST", {"Upload-Length": "9" * 19, "Upload-Metadata": metadata(filename="f")}, 400),
        ("POST", {"Upload-Length": "3"}, 400),
        ("POST", {"Upload-Length": "3", "Upload-Metadata": "filename !!!"}, 400),
        ("POST", {"Upload-Length": "3", "Upload-Metadata": "filename /w=="}, 400),
        ("POST", {"Upload-Length": "3", "Upload-Metadata": metadata(filename="../f")}, 400),
        ("POST", {"Upload-Length": "3", "Upload-Metadata": metadata(filename="f", md5="x")}, 400),
        ("POST", {"Upload-Length": "3", "Tus-Resumable": "0.2.2"}, 412),
        ("PATCH", {"Content-Type": PIECE}, 400),
        ("PATCH", {"Content-Type": PIECE, "Upload-Offset": "-1"}, 400),
        ("PATCH", {"Content-Type": PIECE, "Upload-Offset": "10"}, 409),
        ("PATCH", {"Content-Type": "text/plain", "Upload-Offset": "0"}, 415),
        ("PATCH", {"Content-Type": PIECE, "Upload-Offset": "0", "Content-Encoding": "gzip"}, 415),
    ],
)
def test_what_breaks_the_protocol_is_refused_with_a_sentence_and_changes_nothing(
    service: Service, method: str, headers: dict[str, str], status: int
) -> None:
    base, _ = session(service)
    target = f"{base}/there"
    announce(service, base, "there", 5)
    url = tus(base if method == "POST" else target)
    sent = {"Tus-Resumable": "1.0.0", **headers}
    answer = service.request(method, url, b"12345" if method == "PATCH" else None, headers=sent)
    assert answer.status == status, answer.data
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["detail"]
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert offset(service, target) == 0
    assert service.json("GET", base)["files"] == []


class Relay:
    """Passes bytes on to the service; after so many they break off or get lost, once."""

    def __init__(self, service: Service, most: int, stalls: bool) -> None:
        self.most, self.stalls, self.passed, self.full = most, stalls, 0, threading.Event()
        self._target = tuple(service.url.removeprefix("http://").split(":"))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listening.accept()
            server = socket.create_connection((self._target[0], int(self._target[1])))
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        while data := client.recv(1 << 16):
            server.sendall(data)
            self.passed += len(data)
            if self.passed > self.most and not self.full.is_set():
                self.full.set()
                while self.stalls and client.recv(1 << 16):
                    pass  # as a network that has lost its way
                break
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)


def command(service: Service, url: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "STORAGE_MANAGER_URL": url,
        "STORAGE_MANAGER_TOKEN_FILE": str(service.token_file()),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "admin_api", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A run of the tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_the_command_sends_large_files_so_that_a_break_costs_nothing(
    make_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = make_service()
    service.start()
    size = 70 * MIB
    data = os.urandom(size)
    (tmp_path / "large.bin").write_bytes(data)
    relay = Relay(service, 40 * MIB, stalls=False)
    done = command(service, relay.url, "ingest", str(tmp_path / "large.bin"))
    said = done.communicate(timeout=120)
    assert done.returncode == 0, said
    assert relay.full.is_set()
    assert relay.passed < size + 32 * MIB + MIB
    [found] = service.json("GET", "/v1/products?name=large.bin")["products"]
    product = service.json("GET", f"/v1/products/{found['id']}")
    assert content(service, product, "large.bin") == data


def test_an_interrupted_command_says_how_to_go_on_and_does(
    make_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = make_service()
    service.start()
    top = tmp_path / "tree"
    top.mkdir()
    data = os.urandom(70 * MIB)
    (top / "large.bin").write_bytes(data)
    (top / "small.bin").write_bytes(b"small")
    relay = Relay(service, 40 * MIB, stalls=True)
    stopped = command(service, relay.url, "ingest", "--tree", str(top))
    assert relay.full.wait(60)
    stopped.send_signal(signal.SIGINT)
    said = stopped.communicate(timeout=60)[1]
    assert stopped.returncode == 130, said
    [found] = re.findall(r"--resume ([0-9a-f]{32})", said)
    again = Relay(service, 10**12, stalls=False)
    done = command(service, again.url, "ingest", "--tree", str(top), "--resume", found)
    said = done.communicate(timeout=120)[1]
    assert done.returncode == 0, said
    assert again.passed < 40 * MIB
    [listed] = service.json("GET", "/v1/products?name=tree")["products"]
    product = service.json("GET", f"/v1/products/{listed['id']}")
    assert content(service, product, "large.bin") == data
    assert content(service, product, "small.bin") == b"small"


@pytest.mark.parametrize("arguments", [("https://example.org/f",), ("--unpack", __file__)])
def test_what_cannot_be_gone_on_with_is_refused(
    service: Service, arguments: tuple[str, ...]
) -> None:
    done = service.cli("ingest", *arguments, "--resume", "0" * 32, check=False)
    assert done.returncode == 2, done.stderr
    assert "--resume goes with" in done.stderr


def test_the_sessions_of_others_are_not_there(service: Service) -> None:
    base, _ = session(service)
    announce(service, base, "f", 5)
    other = service.token("ingest", subject="somebody-else")
    for method in ("HEAD", "PATCH", "DELETE"):
        headers = {"Upload-Offset": "0", "Content-Type": PIECE}
        answer = service.request(method, tus(f"{base}/f"), headers=headers, token=other)
        assert answer.status == 404
    assert service.request("HEAD", tus(f"{base}/f"), token=None).status == 401
