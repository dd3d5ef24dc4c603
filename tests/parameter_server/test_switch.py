"""Switching from HugeCTR: its files and tables are served, without changing any of them."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.cluster import RedisCluster
from rocksdict import DBCompressionType, Options, Rdict

from redis_recsys.dlrm.inference import DlrmModel, Samples
from redis_recsys.embedded.redis_cluster import EmbeddedCluster
from redis_recsys.errors import ConfigError, DataError
from redis_recsys.hugectr import dense, sparse
from redis_recsys.hugectr.network import DlrmShape
from redis_recsys.parameter_server.layout import partitions
from redis_recsys.parameter_server.loading import load
from redis_recsys.parameter_server.server import ParameterServer
from tests.support.published_ps import PUBLISHED
from tests.support.tables import settings_of

SHAPE = DlrmShape(2, (3, 3), 4, (4,), (1,))
ROWS = np.arange(24, dtype=np.float32).reshape(6, 4) / 24


def left_by_hugectr(folder: Path, cluster: EmbeddedCluster, **changes: object) -> Path:
    """Files of a trained model and the published ``ps.json``, with this machine's paths and addresses."""
    fc = {"type": "InnerProduct", "fc_param": {"num_output": 4}, "bottom": "dense", "top": "fc1", "name": "fc1"}
    top = {"type": "InnerProduct", "fc_param": {"num_output": 1}, "bottom": "i", "top": "fc2", "name": "fc2"}
    hparam = {"embedding_vec_size": 4, "combiner": "sum", "workspace_size_per_gpu_in_mb": 1}
    sparse_input = {"top": "data1", "type": "LocalizedSlot", "max_feature_num_per_sample": 2, "slot_num": 2}
    layers = [
        {"name": "data", "type": "Data", "dense": {"top": "dense", "dense_dim": 2}, "sparse": [sparse_input]},
        {"name": "e", "type": "LocalizedSlotSparseEmbeddingHash", "bottom": "data1", "top": "e",
         "sparse_embedding_hparam": hparam},
        fc,
        {"name": "r", "type": "ReLU", "bottom": "fc1", "top": "r"},
        {"name": "i", "type": "Interaction", "bottom": ["r", "e"], "top": "i"},
        top,
        {"name": "s", "type": "Sigmoid", "bottom": "fc2", "top": "s"},
    ]  # fmt: skip
    (folder / "dlrm.json").write_text(json.dumps({"layers": layers}))
    weights = [np.ones(shape, np.float32) / 8 for shape in SHAPE.layers()]
    dense.write(folder / "dense", [(kernel, np.zeros(kernel.shape[1], np.float32)) for kernel in weights])
    document = json.loads(json.dumps(PUBLISHED))
    document["volatile_db"]["address"] = ",".join(f"{host}:{port}" for host, port in cluster.addresses)
    document["volatile_db"]["password"] = cluster.password
    model = document["models"][0]
    files = {"dense_file": str(folder / "dense"), "network_file": str(folder / "dlrm.json")}
    shapes = {"embedding_vecsize_per_table": [4], "slot_num": 2, "maxnum_des_feature_per_sample": 2}
    model |= files | shapes | {"sparse_files": [str(folder / "gone.model")]} | changes
    (folder / "ps.json").write_text(json.dumps(document))
    return folder / "ps.json"


def in_the_cluster(client: RedisCluster) -> None:
    """The table, written as HPS does it, byte by byte."""
    keys = np.arange(6)
    for key, partition, row in zip(keys.tolist(), partitions(keys, 8).tolist(), ROWS, strict=True):
        name = f"hps_et{{hps_et.dlrm.sparse_embedding0/p{partition}}}"
        client.hset(f"{name}v", struct.pack("<q", key), struct.pack("<4f", *row))
        client.hset(f"{name}t", struct.pack("<q", key), struct.pack("<q", 1_669_000_000))


def expected(features: np.ndarray, keys: np.ndarray) -> np.ndarray:
    x = features.sum(axis=1, keepdims=True).repeat(4, axis=1) / 8
    vectors = np.concatenate([x[:, None], ROWS[keys]], axis=1)
    gram = vectors @ vectors.transpose(0, 2, 1)
    logit = (x.sum(axis=1) + gram[:, 1, 0] + gram[:, 2, 0] + gram[:, 2, 1]) / 8
    return 1 / (1 + np.exp(-logit))


