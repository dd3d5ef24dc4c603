"""The role redis_enterprise on three machines, against a fake of Redis Enterprise: no licence, no download, no data.

The tests are one story, in the order of the file: a cluster of two, a third machine, a new password, a database that
does not fit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.machines import hosts

HERE = Path(__file__).resolve().parent
ROLES = HERE.parent / "ansible" / "roles"
NODES = {"ent-1": "10.31.1.5", "ent-2": "10.31.2.5", "ent-3": "10.31.3.5"}
ZONES = {"ent-1": "eu-central-1a", "ent-2": "eu-central-1b", "ent-3": "eu-central-1c"}
ADMIN = "admin@recsys.test"
DOMAIN = "redis.recsys.test"
LICENSE = "----- LICENSE START -----\nZmFrZQ==\n----- LICENSE END -----\n"
SECRETS = {
    "admin": "admin-secret-1",
    "server": "server-secret-1",
    "events": "events-secret-1",
    "deploy": "deploy-secret-1",
    "rotated": "events-secret-2",
}


def _certificates(folder: Path) -> None:
    """An authority, a certificate by it for all nodes, and the one that a fresh node has."""

    def sign(name: str, subject: str, *extensions: str, by: str = "") -> None:
        made = ("-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem", "-subj", f"/CN={subject}")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        signer = ("-CA", f"{folder}/{by}.pem", "-CAkey", f"{folder}/{by}.key") if by else ()
        added = [part for extension in extensions for part in ("-addext", extension)]
        subprocess.run(["openssl", "req", "-x509", *key, *made, *signer, *added], check=True, capture_output=True)

    sign("self", "self-signed")
    sign("ca", "recsys test CA", "keyUsage=critical,keyCertSign,cRLSign")
    names = ",".join(f"IP:{address}" for address in NODES.values())
    sign("node", DOMAIN, "basicConstraints=critical,CA:FALSE", f"subjectAltName={names}", by="ca")


def _archive(folder: Path) -> Path:
    """What the user downloads from Redis, with the fake in it."""
    (folder / "self-signed.pem").write_text((folder / "self.key").read_text() + (folder / "self.pem").read_text())
    path = folder / "redislabs-fake.tar"
    with tarfile.open(path, "w") as tar:
        for each in ("install.sh", "server.py"):
            tar.add(HERE / "redis_enterprise_fake" / each, each)
        tar.add(folder / "self-signed.pem", "self-signed.pem")
    return path


@dataclass
class Run:
    """A run of the playbook: its exit status, what it printed, and how many changes it made on which host."""

    status: int
    output: str
    changes: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.changes = {
            host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", self.output, re.M)
        }


@dataclass
class Machines:
    """Three machines and the folder from which Ansible is run against them."""

    folder: Path
    hosts: dict[str, hosts.Host]
    passwords: dict[str, str]

    def play(self, *names: str, **variables: Any) -> Run:
        """Apply the role to these hosts.

        Raises:
            AssertionError: it printed a secret.
        """
        node = {"certificate": "node.pem", "certificate_key": "node.key", "ca_certificate": "ca.pem"}
        given = {
            "redis_enterprise_archive": str(self.folder / "redislabs-fake.tar"),
            "redis_enterprise_sha256": hashlib.sha256((self.folder / "redislabs-fake.tar").read_bytes()).hexdigest(),
            "redis_enterprise_supported": ["Debian 13"],
            "redis_enterprise_cluster_name": DOMAIN,
            "redis_enterprise_admin_username": ADMIN,
            "redis_enterprise_admin_password": SECRETS["admin"],
            "redis_passwords": self.passwords,
            "redis_enterprise_license": LICENSE,
            "redis_enterprise_rack_aware": True,
            "redis_enterprise_poll_seconds": 1,
            "redis_enterprise_wait_seconds": 30,
            **{f"redis_enterprise_{name}": (self.folder / file).read_text() for name, file in node.items()},
            **variables,
        }
        inventory = {
            "redis": {
                "hosts": {name: {"ansible_host": NODES[name], "zone": ZONES[name]} for name in names},
                "vars": {"ansible_user": hosts.USER, "ansible_python_interpreter": "/usr/bin/python3"},
            }
        }
        facts = ["!all", "!min", "distribution"]  # what the role needs and nothing else, for time
        playbook = [{"hosts": "redis", "become": True, "gather_subset": facts, "roles": ["redis_enterprise"]}]
        for name, content in (("inventory", inventory), ("variables", given), ("playbook", playbook)):
            (self.folder / f"{name}.yml").write_text(yaml.safe_dump(content, sort_keys=False))
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                *("-v", "-i", "inventory.yml", "-e", "@variables.yml", "playbook.yml"),
            ],
            cwd=self.folder,
            env={
                **os.environ,
                "ANSIBLE_ROLES_PATH": str(ROLES),
                "ANSIBLE_PIPELINING": "true",
                "ANSIBLE_HOST_KEY_CHECKING": "false",
                "ANSIBLE_PRIVATE_KEY_FILE": str(self.folder / "key"),
                "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=60s -o UserKnownHostsFile=/dev/null",
                "ANSIBLE_NOCOLOR": "true",
            },
            capture_output=True,
            text=True,
        )
        run = Run(done.returncode, done.stdout + done.stderr)
        printed = [secret for secret in (*SECRETS.values(), "BEGIN PRIVATE KEY") if secret in run.output]
        print(run.output)  # pytest shows it of a test that fails
        assert not printed, f"the run printed {printed}"
        return run

    def ask(self, host: str, path: str, user: str = ADMIN, password: str = SECRETS["admin"]) -> Any:
        """What a node's API answers, its certificate checked."""
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        request = urllib.request.Request(
            f"https://{NODES[host]}:9443{path}", headers={"Authorization": f"Basic {login}"}
        )
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        with urllib.request.urlopen(request, context=context, timeout=10) as response:
            return json.load(response)

    def status(self, host: str, path: str, user: str, password: str) -> int:
        """The HTTP status of an answer."""
        try:
            self.ask(host, path, user, password)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def requests(self, host: str) -> list[str]:
        """What a node's API was asked, as method, path and status, since this was called last."""
        log = "/var/opt/redislabs/requests.log"
        return self.hosts[host].run(f"cat {log} && : > {log}").splitlines()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("enterprise")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
    _certificates(folder)
    _archive(folder)
    public_key = (folder / "key.pub").read_text().strip()
    passwords = {user: SECRETS[user] for user in ("server", "events", "deploy")}
    with hosts.Network("rent", "10.31.0.1/16", hosts.CACHE, folder, public_key) as network:
        started = network.start(NODES)
        # As on Ubuntu, where its stub listener has port 53; the fake's installer refuses to run then, as the real one.
        started["ent-1"].run("apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install systemd-resolved")
        yield Machines(folder, started, passwords)


