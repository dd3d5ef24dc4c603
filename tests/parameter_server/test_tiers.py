"""Lookups through cache, Redis and RocksDB, on a real cluster."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import redis
from redis.cluster import RedisCluster
from rocksdict import Rdict

from redis_recsys.embedded.redis_cluster import EmbeddedCluster
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.errors import ConfigError, DataError
from redis_recsys.hugectr.sparse import SparseModel
from redis_recsys.parameter_server import updates
from redis_recsys.parameter_server.layout import ROWS, TIMES, UPDATES, partitions, redis_key
from redis_recsys.parameter_server.loading import load
from redis_recsys.parameter_server.nodes import Access, Nodes
from redis_recsys.parameter_server.ps_json import Config
from redis_recsys.parameter_server.server import ParameterServer
from tests.support.tables import DIM, FULL, TABLE, configured, row_of, serving, trained

ABSENT = 5_000_000


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def in_redis(client: RedisCluster, key: int, count: int = 8) -> bytes | None:
    """The value where HPS looks for a key."""
    (partition,) = partitions(np.array([key]), count)
    return client.hget(redis_key(FULL, partition, ROWS), struct.pack("<q", key))


def test_rows_come_in_the_order_of_the_keys(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    keys = np.array([7, 999, 7, 0, 500])
    with serving(configured(trained(tmp_path)), cluster) as server:
        load(server)
        np.testing.assert_array_equal(server.lookup(TABLE, keys), row_of(keys))
        server.settle()
        np.testing.assert_array_equal(server.lookup(TABLE, keys), row_of(keys))  # from the cache now
        counts = server.statistics()[TABLE]
    assert (counts.lookups, counts.keys, counts.redis, counts.cache, counts.default) == (2, 10, 4, 5, 0)


def test_a_table_lies_in_redis_as_hps_would_put_it(
    tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster
) -> None:
    with serving(configured(trained(tmp_path)), cluster) as server:
        load(server)
    hashes = {
        key for node in cluster_client.get_primaries() for key in cluster_client.keys("hps_et*v", target_nodes=node)
    }
    assert hashes == {redis_key(FULL, partition, ROWS) for partition in range(8)}
    assert in_redis(cluster_client, 42) == row_of(np.array([42])).tobytes()
    used = cluster_client.hget(redis_key(FULL, partitions(np.array([42]), 8)[0], TIMES), struct.pack("<q", 42))
    assert abs(struct.unpack("<q", used)[0] - time.time()) < 60


def test_a_table_that_hps_left_in_redis_is_served(cluster: EmbeddedCluster, cluster_client: RedisCluster) -> None:
    keys = np.array([3, 1 << 50, -9])
    for key, partition, row in zip(keys.tolist(), partitions(keys, 8).tolist(), row_of(keys), strict=True):
        name = f"hps_et{{hps_et.dlrm.sparse_embedding0/p{partition}}}v"
        cluster_client.hset(name, struct.pack("<q", key), struct.pack(f"<{DIM}f", *row))
    with serving(configured(Path("/gone")), cluster) as server:
        np.testing.assert_array_equal(server.lookup(TABLE, keys), row_of(keys))


def test_what_hps_left_in_redis_is_not_overwritten(
    tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster
) -> None:
    (partition,) = partitions(np.array([3]), 8)
    cluster_client.hset(redis_key(FULL, partition, ROWS), struct.pack("<q", 3), row_of(np.array([3]), 1).tobytes())
    with serving(configured(trained(tmp_path)), cluster) as server:
        assert load(server) == {TABLE: 0}
        np.testing.assert_array_equal(server.lookup(TABLE, np.array([3])), row_of(np.array([3]), 1))
        assert load(server, again=True) == {TABLE: 1000}
        np.testing.assert_array_equal(server.lookup(TABLE, np.array([3])), row_of(np.array([3])))


def test_keys_that_are_nowhere_get_the_default_and_are_counted(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    with serving(configured(trained(tmp_path), tmp_path / "rocks"), cluster) as server:
        load(server)
        rows = server.lookup(TABLE, np.array([1, ABSENT, -1, ABSENT]))
        counts = server.statistics()[TABLE]
    np.testing.assert_array_equal(rows[0], row_of(np.array([1]))[0])
    assert (rows[1:] == 0.5).all()
    assert counts.default == 2


def test_rocksdb_has_what_redis_has_not(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    keys = np.arange(1000)
    with serving(configured(trained(tmp_path), tmp_path / "rocks", initial_cache_rate=0.25), cluster) as server:
        load(server)
        np.testing.assert_array_equal(server.lookup(TABLE, keys), row_of(keys))
        counts = server.statistics()[TABLE]
    assert (counts.redis, counts.rocksdb, counts.default) == (250, 750, 0)


def test_missed_rows_are_copied_from_rocksdb_to_redis(
    tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster
) -> None:
    config = configured(trained(tmp_path), tmp_path / "rocks", initial_cache_rate=0.0, cache_missed_embeddings=True)
    with serving(config, cluster) as server:
        load(server)
        server.lookup(TABLE, np.array([5, 6]))
        server.settle()
        assert in_redis(cluster_client, 5) == row_of(np.array([5])).tobytes()
        assert server.statistics()[TABLE].copied == 2
        server.tables[TABLE].cache.clear()
        server.lookup(TABLE, np.array([5, 6]))
        assert server.statistics()[TABLE].redis == 2


def test_without_redis_rocksdb_serves(tmp_path: Path) -> None:
    config = configured(trained(tmp_path), tmp_path / "rocks", type="disabled")
    with serving(config, None) as server:
        load(server)
        np.testing.assert_array_equal(server.lookup(TABLE, np.array([5])), row_of(np.array([5])))
        server.update(TABLE, np.array([5]), row_of(np.array([5]), 1))
        np.testing.assert_array_equal(server.lookup(TABLE, np.array([5])), row_of(np.array([5]), 1))


def test_what_else_lies_in_the_folder_of_rocksdb_stays(tmp_path: Path) -> None:
    (tmp_path / "rocks" / "loading").mkdir(parents=True)
    (tmp_path / "rocks" / "loading" / "notes").write_text("mine")
    with serving(configured(trained(tmp_path), tmp_path / "rocks", type="disabled"), None) as server:
        load(server)
    assert (tmp_path / "rocks" / "loading" / "notes").read_text() == "mine"


def test_rocksdb_lies_on_disk_as_hps_would_put_it(tmp_path: Path) -> None:
    with serving(configured(trained(tmp_path), tmp_path / "rocks", type="disabled"), None) as server:
        load(server)
    database = Rdict(str(tmp_path / "rocks"))
    table = database.get_column_family(FULL)
    assert table[struct.pack("<q", 300)] == row_of(np.array([300])).tobytes()
    table.close()
    database.close()


def test_one_redis_serves_as_well_as_a_cluster(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis", persist=False) as one:
        nodes = Nodes(Access(((one.host, one.port),), password=one.password))
        server = ParameterServer(configured(trained(tmp_path)), nodes, device="cpu")
        load(server)
        np.testing.assert_array_equal(server.lookup(TABLE, np.array([5, 6])), row_of(np.array([5, 6])))
        server.update(TABLE, np.array([5]), row_of(np.array([5]), 1))
        np.testing.assert_array_equal(server.lookup(TABLE, np.array([5])), row_of(np.array([5]), 1))
        server.close()


def test_above_the_hit_rate_threshold_a_lookup_does_not_wait(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    config = configured(trained(tmp_path), model_hit_rate_threshold=0.5, model_gpucacheper=1.0)
    with serving(config, cluster) as server:
        load(server)
        first = np.arange(10)
        np.testing.assert_array_equal(server.lookup(TABLE, first), row_of(first))  # nothing is cached: it waits
        server.settle()
        rows = server.lookup(TABLE, np.arange(12))
        np.testing.assert_array_equal(rows[:10], row_of(first))
        assert (rows[10:] == 0.5).all()
        assert server.statistics()[TABLE].deferred == 2
        server.settle()
        np.testing.assert_array_equal(server.lookup(TABLE, np.arange(12)), row_of(np.arange(12)))
        rows = server.lookup(TABLE, np.arange(8, 30))  # four of 22 are cached: it waits
        np.testing.assert_array_equal(rows, row_of(np.arange(8, 30)))


def test_without_a_cache_every_lookup_asks_redis(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    with serving(configured(trained(tmp_path), model_gpucache=False), cluster) as server:
        load(server)
        for _ in range(2):
            server.lookup(TABLE, np.arange(10))
        assert server.statistics()[TABLE].redis == 20


def test_several_tables_are_looked_up_at_once(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    from redis_recsys.parameter_server.ps_json import Config

    document = configured(trained(tmp_path)).model_dump()
    model = document["models"][0]
    model |= {
        "sparse_files": [str(tmp_path / "dlrm0_sparse.model")] * 2,
        "embedding_vecsize_per_table": [DIM, DIM],
        "embedding_table_names": ["users", "items"],
        "default_value_for_each_table": [0.0, 2.0],
    }
    with serving(Config(**document), cluster) as server:
        load(server)
        rows = server.lookup_many({"dlrm.users": np.array([1, ABSENT]), "dlrm.items": np.array([ABSENT, 2, 3])})
        np.testing.assert_array_equal(rows["dlrm.users"][0], row_of(np.array([1]))[0])
        np.testing.assert_array_equal(rows["dlrm.items"][1:], row_of(np.array([2, 3])))
        assert rows["dlrm.users"][1].tolist() == [0.0] * DIM
        assert rows["dlrm.items"][0].tolist() == [2.0] * DIM


def test_loading_again_is_for_other_tables_only(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    config = configured(trained(tmp_path), tmp_path / "rocks")
    with serving(config, cluster) as server:
        assert load(server) == {TABLE: 1000}
        server.update(TABLE, np.array([5]), row_of(np.array([5]), 1))
    with serving(config, cluster) as server:
        assert load(server) == {TABLE: 0}
        np.testing.assert_array_equal(server.lookup(TABLE, np.array([5])), row_of(np.array([5]), 1))
    trained(tmp_path, 500)
    with serving(config, cluster) as server:
        assert load(server) == {TABLE: 500}
        rows = server.lookup(TABLE, np.array([5, 700]))
        np.testing.assert_array_equal(rows[0], row_of(np.array([5]))[0])
        assert (rows[1] == 0.5).all()


def test_an_interrupted_load_is_done_again(tmp_path: Path, cluster: EmbeddedCluster, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    config = configured(trained(tmp_path), tmp_path / "rocks")
    blocks = SparseModel.blocks
    with serving(config, cluster) as server:
        with monkeypatch.context() as patch:

            def torn(self: SparseModel, size: int):  # type: ignore[no-untyped-def]
                yield next(blocks(self, 100))
                raise KeyboardInterrupt

            patch.setattr(SparseModel, "blocks", torn)
            with pytest.raises(KeyboardInterrupt):
                load(server)
        assert load(server) == {TABLE: 1000}
        np.testing.assert_array_equal(server.lookup(TABLE, np.arange(1000)), row_of(np.arange(1000)))


@pytest.mark.parametrize("policy", ["evict_oldest", "evict_random"])
def test_a_partition_that_is_too_full_makes_room(
    tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster, policy: str
) -> None:
    config = configured(
        trained(tmp_path), num_partitions=1, overflow_margin=400, overflow_resolution_target=0.5, overflow_policy=policy
    )
    with serving(config, cluster) as server:
        load(server)
        assert server.volatile is not None
        assert server.volatile.count(FULL) == 200
        assert cluster_client.hlen(redis_key(FULL, 0, TIMES)) == (200 if policy == "evict_oldest" else 0)


def test_the_rows_used_last_stay(tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster) -> None:
    config = configured(
        trained(tmp_path, 100),
        num_partitions=1,
        overflow_margin=100,
        overflow_resolution_target=0.5,
        model_gpucache=False,
    )
    with serving(config, cluster) as server:
        load(server)
        old = {struct.pack("<q", key): struct.pack("<q", 1_000_000 + 1000 * key) for key in range(100)}
        cluster_client.hset(redis_key(FULL, 0, TIMES), mapping=old)
        server.lookup(TABLE, np.arange(20))
        server.settle()
        server.update(TABLE, np.array([ABSENT]), row_of(np.array([ABSENT])))
        left = {struct.unpack("<q", key)[0] for key in cluster_client.hkeys(redis_key(FULL, 0, ROWS))}
    assert left == {*range(20), *range(71, 100), ABSENT}


def test_evicted_rows_come_back_from_rocksdb(
    tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster
) -> None:
    with serving(configured(trained(tmp_path), tmp_path / "rocks"), cluster) as server:
        load(server)
        server.lookup(TABLE, np.arange(10))
        server.settle()
        server.evict(TABLE, np.array([3, 4]))
        assert in_redis(cluster_client, 3) is None
        assert in_redis(cluster_client, 5) is not None
        np.testing.assert_array_equal(server.lookup(TABLE, np.arange(10)), row_of(np.arange(10)))
        assert server.statistics()[TABLE].rocksdb == 2
        server.evict(TABLE)
        assert server.volatile is not None
        assert server.volatile.count(FULL) == 0
        np.testing.assert_array_equal(server.lookup(TABLE, np.arange(10)), row_of(np.arange(10)))


def test_an_update_is_in_every_tier_when_it_returns(
    tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster
) -> None:
    keys = np.array([5, ABSENT])
    with serving(configured(trained(tmp_path), tmp_path / "rocks"), cluster) as server:
        load(server)
        server.lookup(TABLE, keys)
        server.settle()
        server.update(TABLE, keys, row_of(keys, 1))
        np.testing.assert_array_equal(server.lookup(TABLE, keys), row_of(keys, 1))
        assert in_redis(cluster_client, 5) == row_of(keys, 1)[0].tobytes()
        rows = np.zeros((2, DIM), np.float32)
        assert server.persistent is not None
        assert server.persistent.fetch(FULL, keys, rows).all()
        np.testing.assert_array_equal(rows, row_of(keys, 1))


def test_of_a_key_that_is_updated_twice_at_once_the_last_row_counts(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    with serving(configured(trained(tmp_path)), cluster) as server:
        load(server)
        server.update(TABLE, np.array([5, 5]), np.concatenate([row_of(np.array([5]), v) for v in (1, 2)]))
        np.testing.assert_array_equal(server.lookup(TABLE, np.array([5])), row_of(np.array([5]), 2))


def test_updates_reach_other_servers_within_a_second(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    keys = np.arange(300)
    config = configured(trained(tmp_path), tmp_path / "rocks")
    elsewhere = configured(tmp_path / "dlrm0_sparse.model", tmp_path / "rocks-2")
    with serving(config, cluster) as server, serving(elsewhere, cluster) as other:
        load(server), load(other)
        other.lookup(TABLE, keys)
        other.settle()
        server.update(TABLE, keys, row_of(keys, 1))
        assert eventually(lambda: bool((other.lookup(TABLE, keys) == row_of(keys, 1)).all()), 1.0)
        other.evict(TABLE)  # rows now come from its RocksDB
        assert eventually(lambda: bool((other.lookup(TABLE, keys) == row_of(keys, 1)).all()), 1.0)
        assert other.statistics()[TABLE].rocksdb >= 300


def test_updates_from_while_a_server_was_away_reach_its_rocksdb(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    keys = np.arange(300)
    away = configured(trained(tmp_path), tmp_path / "rocks")
    with serving(away, cluster) as server:
        load(server)
    with serving(configured(tmp_path / "dlrm0_sparse.model"), cluster) as other:
        other.update(TABLE, keys, row_of(keys, 1))
    with serving(away, cluster) as server:
        assert eventually(lambda: bool(server.follower and server.follower.applied[FULL] >= 300))
        server.evict(TABLE)
        np.testing.assert_array_equal(server.lookup(TABLE, keys), row_of(keys, 1))


def seldom(config: Config) -> Config:
    """The same configuration; updates are read when a test asks for it, and not by themselves."""
    source = config.update_source.model_copy(update={"poll_timeout_ms": 3_600_000})
    return config.model_copy(update={"update_source": source})


def test_any_number_of_updates_from_while_a_server_was_away_is_read_at_once(
    tmp_path: Path, cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "READ_ENTRIES", 3)
    keys = np.array([5])
    away = seldom(configured(trained(tmp_path), tmp_path / "rocks"))
    with serving(away, cluster) as server:
        load(server)
    with serving(configured(tmp_path / "dlrm0_sparse.model"), cluster) as other:
        for version in range(1, 12):
            other.update(TABLE, keys, row_of(keys, version))
    with serving(away, cluster) as server:
        assert server.follower is not None
        server.follower.catch_up()
        server.evict(TABLE)
        np.testing.assert_array_equal(server.lookup(TABLE, keys), row_of(keys, 11))


def test_updates_from_before_a_table_was_loaded_anew_do_not_come_back(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    keys = np.arange(50)
    config = seldom(configured(trained(tmp_path), tmp_path / "rocks"))
    with serving(config, cluster) as server:
        load(server)
        with serving(configured(tmp_path / "dlrm0_sparse.model"), cluster) as other:
            other.update(TABLE, keys, row_of(keys, 1))
        load(server, again=True)
        for _ in range(2):
            assert server.follower is not None
            server.follower.catch_up()
            server.evict(TABLE)
            np.testing.assert_array_equal(server.lookup(TABLE, keys), row_of(keys))
    with serving(config, cluster) as server:
        assert server.follower is not None
        server.follower.catch_up()
        server.evict(TABLE)
        np.testing.assert_array_equal(server.lookup(TABLE, keys), row_of(keys))


def test_a_copy_from_rocksdb_does_not_replace_a_newer_row_in_redis(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    keys = np.array([3, ABSENT])
    with serving(configured(trained(tmp_path)), cluster) as server:
        load(server)
        server.update(TABLE, keys[:1], row_of(keys[:1], 1))
        assert server.volatile is not None
        server.volatile.insert(FULL, keys, row_of(keys), absent_only=True)
        server.tables[TABLE].cache.clear()
        found = server.lookup(TABLE, keys)
    np.testing.assert_array_equal(found, np.concatenate([row_of(keys[:1], 1), row_of(keys[1:])]))


def test_long_lookups_are_asked_for_in_pieces(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    keys = np.random.default_rng(1).permutation(1000)
    with serving(configured(trained(tmp_path), max_get_batch_size=7, model_gpucache=False), cluster) as server:
        load(server)
        np.testing.assert_array_equal(server.lookup(TABLE, keys), row_of(keys))


@pytest.mark.parametrize("newer", [0, 100], ids=["nothing left", "newer ones left"])
def test_who_missed_too_much_reads_whole_partitions_once(
    tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster, newer: int
) -> None:
    keys = np.arange(1000)
    away = seldom(configured(trained(tmp_path), tmp_path / "rocks"))
    with serving(away, cluster) as server:
        load(server)
        server.update(TABLE, keys[:50], row_of(keys[:50], 1))
    with serving(configured(tmp_path / "dlrm0_sparse.model"), cluster) as other:
        other.update(TABLE, keys, row_of(keys, 2))
        for partition in range(8):
            cluster_client.xtrim(redis_key(FULL, partition, UPDATES), maxlen=0)
        if newer:
            other.update(TABLE, keys[:newer], row_of(keys[:newer], 3))
    expected = np.concatenate([row_of(keys[:newer], 3), row_of(keys[newer:], 2)])
    for read in (1000, 0):  # the next start continues from there
        with serving(away, cluster) as server:
            assert server.follower is not None
            for _ in range(2):
                server.follower.catch_up()
                assert server.follower.applied[FULL] == read
            rows = np.zeros((1000, DIM), np.float32)
            assert server.persistent is not None
            assert server.persistent.fetch(FULL, keys, rows).all()
            np.testing.assert_array_equal(rows, expected)


def test_a_table_whose_updates_are_filtered_out_is_changed_here_alone(
    tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster
) -> None:
    with serving(configured(trained(tmp_path), update_filters=["other"]), cluster) as server:
        load(server)
        server.update(TABLE, np.array([5]), row_of(np.array([5]), 1))
        np.testing.assert_array_equal(server.lookup(TABLE, np.array([5])), row_of(np.array([5]), 1))
    assert not any(cluster_client.exists(redis_key(FULL, partition, UPDATES)) for partition in range(8))


@pytest.mark.parametrize(
    ("keys", "rows", "reason"),
    [
        (np.array([1.0]), row_of(np.array([1])), r"keys of dlrm\.sparse_embedding0 are int64\[n\], not float64\[1\]"),
        (np.array([[1]]), row_of(np.array([1])), r"not int64\[1, 1\]"),
        (np.array([1, 2]), row_of(np.array([1])), r"are float32\[2, 8\], not float32\[1, 8\]"),
        (np.array([1], np.uint64), row_of(np.array([1])), r"not uint64\[1\]"),
        (np.array([1]), np.full((1, DIM), np.nan, np.float32), "not finite"),
        (np.array([1]), np.full((1, DIM), -np.inf, np.float32), "not finite"),
        (np.array([1]), np.full((1, DIM), 1), r"not int64\[1, 8\]"),
    ],
)
def test_wrong_updates_are_refused(
    tmp_path: Path, cluster: EmbeddedCluster, keys: np.ndarray, rows: np.ndarray, reason: str
) -> None:
    with serving(configured(trained(tmp_path)), cluster) as server, pytest.raises(DataError, match=reason):
        server.update(TABLE, keys, rows)


def test_an_unknown_table_is_answered_with_those_there_are(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    with (
        serving(configured(trained(tmp_path)), cluster) as server,
        pytest.raises(DataError, match=r"no table 'other': the configuration has dlrm\.sparse_embedding0"),
    ):
        server.lookup("other", np.array([1]))


def test_without_any_tier_there_is_no_server(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="disables both volatile_db and persistent_db"):
        ParameterServer(configured(trained(tmp_path), type="disabled"), None)


def test_no_keys_are_no_rows(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    with serving(configured(trained(tmp_path)), cluster) as server:
        assert server.lookup(TABLE, np.zeros(0, np.int64)).shape == (0, DIM)
        server.update(TABLE, np.zeros(0, np.int64), np.zeros((0, DIM), np.float32))


def test_lookups_and_updates_side_by_side_never_give_an_older_row(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    """Once an update has returned, no lookup returns the old row, however fills and updates interleave."""
    import threading

    keys = np.arange(50)
    config = configured(trained(tmp_path), tmp_path / "rocks", cache_missed_embeddings=True, model_gpucacheper=0.03)
    with serving(config, cluster) as server:
        load(server)
        acknowledged, wrong, done = [0], [], threading.Event()

        def look() -> None:
            while not done.is_set():
                least = acknowledged[0]
                versions = (server.lookup(TABLE, keys) - row_of(keys))[:, 0] / 1000
                if (versions < least).any():
                    wrong.append((least, versions.min()))

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for version in range(1, 40):
            server.update(TABLE, keys, row_of(keys, version))
            acknowledged[0] = version
            if version % 5 == 0:
                server.evict(TABLE, keys[:10])
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_row_of_another_size_is_a_miss_and_counted(
    tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster
) -> None:
    with serving(configured(trained(tmp_path), tmp_path / "rocks"), cluster) as server:
        load(server)
        (partition,) = partitions(np.array([3]), 8)
        cluster_client.hset(redis_key(FULL, partition, ROWS), struct.pack("<q", 3), b"short")
        np.testing.assert_array_equal(server.lookup(TABLE, np.array([3, 4])), row_of(np.array([3, 4])))
        counts = server.statistics()[TABLE]
    assert (counts.malformed, counts.rocksdb, counts.redis) == (1, 1, 1)


def test_a_wrong_password_is_said_at_the_start(cluster: EmbeddedCluster) -> None:
    from redis_recsys.errors import StoreError

    with pytest.raises(StoreError, match="refuses the login"):
        Nodes(Access(tuple(cluster.addresses), password="wrong"))


def test_a_foreign_key_type_is_said(tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster) -> None:
    """A string where a hash should be: the rows are misses, not an exception in the middle of a request."""
    cluster_client.set(redis_key(FULL, 0, ROWS), "x")
    with serving(configured(trained(tmp_path), num_partitions=1), cluster) as server:
        assert (server.lookup(TABLE, np.array([3])) == 0.5).all()
        assert server.statistics()[TABLE].unreachable == 1
    assert isinstance(cluster_client.type(redis_key(FULL, 0, ROWS)), bytes)
    with pytest.raises(redis.ResponseError):
        cluster_client.hlen(redis_key(FULL, 0, ROWS))
