"""Every cloud's environment, planned and applied: which resources live and which die.

The clouds' own providers come from a registry that not every machine reaches. A stand-in serves their
real schemas (see stand_in.py); for AWS it talks to a real moto server by EC2's API. Where the machine
has AWS's real provider, it does the same at the same server, from the first plan to the last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from botocore.exceptions import ClientError

from tests.support.cloud import aws, aws_mirror, client
from tests.support.terraform import platform, terraform
from tests.terraform import stand_in
from tests.terraform.test_modules import TERRAFORM, inventory, plan_check

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ operator"
COMMON = {
    "ssh_keys": [KEY],
    "operator_cidrs": ["198.51.100.0/24"],
    "client_cidrs": ["203.0.113.0/24"],
    "flavors": {"large": 16, "small": 4},
    "image": "ami-12c6146b",
}
PARTICULAR = {
    "aws": {"flavors": {"m5.xlarge": 16, "t3.medium": 4}},
    "openstack": {
        "volume_type": "LUKS",
        "external_network_id": "5a1e7c1c-0000-4000-8000-000000000001",
        "floating_pool": "public",
    },
    "otc": {"auth_url": "https://iam.example.org/v3", "dns_servers": ["10.42.0.2"]},
}
FLAVOR = {"aws": "m5.xlarge", "openstack": "large", "otc": "large"}
SMALL = {"aws": "t3.medium", "openstack": "small", "otc": "small"}
ZONES = {
    "aws": ["eu-central-1a", "eu-central-1b", "eu-central-1c"],
    "openstack": ["nova"],
    "otc": ["eu-de-01", "eu-de-02", "eu-de-03"],
}
CLOUDS = list(PARTICULAR)


class Environment:
    """A copy of one environment, with a state of its own."""

    def __init__(
        self, cloud: str, folder: Path, more: dict[str, Any], lock: Path | None = None
    ) -> None:
        """``lock``: checksums of providers, which the stand-ins cannot have."""
        self.cloud = cloud
        copy = folder / "terraform"
        ignored = shutil.ignore_patterns(".terraform", "*.tfstate*", ".terraform.lock.hcl")
        shutil.copytree(TERRAFORM, copy, ignore=ignored)
        self.folder = copy / "environments" / cloud
        if lock is not None:
            shutil.copy(lock, self.folder)
        self.given = {**COMMON, **PARTICULAR[cloud], **more}
        self.variables()
        self.run("init", "-input=false")

    def variables(self, **changed: Any) -> None:
        """The environment's variables, those of its first plan with these changes."""
        text = json.dumps({**self.given, **changed})
        (self.folder / "ours.auto.tfvars.json").write_text(text)

    def run(self, *arguments: str, ok: bool = True) -> str:
        code, said = terraform(self.folder, arguments[0], *arguments[1:])
        assert (code == 0) is ok, said
        return said

    def nodes(self, *names: str, **changed: Any) -> None:
        """The hosts: control, and workers whose number says their zone."""
        flavor, zones = FLAVOR[self.cloud], ZONES[self.cloud]
        found: dict[str, Any] = {
            "control": {
                "roles": ["master", "admin", "monitoring"],
                "flavor": flavor,
                "zone": zones[0],
                "journal_gib": 20,
                "data_gib": 40,
            }
        }
        for name in names:
            found[name] = {"flavor": flavor, "zone": zones[int(name[-1]) % len(zones)]}
        for name, change in changed.items():
            found[name] = {**found.get(name, {}), **change}
        (self.folder / "nodes.auto.tfvars.json").write_text(json.dumps({"nodes": found}))

    def plan(self, *options: str) -> dict[str, Any]:
        """The plan, kept for :meth:`apply`."""
        self.run("plan", "-input=false", "-no-color", "-out=x.tfplan", *options)
        code, said = terraform(self.folder, "show", "-json", "x.tfplan")
        assert code == 0, said
        return dict(json.loads(said[said.index("{") : said.rindex("}") + 1]))

    def apply(self) -> dict[str, Any]:
        """Apply the plan; the outputs."""
        self.run("apply", "-input=false", "-no-color", "x.tfplan")
        code, said = terraform(self.folder, "output", "-json")
        assert code == 0, said
        return dict(json.loads(said[said.index("{") : said.rindex("}") + 1]))


