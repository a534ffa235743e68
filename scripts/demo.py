"""The demonstration: the main job on the embedded profile, each command shown as it is run.

make demo              in a folder of its own (.demo), ends by itself
make demo DATA=dir     ingests what is in the directory, too
make demo KEEP=1       leaves the service running, until the next demonstration

There is one demonstration at a time: one that was left running is ended first.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jwt  # noqa: E402 - needs the environment

from tests.generator import make_s1, make_s2, make_s3, make_s5p  # noqa: E402 - needs the path

DEMO = ROOT / ".demo"
BULK = 2000
BIN = Path(sys.executable).parent
TTY = sys.stdout.isatty()


def say(text: str) -> None:
    """A heading between the commands."""
    print(f"\n\033[1m# {text}\033[0m" if TTY else f"\n# {text}", flush=True)


def run(command: str, check: bool = True) -> str:
    """Show a shell command, run it, show what it says."""
    print(f"$ {command}", flush=True)
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=DEMO, env=environment()
    )
    output = done.stdout + done.stderr
    print("".join(f"  {line}\n" for line in output.splitlines()), end="", flush=True)
    if check and done.returncode != 0:
        raise SystemExit(f"The command failed with exit code {done.returncode}.")
    return done.stdout.strip()


def output(command: str) -> str:
    """What a command says; not shown."""
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        cwd=DEMO,
        env=environment(),
        check=True,
    ).stdout


def environment() -> dict[str, str]:
    """What the commands need; printed at the end so that they can be repeated."""
    return {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "STORAGE_MANAGER_SETTINGS": "settings.toml",
        "STORAGE_MANAGER_URL": f"http://127.0.0.1:{port(8080)}",
        "STORAGE_MANAGER_TOKEN_FILE": "token",
    }


@functools.cache
def port(preferred: int) -> int:
    """The preferred port if nobody has it; which one it is stays so."""
    for tried in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", tried))
            except OSError:
                print(f"Port {preferred} is another program's; a free one is taken.", flush=True)
                continue
            return probe.getsockname()[1]
    raise SystemExit("No free port.")


def words_of(pid: int) -> list[bytes]:
    """The command line of a process; none of one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except FileNotFoundError:
        return []


def end_older() -> None:
    """End the service that an earlier demonstration left running: its folder is made anew."""
    try:
        pid = int((DEMO / "pid").read_text())
        folder = Path(f"/proc/{pid}/cwd").readlink()
    except (OSError, ValueError):
        return
    # Numbers of processes are given again: it must be ours.
    if b"serve" not in words_of(pid) or folder != DEMO:
        return
    print(f"An earlier demonstration still runs (process {pid}); it is ended.", flush=True)
    for how in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(pid, how)
        for _ in range(300):
            if not words_of(pid):
                return
            time.sleep(0.1)
    raise SystemExit(f"Process {pid} does not end.")


#: What the Ingestor and this service share.
PROSEO_SECRET = secrets.token_hex(20)


