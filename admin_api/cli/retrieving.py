"""The command ``get``: products as files or archives; what has arrived is not sent again."""

from __future__ import annotations

import hashlib
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from admin_api.cli.client import CHUNK, Client, broken
from admin_api.cli.completing import product_names
from admin_api.cli.failures import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NOT_FOUND,
    EXIT_UNAVAILABLE,
    Failure,
    for_each,
    local_failure,
    shown,
    teller,
)
from admin_api.cli.output import Progress, emit
from admin_api.cli.parallel import Stopped, for_all

if TYPE_CHECKING:
    import urllib3

_DAMAGED = "docs/operations.md#a-damaged-product"


@click.command()
@click.argument("references", nargs=-1, required=True, shell_complete=product_names)
@click.option("--output", type=click.Path(path_type=Path), default=Path(), help="Directory.")
@click.option("--file", "only", multiple=True, help="Only these files (of a single product).")
@click.option(
    "--archive", type=click.Choice(["tar", "zip"]), help="Each product as one archive, NAME.tar."
)
@click.option("--parallel", default=4, show_default=True, type=click.IntRange(1, 32))
@click.pass_obj
def get(
    client: Client,
    references: tuple[str, ...],
    output: Path,
    only: tuple[str, ...],
    archive: str | None,
    parallel: int,
) -> None:
    """Retrieve products by id or name, checked; run it again to go on after an interruption."""
    if only and (archive or len(references) > 1):
        raise click.UsageError("--file goes with a single product and without --archive.")

    def fetch(reference: str) -> None:
        product = client.find(reference)
        if archive:
            place = _fetch_archive(client, product, output, archive)
        else:
            place = _fetch_files(client, product, output, only, parallel)
        text = f"{product['name']} is in {shown(place)}"
        emit(client.as_json, {"id": product["id"], "path": shown(place)}, text)

    try:
        for_each(references, fetch, teller(client.as_json))
    except KeyboardInterrupt:
        raise Failure(
            "Interrupted. Run the same command again to go on where it stopped: what has arrived "
            f"is kept in {shown(output)}.",
            EXIT_INTERRUPTED,
        ) from None


def _fetch_files(
    client: Client, product: dict[str, Any], output: Path, only: tuple[str, ...], parallel: int
) -> Path:
    """The product's files beneath ``output``; where they are."""
    files = [item for item in product["files"] if not only or item["path"] in only]
    lacking = set(only) - {item["path"] for item in files}
    if lacking:
        raise Failure(f"{product['name']} has no {', '.join(sorted(lacking))}.", EXIT_NOT_FOUND)
    top = output if _is_plain_file(product) else output / product["name"]
    parts = _part_names(product["files"])

    def fetch(item: dict[str, Any], stop: threading.Event) -> None:
        target = top / item["path"]
        try:
            _fetch(client, item, top, parts[item["path"]], progress, stop)
        except OSError as error:
            raise local_failure(error, error.filename or target) from error
        progress.file_done()

    size = sum(item["size"] for item in files)
    with client.progress(product["name"], size, len(files)) as progress:
        for_all(fetch, files, parallel)
    return top


def _is_plain_file(product: dict[str, Any]) -> bool:
    """Whether the product is one file of its own name, which lies in no directory."""
    files = product["files"]
    return len(files) == 1 and bool(files[0]["path"] == product["name"])


def _part_names(files: list[dict[str, Any]]) -> dict[str, str]:
    """By path, what an unfinished file is called: by its content, and equal ones are counted."""
    seen: Counter[str] = Counter()
    names = {}
    for item in sorted(files, key=lambda item: str(item["path"])):
        stem = item["sha256"][:16]
        count = seen[stem]
        seen[stem] += 1
        names[item["path"]] = f".{stem}-{count}.part" if count else f".{stem}.part"
    return names


