"""A check of a plan, before anything is made: what is public, in clear, without a tag, or a secret.

`check` takes what `terraform show -json` prints of a plan or of a state, and gives a list of complaints.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterator
from typing import Any

Resource = dict[str, Any]

# The one rule that may be open to the internet: a single UDP port of the VPN.
VPN = "module.vpn."

# Tags of everything, and of what belongs to one kind of machine.
TAGS = {"Name", "Project", "Environment", "ManagedBy"}
ROLES = {"redis", "triton", "monitoring", "vpn"}

# Resources that hold a secret by what they are.
_SECRET_TYPES = {
    "aws_secretsmanager_secret_version",
    "aws_iam_access_key",
    "random_password",
    "tls_private_key",
}
_SECRET_NAMES = re.compile(r"(^|_)(password|passwd|secret_string|secret_binary|private_key|auth_token|secret)$", re.I)
_NAMES_OF_SECRETS = re.compile(r"arn:aws[a-z-]*:secretsmanager:[^\s\"']+|secretsmanager:[A-Z]\w+|http_tokens")
_SECRET_TEXTS = [
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\bPrivateKey\s*=\s*[A-Za-z0-9+/]{42}[A-Za-z0-9+/]=", re.I),
    re.compile(r"\b\w*(password|passwd|token|secret)\w*[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9+/_.!@#%^&*-]{8,}", re.I),
]


def check(document: dict[str, Any]) -> list[str]:
    """Complaints about a plan or a state in Terraform's JSON; none if it is as it should be."""
    resources = list(
        _resources((document.get("planned_values") or document.get("values") or {}).get("root_module", {}))
    )
    unknown = {
        change["address"]: change["change"].get("after_unknown", {}) for change in document.get("resource_changes", [])
    }
    complaints = [
        f"{resource['address']}: {complaint}"
        for resource in resources
        for rule in (_public, _clear, _metadata, _secret)
        for complaint in rule(resource)
    ]
    complaints += [
        f"{resource['address']}: {complaint}"
        for resource in resources
        for complaint in _untagged(resource, unknown.get(resource["address"], {}))
    ]
    complaints += _buckets(resources)
    for name, variable in document.get("variables", {}).items():
        complaints += [f"variable {name}: {complaint}" for complaint in secrets_in({name: variable.get("value")})]
    return complaints


def secrets_in(value: Any) -> list[str]:
    """Complaints about what looks like a secret in a value, its parts, or what it is the base64 of."""
    complaints = []
    for name, text in _texts(value):
        if _SECRET_NAMES.search(name) and text:
            complaints.append(f"{name} holds a secret in plain text")
        if any(
            pattern.search(plain)
            for plain in (_NAMES_OF_SECRETS.sub("", text), _decoded(text))
            for pattern in _SECRET_TEXTS
        ):
            complaints.append(f"{name or 'the text'} holds what looks like a secret in plain text")
    return complaints


def _resources(module: dict[str, Any]) -> Iterator[Resource]:
    # Without values are those of which nothing is known yet.
    yield from ({"values": {}, **part} for part in module.get("resources", []) if part["mode"] == "managed")
    for child in module.get("child_modules", []):
        yield from _resources(child)


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _texts(part, key)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, name)


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def _is_private(network: str) -> bool:
    return ipaddress.ip_network(network, strict=False).is_private


def _public(resource: Resource) -> Iterator[str]:
    values, kind = resource["values"], resource["type"]
    rules: list[tuple[Any, list[str]]] = []
    if kind == "aws_vpc_security_group_ingress_rule":
        protocol = (values.get("ip_protocol"), values.get("from_port"), values.get("to_port"))
        rules = [(protocol, [values.get("cidr_ipv4"), values.get("cidr_ipv6")])]
    elif kind in ("aws_security_group", "aws_default_security_group"):
        rules = [
            ((rule["protocol"], rule["from_port"], rule["to_port"]), rule["cidr_blocks"] + rule["ipv6_cidr_blocks"])
            for rule in values.get("ingress") or []
        ]
    elif kind == "aws_security_group_rule" and values.get("type") == "ingress":
        protocol = (values.get("protocol"), values.get("from_port"), values.get("to_port"))
        rules = [(protocol, (values.get("cidr_blocks") or []) + (values.get("ipv6_cidr_blocks") or []))]
    for (protocol, first, last), networks in rules:
        of_vpn = resource["address"].startswith(VPN) and protocol == "udp" and first == last and first
        for network in networks:
            if network and not _is_private(network) and not of_vpn:
                yield f"lets {network} in to {protocol} {first}-{last}"
    if kind == "aws_instance" and values.get("associate_public_ip_address") and not resource["address"].startswith(VPN):
        yield "has a public address"
    if kind == "aws_subnet" and values.get("map_public_ip_on_launch"):
        yield "gives every machine a public address"
    if kind == "aws_lb" and not values.get("internal"):
        yield "is a load balancer on the internet"
    if kind == "aws_route53_zone" and not values.get("vpc"):
        yield "is a public zone"


