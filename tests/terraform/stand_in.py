"""A provider that stands in for a cloud's own, which no registry that the tests can reach has.

It serves the cloud's real schema (``schemas/``) over Terraform's plugin protocol 6, so that names,
types, references and the life of every resource are the real thing's.  For AWS it makes and unmakes
what it is told by EC2's own API, at a moto server; for the others it keeps nothing beyond the state.
Any changed argument replaces its resource, which is stricter than the clouds are.

Run by Terraform as ``terraform-provider-NAME`` (see :func:`install`).
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
#: Where the real ones come from, and which of them these stand for.
SOURCES = {
    "aws": "hashicorp/aws/5.100.0",
    "openstack": "terraform-provider-openstack/openstack/3.4.0",
    "opentelekomcloud": "opentelekomcloud/opentelekomcloud/1.36.23",
}
CHANGEABLE = {"tags", "tags_all", "metadata"}
NESTING = {"single": 1, "list": 2, "set": 3, "map": 4}

State = dict[str, Any]


def schema(name: str) -> dict[str, Any]:
    """What ``terraform providers schema -json`` says of the resources in use."""
    found: dict[str, Any] = json.loads((HERE / "schemas" / f"{name}.json").read_text())
    return found


def install(folder: Path, platform: str) -> Path:
    """Write a mirror of providers for a platform, and a configuration that names it; its path."""
    mirror = folder / "mirror"
    for name, source in SOURCES.items():
        place = mirror / "registry.terraform.io" / source / platform
        place.mkdir(parents=True, exist_ok=True)
        program = place / f"terraform-provider-{name}"
        program.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(HERE.parents[1])!r})\n"
            f"from tests.terraform.stand_in import serve\nserve({name!r})\n"
        )
        program.chmod(0o755)
    return configure(folder / "terraform.rc", mirror)


def configure(file: Path, mirror: Path) -> Path:
    """Write a configuration of Terraform that takes providers from a mirror only; its path."""
    file.write_text(
        f'provider_installation {{\n  filesystem_mirror {{\n    path = "{mirror}"\n  }}\n}}\n'
    )
    return file


# -- what is made ----------------------------------------------------------------------------------
class Nowhere:
    """A cloud that only remembers; ids and addresses are made up."""

    def __init__(self, configuration: State) -> None:
        """``configuration``: the provider's block."""

    def create(self, kind: str, wanted: State) -> State:
        """What the cloud adds to what was wanted; it takes STAND_IN_SECONDS for it."""
        time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0")))
        made: State = {"id": str(uuid.uuid4())}
        if kind.endswith("_networking_port_v2"):
            fixed = (wanted["fixed_ip"] or [{}])[0].get("ip_address")
            last = uuid.uuid4().int % 200 + 20
            made["all_fixed_ips"] = [fixed or f"10.42.0.{last}"]
        if kind == "opentelekomcloud_evs_volume_v3":
            made["wwn"] = uuid.uuid4().hex
        if kind.endswith("_networking_floatingip_v2"):
            made["address"] = f"198.51.100.{uuid.uuid4().int % 200 + 20}"
        if kind == "opentelekomcloud_vpc_subnet_v1":
            made["network_id"] = made["subnet_id"] = str(uuid.uuid4())
        return made

    def is_there(self, kind: str, state: State) -> bool:
        return True

    def delete(self, kind: str, state: State) -> None:
        pass


