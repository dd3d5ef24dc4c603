"""The embedded Redis Cluster: spread over its nodes, private, lasting, shared, whole again after faults."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry

from redis_recsys.embedded.redis_cluster import EmbeddedCluster
from redis_recsys.errors import StoreError

KEYS = 300
OWNER = """
import sys, time
from pathlib import Path
from redis_recsys.embedded.redis_cluster import EmbeddedCluster
with EmbeddedCluster(Path(sys.argv[1])) as cluster:
    print(*cluster.pids(), flush=True)
    time.sleep(60)
"""
SHARER = """
import sys
from pathlib import Path
from redis_recsys.embedded.redis_cluster import EmbeddedCluster
with EmbeddedCluster(Path(sys.argv[1])) as cluster:
    print(cluster.owned, *cluster.pids())
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    """One cluster for the tests that leave it as they found it, with data in it."""
    with EmbeddedCluster(tmp_path_factory.mktemp("own") / "cluster") as cluster:
        fill(cluster)
        yield cluster


def client_of(cluster: EmbeddedCluster) -> RedisCluster:
    return RedisCluster(*cluster.addresses[0], password=cluster.password)


def node_of(cluster: EmbeddedCluster, index: int, password: str | None) -> redis.Redis:
    host, port = cluster.addresses[index]
    return redis.Redis(host, port, password=password, retry=Retry(NoBackoff(), 0))


def fill(cluster: EmbeddedCluster) -> None:
    with client_of(cluster) as client:
        client.mset_nonatomic({f"key {number}": number for number in range(KEYS)})


def held(cluster: EmbeddedCluster) -> list[int]:
    """The values of all keys of ``fill``."""
    with client_of(cluster) as client:
        return [int(value or -1) for value in client.mget_nonatomic(f"key {number}" for number in range(KEYS))]


def slots(cluster: EmbeddedCluster) -> dict[str, list[list[str]]]:
    with node_of(cluster, 0, cluster.password) as client:
        return {entry["node_id"]: entry["slots"] for entry in client.cluster("NODES").values()}


