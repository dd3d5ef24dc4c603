"""Comparison of Redis Cluster clients on the reads of a lookup: HMGET of a batch of rows, over three nodes.

    .venv/bin/pip install --no-deps valkey-glide-sync==2.6.0     # .venv has its other requirements
    python -m benchmarks.large_scale.cluster_clients

Each client packs the same keys and gets the same rows, in turns, on one thread. Time runs from keys as NumPy arrays
to the received answers; CPU is that of this process.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import glide_sync as glide
import numpy as np
from redis.cluster import RedisCluster

from benchmarks.large_scale.tiers import DIM, FULL, draw
from benchmarks.measure import FOLDER, machine
from redis_recsys.embedded.redis_cluster import EmbeddedCluster
from redis_recsys.parameter_server.layout import ROWS, arguments, as_bytes, hmget, partitions, redis_key
from redis_recsys.parameter_server.nodes import Access, Command, Nodes

TABLE_ROWS = 200_000
PARTITIONS = 8
BATCHES = (26, 1664, 26_624)  # keys of 1, 64 and 1,024 samples
TURNS, KEYS_OF_A_TURN = 15, 60_000
TIMEOUT = 5.0

Groups = list[tuple[bytes, np.ndarray]]
Client = Callable[[Groups], list[Any]]


def groups_of(keys: np.ndarray) -> Groups:
    """Group keys by the hash that holds their rows."""
    of = partitions(keys, PARTITIONS)
    order = np.argsort(of, kind="stable")
    ends = np.searchsorted(of[order], np.arange(PARTITIONS + 1))
    return [
        (redis_key(FULL, number, ROWS), keys[order[start:end]])
        for number, (start, end) in enumerate(pairwise(ends))
        if end > start
    ]


def ours(nodes: Nodes) -> Client:
    """The parameter server's own client."""
    return lambda groups: nodes.run([Command(key, hmget(key, arguments(keys))) for key, keys in groups])


def valkey_glide(client: glide.GlideClusterClient) -> Client:
    """valkey-glide, one batch without a transaction."""

    def read(groups: Groups) -> list[Any]:
        batch = glide.ClusterBatch(is_atomic=False)
        for key, keys in groups:
            fields: list[Any] = as_bytes(keys)
            batch.hmget(key, fields)
        return list(client.exec(batch, raise_on_error=True) or [])

    return read


def redis_py(client: RedisCluster) -> Client:
    """redis-py's pipeline of a cluster."""

    def read(groups: Groups) -> list[Any]:
        pipeline = client.pipeline()
        for key, keys in groups:
            pipeline.hmget(key.decode(), as_bytes(keys))
        return pipeline.execute()

    return read


def measured(clients: dict[str, Client], size: int) -> dict[str, dict[str, float]]:
    """Milliseconds per lookup of so many keys, by the clock and in CPU time of this process; medians over all turns."""
    random = np.random.default_rng(size)
    count = max(3, KEYS_OF_A_TURN // size)
    wall: dict[str, list[float]] = {name: [] for name in clients}
    used: dict[str, list[float]] = {name: [] for name in clients}
    for turn in range(TURNS):
        lookups = [groups_of(np.unique(draw(random, size, TABLE_ROWS, skewed=False))) for _ in range(count)]
        answers = []
        for name in list(clients)[:: -1 if turn % 2 else 1]:
            began, cpu = time.perf_counter(), time.process_time()
            answers.append([clients[name](groups) for groups in lookups])
            wall[name].append((time.perf_counter() - began) / count * 1e3)
            used[name].append((time.process_time() - cpu) / count * 1e3)
        assert all(each == answers[0] for each in answers[1:])
    return {
        name: {"ms": statistics.median(wall[name]), "best_ms": min(wall[name]), "cpu_ms": statistics.median(used[name])}
        for name in clients
    }


def main() -> None:
    """Measure, and print the figures as JSON."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=FOLDER)))
        cluster = stack.enter_context(EmbeddedCluster(home, persist=False))
        nodes = Nodes(Access(tuple(cluster.addresses), password=cluster.password, timeout=TIMEOUT))
        stack.callback(nodes.close)
        host, port = cluster.addresses[0]
        theirs = RedisCluster(host=host, port=port, password=cluster.password, socket_timeout=TIMEOUT)
        stack.callback(theirs.close)
        config = glide.GlideClusterClientConfiguration(
            [glide.NodeAddress(*address) for address in cluster.addresses],
            credentials=glide.ServerCredentials(password=cluster.password),
            request_timeout=round(TIMEOUT * 1e3),
        )
        third = glide.GlideClusterClient.create(config)
        stack.callback(third.close)
        rows = np.random.default_rng(0).standard_normal((TABLE_ROWS, DIM), np.float32)
        for key, keys in groups_of(np.arange(TABLE_ROWS)):
            for start in range(0, len(keys), 2_000):
                part = keys[start : start + 2_000]
                fields = [each for pair in zip(as_bytes(part), as_bytes(rows[part]), strict=True) for each in pair]
                (answer,) = nodes.run([Command.of(key, ("HSET", key, *fields))])
                assert answer == len(part), answer
        clients = {"ours": ours(nodes), "valkey-glide": valkey_glide(third), "redis-py": redis_py(theirs)}
        result = {f"{size} keys": measured(clients, size) for size in BATCHES}
    print(json.dumps({"machine": machine(), "clients": result}, indent=2))


if __name__ == "__main__":
    main()
