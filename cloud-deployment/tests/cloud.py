"""The deployment on this machine: Terraform's machines as real hosts under the addresses that they have in moto.

What else is Amazon's, this module plays: credentials of an instance's role, the first boot, names of the private zone,
the elastic address of the VPN. Triton's image is a stand-in, made of the hosts' Debian and this checkout's serving
environment; NVIDIA's driver and Grafana cannot be had, the rest is real.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import instance_metadata
from aws import REGION, Terraform, client, credentials

from tests.support.machines.hosts import CACHE, Host, Network, base

ROOT = Path(__file__).resolve().parents[2]
ANSIBLE = ROOT / "cloud-deployment/ansible"
SERVING = ROOT / ".venv-serving"
IMAGE = "redis-recsys/serving:test"
CHECKOUT = "/opt/checkout"  # in the image
OUTSIDE = "192.168.214"  # the laptop's network, which the VPN's elastic address is reached through

# Extra variables of Ansible: what this machine cannot have.
HERE = {"monitoring_grafana": False, "data_volume": "", "triton_ready_seconds": 120}


@dataclass(frozen=True)
class Keys:
    """Made for one run: a pair for SSH, as a file, and one for WireGuard."""

    ssh: Path
    ssh_public: str
    wireguard: str
    wireguard_public: str


def make_keys(folder: Path) -> Keys:
    """New keys, the private one for SSH in a file of the folder."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    ssh = folder / "ssh"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f", str(ssh)], check=True)
    raw = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    key = X25519PrivateKey.generate()
    return Keys(
        ssh,
        ssh.with_suffix(".pub").read_text().strip(),
        base64.b64encode(key.private_bytes_raw()).decode(),
        base64.b64encode(key.public_key().public_bytes(*raw)).decode(),
    )


