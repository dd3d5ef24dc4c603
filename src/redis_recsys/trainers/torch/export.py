"""Export of torch models to the bundle's ONNX files, each compared with its model."""

from __future__ import annotations

import copy
import itertools
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from ...bundle.bundle import RANKER, tower_file
from ...bundle.models import HEAD_INPUTS, RANKER_INPUTS, Ranker, Tower
from ...dataset.schema import Side
from ..onnx_check import difference
from .inputs import Batch, Packed, Table
from .ranker import DLRM, Head, ItemSide, UserSide
from .two_tower import TwoTower

OPSET = 18
MODEL = "the torch model"
TOWER_INPUTS: dict[Side, list[str]] = {
    "user": ["user/categorical", "user/numeric"],
    "item": ["item/categorical", "item/numeric"],
}
EMBEDDINGS: dict[Side, str] = {"user": "user/embedding", "item": "item/embedding"}
JOINTS = {f"head/{name}": name for name in HEAD_INPUTS}  # inputs of the head: what the sides put out
PROBABILITY = "probability"

T = TypeVar("T", onnx.ValueInfoProto, onnx.TensorProto)


def export_models(towers: TwoTower, ranker: DLRM, users: Table, items: Table, folder: Path) -> dict[str, float]:
    """Write ``user_tower.onnx``, ``item_tower.onnx`` and ``ranker.onnx``.

    The ranker is its user side, item side and head, joined at named tensors where serving may split it again.

    Returns:
        Largest absolute difference from the torch models on real rows, of embeddings and of probabilities, by file.

    Raises:
        BundleError: the difference is above 1e-5.
    """
    towers, ranker = towers.cpu().eval(), ranker.cpu().eval()
    graph = _graph(towers, ranker, users, items)
    for side, inputs in TOWER_INPUTS.items():
        names = dict(zip([*inputs, EMBEDDINGS[side]], ["categorical", "numeric", "embedding"], strict=True))
        onnx.save(_part(graph, inputs, EMBEDDINGS[side], names), folder / tower_file(side))
    names = {name: name for name in (*RANKER_INPUTS, *HEAD_INPUTS, PROBABILITY)} | JOINTS
    onnx.save(_part(graph, RANKER_INPUTS, PROBABILITY, names), folder / RANKER)
    return _tower_differences(towers, users, items, folder) | _ranker_difference(ranker, users, items, folder)


def _tower_differences(model: TwoTower, users: Table, items: Table, folder: Path) -> dict[str, float]:
    differences = {}
    sides: dict[Side, tuple[Table, nn.Module]] = {
        "user": (users, model.user_tower),
        "item": (items, model.item_tower),
    }
    for side, (table, tower) in sides.items():
        path = folder / tower_file(side)
        sample = Packed(*(values[:257].cpu() for values in (table.categorical, table.numeric)))
        with torch.inference_mode():
            expected = tower(*sample).numpy()
        actual = Tower(path).embed(sample.categorical.numpy(), sample.numeric.numpy())
        differences[path.name] = difference(path, actual, expected, MODEL)
    return differences


def _ranker_difference(model: DLRM, users: Table, items: Table, folder: Path) -> dict[str, float]:
    path = folder / RANKER
    user = Packed(users.categorical[1:4].cpu(), users.numeric[1:4].cpu())
    count = len(user.categorical)
    item = _rows(items, count, 5)
    pairs = Batch(
        Packed(*(values.repeat_interleave(5, 0) for values in user)),
        Packed(*(values.flatten(0, 1) for values in item)),
        *(torch.zeros(0),) * 4,
    )
    with torch.inference_mode():
        expected = torch.sigmoid(model(pairs)).view(count, 5).numpy()
    actual = Ranker(path)(*(values.numpy() for values in (*user, *item)))
    return {path.name: difference(path, actual, expected, MODEL)}


def _rows(table: Table, *shape: int) -> Packed:
    """Packed rows of a table, as many as asked for: from its beginning, again and again."""
    numbers = torch.arange(torch.Size(shape).numel()).remainder(len(table)).view(shape)
    return Packed(table.categorical.cpu()[numbers], table.numeric.cpu()[numbers])


