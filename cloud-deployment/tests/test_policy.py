"""The policy check: the plan and the state pass it, and every rule fails a plan that is changed for the worse."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable
from typing import Any

import pytest
from aws import TERRAFORM, Terraform
from policy import check, secrets_in

Values = dict[str, Any]


def find(plan: dict[str, Any], address: str) -> dict[str, Any]:
    """A resource of a plan, by its address."""
    modules = [plan["planned_values"]["root_module"]]
    while modules:
        module = modules.pop()
        modules += module.get("child_modules", [])
        for resource in module.get("resources", []):
            if resource["address"] == address:
                found: dict[str, Any] = resource
                return found
    raise KeyError(address)


def test_the_plan_passes(deployed: Terraform) -> None:
    assert check(deployed.planned) == []


def test_the_state_passes(deployed: Terraform) -> None:
    assert check(deployed.state()) == []


def test_the_check_sees_the_whole_plan(deployed: Terraform) -> None:
    assert find(deployed.planned, "module.redis.aws_instance.node[2]")
    assert find(deployed.planned, 'module.vpn.module.firewall.aws_vpc_security_group_ingress_rule.this["wireguard"]')


RULE = 'module.redis.module.firewall.aws_vpc_security_group_ingress_rule.this["ssh"]'
WIREGUARD = 'module.vpn.module.firewall.aws_vpc_security_group_ingress_rule.this["wireguard"]'
NODE = "module.redis.aws_instance.node[0]"
VOLUME = "module.redis.aws_ebs_volume.data[0]"
TEMPLATE = "module.triton.aws_launch_template.this"
GROUP = "module.triton.aws_autoscaling_group.this"
BLOCK = "module.assets.aws_s3_bucket_public_access_block.this"
KEY = f"PrivateKey = {'A' * 43}="

WORSE: list[tuple[str, Callable[[Values], object], str]] = [
    (RULE, lambda values: values.update(cidr_ipv4="0.0.0.0/0"), "lets 0.0.0.0/0 in"),
    (RULE, lambda values: values.update(cidr_ipv6="::/0"), "lets ::/0 in"),
    (RULE, lambda values: values.update(cidr_ipv4="0.0.0.0/1"), "lets 0.0.0.0/1 in"),
    (RULE, lambda values: values.update(cidr_ipv4="8.8.8.8/32"), "lets 8.8.8.8/32 in"),
    (WIREGUARD, lambda values: values.update(ip_protocol="tcp"), "lets 0.0.0.0/0 in to tcp"),
    (WIREGUARD, lambda values: values.update(from_port=0, to_port=65535), "lets 0.0.0.0/0 in to udp 0-65535"),
    (WIREGUARD, lambda values: values.update(ip_protocol="-1", from_port=None, to_port=None), "in to -1"),
    (NODE, lambda values: values.update(associate_public_ip_address=True), "public address"),
    (
        'module.network.aws_subnet.public["eu-central-1a"]',
        lambda values: values.update(map_public_ip_on_launch=True),
        "public address",
    ),
    ("module.triton.aws_lb.this", lambda values: values.update(internal=False), "on the internet"),
    ("module.dns.aws_route53_zone.private", lambda values: values.update(vpc=[]), "public zone"),
    (VOLUME, lambda values: values.update(encrypted=False), "not encrypted"),
    (NODE, lambda values: values["root_block_device"][0].update(encrypted=None), "not encrypted"),
    (NODE, lambda values: values.update(root_block_device=[]), "not encrypted"),
    (TEMPLATE, lambda values: values["block_device_mappings"][0]["ebs"][0].update(encrypted=None), "not encrypted"),
    (TEMPLATE, lambda values: values.update(block_device_mappings=[]), "not encrypted"),
    ("module.assets.aws_ecr_repository.triton", lambda values: values.update(encryption_configuration=[]), "encrypted"),
    (
        "module.assets.aws_ecr_repository.triton",
        lambda values: values.update(image_tag_mutability="MUTABLE"),
        "overwritten",
    ),
    (
        "module.assets.aws_s3_bucket_server_side_encryption_configuration.this",
        lambda values: values.update(rule=[]),
        "aws_s3_bucket.this: is not encrypted",
    ),
    (BLOCK, lambda values: values.update(block_public_policy=False), "can be made public"),
    (NODE, lambda values: values["metadata_options"][0].update(http_tokens="optional"), "version 1"),
    (TEMPLATE, lambda values: values["metadata_options"][0].update(http_tokens="optional"), "version 1"),
    (VOLUME, lambda values: values["tags_all"].pop("Environment"), "no tag Environment"),
    (VOLUME, lambda values: values["tags_all"].pop("Role"), "no tag Role"),
    (
        NODE,
        lambda values: values["root_block_device"][0].update(tags={"Name": "recsys-redis-1-root"}),
        "no tag Role",
    ),
    (TEMPLATE, lambda values: values["tag_specifications"].clear(), "no tag Environment"),
    (GROUP, lambda values: [tag.update(propagate_at_launch=False) for tag in values["tag"]], "no tag"),
    ("module.network.aws_vpc.this", lambda values: values.update(tags_all=None), "no tag"),
    (
        NODE,
        lambda values: values.update(user_data="export REDIS_PASSWORD=correct-horse-battery"),
        "looks like a secret",
    ),
    (TEMPLATE, lambda values: values.update(user_data=base64.b64encode(KEY.encode()).decode()), "looks like a secret"),
    (NODE, lambda values: values.update(user_data="-----BEGIN OPENSSH PRIVATE KEY-----"), "looks like a secret"),
    (NODE, lambda values: values["tags_all"].update(Key="AKIAIOSFODNN7EXAMPLE"), "looks like a secret"),
    (VOLUME, lambda values: values.update(password="hunter2"), "password holds a secret"),
]


@pytest.mark.parametrize(("address", "change", "complaint"), WORSE)
def test_a_worse_plan_fails(
    deployed: Terraform, address: str, change: Callable[[Values], object], complaint: str
) -> None:
    plan = copy.deepcopy(deployed.planned)
    change(find(plan, address)["values"])
    assert [line for line in check(plan) if complaint in line], check(plan)


def test_rules_inside_a_group_are_seen(deployed: Terraform) -> None:
    plan = copy.deepcopy(deployed.planned)
    rule = {"protocol": "tcp", "from_port": 22, "to_port": 22, "cidr_blocks": ["0.0.0.0/0"], "ipv6_cidr_blocks": []}
    find(plan, "module.redis.module.firewall.aws_security_group.this")["values"]["ingress"] = [rule]
    assert [line for line in check(plan) if "lets 0.0.0.0/0 in to tcp 22-22" in line]


def test_a_secret_with_a_value_fails(deployed: Terraform) -> None:
    plan = copy.deepcopy(deployed.planned)
    find(plan, VOLUME)["type"] = "aws_secretsmanager_secret_version"
    assert [line for line in check(plan) if "would put a secret into the state" in line]


def test_a_secret_among_the_variables_fails(deployed: Terraform) -> None:
    plan = copy.deepcopy(deployed.planned)
    plan["variables"]["redis_password"] = {"value": "correct-horse-battery"}
    plan["variables"]["notes"] = {"value": ["token: correct-horse-battery"]}
    assert {line.split(":")[0] for line in check(plan)} == {"variable redis_password", "variable notes"}


@pytest.mark.parametrize("file", sorted(TERRAFORM.rglob("*.*")), ids=lambda file: str(file.relative_to(TERRAFORM)))
def test_no_secret_in_the_files(file: Any) -> None:
    if file.is_file() and ".terraform" not in file.parts and not file.name.startswith("terraform.tfstate"):
        assert secrets_in(file.read_text()) == []