@dataclass
class Cloud:
    """The deployment.

    Attributes:
        endpoint: of moto.
        terraform: that made it.
        hosts: by their short names: redis-1, ..., vpn, monitoring, triton-1, triton-2, and the laptop outside.
        names: of the hosts in Ansible's inventory, by their short names.
        folder: for files of the test.
        keys: that let in.
        more: variables for Ansible.
    """

    endpoint: str
    terraform: Terraform
    hosts: dict[str, Host]
    names: dict[str, str]
    folder: Path
    keys: Keys
    more: dict[str, object] = field(default_factory=dict)

    def secret(self, name: str) -> str:
        """The value of a secret, by its short name."""
        secrets = client("secretsmanager", self.endpoint)
        return str(secrets.get_secret_value(SecretId=f"recsys/{name}")["SecretString"])

    def parameter(self, name: str) -> str:
        """The value of an SSM parameter, by its short name."""
        return str(client("ssm", self.endpoint).get_parameter(Name=f"/recsys/{name}")["Parameter"]["Value"])

    @property
    def settings(self) -> dict[str, str]:
        """The library's variables, for whoever deploys and asks."""
        authority = self.folder / "ca.pem"
        authority.write_text(self.parameter("ca-certificate"))
        return {
            "RECSYS_REDIS_HOST": "redis-1.recsys.internal",
            "RECSYS_REDIS_USERNAME": "deploy",
            "RECSYS_REDIS_PASSWORD": self.secret("redis-deploy"),
            "RECSYS_REDIS_TLS": "true",
            "RECSYS_REDIS_TLS_CA": str(authority),
            "RECSYS_TRITON_HOST": "triton.recsys.internal",
            "RECSYS_TRITON_TOKEN": self.secret("triton-token"),
            "RECSYS_TRITON_TLS": "true",
            "RECSYS_TRITON_TLS_CA": str(authority),
        }

    def library(self, *command: str, host: str = "laptop", **variables: str) -> str:
        """Output of a program of the library's environment that runs on a host, in the test's folder."""
        program = str(ROOT / ".venv/bin" / command[0])
        inside = ("env", f"--chdir={self.folder}", program, *command[1:])
        return self.hosts[host].from_its_network(*inside, **{**self.settings, **variables})

    def playbook(self, *arguments: str, **variables: object) -> str:
        """Ansible's output, as whoever deploys runs it; its lines go into a file of the folder, too.

        Raises:
            RuntimeError: it failed, with the end of what it said.
        """
        given = self.terraform.outputs()["ansible"] | HERE | self.more | variables
        del given["triton_model"]  # the inventory has one for each machine
        run = Path(tempfile.mkdtemp(prefix="ansible-", dir=self.folder))
        (run / "vars.json").write_text(json.dumps(given))
        environment = {
            **os.environ,
            **credentials(self.endpoint),
            "RECSYS_NAME": "recsys",
            "ANSIBLE_PRIVATE_KEY_FILE": str(self.keys.ssh),
            "ANSIBLE_SSH_ARGS": f"-o ControlMaster=auto -o ControlPersist=60s -o StrictHostKeyChecking=accept-new "
            f"-o UserKnownHostsFile={self.folder}/known_hosts",
            "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks",
        }
        program = Path(sys.executable).with_name("ansible-playbook")
        inventories = ("-i", "inventory/aws_ec2.yml", "-i", str(self.folder / "more.yml"))
        done = subprocess.run(
            [program, *inventories, "-e", f"@{run}/vars.json", *arguments],
            cwd=ANSIBLE,
            env=environment,
            capture_output=True,
            text=True,
        )
        (run / "log").write_text(done.stdout + done.stderr)
        if done.returncode:
            raise RuntimeError(f"ansible-playbook {shlex.join(arguments)}\n{done.stdout[-8000:]}{done.stderr[-2000:]}")
        return done.stdout

    @contextlib.contextmanager
    def forwarded(self, name: str, port: int) -> Iterator[str]:
        """Where on this machine a host's own port is reached, through SSH."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            own = free.getsockname()[1]
        options = ("-o", f"UserKnownHostsFile={self.folder}/known_hosts", "-o", "ExitOnForwardFailure=yes")
        command = ["ssh", "-N", "-i", self.keys.ssh, *options, "-L", f"{own}:127.0.0.1:{port}"]
        tunnel = subprocess.Popen([*command, f"admin@{self.hosts[name].address}"])
        try:
            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", own), 1):
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{own}"
        finally:
            tunnel.kill()
            tunnel.wait()

    def publish(self, example: str) -> str:
        """Hand models over, as whoever deploys does."""
        bucket = self.terraform.outputs()["assets_bucket"]
        done = subprocess.run(
            [sys.executable, ROOT / "cloud-deployment/publish.py", bucket, example, "--data", self.folder / "data"],
            env={**os.environ, **credentials(self.endpoint), "AWS_CONFIG_FILE": str(self.folder / "aws.conf")},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return done.stdout


def recap(output: str) -> dict[str, dict[str, int]]:
    """What Ansible counted, by host."""
    found = re.findall(r"^(\S+)\s+: (ok=.*)$", output, re.MULTILINE)
    return {host: {what: int(count) for what, count in re.findall(r"(\w+)=(\d+)", counts)} for host, counts in found}


@contextlib.contextmanager
def running(terraform: Terraform, endpoint: str, keys: Keys, folder: Path) -> Iterator[Cloud]:
    """Start a host for every machine that Terraform has made, and a laptop outside."""
    machines = _machines(endpoint)
    addresses = {name: machine["PrivateIpAddress"] for name, machine in machines.items()}
    [elastic] = [
        each["PublicIp"]
        for each in client("ec2", endpoint).describe_addresses()["Addresses"]
        if each.get("InstanceId") == machines["vpn"]["InstanceId"]
    ]
    networks = (
        Network("vpc", "10.20.0.1/16", CACHE, folder, keys.ssh_public),
        Network("outside", f"{OUTSIDE}.1/24", CACHE, folder, keys.ssh_public),
    )
    port = int(endpoint.rsplit(":", 1)[1])
    with networks[0] as vpc, networks[1] as outside, _amazon(vpc, port):
        hosts = {**vpc.start(addresses), **outside.start({"laptop": f"{OUTSIDE}.20"})}
        outside.attach(hosts["vpn"], f"{OUTSIDE}.10", "elastic")
        hosts["vpn"].run(f"ip address add {elastic}/32 dev elastic")
        hosts["laptop"].run(f"ip route add {elastic} via {OUTSIDE}.10")
        for host in hosts.values():
            host.write("/etc/hosts", host.run("cat /etc/hosts") + _names(endpoint, addresses["triton-1"]))
            host.write("/root/.aws/config", _aws_configuration(f"http://{vpc.gateway.ip}:{port}"))
        (folder / "aws.conf").write_text(_aws_configuration(endpoint))
        names = {name: f"{_name(machine)}_{addresses[name]}" for name, machine in machines.items()}
        models = {"triton-1": "multi-stage", "triton-2": "large-scale"}
        served = {names[name]: {"triton_model": model} for name, model in models.items()}
        (folder / "more.yml").write_text(json.dumps({"all": {"children": {"triton": {"hosts": served}}}}))
        cloud = Cloud(endpoint, terraform, hosts, names, folder, keys)
        cloud.more["monitoring_ec2_endpoint"] = f"http://{vpc.gateway.ip}:{port}"
        yield cloud


def first_boot(cloud: Cloud, name: str) -> str:
    """Run a machine's user data, as its first boot does; its output."""
    host = cloud.hosts[name]
    # The agent of Session Manager comes from Amazon, which this machine does not reach.
    host.write("/usr/bin/amazon-ssm-agent", "#!/bin/sh\n", "755")
    host.write("/var/lib/cloud/instance/scripts/part-001", _user_data(cloud.endpoint, name), "700")
    return host.run("/var/lib/cloud/instance/scripts/part-001 2>&1")


