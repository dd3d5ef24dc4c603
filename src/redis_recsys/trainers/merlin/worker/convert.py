"""Conversion of SavedModels to ONNX, with one input per feature, and TensorFlow's output on real rows.

A SavedModel is a program: it is loaded only here, in the Merlin environment. It runs by its serving signature, so
models of older Merlin releases, whose Python classes have changed since, work too.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import tensorflow as tf
import tf2onnx

from ...worker_events import timed
from ..worker_job import piece

MODELS = ("query_tower", "candidate_tower", "dlrm")
OPSET = 17
SAMPLE = 257


def convert(export: Path, target: Path) -> None:
    """Write ``NAME.onnx`` and ``NAME.npz`` to ``target`` for each model in an export.

    The ``.npz`` holds input arrays under the features' names and the output as ``output``. Rows are the first of
    the exported feature tables; for the ranker, user i is paired with item i.
    """
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    rows = _rows(export)
    for name in MODELS:
        path = piece(export, name)
        if (path / "saved_model.pb").exists():
            with timed(f"convert {name}"):
                _convert(path, rows, target / name)


def _rows(export: Path) -> pd.DataFrame:
    users = pd.read_parquet(piece(export, "user_features.parquet")).head(SAMPLE).reset_index(drop=True)
    items = pd.read_parquet(piece(export, "item_features.parquet")).reset_index(drop=True)
    items = items.iloc[np.arange(len(users)) % len(items)].reset_index(drop=True)
    return pd.concat([users, items], axis=1)


def _convert(path: Path, rows: pd.DataFrame, target: Path) -> None:
    model = tf.saved_model.load(str(path))
    signature = model.signatures["serving_default"]
    specs = dict(sorted(signature.structured_input_signature[1].items()))
    outputs = list(signature.structured_outputs)
    if len(outputs) != 1:
        raise SystemExit(f"{path} has {len(outputs)} outputs ({', '.join(outputs)}): a model with one is expected")

    @tf.function(
        autograph=False, input_signature=[tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in specs.items()]
    )
    def call(*values: tf.Tensor) -> tf.Tensor:
        return signature(**dict(zip(specs, values, strict=True)))[outputs[0]]

    converted, _ = tf2onnx.convert.from_function(call, call.input_signature, opset=OPSET)
    for value, name in zip(list(converted.graph.input), specs, strict=True):
        _rename(converted.graph, value.name, name)
    _rename(converted.graph, converted.graph.output[0].name, "output")
    read = _remove_unread(converted.graph)
    sample = _sample({name: specs[name] for name in read}, rows, path)
    # TensorFlow needs a value for every input of the signature, but uses only those that are read
    unread = {
        name: np.zeros((len(rows), *(size or 1 for size in spec.shape[1:])), spec.dtype.as_numpy_dtype)
        for name, spec in specs.items()
        if name not in read
    }
    try:
        answer = signature(**{name: tf.constant(values) for name, values in (unread | sample).items()})[outputs[0]]
    except tf.errors.InvalidArgumentError as error:  # an id beyond an embedding table
        where = " ".join(f"{error}".split())
        raise SystemExit(f"{path} cannot take the rows of the feature tables, of another run? {where[:300]}") from error
    onnx.save(converted, f"{target}.onnx")
    np.savez(f"{target}.npz", output=answer.numpy(), **sample)


def _remove_unread(graph: onnx.GraphProto) -> list[str]:
    """Remove inputs whose values no node reads, and return the names of the others.

    The signature of a Keras model holds every column of its training batches: the public notebook's include the raw
    ids, which are in no schema. If a node takes only the number of rows from an input, another input of the same rank
    replaces it.
    """
    read = {name for node in graph.node if node.op_type != "Shape" for name in node.input}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.input}
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in ranks and node.input[0] not in read:
            same = (name for name in ranks if name in read and ranks[name] == ranks[node.input[0]])
            node.input[0] = next(same, node.input[0])
    read = {name for node in graph.node for name in node.input}
    kept = [value for value in graph.input if value.name in read]
    del graph.input[:]
    graph.input.extend(kept)
    return [value.name for value in kept]


def _sample(specs: dict[str, tf.TensorSpec], rows: pd.DataFrame, path: Path) -> dict[str, Any]:
    """Rows as inputs of the model, one value per row and input."""
    suffixes = ("__values", "__offsets")  # of the two columns that Merlin makes from a list column
    ragged = {name.rsplit("__", 1)[0] for name in specs if name not in rows and name.endswith(suffixes)}
    lists = ragged | {name for name, spec in specs.items() if spec.shape[1:].num_elements() != 1}
    if lists:
        raise SystemExit(
            f"{path} reads {', '.join(sorted(lists))} as lists: only columns of one value per row can be carried over"
        )
    missing = [name for name in specs if name not in rows]
    if missing:
        raise SystemExit(
            f"{path} reads {', '.join(missing)}, which neither user_features.parquet nor item_features.parquet has"
        )
    return {
        name: rows[name].to_numpy(spec.dtype.as_numpy_dtype).reshape(-1, *spec.shape[1:])
        for name, spec in specs.items()
    }


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for value in (*graph.input, *graph.output):
        if value.name == old:
            value.name = new