@pytest.fixture(scope="module")
def pair(machines: Machines) -> Machines:
    """A cluster of the first two machines."""
    run = machines.play("ent-1", "ent-2")
    assert run.status == 0
    return machines


@pytest.fixture(scope="module")
def trio(pair: Machines) -> tuple[Machines, Run]:
    """The cluster with a third machine, which comes first in the inventory, and the run that added it."""
    pair.requests("ent-1")
    run = pair.play("ent-3", "ent-1", "ent-2")
    assert run.status == 0
    return pair, run


@pytest.fixture(scope="module")
def rotated(trio: tuple[Machines, Run]) -> tuple[Machines, Run]:
    """A run with a new password for one user and a database that does not fit, which comes after users."""
    machines, _ = trio
    machines.requests("ent-1")
    machines.passwords["events"] = SECRETS["rotated"]
    return machines, machines.play("ent-3", "ent-1", "ent-2", redis_enterprise_multi_stage_memory=2**50)


def _accepted(requests: list[str]) -> list[str]:
    """Those that changed something."""
    return [line for line in requests if line.endswith(" 200") and not line.startswith("GET ")]


def test_an_archive_with_another_sum_is_refused_before_anything_is_changed(machines: Machines) -> None:
    """What was downloaded is not what was meant, so that it must not run."""
    run = machines.play("ent-1", redis_enterprise_sha256="0" * 64)
    assert run.status != 0
    assert "has the SHA-256" in run.output
    assert run.changes == {"ent-1": 0}
    assert machines.hosts["ent-1"].run("ls /opt").split() == []


def test_what_is_missing_is_named_before_anything_is_changed(machines: Machines) -> None:
    """A password that was forgotten is no reason to have half a cluster."""
    run = machines.play("ent-1", redis_passwords={"server": SECRETS["server"]})
    assert run.status != 0
    assert "redis_enterprise_passwords has no password for deploy, events" in run.output
    assert run.changes == {"ent-1": 0}


def test_the_first_machine_makes_the_cluster_and_the_second_joins(pair: Machines) -> None:
    nodes = pair.ask("ent-2", "/v1/nodes")
    assert [(node["addr"], node["rack_id"], node["status"]) for node in nodes] == [
        (NODES[name], ZONES[name], "active") for name in ("ent-1", "ent-2")
    ]
    assert pair.ask("ent-1", "/v1/cluster/policy")["rack_aware"] is True
    assert pair.ask("ent-1", "/v1/license")["license"] == LICENSE


def test_the_machine_is_prepared_as_redis_documents(pair: Machines) -> None:
    host = pair.hosts["ent-1"]
    assert host.run("cat /proc/sys/net/ipv4/ip_local_port_range").split() == ["30000", "65535"]
    assert host.run("stat -c %U /var/opt/redislabs/persist /var/opt/redislabs/tmp").split() == ["redislabs"] * 2
    assert not host.run("ss --no-header --listening --udp --tcp --numeric 'sport = 53'")
    assert host.run("readlink -f /etc/resolv.conf").strip() == "/run/systemd/resolve/resolv.conf"
    assert host.run("ls /opt/redis-enterprise-setup").split() == ["answers", "ca.pem"]


