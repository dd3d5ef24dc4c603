"""Terraform against a stand-in for AWS: what it makes and refuses, that it makes nothing twice and leaves nothing."""

from __future__ import annotations

import concurrent.futures
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aws import DEBIAN, REGION, TERRAFORM, UBUNTU, WIREGUARD_KEYS, Terraform, client, inventory, variables

SECRETS = {
    *("ca", "grafana-admin", "triton-tls", "triton-token"),
    *(f"redis-{user}" for user in ("admin", "server", "deploy", "events", "exporter")),
}


def tags(item: dict[str, Any]) -> dict[str, str]:
    """Tags of what boto3 describes, as a dictionary."""
    return {tag["Key"]: tag["Value"] for tag in item.get("Tags", [])}


@pytest.fixture(scope="session")
def ec2(endpoint: str, deployed: Terraform) -> Any:
    return client("ec2", endpoint)


@pytest.fixture(scope="session")
def machines(ec2: Any) -> dict[str, list[dict[str, Any]]]:
    """All running machines by their role, in the order of their names."""
    found: dict[str, list[dict[str, Any]]] = {}
    for reservation in ec2.describe_instances()["Reservations"]:
        for instance in reservation["Instances"]:
            found.setdefault(tags(instance)["Role"], []).append(instance)
    return {role: sorted(group, key=lambda machine: tags(machine)["Name"]) for role, group in found.items()}


@pytest.fixture(scope="session")
def groups(ec2: Any) -> dict[str, dict[str, Any]]:
    """Security groups of the deployment by their name."""
    return {group["GroupName"]: group for group in ec2.describe_security_groups()["SecurityGroups"]}


def rules(ec2: Any, groups: dict[str, dict[str, Any]], name: str) -> set[tuple[str, str, int, str]]:
    """Rules of a group for what comes in: protocol, ports and source."""
    names = {group["GroupId"]: other for other, group in groups.items()}
    found = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [groups[name]["GroupId"]]}])
    answer = set()
    for rule in found["SecurityGroupRules"]:
        if not rule["IsEgress"]:
            assert rule.get("FromPort") == rule.get("ToPort")
            source = rule.get("CidrIpv4") or names[rule["ReferencedGroupInfo"]["GroupId"]]
            answer.add((name, rule["IpProtocol"], rule.get("FromPort", -1), source))
    return answer


# --- The files ---


