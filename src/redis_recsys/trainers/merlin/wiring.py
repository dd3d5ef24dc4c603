"""Graph surgery: a model with one input per feature becomes one with the bundle's packed inputs.

A packed row holds the bundle's ids in slots. Two gathers precede each input of the model: one takes the slot from the
row, the other maps the bundle's ids to the model's own. The rest of the model is unchanged.

Towers get unit outputs. Merlin compares its two towers by inner product, and their vectors have any length; those of
a bundle have length 1. One more coordinate preserves the order (Bachrach et al., "Speeding up the
Xbox recommender system using a Euclidean transformation for inner-product spaces", RecSys 2014): an item x becomes
(x, sqrt(M^2 - |x|^2)) / M, where M exceeds the length of any item, and a user y becomes (y, 0) / |y|.

The ranker is cut where the sides meet: nodes that depend on the user alone run once per user, nodes that depend on the
item alone once per item, the rest once per pair. The only assumptions are that the model computes row by row and ends
in a sigmoid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...bundle.models import HEAD_INPUTS, RANKER_INPUTS, session
from ...dataset.schema import SIDES, Side
from ...errors import BundleError

ITEM_VECTORS, ITEM_LOG_ODDS = HEAD_INPUTS[2:]
PACKED: dict[Side, tuple[str, ...]] = {"user": RANKER_INPUTS[:2], "item": RANKER_INPUTS[2:]}
KINDS = (TensorProto.INT32, TensorProto.FLOAT)
OPSET, IR_VERSION = 17, 8
FEW_ROWS = (5, 7)
EXACT = 1 << 24  # integers below are exact as float32
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Wire:
    """Source of an input of the model.

    Attributes:
        side: side of the packed row.
        slot: position in its categorical or numeric part.
        ids: int32[cardinality], the model's ids by the bundle's id; None for a numeric feature.
    """

    side: Side
    slot: int
    ids: np.ndarray | None = None


def own_ids(ids: np.ndarray, merlin: np.ndarray) -> np.ndarray:
    """Convert Merlin's ids int[n] to the bundle's int32[n], -1 where it has none; ``ids`` as in :class:`Wire`."""
    own = np.full(max(int(ids.max()), int(merlin.max())) + 1, -1, np.int32)
    own[ids[::-1]] = np.arange(len(ids), dtype=np.int32)[::-1]  # the first wins for repeated ids
    return own[merlin]


def packed_tower(
    model: onnx.ModelProto, wires: Mapping[str, Wire], widths: tuple[int, int], side: Side, scale: float | None
) -> onnx.ModelProto:
    """Return a tower with packed inputs and unit outputs.

    Args:
        model: model with one input per feature and the output ``output`` float32[n, d].
        wires: wires of its inputs.
        widths: number of int32 and float32 slots of the packed row.
        side: side of the tower.
        scale: M; None adds no coordinate, for items of equal length.
    """
    graph = _Graph(model)
    rows = {name: graph.wired(name, wire, ("categorical", "numeric")) for name, wire in wires.items()}
    vector = graph.emit("output", rows, "tower")
    if scale is not None:
        if side == "item":
            vector = graph.add("Div", vector, graph.constant(np.float32(scale)))
            rest = graph.add("Sub", graph.constant(np.float32(1)), graph.add("ReduceSumSquare", vector, axes=[1]))
            coordinate = graph.add("Sqrt", graph.add("Max", rest, graph.constant(np.float32(0))))
        else:
            coordinate = graph.add("Mul", graph.add("ReduceSumSquare", vector, axes=[1]), graph.constant(np.float32(0)))
        vector = graph.add("Concat", vector, coordinate, axis=1)
    length = graph.add("Max", graph.add("ReduceL2", vector, axes=[1]), graph.constant(np.float32(1e-12)))
    graph.add("Div", vector, length, name="embedding")
    return graph.tower(widths, None)


def lookup_tower(vectors: np.ndarray, slot: int, widths: tuple[int, int]) -> onnx.ModelProto:
    """Return an item tower that looks up vectors by item id, for exports without a candidate tower.

    Args:
        vectors: float32[cardinality, d] of unit length; row 0 is for unknown items.
        slot: position of the item id in the packed row.
        widths: number of int32 and float32 slots of the packed row.
    """
    graph = _Graph(None)
    ids = graph.add("Gather", "categorical", graph.constant(np.int64(slot)), axis=1)
    graph.add("Gather", graph.constant(vectors.astype(np.float32)), ids, axis=0, name="embedding")
    return graph.tower(widths, vectors.shape[1])


def packed_ranker(
    model: onnx.ModelProto, wires: Mapping[str, Wire], widths: Mapping[Side, tuple[int, int]], sample: Arrays
) -> onnx.ModelProto:
    """Return the bundle's ranker, for B users and N items of each, cut where ``inference`` may cut it again.

    Args:
        model: model with one input per feature and the output ``output`` float32[n, 1], a probability.
        wires: wires of its inputs.
        widths: widths of the packed rows, by side.
        sample: inputs of a few rows, which reveal the shapes inside the model.

    Raises:
        BundleError: the model does not end in a sigmoid, or its sides cannot be cut.
    """
    graph = _Graph(model)
    logit = graph.before_sigmoid("output")
    row_wise = _row_wise(model, sample)
    parts = graph.meeting(logit, {name: wire.side for name, wire in wires.items()}, row_wise)
    _refuse_uncut(parts, wires)
    flat = [
        graph.add("Reshape", name, graph.ints([-1, width])) if width else name
        for name, width in zip(PACKED["item"], widths["item"], strict=True)
    ]
    rows: dict[Side, dict[str, str]] = {
        "user": {n: graph.wired(n, w, PACKED["user"]) for n, w in wires.items() if w.side == "user"},
        "item": {n: graph.wired(n, w, tuple(flat)) for n, w in wires.items() if w.side == "item"},
    }
    joined = {side: graph.joined(parts[side], rows[side], row_wise, side) for side in SIDES}
    shape = graph.add("Slice", graph.add("Shape", PACKED["item"][0]), *map(graph.ints, ([0], [2])))
    graph.add("Reshape", joined["item"], graph.add("Concat", shape, graph.ints([-1]), axis=0), name=ITEM_VECTORS)
    ones = graph.add("Concat", shape, graph.ints([1]), axis=0)
    graph.add("Expand", graph.constant(np.zeros((1, 1, 1), np.float32)), ones, name=ITEM_LOG_ODDS)

    # the rest reads only the item vectors and the user's row, so that the item side can be cut off
    pairs = graph.add("Slice", graph.add("Shape", ITEM_VECTORS), *map(graph.ints, ([0], [2])))
    users = graph.add("Unsqueeze", joined["user"], graph.ints([1]))
    users = graph.add("Expand", users, graph.add("Concat", pairs, graph.ints([1]), axis=0))
    values = graph.split(users, parts["user"], row_wise) | graph.split(ITEM_VECTORS, parts["item"], row_wise)
    score = graph.add("Reshape", graph.emit(logit, values, "pair"), pairs)
    prior = graph.add("Reshape", ITEM_LOG_ODDS, pairs)
    graph.add("Sigmoid", graph.add("Add", score, prior), name="probability")
    inputs = []
    axes_of: dict[Side, list[str]] = {"user": ["users"], "item": ["users", "items"]}
    for side, axes in axes_of.items():
        for name, kind, width in zip(PACKED[side], KINDS, widths[side], strict=True):
            inputs.append(helper.make_tensor_value_info(name, kind, [*axes, width]))
    out = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["users", "items"])
    ranker = graph.model(inputs, [out])
    for name, width in ((ITEM_VECTORS, sum(_width(row_wise[part]) for part in parts["item"])), (ITEM_LOG_ODDS, 1)):
        ranker.graph.value_info.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["users", "items", width])
        )
    return ranker


def _refuse_uncut(parts: Mapping[Side, Sequence[str]], wires: Mapping[str, Wire]) -> None:
    """Refuse a ranker whose sides cannot be cut.

    Args:
        parts: the tensors of each side that meet, from ``_Graph.meeting``.
        wires: wires of the model's inputs.

    Raises:
        BundleError: a side is not used, or an id is used as a number beyond those that float32 holds.
    """
    for name in (*parts["user"], *parts["item"]):
        if name in wires and (ids := wires[name].ids) is not None and ids.max() >= EXACT:
            raise BundleError(
                f"the ranker uses {name} itself as a number, with ids beyond {EXACT:,}: that cannot be cut"
            )
    for side in SIDES:
        if not parts[side]:
            raise BundleError(f"the ranker uses no feature of {side}s: it would rank all of them alike")


def _row_wise(model: onnx.ModelProto, sample: Arrays) -> dict[str, tuple[int, ...]]:
    """Row shapes of the tensors with one row per input row, found by running two different numbers of rows."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    names = [name for node in model.graph.node for name in node.output if name]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    runner = session(watched)
    runs = []
    for count in FEW_ROWS:
        rows = {name: np.resize(values, (count, *values.shape[1:])) for name, values in sample.items()}
        runs.append(runner.run(names, rows))
    shapes = {name: tuple(values.shape[1:]) for name, values in sample.items()}
    for name, few, more in zip(names, *runs, strict=True):
        follows = (few.shape[:1] + more.shape[:1]) == FEW_ROWS and few.shape[1:] == more.shape[1:]
        if follows and few.dtype == np.float32:
            shapes[name] = few.shape[1:]
    return shapes


