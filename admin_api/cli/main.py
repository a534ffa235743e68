"""The command ``storage-manager``: what is common to all verbs, and where each of them is."""

from __future__ import annotations

import errno
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from admin_api import __version__
from admin_api.cli.failures import EXIT_INTERRUPTED, Failure, document, local_failure

#: Verb -> module of this package and its attribute.  Loaded when it is asked for: a shell's
#: completion and a script that calls the command a thousand times wait for nothing else.
_COMMANDS = {
    "adopt-store": ("local", "adopt_store"),
    "cache": ("products", "cache"),
    "completion": ("operations", "completion"),
    "events": ("operations", "events"),
    "facility": ("facility", "facility"),
    "get": ("retrieving", "get"),
    "import": ("jobs", "import_"),
    "ingest": ("ingesting", "ingest"),
    "jobs": ("jobs", "jobs"),
    "keep": ("products", "keep"),
    "ls": ("products", "ls"),
    "nodes": ("operations", "nodes"),
    "probe": ("operations", "probe"),
    "proseo-caller": ("local", "proseo_caller"),
    "purge": ("operations", "purge"),
    "rebuild": ("local", "rebuild"),
    "reconcile": ("operations", "reconcile"),
    "rm": ("products", "rm"),
    "serve": ("local", "serve"),
    "show": ("products", "show"),
    "stage": ("staging", "stage"),
    "status": ("operations", "status"),
    "token": ("local", "token"),
    "verify": ("products", "verify"),
    "worker": ("local", "worker"),
}


class _Commands(click.Group):
    """Loads verbs when they are asked for, and ends as shells and scripts expect it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A verb, loaded now."""
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"admin_api.cli.{module}"), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; with ``--json`` what goes wrong is a line of JSON."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            error: click.ClickException = Failure("Interrupted.", EXIT_INTERRUPTED)
        except click.Abort as raised:
            # A question that was answered with no, or interrupted.
            if not isinstance(raised.__context__, KeyboardInterrupt):
                raise
            error = Failure("Interrupted.", EXIT_INTERRUPTED)
        except click.ClickException as raised:
            error = raised
        except OSError as raised:
            if raised.errno == errno.EPIPE:
                raise  # click ends quietly then, as `| head` wants it
            error = local_failure(raised, raised.filename or "The output")
        if not ctx.params["as_json"]:
            raise error
        click.echo(json.dumps(document(error), ensure_ascii=False), err=True)
        return ctx.exit(error.exit_code)


def _is_url(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise click.BadParameter(f"{value!r} does not begin with http:// or https://.")
    return value


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--url",
    envvar="STORAGE_MANAGER_URL",
    default="http://127.0.0.1:8080",
    show_default=True,
    callback=_is_url,
    help="Where the API is.",
)
@click.option(
    "--token-file",
    envvar="STORAGE_MANAGER_TOKEN_FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the token (tokens are never given on the command line).",
)
@click.option(
    "--ca-file",
    envvar="STORAGE_MANAGER_CA_FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Certificates that are trusted, instead of the system's (PEM).",
)
@click.option("--json", "as_json", is_flag=True, help="JSON lines for machines.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.version_option(__version__)
@click.pass_context
def main(
    context: click.Context,
    url: str,
    token_file: Path | None,
    ca_file: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """The storage manager of a processing facility.

    Exit codes: 0 done, 1 failed, 2 wrong command line, 3 not found, 4 refused, 5 not allowed,
    6 service or store not available, 7 some items of a job failed, 130 interrupted.
    """
    from admin_api.cli.client import Client

    context.obj = Client(url, token_file, ca_file, as_json, quiet)
