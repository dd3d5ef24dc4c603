"""Durability of vector sets: a restart from the append-only file and a replica hold the newest changes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import orjson
import redis

from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.store import vectors

GEN = "7"


def unit(rows: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, 16)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def attributes(version: int) -> bytes:
    return orjson.dumps({"version": version})


def loaded_and_changed(client: redis.Redis) -> np.ndarray:
    """Fill a set of 60, replace some vectors once or twice, remove one; returns the expected float32[60, 16]."""
    expected = unit(60, seed=0)
    vectors.load(client, GEN, expected, (attributes(0) for _ in expected))
    for version in (1, 2):
        newer = unit(60, seed=version)
        for item in range(version, 41):
            expected[item - 1] = newer[item - 1]
            vectors.put(client, GEN, item, newer[item - 1], attributes(version))
    vectors.remove(client, GEN, 60)
    vectors.put(client, GEN, 60, expected[59], attributes(3))
    return expected


def check(client: redis.Redis, expected: np.ndarray) -> None:
    """Every vector and every attribute is the one put last."""
    versions = [1, *[2] * 39, *[0] * 19, 3]
    assert client.execute_command("VCARD", vectors.key(GEN)) == 60
    for item, (vector, version) in enumerate(zip(expected, versions, strict=True), 1):
        found = np.array(client.execute_command("VEMB", vectors.key(GEN), str(item)), np.float32)
        np.testing.assert_allclose(found, vector, atol=1e-5)
        document = client.execute_command("VGETATTR", vectors.key(GEN), str(item))
        assert orjson.loads(document) == {"version": version}, item


def test_updated_vectors_and_attributes_survive_a_restart_from_the_append_only_file(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server, redis.Redis(port=server.port, password=server.password) as client:
        client.config_set("appendfsync", "always")
        expected = loaded_and_changed(client)
        check(client, expected)
        server.kill()
    with EmbeddedRedis(tmp_path / "redis") as server, redis.Redis(port=server.port, password=server.password) as client:
        check(client, expected)


def test_a_load_over_what_is_there_survives_a_restart(tmp_path: Path) -> None:
    """A generation's number may be used twice, after Redis has lost its counter."""
    with EmbeddedRedis(tmp_path / "redis") as server, redis.Redis(port=server.port, password=server.password) as client:
        client.config_set("appendfsync", "always")
        vectors.load(client, GEN, unit(80, seed=5), (attributes(9) for _ in range(80)))
        expected = loaded_and_changed(client)
        server.kill()
    with EmbeddedRedis(tmp_path / "redis") as server, redis.Redis(port=server.port, password=server.password) as client:
        check(client, expected)


def test_updated_vectors_and_attributes_reach_a_replica(tmp_path: Path) -> None:
    with (
        EmbeddedRedis(tmp_path / "first") as server,
        EmbeddedRedis(tmp_path / "second") as copy,
        redis.Redis(port=server.port, password=server.password) as client,
        redis.Redis(port=copy.port, password=copy.password) as replica,
    ):
        replica.config_set("masterauth", server.password)
        replica.replicaof("127.0.0.1", server.port)
        while replica.info("replication")["master_link_status"] != "up":
            time.sleep(0.01)
        expected = loaded_and_changed(client)
        assert client.wait(1, 10_000) == 1
        check(replica, expected)
