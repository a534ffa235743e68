"""The command ``storage-manager``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from admin_api import __version__
from admin_api.cli import facility, jobs, local, operations, products, staging
from admin_api.cli.client import EXIT_INTERRUPTED, Client, Failure


class _Interruptible(click.Group):
    """Ends as shells expect it when the operator interrupts."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Failure("Interrupted.", EXIT_INTERRUPTED) from None


@click.group(cls=_Interruptible, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--url",
    envvar="STORAGE_MANAGER_URL",
    default="http://127.0.0.1:8080",
    show_default=True,
    help="Where the API is.",
)
@click.option(
    "--token-file",
    envvar="STORAGE_MANAGER_TOKEN_FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the token (tokens are never given on the command line).",
)
@click.option("--json", "as_json", is_flag=True, help="JSON lines for machines.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.version_option(__version__)
@click.pass_context
def main(
    context: click.Context, url: str, token_file: Path | None, as_json: bool, quiet: bool
) -> None:
    """The storage manager of a processing facility.

    Exit codes: 0 done, 1 failed, 2 wrong command line, 3 not found, 4 refused, 5 not allowed,
    6 service or store not available, 7 some items of a job failed, 130 interrupted.
    """
    context.obj = Client(url, token_file, as_json, quiet)


for _command in (
    local.serve,
    local.worker,
    local.token,
    local.proseo_caller,
    local.rebuild,
    local.adopt_store,
    products.ingest,
    jobs.import_,
    jobs.jobs,
    products.get,
    products.ls,
    products.show,
    products.cache,
    products.rm,
    products.keep,
    products.verify,
    staging.stage,
    operations.status,
    operations.nodes,
    operations.probe,
    operations.reconcile,
    operations.purge,
    operations.events,
    operations.completion,
    facility.facility,
):
    main.add_command(_command)
