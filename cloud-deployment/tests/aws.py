"""AWS on this machine: a moto server as a process of its own, and Terraform with the real AWS provider against it.

    with moto() as endpoint, Terraform(TERRAFORM, endpoint, variables(folder)) as terraform:
        terraform.apply()
        print(terraform.outputs()["ansible"])

Terraform works in a copy of the folder; the product's own files stay as they are, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

REGION = "eu-central-1"
TERRAFORM = Path(__file__).resolve().parent.parent / "terraform"
PROVIDER = "registry.terraform.io/hashicorp/aws"

# A key pair's public half and two WireGuard public keys, made for the tests; nobody has their private halves.
SSH_PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE tests"
WIREGUARD_KEYS = ("HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=", "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=")

# Machine images, in moto's form. The newest Debian 13 and the Ubuntu are the ones to be chosen.
DEBIAN, UBUNTU = "ami-0debadeba13130001", "ami-00b000b0022040001"
_IMAGES = [
    (DEBIAN, "136693071363", "debian-13-amd64-20250806-2196", "/dev/xvda", "2025-08-06"),
    ("ami-0debadeba13130000", "136693071363", "debian-13-amd64-20250701-1000", "/dev/xvda", "2025-07-01"),
    ("ami-0debadeba12120000", "136693071363", "debian-12-amd64-20250901-1000", "/dev/xvda", "2025-09-01"),
    ("ami-0debadeba1313000f", "123456789012", "debian-13-amd64-20251001-1000", "/dev/xvda", "2025-10-01"),
    (
        UBUNTU,
        "099720109477",
        "ubuntu/images/hvm-ssd/ubuntu-jammy-22.04-amd64-server-20250821",
        "/dev/sda1",
        "2025-08-21",
    ),
]

# Merged into the provider's block: what a stand-in for AWS can't answer, and nothing else.
_OVERRIDE = """
provider "aws" {
  access_key                  = "testing"
  secret_key                  = "testing"
  s3_use_path_style           = true
  skip_metadata_api_check     = true
  skip_credentials_validation = true
  max_retries                 = 2
}
"""


def variables(folder: Path, **more: object) -> dict[str, object]:
    """Variables for an environment that comes and goes; makes a small archive of playbooks in `folder`."""
    playbooks = folder / "ansible.tar.gz"
    if not playbooks.exists():
        with tarfile.open(playbooks, "w:gz") as archive:
            for name in ("vpn.yml", "triton.yml"):
                content = b"- hosts: localhost\n  tasks: []\n"
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return {
        "region": REGION,
        "ssh_public_key": SSH_PUBLIC_KEY,
        "vpn_peers": [{"name": "laptop", "public_key": WIREGUARD_KEYS[0], "address": "10.99.0.2"}],
        "playbooks": str(playbooks),
        "secret_recovery_days": 0,
        "bucket_force_destroy": True,
        "deletion_protection": False,
        "redis_snapshots_kept": 0,  # moto has no Data Lifecycle Manager
        **more,
    }


def credentials(endpoint: str) -> dict[str, str]:
    """Environment with which AWS's tools reach `endpoint` as moto's test account, and nothing else."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def client(service: str, endpoint: str, region: str = REGION) -> Any:
    """boto3's client of a service at `endpoint`."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        service,
        region_name=region,
        endpoint_url=endpoint,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 2}),
    )


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """Starts a moto server on a free port of the loopback interface and gives its URL."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.json"
        images.write_text(json.dumps([_image(*image) for image in _IMAGES]))
        environment = os.environ | {
            "MOTO_AMIS_PATH": str(images),
            "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
            "MOTO_ENABLE_KEYPAIR_VALIDATION": "true",
            "MOTO_ENABLE_AMI_VALIDATION": "true",
        }
        log = Path(folder) / "moto.log"
        with log.open("wb") as errors:
            # It ends with its standard input, so also when this process is killed.
            server = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("moto_server.py"))],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            port = server.stdout.readline().strip()
            if not port:
                raise RuntimeError(f"moto did not start:\n{log.read_text()}")
            yield f"http://127.0.0.1:{int(port)}"
        finally:
            server.stdin.close()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            server.stdout.close()


