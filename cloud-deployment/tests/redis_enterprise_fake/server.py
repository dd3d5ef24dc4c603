"""A FAKE of Redis Enterprise Software's REST API, for tests of what calls it. It is no Redis and stores no data.

What it imitates, from the reference of the API (redis.io/docs, operate/rs/references/rest-api): paths, methods, names
and types of fields, required fields, the order (nothing without a cluster, a cluster once, nodes one after the other,
databases on nodes that have room for them), status codes and error codes as far as they are documented, changes that
take a moment during which the state says so, logins, management roles, certificates that are used once they are set.
Unknown fields are refused. Every node answers every call, as in a real cluster: nodes that have joined hand calls to
the one that made it.

What it does not: the databases themselves, DNS, the user interface, metrics, licences' contents, rules' effect, failure
of nodes, actions, most objects. Where the reference is silent it is strict: a refused field says ``invalid_schema``,
and who may not manage the cluster gets 403. Its first certificate is one for all nodes, from the archive.

Standard library only, since it runs on bare machines. Requests, without bodies, are appended to ``requests.log``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import pwd
import re
import ssl
import tempfile
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PORT = 9443
FOLDER = Path(os.environ.get("FAKE_FOLDER", "/var/opt/redislabs"))
SELF_SIGNED = Path(os.environ.get("FAKE_CERTIFICATE", "/etc/opt/redislabs/self-signed.pem"))
DELAY = 1.0  # of whatever is not done at once
NODE_MEMORY = 8 * 1024**3
VERSIONS = ("6.2", "7.2", "7.4", "8.0", "8.2", "8.4", "8.6")
RESERVED = {3333, 3334, 8001, 8002, 8004, 8006, 8070, 8071, 8080, 8443, 8444, 9080, 9081, 9091, 9125, 9443}
DAY = "2026-01-01T00:00:00Z"

Json = dict[str, Any]
Check = Callable[[Any], bool]


class Refused(Exception):  # noqa: N818 (an answer, not a fault)
    """An answer with an error."""

    def __init__(self, status: int, code: str, description: str) -> None:
        super().__init__(description)
        self.status, self.code, self.description = status, code, description


def _one_of(*values: str) -> Check:
    return lambda value: value in values


def _string(value: Any) -> bool:
    return isinstance(value, str)


def _boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _between(least: int, most: int) -> Check:
    return lambda value: _integer(value) and least <= value <= most


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _object(fields: Mapping[str, Check]) -> Check:
    """An object with these fields, or some of them."""
    return lambda value: isinstance(value, dict) and all(name in fields and fields[name](value[name]) for name in value)


def _whole(fields: Mapping[str, Check]) -> Check:
    """An object with these fields, all of them."""
    return lambda value: _object(fields)(value) and set(value) == set(fields)


BOOTSTRAP: dict[str, Check] = {
    "action": _one_of("create_cluster", "join_cluster"),
    "cluster": _object({"name": _string, "nodes": _list_of(_string), "wait_command": _boolean}),
    "cnm_https_port": _integer,
    "credentials": _whole({"username": _string, "password": _string}),
    "license": _string,
    "max_retries": _integer,
    "node": _object(
        {
            "paths": _object(
                dict.fromkeys(("persistent_path", "ephemeral_path", "bigstore_path", "ccs_persistent_path"), _string)
            ),
            "identity": _object(
                {
                    "uid": _integer,
                    "accept_servers": _boolean,
                    "addr": _string,
                    "external_addr": _list_of(_string),
                    "name": _string,
                    "override_rack_id": _boolean,
                    "rack_id": _string,
                    "second_rack_id": _string,
                    "use_internal_ipv6": _boolean,
                }
            ),
            "limits": _object({"max_redis_servers": _integer, "max_listeners": _integer}),
        }
    ),
    "required_version": _string,
    "retry_time": _integer,
}

BDB: dict[str, Check] = {
    "name": _string,
    "type": _one_of("redis", "memcached"),
    "redis_version": _string,
    "memory_size": _between(0, 2**62),
    "port": _integer,
    "sharding": _boolean,
    "shards_count": _between(1, 512),
    "shards_placement": _one_of("dense", "sparse"),
    "shard_key_regex": _list_of(_whole({"regex": _string})),
    "implicit_shard_key": _boolean,
    "oss_sharding": _boolean,
    "hash_slots_policy": _one_of("legacy", "16k"),
    "oss_cluster": _boolean,
    "oss_cluster_api_preferred_ip_type": _one_of("internal", "external"),
    "oss_cluster_api_preferred_endpoint_type": _one_of("ip", "hostname"),
    "proxy_policy": _one_of("single", "all-master-shards", "all-nodes"),
    "replication": _boolean,
    "rack_aware": _boolean,
    "slave_ha": _boolean,
    "data_persistence": _one_of("disabled", "snapshot", "aof"),
    "aof_policy": _one_of("appendfsync-every-sec", "appendfsync-always"),
    "snapshot_policy": _list_of(_whole({"secs": _integer, "writes": _integer})),
    "eviction_policy": _one_of(
        *(f"{which}-{how}" for which in ("volatile", "allkeys") for how in ("lru", "lfu", "random")),
        "volatile-ttl",
        "noeviction",
    ),
    "tls_mode": _one_of("enabled", "disabled", "replica_ssl"),
    "enforce_client_authentication": _one_of("enabled", "disabled"),
    "authentication_ssl_client_certs": _list_of(_whole({"client_cert": _string})),
    "data_internode_encryption": _boolean,
    "default_user": _boolean,
    "roles_permissions": _list_of(_whole({"role_uid": _integer, "redis_acl_uid": _integer})),
    "max_connections": _integer,
    "mkms": _boolean,
    "resp3": _boolean,
    "tags": _list_of(_whole({"key": _string, "value": _string})),
}
BDB_DEFAULTS: Json = {
    "type": "redis",
    "redis_version": VERSIONS[-1],
    "port": 0,
    "sharding": False,
    "shards_count": 1,
    "shards_placement": "dense",
    "shard_key_regex": [],
    "oss_sharding": False,
    "hash_slots_policy": "16k",
    "oss_cluster": False,
    "oss_cluster_api_preferred_ip_type": "internal",
    "proxy_policy": "single",
    "replication": False,
    "rack_aware": False,
    "data_persistence": "disabled",
    "aof_policy": "appendfsync-every-sec",
    "eviction_policy": "volatile-lru",
    "tls_mode": "disabled",
    "enforce_client_authentication": "enabled",
    "authentication_ssl_client_certs": [],
    "default_user": True,
    "roles_permissions": [],
}
BDB_FIXED = {"name", "type", "redis_version", "sharding", "oss_sharding", "shard_key_regex", "hash_slots_policy"}

MANAGEMENT = ("admin", "db_member", "db_viewer", "cluster_member", "cluster_viewer", "user_manager", "none")
ACL: dict[str, Check] = {"name": _string, "acl": _string}
ROLE: dict[str, Check] = {"name": _string, "management": _one_of(*MANAGEMENT)}
USER: dict[str, Check] = {
    "email": _string,
    "name": _string,
    "password": _string,
    "role_uids": _list_of(_integer),
    "email_alerts": _boolean,
    "cluster_email_alerts": _boolean,
    "bdbs_email_alerts": _list_of(_string),
    "auth_method": _one_of("regular"),
}
CERTIFICATES = ("cm", "api", "mtls_trusted_ca", "proxy", "metrics_exporter", "syncer", "ldap_client")
CERTIFICATE: dict[str, Check] = {"name": _string, "certificate": _string, "key": _string}
POLICY: dict[str, Check] = {
    "rack_aware": _boolean,
    "default_shards_placement": _one_of("dense", "sparse"),
    "default_sharded_proxy_policy": _one_of("single", "all-master-shards", "all-nodes"),
    "default_non_sharded_proxy_policy": _one_of("single", "all-master-shards", "all-nodes"),
}
# Rules of Redis, without those for passwords, which Redis Enterprise does not take.
RULE = re.compile(
    r"resetchannels|resetkeys|allkeys|allchannels|clearselectors|~\S+|%R?W?~\S+|&\S+"
    r"|[+-]@[a-z]+|[+-][a-zA-Z.]+(\|[a-z-]+)?"
)
SELECTOR = re.compile(r"(?<!\S)\(([^()]+)\)(?!\S)")  # further rules of their own, since Redis 7.0


def _checked(body: Any, fields: Mapping[str, Check], status: int, needed: tuple[str, ...] = ()) -> Json:
    """The body, if it is an object with known fields of the right types.

    Raises:
        Refused: it is not, with the field's name and never its value, which may be secret.
    """
    if not isinstance(body, dict):
        raise Refused(400, "bad_json", "the body is not a JSON object")
    for name in body:
        if name not in fields:
            raise Refused(status, "invalid_schema", f"{name} is not a field of this object")
        if not fields[name](body[name]):
            raise Refused(status, "invalid_schema", f"{name} has another type, or a value that is not allowed")
    for name in needed:
        if name not in body:
            raise Refused(status, "missing_field", f"{name} is missing")
    return body


def _hash(password: str) -> str:
    return hashlib.sha256(f"fake:{password}".encode()).hexdigest()


class Fake:
    """The state of one node and, if it made the cluster, of the cluster."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.file = FOLDER / "fake-state.json"
        self.state: Json = {"bootstrap": {"state": "idle"}, "leader": None, "cluster": None, "address": None}
        if self.file.exists():
            self.state = json.loads(self.file.read_text())
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(SELF_SIGNED)
        with contextlib.suppress(FileNotFoundError):
            self.context.load_cert_chain(FOLDER / "fake-api.pem")

    def save(self) -> None:
        aside = self.file.with_suffix(".part")
        aside.write_text(json.dumps(self.state))
        aside.replace(self.file)

    def note(self, line: str) -> None:
        with self.lock, (FOLDER / "requests.log").open("a") as log:
            log.write(f"{line}\n")

    def later(self, what: Callable[[], None]) -> None:
        """Do it in a moment."""

        def run() -> None:
            with self.lock:
                what()
                self.save()

        threading.Timer(DELAY, run).start()

    def use(self, pem: str) -> None:
        """Show this certificate from the next connection on."""
        path = FOLDER / "fake-api.pem"
        path.touch(mode=0o600)
        path.write_text(pem)
        self.context.load_cert_chain(path)

    @property
    def cluster(self) -> Json:
        if self.state["cluster"] is None:
            raise Refused(404, "no_cluster", "this node is in no cluster")
        return self.state["cluster"]

    # Bootstrap

    def status(self) -> Json:
        return {
            "bootstrap_status": self.state["bootstrap"],
            "local_node_info": {"os_version": "fake", "total_memory": NODE_MEMORY, "available_addrs": []},
        }

    def bootstrap(self, action: str, body: Any) -> Json:
        if self.state["bootstrap"]["state"] not in ("idle", "error"):
            raise Refused(409, "bootstrap_in_progress", f"the state is {self.state['bootstrap']['state']}")
        config = _checked(body, BOOTSTRAP, 400, ("action", "cluster", "credentials", "node"))
        if config["action"] != action:
            raise Refused(400, "config_error", "the action is not that of the path")
        self.state["bootstrap"] = {"state": "initiated", "start_time": DAY}
        run = {"create_cluster": self._create, "join_cluster": self._join}[action]
        threading.Timer(DELAY, self._bootstrapped, (run, config)).start()
        self.save()
        return {}

    def _bootstrapped(self, run: Callable[[Json], None], config: Json) -> None:
        try:
            self._paths(config["node"].get("paths", {}))
            run(config)
            end: Json = {"state": "completed", "start_time": DAY, "end_time": DAY}
        except Refused as refused:
            end = {
                "state": "error",
                "error_code": refused.code,
                "error_details": {"message": refused.description},
                "end_time": DAY,
            }
        with self.lock:
            self.state["bootstrap"] = end
            self.save()

    @staticmethod
    def _paths(paths: Json) -> None:
        for name in ("persistent_path", "ephemeral_path"):
            path = Path(paths.get(name, ""))
            if not path.is_absolute() or not path.is_dir() or pwd.getpwuid(path.stat().st_uid).pw_name != "redislabs":
                raise Refused(400, "path_error", f"{name} is no folder of redislabs")

    def _create(self, config: Json) -> None:
        name = config["cluster"].get("name", "")
        if not re.fullmatch(r"[A-Za-z0-9.-]{1,64}", name) or config["cluster"].get("nodes"):
            raise Refused(400, "config_error", "a new cluster has a name and no nodes")
        address = config["node"]["identity"]["addr"]
        user = config["credentials"]
        pem = SELF_SIGNED.read_text()
        key, certificate = pem[: pem.index("-----BEGIN CERTIFICATE")], pem[pem.index("-----BEGIN CERTIFICATE") :]
        names = ("Admin", "Cluster Member", "Cluster Viewer", "DB Member", "DB Viewer", "None")
        managements = ("admin", "cluster_member", "cluster_viewer", "db_member", "db_viewer", "none")
        with self.lock:
            self.state |= {"address": address, "leader": address}
            self.state["cluster"] = {
                "name": name,
                "license": config.get("license", ""),
                "policy": {"rack_aware": False, "default_shards_placement": "dense"},
                "certificates": {each: {"certificate": certificate, "key": key} for each in CERTIFICATES[:6]},
                "nodes": [self._node(1, config["node"]["identity"])],
                "acls": [{"uid": 1, "name": "Full Access", "acl": "+@all ~*"}],
                "roles": [
                    {"uid": uid, "name": each, "management": management}
                    for uid, (each, management) in enumerate(zip(names, managements, strict=True), start=1)
                ],
                "users": [
                    {
                        "uid": 1,
                        "email": user["username"],
                        "name": "Administrator",
                        "role_uids": [1],
                        "password_issue_date": DAY,
                        "status": "active",
                        "hash": _hash(user["password"]),
                    }
                ],
                "bdbs": [],
            }
            self.cluster["nodes"][0]["status"] = "active"

    @staticmethod
    def _node(uid: int, identity: Json) -> Json:
        return {
            "uid": uid,
            "addr": identity["addr"],
            "rack_id": identity.get("rack_id", ""),
            "status": "provisioning",
            "total_memory": NODE_MEMORY,
            "accept_servers": True,
            "software_version": "fake",
            "shard_count": 0,
        }

    def _join(self, config: Json) -> None:
        answer: Json = {}
        for address in config["cluster"].get("nodes", []):
            with contextlib.suppress(OSError):
                status, answer = call(address, "POST", "/internal/join", config)
                if status == 200:
                    break
                raise Refused(status, answer["error_code"], answer["description"])
        else:
            raise Refused(400, "connect_error", "no node of the cluster answers")
        with self.lock:
            self.state |= {"leader": answer["leader"], "address": config["node"]["identity"]["addr"]}
            self.use(answer["api"])

    def admit(self, config: Json) -> Json:
        """A node joins: on the node that made the cluster."""
        user = config["credentials"]
        self.login(user["username"], user["password"], "access_denied")
        identity = config["node"]["identity"]
        if config["cluster"].get("name", self.cluster["name"]) != self.cluster["name"]:
            raise Refused(400, "config_error", "the cluster has another name")
        if any(node["status"] != "active" for node in self.cluster["nodes"]):
            raise Refused(409, "internal_error", "another node is joining")
        if any(node["addr"] == identity["addr"] for node in self.cluster["nodes"]):
            raise Refused(409, "config_error", "a node with this address is there already")
        if self.cluster["policy"]["rack_aware"] and not identity.get("rack_id"):
            raise Refused(400, "rack_id_required", "the cluster is rack-aware")
        node = self._node(len(self.cluster["nodes"]) + 1, identity)
        self.cluster["nodes"].append(node)
        self.later(lambda: node.update(status="active"))
        self.save()
        api = self.cluster["certificates"]["api"]
        return {"leader": self.state["leader"], "api": api["key"] + api["certificate"]}

    # Who may

    def login(self, email: str, password: str, code: str = "unauthorized") -> Json:
        for user in self.cluster["users"]:
            if user["email"] == email and user["hash"] == _hash(password):
                return user
        raise Refused(401, code, "wrong user or password")

    def may_manage(self, user: Json) -> None:
        roles = {role["uid"]: role["management"] for role in self.cluster["roles"]}
        if "admin" not in {roles[uid] for uid in user["role_uids"]}:
            raise Refused(403, "forbidden", "the user's role does not manage the cluster")

    # Objects

    def _find(self, kind: str, uid: str) -> Json:
        for each in self.cluster[kind]:
            if str(each["uid"]) == uid:
                return each
        raise Refused(404, "not_found", f"{kind}: {uid} does not exist")

    def _add(self, kind: str, fields: Json) -> Json:
        uid = max((each["uid"] for each in self.cluster[kind]), default=0) + 1
        self.cluster[kind].append({"uid": uid, **fields})
        return self.cluster[kind][-1]

    def _unique(self, kind: str, field: str, value: str, status: int, uid: int | None = None) -> None:
        if any(each.get(field) == value and each["uid"] != uid for each in self.cluster[kind]):
            raise Refused(status, f"{field}_already_exists", f"another has this {field}")

    def put_acl(self, uid: str | None, body: Any) -> Json:
        fields = _checked(body, ACL, 400, () if uid else ("name", "acl"))
        rules = SELECTOR.sub(r"\1", fields.get("acl", "")).split()
        wrong = [rule for rule in rules if not RULE.fullmatch(rule)]
        if wrong:
            raise Refused(400, "invalid_param", f"acl: {wrong[0]}")
        if "name" in fields:
            self._unique("acls", "name", fields["name"], 400, int(uid) if uid else None)
        if uid is None:
            return self._add("acls", fields)
        if uid == "1":
            raise Refused(409, "read_only", "this ACL cannot be changed")
        acl = self._find("acls", uid)
        acl.update(fields)
        return acl

    def put_role(self, uid: str | None, body: Any) -> Json:
        fields = _checked(body, ROLE, 400, () if uid else ("name", "management"))
        if "name" in fields:
            self._unique("roles", "name", fields["name"], 400, int(uid) if uid else None)
        if uid is None:
            return self._add("roles", fields)
        role = self._find("roles", uid)
        role.update(fields)
        return role

    def put_user(self, uid: str | None, body: Any) -> Json:
        fields = dict(_checked(body, USER, 400, () if uid else ("email", "password", "role_uids")))
        known = {role["uid"] for role in self.cluster["roles"]}
        if not set(fields.get("role_uids", [])) <= known:
            raise Refused(400, "invalid_param", "role_uids: no such role")
        if re.search(r'[^ -~]|[&<>"]', fields.get("name", "")) or "@" not in fields.get("email", "@"):
            raise Refused(400, "invalid_param", "name or email has a character that is not allowed")
        if "email" in fields:
            self._unique("users", "email", fields["email"], 409, int(uid) if uid else None)
        if "name" in fields:
            self._unique("users", "name", fields["name"], 400, int(uid) if uid else None)
        if "password" in fields:
            fields["hash"] = _hash(fields.pop("password"))
        if uid is None:
            return self._add("users", {"status": "active", "password_issue_date": DAY, **fields})
        user = self._find("users", uid)
        if fields.get("hash") == user["hash"]:
            raise Refused(400, "new_password_same_as_current", "the user has this password already")
        user.update(fields)
        return user

    def put_certificates(self, body: Any) -> Json:
        fields = _checked(body, {"certificates": _list_of(_whole(CERTIFICATE))}, 400, ("certificates",))
        for each in fields["certificates"]:
            if each["name"] not in CERTIFICATES:
                raise Refused(403, "unknown_certificate", each["name"])
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                file.write(each["key"] + each["certificate"])
                file.flush()
                try:
                    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file.name)
                except ssl.SSLError as error:
                    raise Refused(400, "invalid_certificate", f"{each['name']}: {error.reason}") from error
        for each in fields["certificates"]:
            self.cluster["certificates"][each["name"]] = {"certificate": each["certificate"], "key": each["key"]}
        api = self.cluster["certificates"]["api"]
        pem = api["key"] + api["certificate"]
        others = [node["addr"] for node in self.cluster["nodes"] if node["addr"] != self.state["address"]]

        def spread() -> None:
            self.use(pem)
            for address in others:
                with contextlib.suppress(OSError):
                    call(address, "POST", "/internal/certificate", {"api": pem})

        self.later(spread)
        return {}

    # Databases

    def _fits(self, bdb: Json) -> None:
        """Refuse a database that the cluster cannot host."""

        def refuse(when: bool, code: str, description: str) -> None:
            if when:
                raise Refused(406, code, description)

        others = [each for each in self.cluster["bdbs"] if each["uid"] != bdb.get("uid")]
        nodes = [node for node in self.cluster["nodes"] if node["status"] == "active"]
        port, hashing = bdb["port"], bdb["oss_sharding"] or bdb["shard_key_regex"]
        taken = not 1024 <= port <= 65535 or port in RESERVED or any(each["port"] == port for each in others)
        refuse(not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", bdb["name"]), "invalid_schema", "name")
        refuse(any(each["name"] == bdb["name"] for each in others), "name_already_exists", "name")
        refuse(taken, "port_unavailable", f"port {port} is reserved or already in use")
        refuse(bdb["redis_version"] not in VERSIONS, "invalid_version", bdb["redis_version"])
        refuse(bdb["sharding"] and not hashing, "invalid_sharding", "no shard_key_regex and no oss_sharding")
        refuse(bdb["shards_count"] > 1 and not bdb["sharding"], "invalid_sharding", "several shards without sharding")
        oss = bdb["sharding"] and bdb["proxy_policy"] != "single" and bdb["hash_slots_policy"] == "16k"
        refuse(bdb["oss_cluster"] and not oss, "invalid_oss_cluster_configuration", "sharding and proxy_policy")
        refuse(bdb["replication"] and len(nodes) < 2, "invalid_replication", "not enough nodes to replicate")
        refuse(bdb["rack_aware"] and not self.cluster["policy"]["rack_aware"], "not_rack_aware", "the cluster is not")
        racks = {node["rack_id"].lower() for node in nodes}
        refuse(bdb["rack_aware"] and len(racks) < 2, "rack_awareness_violation", "not enough racks")
        snapshot = bdb["data_persistence"] == "snapshot" and not bdb.get("snapshot_policy")
        refuse(snapshot, "invalid_data_persistence", "snapshot_policy is missing")
        mutual = bdb["tls_mode"] != "disabled" and bdb["enforce_client_authentication"] == "enabled"
        refuse(mutual and not bdb["authentication_ssl_client_certs"], "invalid_certificate", "no client certificate")
        roles, acls = ({each["uid"] for each in self.cluster[kind]} for kind in ("roles", "acls"))
        for each in bdb["roles_permissions"]:
            known = each["role_uid"] in roles and each["redis_acl_uid"] in acls
            refuse(not known, "invalid_schema", f"roles_permissions: {each}")
        room = sum(node["total_memory"] for node in nodes) - sum(each["memory_size"] for each in others)
        refuse(bdb["memory_size"] > room, "insufficient_resources", f"memory_size: {room} bytes are free")

    def create_bdb(self, body: Any) -> Json:
        fields = _checked(body, BDB, 406)
        for name, code in (("name", "missing_db_name"), ("memory_size", "missing_memory_size")):
            if name not in fields:
                raise Refused(406, code, f"{name} is required")
        wanted = {**BDB_DEFAULTS, **fields}
        if not wanted["port"]:
            wanted["port"] = max((each["port"] for each in self.cluster["bdbs"]), default=11999) + 1
        self._fits(wanted)
        bdb = self._add("bdbs", {**wanted, "status": "pending", "created_time": DAY})
        self.later(lambda: bdb.update(status="active"))
        return bdb

    def change_bdb(self, uid: str, body: Any) -> Json:
        bdb = self._find("bdbs", uid)
        fields = _checked(body, BDB, 406)
        if bdb["status"] != "active":
            raise Refused(409, "busy", "another change is being made")
        fixed = BDB_FIXED & set(fields)
        if fixed:
            raise Refused(406, "invalid_schema", f"{', '.join(sorted(fixed))} cannot be changed")
        self._fits({**bdb, **fields})
        bdb.update(fields, status="active-change-pending")
        self.later(lambda: bdb.update(status="active"))
        return bdb

    # Paths

    def answer(self, method: str, path: str, body: Any, user: Json) -> Any:
        """What a call that needs a login returns."""
        if (method, path) == ("POST", "/v1/users/authorize"):
            self.may_manage(user)
            return {"access_token": "fake"}
        self.may_manage(user)
        kind, _, uid = path.removeprefix("/v1/").partition("/")
        lists = {"nodes": "nodes", "bdbs": "bdbs", "redis_acls": "acls", "roles": "roles", "users": "users"}
        if method == "GET" and kind in lists:
            found = [self._find(lists[kind], uid)] if uid else self.cluster[lists[kind]]
            shown = [{name: value for name, value in each.items() if name != "hash"} for each in found]
            return shown[0] if uid else shown
        if method == "GET" and path == "/v1/license":
            if not self.cluster["license"]:
                raise Refused(404, "no_license", "no license is installed")
            return {"license": self.cluster["license"], "expired": False}
        if method == "GET" and path == "/v1/cluster/policy":
            return self.cluster["policy"]
        if method == "GET" and path == "/v1/cluster/certificates":
            pairs = self.cluster["certificates"].items()
            return {f"{name}_cert": each["certificate"] for name, each in pairs} | {
                f"{name}_key": each["key"] for name, each in pairs
            }
        result = self._change(method, kind, uid, body)
        self.save()
        return {name: value for name, value in result.items() if name != "hash"}

    def _change(self, method: str, kind: str, uid: str, body: Any) -> Json:
        makes: dict[str, Callable[[str | None, Any], Json]] = {
            "redis_acls": self.put_acl,
            "roles": self.put_role,
            "users": self.put_user,
        }
        if kind in makes and (method, bool(uid)) in (("POST", False), ("PUT", True)):
            return makes[kind](uid or None, body)
        if (method, kind, uid) == ("POST", "bdbs", ""):
            return self.create_bdb(body)
        if (method, kind) == ("PUT", "bdbs"):
            return self.change_bdb(uid, body)
        if (method, kind, uid) == ("PUT", "license", ""):
            license_text = _checked(body, {"license": _string}, 400, ("license",))["license"]
            if not license_text.startswith("----- LICENSE START -----"):
                raise Refused(400, "invalid_license", "the license is corrupted")
            self.cluster["license"] = license_text
            return {}
        if (method, kind, uid) == ("PUT", "cluster", "policy"):
            self.cluster["policy"].update(_checked(body, POLICY, 400))
            return {}
        if (method, kind, uid) == ("PUT", "cluster", "certificates"):
            return self.put_certificates(body)
        raise Refused(404, "not_found", "the fake does not know this path")


def call(address: str, method: str, path: str, body: Any, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
    """What another node answers. Nodes of the fake trust each other."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(address, PORT, timeout=10, context=context)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, dict(headers or {}))
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")
    finally:
        connection.close()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    fake: Fake
    server_version = "FakeRedisEnterprise"

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        try:
            status, answer = 200, self._result(path)
        except Refused as refused:
            status, answer = refused.status, {"error_code": refused.code, "description": refused.description}
        self.fake.note(f"{self.command} {path} {status}")
        content = json.dumps(answer).encode()
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", "Basic")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 (names of the standard library)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what is asked is in requests.log."""

    def _body(self) -> Any:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            return json.loads(content) if content else None
        except ValueError as error:
            raise Refused(400, "bad_json", "the body is not JSON") from error

    def _result(self, path: str) -> Any:
        body, fake = self._body(), self.fake
        if path.startswith("/internal/"):
            with fake.lock:
                if path == "/internal/join":
                    return fake.admit(body)
                fake.use(body["api"])
                return {}
        if path.startswith("/v1/bootstrap"):
            with fake.lock:
                joined = fake.state["bootstrap"]["state"] == "completed"
            if self.command == "POST":
                with fake.lock:
                    return fake.bootstrap(path.removeprefix("/v1/bootstrap/"), body)
            if not joined:
                return fake.status()
        leader, address = fake.state["leader"], fake.state["address"]
        if leader is None:
            raise Refused(404, "no_cluster", "this node is in no cluster")
        authorization = self.headers.get("Authorization", "")
        if leader != address and path != "/v1/bootstrap":
            status, answer = call(leader, self.command, path, body, {"Authorization": authorization})
            if status != 200:
                raise Refused(status, answer["error_code"], answer["description"])
            return answer
        if leader != address:
            status, answer = call(leader, "GET", "/v1/nodes", None, {"Authorization": authorization})
            if status != 200:
                raise Refused(status, answer["error_code"], answer["description"])
            return fake.status()
        with fake.lock:
            try:
                email, _, password = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
            except ValueError as error:
                raise Refused(401, "unauthorized", "no login") from error
            user = fake.login(email, password)
            return fake.status() if path == "/v1/bootstrap" else fake.answer(self.command, path, body, user)


class Server(ThreadingHTTPServer):
    """One thread per connection; whoever connects and says nothing blocks nobody else."""

    daemon_threads = True
    context: ssl.SSLContext

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(10)
        with contextlib.suppress(OSError), self.context.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)


def main() -> None:
    """Answer until killed."""
    os.umask(0o077)
    Handler.fake = Fake()
    server = Server(("0.0.0.0", PORT), Handler)
    server.context = Handler.fake.context
    server.serve_forever()


if __name__ == "__main__":
    main()
