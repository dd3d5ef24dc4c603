"""Exported SavedModels as ONNX, one input per feature, with what TensorFlow answers on real rows beside them.

A SavedModel is a program: it is loaded here, in the Merlin environment, and nowhere else. It is run by its serving
signature, so models of older Merlin releases, whose Python classes have changed since, work too.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import tensorflow as tf
import tf2onnx

from .events import timed

MODELS = ("query_tower", "candidate_tower", "dlrm")
OPSET = 17
SAMPLE = 257


def convert(export: Path, target: Path) -> None:
    """Write ``NAME.onnx`` and ``NAME.npz`` to ``target`` for each model of an export that is there.

    The ``.npz`` holds input arrays under the features' names and the output as ``output``. Rows are the first of
    the exported feature tables; for the ranker, user i is paired with item i.
    """
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    rows = _rows(export)
    for name in MODELS:
        if (export / name / "saved_model.pb").exists():
            with timed(f"convert {name}"):
                _convert(export / name, rows, target / name)


def _rows(export: Path) -> pd.DataFrame:
    users = pd.read_parquet(export / "user_features.parquet").head(SAMPLE).reset_index(drop=True)
    items = pd.read_parquet(export / "item_features.parquet").reset_index(drop=True)
    items = items.iloc[np.arange(len(users)) % len(items)].reset_index(drop=True)
    return pd.concat([users, items], axis=1)


def _convert(path: Path, rows: pd.DataFrame, target: Path) -> None:
    model = tf.saved_model.load(str(path))
    signature = model.signatures["serving_default"]
    specs = dict(sorted(signature.structured_input_signature[1].items()))
    missing = [name for name in specs if name not in rows]
    if missing:
        raise SystemExit(
            f"{path} reads {', '.join(missing)}, which neither user_features.parquet nor item_features.parquet has"
        )
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
    onnx.save(converted, f"{target}.onnx")
    sample = {
        name: rows[name].to_numpy(spec.dtype.as_numpy_dtype).reshape(-1, *spec.shape[1:])
        for name, spec in specs.items()
    }
    answer = signature(**{name: tf.constant(values) for name, values in sample.items()})[outputs[0]]
    np.savez(f"{target}.npz", output=answer.numpy(), **sample)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for value in (*graph.input, *graph.output):
        if value.name == old:
            value.name = new