def test_files_are_formatted() -> None:
    done = subprocess.run(
        ["terraform", "fmt", "-check", "-recursive", "-diff", str(TERRAFORM)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_are_valid(deployed: Terraform) -> None:
    answer = json.loads(deployed.run("validate", "-json", check=False).stdout)
    assert answer["valid"]
    assert answer["diagnostics"] == []


def test_every_variable_and_output_is_described() -> None:
    for file in TERRAFORM.rglob("*.tf"):
        for kind, name, body in re.findall(r'^(variable|output) "(\w+)" {\n(.*?)^}', file.read_text(), re.M | re.S):
            assert re.match(r'\s*description\s*= "[A-Z].*\."\n', body), f"{file.name}: {kind} {name}"
            assert kind == "output" or re.search(r"^  type\s*=", body, re.M), f"{file.name}: {name}"


def test_only_the_aws_provider() -> None:
    kinds = re.compile(r'^(?:resource|data) "([a-z]+)_', re.M)
    used = {kind for file in TERRAFORM.rglob("*.tf") for kind in kinds.findall(file.read_text())}
    assert used == {"aws", "terraform"}
    assert "local-exec" not in "".join(file.read_text() for file in TERRAFORM.rglob("*.tf"))


def test_the_example_names_only_variables_that_exist() -> None:
    declared = set(re.findall(r'^variable "(\w+)"', (TERRAFORM / "variables.tf").read_text(), re.M))
    example = (TERRAFORM / "terraform.tfvars.example").read_text()
    named = set(re.findall(r"^(?:# )?(\w+) *= ", example, re.M))
    assert named <= declared
    assert {"ssh_public_key", "vpn_peers"} <= named


# --- What it makes ---


def test_nothing_is_public_but_the_vpn(ec2: Any, machines: dict[str, list[dict[str, Any]]]) -> None:
    public = {
        (rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort"), tags(rule).get("Name"))
        for rule in ec2.describe_security_group_rules()["SecurityGroupRules"]
        if not rule["IsEgress"] and (rule.get("CidrIpv4") == "0.0.0.0/0" or rule.get("CidrIpv6"))
    }
    assert public == {("udp", 51820, 51820, "recsys-vpn-wireguard")}

    [vpn] = machines["vpn"]
    addresses = {tags(address)["Name"]: address for address in ec2.describe_addresses()["Addresses"]}
    assert set(addresses) == {"recsys-vpn", *(f"recsys-nat-{REGION}{zone}" for zone in "abc")}
    assert addresses["recsys-vpn"]["InstanceId"] == vpn["InstanceId"]
    for role in ("redis", "triton", "monitoring"):
        assert [machine.get("PublicIpAddress") for machine in machines[role]] == [None] * len(machines[role])


def test_the_default_group_lets_nothing_through(ec2: Any, machines: dict[str, list[dict[str, Any]]]) -> None:
    vpc = machines["redis"][0]["VpcId"]
    wanted = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": ["default"]}]
    [group] = ec2.describe_security_groups(Filters=wanted)["SecurityGroups"]
    assert group["IpPermissions"] == []
    assert group["IpPermissionsEgress"] == []


def test_private_subnets_go_out_through_their_own_zone(ec2: Any, machines: dict[str, list[dict[str, Any]]]) -> None:
    vpc = [{"Name": "vpc-id", "Values": [machines["redis"][0]["VpcId"]]}]
    subnets = {subnet["SubnetId"]: subnet for subnet in ec2.describe_subnets(Filters=vpc)["Subnets"]}
    assert len(subnets) == 6
    assert not any(subnet["MapPublicIpOnLaunch"] for subnet in subnets.values())
    gateways = {gateway["NatGatewayId"]: gateway for gateway in ec2.describe_nat_gateways()["NatGateways"]}
    private = 0
    for table in ec2.describe_route_tables(Filters=vpc)["RouteTables"]:
        for route in table["Routes"]:
            if "NatGatewayId" in route:
                [association] = table["Associations"]
                own = subnets[association["SubnetId"]]
                through = subnets[gateways[route["NatGatewayId"]]["SubnetId"]]
                assert own["AvailabilityZone"] == through["AvailabilityZone"]
                assert own["SubnetId"] != through["SubnetId"]
                private += 1
    assert private == 3


def test_aws_is_reached_from_inside(ec2: Any) -> None:
    endpoints = {
        endpoint["ServiceName"].removeprefix(f"com.amazonaws.{REGION}."): endpoint["VpcEndpointType"]
        for endpoint in ec2.describe_vpc_endpoints()["VpcEndpoints"]
    }
    interfaces = ("ssm", "ssmmessages", "ec2messages", "secretsmanager", "monitoring", "ecr.api", "ecr.dkr", "logs")
    assert endpoints == {"s3": "Gateway", **dict.fromkeys(interfaces, "Interface")}


def test_flow_logs_are_kept(ec2: Any, endpoint: str) -> None:
    [flow] = ec2.describe_flow_logs()["FlowLogs"]
    [group] = client("logs", endpoint).describe_log_groups()["logGroups"]
    assert flow["TrafficType"] == "ALL"
    assert flow["LogDestination"].startswith(group["arn"].removesuffix(":*"))
    assert group["retentionInDays"] == 30


def test_who_may_reach_redis(ec2: Any, groups: dict[str, dict[str, Any]]) -> None:
    data = {
        ("recsys-redis", "tcp", port, f"recsys-{who}")
        for port in (6379, 6380, 6381)
        for who in ("triton", "vpn", "redis")
    }
    assert rules(ec2, groups, "recsys-redis") == data | {
        ("recsys-redis", "tcp", 16380, "recsys-redis"),
        ("recsys-redis", "tcp", 16381, "recsys-redis"),
        ("recsys-redis", "tcp", 22, "recsys-vpn"),
        ("recsys-redis", "tcp", 9100, "recsys-monitoring"),
        ("recsys-redis", "tcp", 9121, "recsys-monitoring"),
    }


def test_who_may_reach_triton(ec2: Any, groups: dict[str, dict[str, Any]]) -> None:
    assert rules(ec2, groups, "recsys-triton-lb") == {("recsys-triton-lb", "tcp", 8001, "recsys-vpn")}
    assert rules(ec2, groups, "recsys-triton") == {
        ("recsys-triton", "tcp", 8001, "recsys-triton-lb"),
        ("recsys-triton", "tcp", 8001, "recsys-vpn"),
        ("recsys-triton", "tcp", 8002, "recsys-triton-lb"),
        ("recsys-triton", "tcp", 8002, "recsys-monitoring"),
        ("recsys-triton", "tcp", 9100, "recsys-monitoring"),
        ("recsys-triton", "tcp", 22, "recsys-vpn"),
    }


def test_who_may_reach_the_others(ec2: Any, groups: dict[str, dict[str, Any]]) -> None:
    assert rules(ec2, groups, "recsys-monitoring") == {
        ("recsys-monitoring", "tcp", port, "recsys-vpn") for port in (22, 3000)
    }
    assert rules(ec2, groups, "recsys-vpn") == {
        ("recsys-vpn", "udp", 51820, "0.0.0.0/0"),
        ("recsys-vpn", "tcp", 9100, "recsys-monitoring"),
    }
    assert rules(ec2, groups, "recsys-endpoints") == {("recsys-endpoints", "tcp", 443, "10.20.0.0/16")}


def test_redis_is_spread_and_keeps_its_data(
    ec2: Any, deployed: Terraform, machines: dict[str, list[dict[str, Any]]]
) -> None:
    nodes = machines["redis"]
    assert [tags(node)["Name"] for node in nodes] == ["recsys-redis-1", "recsys-redis-2", "recsys-redis-3"]
    assert len({node["Placement"]["AvailabilityZone"] for node in nodes}) == 3
    assert {node["Placement"]["GroupName"] for node in nodes} == {"recsys-redis"}
    volumes = {node["private_ip"]: node["data_volume"] for node in deployed.outputs()["redis_nodes"]}
    [group] = ec2.describe_placement_groups()["PlacementGroups"]
    assert group["Strategy"] == "spread"
    for node in nodes:
        attached = {disk["DeviceName"]: disk["Ebs"]["VolumeId"] for disk in node["BlockDeviceMappings"]}
        assert attached["/dev/sdf"] == volumes[node["PrivateIpAddress"]]


def test_disks_are_encrypted(ec2: Any, machines: dict[str, list[dict[str, Any]]]) -> None:
    volumes = {volume["VolumeId"]: volume for volume in ec2.describe_volumes()["Volumes"]}
    seen = 0
    for role in ("redis", "monitoring", "vpn"):
        for machine in machines[role]:
            for disk in machine["BlockDeviceMappings"]:
                volume = volumes[disk["Ebs"]["VolumeId"]]
                assert volume["Encrypted"], tags(machine)["Name"]
                assert volume["VolumeType"] == "gp3"
                assert tags(volume)["Role"] == role
                assert {"Name", "Project", "Environment", "ManagedBy"} <= set(tags(volume))
                seen += 1
    assert seen == 3 * 2 + 2 + 1


def test_machines_are_as_they_should_be(deployed: Terraform, machines: dict[str, list[dict[str, Any]]]) -> None:
    numbers = {"redis": 3, "triton": deployed.variables.get("triton_start_size", 1), "monitoring": 1, "vpn": 1}
    assert {role: len(group) for role, group in machines.items()} == numbers
    for role, group in machines.items():
        for machine in group:
            assert machine["ImageId"] == DEBIAN
            assert machine["KeyName"] == "recsys-ansible"
            assert {"Project": "recsys", "Environment": "production", "ManagedBy": "terraform"}.items() <= tags(
                machine
            ).items()
            # moto doesn't pass these on from a launch template; they are looked at there.
            if role != "triton":
                assert machine["MetadataOptions"]["HttpTokens"] == "required"
                assert machine["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
                assert machine["IamInstanceProfile"]["Arn"].endswith(f"/recsys-{role}")


def test_triton_machines_are_as_they_should_be(ec2: Any) -> None:
    [template] = ec2.describe_launch_template_versions(LaunchTemplateName="recsys-triton")["LaunchTemplateVersions"]
    data = template["LaunchTemplateData"]
    assert data["InstanceType"] == "g6.xlarge"
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["MetadataOptions"]["HttpPutResponseHopLimit"] == 2
    assert data["IamInstanceProfile"]["Name"] == "recsys-triton"
    [disk] = data["BlockDeviceMappings"]
    assert disk["DeviceName"] == "/dev/xvda"
    assert disk["Ebs"]["Encrypted"]
    assert disk["Ebs"]["VolumeType"] == "gp3"
    for part in data["TagSpecifications"]:
        assert tags(part) == {
            **{"Name": "recsys-triton", "Role": "triton", "Project": "recsys"},
            **{"Environment": "production", "ManagedBy": "terraform"},
        }
    assert {part["ResourceType"] for part in data["TagSpecifications"]} == {"instance", "volume", "network-interface"}


def test_triton_grows_with_its_queue(endpoint: str, deployed: Terraform) -> None:
    autoscaling = client("autoscaling", endpoint)
    [group] = autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    assert group["AutoScalingGroupName"] == deployed.outputs()["ansible"]["triton_asg"]
    given = deployed.variables
    assert group["MinSize"] == 1
    assert group["DesiredCapacity"] == given.get("triton_start_size", 1)
    assert group["MaxSize"] == given.get("triton_max_size", 3)
    assert group["HealthCheckType"] == "ELB"
    assert all(tag["PropagateAtLaunch"] for tag in group["Tags"])
    assert len(group["VPCZoneIdentifier"].split(",")) == 3
    [policy] = autoscaling.describe_policies()["ScalingPolicies"]
    target = policy["TargetTrackingConfiguration"]
    assert target["TargetValue"] == 2000
    metric = target["CustomizedMetricSpecification"]
    assert (metric["Namespace"], metric["MetricName"]) == ("Recsys/Triton", "QueueMicroseconds")
    assert metric["Statistic"] == "Average"
    assert metric["Dimensions"] == [{"Name": "AutoScalingGroupName", "Value": group["AutoScalingGroupName"]}]


def test_triton_is_behind_an_internal_load_balancer(endpoint: str, deployed: Terraform) -> None:
    elb = client("elbv2", endpoint)
    [balancer] = elb.describe_load_balancers()["LoadBalancers"]
    assert (balancer["Scheme"], balancer["Type"]) == ("internal", "network")
    [listener] = elb.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
    assert (listener["Protocol"], listener["Port"]) == ("TCP", 8001)
    [target] = elb.describe_target_groups()["TargetGroups"]
    assert (target["Protocol"], target["Port"]) == ("TCP", 8001)
    assert (target["HealthCheckProtocol"], target["HealthCheckPort"]) == ("HTTP", "8002")
    assert target["HealthCheckPath"] == "/metrics"


def test_names(endpoint: str, deployed: Terraform, machines: dict[str, list[dict[str, Any]]]) -> None:
    route53 = client("route53", endpoint)
    [zone] = route53.list_hosted_zones()["HostedZones"]
    assert zone["Config"]["PrivateZone"]
    [network] = route53.get_hosted_zone(Id=zone["Id"])["VPCs"]
    assert network["VPCId"] == machines["redis"][0]["VpcId"]
    records = {
        record["Name"].removesuffix(".recsys.internal."): record
        for record in route53.list_resource_record_sets(HostedZoneId=zone["Id"])["ResourceRecordSets"]
        if record["Type"] == "A"
    }
    addresses = {
        name: [value["Value"] for value in record.get("ResourceRecords", [])] for name, record in records.items()
    }
    redis = [node["PrivateIpAddress"] for node in machines["redis"]]
    monitoring = [machines["monitoring"][0]["PrivateIpAddress"]]
    assert sorted(addresses.pop("redis")) == sorted(redis)
    assert addresses == {
        **{f"redis-{index + 1}": [ip] for index, ip in enumerate(redis)},
        "grafana": monitoring,
        "vpn": [machines["vpn"][0]["PrivateIpAddress"]],
        "triton": [],
    }
    [balancer] = client("elbv2", endpoint).describe_load_balancers()["LoadBalancers"]
    assert records["triton"]["AliasTarget"]["DNSName"].rstrip(".") == balancer["DNSName"]


def test_the_bucket(endpoint: str, deployed: Terraform) -> None:
    s3 = client("s3", endpoint)
    bucket = deployed.outputs()["assets_bucket"]
    assert bucket == f"recsys-assets-123456789012-{REGION}"
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    [rule] = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())
    [ownership] = s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"]["Rules"]
    assert ownership["ObjectOwnership"] == "BucketOwnerEnforced"
    [statement] = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]
    assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "s3:*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    [lifecycle] = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert lifecycle["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
    playbooks = Path(str(deployed.variables["playbooks"])).read_bytes()
    assert s3.get_object(Bucket=bucket, Key="ansible.tar.gz")["Body"].read() == playbooks


def test_the_registry(endpoint: str, deployed: Terraform) -> None:
    [repository] = client("ecr", endpoint).describe_repositories()["repositories"]
    assert repository["repositoryName"] == "recsys/triton"
    assert repository["imageTagMutability"] == "IMMUTABLE"
    assert repository["imageScanningConfiguration"] == {"scanOnPush": True}
    assert repository["encryptionConfiguration"]["encryptionType"] == "AES256"
    assert deployed.outputs()["triton_repository"] == repository["repositoryUri"]


def test_secrets_are_there_and_empty(endpoint: str, deployed: Terraform) -> None:
    manager = client("secretsmanager", endpoint)
    secrets = {secret["Name"]: secret for secret in manager.list_secrets()["SecretList"]}
    assert set(secrets) == {f"recsys/{name}" for name in SECRETS}
    for name, secret in secrets.items():
        assert secret["Description"]
        assert secret.get("SecretVersionsToStages", {}) == {}, name
    assert deployed.outputs()["secrets"] == {name: f"recsys/{name}" for name in SECRETS}


def allowed(endpoint: str, role: str) -> dict[str, list[str]]:
    """What a role's own policies allow: each action with its resources."""
    iam = client("iam", endpoint)
    answer: dict[str, list[str]] = {}
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        for statement in iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]["Statement"]:
            actions, resources = statement["Action"], statement["Resource"]
            for action in [actions] if isinstance(actions, str) else actions:
                answer.setdefault(action, []).extend([resources] if isinstance(resources, str) else resources)
    return answer


def test_what_machines_may_do(endpoint: str, deployed: Terraform) -> None:
    iam = client("iam", endpoint)
    for role in ("redis", "triton", "monitoring", "vpn"):
        [attached] = iam.list_attached_role_policies(RoleName=f"recsys-{role}")["AttachedPolicies"]
        assert attached["PolicyName"] == "AmazonSSMManagedInstanceCore"
    bucket = f"arn:aws:s3:::{deployed.outputs()['assets_bucket']}"
    here = f"{REGION}:123456789012"

    assert allowed(endpoint, "recsys-redis") == {}
    assert allowed(endpoint, "recsys-monitoring") == {
        "ec2:DescribeInstances": ["*"],
        "ec2:DescribeAvailabilityZones": ["*"],
    }
    assert allowed(endpoint, "recsys-vpn") == {
        "ssm:GetParameter": [f"arn:aws:ssm:{here}:parameter/recsys/vpn/public-key"],
        "ssm:PutParameter": [f"arn:aws:ssm:{here}:parameter/recsys/vpn/public-key"],
        "s3:GetObject": [f"{bucket}/ansible.tar.gz"],
    }
    triton = allowed(endpoint, "recsys-triton")
    readable = {arn.split(":secret:")[1].rpartition("-")[0] for arn in triton.pop("secretsmanager:GetSecretValue")}
    assert readable == {"recsys/redis-server", "recsys/triton-token", "recsys/triton-tls"}
    triton.pop("secretsmanager:DescribeSecret")
    repository = f"arn:aws:ecr:{here}:repository/recsys/triton"
    assert triton == {
        "s3:GetObject": [f"{bucket}/*"],
        "s3:ListBucket": [bucket],
        "ecr:BatchCheckLayerAvailability": [repository],
        "ecr:BatchGetImage": [repository],
        "ecr:GetDownloadUrlForLayer": [repository],
        "ecr:GetAuthorizationToken": ["*"],
        "ssm:GetParameter": [f"arn:aws:ssm:{here}:parameter/recsys/ca-certificate"],
        "cloudwatch:PutMetricData": ["*"],
    }


def test_outputs(deployed: Terraform, ec2: Any) -> None:
    outputs = deployed.outputs()
    [vpn] = [address for address in ec2.describe_addresses()["Addresses"] if tags(address)["Name"] == "recsys-vpn"]
    assert outputs["vpn_endpoint"] == f"{vpn['PublicIp']}:51820"
    assert outputs["triton"] == "triton.recsys.internal:8001"
    assert outputs["ca_certificate_parameter"] == "/recsys/ca-certificate"
    assert outputs["ansible"] == {
        "recsys_name": "recsys",
        "recsys_region": REGION,
        "recsys_dns_zone": "recsys.internal",
        "recsys_vpc_cidr": "10.20.0.0/16",
        "recsys_dns_server": "10.20.0.2",
        "recsys_assets_bucket": outputs["assets_bucket"],
        "redis_engine": "oss",
        "triton_image": deployed.variables.get("triton_image", f"{outputs['triton_repository']}:v1"),
        "triton_asg": "recsys-triton",
        "triton_model": "multi-stage",
        "vpn_port": 51820,
        "vpn_network": "10.99.0.0/24",
        "vpn_address": "10.99.0.1",
        "vpn_peers": deployed.variables["vpn_peers"],
        "vpn_endpoint": vpn["PublicIp"],
    }


# --- The first boot ---


@pytest.fixture(scope="session")
def first_boots(deployed: Terraform) -> dict[str, str]:
    """Each role's script."""
    return dict(deployed.evaluate("local.first_boot"))


def test_first_boots_are_shell(first_boots: dict[str, str], tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert set(first_boots) == {"redis", "triton", "monitoring", "vpn"}
    for role, script in first_boots.items():
        assert script.startswith("#!/bin/bash\n")
        assert len(script.encode()) < 16384
        file = tmp_path / f"{role}.sh"
        file.write_text(script)
        subprocess.run(["bash", "-n", str(file)], check=True)
        if shellcheck:
            subprocess.run([shellcheck, str(file)], check=True)


def test_only_triton_and_the_vpn_configure_themselves(first_boots: dict[str, str]) -> None:
    for role, script in first_boots.items():
        assert ("ansible-playbook" in script) == (role in ("triton", "vpn")), role


def test_triton_is_told_nothing_about_the_vpn(first_boots: dict[str, str], deployed: Terraform) -> None:
    told = {
        role: json.loads(first_boots[role].split("<<'VARS'\n")[1].split("\nVARS\n")[0]) for role in ("triton", "vpn")
    }
    expected = deployed.outputs()["ansible"]
    expected.pop("vpn_endpoint")
    assert told["vpn"] == expected
    assert told["triton"] == {key: value for key, value in expected.items() if not key.startswith("vpn_")}


# --- What comes later ---


def test_a_second_plan_changes_nothing(deployed: Terraform) -> None:
    done = deployed.run("plan", "-no-color", "-lock=false", "-detailed-exitcode", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_secret_in_the_state(deployed: Terraform) -> None:
    state = (deployed.folder / "terraform.tfstate").read_text()
    assert "aws_secretsmanager_secret_version" not in state
    assert "secret_string" not in state
    assert not re.search(r"PRIVATE KEY|random_password", state)
    sensitive = [
        (resource["type"], instance["sensitive_attributes"])
        for resource in json.loads(state)["resources"]
        for instance in resource["instances"]
        if instance.get("sensitive_attributes")
    ]
    assert sensitive == []


def test_what_the_other_choices_change(deployed: Terraform) -> None:
    """One plan for Redis Enterprise with everything cheaper, and a public name for the VPN left out."""
    plan = deployed.plan(
        "-refresh=false",
        redis_engine="enterprise",
        nat_per_zone=False,
        interface_endpoints=False,
        flow_log_days=0,
        redis_snapshots_kept=7,
        deletion_protection=True,
        vpn_peers=[{"name": "other", "public_key": WIREGUARD_KEYS[1], "address": "10.99.0.3"}],
    )
    changes = {
        change["address"]: change["change"]
        for change in plan["resource_changes"]
        if change["mode"] == "managed" and change["change"]["actions"] != ["no-op"]
    }

    def actions(part: str) -> set[str]:
        return {" ".join(change["actions"]) for address, change in changes.items() if part in address}

    # Nothing replaces a machine with data, and another peer not even touches the gateway.
    assert not actions("module.vpn.")
    assert actions("aws_instance.") == {"update"}  # termination protection
    assert actions("aws_ebs_volume.") == {"update"}  # a last snapshot
    assert actions("module.triton.aws_launch_template") == {"update"}  # its first boot names the engine
    assert actions("aws_dlm_lifecycle_policy") == {"create"}
    assert actions("aws_nat_gateway") == {"delete"}
    assert actions("aws_vpc_endpoint.interface") == {"delete"}
    assert actions("aws_flow_log") == {"delete"}
    ports = {
        (change["after"]["from_port"], change["after"]["ip_protocol"])
        for address, change in changes.items()
        if address.startswith("module.redis.module.firewall.aws_vpc_security_group_ingress_rule")
        and change["actions"] == ["create"]
    }
    assert ports == {(12000, "tcp"), (12001, "tcp"), (8443, "tcp"), (9443, "tcp"), (8070, "tcp"), (None, "-1")}
    assert UBUNTU in json.dumps(plan["planned_values"]) or UBUNTU in json.dumps(plan["prior_state"])


# --- What it refuses ---

# Wrong values that one plan can have at once: all are named. Beside each, what its message must say.
WRONG: dict[str, tuple[object, str]] = {
    "name": ("Recsys_1", "name: set 3 to 20 lower-case letters"),
    "environment": ("", "environment: set 1 to 64 characters"),
    "tags": ({"project": "other"}, "tags: leave out Name, Project"),
    "zones": (["eu-central-1a", "eu-central-1a"], "zones: set up to six different"),
    "vpc_cidr": ("10.20.0.0/8", "vpc_cidr: set an IPv4 network of /16 to /20"),
    "vpn_network": ("10.99.0.1/24", "vpn_network: set an IPv4 network of /16 to /28"),
    "vpn_port": (80, "vpn_port: set a port from 1024"),
    "vpn_public_zone_id": ("example.org", "vpn_public_zone_id: set the id of a public Route 53 zone"),
    "flow_log_days": (2, "flow_log_days: set 0 or what CloudWatch offers"),
    "dns_zone": ("recsys", "dns_zone: set a domain name"),
    "ssh_public_key": (
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "ssh_public_key: set the text of your OpenSSH public key",
    ),
    "redis_engine": ("valkey", "redis_engine: set oss or enterprise"),
    "redis_nodes": (4, "redis_nodes: set an odd number from 3"),
    "redis_data_gib": (1, "redis_data_gib: set a whole number"),
    "redis_snapshots_kept": (-1, "redis_snapshots_kept: set a whole number"),
    "redis_ami": ("debian", "redis_ami: set the id of a machine image"),
    "triton_model": ("small", "triton_model: set multi-stage or large-scale"),
    "triton_image_tag": ("a b", "triton_image_tag: set the tag of an image"),
    "triton_min_size": (-1, "triton_min_size: set a whole number from 0"),
    "triton_max_size": (0, "triton_max_size: set a whole number from 1"),
    "triton_start_size": (0.5, "triton_start_size: set a whole number"),
    "triton_queue_target": (0, "triton_queue_target: set a number of microseconds"),
    "triton_client_cidrs": (["0.0.0.0/0"], "triton_client_cidrs: set private IPv4 networks only"),
    "triton_disk_gib": (8, "triton_disk_gib: set a whole number"),
    "triton_ami": ("debian", "triton_ami: set the id of a machine image"),
    "monitoring_data_gib": (1, "monitoring_data_gib: set a whole number"),
    "debian_ami": ("debian", "debian_ami: set the id of a machine image"),
    "playbooks": ("no/such/file", "playbooks: set the path of ansible.tar.gz"),
    "kms_key_arn": ("alias/mine", "kms_key_arn: set the ARN of a KMS key"),
    "secret_recovery_days": (3, "secret_recovery_days: set 0, or 7 to 30"),
    "vpn_peers": (
        [
            {"name": "a b", "public_key": WIREGUARD_KEYS[0], "address": "10.99.0.2"},
            {"name": "a b", "public_key": "not a key", "address": "10.99.0.2"},
        ],
        "vpn_peers: set each name",
    ),
}
REFUSALS: dict[str, dict[str, object]] = {
    "wrong values": {name: value for name, (value, _) in WRONG.items()},
    "nothing set": {"ssh_public_key": "", "vpn_peers": [], "playbooks": "", "region": "frankfurt"},
    "no such region": {"region": "eu-nowhere-1"},
    "wrong together": {
        "zones": ["us-east-1a"],
        "triton_instance_type": "m7i.large",
        "vpn_instance_type": "t4g.micro",
        "vpn_network": "10.20.8.0/24",
        "triton_min_size": 4,
        "vpn_peers": [{"name": "laptop", "public_key": WIREGUARD_KEYS[0], "address": "10.98.0.2"}],
    },
}
MESSAGES = [
    *(("wrong values", message) for _, message in WRONG.values()),
    ("wrong values", "vpn_peers: set each public_key to what `wg pubkey` prints"),
    ("wrong values", "vpn_peers: set another address for each peer"),
    ("wrong values", "vpn_peers: set another name and another public_key"),
    ("nothing set", "ssh_public_key: set the text of your OpenSSH public key"),
    ("nothing set", "ssh-keygen -t ed25519 makes one"),
    ("nothing set", "vpn_peers: set 1 to 64 peers"),
    ("nothing set", "playbooks: set the path of ansible.tar.gz"),
    ("nothing set", "region: set the code of an AWS region"),
    ("no such region", "eu-nowhere-1"),
    ("wrong together", "zones: us-east-1a is not in eu-central-1; set zones out of"),
    ("wrong together", "triton_instance_type: m7i.large has no GPU"),
    ("wrong together", "t4g.micro is not an x86-64 machine"),
    ("wrong together", "vpn_network: 10.20.8.0/24 overlaps with vpc_cidr 10.20.0.0/16"),
    ("wrong together", "triton_min_size 4, triton_start_size 1 and triton_max_size 3"),
    ("wrong together", "vpn_peers: set each address to one of vpn_network"),
]


@pytest.fixture(scope="session")
def refused(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What Terraform says to each set of wrong variables, in one line."""
    folder = tmp_path_factory.mktemp("refused")

    def plan(wrong: dict[str, object]) -> str:
        with Terraform(TERRAFORM, endpoint, variables(folder) | wrong) as terraform:
            (terraform.folder / "tests.auto.tfvars.json").write_text(json.dumps(terraform.variables))
            done = terraform.run("plan", "-no-color", "-lock=false", check=False)
            assert done.returncode == 1, done.stdout
            return " ".join(done.stderr.split())

    variables(folder)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield dict(zip(REFUSALS, pool.map(plan, REFUSALS.values()), strict=True))


@pytest.mark.parametrize(("wrong", "message"), MESSAGES)
def test_wrong_variables_are_refused(refused: dict[str, str], wrong: str, message: str) -> None:
    assert message in refused[wrong], refused[wrong]


def test_terraforms_own_tests(deployed: Terraform) -> None:
    done = deployed.run("test", "-no-color", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- The end ---


def test_destroy_leaves_nothing(endpoint: str, untouched: set[str], deployed: Terraform) -> None:
    """Comes last, as conftest.py sees to."""
    assert inventory(endpoint) > untouched
    deployed.destroy()
    assert inventory(endpoint) == untouched