@pytest.fixture(scope="module", autouse=True)
def real_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """The stand-ins are what Terraform finds; gives the folder of AWS's real provider, if any."""
    found = aws_mirror(os.environ.get("TERRAFORM_PROVIDERS"))
    configuration = stand_in.install(tmp_path_factory.mktemp("providers"), platform())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF_CLI_CONFIG_FILE", str(configuration))
        yield found


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with aws() as endpoint:
        yield endpoint


@pytest.fixture(params=CLOUDS)
def environment(request: pytest.FixtureRequest, tmp_path: Path, moto: str) -> Iterator[Environment]:
    cloud = str(request.param)
    yield Environment(cloud, tmp_path, {"endpoint": moto} if cloud == "aws" else {})


def kinds(plan: dict[str, Any]) -> dict[str, set[str]]:
    """Which nodes the changes of each kind belong to; "-" for what belongs to none."""
    found: dict[str, set[str]] = {}
    for change in plan_check.changes(plan):
        found.setdefault(change.kind, set()).add(change.node or "-")
    return found


def test_growing_makes_just_the_named_nodes_and_shrinking_takes_just_them(
    environment: Environment, moto: str
) -> None:
    environment.nodes("node1", "node2", "node3")
    assert set(kinds(environment.plan())) == {"create"}
    first = environment.apply()
    contract = json.loads((TERRAFORM / "contract.schema.json").read_text())
    jsonschema.validate({name: item["value"] for name, item in first.items()}, contract)
    hosts = inventory.inventory(first)
    assert hosts["alluxio_workers"]["hosts"] == ["node1", "node2", "node3"]
    control = hosts["_meta"]["hostvars"]["control"]
    paths = {control["facility_journal_device"], control["facility_data_device"]}
    assert len(paths) == 2 and all(path.startswith("/dev/disk/by-id/") for path in paths)
    assert "ssd_volumes_list" not in control
    variables = hosts["_meta"]["hostvars"]["node2"]
    assert not {"facility_journal_device", "facility_data_device"} & set(variables)
    assert variables["ssd_volumes_list"][0]["device"].startswith("/dev/disk/by-id/")
    assert (variables["alluxio_worker_mem_size"], variables["alluxio_worker_ssd_size"]) == (
        "4GB",
        "230GB",
    )
    assert kinds(environment.plan()) == {}, "a second plan would change something"

    environment.nodes("node1", "node2", "node3", "node4", "node5")
    plan = environment.plan()
    assert kinds(plan) == {"create": {"node4", "node5"}}
    assert plan_check.refusals(plan, set(), set()) == []
    grown = environment.apply()["nodes"]["value"]
    assert {name: grown[name] for name in first["nodes"]["value"]} == first["nodes"]["value"]
    if environment.cloud == "aws":
        assert running(moto) == {
            "storage-bastion", "control", "node1", "node2", "node3", "node4", "node5"
        }  # fmt: skip

    environment.nodes("node3", "node5")
    plan = environment.plan()
    assert kinds(plan) == {"delete": {"node1", "node2", "node4"}}
    refused = plan_check.refusals(plan, {"node1", "node2"}, set())
    assert refused
    assert all('module.node["node4"]' in sentence for sentence in refused)
    assert plan_check.refusals(plan, {"node1", "node2", "node4"}, set()) == []
    left = environment.apply()["nodes"]["value"]
    assert left == {name: grown[name] for name in ("control", "node3", "node5")}
    if environment.cloud == "aws":
        assert running(moto) == {"storage-bastion", "control", "node3", "node5"}
        assert volumes(moto) == {"control-journal0", "control-data0", "node3-ssd0", "node5-ssd0"}
    environment.run("destroy", "-input=false", "-auto-approve", "-no-color")
    if environment.cloud == "aws":
        assert running(moto) == set()
        assert volumes(moto) == set()
        assert not client(moto).describe_vpcs(
            Filters=[{"Name": "is-default", "Values": ["false"]}]
        )["Vpcs"]  # fmt: skip


