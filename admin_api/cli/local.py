"""Commands that run on the service's own host, with its settings: serve, token, rebuild..."""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import timedelta
from pathlib import Path

import click

from admin_api.cli.failures import EXIT_FAILED, EXIT_UNAVAILABLE, Failure, local_failure
from admin_api.cli.output import Progress, emit
from admin_api.errors import CatalogUnavailable, Denied, StorageManagerError, Unavailable

_RECONCILE_NEXT = (
    "A record that is missing cannot be named here: start the service and run "
    "`storage-manager reconcile`."
)

# The service's own modules are imported by the commands: clients need not wait for them.

settings_option = click.option(
    "--settings",
    "settings_file",
    envvar="STORAGE_MANAGER_SETTINGS",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Settings file (TOML).",
)


@click.command()
@settings_option
def serve(settings_file: Path | None) -> None:
    """Serve the API until a signal ends it."""
    from admin_api.settings import load
    from admin_api.web.server import serve as run

    try:
        run(lambda: load(settings_file))
    except StorageManagerError as error:
        raise Failure(error.detail, EXIT_FAILED) from error


@click.command()
@settings_option
def worker(settings_file: Path | None) -> None:
    """Run housekeeping and gauges beside a server that does not (server.worker = false)."""
    from admin_api.settings import load
    from admin_api.worker import work

    try:
        work(load(settings_file))
    except StorageManagerError as error:
        raise Failure(error.detail, EXIT_FAILED) from error


@click.command()
@settings_option
@click.option("--subject", default="operator", show_default=True, help="Who the token is for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["read", "ingest", "remove", "admin"]),
    help="What it allows; may be given several times.  [default: read]",
)
@click.option("--mission", "missions", multiple=True, help="Restrict it to these missions.")
@click.option("--hours", default=24.0, show_default=True, type=click.FloatRange(0.01, 24 * 366))
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it to this file, readable by its owner only.  [default: print it]",
)
@click.option(
    "--new-key",
    "new_key",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Make no token but a key file, at this path.",
)
def token(
    settings_file: Path | None,
    subject: str,
    scopes: tuple[str, ...],
    missions: tuple[str, ...],
    hours: float,
    output: Path | None,
    new_key: Path | None,
) -> None:
    """Make a token with the facility's key, or the key itself."""
    from admin_api.services.access import Authority, Scope, new_key_file
    from admin_api.settings import load

    try:
        if new_key is not None:
            new_key_file(new_key)
            click.echo(f"Wrote a new key to {new_key}.", err=True)
            return
        authority = Authority(load(settings_file).auth)
        made = authority.issue(
            subject,
            [Scope(scope) for scope in scopes or ("read",)],
            timedelta(hours=hours),
            list(missions) or None,
        )
        if output is None:
            click.echo(made)
        else:
            _write_private(output, f"{made}\n")
    except StorageManagerError as error:
        raise Failure(error.detail, EXIT_FAILED) from error


def _write_private(path: Path, text: str) -> None:
    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    try:
        with open(path, "w", encoding="utf-8", opener=opener) as file:
            os.fchmod(file.fileno(), 0o600)  # it may have been there
            file.write(text)
    except OSError as error:
        raise local_failure(error, path) from error


@click.command("proseo-caller")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(["read", "ingest", "remove", "admin"]),
    help="What the caller may; may be given several times.",
)
@click.option("--mission", "missions", multiple=True, help="Restrict it to these missions.")
@click.option("--certificate", is_flag=True, help="It comes with a client certificate.")
def proseo_caller(
    name: str, scopes: tuple[str, ...], missions: tuple[str, ...], certificate: bool
) -> None:
    """Print a line for proseo.callers_file; the password is read from standard input."""
    from admin_api.services.access import Scope
    from admin_api.services.callers import line_of

    password = None if certificate else sys.stdin.readline().rstrip("\r\n")
    try:
        click.echo(line_of(name, password, [Scope(scope) for scope in scopes], list(missions)))
    except StorageManagerError as error:
        raise Failure(error.detail, EXIT_FAILED) from error


@click.command()
@settings_option
@click.option("--json", "as_json", is_flag=True, help="JSON for machines.")
@click.pass_context
def rebuild(context: click.Context, settings_file: Path | None, as_json: bool) -> None:
    """Rebuild the catalog from the records in the stores (or bring an old one up to date).

    Names what cannot be read and goes on; the exit code is 1 then, and 6 if a store or the catalog
    does not answer at all.
    """
    from admin_api.services.facility import open_facility
    from admin_api.services.rebuilding import rebuild as run
    from admin_api.services.records import Unreadable
    from admin_api.settings import load

    as_json = as_json or bool(context.find_root().params.get("as_json"))
    counts = {"statements": 0, "applied": 0}
    unreadable = 0
    try:
        with contextlib.ExitStack() as bar:
            reading = bar.enter_context(Progress("read", None, as_json, False, "statements"))
            telling: Progress | None = None
            for step in run(open_facility(load(settings_file))):
                if isinstance(step, Unreadable):
                    unreadable += 1
                    line = {"type": "unreadable", "key": step.key, "reason": step.reason}
                    emit(as_json, line, f"unreadable  {step.key}: {step.reason}")
                    continue
                counts = {"statements": step.statements, "applied": step.applied}
                reading.reach(step.statements)
                if step.settled and telling is None:
                    bar.close()
                    telling = bar.enter_context(
                        Progress("told", step.statements, as_json, False, "statements")
                    )
                if telling is not None:
                    telling.reach(step.settled)
    except (CatalogUnavailable, Denied, Unavailable) as error:
        raise Failure(error.detail, EXIT_UNAVAILABLE) from error
    except StorageManagerError as error:
        raise Failure(error.detail, EXIT_FAILED) from error
    emit(
        as_json,
        counts,
        f"{counts['statements']} statements read, {counts['applied']} were new to the catalog.",
    )
    if unreadable:
        raise Failure(
            f"Records that could not be taken in: {unreadable}. They are named above. "
            f"{_RECONCILE_NEXT}",
            EXIT_FAILED,
        )
    if not as_json:
        click.echo(_RECONCILE_NEXT, err=True)


@click.command("adopt-store")
@settings_option
@click.option("--mount", "path", help="Only the store of this mount.  [default: every mount]")
@click.option("--yes", is_flag=True, help="Do not ask.")
def adopt_store(settings_file: Path | None, path: str | None, yes: bool) -> None:
    """Make the stores at the mounts this catalog's own, whosever they were.

    A service that still works with such a store stops using it.  Run `rebuild` afterwards: it
    takes in the products whose records are there.
    """
    from admin_api.services import identity
    from admin_api.services.facility import open_facility
    from admin_api.settings import load

    try:
        facility = open_facility(load(settings_file))
        catalog, storage = facility.catalog, facility.storage
        mount = path.strip("/") if path is not None else None
        for found, sentence, is_ours in list(identity.report(catalog, storage, mount)):
            click.echo(sentence)
            if is_ours:
                continue
            if not yes:
                click.confirm(f"Take over the store of mount /{found}?", abort=True, err=True)
            marker = identity.adopt(catalog, storage, found)
            click.echo(f"It is this catalog's now: marker number {marker.number} says so.")
    except StorageManagerError as error:
        raise Failure(error.detail, EXIT_FAILED) from error
