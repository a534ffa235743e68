"""``storage-manager stage``: files of products as paths, for scripts and processors."""

from __future__ import annotations

import click

from admin_api.cli.client import Client
from admin_api.cli.output import emit

#: Large files from a slow store take their time.
_LONGEST_SECONDS = 6 * 3600.0


@click.command()
@click.argument("products", nargs=-1)
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="ID/PATH",
    help="A single file of a product; may be given several times.",
)
@click.option("--seconds", type=click.IntRange(1), help="Life of the lease.")
@click.option("--renew", metavar="LEASE", help="Let a lease last longer instead.")
@click.option("--release", metavar="LEASE", help="End a lease instead.")
@click.pass_obj
def stage(
    client: Client,
    products: tuple[str, ...],
    files: tuple[str, ...],
    seconds: int | None,
    renew: str | None,
    release: str | None,
) -> None:
    """Have PRODUCTS (ids or names) as paths on this node; prints a path per line.

    The lease, which keeps the products and their paths, is told on standard error: renew it while
    you work, release it when you are done.
    """
    if sum(map(bool, (products or files, renew, release))) != 1:
        raise click.UsageError("Name products or files, or a lease to renew or release.")
    if release is not None:
        client.json("DELETE", f"/v1/leases/{release}")
        return
    lifetime = {} if seconds is None else {"lease_seconds": seconds}
    if renew is not None:
        answer = client.json("PATCH", f"/v1/leases/{renew}", body=lifetime)
        emit(client.as_json, answer, f"until {answer['expires_at']}")
        return
    wanted = [dict(zip(("product", "path"), item.split("/", 1), strict=False)) for item in files]
    if any(len(item) < 2 for item in wanted):
        raise click.UsageError("--file is the id of a product and a path in it: ID/PATH.")
    ids = [client.find(product)["id"] for product in products]
    body = {"products": ids, "files": wanted, **lifetime}
    answer = client.json("POST", "/v1/stage", body=body, timeout=_LONGEST_SECONDS)
    if client.as_json:
        emit(True, answer, "")
        return
    for file in answer["files"]:
        click.echo(file["local_path"])
    click.echo(f"lease {answer['lease']} until {answer['expires_at']}", err=True)
