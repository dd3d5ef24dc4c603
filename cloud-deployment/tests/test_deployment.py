"""The whole deployment, from Terraform's machines to recommendations that a laptop gets over the VPN."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import dashboards
import pytest
import redis
from aws import Terraform, client
from cloud import IMAGE, ROOT, Cloud, Keys, connect, first_boot, load_image, recap, running
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry

from tests.support.machines.hosts import Host

NODES = ("redis-1", "redis-2", "redis-3")
USERS = [str(user) for user in range(1, 41)]
ASK = """
import sys
from redis_recsys.config import load_settings
from redis_recsys.online.recommender_client import Client
with Client(load_settings().triton) as client:
    for turn in range(300):
        client.recommend([sys.argv[1 + turn % (len(sys.argv) - 1)]])
"""
# Triton's metrics of a GPU, as its documentation names them: a stand-in, as there is none here.
GPU = """
nv_inference_request_success{model="stand-in",version="1"} 0
nv_gpu_utilization{gpu_uuid="GPU-stand-in"} 0.5
nv_gpu_memory_total_bytes{gpu_uuid="GPU-stand-in"} 24000000000
nv_gpu_memory_used_bytes{gpu_uuid="GPU-stand-in"} 8000000000
nv_gpu_power_usage{gpu_uuid="GPU-stand-in"} 40
nv_gpu_power_limit{gpu_uuid="GPU-stand-in"} 72
"""
GPU_PORT = 9835


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Future[None]]]:
    """A folder with small models of examples 2 and 3, trained as users do, while machines are made."""
    folder = tmp_path_factory.mktemp("models")

    def train() -> None:
        for command in (
            "data synthetic --rows 20000 --users 500 --items 200",
            "train --epochs 1",
            "data criteo-synthetic --rows 20000",
            "dlrm train --epochs 1 --processes 1",
            "dlrm configure",
        ):
            program = [ROOT / ".venv/bin/recsys", *command.split()]
            done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"recsys {command}: {done.stderr}"

    with ThreadPoolExecutor(1) as pool:
        yield folder, pool.submit(train)


@pytest.fixture(scope="session")
def cloud(models: tuple[Path, Future[None]], endpoint: str, deployed: Terraform, keys: Keys) -> Iterator[Cloud]:
    """Everything up: the VPN's gateway and one Triton by themselves, the others by Ansible, all at once."""
    with running(deployed, endpoint, keys, models[0]) as cloud, ThreadPoolExecutor(5) as pool:
        standin = {
            "job_name": "gpu-stand-in",
            "static_configs": [
                {
                    "targets": [f"{cloud.hosts['monitoring'].address}:{GPU_PORT}"],
                    "labels": {"instance": "gpu-stand-in"},
                }
            ],
            "relabel_configs": [{"target_label": "job", "replacement": "triton"}],
        }
        cloud.more["monitoring_scrape_configs"] = [standin]
        image = pool.submit(load_image, cloud.hosts["triton-1"], cloud.hosts["triton-2"])
        gateway = pool.submit(first_boot, cloud, "vpn")
        cloud.playbook("secrets.yml")
        configured = [
            pool.submit(cloud.playbook, "common.yml", f"{role}.yml", "--limit", role)
            for role in ("redis", "monitoring")
        ]
        image.result()
        configured += [
            pool.submit(first_boot, cloud, "triton-1"),
            pool.submit(cloud.playbook, "common.yml", "triton.yml", "--limit", cloud.names["triton-2"]),
        ]
        gateway.result()
        connect(cloud)
        for each in configured:
            each.result()
        yield cloud


