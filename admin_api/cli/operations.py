"""Commands about the facility: status, nodes, probe, reconcile, purge, events, completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from admin_api.cli.client import Client
from admin_api.cli.failures import EXIT_FAILED, Failure
from admin_api.cli.output import Progress, emit, human

#: Of an event's details, what people want to know at once.
_REASONS = ("cause", "hold", "retention", "mount")


@click.command()
@click.pass_obj
def status(client: Client) -> None:
    """What is stored, where, how full."""
    answer = client.json("GET", "/v1/storage")
    size = human(answer["bytes"])
    lines = [f"profile {answer['profile']}: {answer['products']} products, {size}"]
    for mount in answer["mounts"]:
        total, free = mount["capacity"]["total"], mount["capacity"]["free"]
        full = f"{human(free)} of {human(total)} free" if total is not None else "capacity not told"
        lines.append(f"  {mount['path']:20}{mount['uri']}  {mount['problem'] or full}")
    lines += [
        f"  {item['mission'] or '-':4} {item['product_type'] or '-':14}{item['products']:>7}"
        f" products  {item['files']:>9} files  {human(item['bytes']):>10}"
        for item in answer["usage"]
    ]
    emit(client.as_json, answer, "\n".join(lines))


@click.command()
@click.pass_obj
def nodes(client: Client) -> None:
    """The nodes of the cluster, and how full their tiers are."""
    answer = client.json("GET", "/v1/nodes")
    lines = []
    for node in answer["nodes"]:
        tiers = "  ".join(
            f"{tier['name']} {human(tier['used'])} of {human(tier['total'])}"
            for tier in node["tiers"]
        )
        lines.append(
            f"{node['name']:12} worker {node['worker']:8} proxy {node['proxy']:5}"
            f"balancer {node['balancer']:5}{tiers}"
        )
    emit(client.as_json, answer, "\n".join(lines) or "The facility has no cluster.")


@click.command()
@click.pass_obj
def probe(client: Client) -> None:
    """Check whether the stores keep their promises, in sentences."""
    for line in client.lines("POST", "/v1/maintenance/probe"):
        if line["type"] == "check":
            mark = {"ok": "ok", "warning": "warn"}.get(line["severity"], "FAILED")
            text = f"{mark:6}  {line['mount']}  {line['name']}: {line['sentence']}"
            emit(client.as_json, line, text)
        elif line["failed"]:
            raise Failure(f"{line['failed']} promises are not kept.", EXIT_FAILED)


@click.command()
@click.pass_obj
def reconcile(client: Client) -> None:
    """Compare the catalog with the stores; says what is missing and what is unknown."""
    with Progress("compared", None, client.as_json, client.quiet, "objects") as bar:
        for line in client.lines("POST", "/v1/maintenance/reconciliation"):
            if line["type"] == "finding":
                reason = f"  ({line['reason']})" if line["reason"] else ""
                text = f"{line['kind']:15}{human(line['size']):>10}  {line['key']}{reason}"
                emit(client.as_json, line, text)
                continue
            bar.reach(line["objects"])
            if line["type"] == "summary":
                total = sum(line["findings"].values())
                emit(client.as_json, line, f"{line['objects']} objects compared, {total} findings")
                if total:
                    raise Failure("The catalog and the stores do not agree.", EXIT_FAILED)


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.pass_obj
def purge(client: Client, dry_run: bool) -> None:
    """Remove the products whose retention has ended and that nobody holds."""
    query = {"dry_run": str(dry_run).lower()}
    for line in client.lines("POST", "/v1/maintenance/purge", query=query):
        if line["type"] == "product":
            text = f"{line['id']}  {human(line['size']):>10}  {line['name']}"
            stays = "" if dry_run or line["state"] == "removed" else f"  (stays {line['state']})"
            emit(client.as_json, line, text + stays)
        else:
            verb = "are due" if dry_run else "removed"
            text = f"{line['products']} products ({human(line['bytes'])}) {verb}"
            if line["passed_over"]:
                text += f", {line['passed_over']} passed over"
            emit(client.as_json, line, text)


@click.command()
@click.option("--after", default=0, help="Number of the last event known.")
@click.option("--verify", is_flag=True, help="Check that the log is whole instead.")
@click.pass_obj
def events(client: Client, after: int, verify: bool) -> None:
    """Show what happened, or check that the log of it is whole."""
    if verify:
        answer = client.json("GET", "/v1/events/chain")
        emit(client.as_json, answer, f"{answer['events']} events follow from each other")
        if not answer["intact"]:
            raise Failure(f"Event {answer['first_broken']} does not.", EXIT_FAILED)
        return
    while True:
        page = client.json("GET", "/v1/events", query={"after": after, "limit": 1000})
        for event in page["events"]:
            name, time = event["product_name"] or "", event["time"]
            text = f"{event['number']:>7}  {time}  {event['kind']:18}{event['subject']}  {name}"
            reasons = ", ".join(
                f"{key}: {event['detail'][key]}" for key in _REASONS if event["detail"].get(key)
            )
            emit(client.as_json, event, f"{text}  ({reasons})" if reasons else text)
        if not page["events"]:
            return
        after = page["next"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a shell's completion script, e.g. source <(storage-manager completion bash)."""
    kind = get_completion_class(shell)
    assert kind is not None
    root = context.find_root()
    click.echo(kind(root.command, {}, "storage-manager", "_STORAGE_MANAGER_COMPLETE").source())