class Ec2(Nowhere):
    """EC2 as the moto server plays it."""

    def __init__(self, configuration: State) -> None:
        import boto3

        endpoint = configuration["endpoints"][0]["ec2"]
        self.ec2, self.iam = (
            boto3.client(
                service,
                endpoint_url=endpoint,
                region_name=configuration["region"],
                aws_access_key_id="test",
                aws_secret_access_key="test",
            )
            for service in ("ec2", "iam")
        )

    def create(self, kind: str, wanted: State) -> State:
        made: State = getattr(self, f"create_{kind.removeprefix('aws_')}")(wanted)
        if wanted.get("tags") and kind != "aws_instance":
            tags = [{"Key": key, "Value": value} for key, value in wanted["tags"].items()]
            self.ec2.create_tags(Resources=[made["id"]], Tags=tags)
        return made

    def create_vpc(self, wanted: State) -> State:
        return {"id": self.ec2.create_vpc(CidrBlock=wanted["cidr_block"])["Vpc"]["VpcId"]}

    def create_internet_gateway(self, wanted: State) -> State:
        name = self.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        self.ec2.attach_internet_gateway(InternetGatewayId=name, VpcId=wanted["vpc_id"])
        return {"id": name}

    def create_route_table(self, wanted: State) -> State:
        made = self.ec2.create_route_table(VpcId=wanted["vpc_id"])
        return {"id": made["RouteTable"]["RouteTableId"]}

    def create_route(self, wanted: State) -> State:
        gateways = {"GatewayId": wanted["gateway_id"], "NatGatewayId": wanted["nat_gateway_id"]}
        self.ec2.create_route(
            RouteTableId=wanted["route_table_id"],
            DestinationCidrBlock=wanted["destination_cidr_block"],
            **{key: value for key, value in gateways.items() if value},
        )
        return {"id": f"r-{wanted['route_table_id']}"}

    def create_route_table_association(self, wanted: State) -> State:
        made = self.ec2.associate_route_table(
            RouteTableId=wanted["route_table_id"], SubnetId=wanted["subnet_id"]
        )
        return {"id": made["AssociationId"]}

    def create_subnet(self, wanted: State) -> State:
        made = self.ec2.create_subnet(
            VpcId=wanted["vpc_id"],
            CidrBlock=wanted["cidr_block"],
            AvailabilityZone=wanted["availability_zone"],
        )
        return {"id": made["Subnet"]["SubnetId"]}

    def create_security_group(self, wanted: State) -> State:
        made = self.ec2.create_security_group(
            GroupName=wanted["name"], Description=wanted["description"], VpcId=wanted["vpc_id"]
        )
        # As the real provider does: what AWS opens by itself is shut.
        self.ec2.revoke_security_group_egress(
            GroupId=made["GroupId"],
            IpPermissions=[{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}],
        )
        return {"id": made["GroupId"]}

    def create_vpc_security_group_ingress_rule(self, wanted: State) -> State:
        made = self.ec2.authorize_security_group_ingress(**self._rule(wanted))
        return {"id": made["SecurityGroupRules"][0]["SecurityGroupRuleId"]}

    def create_vpc_security_group_egress_rule(self, wanted: State) -> State:
        made = self.ec2.authorize_security_group_egress(**self._rule(wanted))
        return {"id": made["SecurityGroupRules"][0]["SecurityGroupRuleId"]}

    @staticmethod
    def _rule(wanted: State) -> State:
        rule: State = {"IpProtocol": wanted["ip_protocol"]}
        if wanted["from_port"] is not None:
            rule |= {"FromPort": wanted["from_port"], "ToPort": wanted["to_port"]}
        if wanted["cidr_ipv4"]:
            rule["IpRanges"] = [{"CidrIp": wanted["cidr_ipv4"]}]
        else:
            rule["UserIdGroupPairs"] = [{"GroupId": wanted["referenced_security_group_id"]}]
        return {"GroupId": wanted["security_group_id"], "IpPermissions": [rule]}

    def create_key_pair(self, wanted: State) -> State:
        self.ec2.import_key_pair(
            KeyName=wanted["key_name"], PublicKeyMaterial=wanted["public_key"].encode()
        )
        return {"id": wanted["key_name"]}

    def create_eip(self, wanted: State) -> State:
        made = self.ec2.allocate_address(Domain=wanted["domain"])
        if wanted["instance"]:
            self.ec2.associate_address(
                AllocationId=made["AllocationId"], InstanceId=wanted["instance"]
            )
        return {"id": made["AllocationId"], "public_ip": made["PublicIp"]}

    def create_nat_gateway(self, wanted: State) -> State:
        made = self.ec2.create_nat_gateway(
            SubnetId=wanted["subnet_id"], AllocationId=wanted["allocation_id"]
        )
        return {"id": made["NatGateway"]["NatGatewayId"]}

    def create_vpc_endpoint(self, wanted: State) -> State:
        made = self.ec2.create_vpc_endpoint(
            VpcId=wanted["vpc_id"],
            ServiceName=wanted["service_name"],
            VpcEndpointType=wanted["vpc_endpoint_type"],
            RouteTableIds=wanted["route_table_ids"],
        )
        return {"id": made["VpcEndpoint"]["VpcEndpointId"]}

    def create_placement_group(self, wanted: State) -> State:
        self.ec2.create_placement_group(GroupName=wanted["name"], Strategy=wanted["strategy"])
        return {"id": wanted["name"]}

    def create_iam_role(self, wanted: State) -> State:
        self.iam.create_role(
            RoleName=wanted["name"], AssumeRolePolicyDocument=wanted["assume_role_policy"]
        )
        return {"id": wanted["name"]}

    def create_iam_role_policy(self, wanted: State) -> State:
        self.iam.put_role_policy(
            RoleName=wanted["role"], PolicyName=wanted["name"], PolicyDocument=wanted["policy"]
        )
        return {"id": f"{wanted['role']}:{wanted['name']}"}

    def create_iam_instance_profile(self, wanted: State) -> State:
        self.iam.create_instance_profile(InstanceProfileName=wanted["name"])
        self.iam.add_role_to_instance_profile(
            InstanceProfileName=wanted["name"], RoleName=wanted["role"]
        )
        return {"id": wanted["name"]}

    def create_instance(self, wanted: State) -> State:
        options: State = {}
        if wanted["private_ip"]:
            options["PrivateIpAddress"] = wanted["private_ip"]
        if wanted["iam_instance_profile"]:
            options["IamInstanceProfile"] = {"Name": wanted["iam_instance_profile"]}
        if wanted["placement_group"]:
            options["Placement"] = {"GroupName": wanted["placement_group"]}
        made = self.ec2.run_instances(
            MinCount=1,
            MaxCount=1,
            ImageId=wanted["ami"],
            InstanceType=wanted["instance_type"],
            SubnetId=wanted["subnet_id"],
            SecurityGroupIds=wanted["vpc_security_group_ids"],
            KeyName=wanted["key_name"],
            DisableApiTermination=bool(wanted["disable_api_termination"]),
            MetadataOptions={"HttpTokens": wanted["metadata_options"][0]["http_tokens"]},
            TagSpecifications=[
                {
                    "ResourceType": "instance",
                    "Tags": [{"Key": key, "Value": value} for key, value in wanted["tags"].items()],
                }
            ],
            **options,
        )["Instances"][0]
        return {
            "id": made["InstanceId"],
            "private_ip": made["PrivateIpAddress"],
            "availability_zone": made["Placement"]["AvailabilityZone"],
        }

    def create_ebs_volume(self, wanted: State) -> State:
        made = self.ec2.create_volume(
            AvailabilityZone=wanted["availability_zone"],
            Size=wanted["size"],
            VolumeType=wanted["type"],
            Encrypted=wanted["encrypted"],
            **{
                option: wanted[key]
                for option, key in (("Iops", "iops"), ("Throughput", "throughput"))
                if wanted[key]
            },
        )
        return {"id": made["VolumeId"]}

    def create_volume_attachment(self, wanted: State) -> State:
        self.ec2.attach_volume(
            Device=wanted["device_name"],
            VolumeId=wanted["volume_id"],
            InstanceId=wanted["instance_id"],
        )
        return {"id": f"vai-{wanted['volume_id']}"}

    def is_there(self, kind: str, state: State) -> bool:
        """An instance that was terminated behind Terraform's back is to be missed."""
        if kind == "aws_volume_attachment":
            volumes = self.ec2.describe_volumes(VolumeIds=[state["volume_id"]])["Volumes"]
            return any(
                item["InstanceId"] == state["instance_id"]
                for volume in volumes
                for item in volume["Attachments"]
            )
        if kind != "aws_instance":
            return True
        found = self.ec2.describe_instances(InstanceIds=[state["id"]])["Reservations"]
        states = {item["State"]["Name"] for group in found for item in group["Instances"]}
        return bool(states - {"terminated", "shutting-down"})

    def delete(self, kind: str, state: State) -> None:
        ec2, name = self.ec2, state["id"]
        ways: dict[str, Callable[[], Any]] = {
            "aws_vpc": lambda: ec2.delete_vpc(VpcId=name),
            "aws_internet_gateway": lambda: (
                ec2.detach_internet_gateway(InternetGatewayId=name, VpcId=state["vpc_id"]),
                ec2.delete_internet_gateway(InternetGatewayId=name),
            ),
            "aws_route_table": lambda: ec2.delete_route_table(RouteTableId=name),
            "aws_route": lambda: ec2.delete_route(
                RouteTableId=state["route_table_id"],
                DestinationCidrBlock=state["destination_cidr_block"],
            ),
            "aws_route_table_association": lambda: ec2.disassociate_route_table(AssociationId=name),
            "aws_eip": lambda: ec2.release_address(AllocationId=name),
            "aws_nat_gateway": lambda: ec2.delete_nat_gateway(NatGatewayId=name),
            "aws_vpc_endpoint": lambda: ec2.delete_vpc_endpoints(VpcEndpointIds=[name]),
            "aws_subnet": lambda: ec2.delete_subnet(SubnetId=name),
            "aws_security_group": lambda: ec2.delete_security_group(GroupId=name),
            "aws_vpc_security_group_ingress_rule": lambda: ec2.revoke_security_group_ingress(
                GroupId=state["security_group_id"], SecurityGroupRuleIds=[name]
            ),
            "aws_vpc_security_group_egress_rule": lambda: ec2.revoke_security_group_egress(
                GroupId=state["security_group_id"], SecurityGroupRuleIds=[name]
            ),
            "aws_key_pair": lambda: ec2.delete_key_pair(KeyName=name),
            "aws_placement_group": lambda: ec2.delete_placement_group(GroupName=name),
            "aws_iam_role": lambda: self.iam.delete_role(RoleName=name),
            "aws_iam_role_policy": lambda: self.iam.delete_role_policy(
                RoleName=state["role"], PolicyName=state["name"]
            ),
            "aws_iam_instance_profile": lambda: (
                self.iam.remove_role_from_instance_profile(
                    InstanceProfileName=name, RoleName=state["role"]
                ),
                self.iam.delete_instance_profile(InstanceProfileName=name),
            ),
            # As the real provider does: what Terraform itself ends is protected no longer.
            "aws_instance": lambda: (
                ec2.modify_instance_attribute(
                    InstanceId=name, DisableApiTermination={"Value": False}
                ),
                ec2.terminate_instances(InstanceIds=[name]),
            ),
            "aws_ebs_volume": lambda: ec2.delete_volume(VolumeId=name),
            "aws_volume_attachment": lambda: ec2.detach_volume(
                VolumeId=state["volume_id"],
                InstanceId=state["instance_id"],
                Device=state["device_name"],
            ),
        }
        ways[kind]()