def set_up(data: Path | None) -> None:
    """Settings, key, token and products in a fresh folder."""
    shutil.rmtree(DEMO, ignore_errors=True)
    inbox = DEMO / "inbox"
    inbox.mkdir(parents=True)
    roots = [inbox, DEMO / "bulk"] + ([data] if data else [])
    (DEMO / "settings.toml").write_text(
        f"""# The embedded profile: products in a directory, the catalog in SQLite.
state_dir = "{DEMO}/state"

[storage]
mounts = [{{ backend = {{ type = "posix", root = "{DEMO}/store" }} }}]

[auth]
key_file = "{DEMO}/keys"
public_docs = true

[sources]
file_roots = [{", ".join(f'"{root}"' for root in roots)}]

[housekeeping]
# A worker that was killed is noticed after so long (default 30).
commit_grace_seconds = 5

[proseo]
enabled = true
accept = ["basic"]
callers_file = "{DEMO}/callers"
secret_file = "{DEMO}/proseo-secret"

[server]
port = {port(8080)}
metrics_port = {port(9180)}
"""
    )
    (DEMO / "proseo-secret").write_text(PROSEO_SECRET)
    for seed in (1, 2):
        make_s1(inbox, seed, size=4 << 20)
    make_s2(inbox, 1)
    make_s3(inbox, 1)
    for seed in (1, 2):
        make_s5p(inbox, seed, size=2 << 20)
    tree = make_s3(DEMO, 2)
    with zipfile.ZipFile(DEMO / f"{tree.name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in tree.rglob("*"):
            archive.write(path, path.relative_to(DEMO))
    shutil.rmtree(tree)
    set_up_bulk(DEMO / "bulk")


def set_up_bulk(directory: Path) -> None:
    """Two thousand small products, four of them bad, and a manifest with their digests."""
    directory.mkdir()
    generator, lines = random.Random(1), []
    for number in range(BULK):
        path, data = directory / f"aux-{number:05}.bin", generator.randbytes(4096)
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        lines.append(
            json.dumps({"source": path.as_uri(), "size": len(data), "sha256": digest}) + "\n"
        )
    (directory / "aux-00100.bin").rename(DEMO / "late-00100.bin")
    shutil.copy(directory / "aux-00900.bin", DEMO / "sound-00900.bin")
    with (directory / "aux-00900.bin").open("r+b") as file:
        file.write(b"flipped!")
    lines[1199] = '{"source": "file:///etc/passwd"}\n'
    lines[1499] = lines[1499].replace('"size": 4096', '"size": 4095')
    (DEMO / "manifest.ndjson").write_text("".join(lines))


def worker_pid() -> int:
    """The process that runs the jobs, as the newest line of the log about it says."""
    log = (DEMO / "service.log").read_text().splitlines()
    begun = [json.loads(line) for line in log if '"the worker begins"' in line]
    return int(begun[-1]["pid"])


def start() -> subprocess.Popen[bytes]:
    """The service, ready."""
    print("$ storage-manager serve > service.log 2>&1 &", flush=True)
    with (DEMO / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / "storage-manager"), "serve"],
            stdout=log,
            stderr=log,
            cwd=DEMO,
            env=environment(),
            start_new_session=True,
        )
    (DEMO / "pid").write_text(str(process.pid))
    for _ in range(300):
        if process.poll() is not None:
            raise SystemExit((DEMO / "service.log").read_text())
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port(8080)}/healthz/ready", timeout=2)
            return process
        except OSError:
            time.sleep(0.1)
    raise SystemExit("The service did not become ready; see .demo/service.log.")


def tour(data: Path | None) -> None:
    """The main job."""
    url = f"http://127.0.0.1:{port(8080)}"
    header = '-H "Authorization: Bearer $(cat token)"'
    inbox = DEMO / "inbox"
    single = sorted(path.name for path in inbox.glob("S5P*"))
    safe = sorted(path.name for path in inbox.glob("S1*.SAFE"))
    archive = next(DEMO.glob("*.zip")).name

    say("Closed by default: no token, no answer")
    run(f"curl -s {url}/v1/products")

    say("Ingest: a single file, uploaded in one request with curl")
    run(f"curl -s {header} -T inbox/{single[0]} {url}/v1/uploads/{single[0]} | head -c 300; echo")

    say("Ingest: a SAFE tree by reference; every file is compared with its manifest")
    body = f'{{"source": "{(inbox / safe[0]).as_uri()}", "verification": "manifest"}}'
    run(
        f"curl -s {header} -H 'Content-Type: application/json' -d {shlex.quote(body)} "
        f"{url}/v1/products | head -c 300; echo"
    )

    say("Ingest: a zip, unpacked while it streams in")
    run(
        f"curl -s {header} -T {archive} '{url}/v1/uploads/{archive}?unpack=true' | head -c 300; echo"
    )

    say("Ingest: a whole directory with the command; what is there already is skipped")
    run("storage-manager ingest inbox")

    if data is not None:
        say(f"Ingest: what you named, {data}")
        run(f"storage-manager ingest {shlex.quote(str(data))}", check=False)

    say("Ingest: a product that was damaged on its way is refused, with the reason")
    run(f"cp -r inbox/{safe[1]} damaged-{safe[1]} && echo x >> damaged-{safe[1]}/support/*.xsd")
    run(
        f"storage-manager ingest damaged-{safe[1]} --name {safe[1]} --verification manifest "
        "--duplicates replace",
        check=False,
    )

    bulk()

    say("List, with filters")
    run("storage-manager ls")
    run(f"curl -s {header} '{url}/v1/products?mission=S5P&limit=1' | head -c 300; echo")

    say("Retrieve: 16 bytes of a file, then a whole product (checked, resumable)")
    shown = run(f'storage-manager --json show {single[0]} | grep -o \'"href": "[^"]*\' | cut -c10-')
    run(f"curl -s -r 0-15 {header} {url}{shown} -o range.bin -D - && wc -c range.bin")
    run(
        f"storage-manager --quiet get {safe[0]} --output out && diff -r inbox/{safe[0]} out/{safe[0]} && echo same"
    )

    say("A processor's day: two inputs as paths, an output stored as prosEO does, and handed out")
    run(
        f"storage-manager stage --seconds 600 {single[0]} {single[1]} > paths 2> lease; cat paths lease"
    )
    run("cat $(cat paths) | sha256sum > inbox/output.txt && cat inbox/output.txt")
    base, output = f"{url}/proseo/storage-mgr/v1", f"{inbox}/output.txt"
    run(
        f"curl -s -u UTM-wrapper:demonstration -X PUT '{base}/productfiles?pathInfo={quote(output)}"
        "&productId=815&fileSize=0' | tee stored; echo"
    )
    claims = {"sub": "output.txt", "exp": int(time.time()) + 60}
    key = (PROSEO_SECRET + " " * 16).encode()[:32].ljust(32, b"\0")
    (DEMO / "link-token").write_text(jwt.encode(claims, key, algorithm="HS256"))
    run(
        'curl -s --get --data-urlencode "pathInfo=$(grep -o \'"filePath":"[^"]*\' stored | cut -c13-)" '
        f"--data-urlencode token@link-token {base}/products/download"
    )
    run("storage-manager stage --release $(cut -d' ' -f2 lease)")

    say("Remove: a tombstone stays, saying who, when and why")
    run(f"storage-manager rm {single[1]} --cause 'demonstration'")
    run("storage-manager ls --state removed")

    say("Watch: what is stored, what happened, is it healthy")
    run("storage-manager status")
    run("storage-manager events && storage-manager events --verify")
    run("storage-manager reconcile")
    run(f"curl -s {url}/healthz/ready")
    run(f"curl -s http://127.0.0.1:{port(9180)}/metrics | grep requests_total | head -5")