def load_image(first: Host, *others: Host) -> None:
    """Put Triton's image onto hosts, as a pull from the registry would; they get their container engine first."""
    with ThreadPoolExecutor() as pool:
        engine = "apt-get -q update && apt-get -qy install --no-install-recommends docker.io docker-cli"
        installed = [pool.submit(host.run, engine) for host in (first, *others)]
        installed[0].result()
        _import_image(first)
        for each in installed:
            each.result()
    stop, start = "systemctl stop docker docker.socket", "systemctl start docker"
    first.run(stop)
    for other in others:
        other.run(f"{stop} && rm -rf /var/lib/docker/*")
        subprocess.run(["cp", "-a", f"{first.files}/var/lib/docker/.", f"{other.files}/var/lib/docker"], check=True)
        other.run(start)
    first.run(start)


def _import_image(host: Host) -> None:
    """Pack Triton's image, and have a host's engine unpack it.

    It has Debian, the Python of this machine where it lies here, the serving environment and the library in
    ``CHECKOUT``, and the settings of docker/Dockerfile.
    """
    python = Path(os.path.realpath(SERVING / "bin/python")).parents[1]
    library = next((python / "lib").glob("python3.*"))
    own = host.folder / "image"  # what the image has of its own: folders of its user, and a program in /usr/local/bin
    for folder in ("root", "home/recsys/models", "home/recsys/tls", "opt", "usr/local/bin"):
        (own / folder).mkdir(parents=True)
    program = own / "usr/local/bin/recsys"
    program.write_text(f"#!{CHECKOUT}/.venv-serving/bin/python\nfrom redis_recsys.cli.main import main\n\nmain()\n")
    program.chmod(0o755)
    (own / "library.pth").write_text(f"{CHECKOUT}/src\n")  # the environment knows the library where it is here
    packages = f"{CHECKOUT[1:]}/.venv-serving/lib/{library.name}/site-packages"
    # The environment and the library go to a place that no mount of the container hides, wherever they are here.
    shell = f"""
    set -eo pipefail
    chown -R 1000 {own}/home/recsys
    tar -c -C {base(CACHE)} --exclude=./root --exclude=./home --exclude=./opt --exclude=./usr/local/bin \\
      --exclude='./var/lib/apt/lists/*' --exclude='./var/cache/*' \\
      --exclude={str(library)[1:]}/site-packages --exclude={str(library)[1:]}/test \\
      --transform 's,^{str(ROOT)[1:]}/,{CHECKOUT[1:]}/,S' --transform 's,^library.pth,{packages}/&,' . \\
      -C {own} root home opt usr/local/bin library.pth \\
      -C / {str(python)[1:]} {str(SERVING)[1:]} {str(ROOT / "src")[1:]} \\
    | nsenter -t {host.pid} -a docker import \\
      --change 'ENV PATH=/usr/local/bin:{CHECKOUT}/.venv-serving/bin:/usr/bin:/bin' \\
      --change 'ENV RECSYS_TRITON_ENVIRONMENT={CHECKOUT}/.venv-serving' \\
      --change 'ENV RECSYS_TRITON_REPOSITORY=/home/recsys/triton' \\
      --change 'WORKDIR /home/recsys' --change 'USER 1000' - {IMAGE}
    """
    subprocess.run(["bash", "-c", shell], check=True, capture_output=True)


