"""Commands about many products at once: import, jobs, and what ``rm --filter`` needs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import IO, Any

import click

from admin_api.cli.client import Client, Reader, once
from admin_api.cli.failures import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    Failure,
    local_failure,
    shown,
)
from admin_api.cli.output import duration, emit, human, part, shortened, width
from admin_api.cli.times import HELP, TIME, utc

_FINAL = ("done", "cancelled")
_FIRST_LOOK_SECONDS = 0.2
_LOOK_SECONDS = 1.0
#: A line of progress so often where there is no terminal.
_PLAIN_SECONDS = 5.0
#: Failed items that are told one by one; the report has them all.
_TOLD = 100
_NDJSON = "application/x-ndjson"


class _Pipe(Reader):
    """Lines from a pipe, which can be read once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._pipe = file
        self._is_begun = False

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        self._is_begun = True
        return self._pipe.read(size)

    def rewind(self) -> None:
        """Nothing to do before the first byte; afterwards it cannot be done."""
        if self._is_begun:
            raise Failure("The manifest came from a pipe and cannot be sent again.", EXIT_FAILED)


@click.command("import")
@click.argument("what")
@click.option("--duplicates", type=click.Choice(["skip", "error", "replace"]), default="skip")
@click.option(
    "--verification",
    type=click.Choice(["size", "digest", "manifest", "readback"]),
    default="digest",
    show_default=True,
)
@click.option("--register", is_flag=True, help="What lies in the store: copy nothing.")
@click.option("--retention", type=TIME, help=f"Keep at least until: {HELP}.")
@click.option(
    "--strays",
    type=click.Choice(["ingest", "skip", "fail"]),
    default="ingest",
    show_default=True,
    help="Files of a directory or prefix that are not called as products.",
)
@click.option("--concurrency", type=click.IntRange(1, 1000), help="Items at once, in all.")
@click.option("--priority", type=click.IntRange(-100, 100), default=0, help="Higher ones first.")
@click.option("--dry-run", is_flag=True, help="Only say what would happen to each item.")
@click.option("--detach", is_flag=True, help="Print the job and do not wait for it.")
@click.pass_obj
def import_(client: Client, /, what: str, detach: bool, **options: Any) -> None:
    """Import many products: WHAT is a manifest, a STAC collection, a directory or s3://...

    A manifest has a JSON object, a URL or a STAC item on each line ('-': standard input).  A
    directory or prefix is searched by the service: trees called .SAFE, .SEN3, .SEN6 or .zarr are
    one product each, every other file is one of its own.

    Exit codes: 7 if some items failed, 1 if all did; interrupted (130) the job goes on.
    """
    wishes = {
        **{name: value for name, value in options.items() if value is not None},
        "mode": "register" if options["register"] else "copy",
    }
    del wishes["register"]
    job = _begin(client, what, wishes)
    if detach:
        emit(client.as_json, job, line_of(job))
        return
    follow(client, job)


def _begin(client: Client, what: str, wishes: dict[str, Any]) -> dict[str, Any]:
    path = Path(what)
    if "://" in what or what.startswith("file:"):
        return begin(client, {**wishes, "source": what})
    if what != "-" and path.is_dir():
        return begin(client, {**wishes, "source": path.absolute().as_uri()})
    if what != "-" and not path.exists():
        raise click.UsageError(f"There is no {shown(path)!r}.")
    try:
        if what == "-":
            return _send(client, _Pipe(sys.stdin.buffer), wishes)
        with path.open("rb") as file:
            if path.suffix.lower() in (".json", ".geojson"):
                return begin(client, _document(file.read(), path), wishes)
            size = path.stat().st_size
            with client.progress(f"sending {path.name}", size) as progress:
                return _send(client, Reader(file, size, progress.move), wishes)
    except OSError as error:
        raise local_failure(error, path) from error
    except KeyboardInterrupt:
        raise Failure(
            "Interrupted while the manifest was sent. What has arrived of it is carried out: "
            "`storage-manager jobs ls` shows it. Send it again for the rest; what is stored is "
            "skipped.",
            EXIT_INTERRUPTED,
        ) from None