@pytest.mark.timeout(2400)
def test_the_real_provider_of_aws_makes_grows_replaces_and_unmakes_a_facility(
    tmp_path: Path, moto: str, real_aws: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if real_aws is None:  # in CI, too: it cannot be had by a package manager
        pytest.skip(
            "no folder of providers on this machine holds AWS's own: none is named by"
            " TERRAFORM_PROVIDERS or Terraform's configuration, or lies in a usual place"
        )
    configuration = stand_in.configure(tmp_path / "terraform.rc", real_aws)
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", str(configuration))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    lock = TERRAFORM / "environments" / "aws" / ".terraform.lock.hcl"
    environment = Environment("aws", tmp_path, {"endpoint": moto, "bucket": "products"}, lock)
    assert (environment.folder / lock.name).read_text() == lock.read_text()
    environment.nodes("node1")
    environment.plan()
    made = environment.apply()
    first = made["nodes"]["value"]
    assert inventory.inventory(made)["all"]["vars"]["facility_s3_instance_profile"] is True
    assert kinds(environment.plan()) == {}, "a second plan would change something"

    environment.nodes("node1", "node2")
    plan = environment.plan()
    assert kinds(plan) == {"create": {"node2"}}
    grown = environment.apply()["nodes"]["value"]
    assert {name: grown[name] for name in first} == first

    machine = 'module.node["control"].aws_instance.this'
    ids = {"InstanceIds": [grown["control"]["id"]]}
    with pytest.raises(ClientError, match="disableApiTermination"):
        client(moto).terminate_instances(**ids)
    plan = environment.plan(f"-replace={machine}")
    assert plan_check.refusals(plan, set(), set())
    assert plan_check.refusals(plan, set(), {"control"}) == []
    replaced = environment.apply()["nodes"]["value"]
    assert replaced["control"]["id"] != grown["control"]["id"]
    assert replaced["control"]["volumes"] == grown["control"]["volumes"]
    assert {**replaced, "control": None} == {**grown, "control": None}

    environment.nodes("node2")
    plan = environment.plan()
    assert plan_check.refusals(plan, set(), set())
    assert plan_check.refusals(plan, {"node1"}, set()) == []
    environment.apply()
    assert running(moto) == {"storage-bastion", "control", "node2"}
    assert volumes(moto) == {"control-journal0", "control-data0", "node2-ssd0"}
    environment.run("destroy", "-input=false", "-auto-approve", "-no-color")
    assert running(moto) == volumes(moto) == set()


@pytest.mark.parametrize("name", [pytest.param("node1", marks=pytest.mark.drill), "control"])
def test_a_machine_that_is_replaced_leaves_its_volumes_and_its_neighbours_alone(
    environment: Environment, name: str
) -> None:
    machine = {
        "aws": "aws_instance.this",
        "openstack": "openstack_compute_instance_v2.this",
        "otc": "opentelekomcloud_compute_instance_v2.this",
    }[environment.cloud]
    environment.nodes("node1", "node2")
    environment.plan()
    before = environment.apply()["nodes"]["value"]
    plan = environment.plan(f'-replace=module.node["{name}"].{machine}')
    assert plan_check.refusals(plan, set(), set())
    assert plan_check.refusals(plan, set(), {name}) == []
    after = environment.apply()["nodes"]["value"]
    assert after[name]["id"] != before[name]["id"]
    assert after[name]["volumes"] == before[name]["volumes"]
    assert {**after, name: None} == {**before, name: None}
    environment.run("destroy", "-input=false", "-auto-approve", "-no-color")


def running(moto: str) -> set[str]:
    """Names of the instances that run."""
    return {
        tag["Value"]
        for group in client(moto).describe_instances()["Reservations"]
        for item in group["Instances"]
        if item["State"]["Name"] == "running"
        for tag in item["Tags"]
        if tag["Key"] == "Name"
    }


def volumes(moto: str) -> set[str]:
    """Names of the data volumes; each is encrypted."""
    found = client(moto).describe_volumes(Filters=[{"Name": "tag-key", "Values": ["Purpose"]}])
    assert all(item["Encrypted"] for item in found["Volumes"])
    return {
        tag["Value"]
        for item in found["Volumes"]
        for tag in item["Tags"]
        if tag["Key"] == "Name"
    }  # fmt: skip


def test_an_instance_that_was_lost_comes_back_with_its_volume(moto: str, tmp_path: Path) -> None:
    environment = Environment("aws", tmp_path, {"endpoint": moto})
    environment.nodes("node1", "node2")
    environment.plan()
    before = environment.apply()["nodes"]["value"]
    client(moto).terminate_instances(InstanceIds=[before["node1"]["id"]])
    plan = environment.plan()
    assert plan_check.refusals(plan, set(), set()) == []
    changed = {change.address for change in plan_check.changes(plan)}
    assert 'module.node["node1"].aws_instance.this' in changed
    assert not any("aws_ebs_volume" in address or "node2" in address for address in changed)
    after = environment.apply()["nodes"]["value"]
    assert after["node1"]["id"] != before["node1"]["id"]
    assert after["node1"]["volumes"] == before["node1"]["volumes"]
    assert after["node2"] == before["node2"]
    environment.run("destroy", "-input=false", "-auto-approve", "-no-color")


def test_aws_lets_in_ssh_from_operators_and_clients_to_the_balancers_and_nothing_else(
    moto: str, tmp_path: Path
) -> None:
    environment = Environment("aws", tmp_path, {"endpoint": moto, "name": "open"})
    environment.nodes("node1")
    environment.plan()
    environment.apply()
    groups = client(moto).describe_security_groups(
        Filters=[{"Name": "group-name", "Values": ["open-node"]}]
    )["SecurityGroups"]
    bastions = client(moto).describe_security_groups(
        Filters=[{"Name": "group-name", "Values": ["open-bastion"]}]
    )["SecurityGroups"]
    assert len(groups) == len(bastions) == 1
    found = set()
    for rule in groups[0]["IpPermissions"]:
        for network in rule["IpRanges"]:
            found.add((rule["FromPort"], rule["ToPort"], network["CidrIp"]))
        for pair in rule["UserIdGroupPairs"]:
            if pair["GroupId"] != groups[0]["GroupId"]:
                assert pair["GroupId"] == bastions[0]["GroupId"]
                found.add((rule["FromPort"], rule["ToPort"], "bastion"))
    assert found == {(22, 22, "bastion"), (8443, 8443, "203.0.113.0/24")}
    assert [
        (rule["FromPort"], rule["ToPort"], [item["CidrIp"] for item in rule["IpRanges"]])
        for rule in bastions[0]["IpPermissions"]
    ] == [(22, 22, ["198.51.100.0/24"])]
    environment.run("destroy", "-input=false", "-auto-approve", "-no-color")


def test_nodes_are_reached_and_reach_out_by_every_way_in(
    environment: Environment, moto: str
) -> None:
    """With a bastion, with public addresses, and from inside: packages and bucket are in reach."""
    environment.nodes("node1")
    for access in ("bastion", "public", "private"):
        environment.variables(access=access)
        environment.plan()
        made = environment.apply()
        contract = json.loads((TERRAFORM / "contract.schema.json").read_text())
        jsonschema.validate({name: item["value"] for name, item in made.items()}, contract)
        facility, nodes = made["facility"]["value"], made["nodes"]["value"]
        shared = inventory.inventory(made)["all"]["vars"]
        assert bool(facility["bastion"]) is (access == "bastion")
        if access == "bastion":
            jump = f"-o ProxyJump=ansible@{facility['bastion']['address']}"
            assert shared["ansible_ssh_common_args"] == jump
        hosts = inventory.inventory(made)["_meta"]["hostvars"]
        for name, node in nodes.items():
            assert bool(node["public_address"]) is (access == "public")
            reached = node["public_address"] if access == "public" else node["address"]
            assert hosts[name]["ansible_host"] == reached
        if environment.cloud == "aws":
            assert way_out(moto) == ("igw" if access == "public" else "nat", "s3")
        elif environment.cloud == "otc":
            kept = environment.run("state", "list")
            assert ("opentelekomcloud_nat_snat_rule_v2.this" in kept) is (access != "public")
        else:
            assert "router_interface_v2.this" in environment.run("state", "list")
    environment.run("destroy", "-input=false", "-auto-approve", "-no-color")


def way_out(moto: str) -> tuple[str, str]:
    """Where the nodes' route to everywhere leads, and the service that is reached without it."""
    ec2 = client(moto)
    tables = ec2.describe_route_tables(Filters=[{"Name": "tag:Name", "Values": ["storage"]}])[
        "RouteTables"
    ]
    assert len(tables) == 1
    route = next(
        item
        for item in tables[0]["Routes"]
        if item.get("DestinationCidrBlock") == "0.0.0.0/0"
    )  # fmt: skip
    gateway = route.get("GatewayId") or route.get("NatGatewayId")
    endpoints = [
        item
        for item in ec2.describe_vpc_endpoints()["VpcEndpoints"]
        if item["RouteTableIds"] == [tables[0]["RouteTableId"]] and item["State"] != "deleted"
    ]
    assert len(endpoints) == 1
    return gateway.split("-")[0], endpoints[0]["ServiceName"].rpartition(".")[2]


def test_processors_networks_are_opened_at_the_cloud_as_in_the_hosts_own_firewall(
    environment: Environment,
) -> None:
    environment.variables(processor_cidrs=["10.1.0.0/16"])
    rules = planned(
        environment,
        "aws_vpc_security_group_ingress_rule",
        "openstack_networking_secgroup_rule_v2",
        "opentelekomcloud_networking_secgroup_rule_v2",
    )
    opened = {
        rule.get("from_port", rule.get("port_range_min"))
        for rule in rules
        if rule.get("cidr_ipv4", rule.get("remote_ip_prefix")) == "10.1.0.0/16"
    }
    assert opened == {19998, 29999}


def test_aws_volumes_are_faster_than_the_bucket_and_more_than_seven_nodes_of_a_zone_are_told(
    tmp_path: Path, moto: str
) -> None:
    environment = Environment("aws", tmp_path, {"endpoint": moto})
    ssds = [item for item in planned(environment, "aws_ebs_volume") if item["size"] == 250]
    assert {(item["iops"], item["throughput"]) for item in ssds} == {(3000, 500)}
    environment.variables(instance_profile="storage-node")
    profiles = {
        item["iam_instance_profile"]
        for item in planned(environment, "aws_instance")
        if item["tags"]["Name"] != "storage-bastion"
    }
    assert profiles == {"storage-node"}
    environment.variables(ssd_throughput=1000)
    environment.run("plan", "-input=false", "-no-color", ok=False)
    environment.variables(ssd_throughput=1000, ssd_iops=4000)
    many = {f"n{number}": {"flavor": "m5.xlarge", "zone": "eu-central-1b"} for number in range(8)}
    environment.nodes(**many)
    said = environment.run("plan", "-input=false", "-no-color", ok=False)
    assert "at most seven nodes for each zone: eu-central-1b has 8" in " ".join(said.split())
    environment.variables(ssd_throughput=1000, ssd_iops=4000, placement="partition")
    environment.plan()
    environment.variables(ssd_throughput=1000, ssd_iops=4000, placement="none")
    environment.plan()


def test_aws_opens_the_bucket_to_the_nodes_without_keys_and_ends_no_control_host_by_accident(
    tmp_path: Path, moto: str
) -> None:
    environment = Environment("aws", tmp_path, {"endpoint": moto, "bucket": "products"})
    environment.nodes("node1")
    environment.plan()
    made = environment.apply()
    assert inventory.inventory(made)["all"]["vars"]["facility_s3_instance_profile"] is True
    iam = client(moto, "iam")
    policy = iam.get_role_policy(RoleName="storage-node", PolicyName="bucket")["PolicyDocument"]
    opened = {item for statement in policy["Statement"] for item in [statement["Resource"]]}
    assert opened == {"arn:aws:s3:::products", "arn:aws:s3:::products/*"}
    ec2 = client(moto)
    for name, node in made["nodes"]["value"].items():
        found = ec2.describe_instances(InstanceIds=[node["id"]])
        profile = found["Reservations"][0]["Instances"][0]["IamInstanceProfile"]["Arn"]
        assert profile.endswith("/storage-node")
        protected = ec2.describe_instance_attribute(
            InstanceId=node["id"], Attribute="disableApiTermination"
        )["DisableApiTermination"]["Value"]
        assert protected is (name == "control")
    environment.run("destroy", "-input=false", "-auto-approve", "-no-color")
    assert running(moto) == set()
    environment.variables(instance_profile="of-ours")
    said = environment.run("plan", "-input=false", "-no-color", ok=False)
    assert "A node has one instance profile" in " ".join(said.split())


def test_openstack_volumes_are_made_in_the_zone_of_their_node(tmp_path: Path) -> None:
    environment = Environment("openstack", tmp_path, {"volume_zones": {"nova": "ceph"}})
    volumes = planned(environment, "openstack_blockstorage_volume_v3")
    assert {item["availability_zone"] for item in volumes} == {"ceph"}


def test_openstack_says_what_public_addresses_need(tmp_path: Path) -> None:
    environment = Environment("openstack", tmp_path, {"floating_pool": None})
    environment.nodes("node1")
    said = environment.run("plan", "-input=false", "-no-color", ok=False)
    assert "Write floating_pool" in " ".join(said.split())
    environment.variables(access="private", floating_pool=None, external_network_id=None)
    environment.plan()


def planned(environment: Environment, *kinds: str) -> list[dict[str, Any]]:
    """Resources of these kinds in the plan of a first apply; what is not known yet is None."""
    environment.nodes("node1", "node2")
    return [
        {"kind": change["type"], "name": change["name"], **change["change"]["after"]}
        for change in environment.plan()["resource_changes"]
        if change["type"] in kinds
    ]


def test_only_ssh_and_the_balancers_are_open_and_only_to_stated_networks(
    environment: Environment,
) -> None:
    rules = planned(
        environment,
        "aws_vpc_security_group_ingress_rule",
        "openstack_networking_secgroup_rule_v2",
        "opentelekomcloud_networking_secgroup_rule_v2",
    )
    found = {
        (
            rule.get("from_port", rule.get("port_range_min")),
            rule.get("to_port", rule.get("port_range_max")),
            rule.get("cidr_ipv4", rule.get("remote_ip_prefix")),
        )
        for rule in rules
        if rule["name"] not in ("inside", "jump")
    }
    assert found == {(22, 22, "198.51.100.0/24"), (8443, 8443, "203.0.113.0/24")}
    assert sorted(rule["name"] for rule in rules) == ["balancer", "bastion", "inside", "jump"]


def test_every_data_volume_is_a_resource_of_its_own_and_encrypted(environment: Environment) -> None:
    mark = {"aws": "encrypted", "openstack": "volume_type", "otc": "kms_id"}[environment.cloud]
    volumes = planned(
        environment,
        "aws_ebs_volume",
        "openstack_blockstorage_volume_v3",
        "opentelekomcloud_evs_volume_v3",
    )
    assert sorted(item["size"] for item in volumes) == [20, 40, 250, 250]
    # The key of the Open Telekom Cloud is made by the same plan, so its id is not known yet.
    expected = {"aws": True, "openstack": "LUKS", "otc": None}[environment.cloud]
    assert [item.get(mark) for item in volumes] == [expected] * 4
    if environment.cloud == "aws":
        assert all(
            item["root_block_device"][0]["encrypted"]
            for item in planned(environment, "aws_instance")
        )
    if environment.cloud == "otc":
        text = (TERRAFORM / "environments/otc/main.tf").read_text()
        assert "kms_id             = opentelekomcloud_kms_key_v1.volumes.id" in text


def test_nodes_are_kept_on_different_machines(environment: Environment) -> None:
    groups = planned(
        environment,
        "aws_placement_group",
        "openstack_compute_servergroup_v2",
        "opentelekomcloud_compute_servergroup_v2",
    )
    assert len(groups) == 1
    assert groups[0].get("strategy", groups[0].get("policies")) in (
        "spread",
        ["soft-anti-affinity"],
        ["anti-affinity"],
    )
    kinds = (
        "aws_instance",
        "openstack_compute_instance_v2",
        "opentelekomcloud_compute_instance_v2",
    )
    for machine in planned(environment, *kinds):
        if machine.get("name") == "bastion" or "bastion" in str(machine.get("tags")):
            continue
        # The group's id is known after it was made; that of AWS is its name.
        named = machine.get("placement_group") == "storage-apart"
        assert named or "scheduler_hints" in machine


def test_a_misspelt_argument_is_noticed(environment: Environment) -> None:
    main = environment.folder / "security.tf"
    main.write_text(main.read_text().replace("description = ", "descripton = ", 1))
    assert 'An argument named "descripton" is not expected' in environment.run(
        "validate", "-no-color", ok=False
    )


MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    ({"node1": {"flavor": "huge"}}, ["node1 has huge", "Write one of"]),
    ({"node1": {"flavor": "SMALL"}}, ["too little memory", "node1"]),
    ({"node1": {"zone": "moon"}}, ["node1 has moon", "Write one of"]),
    ({"node1": {"ssd_gib": 5}}, ["node1 has ssd_gib = 5", "Write at least 20"]),
    ({"control": {"roles": ["admin"]}}, ["0 nodes with the role master"]),
    ({"node1": {"roles": ["master", "worker"]}}, ["2 nodes with the role master", "even number"]),
    ({"control": {"roles": ["master"]}}, ["0 nodes with the role admin"]),
    ({"node1": {"roles": ["cook"]}}, ["A role is not known"]),
    ({"Node_9": {"flavor": "GOOD", "zone": "GOOD"}}, ["no host names: Node_9"]),
    (
        {"node1": {"address": "10.42.0.9"}, "node2": {"address": "10.42.0.9"}},
        ["Two nodes have the same address"],
    ),
]


