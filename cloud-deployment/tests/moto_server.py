"""The process behind `aws.moto`: a moto server that also knows what this deployment needs and moto 5.2.5 lacks.

Prints its port and serves until its standard input ends, so that it never outlives the tests.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from typing import Any

from moto.autoscaling.models import FakeScalingPolicy
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend, elastic_ip_addresses
from moto.ec2.models.elastic_network_interfaces import NetworkInterface
from moto.ec2.models.security_groups import SecurityGroupRule
from moto.ec2.responses import EC2Response
from moto.elbv2.models import FakeLoadBalancer
from moto.iam.access_control import IAMPolicyStatement, PermissionResult
from moto.iam.models import IAMBackend
from moto.route53.responses import Route53
from moto.server import ThreadedMotoServer

placement_groups: dict[tuple[str, str], dict[str, Any]] = {}


def create_placement_group(self: Any) -> ActionResult:
    name = self._get_param("GroupName")
    tags = self._parse_tag_specification().get("placement-group", {})
    group = placement_groups[self.region, name] = {
        "GroupName": name,
        "GroupId": f"pg-{len(placement_groups):017x}",
        "GroupArn": f"arn:aws:ec2:{self.region}:{self.current_account}:placement-group/{name}",
        "State": "available",
        "Strategy": self._get_param("Strategy"),
        "SpreadLevel": "rack",
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }
    return ActionResult({"PlacementGroup": group})


def describe_placement_groups(self: Any) -> ActionResult:
    here = {name: group for (region, name), group in placement_groups.items() if region == self.region}
    wanted = self._get_param("GroupNames", []) or list(here)
    for name in wanted:
        if name not in here:
            raise EC2ClientError("InvalidPlacementGroup.Unknown", f"The placement group {name} is unknown.")
    return ActionResult({"PlacementGroups": [here[name] for name in wanted]})


def delete_placement_group(self: Any) -> ActionResult:
    placement_groups.pop((self.region, self._get_param("GroupName")))
    return ActionResult({})


def fill_gaps() -> None:
    """Changes moto where it forgets what it was told, or takes it for something else."""
    # Elastic addresses that can be reached, from a network for documentation, rather than from this machine's own.
    numbers = itertools.count(1)
    elastic_ip_addresses.random_ip = lambda: f"198.51.100.{next(numbers) % 254 + 1}"

    ec2: Any = EC2Response
    ec2.create_placement_group = create_placement_group
    ec2.describe_placement_groups = describe_placement_groups
    ec2.delete_placement_group = delete_placement_group

    run_instances = ec2.run_instances

    def run_instances_in_group(self: Any) -> Any:
        answer = run_instances(self)
        for instance in answer.result.instances:
            instance.placement.group_name = self._get_param("Placement.GroupName") or ""
            # Named with the network interface, groups are the machine's all the same.
            instance.security_groups = instance.security_groups or list(instance.nics[0].group_set)
        return answer

    ec2.run_instances = run_instances_in_group

    # Descriptions of rules whose source is a group.
    rule: Any = SecurityGroupRule
    rule.description = property(lambda self: self.ip_range.get("Description") or self.source_group.get("Description"))

    # A machine without a public address has no association with one, rather than an empty one.
    interface: Any = NetworkInterface
    association = interface.association.fget
    interface.association = property(lambda self: association(self) or None)

    # The tags of a template itself are none of the machines'.
    backend: Any = EC2Backend
    create_launch_template = backend.create_launch_template

    def create_launch_template_only(self: Any, name: str, description: str, data: Any, tags: Any) -> Any:
        specifications = data.get("TagSpecifications", [])
        data["TagSpecifications"] = [part for part in specifications if part["ResourceType"] != "launch-template"]
        return create_launch_template(self, name, description, data, tags)

    backend.create_launch_template = create_launch_template_only

    autoscaling: Any = AutoScalingResponse
    create_auto_scaling_group = autoscaling.create_auto_scaling_group

    def create_auto_scaling_group_with_warmup(self: Any) -> Any:
        answer = create_auto_scaling_group(self)
        group = self.autoscaling_backend.autoscaling_groups[self._get_param("AutoScalingGroupName")]
        group.default_instance_warmup = self._get_param("DefaultInstanceWarmup")
        return answer

    autoscaling.create_auto_scaling_group = create_auto_scaling_group_with_warmup

    policy: Any = FakeScalingPolicy
    policy.enabled = True
    start_policy = policy.__init__

    def start_policy_without_prediction(self: Any, *arguments: Any, **more: Any) -> None:
        start_policy(self, *arguments, **more)
        self.predictive_scaling_configuration = self.predictive_scaling_configuration or None

    policy.__init__ = start_policy_without_prediction

    # A zone with a network is private, whether that is said or not.
    route53: Any = Route53
    create_hosted_zone = route53.create_hosted_zone

    def create_private_zone(self: Any) -> Any:
        answer = create_hosted_zone(self)
        zone, network = answer.result["HostedZone"], self._get_param("VPC.VPCId")
        if network and not zone.private_zone:
            zone.private_zone = True
            zone.add_vpc(network, self._get_param("VPC.VPCRegion"))
            answer.result["DelegationSet"] = None
        return answer

    route53.create_hosted_zone = create_private_zone
    get_hosted_zone = route53.get_hosted_zone

    def get_hosted_zone_with_networks(self: Any) -> Any:
        answer = get_hosted_zone(self)
        answer.result["VPCs"] = [
            {"VPCId": vpc["vpc_id"], "VPCRegion": vpc["vpc_region"]} for vpc in answer.result["VPCs"] or []
        ] or None
        return answer

    route53.get_hosted_zone = get_hosted_zone_with_networks

    # A bucket that denies requests without TLS would deny everything: the tests speak plain HTTP.
    statement: Any = IAMPolicyStatement
    is_action_permitted = statement.is_action_permitted

    def is_action_permitted_with_tls(self: Any, *arguments: Any, **more: Any) -> Any:
        if "aws:SecureTransport" in json.dumps(self._statement.get("Condition", {})):
            return PermissionResult.NEUTRAL
        return is_action_permitted(self, *arguments, **more)

    statement.is_action_permitted = is_action_permitted_with_tls

    # A role that the profile has may be added again: so does Terraform's provider when the first answer was lost.
    iam: Any = IAMBackend
    add_role_to_instance_profile = iam.add_role_to_instance_profile

    def add_role_once(self: Any, profile_name: str, role_name: str) -> None:
        if role_name not in [role.name for role in self.get_instance_profile(profile_name).roles]:
            add_role_to_instance_profile(self, profile_name, role_name)

    iam.add_role_to_instance_profile = add_role_once

    # Load balancers are there at once: Terraform would ask again only ten seconds later.
    balancer: Any = FakeLoadBalancer
    start_balancer = balancer.__init__

    def start_active(self: Any, *arguments: Any, **more: Any) -> None:
        start_balancer(self, *arguments, **more)
        self.state = "active"

    balancer.__init__ = start_active


def main() -> None:
    fill_gaps()
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    while server.get_host_and_port()[1] == 0:
        time.sleep(0.05)
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.buffer.read()
    server.stop()


if __name__ == "__main__":
    main()
