"""The command ``ingest``: local products are uploaded, URIs are fetched by the service as a job."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from admin_api import uris
from admin_api.cli import jobs, pieces, sending
from admin_api.cli.client import Client
from admin_api.cli.failures import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXITS_BY_CODE,
    Failure,
    document,
    for_each,
    local_failure,
    shown,
)
from admin_api.cli.output import emit, human
from admin_api.cli.times import HELP, TIME
from admin_api.products.names import parse_name
from admin_api.products.trees import is_one_product

#: Names of stray files that are shown before it is asked what to do with them.
_NAMED = 5


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
@click.option("--retention", type=TIME, help=f"Keep at least until: {HELP}.")
@click.option(
    "--strays",
    type=click.Choice(["ingest", "skip", "fail"]),
    help="Files of a directory that are not called as products.  [default: ask on a terminal, "
    "else ingest]",
)
@click.option("--register", is_flag=True, help="URIs only: register in place, copy nothing.")
@click.option("--parallel", default=4, show_default=True, type=click.IntRange(1, 32))
@click.option(
    "--resume", metavar="ID", help="Go on with a session that broke off (with one product)."
)
@click.option("--detach", is_flag=True, help="URIs only: print the job and do not wait for it.")
@click.pass_obj
def ingest(client: Client, /, what: tuple[str, ...], parallel: int, **options: Any) -> None:
    """Ingest products: local files and directories (uploaded), or URIs (fetched by the service).

    A directory named .SAFE, .SEN3, .SEN6 or .zarr, or with a manifest at its top (or with --tree
    any), is one product; another directory is searched, by the same rule, and every other file in
    it is a product of its own.
    """
    items = [item for argument in what for item in _expand(client, argument, options)]
    if not items:
        raise Failure(f"There is nothing to ingest in {', '.join(what)}.", EXIT_FAILED)
    is_local = [isinstance(item, Path) for item in items]
    for option in ("name", "resume"):
        if options[option] and len(items) != 1:
            raise click.UsageError(f"--{option} goes with a single product.")
    if options["resume"] and (options["unpack"] or not is_local[0]):
        raise click.UsageError("--resume goes with a local file or directory that is not unpacked.")
    for option in ("register", "detach"):
        if options[option] and any(is_local):
            raise click.UsageError(f"--{option} goes with URIs.")
    ended = 0

    def one(item: str | Path) -> None:
        nonlocal ended
        if isinstance(item, str):
            _by_reference(client, item, options)
        else:
            _upload(client, item, parallel, options)
        ended += 1

    def failed(item: str | Path, failure: Failure) -> None:
        nonlocal ended
        ended += 1
        line = {"source": _source(item), "result": "failed", **document(failure)}
        emit(client.as_json, line, f"FAILED  {_source(item)}: {failure.format_message()}")

    try:
        for_each(items, one, failed)
    except KeyboardInterrupt:
        raise Failure(
            f"Interrupted; {ended} of {len(items)} were through. Run the same command again to go "
            "on: what is stored is skipped.",
            EXIT_INTERRUPTED,
        ) from None


def _source(item: str | Path) -> str:
    """What is ingested as it may be printed: a path, or a URI without its secrets."""
    return shown(uris.shown(item) if isinstance(item, str) else item)


def _expand(client: Client, argument: str, options: dict[str, Any]) -> list[str | Path]:
    """The products that an argument names; a URI is searched by the service."""
    if "://" in argument or argument.startswith("file:"):
        return [argument]
    path = Path(argument)
    if not os.path.lexists(path):
        raise click.UsageError(f"There is no {shown(argument)!r}.")
    if not path.is_dir() or options["tree"]:
        return [path]
    found = list(_search(path))
    strays = [item for item in found if not item.is_dir() and parse_name(item.name) is None]
    if not strays or options["strays"] == "ingest":
        return [*found]
    if options["strays"] == "fail":
        raise Failure(f"{_named(strays)} not called as products are.", EXIT_FAILED)
    if options["strays"] is None and not _is_refused(client, strays):
        return [*found]
    return [item for item in found if item not in set(strays)]


def _search(path: Path) -> Iterator[Path]:
    """Products beneath a directory: whole trees, and every other file."""
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise local_failure(error, path) from error
    if is_one_product(_absolute(path).name, [entry.name for entry in entries]):
        yield path
        return
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            yield from _search(entry)
        else:
            yield entry


def _is_refused(client: Client, strays: list[Path]) -> bool:
    """Ask what is to happen to stray files, where somebody is there to answer."""
    if client.as_json or client.quiet or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    question = f"{_named(strays)} not called as products are. Ingest them, too?"
    return not click.confirm(question, default=False, err=True)


def _named(strays: list[Path]) -> str:
    names = ", ".join(shown(item.name) for item in strays[:_NAMED])
    more = f" and {len(strays) - _NAMED} more" if len(strays) > _NAMED else ""
    return f"{names}{more} {'is' if len(strays) == 1 else 'are'}"


def _wishes(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "duplicates": options["duplicates"],
        "verification": options["verification"],
        "retention": options["retention"],
    }


# -- local products ------------------------------------------------------------------------------
def _upload(client: Client, path: Path, parallel: int, options: dict[str, Any]) -> None:
    try:
        answer = _sent(client, _absolute(path), parallel, options)
    except sending.LeftOpenError as left:
        failure = left.failure
        raise Failure(
            f"{failure.message} What has arrived of {shown(path)} is kept for now: add "
            f"--resume {left.session} to the same command to go on.",
            failure.exit_code,
            failure.problem,
        ) from failure
    text = f"{answer['result']:8}{answer['id']}  {human(answer['size']):>10}  {answer['name']}"
    emit(client.as_json, answer, text)


def _sent(client: Client, path: Path, parallel: int, options: dict[str, Any]) -> dict[str, Any]:
    """Send a product; what the service made of it."""
    wishes = _wishes(options)
    mode = sending.mode_of(path)
    name = options["name"] or path.name
    if stat.S_ISDIR(mode):
        files = list(sending.files_beneath(path))
        return sending.send_in_session(client, files, name, parallel, wishes, options["resume"])
    query = wishes | ({"unpack": "true"} if options["unpack"] else {})
    file = sending.LocalFile(path, name, sending.size_of(path))
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


# -- by reference --------------------------------------------------------------------------------
def _by_reference(client: Client, uri: str, options: dict[str, Any]) -> None:
    """Have the service ingest what a URI names, as a job, which can be left and found again."""
    body = {
        **{name: value for name, value in _wishes(options).items() if value is not None},
        "mode": "register" if options["register"] else "copy",
    }
    is_searched = uri.startswith(("file:", "s3:", "alluxio:"))
    if not is_searched or options["name"] or options["unpack"] or options["tree"]:
        item = {"source": uri, "unpack": options["unpack"]}
        if options["name"]:
            item["name"] = options["name"]
        body["items"] = [item]
    else:
        body |= {"source": uri, "strays": options["strays"] or "ingest"}
    job = jobs.begin(client, body)
    if options["detach"]:
        emit(client.as_json, job, jobs.line_of(job))
        return
    job = jobs.wait(client, job)
    failures = []
    for item in jobs.items_of(client, job["id"]):
        if item["outcome"] == "failed":
            exit_code = EXITS_BY_CODE.get(item["code"], EXIT_FAILED)
            problem = {"code": item["code"], "job": job["id"]}
            failures.append(Failure(f"{item['detail']} [{item['code']}]", exit_code, problem))
        if item["outcome"] != "failed" or job["received"] > 1:
            emit(client.as_json, item, _item_text(item))
    if len(failures) == job["received"] == 1:
        raise failures[0]
    jobs.judge(job)


def _item_text(item: dict[str, Any]) -> str:
    name = item["item"]
    if item["outcome"] == "failed":
        return f"FAILED  {name}: {item['detail']} [{item['code']}]"
    return f"{item['result']:8}{item['product']}  {human(item['bytes']):>10}  {name}"
