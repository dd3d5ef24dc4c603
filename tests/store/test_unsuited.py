"""Servers that cannot hold the recommenders' keys, a Redis Cluster or a Sentinel, are refused at once by every verb."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from redis_recsys.config import RedisSettings, Settings
from redis_recsys.embedded.redis_binary import find_redis_server
from redis_recsys.embedded.redis_cluster import EmbeddedCluster
from redis_recsys.errors import StoreError
from redis_recsys.online.runner import Runner
from redis_recsys.store.connection import connect, store_errors
from redis_recsys.utils.ports import free_ports
from tests.support.commands import Outcome
from tests.support.planted import Trained

Recsys = Callable[..., Outcome]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(tmp_path_factory.mktemp("cluster"), persist=False) as cluster:
        yield cluster


@pytest.fixture
def use_cluster(cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """Configure a node of the cluster as the Redis; returns the beginning of the message that refuses it."""
    host, port = cluster.addresses[0]
    for name, value in (("HOST", host), ("PORT", str(port)), ("PASSWORD", cluster.password)):
        monkeypatch.setenv(f"RECSYS_REDIS_{name}", value)
    return f"error: Redis at {host}:{port} is a Redis Cluster, which only the tables of 'recsys dlrm' can lie in: set "


def test_every_verb_refuses_a_cluster_in_one_line(recsys: Recsys, trained: Trained, use_cluster: str) -> None:
    for verb in (
        ("batch", trained.bundle.path),
        ("get", 1),
        ("get", 1, 2, 3, "--json"),
        ("deploy", trained.bundle.path),
        ("serve",),
        ("serve", "--wait"),
        ("event", 1, 2, "click"),
        ("event", 1, 2, "click", "--wait"),
        ("consume",),
        ("check",),
        ("demo",),
    ):
        assert recsys(*verb).error().startswith(use_cluster), verb
    assert not list(Path("data").glob("*")), "something was begun before it was refused"


def test_the_tables_may_lie_in_a_cluster(recsys: Recsys, use_cluster: str) -> None:
    ended = recsys("check", "--cluster")
    assert ended.code == 0, ended
    assert "takes the login" in ended.out


def test_a_model_that_somebody_elses_triton_starts_refuses_it_too(use_cluster: str) -> None:
    with pytest.raises(StoreError, match="is a Redis Cluster"):
        Runner(["user_features"], Settings())


def test_a_user_that_may_hardly_do_anything_is_told_the_same(
    recsys: Recsys, cluster: EmbeddedCluster, use_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, port = cluster.addresses[0]
    with redis.Redis(host, port, password=cluster.password) as admin:
        admin.acl_setuser("app", enabled=True, passwords=["+secret"], keys=["recs:*"], commands=["+get", "+ping"])
    monkeypatch.setenv("RECSYS_REDIS_USERNAME", "app")
    monkeypatch.setenv("RECSYS_REDIS_PASSWORD", "secret")
    assert recsys("get", 1).error().startswith(use_cluster)


def test_one_that_becomes_a_cluster_meanwhile_is_named(cluster: EmbeddedCluster) -> None:
    host, port = cluster.addresses[0]
    settings = RedisSettings(host=host, port=port, password=cluster.password)
    with connect(settings, cluster=True) as client:
        with pytest.raises(StoreError, match="is a Redis Cluster"), store_errors(client):
            client.mget([f"key {number}" for number in range(20)])
        with client.pipeline(transaction=False) as pipeline:
            for number in range(20):  # some of these lie on other nodes
                pipeline.get(f"key {number}")
            with pytest.raises(StoreError, match="is a Redis Cluster"), store_errors(client):
                pipeline.execute()


@contextmanager
def sentinel(folder: Path) -> Iterator[int]:
    """Port of a real Sentinel."""
    (port,) = free_ports(1)
    (folder / "sentinel.conf").write_text(f"port {port}\nbind 127.0.0.1\n")
    command = [find_redis_server(), folder / "sentinel.conf", "--sentinel"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        try:
            patient = Retry(ConstantBackoff(0.05), 200)
            with redis.Redis(port=port, retry=patient, retry_on_error=[redis.ConnectionError]) as client:
                client.ping()
            yield port
        finally:
            process.kill()


def test_a_sentinel_is_told_from_the_primary_that_it_watches(recsys: Recsys, tmp_path: Path) -> None:
    with sentinel(tmp_path) as port:
        for verb in (("get", 1), ("check",), ("check", "--cluster")):
            error = recsys(*verb, "--host", "127.0.0.1", "--port", port).error()
            assert (
                f"Redis at 127.0.0.1:{port} is a Sentinel: set RECSYS_REDIS_HOST and RECSYS_REDIS_PORT to the" in error
            )