@pytest.mark.parametrize(("mistake", "sentence"), MISTAKES, ids=[str(item[0]) for item in MISTAKES])
def test_a_mistake_is_told_with_what_to_write_instead_before_the_cloud_is_asked(
    tmp_path: Path, mistake: dict[str, Any], sentence: list[str]
) -> None:
    environment = Environment("openstack", tmp_path, {})
    for change in mistake.values():
        for key, good in (("flavor", FLAVOR), ("zone", {"openstack": "nova"})):
            if change.get(key) == "GOOD":
                change[key] = good["openstack"]
        if change.get("flavor") == "SMALL":
            change["flavor"] = SMALL["openstack"]
    environment.nodes("node1", "node2", **mistake)
    said = " ".join(environment.run("plan", "-input=false", "-no-color", ok=False).split())
    for part in sentence:
        assert part in said, said[-2000:]


def test_a_name_that_is_written_twice_is_refused_with_its_place(tmp_path: Path) -> None:
    environment = Environment("openstack", tmp_path, {})
    node = '{"flavor": "large", "zone": "nova"}'
    (environment.folder / "nodes.auto.tfvars.json").write_text(
        f'{{"nodes": {{"node1": {node}, "node1": {node}}}}}'
    )
    said = " ".join(environment.run("plan", "-input=false", "-no-color", ok=False).split())
    assert 'An attribute named "node1" was already defined at nodes.auto.tfvars.json:1' in said


def test_ssh_is_not_opened_to_everybody(tmp_path: Path) -> None:
    for cloud in CLOUDS:
        environment = Environment(cloud, tmp_path / cloud, {"operator_cidrs": ["0.0.0.0/0"]})
        environment.nodes("node1")
        said = environment.run("plan", "-input=false", "-no-color", ok=False)
        assert "ssh is not opened to everybody" in " ".join(said.split())