def test_a_deployment_is_served_from_what_lies_in_the_cluster(
    tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster
) -> None:
    in_the_cluster(cluster_client)
    features, keys = np.array([[1, 2], [0.5, 0]], np.float32), np.array([[0, 4], [2, 5]])
    before = {key: cluster_client.hgetall(key) for key in cluster_client.keys("*", target_nodes="primaries")}
    settings = settings_of(cluster)
    settings = settings.model_copy(update={"redis": settings.redis.model_copy(update={"host": None, "password": None})})
    with ParameterServer.open(left_by_hugectr(tmp_path, cluster), settings) as server:
        model = DlrmModel(server, "dlrm")
        (found,) = model.predict([Samples(features.ravel(), keys.ravel(), np.arange(5, dtype=np.int32))])
    np.testing.assert_allclose(found, expected(features, keys), atol=1e-6)
    after = {key: cluster_client.hgetall(key) for key in cluster_client.keys("*", target_nodes="primaries")}
    assert {key: value for key, value in after.items() if key.endswith(b"v")} == {
        key: value for key, value in before.items() if key.endswith(b"v")
    }


def test_a_rocksdb_folder_of_hps_is_read(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    """Written with the options of HPS: for point lookups, compressed."""
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.optimize_for_point_lookup(8)
    options.set_compression_type(DBCompressionType.snappy())
    name = "hps_et.dlrm.sparse_embedding0"
    database = Rdict(str(tmp_path / "rocks"), options, {name: options})
    table = database.get_column_family(name)
    for key, row in enumerate(ROWS):
        table[struct.pack("<q", key)] = struct.pack("<4f", *row)
    table.flush()
    table.close()
    database.close()
    ps = left_by_hugectr(tmp_path, cluster)
    document = json.loads(ps.read_text())
    document |= {"volatile_db": {"type": "disabled"}, "persistent_db": {"type": "rocks_db", "path": "rocks"}}
    document["models"][0]["hit_rate_threshold"] = 1.1
    ps.write_text(json.dumps(document))
    with ParameterServer.open(ps, settings_of(cluster)) as server:
        np.testing.assert_array_equal(server.lookup("dlrm.sparse_embedding0", np.arange(6)), ROWS)


def short_keys(client: RedisCluster) -> None:
    """Keys as HPS writes them with supportlonglong false."""
    for key, row in enumerate(ROWS):
        client.hset("hps_et{hps_et.dlrm.sparse_embedding0/p3}v", struct.pack("<I", key), struct.pack("<4f", *row))


def short_rows(client: RedisCluster) -> None:
    """Rows of another dimension than in ps.json."""
    (partition,) = partitions(np.array([5]), 8).tolist()
    client.hset(
        f"hps_et{{hps_et.dlrm.sparse_embedding0/p{partition}}}v", struct.pack("<q", 5), struct.pack("<2f", 1, 2)
    )


def in_sixteen_partitions(client: RedisCluster) -> None:
    keys = np.arange(40)
    for key, partition in zip(keys.tolist(), partitions(keys, 16).tolist(), strict=True):
        name = f"hps_et{{hps_et.dlrm.sparse_embedding0/p{partition}}}v"
        client.hset(name, struct.pack("<q", key), struct.pack("<4f", *ROWS[0]))


@pytest.mark.parametrize(
    ("fill", "reason"),
    [
        (
            short_keys,
            r"Redis has keys of 4 bytes in hps_et\.dlrm\.sparse_embedding0, not of 8: .*supportlonglong false",
        ),
        (short_rows, r"Redis has rows of 8 bytes in hps_et\.dlrm\.sparse_embedding0, and .* says 4 float32, 16 bytes"),
        (in_sixteen_partitions, r"Redis has key \d+ of .* in partition \d, and with num_partitions 8 it belongs in"),
    ],
)
def test_a_table_in_the_cluster_that_has_another_form_is_refused_until_it_is_loaded_anew(
    tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster, fill: Any, reason: str
) -> None:
    fill(cluster_client)
    ps = left_by_hugectr(tmp_path, cluster)
    with (
        ParameterServer.open(ps, settings_of(cluster)) as server,
        pytest.raises(DataError, match=reason) as caught,
    ):
        load(server)
    assert "\n" not in str(caught.value)
    sparse.write(tmp_path / "gone.model", [(np.arange(6), ROWS)])
    with ParameterServer.open(ps, settings_of(cluster)) as server:
        with pytest.raises(DataError, match=reason):
            load(server)
        assert load(server, again=True) == {"dlrm.sparse_embedding0": 6}
        assert load(server) == {"dlrm.sparse_embedding0": 0}
        names = [key.split(b"/p")[1] for key in cluster_client.keys("*}v", target_nodes="primaries")]
        assert max(int(name[:-2]) for name in names) < 8
        np.testing.assert_array_equal(server.lookup("dlrm.sparse_embedding0", np.arange(6)), ROWS)


@pytest.mark.parametrize(("form", "dim", "reason"), [("<I", 4, "keys of 4 bytes"), ("<q", 2, "rows of 8 bytes")])
def test_a_rocksdb_folder_that_has_another_form_is_refused(
    tmp_path: Path, cluster: EmbeddedCluster, form: str, dim: int, reason: str
) -> None:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    name = "hps_et.dlrm.sparse_embedding0"
    with contextlib.closing(Rdict(str(tmp_path / "rocks"), options, {name: options})) as database:
        table = database.get_column_family(name)
        table[struct.pack(form, 5)] = struct.pack(f"<{dim}f", *range(dim))
        table.flush()
        table.close()
    ps = left_by_hugectr(tmp_path, cluster)
    document = json.loads(ps.read_text())
    document |= {"volatile_db": {"type": "disabled"}, "persistent_db": {"type": "rocks_db", "path": "rocks"}}
    ps.write_text(json.dumps(document))
    with (
        ParameterServer.open(ps, settings_of(cluster)) as server,
        pytest.raises(DataError, match=f"RocksDB in .*rocks has {reason} in hps_et"),
    ):
        load(server)


def test_a_node_that_is_away_does_not_keep_a_table_from_being_looked_at(
    tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster
) -> None:
    in_the_cluster(cluster_client)
    with ParameterServer.open(left_by_hugectr(tmp_path, cluster), settings_of(cluster)) as server:
        cluster.kill(1)
        assert load(server) == {}


def test_dumped_tables_are_hugectrs_folders(
    tmp_path: Path, cluster: EmbeddedCluster, cluster_client: RedisCluster
) -> None:
    from redis_recsys.parameter_server.remote import Remote

    in_the_cluster(cluster_client)
    with Remote.open(left_by_hugectr(tmp_path, cluster), settings_of(cluster)) as remote:
        assert remote.dump("dlrm.sparse_embedding0", tmp_path / "out.model") == 6
    table = sparse.SparseModel(tmp_path / "out.model", 4)
    order = np.argsort(table.keys)
    assert table.keys[order].tolist() == list(range(6))
    np.testing.assert_array_equal(table.rows[order], ROWS)


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        (
            {"embedding_vecsize_per_table": [8]},
            DataError,
            r"vecsize_per_table in ps.json says 8, .* has embeddings of 4",
        ),
        ({"slot_num": 3}, DataError, r"slot_num in ps.json says 3, .*dlrm\.json has slots: 2: one of them belongs to"),
        ({"label_dim": 2}, DataError, "label_dim in ps.json says 2, .* has labels: 1"),
        ({"maxnum_des_feature_per_sample": 1}, DataError, "maxnum_des_feature_per_sample .* 1, .* dense features: 2"),
        ({"maxnum_catfeature_query_per_table_per_sample": [1]}, DataError, "per_sample in ps.json says 1, .* each: 2"),
        ({"network_file": "gone.json"}, DataError, r"no network file at .*gone\.json"),
        (
            {
                "sparse_files": ["a", "b"],
                "embedding_vecsize_per_table": [4, 4],
                "maxnum_catfeature_query_per_table_per_sample": [2, 2],
            },
            ConfigError,
            "has 2 tables",
        ),
    ],
)
def test_what_does_not_fit_together_is_said(
    tmp_path: Path, cluster: EmbeddedCluster, changes: dict[str, object], error: type[Exception], reason: str
) -> None:
    ps = left_by_hugectr(tmp_path, cluster, **changes)
    with ParameterServer.open(ps, settings_of(cluster)) as server, pytest.raises(error, match=reason):
        DlrmModel(server, "dlrm")


def test_an_unknown_model_is_answered_with_those_there_are(tmp_path: Path, cluster: EmbeddedCluster) -> None:
    with (
        ParameterServer.open(left_by_hugectr(tmp_path, cluster), settings_of(cluster)) as server,
        pytest.raises(ConfigError, match="no model 'wdl', but dlrm"),
    ):
        DlrmModel(server, "wdl")
