"""Commands about products: ingest, get, ls, show, cache, rm, keep, verify."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import urllib3

from admin_api import uris
from admin_api.cli import jobs, pieces, sending
from admin_api.cli.client import (
    CHUNK,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_UNAVAILABLE,
    Client,
    Failure,
    local_failure,
    once,
    shown,
)
from admin_api.cli.output import Progress, emit, human
from admin_api.cli.parallel import Stopped, for_all
from admin_api.products.manifests import find_manifest
from admin_api.products.names import is_tree

_DAMAGED = "docs/operations.md#a-damaged-product"


def _source(item: str | Path) -> str:
    """What is ingested as it may be printed: a path, or a URI without its secrets."""
    return shown(uris.shown(item) if isinstance(item, str) and "://" in item else item)


@click.command()
@click.argument("what", nargs=-1, required=True)
@click.option("--name", help="Name of the product (with a single one).")
@click.option("--unpack", is_flag=True, help="The files are archives of products.")
@click.option("--tree", is_flag=True, help="Each directory is one product.")
@click.option("--duplicates", type=click.Choice(["skip", "error", "replace"]), default="skip")
@click.option(
    "--verification",
    type=click.Choice(["size", "digest", "manifest", "readback"]),
    default="digest",
    show_default=True,
)
@click.option("--retention", help="Keep at least until (RFC 3339).")
@click.option("--register", is_flag=True, help="URIs only: register in place, copy nothing.")
@click.option("--parallel", default=4, show_default=True, type=click.IntRange(1, 32))
@click.option(
    "--resume", metavar="ID", help="Go on with a session that broke off (with one product)."
)
@click.pass_obj
def ingest(client: Client, /, what: tuple[str, ...], parallel: int, **options: Any) -> None:
    """Ingest products: local files and directories (uploaded), or URIs (fetched by the service).

    A directory named .SAFE, .SEN3, .SEN6 or .zarr, or with a manifest at its top (or with --tree
    any), is one product; of another directory each entry is one.
    """
    items = [item for argument in what for item in _expand(argument, options["tree"])]
    for option in ("name", "resume"):
        if options[option] and len(items) != 1:
            raise click.UsageError(f"--{option} goes with a single product.")
    if options["resume"] and (options["unpack"] or isinstance(items[0], str)):
        raise click.UsageError("--resume goes with a local file or directory that is not unpacked.")
    failures: list[Failure] = []
    for item in items:
        try:
            answer = _ingest_one(client, item, parallel, options)
        except sending.LeftOpenError as left:
            failure = left.failure
            raise Failure(
                f"{failure.message} What has arrived of {_source(item)} is kept for now: add "
                f"--resume {left.session} to the same command to go on.",
                failure.exit_code,
                failure.problem,
            ) from failure
        except KeyboardInterrupt:
            raise Failure(
                "Interrupted. Run the same command again to go on: what is stored is skipped.",
                EXIT_INTERRUPTED,
            ) from None
        except Failure as failure:
            failures.append(failure)
            emit(
                client.as_json,
                {"source": _source(item), **failure.problem},
                f"FAILED  {_source(item)}: {failure.message}",
            )
            for line in _manifest_lines(failure.problem):
                if not client.as_json:
                    click.echo(line)
            if failure.exit_code == EXIT_UNAVAILABLE and not failure.problem:
                raise  # nobody answers; the others would fail alike
            continue
        emit(
            client.as_json,
            answer,
            f"{answer['result']:8}{answer['id']}  {human(answer['size']):>10}  {answer['name']}",
        )
    if failures:
        codes = {failure.exit_code for failure in failures}
        raise Failure(
            f"{len(failures)} of {len(items)} products failed.",
            codes.pop() if len(codes) == 1 else EXIT_FAILED,
        )


def _expand(argument: str, tree: bool) -> list[str | Path]:
    if "://" in argument or argument.startswith("file:"):
        return [argument]
    path = Path(argument)
    if not os.path.lexists(path):
        raise click.UsageError(f"There is no {shown(argument)!r}.")
    if not path.is_dir() or tree or is_tree(_absolute(path).name):
        return [path]
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise local_failure(error, path) from error
    if find_manifest("", [entry.name for entry in entries]) is not None:
        return [path]
    return list(entries)


def _ingest_one(
    client: Client, item: str | Path, parallel: int, options: dict[str, Any]
) -> dict[str, Any]:
    wishes = {
        "duplicates": options["duplicates"],
        "verification": options["verification"],
        "retention": options["retention"],
    }
    if isinstance(item, str):
        body = {
            "source": item,
            "unpack": options["unpack"],
            "mode": "register" if options["register"] else "copy",
            **wishes,
        }
        if options["name"]:
            body["name"] = options["name"]
        answer: dict[str, Any] = client.json("POST", "/v1/products", body=body, headers=once())
        return answer
    item = _absolute(item)
    mode = sending.mode_of(item)
    name = options["name"] or item.name
    if stat.S_ISDIR(mode):
        files = list(sending.files_beneath(item))
        return sending.send_in_session(client, files, name, parallel, wishes, options["resume"])
    query = wishes | ({"unpack": "true"} if options["unpack"] else {})
    file = sending.LocalFile(item, name, sending.size_of(item))
    sending.require_utf8(file.path)
    if options["resume"] or (file.size >= pieces.LARGE_BYTES and not options["unpack"]):
        return sending.send_in_session(client, [file], name, parallel, wishes, options["resume"])
    with client.progress(name, file.size) as progress:
        return sending.put(
            client, file, f"/v1/uploads/{quote(name, safe='')}", progress, query=query
        )


def _absolute(path: Path) -> Path:
    """``path`` with the name that ``.`` and ``..`` mean; links stay links, and are refused."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() follows links