def _image(ami: str, owner: str, name: str, root: str, created: str) -> dict[str, object]:
    return {
        "ami_id": ami,
        "owner_id": owner,
        "name": name,
        "description": name,
        "state": "available",
        "public": True,
        "image_location": f"{owner}/{name}",
        "image_type": "machine",
        "architecture": "x86_64",
        "platform": None,
        "root_device_type": "ebs",
        "root_device_name": root,
        "virtualization_type": "hvm",
        "hypervisor": "xen",
        "sriov": "simple",
        "creation_date": f"{created}T00:00:00.000Z",
    }


def inventory(endpoint: str) -> set[str]:
    """Everything that exists in the region, as "kind id", except what was deleted and is only still listed.

    Network interfaces are left out: moto keeps those of machines and NAT gateways that are gone.
    """

    def ec2(name: str, key: str, *gone: str) -> set[str]:
        call = getattr(client("ec2", endpoint), f"describe_{name}")
        own = {"OwnerIds": ["self"]} if name == "snapshots" else {}
        return {f"{name} {item[key]}" for item in _listed(call(**own)) if item.get("State") not in gone}

    def other(service: str, call: str, key: str, **arguments: Any) -> set[str]:
        items = _listed(getattr(client(service, endpoint), call)(**arguments))
        return {f"{service} {item[key] if isinstance(item, dict) else item}" for item in items}

    instances = {
        f"instance {instance['InstanceId']}"
        for reservation in client("ec2", endpoint).describe_instances()["Reservations"]
        for instance in reservation["Instances"]
        if instance["State"]["Name"] != "terminated"
    }
    return set().union(
        instances,
        ec2("volumes", "VolumeId"),
        ec2("snapshots", "SnapshotId"),
        ec2("vpcs", "VpcId"),
        ec2("subnets", "SubnetId"),
        ec2("route_tables", "RouteTableId"),
        ec2("internet_gateways", "InternetGatewayId"),
        ec2("nat_gateways", "NatGatewayId", "deleted"),
        ec2("vpc_endpoints", "VpcEndpointId", "deleted"),
        ec2("addresses", "AllocationId"),
        ec2("security_groups", "GroupId"),
        ec2("flow_logs", "FlowLogId"),
        ec2("key_pairs", "KeyName"),
        ec2("launch_templates", "LaunchTemplateId"),
        ec2("placement_groups", "GroupName"),
        other("autoscaling", "describe_auto_scaling_groups", "AutoScalingGroupName"),
        other("autoscaling", "describe_policies", "PolicyName"),
        other("elbv2", "describe_load_balancers", "LoadBalancerArn"),
        other("elbv2", "describe_target_groups", "TargetGroupArn"),
        other("ecr", "describe_repositories", "repositoryName"),
        other("iam", "list_roles", "RoleName"),
        other("iam", "list_instance_profiles", "InstanceProfileName"),
        other("logs", "describe_log_groups", "logGroupName"),
        other("route53", "list_hosted_zones", "Id"),
        other("s3", "list_buckets", "Name"),
        other("secretsmanager", "list_secrets", "ARN", IncludePlannedDeletion=True),
    )


def _listed(answer: dict[str, Any]) -> list[Any]:
    """The list in an answer of boto3, which has one besides its metadata."""
    return next(value for key, value in answer.items() if isinstance(value, list))


class TerraformError(Exception):
    """Terraform failed; the text is all that it said."""


