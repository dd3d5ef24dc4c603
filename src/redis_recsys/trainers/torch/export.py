"""Export of torch models to the bundle's ONNX files, each compared with its model."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import onnx.compose
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


def export_towers(model: TwoTower, users: Table, items: Table, folder: Path) -> dict[str, float]:
    """Write ``user_tower.onnx`` and ``item_tower.onnx``.

    Returns:
        Largest absolute difference from the torch model on real rows, by file.

    Raises:
        BundleError: the difference is above 1e-5.
    """
    differences = {}
    sides: dict[Side, tuple[Table, nn.Module]] = {
        "user": (users, model.user_tower),
        "item": (items, model.item_tower),
    }
    for side, (table, tower) in sides.items():
        path = folder / tower_file(side)
        sample = Packed(*(values[:257].cpu() for values in (table.categorical, table.numeric)))
        graph = _graph(tower.cpu().eval(), tuple(sample), ["categorical", "numeric"], ["embedding"], [{0: "n"}] * 2)
        onnx.save(graph, path)
        with torch.inference_mode():
            expected = tower(*sample).numpy()
        actual = Tower(path).embed(sample.categorical.numpy(), sample.numeric.numpy())
        differences[path.name] = difference(path, actual, expected, MODEL)
    return differences


def export_ranker(model: DLRM, users: Table, items: Table, folder: Path) -> dict[str, float]:
    """Write ``ranker.onnx``: user side, item side and head, joined at named tensors where serving may split it again.

    Returns:
        Largest absolute difference of probabilities from the torch model on real pairs, by file.

    Raises:
        BundleError: the difference is above 1e-5.
    """
    model = model.cpu().eval()
    user = Packed(users.categorical[1:4].cpu(), users.numeric[1:4].cpu())
    numbers = torch.arange(15).remainder(len(items)).view(3, 5)
    item = Packed(items.categorical.cpu()[numbers], items.numeric.cpu()[numbers])
    user_axes, item_axes = {0: "users"}, {0: "users", 1: "items"}
    with torch.inference_mode():
        matrix, bias = UserSide(model)(*user)
        vectors, log_odds = ItemSide(model)(*item)
    names, joints = list(RANKER_INPUTS), ["matrix", "bias", "vectors", "log_odds"]
    user_side = _graph(UserSide(model), tuple(user), names[:2], list(HEAD_INPUTS[:2]), [user_axes] * 2)
    item_side = _graph(ItemSide(model), tuple(item), names[2:], list(HEAD_INPUTS[2:]), [item_axes] * 2)
    head_axes = [user_axes] * 2 + [item_axes] * 2
    head = _graph(Head(model), (matrix, bias, vectors, log_odds), joints, ["probability"], head_axes)
    sides = onnx.compose.merge_models(user_side, item_side, io_map=[])
    joined = onnx.compose.merge_models(sides, head, io_map=list(zip(HEAD_INPUTS, joints, strict=True)))
    path = folder / RANKER
    onnx.save(joined, path)
    count = min(3, len(user.categorical))
    pairs = Batch(
        Packed(*(values[:count].repeat_interleave(5, 0) for values in user)),
        Packed(*(values[:count].flatten(0, 1) for values in item)),
        *(torch.zeros(0),) * 4,
    )
    with torch.inference_mode():
        expected = torch.sigmoid(model(pairs)).view(count, 5).numpy()
    actual = Ranker(path)(*(values[:count].numpy() for values in (*user, *item)))
    return {path.name: difference(path, actual, expected, MODEL)}


def _graph(
    module: nn.Module, sample: tuple[Tensor, ...], inputs: list[str], outputs: list[str], axes: list[dict[int, str]]
) -> onnx.ModelProto:
    """Trace a module, with a prefix on every inner name, so that joined graphs have no duplicate names."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            sample,
            dynamo=True,
            input_names=inputs,
            output_names=[f"result/{name}" for name in outputs],
            dynamic_shapes=tuple(dict.fromkeys(dynamic, Dim.DYNAMIC) for dynamic in axes),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    graph = onnx.compose.add_prefix(
        program.model_proto, f"{type(module).__name__}/", rename_inputs=False, rename_outputs=False
    )
    for name in outputs:
        graph.graph.node.append(onnx.helper.make_node("Identity", [f"result/{name}"], [name]))
    for value, name in zip(graph.graph.output, outputs, strict=True):
        value.name = name
    names: dict[str, str] = {}
    for value, dynamic in zip(graph.graph.input, axes, strict=True):
        names |= {value.type.tensor_type.shape.dim[axis].dim_param: name for axis, name in dynamic.items()}
    for value in (*graph.graph.input, *graph.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, "")
    return graph