def _fetch(
    client: Client,
    item: dict[str, Any],
    top: Path,
    part_name: str,
    progress: Progress,
    stop: threading.Event,
) -> None:
    target = top / item["path"]
    if not target.resolve().is_relative_to(top.resolve()):
        raise Failure(f"{item['path']!r} would leave {shown(top)}.", EXIT_FAILED)
    if target.is_dir():
        raise Failure(f"{shown(target)} is a directory; a file is to lie there.", EXIT_FAILED)
    target.parent.mkdir(parents=True, exist_ok=True)
    if (
        target.is_file()
        and target.stat().st_size == item["size"]
        and _sha256(target) == item["sha256"]
    ):
        progress.move(item["size"])
        return
    part = target.with_name(part_name)
    with part.open("ab") as file:
        have = file.tell()
        if have > item["size"]:
            have = file.truncate(0)
        progress.move(have)
        resumed = have > 0
        if have < item["size"]:
            headers = {"Range": f"bytes={have}-"} if have else {}
            answer = client.request("GET", item["href"], headers=headers, transfer=True, stop=stop)
            if resumed and answer.status != 206:  # whoever served it knows no ranges
                file.truncate(0)
                progress.move(-have)
                resumed = False
            for chunk in _received(answer, item["path"], stop):
                file.write(chunk)
                progress.move(len(chunk))
    if _sha256(part) != item["sha256"]:
        part.unlink()
        raise Failure(
            f"{item['path']!r} arrived with another digest; "
            + (
                "run the command again: it begins this file anew."
                if resumed
                else f"the stored bytes may be damaged: `storage-manager verify`, {_DAMAGED}."
            ),
            EXIT_FAILED,
        )
    part.replace(target)


def _received(
    answer: urllib3.BaseHTTPResponse, path: str, stop: threading.Event
) -> Iterator[bytes]:
    try:
        for chunk in answer.stream(CHUNK):
            if stop.is_set():
                raise Stopped
            yield chunk
    except broken() as error:
        raise Failure(
            f"{path!r} broke off; run the command again to go on.", EXIT_UNAVAILABLE
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- archives ------------------------------------------------------------------------------------
def _fetch_archive(client: Client, product: dict[str, Any], output: Path, kind: str) -> Path:
    """The product as one archive in ``output``; where it is."""
    target = output / f"{product['name']}.{kind}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        if target.is_file() and not _wrong(target, product, kind):
            return target
        part = _receive_archive(client, product, output, kind)
        wrong = _wrong(part, product, kind)
        if wrong:
            part.unlink()
            raise Failure(
                f"The archive arrived with other bytes: {wrong}. Run the command again; if it "
                f"stays so, what is stored may be damaged: `storage-manager verify`, {_DAMAGED}.",
                EXIT_FAILED,
            )
        part.replace(target)
    except OSError as error:
        raise local_failure(error, error.filename or target) from error
    return target


def _receive_archive(client: Client, product: dict[str, Any], output: Path, kind: str) -> Path:
    """The archive's bytes; of a tar that broke off only those that are lacking are asked for."""
    place = f"/v1/products/{product['id']}/archive"
    told = client.request("HEAD", place, query={"format": kind}).headers
    # A tar is the same bytes each time, and has a validator; a zip is neither.
    tag, size = told.get("ETag", ""), int(told.get("Content-Length", product["size"]))
    part = output / f".{tag.strip(chr(34))[:16] or product['id']}.{kind}.part"
    stop = threading.Event()
    with part.open("ab") as file, client.progress(f"{product['name']}.{kind}", size) as progress:
        have = file.tell()
        if not tag or have > size:
            have = file.truncate(0)
        if have == size and tag:
            progress.move(size)
            return part
        headers = {"Range": f"bytes={have}-", "If-Range": tag} if have else {}
        answer = client.request(
            "GET", place, query={"format": kind}, headers=headers, transfer=True
        )
        if answer.status != 206:
            have = file.truncate(0)
        progress.move(have)
        for chunk in _received(answer, product["name"], stop):
            file.write(chunk)
            progress.move(len(chunk))
    return part


def _wrong(path: Path, product: dict[str, Any], kind: str) -> str | None:
    """What of an archive is not the product, or None."""
    folder = "" if _is_plain_file(product) else f"{product['name']}/"
    wanted = {folder + item["path"]: item["sha256"] for item in product["files"]}
    try:
        found = dict(_tar_digests(path) if kind == "tar" else _zip_digests(path))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        return f"it cannot be read ({error})"
    differing = sorted(name for name in wanted if found.get(name) != wanted[name])
    return f"{differing[0]!r} differs" if differing else None


def _tar_digests(path: Path) -> Iterator[tuple[str, str]]:
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                yield member.name, _digest(content)


def _zip_digests(path: Path) -> Iterator[tuple[str, str]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                with archive.open(member) as content:
                    yield member.filename, _digest(content)


def _digest(content: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := content.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
