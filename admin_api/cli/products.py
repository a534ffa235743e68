"""Commands about products: ls, show, cache, rm, keep, verify."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable
from typing import Any

import click

from admin_api.cli.client import Client, gone
from admin_api.cli.completing import product_names
from admin_api.cli.failures import EXIT_FAILED, Failure, for_each, teller
from admin_api.cli.output import emit, human
from admin_api.cli.times import HELP, TIME, utc

_DAMAGED = "docs/operations.md#a-damaged-product"


# -- ls ------------------------------------------------------------------------------------------
def _minute(time: str | None) -> str:
    """A time of the service (UTC) for people."""
    return time[:16].replace("T", " ") if time else "-"


#: Heading, width, and what is shown of a product.  The name is last: it is the widest, and whole,
#: since people copy it.
_COLUMNS: list[tuple[str, int, Callable[[dict[str, Any]], str]]] = [
    ("MISSION", 7, lambda product: product["mission"] or "-"),
    ("TYPE", 14, lambda product: product["product_type"] or "-"),
    ("SENSING", 16, lambda product: _minute(product["sensing_start"])),
    ("SIZE", 10, lambda product: human(product["size"])),
    ("FILES", 5, lambda product: str(product["file_count"])),
    ("STATE", 9, lambda product: "held" if product["hold"] else product["state"]),
    ("NAME", 0, lambda product: product["name"]),
]
#: What ``--long`` shows besides.
_MORE: list[tuple[str, int, Callable[[dict[str, Any]], str]]] = [
    ("ID", 32, lambda product: product["id"]),
    ("AVAILABLE", 16, lambda product: _minute(product["available"])),
    ("SENSING TO", 16, lambda product: _minute(product["sensing_stop"])),
    ("RETENTION", 16, lambda product: _minute(product["retention"])),
    ("HOLD", 16, lambda product: product["hold"] or "-"),
]
_RIGHT = ("SIZE", "FILES")
#: Of a product, as the service tells it, what a line of CSV has.
_CSV = (
    *("name", "id", "generation", "state", "mission", "product_type", "sensing_start"),
    *("sensing_stop", "size", "file_count", "verification", "created", "available", "retention"),
    *("hold", "removed", "removed_by", "removed_cause", "path", "uri"),
)


@click.command()
@click.option("--mission")
@click.option("--type", "product_type")
@click.option("--name-prefix")
@click.option("--state", type=click.Choice(["available", "removing", "removed"]))
@click.option("--sensing-from", type=TIME, help=HELP)
@click.option("--sensing-to", type=TIME, help="As --sensing-from.")
@click.option("--created-from", type=TIME, help="As --sensing-from.")
@click.option("--created-to", type=TIME, help="As --sensing-from.")
@click.option("--limit", type=click.IntRange(1), help="At most so many.")
@click.option("--long", "is_long", is_flag=True, help="Ids, times and reasons, too.")
@click.option(
    "-o",
    "form",
    type=click.Choice(["table", "json", "csv"]),
    help="How they are written.  [default: table, its heading on a terminal only]",
)
@click.pass_obj
def ls(
    client: Client, /, limit: int | None, is_long: bool, form: str | None, **filters: Any
) -> None:
    """List products, one per line."""
    columns = [*_MORE, *_COLUMNS] if is_long else _COLUMNS
    form = form or ("json" if client.as_json else None)
    heading = None
    if form == "table" or (form is None and sys.stdout.isatty()):
        heading = _row(columns, [name for name, _, _ in columns])
    elif form == "csv":
        heading = ",".join(_CSV)
    cursor, left = None, limit
    while True:
        size = min(left, 1000) if left else 1000
        page = client.json(
            "GET", "/v1/products", query={**filters, "cursor": cursor, "limit": size}
        )
        if heading is not None:
            click.echo(heading)
            heading = None
        for product in page["products"]:
            if form == "csv":
                click.echo(_csv(product))
            else:
                text = _row(columns, [value(product) for _, _, value in columns])
                emit(form == "json", product, text)
        cursor = page["next"]
        if left is not None:
            left -= len(page["products"])
        if cursor is None or left == 0:
            return


def _row(columns: list[tuple[str, int, Callable[[dict[str, Any]], str]]], cells: list[str]) -> str:
    padded = (
        cell.rjust(width) if heading in _RIGHT else cell.ljust(width)
        for (heading, width, _), cell in zip(columns, cells, strict=True)
    )
    return "  ".join(padded).rstrip()


def _csv(product: dict[str, Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([product[name] for name in _CSV])
    return line.getvalue()


# -- one product ---------------------------------------------------------------------------------
@click.command()
@click.argument("reference", shell_complete=product_names)
@click.pass_obj
def show(client: Client, reference: str) -> None:
    """Show a product, by id or name, with its files; a removed one's tombstone (exit code 3)."""
    product = client.find(reference, removed=True)
    told = {
        **{key: value for key, value in product.items() if key != "files" and value is not None},
        "size": f"{human(product['size'])} ({product['size']} bytes)",
    }
    lines = [f"{key:15}{value}" for key, value in told.items()]
    lines += [
        f"  {human(item['size']):>10}  {item['sha256'][:12]}  {item['path']}"
        for item in product["files"]
    ]
    emit(client.as_json, product, "\n".join(lines))
    if product["state"] == "removed":
        raise gone(product)