@pytest.fixture(scope="session")
def served(cloud: Cloud, models: tuple[Path, Future[None]]) -> Cloud:
    """The same with models in Redis and on Triton's machines."""
    models[1].result()
    cloud.library("recsys", "deploy")
    cloud.publish("multi-stage")
    cloud.publish("large-scale")
    for name in ("triton-1", "triton-2"):
        host = cloud.hosts[name]
        until(lambda host=host: "200 OK" in host.run("curl -si http://127.0.0.1:8000/v2/health/ready", check=False))
    # A server that is ready before it has fetched what is deployed answers with popular items until it has.
    until(
        lambda: not json.loads(cloud.library("recsys", "recommend", "5", "--json"))[0]["degraded"],
        instead=lambda: cloud.hosts["triton-1"].run("journalctl --unit triton --no-pager --lines 50"),
    )
    return cloud


def until(happens: object, seconds: float = 180, instead: object = lambda: "it did not happen") -> None:
    """Wait for something to become true; else say what is so instead."""
    end = time.monotonic() + seconds
    while not happens():  # type: ignore[operator]
        assert time.monotonic() < end, instead()  # type: ignore[operator]
        time.sleep(1)


# --- The VPN ---


def test_a_laptop_reaches_the_machines_over_the_vpn_alone(cloud: Cloud) -> None:
    laptop = cloud.hosts["laptop"]
    redis_1 = cloud.hosts["redis-1"].address
    assert "1 received" in laptop.run(f"ping -c 1 -W 5 {redis_1}")
    assert "latest handshake" in laptop.run("wg show recsys")
    laptop.run("wg-quick down recsys")
    try:
        assert "1 received" not in laptop.run(f"ping -c 1 -W 2 {redis_1}", check=False)
    finally:
        laptop.run("wg-quick up recsys")


def handshakes(gateway: Host) -> dict[str, int]:
    """When each peer of the VPN last shook hands, 0 for never."""
    lines = gateway.run("wg show wg0 latest-handshakes").splitlines()
    return {key: int(seconds) for key, seconds in (line.split() for line in lines)}