def bulk() -> None:
    """Many products at once: a worker that dies, bad items, their retry, the same again."""
    say(f"Bulk: {BULK:,} products by a manifest; four items are bad")
    run("wc -l manifest.ndjson && head -1 manifest.ndjson")
    job = json.loads(run("storage-manager --json import manifest.ndjson --detach"))["id"]
    for _ in range(600):
        shown = json.loads(output(f"storage-manager --json jobs show {job}"))
        if shown["done"] >= BULK // 4:
            break
        time.sleep(0.1)
    say("... its worker is killed in the midst; another one begins, and goes on with the job")
    run(f"kill -9 {worker_pid()} && storage-manager jobs show {job}")
    run(f"storage-manager jobs watch {job}", check=False)
    say(
        "... two of the sources are mended and the failed items tried again; what is done stays done"
    )
    run("mv late-00100.bin bulk/aux-00100.bin && cp sound-00900.bin bulk/aux-00900.bin")
    run(f"storage-manager jobs retry {job}", check=False)
    say("... the same manifest again: nothing is sent and nothing written")
    run("storage-manager import manifest.ndjson", check=False)
    say("... and what a filter finds is removed, after a look")
    run("storage-manager rm --filter name_prefix=aux-0010 --dry-run")
    run("storage-manager rm --filter name_prefix=aux- --cause 'end of the demonstration'")


def main() -> None:
    """Set up, serve, tour, and end or go on."""
    data = Path(os.environ["DATA"]).resolve() if os.environ.get("DATA") else None
    if data is not None and not data.exists():
        raise SystemExit(f"There is no {data}.")
    began = time.monotonic()
    print(
        "The service on a directory, every command as it is run, everything in .demo: about a "
        "minute. Ctrl-C ends it.",
        flush=True,
    )
    end_older()
    say("Set up in .demo: settings, a key, a token, Sentinel-like products")
    set_up(data)
    run("cat settings.toml")
    run("storage-manager token --new-key keys")
    run("storage-manager token --subject demo --scope admin --hours 24 --output token")
    run("echo demonstration | storage-manager proseo-caller UTM-wrapper --scope ingest > callers")
    process = start()
    try:
        tour(data)
        print(f"\nDone in {time.monotonic() - began:.0f} seconds.")
        if os.environ.get("KEEP"):
            print(
                f"The service runs on: http://127.0.0.1:{port(8080)}/\n"
                f"Stop it with: kill {process.pid}\nRepeat any command above with:\n"
                f"  cd {shlex.quote(str(DEMO))} && export PATH={shlex.quote(str(BIN))}:$PATH "
                "STORAGE_MANAGER_SETTINGS=settings.toml STORAGE_MANAGER_TOKEN_FILE=token "
                f"STORAGE_MANAGER_URL=http://127.0.0.1:{port(8080)}"
            )
            return
    finally:
        if not os.environ.get("KEEP") or sys.exc_info()[0] is not None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted; the service is ended, what it made is in .demo.", flush=True)
        sys.exit(130)