def connect(cloud: Cloud) -> None:
    """Bring up the laptop's end of the VPN, with the configuration that `vpn-client.yml` writes."""
    cloud.playbook("vpn-client.yml", vpn_clients=str(cloud.folder / "clients"))
    written = (cloud.folder / "clients/laptop.conf").read_text()
    # There is no resolver here as Amazon's networks have one; names are in /etc/hosts.
    conf = re.sub(r"^DNS = .*\n", "", written.replace("YOUR_PRIVATE_KEY", cloud.keys.wireguard), flags=re.MULTILINE)
    laptop = cloud.hosts["laptop"]
    laptop.run("apt-get -q update && apt-get -qy install --no-install-recommends wireguard-tools wireguard-go iptables")
    laptop.write("/etc/wireguard/recsys.conf", conf, "600")
    laptop.run("wg-quick up recsys")


@contextlib.contextmanager
def _amazon(vpc: Network, port: int) -> Iterator[None]:
    """Let the hosts of a network reach moto, which listens on the loopback interface, and their credentials."""
    table = "recsys_test_amazon"
    rules = f"""
    table ip {table} {{
      chain in {{
        type nat hook prerouting priority -100
        iifname "{vpc.bridge}" ip daddr {vpc.gateway.ip} tcp dport {port} dnat to 127.0.0.1:{port}
      }}
    }}
    """
    subprocess.run(["nft", "delete", "table", "ip", table], capture_output=True)  # of a run that was killed
    Path(f"/proc/sys/net/ipv4/conf/{vpc.bridge}/route_localnet").write_text("1")
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    address = instance_metadata.ADDRESS
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", vpc.bridge], check=True)
    metadata = subprocess.Popen([sys.executable, instance_metadata.__file__, address])
    try:
        yield
    finally:
        metadata.kill()
        metadata.wait()
        subprocess.run(["nft", "delete", "table", "ip", table], check=True)


def _aws_configuration(endpoint: str) -> str:
    return f"[default]\nregion = {REGION}\nendpoint_url = {endpoint}\ns3 =\n  addressing_style = path\n"


def _name(machine: Mapping[str, Any]) -> str:
    return next(str(tag["Value"]) for tag in machine["Tags"] if tag["Key"] == "Name")


def _machines(endpoint: str) -> dict[str, dict[str, Any]]:
    """Running machines by their short names; those of the Auto Scaling group are numbered."""
    reservations = client("ec2", endpoint).describe_instances(
        Filters=[{"Name": "instance-state-name", "Values": ["running"]}]
    )["Reservations"]
    found: dict[str, list[dict[str, Any]]] = {}
    for machine in (instance for reservation in reservations for instance in reservation["Instances"]):
        found.setdefault(_name(machine).removeprefix("recsys-"), []).append(machine)
    tritons = sorted(found.pop("triton"), key=lambda machine: str(machine["PrivateIpAddress"]))
    numbered = {f"triton-{number}": machine for number, machine in enumerate(tritons, 1)}
    return {name: machines[0] for name, machines in found.items()} | numbered


def _names(endpoint: str, triton: str) -> str:
    """The private zone as lines of /etc/hosts; of the load balancer's targets the first stands for it."""
    route53 = client("route53", endpoint)
    lines = []
    for zone in route53.list_hosted_zones()["HostedZones"]:
        for record in route53.list_resource_record_sets(HostedZoneId=zone["Id"])["ResourceRecordSets"]:
            if record["Type"] == "A":
                values = [each["Value"] for each in record.get("ResourceRecords", [])] or [triton]
                lines += [f"{value} {record['Name'].rstrip('.')}\n" for value in values]
    return "".join(lines)


def _user_data(endpoint: str, name: str) -> str:
    """What Terraform has a machine run when it starts for the first time."""
    ec2 = client("ec2", endpoint)
    if name.startswith("triton"):
        template = ec2.describe_launch_templates()["LaunchTemplates"][0]["LaunchTemplateId"]
        versions = ec2.describe_launch_template_versions(LaunchTemplateId=template, Versions=["$Latest"])
        data = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]["UserData"]
    else:
        machine = _machines(endpoint)[name]["InstanceId"]
        data = ec2.describe_instance_attribute(InstanceId=machine, Attribute="userData")["UserData"]["Value"]
    return base64.b64decode(data).decode()
