"""P1, P2, P3: retrieval by signed link, retrieval through the API, upload, each against a peer."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.measure import Row, interleaved
from tests.support.servers import (
    ACCESS_KEY,
    SECRET_KEY,
    Service,
    Weed,
    free_port,
    service_in,
    wait_until,
)

SIZE = 256 << 20
_names = itertools.count()


def data_file(directory: Path, size: int = SIZE) -> Path:
    """Incompressible bytes in a file that the page cache holds."""
    path = directory / f"data-{size}"
    if not path.exists():
        with path.open("wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
    return path


def start(directory: Path, backend: dict, name: str, **sections: dict) -> Service:
    """The service over ``backend``, with housekeeping out of the way."""
    calm = {"interval_seconds": 600}
    service = service_in(directory / name, backend, housekeeping=calm, **sections)
    service.start()
    header_file(service).write_text(f"Authorization: Bearer {service.token()}\n")
    return service


def curl(service: Service, *arguments: str) -> None:
    """The same client for both sides."""
    command = ["curl", "-fsS", "-o", "/dev/null"]
    if service:
        command += ["-H", f"@{header_file(service)}"]
    subprocess.run([*command, *arguments], check=True)


def header_file(service: Service) -> Path:
    """The token for curl, never on a command line."""
    return service.directory / "header"


def s5cmd(server: Weed, *arguments: str) -> None:
    """s5cmd with its defaults."""
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
    }
    binary = str(Path(sys.executable).parent / "s5cmd")
    subprocess.run(
        [binary, "--log", "error", "--endpoint-url", server.endpoint, *arguments],
        check=True,
        env=environment,
    )


def p1(directory: Path, server: Weed, options: Namespace) -> list[Row]:
    """Retrieval by signed link, the link asked for each time, against the same client direct."""
    backend = server.backend()
    service = start(directory, backend, "p1")
    try:
        href, key = stored(service, data_file(directory))
        direct = server.client().generate_presigned_url(
            "get_object", Params={"Bucket": backend["bucket"], "Key": key}, ExpiresIn=3600
        )
        _, _, ratios = interleaved(
            lambda: curl(service, "-L", service.url + href),
            lambda: curl(None, direct),
            options.repeats,
        )
    finally:
        service.stop()
    what = "256 MiB by signed link / the same client directly, all on 2 shared cores (s3)"
    return [Row("P1", what, ratios, target=0.7, dream=0.9)]


def p2(directory: Path, server: Weed, options: Namespace) -> list[Row]:
    """Retrieval through the API, against the store itself."""
    rows = []
    backend = server.backend()
    service = start(directory, backend, "p2-s3")
    try:
        href, key = stored(service, data_file(directory))
        direct = server.client().generate_presigned_url(
            "get_object", Params={"Bucket": backend["bucket"], "Key": key}, ExpiresIn=3600
        )
        _, _, ratios = interleaved(
            lambda: curl(service, f"{service.url}{href}?redirect=false"),
            lambda: curl(None, direct),
            options.repeats,
        )
        what = "256 MiB through the API / the same client directly at SeaweedFS (s3)"
        rows.append(Row("P2", what, ratios, target=0.8, dream=0.9))
    finally:
        service.stop()
    service = start(directory, {"type": "posix", "root": directory / "p2-store"}, "p2-posix")
    try:
        href, _ = stored(service, data_file(directory))
        path = data_file(directory)
        _, _, ratios = interleaved(
            lambda: curl(service, service.url + href),
            lambda: curl(None, path.as_uri()),
            options.repeats,
        )
        what = "256 MiB through the API (sendfile) / curl of file:// without any server (posix)"
        rows.append(Row("P2", what, ratios, target=0.8, dream=0.9))
        with rclone_http(path.parent) as url:
            _, _, ratios = interleaved(
                lambda: curl(service, service.url + href),
                lambda: curl(None, f"{url}/{path.name}"),
                options.repeats,
            )
        what = "256 MiB through the API (sendfile) / rclone serve http of the same file (posix)"
        rows.append(Row("P2", what, ratios, target=0.8, dream=0.9))
    finally:
        service.stop()
    return rows


@contextlib.contextmanager
def rclone_http(directory: Path) -> Iterator[str]:
    """A well-known server of files over the directory."""
    address = f"127.0.0.1:{free_port()}"
    binary = str(Path(sys.executable).parent / "rclone")
    process = subprocess.Popen(
        [binary, "serve", "http", "--addr", address, "--log-level", "ERROR", str(directory)]
    )
    try:
        answers = ["curl", "-fsS", "-o", "/dev/null", f"http://{address}/"]
        wait_until(
            lambda: subprocess.run(answers, capture_output=True).returncode == 0, 20, "rclone"
        )
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def p3(directory: Path, server: Weed, options: Namespace) -> list[Row]:
    """Upload with MD5 and SHA-256 against ``s5cmd cp`` (which verifies nothing) and ``cp``."""
    rows = []
    path = data_file(directory)
    for parallel in (1, 4):
        backend = server.backend()
        service = start(directory, backend, f"p3-s3-{parallel}")
        sources = copies(directory, path, parallel, SIZE // parallel)

        def ours(service: Service = service, sources: list[Path] = sources) -> None:
            with ThreadPoolExecutor(len(sources)) as pool:
                list(pool.map(lambda source: put(service, source), sources))

        def peer(bucket: str = backend["bucket"], sources: list[Path] = sources) -> None:
            lines = [f"cp {source} s3://{bucket}/peer/{next(_names)}" for source in sources]
            listing = directory / "s5cmd-commands"
            listing.write_text("\n".join(lines) + "\n")
            s5cmd(server, "run", str(listing))

        try:
            _, _, ratios = interleaved(ours, peer, options.repeats)
        finally:
            service.stop()
        what = f"256 MiB in {parallel} file(s) through the API, digested / s5cmd cp (s3)"
        rows.append(Row("P3", what, ratios, target=0.6, dream=0.8))
    service = start(directory, {"type": "posix", "root": directory / "p3-store"}, "p3-posix")
    target = directory / "p3-copy"

    def copy() -> None:
        target.unlink(missing_ok=True)
        subprocess.run(["cp", str(path), str(target)], check=True)
        subprocess.run(["sync", str(target)], check=True)

    try:
        _, _, ratios = interleaved(lambda: put(service, path), copy, options.repeats)
    finally:
        service.stop()
    what = "256 MiB through the API, digested and durable / cp and sync of it (posix)"
    rows.append(Row("P3", what, ratios, target=0.6, dream=0.8))
    return rows


def copies(directory: Path, path: Path, count: int, size: int) -> list[Path]:
    """``path`` itself, or ``count`` files of ``size`` bytes."""
    if count == 1:
        return [path]
    return [data_file(directory / f"copy-{number}", size) for number in prepared(directory, count)]


def prepared(directory: Path, count: int) -> range:
    for number in range(count):
        (directory / f"copy-{number}").mkdir(exist_ok=True)
    return range(count)


def put(service: Service, source: Path) -> None:
    """Upload ``source`` under a new name with curl."""
    curl(service, "-T", str(source), f"{service.url}/v1/uploads/upload-{next(_names)}.bin")


def stored(service: Service, path: Path) -> tuple[str, str]:
    """The file's link at the service and its key in the store, after uploading it."""
    with path.open("rb") as file:
        product = service.json(
            "PUT",
            f"/v1/uploads/{path.name}",
            file,
            201,
            headers={"Content-Length": str(path.stat().st_size)},
        )
    item = product["files"][0]
    return item["href"], f"{product['path'].strip('/')}/{item['path']}"