def _manifest_lines(problem: dict[str, Any]) -> list[str]:
    report = problem.get("manifest") or {}
    lines = [f"    wrong    {item['path']}: {item['reason']}" for item in report.get("wrong", [])]
    return lines + [f"    missing  {path}" for path in report.get("missing", [])]


@click.command()
@click.argument("reference")
@click.option("--output", type=click.Path(path_type=Path), default=Path(), help="Directory.")
@click.option("--file", "only", multiple=True, help="Only these files of the product.")
@click.option("--parallel", default=4, show_default=True, type=click.IntRange(1, 32))
@click.pass_obj
def get(client: Client, reference: str, output: Path, only: tuple[str, ...], parallel: int) -> None:
    """Retrieve a product by id or name; an interrupted one goes on where it stopped."""
    product = client.find(reference)
    files = [item for item in product["files"] if not only or item["path"] in only]
    if only and len(files) != len(set(only)):
        raise Failure("The product has not all of these files.", EXIT_FAILED)
    top = output
    if not (len(product["files"]) == 1 and product["files"][0]["path"] == product["name"]):
        top = output / product["name"]
    parts = _part_names(product["files"])

    def fetch(item: dict[str, Any], stop: threading.Event) -> None:
        target = top / item["path"]
        try:
            _fetch(client, item, top, parts[item["path"]], progress, stop)
        except OSError as error:
            raise local_failure(error, error.filename or target) from error

    try:
        with client.progress(product["name"], sum(item["size"] for item in files)) as progress:
            for_all(fetch, files, parallel)
    except KeyboardInterrupt:
        raise Failure(
            "Interrupted. Run the same command again to go on where it stopped.", EXIT_INTERRUPTED
        ) from None
    emit(client.as_json, {"id": product["id"], "path": str(top)}, f"{product['name']} is in {top}")


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
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Failure(
            f"{path!r} broke off; run the command again to go on.", EXIT_FAILED
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@click.command()
@click.option("--mission")
@click.option("--type", "product_type")
@click.option("--name-prefix")
@click.option("--state", type=click.Choice(["available", "removing", "removed"]))
@click.option("--sensing-from", help="RFC 3339.")
@click.option("--sensing-to", help="RFC 3339.")
@click.option("--created-from", help="RFC 3339.")
@click.option("--created-to", help="RFC 3339.")
@click.option("--limit", type=click.IntRange(1), help="At most so many.")
@click.pass_obj
def ls(client: Client, /, limit: int | None, **filters: Any) -> None:
    """List products, one per line."""
    cursor, left = None, limit
    while True:
        size = min(left, 1000) if left else 1000
        page = client.json(
            "GET", "/v1/products", query={**filters, "cursor": cursor, "limit": size}
        )
        for product in page["products"]:
            emit(
                client.as_json,
                product,
                f"{product['id']}  {human(product['size']):>10}  {product['file_count']:>5} files  "
                f"{product['name']}",
            )
        cursor = page["next"]
        if left is not None:
            left -= len(page["products"])
        if cursor is None or left == 0:
            return


@click.command()
@click.argument("reference")
@click.pass_obj
def show(client: Client, reference: str) -> None:
    """Show a product, by id or name, with its files."""
    product = client.find(reference)
    lines = [
        f"{key:15}{product[key]}" for key in product if key != "files" and product[key] is not None
    ]
    lines += [
        f"  {human(item['size']):>10}  {item['sha256'][:12]}  {item['path']}"
        for item in product["files"]
    ]
    emit(client.as_json, product, "\n".join(lines))


@click.command()
@click.argument("reference")
@click.argument(
    "action", required=False, type=click.Choice(["show", "warm", "free", "pin", "unpin"])
)
@click.pass_obj
def cache(client: Client, reference: str, action: str | None) -> None:
    """Show what of a product the cluster has cached, or warm, free, pin or unpin it."""
    path = f"/v1/products/{client.find(reference)['id']}/cache"
    if action in (None, "show"):
        answer = client.json("GET", path)
    else:
        answer = client.json("POST", path, body={"action": action})
    lines = [f"{answer['cached']} % cached"]
    for item in answer["files"]:
        places = ", ".join(
            f"{place['node']} {place['tier']} {human(place['bytes'])}" for place in item["places"]
        )
        pinned = "  pinned" if item["pinned"] else ""
        lines.append(
            f"  {item['cached']:>3} %  {human(item['size']):>10}  {item['path']}{pinned}  {places}"
        )
    emit(client.as_json, answer, "\n".join(lines))


@click.command()
@click.argument("references", nargs=-1)
@click.option("--cause", default="requested", show_default=True, help="Kept in the tombstone.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    help="All products that meet this: mission, product_type, name_prefix, sensing_from, "
    "sensing_to, created_from, created_to; several must all be met.",
)
@click.option("--dry-run", is_flag=True, help="With --filter: only say what would be removed.")
@click.pass_obj
def rm(
    client: Client,
    references: tuple[str, ...],
    cause: str,
    filters: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Remove products, by id or name, or all that a filter finds (as a job)."""
    if bool(references) == bool(filters) or (dry_run and not filters):
        raise click.UsageError("Name products, or give --filter (with --dry-run, if you like).")
    if filters:
        jobs.remove(client, filters, cause, dry_run)
        return
    for reference in references:
        product = client.find(reference)
        answer = client.json("DELETE", f"/v1/products/{product['id']}", query={"cause": cause})
        emit(client.as_json, answer, f"{answer['state']:10}{answer['id']}  {answer['name']}")


@click.command()
@click.argument("reference")
@click.option("--hold", help="Hold the product, for this reason.")
@click.option("--release", is_flag=True, help="Lift the hold.")
@click.option("--retention", help="Not removed before (RFC 3339), purged after; 'none' lifts it.")
@click.pass_obj
def keep(
    client: Client, reference: str, hold: str | None, release: bool, retention: str | None
) -> None:
    """Hold a product, lift the hold, or set its retention date."""
    body: dict[str, Any] = {}
    if hold or release:
        body["hold"] = hold
    if retention:
        body["retention"] = None if retention == "none" else retention
    if not body:
        raise click.UsageError("Say --hold, --release or --retention.")
    product = client.find(reference)
    answer = client.json("PATCH", f"/v1/products/{product['id']}", body=body)
    emit(
        client.as_json,
        answer,
        f"{answer['name']}: hold {answer['hold'] or 'none'}, "
        f"retention {answer['retention'] or 'none'}",
    )


@click.command()
@click.argument("references", nargs=-1, required=True)
@click.option("--manifest", is_flag=True, help="Compare with the manifest too.")
@click.pass_obj
def verify(client: Client, references: tuple[str, ...], manifest: bool) -> None:
    """Read products back and compare them with what was stored."""
    failed = 0
    for reference in references:
        product = client.find(reference)
        path = f"/v1/products/{product['id']}/verification"
        read: set[str] = set()  # the manifest comes twice: as a file, and compared with all
        with client.progress(product["name"], product["size"]) as progress:
            for line in client.lines("POST", path, query={"manifest": str(manifest).lower()}):
                if line["type"] == "summary":
                    failed += line["failed"]
                    emit(
                        client.as_json,
                        {"id": product["id"], **line},
                        f"{product['name']}: {line['checked']} checked, {line['failed']} failed",
                    )
                    continue
                if line["path"] not in read:
                    progress.move(line["size"])
                read.add(line["path"])
                if not line["passed"]:
                    emit(client.as_json, line, f"FAILED  {line['path']}: {line['message']}")
    if failed:
        raise Failure(
            f"{failed} files are not what they should be. What to do: {_DAMAGED}", EXIT_FAILED
        )