# -- the protocol ----------------------------------------------------------------------------------
def serve(name: str) -> None:
    """Serve the stand-in of a provider to the Terraform that has started this process."""
    import tf.provider
    import tf.runner

    class Stays(tf.runner._ShutdownInterceptor):
        """The library takes StopProvider, which says "begin nothing new", for the end."""

        def intercept_service(self, continuation: Any, call: Any) -> Any:
            if call.method.endswith("/StopProvider"):
                return continuation(call)
            return super().intercept_service(continuation, call)

    tf.provider.ProviderServicer = _servicer(name)
    tf.runner._ShutdownInterceptor = Stays
    tf.runner.run_provider(None)  # type: ignore[arg-type]  # only the servicer is used


def _servicer(name: str) -> Callable[[Any], Any]:
    from tf.gen import tfplugin_pb2 as pb
    from tf.gen import tfplugin_pb2_grpc as rpc
    from tf.types import Unknown
    from tf.utils import read_dynamic_value, to_dynamic_value

    described = schema(name)
    resources = described["resource_schemas"]

    def block(found: dict[str, Any]) -> Any:
        return pb.Schema.Block(
            attributes=[
                pb.Schema.Attribute(
                    name=key,
                    type=json.dumps(item["type"]).encode(),
                    required=item.get("required", False),
                    optional=item.get("optional", False),
                    computed=item.get("computed", False),
                    sensitive=item.get("sensitive", False),
                )
                for key, item in found.get("attributes", {}).items()
            ],
            block_types=[
                pb.Schema.NestedBlock(
                    type_name=key,
                    nesting=NESTING[item["nesting_mode"]],
                    block=block(item["block"]),
                    min_items=item.get("min_items", 0),
                    max_items=item.get("max_items", 0),
                )
                for key, item in found.get("block_types", {}).items()
            ],
        )

    class Servicer(rpc.ProviderServicer):
        """The calls that Terraform makes, as it makes them."""

        def __init__(self, _: Any) -> None:
            self.cloud: Nowhere = Nowhere({})

        def GetProviderSchema(self, request: Any, context: Any) -> Any:
            return pb.GetProviderSchema.Response(
                provider=pb.Schema(block=block(described["provider_block"])),
                resource_schemas={
                    kind: pb.Schema(version=item.get("version", 0), block=block(item["block"]))
                    for kind, item in resources.items()
                },
            )

        def ValidateProviderConfig(self, request: Any, context: Any) -> Any:
            return pb.ValidateProviderConfig.Response()

        def ValidateResourceConfig(self, request: Any, context: Any) -> Any:
            return pb.ValidateResourceConfig.Response()

        def ConfigureProvider(self, request: Any, context: Any) -> Any:
            configuration = read_dynamic_value(request.config)
            if name == "aws" and configuration["endpoints"]:
                self.cloud = Ec2(configuration)
            return pb.ConfigureProvider.Response()

        def UpgradeResourceState(self, request: Any, context: Any) -> Any:
            state = json.loads(request.raw_state.json)
            return pb.UpgradeResourceState.Response(upgraded_state=to_dynamic_value(state))

        def ReadResource(self, request: Any, context: Any) -> Any:
            state = read_dynamic_value(request.current_state)
            if state is None or self.cloud.is_there(request.type_name, state):
                return pb.ReadResource.Response(new_state=request.current_state)
            return pb.ReadResource.Response(new_state=pb.DynamicValue(msgpack=b"\xc0"))

        def PlanResourceChange(self, request: Any, context: Any) -> Any:
            before = read_dynamic_value(request.prior_state)
            wanted = read_dynamic_value(request.proposed_new_state)
            if wanted is None:
                return pb.PlanResourceChange.Response(planned_state=request.proposed_new_state)
            attributes = resources[request.type_name]["block"]["attributes"]
            if before is None:
                for key, item in attributes.items():
                    if item.get("computed") and wanted[key] is None:
                        wanted[key] = Unknown
                return pb.PlanResourceChange.Response(planned_state=to_dynamic_value(wanted))
            changed = [key for key in wanted if wanted[key] != before[key]]
            return pb.PlanResourceChange.Response(
                planned_state=to_dynamic_value(wanted),
                requires_replace=[
                    pb.AttributePath(steps=[pb.AttributePath.Step(attribute_name=key)])
                    for key in changed
                    if key not in CHANGEABLE
                ],
            )

        def ApplyResourceChange(self, request: Any, context: Any) -> Any:
            before = read_dynamic_value(request.prior_state)
            wanted = read_dynamic_value(request.planned_state)
            try:
                if wanted is None:
                    self.cloud.delete(request.type_name, before)
                    return pb.ApplyResourceChange.Response(new_state=request.planned_state)
                made = self.cloud.create(request.type_name, wanted_of(wanted)) if not before else {}
            except Exception as error:
                summary = f"{request.type_name}: {type(error).__name__}: {error}"
                problem = pb.Diagnostic(severity=pb.Diagnostic.ERROR, summary=summary)
                return pb.ApplyResourceChange.Response(
                    new_state=request.prior_state, diagnostics=[problem]
                )
            state = {
                key: made.get(key) if item is Unknown else item for key, item in wanted.items()
            }
            return pb.ApplyResourceChange.Response(new_state=to_dynamic_value(state))

        def StopProvider(self, request: Any, context: Any) -> Any:
            return pb.StopProvider.Response()

    def wanted_of(planned: State) -> State:
        return {key: None if item is Unknown else item for key, item in planned.items()}

    return Servicer
