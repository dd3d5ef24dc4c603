"""The parameter server while nodes die, slots move, replicas take over, and disks and files are broken.

Every lookup gives the right row, or the default and a counted miss, within a bounded time. No update that was
acknowledged is lost.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import redis
import torch
from redis.cluster import RedisCluster

from redis_recsys.embedded.redis_cluster import EmbeddedCluster
from redis_recsys.errors import ConfigError, DataError, StoreError
from redis_recsys.parameter_server.layout import ROWS, partitions, redis_key
from redis_recsys.parameter_server.loading import load
from redis_recsys.parameter_server.nodes import Command, Nodes
from redis_recsys.parameter_server.remote import Remote
from redis_recsys.parameter_server.server import ParameterServer
from redis_recsys.parameter_server.tiers import redis_tier as volatile
from tests.support import faults
from tests.support.paths import ROOT
from tests.support.pipelines import wait
from tests.support.tables import DIM, FULL, TABLE, access, configured, row_of, serving, trained

KEYS = np.arange(1000)
NOBODY = 65534
LIMIT = 2.0  # seconds that a lookup may take: one timeout of 0.5 s, and a busy machine


class Looking:
    """Looks all keys up repeatedly, and notes the slowest answer and every wrong row."""

    def __init__(self, server: ParameterServer) -> None:
        self.slowest, self.lookups = 0.0, 0
        self.wrong: list[float] = []
        self.defaults = 0
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Looking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.is_set():
            started = time.monotonic()
            rows = self._server.lookup(TABLE, KEYS)
            self.slowest = max(self.slowest, time.monotonic() - started)
            self.lookups += 1
            is_default = (rows == 0.5).all(axis=1)
            self.defaults += int(is_default.sum())
            right = ((rows - row_of(KEYS)) % 1000 == 0).all(axis=1) | is_default
            self.wrong += rows[~right][:, 0].tolist()


def uncached(tmp_path: Path, rocks: bool, **changes: object):  # type: ignore[no-untyped-def]
    """A table without a cache, so that every lookup asks Redis."""
    return configured(trained(tmp_path), tmp_path / "rocks" if rocks else None, model_gpucache=False, **changes)


def owner(cluster: EmbeddedCluster, partition: int) -> int:
    return faults.owner_of(cluster, faults.slot_of(redis_key(FULL, partition, ROWS)))


def test_a_node_killed_in_the_middle_of_lookups(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    """RocksDB answers for it meanwhile; when it comes back, rows come from Redis again."""
    with serving(uncached(tmp_path, rocks=True), cluster) as server:
        load(server)
        with Looking(server) as looking:
            time.sleep(0.3)
            cluster.kill(1)
            time.sleep(1.5)
            during = server.statistics()[TABLE]
            cluster.restart(1)
            time.sleep(1.0)
        assert not looking.wrong
        assert looking.defaults == 0
        assert looking.slowest < LIMIT
        assert during.unreachable > 0
        assert during.rocksdb > 0
        before = server.statistics()[TABLE].unreachable
        server.lookup(TABLE, KEYS)
        assert server.statistics()[TABLE].unreachable == before


def test_a_node_that_refused_hundreds_of_connections_is_there_again_once_it_is_back(cluster: EmbeddedCluster) -> None:
    lost = owner(cluster, 0)
    key = redis_key(FULL, 0, ROWS)
    nodes = Nodes(access(cluster, pause=0.0))
    try:
        cluster.kill(lost)
        for _ in range(300):
            assert isinstance(nodes.run([Command.of(key, ("HLEN", key))])[0], redis.ConnectionError)
        cluster.restart(lost)
        assert nodes.run([Command.of(key, ("HLEN", key))], 10.0) == [0]
    finally:
        nodes.close()


def test_the_cache_is_filled_while_a_node_is_dead(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    """Copies of RocksDB's rows, which that node cannot store, do not delay the fills."""
    config = configured(trained(tmp_path), tmp_path / "rocks", cache_missed_embeddings=True)
    with serving(config, cluster) as server:
        load(server)
        cluster.kill(1)
        for keys in np.array_split(KEYS, 10):
            np.testing.assert_array_equal(server.lookup(TABLE, keys), row_of(keys))
        started = time.monotonic()
        server.settle()
        assert time.monotonic() - started < LIMIT
        counts = server.statistics()[TABLE]
        assert counts.rocksdb > 0
        assert counts.filled == counts.redis + counts.rocksdb
        assert counts.copied == counts.dropped == 0