def _document(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise Failure(f"{shown(path)} is not JSON: {error}.", EXIT_FAILED) from error


def _query(wishes: dict[str, Any]) -> dict[str, Any]:
    return {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in wishes.items()
    }


def begin(client: Client, body: Any, wishes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Begin an import that is told in JSON; the job."""
    job: dict[str, Any] = client.json(
        "POST", "/v1/imports", query=_query(wishes or {}), body=body, headers=once()
    )
    return job


def _send(client: Client, data: Reader, wishes: dict[str, Any]) -> dict[str, Any]:
    job: dict[str, Any] = client.json(
        "POST",
        "/v1/imports",
        query=_query(wishes),
        data=data,
        headers={"Content-Type": _NDJSON, **once()},
    )
    return job


def remove(client: Client, told: tuple[str, ...], cause: str, dry_run: bool) -> None:
    """Remove the products that a filter finds (``KEY=VALUE``), as a job."""
    pairs = [pair.partition("=") for pair in told]
    if any(not key or not value for key, _, value in pairs):
        raise click.UsageError("A filter is KEY=VALUE, as mission=S3 or created_to=2026-01-01.")
    wanted = {key.replace("-", "_"): value for key, _, value in pairs}
    for key, value in wanted.items():
        if key.endswith(("_from", "_to")):
            try:
                wanted[key] = utc(value)
            except ValueError:
                raise click.UsageError(f"{key}={value} is no time: {HELP}.") from None
    body = {
        "filter": wanted,
        "cause": cause,
        "dry_run": dry_run,
    }
    follow(client, client.json("POST", "/v1/removals", body=body, headers=once()))


# -- following -----------------------------------------------------------------------------------
def follow(client: Client, job: dict[str, Any]) -> None:
    """Tell how a job goes on until it ends; raises Failure if not all of it went well."""
    job = wait(client, job, tell_failed=True)
    if job["options"].get("dry_run"):
        for item in items_of(client, job["id"], "done"):
            emit(client.as_json, item, _item_line(item))
    emit(client.as_json, job, line_of(job))
    judge(job)


def wait(client: Client, job: dict[str, Any], tell_failed: bool = False) -> dict[str, Any]:
    """Tell how far a job is until it ends, and with ``tell_failed`` what fails; the ended job."""
    ticker = _Ticker(client)
    failed, told, pause = 0, 0, _FIRST_LOOK_SECONDS
    try:
        if not client.as_json and not client.quiet:
            click.echo(f"job {job['id']}", err=True)
        while True:
            if tell_failed and job["failed"] and told < _TOLD:
                for item in items_of(client, job["id"], "failed", failed, _TOLD - told):
                    ticker.clear()
                    emit(client.as_json, item, _item_line(item))
                    failed, told = item["sequence"], told + 1
            if job["state"] in _FINAL:
                return job
            ticker.tell(job)
            time.sleep(pause)
            pause = min(2 * pause, _LOOK_SECONDS)
            job = client.json("GET", f"/v1/jobs/{job['id']}", transfer=True)
    except KeyboardInterrupt:
        raise Failure(
            f"Interrupted; the job goes on. Come back with `storage-manager jobs watch {job['id']}`"
            f", end it with `storage-manager jobs cancel {job['id']}`.",
            EXIT_INTERRUPTED,
        ) from None
    finally:
        ticker.clear()


def judge(job: dict[str, Any]) -> None:
    """Raise Failure if not all of an ended job went well."""
    if job["problem"]:
        raise Failure(job["problem"]["detail"], EXIT_FAILED, job["problem"])
    if job["failed"]:
        causes = ", ".join(f"{error['count']} {error['code']}" for error in job["errors"])
        raise Failure(
            f"{job['failed']} of {job['received']} items failed ({causes}). All of them: "
            f"`storage-manager jobs items {job['id']} --outcome failed`; once they are mended: "
            f"`storage-manager jobs retry {job['id']}`.",
            EXIT_PARTIAL if job["done"] + job["skipped"] else EXIT_FAILED,
        )
    if job["state"] == "cancelled":
        raise Failure("The job was cancelled.", EXIT_FAILED)


class _Ticker:
    """The line that says how far a job is: rewritten on a terminal, now and then elsewhere."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._begun = time.monotonic()
        self._is_live = sys.stderr.isatty() and not client.as_json
        self._said = time.monotonic()
        self._is_shown = False

    def tell(self, job: dict[str, Any]) -> None:
        """Say how far the job is, if it is time to."""
        if self._client.quiet:
            return
        if self._is_live:
            text = f"{_counts(job)}, {duration(time.monotonic() - self._begun)}"
            click.echo(f"\r\x1b[K{shortened(text, width() - 1)}", err=True, nl=False)
            self._is_shown = True
        elif time.monotonic() - self._said >= _PLAIN_SECONDS:
            self._said = time.monotonic()
            click.echo(json.dumps(job) if self._client.as_json else line_of(job), err=True)

    def clear(self) -> None:
        """Make room for another line."""
        if self._is_shown:
            click.echo("\r\x1b[K", err=True, nl=False)
            self._is_shown = False


def line_of(job: dict[str, Any]) -> str:
    """A job as one line."""
    return f"{job['id']}  {job['kind']:8}{job['state']:10}{_counts(job)}"


def _counts(job: dict[str, Any]) -> str:
    counts = [f"{job['done']} done"]
    counts += [
        f"{job[name]} {name}"
        for name in ("skipped", "failed", "cancelled", "running", "queued")
        if job[name]
    ]
    is_whole = job["state"] in _FINAL or job["expected_bytes"] <= job["bytes"]
    counts.append(human(job["bytes"]) if is_whole else part(job["bytes"], job["expected_bytes"]))
    if job["items_per_second"]:
        counts.append(f"{job['items_per_second']:.1f} items/s")
        counts.append(f"{human(job['bytes_per_second'] or 0)}/s")
    if job["eta_seconds"] is not None and job["state"] not in _FINAL:
        counts.append(f"ETA {duration(job['eta_seconds'])}")
    return ", ".join(counts)


def items_of(
    client: Client,
    job_id: str,
    outcome: str | None = None,
    after: int = 0,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Items of a job, as its report has them."""
    query = {"outcome": outcome, "after": after, "limit": limit}
    lines = client.lines("GET", f"/v1/jobs/{job_id}/items", query=query)
    return [line for line in lines if line["type"] == "item"]


def _item_line(item: dict[str, Any]) -> str:
    text = f"{item['number']:>8}  {item['outcome']:10}{item['item']}"
    if item["outcome"] == "failed":
        return f"{text}: {item['detail']} [{item['code']}]"
    return f"{text}  {item['result'] or ''}".rstrip()


# -- jobs ----------------------------------------------------------------------------------------
@click.group()
def jobs() -> None:
    """Bulk imports and removals: look at them, go on with them, end them."""


@jobs.command("ls")
@click.option(
    "--state",
    type=click.Choice(["receiving", "running", "paused", "cancelling", "done", "cancelled"]),
)
@click.option("--kind", type=click.Choice(["import", "removal"]))
@click.option("--subject", help="Whose (administrators only).")
@click.option("--created-from", type=TIME, help=HELP)
@click.option("--created-to", type=TIME, help="As --created-from.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000))
@click.pass_obj
def list_jobs(client: Client, /, **filters: Any) -> None:
    """List jobs, the newest first."""
    for job in client.json("GET", "/v1/jobs", query=filters)["jobs"]:
        emit(client.as_json, job, line_of(job))


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def show(client: Client, job_id: str) -> None:
    """Show a job, and what its failed items failed of."""
    job = client.json("GET", f"/v1/jobs/{job_id}")
    lines = [
        line_of(job),
        f"  of {job['subject']}, created {job['created_at']}, begun {job['started_at'] or '-'}, "
        f"ended {job['ended_at'] or '-'}",
    ]
    if job["problem"]:
        lines.append(f"  {job['problem']['detail']} [{job['problem']['code']}]")
    for error in job["errors"]:
        lines.append(f"  {error['count']} items: {error['code']}")
        lines += [f"    {first['item']:>8}: {first['detail']}" for first in error["first"]]
    emit(client.as_json, job, "\n".join(lines))


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def watch(client: Client, job_id: str) -> None:
    """Follow a job until it ends; the exit code is that of its import."""
    follow(client, client.json("GET", f"/v1/jobs/{job_id}"))


@jobs.command()
@click.argument("job_id")
@click.option("--outcome", type=click.Choice(["queued", "done", "skipped", "failed", "cancelled"]))
@click.option("--after", default=0, help="Where the listing before has ended.")
@click.option("--limit", type=click.IntRange(1), help="At most so many.")
@click.pass_obj
def items(client: Client, /, job_id: str, **query: Any) -> None:
    """Report on each item of a job."""
    for line in client.lines("GET", f"/v1/jobs/{job_id}/items", query=query):
        if line["type"] == "item":
            emit(client.as_json, line, _item_line(line))


@jobs.command()
@click.argument("job_id")
@click.option("--code", multiple=True, help="Only items that failed of this.")
@click.option("--detach", is_flag=True, help="Do not wait for the job.")
@click.pass_obj
def retry(client: Client, job_id: str, code: tuple[str, ...], detach: bool) -> None:
    """Queue the failed items of a job again, and follow it."""
    path = f"/v1/jobs/{job_id}/retry"
    if code:
        path += "?" + "&".join(f"code={item}" for item in code)
    job = client.json("POST", path)
    if not client.quiet and not client.as_json:
        click.echo(f"{job['retried']} items are queued again.", err=True)
    if detach:
        emit(client.as_json, job, line_of(job))
        return
    follow(client, job)


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def pause(client: Client, job_id: str) -> None:
    """Begin no more items of a job for now."""
    job = client.json("POST", f"/v1/jobs/{job_id}/pause")
    emit(client.as_json, job, line_of(job))


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def resume(client: Client, job_id: str) -> None:
    """Go on with a paused job."""
    job = client.json("POST", f"/v1/jobs/{job_id}/resume")
    emit(client.as_json, job, line_of(job))


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def cancel(client: Client, job_id: str) -> None:
    """End a job: what is done stays done, nothing more is begun."""
    job = client.json("DELETE", f"/v1/jobs/{job_id}")
    emit(client.as_json, job, line_of(job))