def test_a_new_peer_of_the_vpn_is_let_in_while_others_stay_connected(cloud: Cloud) -> None:
    gateway = cloud.hosts["vpn"]
    before = handshakes(gateway)
    peers = cloud.terraform.outputs()["ansible"]["vpn_peers"]
    new = {"name": "second", "public_key": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=", "address": "10.99.0.3"}
    cloud.playbook("vpn.yml", "--tags", "peers", vpn_peers=[*peers, new])
    assert new["public_key"] in gateway.run("wg show wg0 peers")
    assert handshakes(gateway)[cloud.keys.wireguard_public] >= before[cloud.keys.wireguard_public] > 0
    cloud.playbook("vpn.yml", "--tags", "peers")
    assert new["public_key"] not in gateway.run("wg show wg0 peers")


# --- Redis ---


def login(cloud: Cloud, user: str, node: str = "redis-1", port: int = 6379, **more: object) -> redis.Redis:
    """A client that checks certificates."""
    secret = "redis-admin" if user == "admin" else f"redis-{user}"
    return redis.Redis(
        cloud.hosts[node].address,
        port,
        username=user,
        password=cloud.secret(secret),
        ssl=True,
        ssl_ca_certs=cloud.settings["RECSYS_REDIS_TLS_CA"],
        **more,  # type: ignore[arg-type]
    )


def test_three_machines_are_one_cluster_that_survives_the_loss_of_one(cloud: Cloud) -> None:
    with RedisCluster(
        host=cloud.hosts["redis-1"].address,
        port=6380,
        username="admin",
        password=cloud.secret("redis-admin"),
        ssl=True,
        ssl_ca_certs=cloud.settings["RECSYS_REDIS_TLS_CA"],
    ) as cluster:
        state = cluster.cluster_info(target_nodes=cluster.get_random_node())
        assert (state["cluster_state"], state["cluster_size"], state["cluster_known_nodes"]) == ("ok", "3", "6")
        replicas = {
            (replica.host, cluster.nodes_manager.get_node_from_slot(slot, read_from_replicas=False).host)
            for slot in (0, 8000, 16000)
            for replica in cluster.nodes_manager.slots_cache[slot][1:]
        }
        assert len(replicas) == 3
        assert all(copy != original for copy, original in replicas)  # on other machines


def test_redis_has_no_door_without_tls_or_login(cloud: Cloud) -> None:
    address = cloud.hosts["redis-1"].address
    for port in (6379, 6380, 6381):
        with pytest.raises(redis.ConnectionError):
            redis.Redis(address, port, socket_timeout=1, retry=Retry(NoBackoff(), 0)).ping()
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(address, port, ssl=True, ssl_ca_certs=cloud.settings["RECSYS_REDIS_TLS_CA"]).ping()
    everywhere = cloud.hosts["redis-1"].run("ss -Hltn | awk '{print $4}' | grep -E '^(0.0.0.0|\\[::\\]|\\*):'").split()
    assert set(everywhere) == {"0.0.0.0:22", "[::]:22"}


def test_users_may_do_what_they_are_for_and_no_more(cloud: Cloud) -> None:
    with login(cloud, "events") as events:
        assert events.xadd("events", {"user": 1, "item": 2, "type": "click"})
        with pytest.raises(redis.exceptions.NoPermissionError):
            events.xrange("events")
    with login(cloud, "server") as server, pytest.raises(redis.exceptions.NoPermissionError):
        server.set("features:1", "x")
    with login(cloud, "exporter") as exporter:
        assert exporter.info("memory")
        with pytest.raises(redis.exceptions.NoPermissionError):
            exporter.get("deploy:live")
    with login(cloud, "deploy") as deploy, pytest.raises(redis.exceptions.NoPermissionError):
        deploy.config_set("maxmemory", 1)
    with login(cloud, "admin") as admin:
        admin.delete("events")


def test_data_survive_a_crash_and_have_a_copy(cloud: Cloud) -> None:
    with login(cloud, "admin") as admin:
        assert admin.config_get("appendonly")["appendonly"] == "yes"
        assert admin.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        admin.set("kept", "yes")
        assert admin.wait(2, 5000) == 2
        time.sleep(1.2)  # the log goes to the disk every second
    cloud.hosts["redis-1"].run("systemctl kill --signal=KILL redis-server@standalone")
    until(lambda: "PONG" in ping(cloud), 30)
    with login(cloud, "admin") as admin, login(cloud, "admin", "redis-2") as copy:
        assert admin.get("kept") == b"yes"
        assert copy.get("kept") == b"yes"
        admin.delete("kept")


def ping(cloud: Cloud) -> str:
    try:
        with login(cloud, "admin", socket_timeout=2) as admin:
            return "PONG" if admin.ping() else ""
    except redis.RedisError:
        return ""


def test_a_rotated_password_works_beside_the_former_one(cloud: Cloud) -> None:
    former = cloud.secret("redis-events")
    with login(cloud, "events") as connected:
        connected.xadd("events", {"user": 1, "item": 2, "type": "click"})
        cloud.playbook("rotate.yml", "-e", "secret=redis-events")
        assert cloud.secret("redis-events") != former
        cloud.playbook("redis.yml", "--tags", "users")
        connected.xadd("events", {"user": 1, "item": 2, "type": "click"})  # nobody was thrown out
    for password in (former, cloud.secret("redis-events")):
        address = cloud.hosts["redis-1"].address
        authority = cloud.settings["RECSYS_REDIS_TLS_CA"]
        with redis.Redis(address, 6379, username="events", password=password, ssl=True, ssl_ca_certs=authority) as each:
            assert each.ping()
    with login(cloud, "admin") as admin:
        admin.delete("events")


# --- Triton ---


def test_a_recommendation_comes_over_the_vpn(served: Cloud) -> None:
    answers = json.loads(served.library("recsys", "recommend", "5", "7", "--json"))
    assert [answer["user"] for answer in answers] == ["5", "7"]
    assert all(len(answer["items"]) == 20 and not answer["degraded"] for answer in answers)


def test_triton_refuses_clients_without_its_token_or_without_tls(served: Cloud) -> None:
    with pytest.raises(RuntimeError, match="token"):
        served.library("recsys", "recommend", "5", RECSYS_TRITON_TOKEN="wrong")
    with pytest.raises(RuntimeError, match="cannot reach"):
        served.library("recsys", "recommend", "5", RECSYS_TRITON_TLS="false")


def test_the_load_balancer_finds_the_server_healthy(served: Cloud) -> None:
    """What it asks, as Terraform has it, from another machine of the network."""
    groups = client("elbv2", served.endpoint).describe_target_groups()["TargetGroups"]
    [health] = [(group["HealthCheckPort"], group["HealthCheckPath"]) for group in groups]
    address = f"http://{served.hosts['triton-1'].address}:{health[0]}{health[1]}"
    assert served.hosts["monitoring"].run(f"curl -so /dev/null -w '%{{http_code}}' {address}") == "200"


def test_example_three_looks_its_rows_up_in_the_cluster(served: Cloud) -> None:
    more = {"RECSYS_TRITON_HOST": "localhost"}  # a name that its certificate has; the load balancer leads to the other
    assert "dlrm" in served.library("recsys", "dlrm", "hits", host="triton-2", **more)
    served.library("recsys", "dlrm", "infer", host="triton-2", **more)


def test_the_server_runs_without_root_and_without_capabilities(served: Cloud) -> None:
    inspected = json.loads(served.hosts["triton-1"].run("docker inspect triton"))[0]
    assert inspected["Config"]["User"] == "1000"
    assert inspected["Config"]["Image"] == IMAGE
    settings = inspected["HostConfig"]
    assert (settings["Privileged"], settings["ReadonlyRootfs"], settings["CapDrop"]) == (False, True, ["ALL"])
    assert "/srv/recsys/models:/home/recsys/models:ro" in settings["Binds"]
    assert "triton.env" in served.hosts["triton-1"].run("find /srv/recsys -name '*.env' -perm 600 -user root")


def test_a_model_with_another_checksum_is_not_served(served: Cloud) -> None:
    s3 = client("s3", served.endpoint)
    bucket = served.terraform.outputs()["assets_bucket"]
    index = json.loads(s3.get_object(Bucket=bucket, Key="models/multi-stage/index.json")["Body"].read())
    broken = {"archives": [{**index["archives"][0], "sha256": "0" * 64}]}
    triton = served.hosts["triton-1"]
    place = f"/srv/recsys/models/{index['archives'][0]['name']}"
    before = triton.run(f"ls {place}")
    s3.put_object(Bucket=bucket, Key="models/multi-stage/index.json", Body=json.dumps(broken))
    try:
        triton.run("systemctl start recsys-fetch-models.service", check=False)
        assert "publish the models again" in triton.run("journalctl --unit recsys-fetch-models --no-pager")
        assert triton.run(f"ls {place}") == before
    finally:
        s3.put_object(Bucket=bucket, Key="models/multi-stage/index.json", Body=json.dumps(index))
    triton.run("systemctl start recsys-fetch-models.service")


def test_the_queue_is_reported_to_the_group_that_scales_on_it(served: Cloud) -> None:
    report = "systemctl start recsys-report-queue.service"
    served.hosts["triton-1"].run(f"{report}; sleep 1; {report}")
    metrics = client("cloudwatch", served.endpoint).list_metrics(Namespace="Recsys/Triton")["Metrics"]
    [policy] = client("autoscaling", served.endpoint).describe_policies()["ScalingPolicies"]
    wanted = policy["TargetTrackingConfiguration"]["CustomizedMetricSpecification"]
    assert {(m["MetricName"], m["Dimensions"][0]["Name"], m["Dimensions"][0]["Value"]) for m in metrics} == {
        (wanted["MetricName"], wanted["Dimensions"][0]["Name"], wanted["Dimensions"][0]["Value"])
    }


# --- Monitoring ---


def prometheus(cloud: Cloud, path: str) -> object:
    return json.loads(cloud.hosts["monitoring"].run(f"curl -sg 'http://127.0.0.1:9090/api/v1/{path}'"))["data"]


def test_prometheus_finds_every_machine_by_its_tags(served: Cloud) -> None:
    serve_gpu(served)

    def targets() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for target in prometheus(served, "targets?state=active")["activeTargets"]:  # type: ignore[index]
            if target["health"] == "up":
                found.setdefault(target["labels"]["job"], set()).add(target["labels"]["instance"])
        return found

    tritons = {f"triton-{served.hosts[name].address}" for name in ("triton-1", "triton-2")}
    wanted = {
        "node": {*NODES, "monitoring", "vpn", *tritons},
        "redis": {f"{node}:{port}" for node in NODES for port in (6379, 6380, 6381)},
        "triton": {*tritons, "gpu-stand-in"},
        "prometheus": {"monitoring"},
    }
    until(lambda: targets() == wanted, 90)


def serve_gpu(cloud: Cloud) -> None:
    """A page of metrics of a GPU on the monitoring host."""
    host = cloud.hosts["monitoring"]
    host.write("/srv/gpu/metrics", GPU)
    address = f"--bind {host.address} --directory /srv/gpu {GPU_PORT}"
    host.run(f"systemctl is-active gpu || systemd-run --unit gpu python3 -m http.server {address}")


def test_every_panel_of_the_dashboards_has_data_after_a_short_load(served: Cloud) -> None:
    serve_gpu(served)
    with served.forwarded("monitoring", 9090) as url:
        for rows in (16, 32, 64, 128, 256, 512):  # rates need several scrapes, those below the cache keys it lacks
            served.library("python", "-c", ASK, *USERS)
            infer = ("recsys", "dlrm", "infer", "--rows", f"{rows}")
            served.library(*infer, host="triton-2", RECSYS_TRITON_HOST="localhost")
            time.sleep(8)
            without_data = dashboards.check(url, ROOT / "monitoring/grafana/dashboards", window="5m")
            if not without_data:
                break
    assert without_data == []


def test_nothing_alerts_on_a_healthy_deployment_and_a_dead_redis_does(served: Cloud) -> None:
    def firing(*states: str) -> set[tuple[str, str]]:
        return {
            (alert["labels"]["alertname"], alert["labels"].get("instance", ""))
            for alert in prometheus(served, "alerts")["alerts"]  # type: ignore[index]
            if alert["state"] in states and alert["labels"].get("severity") == "critical"
        }

    until(lambda: firing("firing") == set(), instead=lambda: firing("firing"))  # there was nothing to serve before
    copy = served.hosts["redis-3"]
    copy.run("systemctl stop redis-server@standalone")
    try:
        until(lambda: ("RedisDown", "redis-3:6379") in firing("pending", "firing"), 60)
    finally:
        copy.run("systemctl start redis-server@standalone")


def test_rules_and_their_tests_are_what_promtool_accepts(served: Cloud) -> None:
    monitoring = served.hosts["monitoring"]
    for path in sorted((ROOT / "monitoring/prometheus").glob("*/*.yml")):
        monitoring.write(f"/srv/prometheus/{path.parent.name}/{path.name}", path.read_text())
    assert "SUCCESS" in monitoring.run("promtool check rules /srv/prometheus/rules/*.yml")
    assert "SUCCESS" in monitoring.run("cd /srv/prometheus/tests && promtool test rules *.yml")


# --- All of it again ---


def test_a_run_of_everything_changes_nothing(served: Cloud) -> None:
    """Neither on machines that Ansible has configured, nor on those that configured themselves."""
    parts = ("localhost:vpn:monitoring", "redis", *(served.names[name] for name in ("triton-1", "triton-2")))
    with ThreadPoolExecutor(len(parts)) as pool:  # all at once: a run waits more than it computes
        outputs = list(pool.map(lambda part: served.playbook("site.yml", "--limit", part), parts))
    counts = {host: count for output in outputs for host, count in recap(output).items()}
    assert set(counts) == {"localhost", *served.names.values()}
    assert {host for host, count in counts.items() if count["changed"] or count["failed"]} == set()