def within(seconds: float, happens: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def runs(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def start_owner(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, text=True)


def test_data_is_spread_over_the_nodes(running: EmbeddedCluster) -> None:
    sizes = []
    for index in range(3):
        with node_of(running, index, running.password) as client:
            sizes.append(client.dbsize())
    assert sum(sizes) == KEYS
    assert min(sizes) > KEYS / 5


def test_nobody_gets_into_any_node_without_the_password(running: EmbeddedCluster) -> None:
    for index in range(3):
        with node_of(running, index, None) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_only_its_user_can_read_the_files_with_the_password(running: EmbeddedCluster) -> None:
    files = [path for path in running.folder.rglob("*") if path.is_file()]
    holders = [path for path in files if running.password.encode() in path.read_bytes()]
    assert running.folder / "cluster.json" in holders
    assert {stat.S_IMODE(path.stat().st_mode) for path in holders} == {0o600}


def test_a_second_process_shares_the_running_cluster(running: EmbeddedCluster) -> None:
    pids = running.pids()
    sharer = subprocess.run([sys.executable, "-c", SHARER, str(running.folder)], capture_output=True, text=True)
    assert sharer.stdout.split() == ["False", *map(str, pids)]
    assert running.pids() == pids


def test_only_the_process_that_started_the_nodes_kills_them(running: EmbeddedCluster) -> None:
    with EmbeddedCluster(running.folder) as second:
        second.wait()
        with pytest.raises(StoreError, match="was started by another process"):
            second.kill(0)
    assert None not in running.pids()


def test_a_node_that_dies_comes_back_at_the_same_address_with_its_data(running: EmbeddedCluster) -> None:
    before, addresses = running.pids(), running.addresses
    assert before[1] is not None
    os.kill(before[1], signal.SIGKILL)
    assert within(20, lambda: running.pids()[1] not in (None, before[1]))
    running.wait()
    assert held(running) == list(range(KEYS))
    assert running.addresses == addresses


def test_a_node_that_was_killed_stays_away_until_it_is_started_while_the_others_serve(
    running: EmbeddedCluster,
) -> None:
    running.kill(2)
    time.sleep(1)
    assert [pid is None for pid in running.pids()] == [False, False, True]
    with pytest.raises(StoreError, match=r"not whole after 0 s: .* slots are on no node that runs"):
        running.wait(0.1)
    for index in (0, 1):
        with node_of(running, index, running.password) as client:
            key = client.randomkey()
            assert f"key {int(client.get(key))}".encode() == key
    running.restart(2)
    assert held(running) == list(range(KEYS))


def test_a_second_cluster_of_another_shape_is_refused_its_folder(running: EmbeddedCluster) -> None:
    with pytest.raises(StoreError, match="holds a Redis Cluster of 3 nodes with 0 replicas each: take as many"):
        EmbeddedCluster(running.folder, nodes=5).start()


def test_a_cluster_that_is_stopped_starts_with_its_data_and_slots_at_its_addresses(tmp_path: Path) -> None:
    with EmbeddedCluster(tmp_path) as cluster:
        fill(cluster)
        addresses, shares, pids = cluster.addresses, slots(cluster), cluster.pids()
    assert not any(runs(pid or 0) for pid in pids)
    with EmbeddedCluster(tmp_path) as cluster:
        assert cluster.addresses == addresses
        assert slots(cluster) == shares
        assert held(cluster) == list(range(KEYS))


def test_nodes_whose_ports_are_taken_find_each_other_at_new_ones(tmp_path: Path) -> None:
    with EmbeddedCluster(tmp_path) as cluster:
        fill(cluster)
        old = cluster.addresses
    bus = old[1][1] + 10000
    with socket.create_server(old[0]), socket.create_server(("", bus)), EmbeddedCluster(tmp_path) as cluster:
        assert [now == before for now, before in zip(cluster.addresses, old, strict=True)] == [False, False, True]
        assert held(cluster) == list(range(KEYS))


def test_the_nodes_end_when_their_owner_is_killed(tmp_path: Path) -> None:
    with start_owner(tmp_path) as owner:
        assert owner.stdout is not None
        pids = list(map(int, owner.stdout.readline().split()))
        assert len(pids) == 3
        owner.kill()
    assert within(10, lambda: not any(map(runs, pids)))


def test_a_cluster_whose_forming_was_interrupted_is_formed_by_the_next(tmp_path: Path) -> None:
    with start_owner(tmp_path) as owner:
        assert within(20, lambda: (tmp_path / "node-0" / "server.json").exists())
        owner.kill()
    assert not (tmp_path / "cluster.json").exists()
    with EmbeddedCluster(tmp_path) as cluster:
        fill(cluster)
        assert held(cluster) == list(range(KEYS))


def test_a_replica_takes_the_place_of_a_killed_primary(tmp_path: Path) -> None:
    with EmbeddedCluster(tmp_path, replicas=1, fsync="always") as cluster:
        fill(cluster)
        for index in range(3):
            with node_of(cluster, index, cluster.password) as client:
                client.wait(1, 5000)
        cluster.kill(0)
        cluster.wait()
        with RedisCluster(*cluster.addresses[1], password=cluster.password) as client:
            assert client.set("key 0", 0)
        cluster.restart(0)
        assert held(cluster) == list(range(KEYS))
        with node_of(cluster, 0, cluster.password) as client:
            assert client.info("replication")["role"] == "slave"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/cluster: Not a directory; choose a folder that can be written"):
        EmbeddedCluster(tmp_path / "file" / "cluster").start()


def test_a_node_that_does_not_start_says_why_and_the_others_end(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"'maxmemory lots': argument must be a memory value .*redis\.log"):
        EmbeddedCluster(tmp_path, max_memory="lots").start()
    assert not list(tmp_path.glob("node-*/server.json"))


def test_a_cluster_without_nodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="0 nodes with 0 replicas each cannot be"):
        EmbeddedCluster(tmp_path, nodes=0)