def test_both_databases_are_as_their_examples_need_them(pair: Machines) -> None:
    """One shard for transactions over several keys; the cluster API and several shards for tables."""
    databases = {each["name"]: each for each in pair.ask("ent-1", "/v1/bdbs")}
    both = {
        "status": "active",
        "redis_version": "8.2",
        "replication": True,
        "rack_aware": True,
        "data_persistence": "aof",
        "aof_policy": "appendfsync-every-sec",
        "eviction_policy": "noeviction",
        "tls_mode": "enabled",
        "default_user": False,
    }
    multi_stage = {**both, "port": 12000, "sharding": False, "shards_count": 1, "oss_cluster": False}
    large_scale = {**both, "port": 12001, "sharding": True, "shards_count": 3, "oss_cluster": True}
    large_scale |= {"proxy_policy": "all-master-shards", "oss_cluster_api_preferred_ip_type": "internal"}
    assert databases["multi-stage"].items() >= multi_stage.items()
    assert databases["large-scale"].items() >= large_scale.items()
    assert databases["large-scale"]["shard_key_regex"] == [{"regex": r".*\{(?<tag>.*)\}.*"}, {"regex": "(?<tag>.*)"}]


def test_users_may_do_in_databases_what_the_readme_says_and_nothing_in_the_cluster(pair: Machines) -> None:
    roles = {each["uid"]: each for each in pair.ask("ent-1", "/v1/roles")}
    acls = {each["uid"]: each for each in pair.ask("ent-1", "/v1/redis_acls")}
    granted = {
        each["name"]: {
            roles[pair_of["role_uid"]]["name"]: acls[pair_of["redis_acl_uid"]]["name"]
            for pair_of in each["roles_permissions"]
        }
        for each in pair.ask("ent-1", "/v1/bdbs")
    }
    assert granted == {
        "multi-stage": {"server": "server", "events": "events", "deploy": "deploy"},
        "large-scale": {"server": "tables", "deploy": "deploy"},
    }
    rules = {each["name"]: each["acl"] for each in acls.values()}
    page = (HERE.parents[1] / "docs" / "operations" / "security.md").read_text()
    for user, name in (("server", "server"), ("sender", "events")):
        documented = re.search(rf"^ACL SETUSER {user} on >CHANGE_ME (.*)$", page, re.M)
        assert documented
        assert rules[name] == documented[1]
    assert rules["deploy"] == "~* &* +@all -@admin -@dangerous"
    for user in ("server", "events", "deploy"):
        assert pair.status("ent-1", "/v1/bdbs", f"{user}@{DOMAIN}", SECRETS[user]) == 403
        assert pair.status("ent-1", "/v1/bdbs", f"{user}@{DOMAIN}", "wrong") == 401


def test_a_new_machine_joins_the_cluster_even_if_it_is_the_first_of_the_inventory(trio: tuple[Machines, Run]) -> None:
    """As one does that replaces the machine which made the cluster."""
    machines, run = trio
    assert run.changes["ent-3"] > 0
    nodes = machines.ask("ent-3", "/v1/nodes")
    assert [(node["addr"], node["status"]) for node in nodes] == [(NODES[name], "active") for name in NODES]


def test_a_second_run_changes_nothing_where_the_first_one_was(trio: tuple[Machines, Run]) -> None:
    """Neither by Ansible's count nor by the API's: all it accepted was reading, and the third machine."""
    machines, run = trio
    assert (run.changes["ent-1"], run.changes["ent-2"]) == (0, 0)
    assert _accepted(machines.requests("ent-1")) == ["POST /internal/join 200"]


def test_every_node_shows_the_certificate_that_was_given(trio: tuple[Machines, Run]) -> None:
    machines, _ = trio
    for name in NODES:  # ask() checks it
        assert len(machines.ask(name, "/v1/nodes")) == 3
    certificate = (machines.folder / "node.pem").read_text()
    held = machines.ask("ent-1", "/v1/cluster/certificates")
    assert {name for name, each in held.items() if each == certificate} == {
        f"{name}_cert" for name in ("proxy", "api", "cm", "metrics_exporter")
    }


def test_a_new_password_changes_that_user_and_no_other(rotated: tuple[Machines, Run]) -> None:
    machines, run = rotated
    assert run.changes == {"ent-1": 0, "ent-2": 0, "ent-3": 1}  # the first of the inventory calls the API
    uid = next(each["uid"] for each in machines.ask("ent-1", "/v1/users") if each["name"] == "events")
    assert _accepted(machines.requests("ent-1")) == [f"PUT /v1/users/{uid} 200"]
    assert machines.status("ent-1", "/v1/bdbs", f"events@{DOMAIN}", SECRETS["events"]) == 401
    assert machines.status("ent-1", "/v1/bdbs", f"events@{DOMAIN}", SECRETS["rotated"]) == 403


def test_what_the_api_says_of_a_database_that_does_not_fit_is_shown(rotated: tuple[Machines, Run]) -> None:
    """The reason must not be hidden with the passwords."""
    machines, run = rotated
    assert run.status != 0
    assert "insufficient_resources" in run.output
    databases = {each["name"]: each["memory_size"] for each in machines.ask("ent-1", "/v1/bdbs")}
    assert databases["multi-stage"] == 2 * 1024**3