class Terraform:
    """Terraform in a copy of a folder, against an endpoint (or none: then only what needs no AWS works)."""

    def __init__(self, folder: Path, endpoint: str | None = None, variables: Mapping[str, object] | None = None):
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name) / folder.name
        ignored = shutil.ignore_patterns(".terraform", ".terraform.lock.hcl", "*.tfstate*", "*.tfvars", "backend.tf")
        shutil.copytree(folder, self.folder, ignore=ignored)
        (self.folder / "test_override.tf").write_text(_OVERRIDE)
        self.variables = dict(variables or {})
        # The plan of the last apply.
        self.planned: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}
        outside = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "TF_"))}
        self.environment = outside | {"TF_IN_AUTOMATION": "1", "TF_INPUT": "0", "CHECKPOINT_DISABLE": "1"}
        # The path of a configuration that is there may name a mirror; one that is not there only makes warnings.
        configuration = os.environ.get("TF_CLI_CONFIG_FILE", "")
        if configuration and Path(configuration).exists():
            self.environment["TF_CLI_CONFIG_FILE"] = configuration
        # A port that nobody listens on, rather than the real AWS.
        self.environment |= credentials(endpoint or "http://127.0.0.1:9")

    def __enter__(self) -> Terraform:
        self.init()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes the copy. What was applied lives on in moto, until that ends."""
        self._temporary.cleanup()

    def run(self, *arguments: str, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Runs a command of Terraform; raises what it said if it fails and `check`."""
        command = ["terraform", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode != 0:
            raise TerraformError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done

    def init(self) -> None:
        """Initialises the copy, with the provider from the registry or from a mirror on this machine."""
        mirror = _provider_mirror()
        self.run("init", "-backend=false", "-no-color", *([f"-plugin-dir={mirror}"] if mirror else []))

    def plan(self, *arguments: str, **variables: object) -> dict[str, Any]:
        """Plans, with other or further variables, and gives the plan as Terraform's JSON."""
        self._write(variables)
        try:
            self.run("plan", "-no-color", "-lock=false", "-out=tests.tfplan", *arguments)
        finally:
            self._write({})
        return self._json("show", "-json", "tests.tfplan")

    def changes(self, **variables: object) -> list[str]:
        """What another apply would change: addresses with their actions."""
        plan = self.plan(**variables)
        return [
            f"{change['address']}: {', '.join(change['change']['actions'])}"
            for change in plan["resource_changes"]
            if change["change"]["actions"] not in (["no-op"], ["read"])
        ]

    def apply(self, **variables: object) -> None:
        """Applies, with other or further variables, which stay for what follows."""
        self.variables |= variables
        self.planned = self.plan()
        self.run("apply", "-no-color", "-parallelism=30", "tests.tfplan")
        self._outputs = {name: output["value"] for name, output in self._json("output", "-json").items()}

    def destroy(self) -> None:
        """Destroys everything that was applied."""
        self._write({})
        self.run("destroy", "-no-color", "-auto-approve", "-refresh=false", "-parallelism=30")

    def outputs(self) -> dict[str, Any]:
        """Values of all outputs, as of the last apply."""
        return copy.deepcopy(self._outputs)

    def state(self) -> dict[str, Any]:
        """The state as Terraform's JSON; resources as in a plan."""
        return self._json("show", "-json")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, as in `terraform console`."""
        done = subprocess.run(
            ["terraform", "console"],
            input=f"jsonencode({expression})\n",
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode != 0:
            raise TerraformError(f"terraform console: {expression}\n{done.stdout}{done.stderr}")
        return json.loads(json.loads(done.stdout))

    def _write(self, more: Mapping[str, object]) -> None:
        (self.folder / "tests.auto.tfvars.json").write_text(json.dumps(self.variables | dict(more)))

    def _json(self, *arguments: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run(*arguments).stdout)
        return answer


@functools.cache
def _provider_mirror() -> Path | None:
    """The folder for -plugin-dir if the registry can't be reached."""
    if shutil.which("terraform") is None:
        raise TerraformError("terraform is not on the PATH: install Terraform 1.7 or newer for these tests.")
    with contextlib.suppress(OSError), socket.create_connection(("registry.terraform.io", 443), timeout=5):
        return None
    places = [
        Path.home() / ".terraform.d/plugins",
        Path("/usr/share/terraform/plugins"),
        Path("/usr/local/share/terraform/plugins"),
        *sorted(path for path in Path("/opt").glob("*") if path.is_dir()),
    ]
    for place in places:
        if list((place / PROVIDER).glob("5.*/*/terraform-provider-aws*")):
            return place
    raise TerraformError(
        f"Terraform's registry can't be reached, and there is no copy of {PROVIDER} in {', '.join(map(str, places))}: "
        "run `terraform providers mirror ~/.terraform.d/plugins` in the Terraform folder of a machine that is online, "
        "and copy the result here."
    )
