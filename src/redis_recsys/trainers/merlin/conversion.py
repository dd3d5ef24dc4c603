"""The bundle's ONNX files from converted models, compared with TensorFlow's output on real rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from ...bundle.bundle import RANKER, tower_file
from ...bundle.models import Ranker, Tower, session
from ...dataset.entities import Entities
from ...dataset.schema import SIDES, Schema, Side
from ..onnx_check import difference
from .wiring import Wire, lookup_tower, own_ids, packed_ranker, packed_tower

Packed = tuple[np.ndarray, np.ndarray]  # int32[n, C], float32[n, F]
MODEL = "TensorFlow"
EQUAL_LENGTHS = 1e-4  # relative; smaller differences of length are rounding
ROOM = 1.05  # margin over the longest item: a root near 0 would amplify rounding, and new items may be longer


@dataclass(frozen=True)
class Converted:
    """A model converted by the worker.

    Attributes:
        name: name of the model.
        model: ONNX model with one input per feature and the output ``output``.
        inputs: values of real rows, by feature.
        output: float32[n, ...], TensorFlow's output for them.
    """

    name: str
    model: onnx.ModelProto
    inputs: dict[str, np.ndarray]
    output: np.ndarray

    @classmethod
    def read(cls, folder: Path, name: str) -> Converted:
        """Read the worker's files in ``folder``."""
        with np.load(folder / f"{name}.npz") as arrays:
            rows = dict(arrays)
        inputs = {feature: values for feature, values in rows.items() if feature != "output"}
        return cls(name, onnx.load(folder / f"{name}.onnx"), inputs, rows["output"])

    def run(self, wires: Mapping[str, Wire], entities: Entities) -> np.ndarray:
        """Output float32[n, d] of the model for entities of a bundle."""
        feeds = {}
        for name, value in self.inputs.items():
            wire = wires[name]
            matrix = entities.categorical if wire.ids is not None else entities.numeric
            column = matrix[:, wire.slot] if wire.ids is None else wire.ids[matrix[:, wire.slot]]
            feeds[name] = column.astype(value.dtype).reshape(-1, *value.shape[1:])
        output: np.ndarray = session(self.model).run(["output"], feeds)[0]
        return output

    def packed(self, wires: Mapping[str, Wire], schema: Schema) -> tuple[dict[Side, Packed], np.ndarray]:
        """Return the real rows packed, by side, and bool[n] that marks the rows a bundle can express."""
        count = len(self.output)
        rows: dict[Side, Packed] = {}
        for side in SIDES:
            categorical, numeric = schema.widths(side)
            rows[side] = np.zeros((count, categorical), np.int32), np.zeros((count, numeric), np.float32)
        known = np.ones(count, bool)
        for name, value in self.inputs.items():
            wire, flat = wires[name], value.reshape(-1)
            if wire.ids is None:
                rows[wire.side][1][:, wire.slot] = flat
            else:
                own = own_ids(wire.ids, flat)
                rows[wire.side][0][:, wire.slot] = np.maximum(own, 0)
                known &= own >= 0
        return rows, known


def write_models(
    folder: Path,
    schema: Schema,
    wires: Mapping[str, Wire],
    query: Converted,
    candidate: Converted | None,
    dlrm: Converted,
    vectors: np.ndarray,
) -> dict[str, float]:
    """Write ``user_tower.onnx``, ``item_tower.onnx`` and ``ranker.onnx``.

    Args:
        folder: folder of the bundle.
        schema: schema of the bundle.
        wires: wires of all inputs of all models.
        query, candidate, dlrm: converted models; without a candidate tower, items are looked up in ``vectors``.
        vectors: float32[items or item vocabulary, d], output of Merlin's item tower; the longest one sets the scale,
            and without a candidate tower row i is for the item id i.

    Returns:
        Largest absolute difference from TensorFlow on real rows, by file.

    Raises:
        BundleError: a difference is above 1e-5, or a model cannot be packed.
    """
    lengths = np.linalg.norm(vectors, axis=1)
    equal = np.ptp(lengths[lengths > 0]) <= EQUAL_LENGTHS * lengths.max()
    scale = None if equal else float(lengths.max()) * ROOM
    differences = {}
    towers: dict[Side, Converted | None] = {"user": query, "item": candidate}
    for side, tower in towers.items():
        path = folder / tower_file(side)
        if tower is None:
            slot = schema.slots(schema.id_column("item")).start
            onnx.save(lookup_tower(unit(vectors, "item", scale), slot, schema.widths("item")), path)
            continue
        own = {name: wires[name] for name in tower.inputs}
        onnx.save(packed_tower(tower.model, own, schema.widths(side), side, scale), path)
        rows, known = tower.packed(wires, schema)
        expected = unit(tower.output, side, scale)
        differences[path.name] = difference(path, Tower(path).embed(*rows[side])[known], expected[known], MODEL)
    path = folder / RANKER
    own = {name: wires[name] for name in dlrm.inputs}
    onnx.save(packed_ranker(dlrm.model, own, {side: schema.widths(side) for side in SIDES}, dlrm.inputs), path)
    rows, known = dlrm.packed(wires, schema)
    actual = Ranker(path)(*rows["user"], *(values[:, None] for values in rows["item"]))[:, 0]
    differences[path.name] = difference(path, actual[known], dlrm.output.reshape(-1)[known], MODEL)
    return differences


def unit(vectors: np.ndarray, side: Side, scale: float | None) -> np.ndarray:
    """Convert vectors float32[n, d] to unit vectors whose inner products keep the order (see ``wiring``)."""
    vectors = vectors.astype(np.float32)
    if scale is not None:
        vectors = vectors / np.float32(scale) if side == "item" else vectors
        rest = 1 - np.square(vectors).sum(axis=1, keepdims=True) if side == "item" else 0 * vectors[:, :1]
        vectors = np.concatenate([vectors, np.sqrt(np.maximum(rest, 0))], axis=1)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
