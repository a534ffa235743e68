"""The command ``storage-manager``, used as an operator would, against the running service."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.generator import make_s1, make_s2, make_s3, make_s5p, write_random
from tests.support.servers import ROOT, Service, wait_until


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_files_and_directories_are_ingested_listed_shown_fetched_and_removed(
    service: Service, tmp_path: Path
) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    tree = make_s1(incoming, seed=80)
    make_s5p(incoming, seed=80)
    done = service.cli("--json", "ingest", str(incoming), "--verification", "manifest")
    results = lines(done.stdout)
    assert {item["result"] for item in results} == {"created"}
    assert all("rate" in line for line in lines(done.stderr))
    listed = lines(service.cli("--json", "ls", "--mission", "S1").stdout)
    assert tree.name in [item["name"] for item in listed]
    shown = json.loads(service.cli("--json", "show", tree.name).stdout)
    assert shown["file_count"] == 5
    service.cli("get", tree.name, "--output", str(tmp_path / "out"))
    for path in tree.rglob("*"):
        if path.is_file():
            copy = tmp_path / "out" / tree.name / path.relative_to(tree)
            assert copy.read_bytes() == path.read_bytes()
    assert "skipped" in service.cli("ingest", str(tree)).stdout
    assert "removed" in service.cli("rm", tree.name, "--cause", "done").stdout
    assert service.cli("show", tree.name, check=False).returncode == 3


def test_an_interrupted_retrieval_goes_on_where_it_stopped(service, tmp_path: Path) -> None:
    path = make_s5p(tmp_path, seed=81, size=3_000_000)
    service.cli("--quiet", "ingest", str(path))
    data = path.read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    part = out / f".{hashlib.sha256(data).hexdigest()[:16]}.part"
    part.write_bytes(data[:2_000_000])
    service.cli("get", path.name, "--output", str(out))
    assert (out / path.name).read_bytes() == data
    assert not part.exists()
    (out / path.name).write_bytes(b"x" * len(data))
    service.cli("get", path.name, "--output", str(out))
    assert (out / path.name).read_bytes() == data
    (out / path.name).unlink()
    part.write_bytes(b"y" * 1_000_000)
    assert service.cli("get", path.name, "--output", str(out), check=False).returncode == 1
    assert not (out / path.name).exists()
    service.cli("get", path.name, "--output", str(out))


def test_curl_resumes(service: Service, tmp_path: Path) -> None:
    path = make_s5p(tmp_path, seed=82, size=3_000_000)
    product = lines(service.cli("--json", "--quiet", "ingest", str(path)).stdout)[0]
    out = tmp_path / "curl.nc"
    out.write_bytes(path.read_bytes()[:1_234_567])
    command = ["curl", "-fsSL", "-C", "-", "-o", str(out)]
    command += ["-H", f"Authorization: Bearer {service.token()}"]
    subprocess.run([*command, service.url + product["files"][0]["href"]], check=True)
    assert out.read_bytes() == path.read_bytes()


def test_a_failed_product_is_named_and_the_others_go_in(service, tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    broken = make_s3(incoming, seed=83)
    (broken / "viscal.nc").write_bytes(b"broken")
    whole = make_s3(incoming, seed=84)
    done = service.cli("ingest", str(incoming), "--verification", "manifest", check=False)
    assert done.returncode == 1
    assert f"FAILED  {broken}" in done.stdout.replace(str(broken.resolve()), str(broken))
    assert "wrong    viscal.nc: size 6" in done.stdout
    assert whole.name in done.stdout
    assert service.cli("show", broken.name, check=False).returncode == 3


def sessions(service: Service) -> list[Path]:
    """What upload sessions have left in a store that is a directory."""
    store = service.directory / "store"
    return [path for path in store.rglob("*") if path.is_file() and ".products" not in path.parts]


def test_files_of_equal_content_all_arrive(make_service, tmp_path: Path) -> None:
    service = make_service()
    service.start()
    tree = tmp_path / "masks.zarr"
    write_random(tree / "first.bin", 3_000_000, 1)
    (tree / "second.bin").write_bytes((tree / "first.bin").read_bytes())
    for number in range(10):
        (tree / f"equal-{number}").write_bytes(b"equal")
        (tree / f"empty-{number}").touch()
    service.cli("ingest", str(tree), "--parallel", "8")
    service.cli("get", tree.name, "--output", str(tmp_path / "out"))
    arrived = {path.name: path.read_bytes() for path in (tmp_path / "out" / tree.name).iterdir()}
    assert arrived == {path.name: path.read_bytes() for path in tree.iterdir()}


def test_ten_clients_of_a_service_with_two_places_wait_and_lose_nothing(
    make_service, tmp_path: Path
) -> None:
    service = make_service(server={"threads": 6})  # three transfers at once
    service.start()
    large = tmp_path / "three-hundred.zarr"
    for number in range(300):
        write_random(large / f"{number}.bin", 100, number)
    small = [make_s2(tmp_path, seed=seed, files=9, size=100) for seed in range(90, 99)]
    service.token()  # made once, before ten ask for it

    def ingest(order: tuple[Path, int]) -> dict:
        tree, parallel = order
        options = ("--parallel", str(parallel))
        done = service.cli("--json", "--quiet", "ingest", str(tree), *options)
        return lines(done.stdout)[0]

    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(ingest, [(large, 32), *((tree, 4) for tree in small)]))
    counts = [(item["result"], item["file_count"]) for item in results]
    assert counts == [("created", 300)] + [("created", 10)] * 9
    refused = [line for line in service.log().splitlines() if '"busy"' in line]
    assert refused, "nobody was told to come again: the test shows nothing"


def test_a_directory_with_a_zarr_suffix_or_a_manifest_is_one_product(
    service: Service, tmp_path: Path
) -> None:
    zarr = tmp_path / "S02MSIL1C_20240428T102559_0000_B108_T781.zarr"
    for path in (".zattrs", ".zgroup", "measurements/r10m/b02/0.0", "measurements/r10m/b02/0.1"):
        write_random(zarr / path, 100, 1)
    plain = make_s3(tmp_path, seed=95).rename(tmp_path / "a-copy")
    done = service.cli("--json", "--quiet", "ingest", str(zarr), str(plain))
    found = {item["name"]: (item["file_count"], item["mission"]) for item in lines(done.stdout)}
    assert found == {zarr.name: (4, "S2"), "a-copy": (4, None)}


def test_what_products_do_not_hold_is_refused_by_its_place_and_nothing_is_left(
    make_service, tmp_path: Path
) -> None:
    service = make_service()
    service.start()
    incoming = tmp_path / "incoming"
    incoming.mkdir()

    def place(number: int) -> Path:
        return make_s1(incoming, seed=number, size=100) / "measurement" / f"odd{number}"

    folder, file, broken, bytes_, fifo, forbidden = map(place, range(6))
    folder.symlink_to(folder.parent, target_is_directory=True)
    file.symlink_to(file.parents[1] / "manifest.safe")
    broken.symlink_to(tmp_path / "nothing")
    Path(os.fsdecode(os.fsencode(bytes_) + b"\xff")).touch()
    os.mkfifo(fifo)
    # This is refused by the store's grammar, when other files have arrived already.
    forbidden.with_name("odd5?").write_bytes(b"x")
    done = service.cli("ingest", str(incoming), check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    refusals = done.stdout.splitlines()
    assert [line.startswith("FAILED  ") for line in refusals] == [True] * 6
    for number, line in enumerate(refusals):
        assert f"odd{number}" in line
    wait_until(lambda: not sessions(service), 60, "an empty store")
    assert lines(service.cli("--json", "ls").stdout) == []


def test_local_problems_are_sentences(service: Service, tmp_path: Path) -> None:
    path = make_s5p(tmp_path, seed=97)
    service.cli("ingest", str(path))
    (tmp_path / "file").touch()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "dangling.nc").symlink_to(tmp_path / "nothing")
    (tmp_path / "token").write_bytes(b"\x80\xff\0")
    (tmp_path / "lines").write_text("two\nlines")
    (tmp_path / "out" / path.name).mkdir(parents=True)
    for arguments, said in [
        (["get", path.name, "--output", str(tmp_path / "file")], str(tmp_path / "file")),
        (["get", path.name, "--output", "/proc/nothing"], "/proc/nothing"),
        (["get", path.name, "--output", str(tmp_path / "out")], path.name),
        (["ingest", str(tmp_path / "links")], "dangling.nc is a symbolic link"),
        (["ingest", str(tmp_path / "links" / "dangling.nc")], "is a symbolic link"),
        (["--token-file", str(tmp_path / "token"), "ls"], "holds no token"),
        (["--token-file", str(tmp_path / "lines"), "ls"], "holds no token"),
    ]:
        done = service.cli(*arguments, check=False)
        assert done.returncode in (1, 5), arguments
        assert said in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_a_full_local_disk_is_a_sentence(service: Service, tmp_path: Path) -> None:
    path = make_s5p(tmp_path, seed=98)
    service.cli("ingest", str(path))
    name = f".{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.part"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to("/dev/full")
    done = service.cli("get", path.name, "--output", str(tmp_path / "out"), check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_exit_code_of_an_ingest_is_that_of_its_failure(service, tmp_path: Path) -> None:
    path = make_s5p(tmp_path, seed=99)
    service.cli("ingest", str(path))
    assert service.cli("ingest", str(path), "--duplicates", "error", check=False).returncode == 4
    reader = ["--token-file", str(service.token_file("read"))]
    assert service.cli(*reader, "ingest", str(path), check=False).returncode == 5
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    for seed in (1, 2, 3):
        make_s5p(incoming, seed=seed)
    done = service.cli("--url", "http://127.0.0.1:9", "ingest", str(incoming), check=False)
    assert done.returncode == 6
    assert done.stdout.count("FAILED") == 1  # nobody answers: the others are not tried


@pytest.fixture
def stalling():
    """A service that takes requests and never answers those that move payload."""
    listener = socket.create_server(("127.0.0.1", 0))
    moving = threading.Event()
    held = []
    item = {"path": "a.nc", "size": 10_000_000, "sha256": "00" * 32, "href": "/v1/stall"}
    product = {"id": "x", "name": "x.SAFE", "state": "available", "files": [item]}

    def serve(connection: socket.socket) -> None:
        held.append(connection)
        while head := connection.recv(65536):
            if b"/v1/products/" in head:
                body = json.dumps(product).encode()
            elif head.startswith(b"POST /v1/uploads "):
                body = json.dumps({"id": "s"}).encode()
            else:
                moving.set()
                continue
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=[connection], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", moving
    listener.close()
    for connection in held:
        connection.close()


@pytest.mark.parametrize("verb", ["get", "ingest"])
def test_an_interrupt_ends_the_command_at_once_and_says_how_to_go_on(
    stalling, tmp_path: Path, verb: str
) -> None:
    url, moving = stalling
    arguments = ["get", "x.SAFE", "--output", str(tmp_path)]
    if verb == "ingest":
        arguments = ["ingest", str(make_s1(tmp_path, seed=1, size=20_000_000))]
    process = subprocess.Popen(
        [sys.executable, "-m", "admin_api", "--url", url, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # Ignored where the tests run in the background of a script, and inherited then.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert moving.wait(60)
        process.send_signal(signal.SIGINT)
        # The service never answers: who waits for it does not end in this time either.
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Run the same command again to go on" in said
    assert "Traceback" not in said


def test_holds_retention_and_purge(service: Service, tmp_path: Path) -> None:
    path = make_s5p(tmp_path, seed=85)
    past = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    service.cli("ingest", str(path), "--retention", past)
    service.cli("keep", path.name, "--hold", "audit")
    assert service.cli("rm", path.name, check=False).returncode == 4
    assert path.name not in service.cli("purge", "--dry-run").stdout
    service.cli("keep", path.name, "--release")
    assert path.name in service.cli("purge", "--dry-run").stdout
    assert path.name in service.cli("purge").stdout


def test_verify_probe_status_events_and_reconcile(service: Service, tmp_path: Path) -> None:
    path = make_s5p(tmp_path, seed=86)
    service.cli("ingest", str(path))
    assert "1 checked, 0 failed" in service.cli("verify", path.name).stdout
    # Some services check the condition on completing an upload and do not hold it: a warning.
    told = service.cli("probe").stdout
    assert told.count("ok  ") + told.count("warn  ") == 14
    assert told.count("ok  ") >= 13
    assert "S5P" in service.cli("status").stdout
    assert path.name in service.cli("events").stdout
    assert "follow from each other" in service.cli("events", "--verify").stdout
    assert "0 findings" in service.cli("reconcile").stdout


def test_exit_codes_tell_what_happened(service: Service, tmp_path: Path) -> None:
    def run(*arguments: str) -> int:
        return subprocess.run(
            [sys.executable, "-m", "admin_api", *arguments], capture_output=True, cwd=ROOT
        ).returncode

    token = ["--token-file", str(service.token_file("read"))]
    assert run("--url", service.url, *token, "ls") == 0
    assert run("--url", service.url, *token, "show", "nothing") == 3
    assert run("--url", service.url, "ls") == 5
    assert run("--url", service.url, *token, "rm", "x", "--no-such-option") == 2
    assert run("--url", "http://127.0.0.1:9", *token, "ls") == 6
    assert run("--url", service.url, "--token-file", str(tmp_path / "none"), "ls") == 5
    assert run("serve", "--settings", str(tmp_path / "none.toml")) == 1


def test_every_shell_gets_its_completion(service: Service) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_STORAGE_MANAGER_COMPLETE" in service.cli("completion", shell).stdout


def test_the_catalog_is_rebuilt_from_the_records_alone(
    service: Service, make_service, tmp_path: Path
) -> None:
    def everything(of: Service) -> list[dict]:
        found = [
            {key: value for key, value in item.items() if key not in ("removed", "state")}
            for state in ("available", "removed")
            for item in lines(of.cli("--json", "ls", "--state", state).stdout)
        ]
        for item in found:
            item.pop("size"), item.pop("file_count"), item.pop("source")
        return sorted(found, key=lambda item: (item["name"], item["generation"]))

    path = make_s5p(tmp_path, seed=87)
    service.cli("ingest", str(path))
    service.cli("ingest", str(make_s5p(tmp_path, seed=88)))
    service.cli("rm", path.name)
    before = everything(service)
    settings = service.settings_file.read_text()
    other = make_service()
    fresh = settings.replace(str(service.directory / "state"), str(other.directory / "state"))
    fresh = "\n".join(line for line in fresh.splitlines() if not line.startswith("catalog ="))
    fresh = fresh.replace(service.url.rpartition(":")[2], other.url.rpartition(":")[2]).replace(
        service.metrics_url.rpartition(":")[2], other.metrics_url.rpartition(":")[2]
    )
    other.settings_file.write_text(fresh)
    first = json.loads(other.cli("rebuild", "--json").stdout)
    assert first["applied"] == first["statements"] > 0
    again = json.loads(other.cli("rebuild", "--json").stdout)
    assert again == {"statements": first["statements"], "applied": 0}
    other.start()
    assert everything(other) == before
    assert "0 findings" in other.cli("reconcile").stdout


@pytest.mark.parametrize(
    ("arguments", "nodes", "said"),
    [
        (["scale"], {"node1": {}}, "Say what is to change"),
        (
            ["scale", "--add", "node2"],
            {"node1": {}},
            "node2 is new: name a node that it is to be like",
        ),
        (
            ["scale", "--add", "node2", "--like", "x"],
            {"node1": {}},
            "--like x: there are only node1",
        ),
        (["scale", "--add", "node2", "--remove", "node2"], {"node1": {}}, "both come and go"),
        (["scale", "--add", "node2", "--like", "node1"], None, "is not like"),
        (["replace", "node2"], {"node1": {}}, "node2 is no node: there are node1"),
    ],
)
def test_scaling_refuses_what_it_does_not_understand_before_terraform_is_asked(
    tmp_path: Path, arguments: list[str], nodes: dict | None, said: str
) -> None:
    environment = tmp_path / "terraform" / "environments" / "local"
    environment.mkdir(parents=True)
    (tmp_path / "site.yml").touch()
    file = environment / "nodes.auto.tfvars.json"
    file.write_text("[]" if nodes is None else json.dumps({"nodes": nodes}))
    command = [sys.executable, "-m", "admin_api", "facility", *arguments, "--yes"]
    done = subprocess.run(
        [*command, "--environment", str(environment)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": ""},
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(file.read_text()) == ([] if nodes is None else {"nodes": nodes})


def test_scaling_outside_of_a_checkout_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "admin_api", "facility", "scale", "--environment"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "is in no checkout" in done.stderr
