"""AWS for the tests: a moto server on loopback, with what Terraform asks for and moto lacks.

moto knows no placement groups and forgets two arguments of RunInstances.  Both are added to this
process's moto as its own actions are written, so nothing of the environment is switched off for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.responses import EC2Response
from moto.server import ThreadedMotoServer

from tests.support.terraform import config_file, platform

#: Where a provider lies in a mirror; more than one version may be there.
_AWS = "registry.terraform.io/hashicorp/aws"
#: Implied mirrors, as Terraform looks for them, and folders where machines keep ready-made ones.
_USUAL = (
    "~/.terraform.d/plugins",
    "~/.local/share/terraform/plugins",
    "/usr/local/share/terraform/plugins",
    "/usr/share/terraform/plugins",
    "/opt/*",
)


def aws_mirror(named: str | None) -> Path | None:
    """A folder of providers that holds AWS's own for this machine, or None.

    It is the one that is named, or that Terraform's own configuration names, or a usual one.
    """
    found = [Path(named)] if named else []
    file = config_file()
    if file is not None:
        places = re.findall(r'(?:path|plugin_cache_dir)\s*=\s*"([^"]+)"', file.read_text())
        found += [Path(place).expanduser() for place in places]
    for place in _USUAL:
        path = Path(place).expanduser()
        found += sorted(path.parent.glob(path.name))
    return next((path for path in found if list(path.glob(f"{_AWS}/*/{platform()}/*"))), None)


@contextmanager
def aws() -> Iterator[str]:
    """A cloud without anything in it; its address."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def client(endpoint: str, service: str = "ec2") -> Any:
    """boto3's client of a service there."""
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name="eu-central-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


# -- what moto lacks -------------------------------------------------------------------------------
_groups: dict[str, dict[str, Any]] = {}


class _PlacementGroupUnknown(EC2ClientError):
    def __init__(self, name: str) -> None:
        super().__init__("InvalidPlacementGroup.Unknown", f"There is no placement group {name}.")


def _create_placement_group(self: EC2Response) -> ActionResult:
    name = self._get_param("GroupName")
    tags = self._parse_tag_specification("placement-group").get("placement-group", {})
    _groups[name] = {
        "GroupName": name,
        "GroupId": f"pg-{len(_groups):017x}",
        "State": "available",
        "Strategy": self._get_param("Strategy"),
        "PartitionCount": self._get_param("PartitionCount"),
        "SpreadLevel": "rack" if self._get_param("Strategy") == "spread" else None,
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }
    return ActionResult({"PlacementGroup": _groups[name]})


def _describe_placement_groups(self: EC2Response) -> ActionResult:
    names = self._get_param("GroupNames") or list(_groups)
    for name in names:
        if name not in _groups:
            raise _PlacementGroupUnknown(name)
    return ActionResult({"PlacementGroups": [_groups[name] for name in names]})


def _delete_placement_group(self: EC2Response) -> ActionResult:
    if _groups.pop(self._get_param("GroupName"), None) is None:
        raise _PlacementGroupUnknown(self._get_param("GroupName"))
    return ActionResult({})


_run_instances = EC2Response.run_instances


def _run_instances_as_asked(self: EC2Response) -> ActionResult:
    group = self._get_param("Placement.GroupName")
    if group and group not in _groups:
        raise _PlacementGroupUnknown(group)
    answer = _run_instances(self)
    for instance in answer.result.instances:  # type: ignore[attr-defined]  # moto says only "object"
        instance.placement.group_name = group or ""
        instance.disable_api_termination = bool(self._get_param("DisableApiTermination"))
    return answer


for _name, _action in (
    ("create_placement_group", _create_placement_group),
    ("describe_placement_groups", _describe_placement_groups),
    ("delete_placement_group", _delete_placement_group),
    ("run_instances", _run_instances_as_asked),
):
    setattr(EC2Response, _name, _action)
