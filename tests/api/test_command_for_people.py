"""The command as people meet it: on a terminal, interrupted, misused, without a service."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import pty
import select
import signal
import ssl
import struct
import subprocess
import sys
import tarfile
import termios
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.generator import make_s1, make_s3, make_s5p
from tests.support.servers import ROOT, Service, service_in

COMMAND = [sys.executable, "-m", "admin_api"]
INTERRUPT = b"\x03"
LONG_NAME = (
    "S3B_SL_1_RBT____20190116T050635_20190116T050935_20190117T125958_0179_021_048_0000_LN2_O_NT_003"
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("service")
    made = service_in(directory, {"type": "posix", "root": directory / "store"})
    made.start()
    yield made
    made.stop()


@pytest.fixture
def inbox(service: Service, tmp_path: Path) -> Path:
    """A folder that the service may ingest from, with a name of its own."""
    path = service.directory / "inbox" / tmp_path.name
    path.mkdir()
    return path


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def _on_its_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Ignored where the tests run in the background of a script, and inherited then.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def on_terminal(
    command: list[str], environment: dict[str, str] | None = None, typed: bytes = b""
) -> tuple[int, str]:
    """Run a command on a terminal of 80 columns; its exit code and what was to be seen.

    ``typed`` is typed when it asks, an interrupt again while nothing comes of it, as people do: an
    interpreter that is just about to wait for input keeps the first one until something comes.
    """
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm", **(environment or {})}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        command,
        stdin=end,
        stdout=end,
        stderr=end,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        preexec_fn=_on_its_terminal,
    )
    os.close(end)
    seen, asked = b"", False
    # The last one at the other end hangs up: that is an error here.
    with contextlib.suppress(OSError):
        while True:
            if not select.select([terminal], [], [], 3)[0]:
                if asked and typed == INTERRUPT:
                    os.write(terminal, typed)
                continue
            if not (part := os.read(terminal, 65536)):
                break
            seen += part
            if typed and not asked and b"[y/N]" in seen:
                os.write(terminal, typed)
                asked = True
    os.close(terminal)
    return process.wait(), seen.decode()


def as_operator(service: Service, *arguments: str) -> tuple[list[str], dict[str, str]]:
    return [*COMMAND, *arguments], {
        "STORAGE_MANAGER_URL": service.url,
        "STORAGE_MANAGER_TOKEN_FILE": str(service.token_file()),
    }


def test_a_bar_of_a_long_name_shows_files_bytes_rate_and_time_left_in_eighty_columns() -> None:
    code = (
        "import time\n"
        "from admin_api.cli.output import Progress\n"
        f"with Progress({LONG_NAME!r}, 900 << 20, False, False, files=300) as bar:\n"
        "    for _ in range(5):\n"
        "        time.sleep(0.2); bar.move(90 << 20); bar.file_done()\n"
    )
    exit_code, seen = on_terminal([sys.executable, "-c", code])
    assert exit_code == 0, seen
    bars = [part for part in seen.replace("\n", "\r").split("\r") if "ETA" in part]
    assert bars
    for bar in bars:
        assert len(bar) <= 80
        assert bar.startswith("S3B_SL_")
        assert "…" in bar
        assert "/300 files" in bar
        assert "/900.0 MiB" in bar
        assert "MiB/s ETA " in bar


def test_a_listing_has_a_heading_for_people_and_none_for_pipes(service, tmp_path: Path) -> None:
    path = make_s5p(tmp_path, seed=201)
    service.cli("ingest", str(path))
    service.cli("keep", path.name, "--hold", "audit, of May")
    exit_code, seen = on_terminal(*as_operator(service, "ls", "--name-prefix", path.name))
    assert exit_code == 0
    heading, row = seen.strip().splitlines()
    assert heading.split() == ["MISSION", "TYPE", "SENSING", "SIZE", "FILES", "STATE", "NAME"]
    assert row.split()[-2:] == ["held", path.name]
    assert "2020-" in row
    assert "iB" in row
    [alone] = service.cli("ls", "--name-prefix", path.name).stdout.splitlines()
    assert alone.split() == row.split()
    [product] = lines(service.cli("ls", "-o", "json", "--name-prefix", path.name).stdout)
    assert product["id"] in service.cli("ls", "--long", "--name-prefix", path.name).stdout
    table = service.cli("ls", "-o", "csv", "--name-prefix", path.name).stdout.splitlines()
    [read] = csv.DictReader(table)
    assert (read["name"], read["hold"]) == (path.name, "audit, of May")


def test_dates_need_no_time_and_no_zone_and_what_is_none_is_a_wrong_command_line(
    service, tmp_path: Path
) -> None:
    path = make_s5p(tmp_path, seed=202)
    service.cli("ingest", str(path), "--retention", "2001-01-01")
    for when in ("2020-01-01", "2020-01-01T00:00", "2020-01-01T02:00+02:00"):
        assert path.name in service.cli("ls", "--sensing-from", when).stdout
        assert path.name not in service.cli("ls", "--sensing-to", when).stdout
    service.cli("keep", path.name, "--retention", "2001-02-01")
    [found] = lines(service.cli("--json", "ls", "--name-prefix", path.name).stdout)
    assert found["retention"] == "2001-02-01T00:00:00Z"
    for arguments in (
        ["ls", "--created-from", "yesterday"],
        ["keep", path.name, "--retention", "soon"],
        ["rm", "--filter", "created_to=soon"],
    ):
        done = service.cli(*arguments, check=False)
        assert done.returncode == 2
        assert "is no time: 2026-01-31" in done.stderr


def test_rm_goes_on_behind_what_it_cannot_remove_and_show_tells_of_a_removal(
    service, tmp_path: Path
) -> None:
    first, held, last = (make_s5p(tmp_path, seed=seed) for seed in (203, 204, 205))
    service.cli("ingest", str(first), str(held), str(last))
    service.cli("keep", held.name, "--hold", "audit")
    names = [first.name, "nothing", held.name, last.name]
    done = service.cli("rm", *names, "--cause", "flooded", check=False)
    assert done.returncode == 1  # they failed of different things
    assert done.stdout.count("removed   ") == 2
    assert "FAILED  nothing: There is no product 'nothing'." in done.stdout
    assert "2 of 4 failed." in done.stderr
    assert service.cli("rm", "nothing", "nor this", check=False).returncode == 3
    shown = service.cli("show", first.name, check=False)
    assert shown.returncode == 3
    assert "removed_cause  flooded" in shown.stdout
    assert f"{first.name} was removed by tester at 20" in shown.stderr
    done = service.cli("get", first.name, "--output", str(tmp_path / "out"), check=False)
    assert (done.returncode, "flooded" in done.stderr) == (3, True)
    assert "(cause: flooded)" in service.cli("events").stdout


def test_with_json_what_goes_wrong_is_a_line_of_json(service, tmp_path: Path) -> None:
    [error] = lines(service.cli("--json", "show", "nothing", check=False).stderr)
    assert (error["type"], error["exit_code"]) == ("error", 3)
    [error] = lines(service.cli("--json", "rm", check=False).stderr)
    assert error["exit_code"] == 2
    path = make_s5p(tmp_path, seed=206)
    service.cli("ingest", str(path))
    arguments = ["--json", "--quiet", "ingest", str(path), "--duplicates", "error"]
    [error] = lines(service.cli(*arguments, check=False).stderr)
    assert (error["code"], error["status"], error["exit_code"]) == ("product_exists", 409, 4)
    done = service.cli("--json", "rm", "nothing", "nor this", check=False)
    assert [line["reference"] for line in lines(done.stdout)] == ["nothing", "nor this"]


def test_what_a_manifest_misses_is_told_within_reason(service, tmp_path: Path) -> None:
    from admin_api.cli.failures import Failure

    report = {"missing": [f"{number}.nc" for number in range(500)]}
    told = Failure("It is not whole.", 1, {"manifest": report}).format_message().splitlines()
    assert len(told) == 22
    assert told[-1] == "    and 480 more (--json: all)"


@pytest.mark.parametrize(
    ("options", "exit_code", "said"),
    [
        (["--url", "http://127.0.0.1:9"], 6, "cannot be reached: Connection refused."),
        (["--url", "http://nothing.invalid"], 6, "cannot be reached: "),
        (["--url", "localhost:8080"], 2, "does not begin with http:// or https://"),
        (["--ca-file", "nothing.crt"], 2, "does not exist"),
        (["--ca-file", str(ROOT / "README.md")], 1, "holds no certificates"),
    ],
)
def test_a_service_that_is_not_there_is_one_sentence(
    options: list[str], exit_code: int, said: str
) -> None:
    done = subprocess.run([*COMMAND, *options, "ls"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == exit_code, done.stderr
    assert said in done.stderr
    assert not [word for word in ("Traceback", "Warning", "ConnectionPool") if word in done.stderr]


class _Empty(BaseHTTPRequestHandler):
    """A service that has no products."""

    def do_GET(self) -> None:
        body = b'{"products": [], "next": null}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_private_authority_is_trusted_by_a_file_or_a_variable_and_not_without(
    tmp_path: Path,
) -> None:
    key, certificate = tmp_path / "key", tmp_path / "ca.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
        + ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=127.0.0.1"]
        + ["-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Empty)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [*COMMAND, "--url", f"https://127.0.0.1:{server.server_address[1]}"]

    def run(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **variables}
        return subprocess.run(
            [*command, *options, "ls"], capture_output=True, text=True, cwd=ROOT, env=environment
        )

    try:
        refused = run()
        assert refused.returncode == 6
        assert "its certificate is not trusted" in refused.stderr
        assert "--ca-file" in refused.stderr
        assert run("--ca-file", str(certificate)).returncode == 0
        assert run(STORAGE_MANAGER_CA_FILE=str(certificate)).returncode == 0
    finally:
        server.shutdown()
        server.server_close()


def test_an_interrupt_while_the_command_is_loaded_is_no_traceback() -> None:
    code = (
        "import builtins, runpy\n"
        "load = builtins.__import__\n"
        "def interrupted(name, *rest, **more):\n"
        "    if name == 'admin_api.cli.main': raise KeyboardInterrupt\n"
        "    return load(name, *rest, **more)\n"
        "builtins.__import__ = interrupted\n"
        "runpy.run_module('admin_api.__main__', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "")


def test_an_interrupt_of_one_of_several_products_ends_the_command() -> None:
    from admin_api.cli.failures import EXIT_INTERRUPTED, Failure, for_each

    begun = []

    def interrupted(item: str) -> None:
        begun.append(item)
        raise Failure("Interrupted; the job goes on.", EXIT_INTERRUPTED)

    with pytest.raises(Failure, match="the job goes on"):
        for_each(["first", "second"], interrupted, lambda item, failure: None)
    assert begun == ["first"]


def test_a_full_disk_behind_the_output_is_a_sentence_and_a_closed_pipe_is_none(
    service, tmp_path: Path
) -> None:
    path = make_s5p(tmp_path, seed=218)
    service.cli("ingest", str(path))
    command, environment = as_operator(service, "ls", "-o", "json")
    full, closed = (
        subprocess.run(
            ["bash", "-c", f"{' '.join(command)} {where}"],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
        for where in ("> /dev/full", "| true")
    )
    assert (full.returncode, full.stderr) == (1, "Error: The output: No space left on device.\n")
    assert closed.stderr == ""


def test_what_a_uri_holds_is_recognised_as_a_local_directory_is(service, inbox: Path) -> None:
    trees = [make_s1(inbox, seed=207, size=100), make_s3(inbox / "deeper", seed=208)]
    single = make_s5p(inbox / "deeper", seed=209, size=100)
    done = service.cli("--json", "--quiet", "ingest", inbox.as_uri())
    assert {line["item"].rpartition("/")[2] for line in lines(done.stdout)} == {
        path.name for path in (*trees, single)
    }
    # The same by path: everything is there.
    again = service.cli("--json", "--quiet", "ingest", str(inbox))
    assert [line["result"] for line in lines(again.stdout)] == ["skipped"] * 3
    # One product by itself, a tree and a file.
    for path in (trees[0], single):
        assert "skipped" in service.cli("ingest", path.as_uri()).stdout
    whole = service.cli("ingest", inbox.as_uri(), "--tree", "--name", "everything")
    assert whole.stdout.count("created ") == 1


def test_an_ingest_by_reference_tells_how_far_it_is_or_leaves_its_job(service, inbox: Path) -> None:
    first, second = make_s5p(inbox, seed=210), make_s5p(inbox, seed=211)
    exit_code, seen = on_terminal(*as_operator(service, "ingest", first.as_uri()))
    assert exit_code == 0, seen
    assert "job " in seen
    assert "created " in seen
    left = service.cli("--json", "ingest", second.as_uri(), "--detach")
    job = json.loads(left.stdout)["id"]
    assert "1 done" in service.cli("jobs", "watch", job).stdout
    assert service.cli("show", second.name).returncode == 0
    lost = service.cli("ingest", f"{inbox.as_uri()}/nothing", check=False)
    assert lost.returncode == 1
    outside = service.cli("ingest", "file:///etc/hostname", check=False)
    assert outside.returncode == 5
    both = service.cli("ingest", second.as_uri(), "file:///etc/hostname", check=False)
    assert both.returncode == 5
    assert "skipped " in both.stdout
    assert "FAILED  file:///etc/hostname" in both.stdout


@pytest.mark.parametrize(("typed", "stored"), [(b"n\n", False), (b"y\n", True)])
def test_files_that_are_not_called_as_products_are_asked_about(
    service, tmp_path: Path, typed: bytes, stored: bool
) -> None:
    path = make_s5p(tmp_path, seed=212 + stored)
    stray = tmp_path / f"notes-{stored}.txt"
    stray.write_text("of a colleague")
    refused = service.cli("ingest", str(tmp_path), "--strays", "fail", check=False)
    assert (refused.returncode, stray.name in refused.stderr) == (1, True)
    command = as_operator(service, "ingest", str(tmp_path))
    exit_code, seen = on_terminal(*command, typed=INTERRUPT)
    assert (exit_code, "Interrupted." in seen) == (130, True), seen
    exit_code, seen = on_terminal(*command, typed=typed)
    assert exit_code == 0, seen
    assert f"{stray.name} is not called as products are. Ingest them, too?" in seen
    assert service.cli("show", path.name).returncode == 0
    assert service.cli("show", stray.name, check=False).returncode == (0 if stored else 3)


def test_several_products_are_retrieved_and_as_archives_that_are_checked(
    service, tmp_path: Path
) -> None:
    tree, single = make_s1(tmp_path, seed=214, size=3000), make_s5p(tmp_path, seed=215)
    service.cli("ingest", str(tree), str(single))
    out = tmp_path / "out"
    done = service.cli("get", tree.name, "nothing", single.name, "--output", str(out), check=False)
    assert done.returncode == 3
    assert (out / single.name).read_bytes() == single.read_bytes()
    assert (out / tree.name / "manifest.safe").is_file()
    service.cli("get", tree.name, single.name, "--archive", "tar", "--output", str(out))
    with tarfile.open(out / f"{tree.name}.tar") as archive:
        content = archive.extractfile(f"{tree.name}/manifest.safe")
        assert content.read() == (tree / "manifest.safe").read_bytes()
    whole = (out / f"{tree.name}.tar").read_bytes()
    # What is there is looked at, and what is damaged comes anew.
    (out / f"{tree.name}.tar").write_bytes(whole[:-2000] + b"x" * 2000)
    (out / f"{tree.name}.tar").write_bytes(b"x" * 2000 + whole[2000:])
    service.cli("get", tree.name, "--archive", "tar", "--output", str(out))
    assert (out / f"{tree.name}.tar").read_bytes() == whole
    service.cli("get", tree.name, "--archive", "zip", "--output", str(out))
    assert zipfile.ZipFile(out / f"{tree.name}.zip").testzip() is None
    assert not list(out.glob(".*"))


def test_a_tar_that_broke_off_is_gone_on_with(service, tmp_path: Path) -> None:
    path = make_s5p(tmp_path, seed=216, size=200_000)
    service.cli("ingest", str(path))
    [product] = lines(service.cli("--json", "ls", "--name-prefix", path.name).stdout)
    archive = f"/v1/products/{product['id']}/archive?format=tar"
    answer = service.request("GET", archive)
    tag = answer.headers["ETag"].strip('"')
    out = tmp_path / "out"
    out.mkdir()
    (out / f".{tag[:16]}.tar.part").write_bytes(answer.data[:150_000])
    service.cli("get", path.name, "--archive", "tar", "--output", str(out))
    assert (out / f"{path.name}.tar").read_bytes() == answer.data
    asked = [line for line in lines(service.log()) if line.get("path", "").endswith("/archive")]
    assert asked[-1]["status"] == 206


def test_names_of_products_are_completed_and_without_a_service_nothing_is(
    service, tmp_path: Path
) -> None:
    path = make_s5p(tmp_path, seed=217)
    service.cli("ingest", str(path))
    _, environment = as_operator(service)

    def offered(url: str) -> subprocess.CompletedProcess[str]:
        words = f"storage-manager --url {url} show {path.name[:-6]}"
        asked = {"_STORAGE_MANAGER_COMPLETE": "bash_complete", "COMP_WORDS": words}
        return subprocess.run(
            COMMAND,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment, **asked, "COMP_CWORD": "4"},
        )

    assert f"plain,{path.name}" in offered(service.url).stdout
    silent = offered("http://127.0.0.1:9")
    assert (silent.stdout.strip(), silent.stderr) == ("", "")


def test_a_token_file_is_readable_by_its_owner_only(service, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("an old one, that all could read")
    token.chmod(0o644)
    service.cli("token", "--scope", "read", "--output", str(token))
    assert token.stat().st_mode & 0o777 == 0o600
    environment = {**os.environ, "STORAGE_MANAGER_URL": service.url}
    command = [*COMMAND, "--token-file", str(token), "ls"]
    assert subprocess.run(command, env=environment, cwd=ROOT).returncode == 0
    unwritable = service.cli("token", "--output", "/proc/token", check=False)
    assert unwritable.returncode == 1
    assert "Traceback" not in unwritable.stderr


def test_verbs_are_loaded_when_they_are_asked_for(service) -> None:
    code = (
        "import sys\n"
        "from admin_api.cli.main import main\n"
        "main(['token', '--help'], standalone_mode=False)\n"
        "print([name for name in ('urllib3', 'tqdm', 'sqlalchemy', 'flask') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_what_a_bucket_holds_is_recognised_in_the_same_way(
    s3_server, make_service, tmp_path: Path
) -> None:
    backend = s3_server.backend()
    service = make_service(sources={"s3": [{"backend": backend}]})
    service.start()
    client, bucket = s3_server.client(), backend["bucket"]
    tree, single = make_s1(tmp_path, seed=219, size=100), make_s5p(tmp_path, seed=220, size=100)
    for path in (*tree.rglob("*"), single):
        if path.is_file():
            key = f"2021/{path.relative_to(tmp_path)}"
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    done = service.cli("--json", "--quiet", "ingest", f"s3://{bucket}/2021/")
    assert {line["item"] for line in lines(done.stdout)} == {tree.name, single.name}
    for path in (tree, single):
        shown = json.loads(service.cli("--json", "show", path.name).stdout)
        assert shown["file_count"] == (5 if path is tree else 1)
        again = service.cli("ingest", f"s3://{bucket}/2021/{path.name}").stdout
        assert again.startswith("skipped ")
    nothing = service.cli("ingest", f"s3://{bucket}/2022", check=False)
    assert nothing.returncode == 1
    assert "source_not_found" in nothing.stderr
