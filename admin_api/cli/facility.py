"""Commands for the operator of the facility's machines: scale, replace.

A thin hand on Terraform and Ansible, run from a checkout of the project: plan, guard, ask, apply,
``site.yml``, wait for health.  Each step can also be done by hand (docs/operations.md).  A plan is
saved, looked at as JSON and applied as saved; how Terraform is run is the business of
:mod:`admin_api.cli.terraform`.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess  # nosec B404 # it runs the operator's own tools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from admin_api.cli.client import Client
from admin_api.cli.failures import EXIT_FAILED, Failure
from admin_api.cli.output import emit
from admin_api.cli.terraform import Terraform, TerraformError

NODES_FILE = "nodes.auto.tfvars.json"
#: How the addresses of machines end, in every environment.
_MACHINES = (
    ".aws_instance.this",
    ".openstack_compute_instance_v2.this",
    ".opentelekomcloud_compute_instance_v2.this",
    ".terraform_data.host",
)
_AGAIN = "Run the same command again when it is mended."


@click.group()
def facility() -> None:
    """The machines of the facility; needs a checkout of the project, Terraform and Ansible."""


environment_option = click.option(
    "--environment",
    required=True,
    envvar="TERRAFORM_ENVIRONMENT",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the Terraform environment.",
)
inventory_option = click.option(
    "--inventory",
    "inventories",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Ansible inventory with the facility's variables, besides the one Terraform gives.",
)
limit_option = click.option(
    "--time-limit",
    "limit_minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=120,
    show_default=True,
    help="Minutes that Terraform may plan, and may apply; then it is stopped.",
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@facility.command()
@environment_option
@inventory_option
@click.option("--add", multiple=True, metavar="NAME", help="Node that comes; may be repeated.")
@click.option("--like", metavar="NAME", help="Node whose entry a new one copies.")
@click.option("--remove", multiple=True, metavar="NAME", help="Node that goes; may be repeated.")
@limit_option
@yes_option
@click.pass_obj
def scale(
    client: Client,
    environment: Path,
    inventories: tuple[Path, ...],
    add: tuple[str, ...],
    like: str | None,
    remove: tuple[str, ...],
    limit_minutes: float,
    yes: bool,
) -> None:
    """Add nodes to the cluster, or take nodes out of it.

    Shows the plan and refuses one that touches anything else; asks; makes the machines; runs
    site.yml and waits until all is well.  What was interrupted goes on when it is run again.
    """
    deployment = _Deployment(environment.resolve(), inventories, client.as_json, limit_minutes)
    wanted = _wanted(deployment.nodes(), add, like, remove, deployment)
    deployment.carry_out(wanted, removed=remove, yes=yes)
    _done(client, deployment, wanted, {"added": list(add), "removed": list(remove)})


@facility.command()
@environment_option
@inventory_option
@click.argument("name")
@limit_option
@yes_option
@click.pass_obj
def replace(
    client: Client,
    environment: Path,
    inventories: tuple[Path, ...],
    name: str,
    limit_minutes: float,
    yes: bool,
) -> None:
    """Give a node that died, or is to be new, another machine; its data volumes stay.

    It leaves the cluster first, if it lives.  Otherwise as `scale`.
    """
    deployment = _Deployment(environment.resolve(), inventories, client.as_json, limit_minutes)
    wanted = deployment.nodes()
    if name not in wanted:
        raise Failure(f"{name} is no node: there are {', '.join(wanted)}.", EXIT_FAILED)
    deployment.carry_out(wanted, replaced=(name,), yes=yes)
    _done(client, deployment, wanted, {"replaced": [name]})


def _done(
    client: Client, deployment: _Deployment, nodes: dict[str, Any], what: dict[str, Any]
) -> None:
    text = "; ".join(f"{step}: {seconds:.0f} s" for step, seconds in deployment.seconds.items())
    result = {**what, "seconds": deployment.seconds}
    emit(client.as_json, result, f"The facility has {len(nodes)} hosts. {text}")


def _wanted(
    before: dict[str, Any],
    add: tuple[str, ...],
    like: str | None,
    remove: tuple[str, ...],
    deployment: _Deployment,
) -> dict[str, Any]:
    """The nodes as they are to be; naming one again that an interrupted run wrote down is fine."""
    if not add and not remove:
        raise Failure("Say what is to change: --add NAME or --remove NAME.", EXIT_FAILED)
    for name in set(add) & set(remove):
        raise Failure(f"{name} cannot both come and go.", EXIT_FAILED)
    nodes = copy.deepcopy(before)
    for name in add:
        if name in nodes:
            continue
        if like is None:
            raise Failure(
                f"{name} is new: name a node that it is to be like (--like NAME, one of"
                f" {', '.join(before)}), or write it into {deployment.file} yourself.",
                EXIT_FAILED,
            )
        if like not in before:
            raise Failure(f"--like {like}: there are only {', '.join(before)}.", EXIT_FAILED)
        nodes[name] = {key: item for key, item in before[like].items() if key != "address"}
    for name in remove:
        if name not in nodes and name not in deployment.standing():
            raise Failure(f"--remove {name}: there are only {', '.join(before)}.", EXIT_FAILED)
        nodes.pop(name, None)
    return nodes


class _Deployment:
    """One Terraform environment and what Ansible needs besides it."""

    def __init__(
        self,
        environment: Path,
        inventories: tuple[Path, ...],
        as_json: bool,
        limit_minutes: float,
    ) -> None:
        self.environment = environment
        self.file = environment / NODES_FILE
        self.seconds: dict[str, float] = {}
        self._inventories = [path.resolve() for path in inventories]
        # Machines read standard output: what the tools say goes to the other one.
        self._output = sys.stderr if as_json else None
        self._as_json = as_json
        self._limit_seconds = limit_minutes * 60.0
        tops = [folder for folder in environment.parents if (folder / "site.yml").is_file()]
        if not tops:
            raise Failure(
                f"{environment} is in no checkout of the storage manager (no site.yml above it).",
                EXIT_FAILED,
            )
        self._top = tops[0]

    def nodes(self) -> dict[str, Any]:
        """The variable ``nodes`` as it is now."""
        if self.file.exists():
            try:
                return dict(json.loads(self.file.read_text())["nodes"])
            except (ValueError, KeyError, TypeError) as error:
                raise Failure(
                    f'{self.file} is not like {{"nodes": {{...}}}}: {error}', EXIT_FAILED
                ) from error
        # Terraform itself says what stands in other files and in the defaults: in a plan.
        file = "variables.tfplan"
        try:
            self._ask("plan", "-input=false", "-refresh=false", "-lock=false", f"-out={file}")
            nodes = json.loads(self._ask("show", "-json", file))["variables"]["nodes"]["value"]
        except KeyError as error:
            raise Failure(f"{self.environment} has no variable `nodes`.", EXIT_FAILED) from error
        finally:
            (self.environment / file).unlink(missing_ok=True)
        return {
            name: {key: item for key, item in node.items() if item is not None}
            for name, node in nodes.items()
        }

    def standing(self) -> list[str]:
        """Names of the nodes that Terraform has made."""
        said = self._ask("output", "-json")
        return list(json.loads(said).get("nodes", {}).get("value", {}))

    def carry_out(
        self,
        wanted: dict[str, Any],
        *,
        removed: tuple[str, ...] = (),
        replaced: tuple[str, ...] = (),
        yes: bool,
    ) -> None:
        """Make the facility have these nodes; ask before anything is touched."""
        plan = self.environment / "scale.tfplan"
        try:
            changes = self._plan(wanted, plan, removed, replaced)
            if not yes:
                click.confirm("Do this?", abort=True, err=True)
            for name in (*removed, *replaced):
                self._leave(name)
            self._write(wanted)
            if changes:
                self._work("apply", "-input=false", plan.name)
        finally:
            plan.unlink(missing_ok=True)
        self._playbook("site.yml")
        self._wait_healthy()

    def _plan(
        self,
        wanted: dict[str, Any],
        plan: Path,
        removed: tuple[str, ...],
        replaced: tuple[str, ...],
    ) -> bool:
        """Plan, show, and let the guard look at it; whether there is anything to do."""
        options = ["-input=false", f"-out={plan.name}"]
        for name in replaced:
            options += [f"-replace={address}" for address in self._machines(name)]
        self._work("plan", *options, variables={"nodes": wanted})
        described = self._ask("show", "-json", plan.name)
        guard = [sys.executable, str(self._top / "terraform" / "plan_check.py")]
        for name in removed:
            guard += ["--remove", name]
        for name in replaced:
            guard += ["--replace", name]
        self._run(guard, "the guard", given=described)
        found = json.loads(described)
        changes = [item["change"]["actions"] for item in found.get("resource_changes", [])]
        changes += [item["actions"] for item in found.get("output_changes", {}).values()]
        return any(actions not in (["no-op"], ["read"]) for actions in changes)

    def _machines(self, name: str) -> list[str]:
        """The address of a node's machine, without what outlives it."""
        said = self._ask("state", "list")
        beginning = f'module.node["{name}"].'
        return [
            address
            for address in said.splitlines()
            if address.startswith(beginning) and address.endswith(_MACHINES)
        ]

    def _leave(self, name: str) -> None:
        """Have a node leave the cluster, unless an interrupted run has destroyed it already."""
        if name in self.standing():
            self._playbook("playbooks/remove_node.yml", "-e", f"node={name}", "-e", "confirm=yes")

    def _write(self, wanted: dict[str, Any]) -> None:
        """Keep what was decided before it is done, so that an interrupted run can go on."""
        temporary = self.file.with_suffix(".new")
        temporary.write_text(json.dumps({"nodes": wanted}, indent=2, sort_keys=True) + "\n")
        temporary.replace(self.file)

    @functools.cached_property
    def _terraform(self) -> Terraform:
        """Terraform in this environment, initialised."""
        with _sentences():
            terraform = Terraform(self.environment, to_stderr=self._as_json)
            terraform.ask("init", "-input=false")
        return terraform

    def _ask(self, command: str, *arguments: str) -> str:
        """What Terraform answers."""
        with _sentences():
            return self._terraform.ask(command, *arguments)

    def _work(self, command: str, *arguments: str, variables: dict[str, Any] | None = None) -> None:
        """Run Terraform for people to see."""
        begun = time.monotonic()
        with _sentences():
            self._terraform.work(
                command, *arguments, variables=variables, seconds=self._limit_seconds
            )
        self.seconds[f"terraform {command}"] = round(time.monotonic() - begun, 1)

    def _playbook(self, playbook: str, *arguments: str) -> None:
        """Run a playbook over what Terraform has made."""
        command = ["ansible-playbook", "-i", "inventory/terraform.py"]
        for inventory in self._inventories:
            command += ["-i", str(inventory)]
        self._run([*command, playbook, *arguments], playbook, folder=self._top)

    def _wait_healthy(self) -> None:
        """Until all is well; a node that has just come may need a moment."""
        for _ in range(5):
            try:
                self._playbook("playbooks/health.yml")
                return
            except Failure:
                time.sleep(5)
        self._playbook("playbooks/health.yml")

    def _run(
        self,
        command: list[str],
        what: str,
        *,
        given: str | None = None,
        folder: Path | None = None,
    ) -> None:
        begun = time.monotonic()
        try:
            process = subprocess.Popen(  # noqa: S603  # nosec B603 # own tools, no shell
                command,
                cwd=folder or self.environment,
                env={**os.environ, "TERRAFORM_ENVIRONMENT": str(self.environment)},
                stdin=None if given is None else subprocess.PIPE,
                stdout=self._output,
                text=True,
            )
        except FileNotFoundError as error:
            raise Failure(f"{command[0]} is not installed.", EXIT_FAILED) from error
        try:
            process.communicate(given)
        except KeyboardInterrupt:
            # It was told, too.
            process.wait()
            raise
        self.seconds[what] = round(time.monotonic() - begun, 1)
        if process.returncode != 0:
            raise Failure(f"{what} failed; see above. {_AGAIN}", EXIT_FAILED)


@contextmanager
def _sentences() -> Iterator[None]:
    """Terraform's failures as the command's own."""
    try:
        yield
    except TerraformError as error:
        raise Failure(f"{error} {_AGAIN}", EXIT_FAILED) from error
