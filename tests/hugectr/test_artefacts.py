"""HugeCTR's files, byte by byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from redis_recsys.errors import DataError
from redis_recsys.hugectr import dense, graph, network, sparse
from redis_recsys.hugectr.network import DlrmShape

PUBLIC = DlrmShape(13, (7,) * 26, 128, (512, 256, 128), (1024, 1024, 512, 256, 1))
SMALL = DlrmShape(3, (5, 4, 6), 2, (4, 2), (3, 1))


@pytest.fixture
def weights() -> list[dense.Layer]:
    random = np.random.default_rng(0)
    return [
        (random.standard_normal(shape, np.float32), random.standard_normal(shape[1], np.float32))
        for shape in SMALL.layers()
    ]


def saved_by_hugectr(**changes: dict[str, Any]) -> dict[str, object]:
    """A network as HugeCTR's graph_to_json writes it: layers without names, other tensors, training layers and fields.

    ``changes`` are keyed by the names that layers have here.
    """
    fc = lambda name, below, width: {  # noqa: E731
        "type": "InnerProduct", "name": name, "bottom": below, "top": name, "fc_param": {"num_output": width}
    }  # fmt: skip
    layers: list[dict[str, Any]] = [
        {
            "name": "data",
            "type": "Data",
            "source": "./train/_file_list.txt",
            "check": "None",
            "label": {"top": "label", "label_dim": 1},
            "dense": {"top": "dense", "dense_dim": 3},
            "sparse": [{"top": "data1", "type": "DistributedSlot", "nnz_per_slot": 1, "slot_num": 3}],
        },
        {
            "type": "LocalizedSlotSparseEmbeddingHash",
            "name": "emb",
            "bottom": "data1",
            "top": "emb",
            "sparse_embedding_hparam": {"embedding_vec_size": 2, "combiner": "sum", "workspace_size_per_gpu_in_mb": 9},
            "optimizer": {"type": "SGD"},
        },
        fc("a", "dense", 4),
        {"type": "ReLU", "name": "ra", "bottom": "a", "top": "ra"},
        fc("b", "ra", 2),
        {"type": "ReLU", "name": "rb", "bottom": "b", "top": "rb"},
        {"type": "Interaction", "name": "i", "bottom": ["rb", "emb"], "top": "i"},
        fc("c", "i", 3),
        {"type": "ReLU", "name": "rc", "bottom": "c", "top": "rc"},
        fc("d", "rc", 1),
        {"type": "BinaryCrossEntropyLoss", "name": "loss", "bottom": ["d", "label"], "top": "loss"},
    ]
    layers = [changes.get(str(layer["name"]), layer) for layer in layers]
    return {"layers": [{key: value for key, value in layer.items() if key != "name"} for layer in layers]}


def test_the_public_graph_has_the_public_number_of_weights() -> None:
    assert PUBLIC.interaction == 480
    assert 4 * sum(i * o + o for i, o in PUBLIC.layers()) == 9_479_684  # bytes of the published _dense_20000.model


def test_a_network_comes_back_as_it_was_written(tmp_path: Path) -> None:
    network.write(tmp_path / "dlrm.json", PUBLIC)
    assert network.read(tmp_path / "dlrm.json") == PUBLIC


def test_a_network_saved_by_hugectr_is_read(tmp_path: Path) -> None:
    (tmp_path / "n.json").write_text(json.dumps(saved_by_hugectr()))
    assert network.read(tmp_path / "n.json") == DlrmShape(3, (0, 0, 0), 2, (4, 2), (3, 1))


def of(kind: str, bottom: object, top: str, **more: object) -> dict[str, Any]:
    """A layer."""
    return {"type": kind, "bottom": bottom, "top": top, **more}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ra": of("Sigmoid", "a", "ra")}, r"layer 4 of 11 \(Sigmoid\) reads 'a', which goes into Interaction|layer 3"),
        ({"i": of("Concat", ["rb", "emb"], "i")}, r"layer 7 of 11 \(Concat\) reads 'rb', which goes into Interaction"),
        ({"i": of("Interaction", ["emb", "rb"], "i")}, r"layer 7 of 11 \(Interaction\) reads \['emb', 'rb'\], not the"),
        ({"emb": of("ReLU", "data1", "emb")}, "0 embedding layers"),
        ({"d": of("InnerProduct", "rc", "d")}, r"layer 10 of 11 \(InnerProduct\) lacks fc_param.num_output"),
        ({"d": of("InnerProduct", "rc", "d", fc_param={"num_output": "1"})}, r"layer 10 .* '1', no whole"),
        (
            {"loss": of("MultiCrossEntropyLoss", ["d", "label"], "l")},
            r"layer 11 of 11 \(MultiCross.* or Binary",
        ),
        (
            {"b": of("InnerProduct", "a", "b", fc_param={"num_output": 2})},
            r"both layer 4 .* and layer 5 .* read 'a'",
        ),
        ({"rc": of("Dropout", "c", "rc")}, r"layer 9 of 11 \(Dropout\) reads 'c'"),
        ({"a": of("MLP", "dense", "a")}, r"layer 3 of 11 \(MLP\) reads 'dense', which goes into Interaction"),
        ({"ra": {"type": "ReLU", "top": "ra"}}, r"layer 4 of 11 \(ReLU\) lacks bottom"),
        ({"data": {"type": "Data", "dense": {"top": "dense"}}}, r"layer 1 of 11 \(Data\) lacks sparse"),
    ],
)
def test_another_graph_is_refused_with_its_reason(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    (tmp_path / "n.json").write_text(json.dumps(saved_by_hugectr(**changes)))
    with pytest.raises(DataError, match=reason):
        network.read(tmp_path / "n.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layers": 3}', '{"layers": []}', '{"layers": [{}]}'])
def test_a_file_that_is_no_network_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "n.json").write_text(text)
    with pytest.raises(DataError, match=r"n\.json"):
        network.read(tmp_path / "n.json")


def test_dense_weights_are_kernels_by_rows_and_biases(tmp_path: Path, weights: list[dense.Layer]) -> None:
    dense.write(tmp_path / "d", weights)
    found = (tmp_path / "d").read_bytes()
    kernel, bias = weights[0]
    assert found[: 4 * 12] == struct.pack("<12f", *[kernel[i, o] for i in range(3) for o in range(4)])
    assert found[4 * 12 : 4 * 16] == struct.pack("<4f", *bias)
    for ours, theirs in zip(dense.read(tmp_path / "d", SMALL), weights, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_dense_weights_of_another_network_are_refused(tmp_path: Path, weights: list[dense.Layer]) -> None:
    dense.write(tmp_path / "d", weights[:-1])
    with pytest.raises(DataError, match=r"the network has 60 weights"):
        dense.read(tmp_path / "d", SMALL)
    with pytest.raises(DataError, match="No such file"):
        dense.read(tmp_path / "none", SMALL)


def test_a_sparse_folder_is_keys_and_rows(tmp_path: Path) -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    sparse.write(tmp_path / "s", [(np.array([5, -1]), rows[:2]), (np.array([1 << 40]), rows[2:])])
    assert (tmp_path / "s" / "key").read_bytes() == struct.pack("<3q", 5, -1, 1 << 40)
    assert (tmp_path / "s" / "emb_vector").read_bytes() == struct.pack("<6f", *range(6))
    table = sparse.SparseModel(tmp_path / "s", 2)
    assert [(keys.tolist(), block.tolist()) for keys, block in table.blocks(2)] == [
        ([5, -1], [[0, 1], [2, 3]]),
        ([1 << 40], [[4, 5]]),
    ]


def test_a_truncated_or_foreign_sparse_folder_is_refused(tmp_path: Path) -> None:
    sparse.write(tmp_path / "s", [(np.arange(3), np.zeros((3, 2), np.float32))])
    with pytest.raises(DataError, match=r"emb_vector has 24 bytes, and 3 keys of 4 float32 need 48: it is truncated"):
        sparse.SparseModel(tmp_path / "s", 4)
    (tmp_path / "s" / "emb_vector").write_bytes(b"\0" * 23)
    with pytest.raises(DataError, match=r"emb_vector has 23 bytes"):
        sparse.SparseModel(tmp_path / "s", 2)
    (tmp_path / "s" / "key").write_bytes(b"\0" * 23)
    with pytest.raises(DataError, match="no whole number of 8-byte keys"):
        sparse.SparseModel(tmp_path / "s", 2)
    (tmp_path / "s" / "key").unlink()
    with pytest.raises(DataError, match="key: No such file"):
        sparse.SparseModel(tmp_path / "s", 2)


def test_an_empty_table_is_a_table(tmp_path: Path) -> None:
    sparse.write(tmp_path / "s", [])
    assert len(sparse.SparseModel(tmp_path / "s", 8)) == 0


def test_a_failed_write_leaves_the_old_table(tmp_path: Path) -> None:
    sparse.write(tmp_path / "s", [(np.arange(3), np.zeros((3, 2), np.float32))])
    with pytest.raises(DataError, match="2 keys and 1 rows"):
        sparse.write(tmp_path / "s", [(np.arange(2), np.zeros((1, 2), np.float32))])
    assert len(sparse.SparseModel(tmp_path / "s", 2)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_the_graph_computes_what_the_layers_say(weights: list[dense.Layer]) -> None:
    random = np.random.default_rng(1)
    features = random.standard_normal((5, 3), np.float32)
    embeddings = random.standard_normal((5, 3, 2), np.float32)
    session = onnxruntime.InferenceSession(graph.build(SMALL, weights).SerializeToString())
    (found,) = session.run(None, {graph.DENSE: features, graph.EMBEDDINGS: embeddings})
    for sample, expected in enumerate(found):
        x = features[sample].astype(np.float64)
        for kernel, bias in weights[:2]:
            x = np.maximum(x @ kernel + bias, 0)
        vectors = [x, *embeddings[sample].astype(np.float64)]
        pairs = [vectors[i] @ vectors[j] for i in range(4) for j in range(i)]
        y = np.concatenate([x, pairs, [0.0]])
        y = np.maximum(y @ weights[2][0] + weights[2][1], 0) @ weights[3][0] + weights[3][1]
        assert expected == pytest.approx(1 / (1 + np.exp(-y[0])), abs=1e-6)