def test_without_rocksdb_a_dead_node_means_defaults_that_are_counted(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    with serving(uncached(tmp_path, rocks=False), cluster) as server:
        load(server)
        cluster.kill(2)
        lost = np.isin(partitions(KEYS, 8), [each for each in range(8) if owner(cluster, each) == 2])
        rows = server.lookup(TABLE, KEYS)
        counts = server.statistics()[TABLE]
    assert lost.any()
    assert (rows[lost] == 0.5).all()
    np.testing.assert_array_equal(rows[~lost], row_of(KEYS[~lost]))
    assert counts.default == counts.unreachable == lost.sum()


def test_a_node_that_hangs_holds_lookups_up_once(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    with serving(uncached(tmp_path, rocks=True), cluster) as server:
        load(server)
        with faults.hanging(cluster, 0):
            times = []
            for _ in range(5):
                started = time.monotonic()
                np.testing.assert_array_equal(server.lookup(TABLE, KEYS), row_of(KEYS))
                times.append(time.monotonic() - started)
        assert max(times) < LIMIT
        assert sorted(times)[1] < 0.2


def test_updates_are_followed_again_after_a_node_hung(
    tmp_path: Path, cluster: EmbeddedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(trained(tmp_path), tmp_path / "rocks")
    with serving(config, cluster) as server:
        load(server)
        with faults.hanging(cluster, 0):
            wait(lambda: "updates wait" in caplog.text)
        with serving(configured(tmp_path / "dlrm0_sparse.model"), cluster) as other:
            other.update(TABLE, KEYS, row_of(KEYS, 1))
        assert server.follower is not None
        follower = server.follower
        wait(lambda: follower.applied[FULL] >= len(KEYS))


def test_a_slot_that_moves_is_followed(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    with serving(uncached(tmp_path, rocks=False), cluster) as server:
        load(server)
        with Looking(server) as looking:
            for partition in range(4):
                time.sleep(0.1)
                slot = faults.slot_of(redis_key(FULL, partition, ROWS))
                faults.move_slot(cluster, slot, (owner(cluster, partition) + 1) % 3)
        assert looking.lookups > 3
        assert not looking.wrong
        assert looking.slowest < LIMIT
        np.testing.assert_array_equal(server.lookup(TABLE, KEYS), row_of(KEYS))
        server.update(TABLE, KEYS, row_of(KEYS, 1))
        np.testing.assert_array_equal(server.lookup(TABLE, KEYS), row_of(KEYS, 1))


def test_rows_whose_slot_no_node_has_are_not_taken_for_published(
    tmp_path: Path, cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volatile, "WRITE_SECONDS", 0.2)
    slot = faults.slot_of(redis_key(FULL, 0, ROWS))
    home = faults.owner_of(cluster, slot)
    for index in range(len(cluster.addresses)):
        with faults.node_of(cluster, index) as client:
            client.execute_command("CLUSTER DELSLOTS", slot)
    nodes = Nodes(access(cluster))
    try:
        with pytest.raises(StoreError, match="no node has slot"):
            Remote(uncached(tmp_path, rocks=False), nodes).publish(TABLE, KEYS, row_of(KEYS))
    finally:
        nodes.close()
        with faults.node_of(cluster, home) as client:
            client.execute_command("CLUSTER ADDSLOTS", slot)
        cluster.wait()


def test_a_promoted_replica_has_every_acknowledged_update(tmp_path: Path, replicated_cluster: EmbeddedCluster) -> None:
    cluster = replicated_cluster
    versions = np.zeros(8, int)  # acknowledged, per block of keys
    blocks = np.array_split(KEYS, 8)
    with serving(uncached(tmp_path, rocks=True), cluster) as server:
        load(server)
        stop = threading.Event()

        def write() -> None:
            version = 0
            while not stop.is_set():
                version += 1
                for number, block in enumerate(blocks):
                    with suppress(StoreError):  # not acknowledged
                        server.update(TABLE, block, row_of(block, version))
                        versions[number] = version

        with Looking(server) as looking:
            writer = threading.Thread(target=write)
            writer.start()
            time.sleep(0.5)
            cluster.kill(0)
            assert faults.replaced_within(15, cluster, 0)
            time.sleep(1.0)
            stop.set()
            writer.join()
        assert not looking.wrong
        assert looking.defaults == 0
        assert looking.slowest < LIMIT
        assert versions.min() > 2
        for block, version in zip(blocks, versions, strict=True):
            found = (server.lookup(TABLE, block) - row_of(block))[:, 0] / 1000
            assert (found >= version).all()
        assert server.volatile is not None
        assert server.volatile.count(FULL) == 1000


def test_a_full_redis_refuses_updates_and_goes_on_answering(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    with serving(uncached(tmp_path, rocks=True), cluster) as server:
        load(server)
        for index in range(3):
            with faults.node_of(cluster, index) as node:
                node.config_set("maxmemory", "1mb")
        try:
            with pytest.raises(StoreError, match="raise its maxmemory"):
                server.update(TABLE, KEYS, row_of(KEYS, 1))
            np.testing.assert_array_equal(server.lookup(TABLE, KEYS), row_of(KEYS))
        finally:
            for index in range(3):
                with faults.node_of(cluster, index) as node:
                    node.config_set("maxmemory", 0)
        server.update(TABLE, KEYS, row_of(KEYS, 1))
        np.testing.assert_array_equal(server.lookup(TABLE, KEYS), row_of(KEYS, 1))


def test_a_full_redis_takes_no_copies_from_rocksdb_and_lookups_go_on(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    config = uncached(tmp_path, rocks=True, initial_cache_rate=0.0, cache_missed_embeddings=True)
    with serving(config, cluster) as server:
        load(server)
        for index in range(3):
            with faults.node_of(cluster, index) as node:
                node.config_set("maxmemory", "1mb")
        try:
            np.testing.assert_array_equal(server.lookup(TABLE, KEYS), row_of(KEYS))
            server.settle()
            assert server.statistics()[TABLE].copied == 0
            np.testing.assert_array_equal(server.lookup(TABLE, KEYS), row_of(KEYS))
        finally:
            for index in range(3):
                with faults.node_of(cluster, index) as node:
                    node.config_set("maxmemory", 0)


UPDATES = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests.support.tables import TABLE, configured, row_of
from redis_recsys.parameter_server.nodes import Access, Nodes
from redis_recsys.parameter_server.server import ParameterServer
ports, password, folder = sys.argv[3].split(","), sys.argv[4], Path(sys.argv[1])
config = configured(folder / "dlrm0_sparse.model", folder / sys.argv[5] if sys.argv[5] else None)
nodes = Nodes(Access(tuple(("127.0.0.1", int(port)) for port in ports), password=password))
server = ParameterServer(config, nodes, device="cpu")
keys = np.arange(1000)
for version in range(1, 100000):
    server.update(TABLE, keys, row_of(keys, version))
    print(version, flush=True)
"""


@contextmanager
def updating(folder: Path, cluster: EmbeddedCluster, rocks: str) -> Iterator[subprocess.Popen[str]]:
    """A process that publishes version after version of all rows, and prints the acknowledged ones."""
    ports = ",".join(str(port) for _, port in cluster.addresses)
    arguments = [str(folder), str(ROOT), ports, cluster.password, rocks]
    process = subprocess.Popen([sys.executable, "-c", UPDATES, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_updates_during_a_restart_are_all_there_afterwards(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    config = configured(trained(tmp_path), tmp_path / "rocks")
    with serving(config, cluster) as server:
        load(server)
    with updating(tmp_path, cluster, "") as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        with serving(config, cluster) as server:
            server.lookup(TABLE, KEYS)
            for _ in range(3):
                acknowledged = int(process.stdout.readline())
            time.sleep(1.0)
            server.evict(TABLE)
            found = (server.lookup(TABLE, KEYS) - row_of(KEYS))[:, 0] / 1000
            assert (found >= acknowledged).all()


def test_a_killed_server_loses_no_acknowledged_update(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    config = configured(trained(tmp_path), tmp_path / "rocks")
    with serving(config, cluster) as server:
        load(server)
    with updating(tmp_path, cluster, "rocks") as process:
        assert process.stdout is not None
        for _ in range(5):
            acknowledged = int(process.stdout.readline())
        process.kill()
        process.wait()
    with serving(config, cluster) as server:
        assert server.follower is not None
        server.follower.catch_up()
        np.testing.assert_array_equal(server.lookup(TABLE, KEYS) >= row_of(KEYS, acknowledged), True)
        server.evict(TABLE)
        assert (server.lookup(TABLE, KEYS) >= row_of(KEYS, acknowledged)).all()


def test_a_rocksdb_folder_that_another_process_has_is_named(tmp_path: Path) -> None:
    config = configured(trained(tmp_path), tmp_path / "rocks", type="disabled")
    with serving(config, None), pytest.raises(StoreError, match=r"rocks is in use by another process"):
        ParameterServer(config, None)


def test_a_read_only_rocksdb_serves_and_refuses_updates_nowhere_half(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    config = uncached(tmp_path, rocks=True)
    with serving(config, cluster) as server:
        load(server)
    reading = uncached(tmp_path, rocks=True, persistent_read_only=True)
    with serving(reading, cluster) as server, serving(reading, cluster) as second:
        server.evict(TABLE)
        np.testing.assert_array_equal(server.lookup(TABLE, KEYS), row_of(KEYS))
        np.testing.assert_array_equal(second.lookup(TABLE, KEYS), row_of(KEYS))
        server.update(TABLE, KEYS[:5], row_of(KEYS[:5], 1))  # it is in Redis, which is shared by all
        np.testing.assert_array_equal(second.lookup(TABLE, KEYS[:5]), row_of(KEYS[:5], 1))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run the block as a user other than root, who may write everywhere."""
    user = os.geteuid()
    os.seteuid(NOBODY if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_must_not_be_written_is_named_and_can_be_read(cluster: EmbeddedCluster) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = configured(trained(folder), folder / "rocks", type="disabled")
        with serving(config, None) as server:
            load(server)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            with as_nobody():
                with pytest.raises(StoreError, match=r"rocks cannot be written .* set persistent_db\.read_only"):
                    ParameterServer(config, None)
                reading = configured(
                    folder / "dlrm0_sparse.model", folder / "rocks", type="disabled", persistent_read_only=True
                )
                with serving(reading, None) as server:
                    np.testing.assert_array_equal(server.lookup(TABLE, KEYS), row_of(KEYS))
        finally:
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o755)


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "rocks").write_text("")
    with pytest.raises(StoreError, match=r"RocksDB in .*rocks"):
        ParameterServer(configured(trained(tmp_path), tmp_path / "rocks", type="disabled"), None)


def test_a_damaged_manifest_is_named_at_the_start(tmp_path: Path) -> None:
    config = configured(trained(tmp_path), tmp_path / "rocks", type="disabled")
    with serving(config, None) as server:
        load(server)
    next((tmp_path / "rocks").glob("MANIFEST-*")).write_bytes(b"nonsense" * 100)
    with pytest.raises(StoreError, match=r"rocks is damaged .* load the tables again"):
        ParameterServer(config, None)


def test_damaged_rows_are_counted_misses_and_the_others_are_right(tmp_path: Path) -> None:
    config = configured(trained(tmp_path), tmp_path / "rocks", type="disabled", model_gpucache=False)
    with serving(config, None) as server:
        load(server)
    table = max((tmp_path / "rocks").glob("*.sst"), key=lambda file: file.stat().st_size)
    damaged = bytearray(table.read_bytes())
    damaged[5000:5400] = bytes(400)
    table.write_bytes(damaged)
    with serving(config, None) as server:
        rows = server.lookup(TABLE, KEYS)
        counts = server.statistics()[TABLE]
    default = (rows == 0.5).all(axis=1)
    assert 0 < default.sum() < 500
    assert counts.default == default.sum()
    np.testing.assert_array_equal(rows[~default], row_of(KEYS[~default]))


def test_a_truncated_table_is_refused_before_anything_is_loaded(
    tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster
) -> None:
    table = trained(tmp_path)
    vectors = table / "emb_vector"
    vectors.write_bytes(vectors.read_bytes()[:-4])
    with pytest.raises(DataError, match="truncated"), serving(configured(table), cluster):
        pass
    with (
        pytest.raises(DataError, match="truncated"),
        serving(configured(table, model_gpucache=False), cluster) as server,
    ):
        load(server)
    assert cluster_client.dbsize() == 0


def test_a_table_that_is_not_there_is_served_from_what_the_tiers_hold(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    table = trained(tmp_path)
    with serving(configured(table), cluster) as server:
        load(server)
    shutil.rmtree(table)
    with serving(configured(table), cluster) as server:
        assert load(server) == {}
        np.testing.assert_array_equal(server.lookup(TABLE, KEYS), row_of(KEYS))


def test_a_gpu_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = configured(trained(tmp_path), tmp_path / "rocks", type="disabled")
    with pytest.raises(ConfigError, match="RECSYS_LOOKUP_DEVICE is cuda"):
        ParameterServer(config, None, device="cuda")


def test_extreme_keys_have_rows(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    keys = np.array([-(1 << 63), (1 << 63) - 1, 0, -1])
    with serving(configured(trained(tmp_path), tmp_path / "rocks"), cluster) as server:
        load(server)
        rows = np.arange(4 * DIM, dtype=np.float32).reshape(4, DIM)
        server.update(TABLE, keys, rows)
        np.testing.assert_array_equal(server.lookup(TABLE, keys), rows)
        server.settle()
        np.testing.assert_array_equal(server.lookup(TABLE, keys), rows)
        assert struct.pack("<q", keys[0]) == b"\0" * 7 + b"\x80"