class _Graph:
    """Graph under construction, into which parts of a model are copied."""

    def __init__(self, model: onnx.ModelProto | None) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._added = 0
        source = onnx.GraphProto() if model is None else model.graph
        opsets = (
            [] if model is None else [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
        )
        self._opset = opsets[0] if opsets else OPSET
        self._constants.extend(source.initializer)
        self._fixed = {each.name for each in source.initializer} | {""}
        self._producer = {name: node for node in source.node for name in node.output}
        self._types = {value.name: value.type.tensor_type.elem_type for value in source.input}
        self._ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in source.input}

    def constant(self, value: np.ndarray | np.generic) -> str:
        """Add a constant tensor and return its name."""
        self._added += 1
        self._constants.append(numpy_helper.from_array(np.asarray(value), f"constant/{self._added}"))
        return f"constant/{self._added}"

    def ints(self, values: Sequence[int]) -> str:
        """Add a constant int64 vector and return its name."""
        return self.constant(np.array(values, np.int64))

    def add(self, op: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Append a node and return its output's name."""
        self._added += 1
        name = name or f"{op}/{self._added}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def wired(self, name: str, wire: Wire, packed: tuple[str, ...]) -> str:
        """Gather the model's input ``name`` from packed rows ``packed`` (categorical, numeric)."""
        matrix = packed[0] if wire.ids is not None else packed[1]
        value = self.add("Gather", matrix, self.constant(np.int64(wire.slot)), axis=1)
        if wire.ids is not None:
            value = self.add("Gather", self.constant(wire.ids.astype(np.int32)), value, axis=0)
        value = self.add("Cast", value, to=self._types[name])
        return value if self._ranks[name] == 1 else self.add("Unsqueeze", value, self.ints([1]))

    def before_sigmoid(self, name: str) -> str:
        """Return the input of the sigmoid that computes the output ``name``."""
        node = self._producer[name]
        while node.op_type in ("Identity", "Reshape", "Squeeze"):
            node = self._producer[node.input[0]]
        if node.op_type != "Sigmoid":
            raise BundleError(
                f"the ranker ends in {node.op_type}, not in a sigmoid: only models of one click probability fit"
            )
        return node.input[0]

    def meeting(self, output: str, sides: Mapping[str, Side], row_wise: Mapping[str, object]) -> dict[Side, list[str]]:
        """Tensors by side that depend on it alone and are used by a node that depends on both sides, or by none."""
        depends: dict[str, frozenset[Side]] = {name: frozenset([side]) for name, side in sides.items()}
        tensors: dict[Side, list[str]] = {"user": [], "item": []}
        seen: set[str] = set()

        def of(name: str) -> frozenset[Side]:
            if name not in depends:
                node = self._producer.get(name)
                depends[name] = frozenset().union(*map(of, node.input)) if node is not None else frozenset()
            return depends[name]

        def visit(name: str) -> None:
            if name in seen or not of(name):
                return
            seen.add(name)
            if len(of(name)) == 1 and name in row_wise:
                (side,) = of(name)
                tensors[side].append(name)
            else:
                for source in self._producer[name].input:
                    visit(source)

        visit(output)
        return tensors

    def emit(self, name: str, values: dict[str, str], level: str) -> str:
        """Copy the nodes that compute tensor ``name`` from ``values``, and return its name in this graph."""
        if name in self._fixed:
            return name
        if name not in values:
            source = self._producer[name]
            node = onnx.NodeProto()
            node.CopyFrom(source)
            node.input[:] = [self.emit(tensor, values, level) for tensor in source.input]
            node.output[:] = [f"{level}/{tensor}" if tensor else "" for tensor in source.output]
            node.name = node.output[0]
            self._nodes.append(node)
            values.update({tensor: f"{level}/{tensor}" for tensor in source.output if tensor})
        return values[name]

    def joined(
        self, names: Sequence[str], values: dict[str, str], rows: Mapping[str, tuple[int, ...]], level: str
    ) -> str:
        """Concatenate row-wise tensors to float32[n, sum of their widths]."""
        parts = []
        for name in names:
            value = self.add("Cast", self.emit(name, values, level), to=TensorProto.FLOAT)
            parts.append(self.add("Reshape", value, self.ints([-1, _width(rows[name])])))
        return self.add("Concat", *parts, axis=1)

    def split(self, joined: str, names: Sequence[str], rows: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        """Split a tensor [..., width], the reverse of ``joined``."""
        widths = [_width(rows[name]) for name in names]
        flat = self.add("Reshape", joined, self.ints([-1, sum(widths)]))
        outputs = [f"pairs/{name}" for name in names]
        self._nodes.append(helper.make_node("Split", [flat, self.ints(widths)], outputs, axis=1))
        tensors = {}
        for name, output in zip(names, outputs, strict=True):
            value = self.add("Reshape", output, self.ints([-1, *rows[name]]))
            tensors[name] = self.add("Cast", value, to=self._types.get(name, TensorProto.FLOAT))
        return tensors

    def tower(self, widths: tuple[int, int], dim: int | None) -> onnx.ModelProto:
        """Return the model of a tower, after its output ``embedding`` has been added."""
        inputs = [
            helper.make_tensor_value_info(name, kind, ["n", width])
            for name, kind, width in zip(("categorical", "numeric"), KINDS, widths, strict=True)
        ]
        return self.model(inputs, [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dim])])

    def model(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Return the model, checked."""
        used = {name for node in self._nodes for name in node.input}
        graph = helper.make_graph(
            self._nodes, "packed", inputs, outputs, [constant for constant in self._constants if constant.name in used]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self._opset)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model


def _width(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
