#!/usr/bin/env python3
"""Refuses a plan that destroys or replaces what was not asked for; data volumes above all.

    terraform plan -out=scale.tfplan
    terraform show -json scale.tfplan | terraform/plan_check.py [--remove NAME] [--replace NAME]
        [--allow ADDRESS]

The flags may be given several times.  Nodes that are only added need none.  `--remove NAME` allows
the node NAME and its volumes to go; `--replace NAME` allows its host to be replaced, never its
volumes; `--allow ADDRESS` allows a resource that belongs to no node and holds no data to go or to
be replaced (the rule of a network that is let in no more).  A change in place that stops a host
(another flavour) is allowed for one host at a time.  Exit code 0: the plan does what was asked
for; 1: it does more, and it is said what.  Called by `make plan-check`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from typing import Any

_NODE = re.compile(r'^module\.node\["([^"]+)"\]\.')
#: Types of resources that hold data.
_MACHINES = (
    "aws_instance",
    "openstack_compute_instance_v2",
    "opentelekomcloud_compute_instance_v2",
)
#: Arguments of a machine that change in place, by stopping it.
_STOPPING = (
    "instance_type",
    "flavor_name",
    "flavor_id",
    "user_data",
    "user_data_base64",
    "ebs_optimized",
)
_VOLUMES = ("aws_ebs_volume", "openstack_blockstorage_volume_v3", "opentelekomcloud_evs_volume_v3")


@dataclass(frozen=True)
class Change:
    """A resource that the plan changes, and how: create, update, delete or replace."""

    address: str
    kind: str
    node: str | None
    holds_data: bool
    stops: bool = False


def changes(plan: dict[str, Any]) -> list[Change]:
    """What the plan (``terraform show -json``) would do."""
    found = []
    for item in plan.get("resource_changes", []):
        actions = item["change"]["actions"]
        if actions in (["no-op"], ["read"]):
            continue
        kind = "replace" if len(actions) == 2 else actions[0]
        node = _NODE.match(item["address"])
        holds_data = item["type"] in _VOLUMES or ".terraform_data.ssd" in item["address"]
        name = node.group(1) if node else None
        stops = kind == "update" and item["type"] in _MACHINES and _stops(item["change"])
        found.append(Change(item["address"], kind, name, holds_data, stops))
    return found


def _stops(change: dict[str, Any]) -> bool:
    before, after = change.get("before") or {}, change.get("after") or {}
    return any(before.get(key) != after.get(key) for key in _STOPPING)


def refusals(
    plan: dict[str, Any],
    removed: set[str],
    replaced: set[str],
    allowed: frozenset[str] = frozenset(),
) -> list[str]:
    """A sentence for everything that was not asked for."""
    found = []
    stopped = sorted(change.node or change.address for change in changes(plan) if change.stops)
    if len(stopped) > 1:
        found.append(
            f"it would stop {', '.join(stopped)} at once; change one node, apply, wait until all "
            "is well (playbooks/health.yml), then the next"
        )
    for change in changes(plan):
        if change.address in allowed and change.node is None and not change.holds_data:
            continue
        if change.kind in ("create", "update"):
            continue
        if change.kind == "delete" and change.node in removed:
            continue
        if change.kind == "replace" and change.node in replaced and not change.holds_data:
            continue
        what = "the data volume " if change.holds_data else ""
        found.append(f"it would {change.kind} {what}{change.address}")
    return found


def main() -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--remove", action="append", default=[], metavar="NAME")
    parser.add_argument("--replace", action="append", default=[], metavar="NAME")
    parser.add_argument("--allow", action="append", default=[], metavar="ADDRESS")
    options = parser.parse_args()
    plan = json.load(sys.stdin)
    for change in changes(plan):
        print(f"  {change.kind:8} {change.address}")
    problems = refusals(plan, set(options.remove), set(options.replace), frozenset(options.allow))
    for problem in problems:
        print(f"The plan does more than was asked for: {problem}.", file=sys.stderr)
    if problems:
        print(
            "Nothing was applied. If a node is to go, run playbooks/remove_node.yml first "
            "and name it with --remove. What belongs to no node and may go is named with --allow.",
            file=sys.stderr,
        )
    return bool(problems)


if __name__ == "__main__":
    raise SystemExit(main())