def _clear(resource: Resource) -> Iterator[str]:
    values, kind = resource["values"], resource["type"]
    if kind == "aws_ebs_volume" and not values.get("encrypted"):
        yield "is not encrypted"
    if kind == "aws_instance":
        roots = values.get("root_block_device") or []
        if not roots or not all(disk.get("encrypted") for disk in roots + (values.get("ebs_block_device") or [])):
            yield "has a disk that is not encrypted"
    if kind == "aws_launch_template":
        disks = [disk for mapping in values.get("block_device_mappings") or [] for disk in mapping.get("ebs") or []]
        if not disks or not all(str(disk.get("encrypted")).lower() == "true" for disk in disks):
            yield "has a disk that is not encrypted"
    if kind == "aws_ecr_repository":
        if not values.get("encryption_configuration"):
            yield "does not say how images are encrypted"
        if values.get("image_tag_mutability") != "IMMUTABLE":
            yield "lets tags be overwritten"


def _metadata(resource: Resource) -> Iterator[str]:
    if resource["type"] in ("aws_instance", "aws_launch_template"):
        options = resource["values"].get("metadata_options") or [{}]
        if options[0].get("http_tokens") != "required":
            yield "allows version 1 of the instance metadata service"


def _buckets(resources: list[Resource]) -> Iterator[str]:
    """A bucket's settings are resources of their own; they stand beside it in its module."""
    for bucket in resources:
        if bucket["type"] != "aws_s3_bucket":
            continue
        module = bucket["address"].rpartition("aws_s3_bucket.")[0]
        beside = {
            resource["type"]: resource["values"]
            for resource in resources
            if resource["address"].startswith(f"{module}aws_s3_bucket_")
        }
        if not (beside.get("aws_s3_bucket_server_side_encryption_configuration") or {}).get("rule"):
            yield f"{bucket['address']}: is not encrypted"
        blocked = beside.get("aws_s3_bucket_public_access_block") or {}
        switches = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
        if not all(blocked.get(switch) for switch in switches):
            yield f"{bucket['address']}: can be made public"


def _untagged(resource: Resource, unknown: dict[str, Any]) -> Iterator[str]:
    values, kind = resource["values"], resource["type"]
    if kind == "aws_autoscaling_group":
        sets = [{tag["key"]: tag["value"] for tag in values.get("tag") or [] if tag["propagate_at_launch"]}]
    elif "tags_all" in values or "tags_all" in unknown:
        sets = [values.get("tags_all") or {}]
    else:
        return
    # While planning, some values are not known yet, but their keys are.
    if isinstance(unknown.get("tags_all"), dict):
        sets[0] = sets[0] | dict.fromkeys(unknown["tags_all"], "")
    elif unknown.get("tags_all") is True:
        # Then nothing of the set is known; what the resource itself says must do.
        sets[0] = dict.fromkeys(TAGS, "") | (values.get("tags") or {})
    if kind == "aws_launch_template":
        specifications = {part["resource_type"]: part["tags"] for part in values.get("tag_specifications") or []}
        sets += [specifications.get("instance") or {}, specifications.get("volume") or {}]
    if kind == "aws_instance":
        # A root disk gets the provider's tags as well, which are not in its own.
        sets += [
            dict.fromkeys(TAGS - {"Name"}, "") | (disk.get("tags") or {})
            for disk in values.get("root_block_device") or []
        ]
    for tags in sets:
        missing = sorted(TAGS - set(tags))
        if missing:
            yield f"has no tag {', '.join(missing)}"
        if kind in ("aws_instance", "aws_ebs_volume", "aws_launch_template", "aws_autoscaling_group"):
            role = tags.get("Role")
            if role not in ROLES:
                yield f"has no tag Role out of {', '.join(sorted(ROLES))}"


def _secret(resource: Resource) -> Iterator[str]:
    if resource["type"] in _SECRET_TYPES:
        yield "would put a secret into the state"
    yield from secrets_in(resource["values"])
