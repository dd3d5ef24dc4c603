"""Faults of Redis Clusters: nodes hang, slots move, replicas take over. Nodes are named by their index."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.crc import key_slot
from redis.retry import Retry

from redis_recsys.embedded.redis_cluster import EmbeddedCluster


def client_of(cluster: EmbeddedCluster) -> RedisCluster:
    """A client of the whole cluster; answers are bytes."""
    host, port = cluster.addresses[0]
    return RedisCluster(host, port, password=cluster.password)


def node_of(cluster: EmbeddedCluster, index: int) -> redis.Redis:
    """A client of one node alone, which gives up at once."""
    host, port = cluster.addresses[index]
    return redis.Redis(host, port, password=cluster.password, socket_timeout=5, retry=Retry(NoBackoff(), 0))


def repair(cluster: EmbeddedCluster) -> None:
    """Start the nodes that are down, and wait until the cluster is complete."""
    for index, pid in enumerate(cluster.pids()):
        if pid is None:
            cluster.restart(index)
    cluster.wait()


def slot_of(key: str | bytes) -> int:
    """The slot of a key."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def owner_of(cluster: EmbeddedCluster, slot: int) -> int:
    """The node that owns a slot, according to the nodes that answer."""
    for asked in range(len(cluster.addresses)):
        with contextlib.suppress(redis.ConnectionError), node_of(cluster, asked) as client:
            for address, entry in client.cluster("NODES").items():
                if any(int(ends[0]) <= slot <= int(ends[-1]) for ends in entry["slots"]):
                    host, port = address.rsplit(":", 1)
                    return cluster.addresses.index((host, int(port)))
    raise AssertionError(f"nobody has slot {slot}")


def replicas_of(cluster: EmbeddedCluster, index: int) -> list[int]:
    """The replicas of a node, according to the node itself."""
    with node_of(cluster, index) as client:
        followers = client.info("replication")
    ports = [value["port"] for name, value in followers.items() if name.startswith("slave") and isinstance(value, dict)]
    return [index for index, (_, port) in enumerate(cluster.addresses) if port in ports]


@contextlib.contextmanager
def hanging(cluster: EmbeddedCluster, index: int) -> Iterator[None]:
    """A node that accepts connections and does not answer, during the block."""
    pid = cluster.pids()[index]
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def replaced_within(seconds: float, cluster: EmbeddedCluster, index: int) -> bool:
    """Whether a killed or hanging node loses all its slots to another one in time."""
    others = [other for other in range(len(cluster.addresses)) if other != index]
    host, port = cluster.addresses[index]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with node_of(cluster, others[0]) as client:
            if not client.cluster("NODES")[f"{host}:{port}"]["slots"]:
                return True
        time.sleep(0.05)
    return False


def begin_move(cluster: EmbeddedCluster, slot: int, to_index: int) -> int:
    """Begin to move a slot and return its present node: its keys stay where they are, and both nodes answer ``ASK``.

    New keys go to the new node already.
    """
    source = owner_of(cluster, slot)
    with node_of(cluster, source) as old, node_of(cluster, to_index) as new:
        new.cluster("SETSLOT", slot, "IMPORTING", old.cluster("MYID").decode())
        old.cluster("SETSLOT", slot, "MIGRATING", new.cluster("MYID").decode())
    return source


def move_keys(cluster: EmbeddedCluster, slot: int, source: int, to_index: int, count: int = 1 << 30) -> int:
    """Move at most ``count`` keys of a slot that is being moved, and return how many there were."""
    host, port = cluster.addresses[to_index]
    moved = 0
    with node_of(cluster, source) as old:
        while keys := old.cluster("GETKEYSINSLOT", slot, min(100, count - moved)):
            old.execute_command("MIGRATE", host, port, "", 0, 5000, "AUTH", cluster.password, "KEYS", *keys)
            moved += len(keys)
    return moved


def end_move(cluster: EmbeddedCluster, slot: int, to_index: int) -> None:
    """Make the node that has received the keys of a slot its owner, and wait until all nodes know."""
    primaries = [index for index in range(len(cluster.addresses)) if _is_primary(cluster, index) and index != to_index]
    with node_of(cluster, to_index) as new:
        receiver = new.cluster("MYID").decode()
    for index in (to_index, *primaries):  # the new one first: otherwise nobody owns the slot for a moment
        with node_of(cluster, index) as client:
            client.cluster("SETSLOT", slot, "NODE", receiver)
    cluster.wait()


def move_slot(cluster: EmbeddedCluster, slot: int, to_index: int) -> int:
    """Move a slot with all its keys to another primary, as resharding does; returns how many keys there were."""
    source = begin_move(cluster, slot, to_index)
    moved = move_keys(cluster, slot, source, to_index)
    end_move(cluster, slot, to_index)
    return moved


def _is_primary(cluster: EmbeddedCluster, index: int) -> bool:
    with node_of(cluster, index) as client:
        return client.info("replication")["role"] == "master"