@click.command()
@click.argument("reference", shell_complete=product_names)
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
@click.argument("references", nargs=-1, shell_complete=product_names)
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
    """Remove products, by id or name, or all that a filter finds (as a job).

    What cannot be removed is told, and the others are removed.
    """
    if bool(references) == bool(filters) or (dry_run and not filters):
        raise click.UsageError("Name products, or give --filter (with --dry-run, if you like).")
    if filters:
        from admin_api.cli import jobs

        jobs.remove(client, filters, cause, dry_run)
        return

    def remove(reference: str) -> None:
        product = client.find(reference)
        answer = client.json("DELETE", f"/v1/products/{product['id']}", query={"cause": cause})
        emit(client.as_json, answer, f"{answer['state']:10}{answer['id']}  {answer['name']}")

    for_each(references, remove, teller(client.as_json))


@click.command()
@click.argument("reference", shell_complete=product_names)
@click.option("--hold", help="Hold the product, for this reason.")
@click.option("--release", is_flag=True, help="Lift the hold.")
@click.option("--retention", help=f"Not removed before, purged after: {HELP}; 'none' lifts it.")
@click.pass_obj
def keep(
    client: Client, reference: str, hold: str | None, release: bool, retention: str | None
) -> None:
    """Hold a product, lift the hold, or set its retention date."""
    body: dict[str, Any] = {}
    if hold or release:
        body["hold"] = hold
    if retention:
        try:
            body["retention"] = None if retention == "none" else utc(retention)
        except ValueError:
            raise click.BadParameter(f"{retention!r} is no time: {HELP}; or 'none'.") from None
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
@click.argument("references", nargs=-1, required=True, shell_complete=product_names)
@click.option("--manifest", is_flag=True, help="Compare with the manifest too.")
@click.pass_obj
def verify(client: Client, references: tuple[str, ...], manifest: bool) -> None:
    """Read products back and compare them with what was stored."""

    def check(reference: str) -> None:
        product = client.find(reference)
        path = f"/v1/products/{product['id']}/verification"
        read: set[str] = set()  # the manifest comes twice: as a file, and compared with all
        failed = 0
        with client.progress(product["name"], product["size"], product["file_count"]) as progress:
            for line in client.lines("POST", path, query={"manifest": str(manifest).lower()}):
                if line["type"] == "summary":
                    failed = line["failed"]
                    text = f"{product['name']}: {line['checked']} checked, {failed} failed"
                    emit(client.as_json, {"id": product["id"], **line}, text)
                    continue
                if line["path"] not in read:
                    progress.move(line["size"])
                    progress.file_done()
                read.add(line["path"])
                if not line["passed"]:
                    emit(client.as_json, line, f"FAILED  {line['path']}: {line['message']}")
        if failed:
            raise Failure(
                f"{failed} files of {product['name']} are not what they should be. What to do: "
                f"{_DAMAGED}",
                EXIT_FAILED,
            )

    for_each(references, check, teller(client.as_json))