class _Models(nn.Module):
    """Towers and the ranker's three parts, each with inputs of its own."""

    def __init__(self, towers: TwoTower, ranker: DLRM) -> None:
        super().__init__()
        self.user_tower, self.item_tower = towers.user_tower, towers.item_tower
        self.user_side, self.item_side, self.head = UserSide(ranker), ItemSide(ranker), Head(ranker)

    def forward(
        self, user: Packed, item: Packed, user_side: Packed, item_side: Packed, joints: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        return (
            self.user_tower(*user),
            self.item_tower(*item),
            *self.user_side(*user_side),
            *self.item_side(*item_side),
            self.head(*joints),
        )


def _graph(towers: TwoTower, ranker: DLRM, users: Table, items: Table) -> onnx.ModelProto:
    """One graph of all models, which have nothing in common in it.

    Most of the time of an export does not depend on the size of the model: five took twice as long as this one.
    """
    models = _Models(towers, ranker).eval()
    # no two numbers of rows are the same, or they would be one dimension of the graph, taken from any of its inputs
    with torch.no_grad():
        joints = (*models.user_side(*_rows(users, 7)), *models.item_side(*_rows(items, 7, 8)))
    samples = _rows(users, 2), _rows(items, 3), _rows(users, 4), _rows(items, 5, 6), joints
    row, user, pair = {0: "n"}, {0: "users"}, {0: "users", 1: "items"}
    axes = [[row] * 2, [row] * 2, [user] * 2, [pair] * 2, [user, user, pair, pair]]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            models,
            tuple(tuple(sample) for sample in samples),
            dynamo=True,
            input_names=[*TOWER_INPUTS["user"], *TOWER_INPUTS["item"], *RANKER_INPUTS, *JOINTS],
            output_names=[*EMBEDDINGS.values(), *HEAD_INPUTS, PROBABILITY],
            dynamic_shapes=tuple(tuple(dict.fromkeys(each, Dim.DYNAMIC) for each in part) for part in axes),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    graph = model.graph
    names: dict[str, str] = {}
    for value, dynamic in zip(graph.input, itertools.chain(*axes), strict=True):
        names |= {value.type.tensor_type.shape.dim[axis].dim_param: name for axis, name in dynamic.items()}
    for value in (*graph.input, *graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, "")
    return model


def _part(model: onnx.ModelProto, inputs: Sequence[str], output: str, names: Mapping[str, str]) -> onnx.ModelProto:
    """The part of a graph that leads from some inputs to an output, as a model.

    Args:
        model: graph that has it.
        inputs: names of the inputs there, in order.
        output: name of the output there.
        names: names of values in the part, by those there; others get a prefix, so that no two are the same.
    """

    def renamed(name: str) -> str:
        return names.get(name, f"inner/{name}") if name else ""  # an optional input without a value

    # not onnx's Extractor, which fails on more than 2 GB, and these are all the models
    graph = model.graph
    needed, nodes = {renamed(output)}, []
    for original in reversed(graph.node):
        if needed.intersection(map(renamed, original.output)):
            node = onnx.NodeProto()
            node.CopyFrom(original)
            node.input[:], node.output[:] = map(renamed, original.input), map(renamed, original.output)
            needed.update(node.input, node.output)
            nodes.append(node)

    def values(of: Iterable[T]) -> list[T]:
        """Copies under their new names."""
        copies = [copy.deepcopy(value) for value in of]
        for value in copies:
            value.name = renamed(value.name)
        return copies

    ends = {*inputs, output}
    shapes = [value for value in (*graph.value_info, *graph.output) if value.name not in ends]
    part = onnx.helper.make_graph(
        nodes[::-1],
        "model",
        values(value for name in inputs for value in graph.input if value.name == name),
        values(value for value in graph.output if value.name == output),
        values(tensor for tensor in graph.initializer if renamed(tensor.name) in needed),
        value_info=values(value for value in shapes if renamed(value.name) in needed),
    )
    return onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
