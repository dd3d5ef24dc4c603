"""The dense part of a DLRM as an ONNX graph, which ONNX Runtime runs instead of HugeCTR's layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .dense import Layer
from .network import DlrmShape

OPSET, IR = 17, 8
DENSE, EMBEDDINGS, OUTPUT = "dense", "embeddings", "probability"


def build(dlrm: DlrmShape, layers: Sequence[Layer]) -> onnx.ModelProto:
    """Build ``dense`` float32[n, features], ``embeddings`` float32[n, slots, dim] -> ``probability`` float32[n].

    The interaction is the bottom MLP's output, followed by the dot products of all pairs of vectors (that output, then
    the slots): the Gram matrix below its diagonal, by rows. HugeCTR appends a column of zeros, whose weights are left
    out here.

    Args:
        dlrm: shape of the DLRM.
        layers: weights as ``dense.read`` returns them.
    """
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {}

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(name: str, value: np.ndarray) -> str:
        constants[name] = value
        return name

    def mlp(below: str, first: int, weights: Sequence[Layer], last_relu: bool) -> str:
        for number, (kernel, bias) in enumerate(weights, first):
            names = [below, constant(f"kernel{number}", kernel), constant(f"bias{number}", bias)]
            below = node("Gemm", names, f"fc{number}")
            if last_relu or number < first + len(weights) - 1:
                below = node("Relu", [below], f"relu{number}")
        return below

    depth, vectors = len(dlrm.bottom), dlrm.slots + 1
    bottom = mlp(DENSE, 1, layers[:depth], last_relu=True)
    one = constant("one", np.array([1], np.int64))
    both = node("Concat", [node("Unsqueeze", [bottom, one], "first"), EMBEDDINGS], "vectors", axis=1)
    turned = node("Transpose", [both], "turned", perm=[0, 2, 1])
    gram = node("MatMul", [both, turned], "gram")
    flat = node("Reshape", [gram, constant("flat", np.array([-1, vectors * vectors], np.int64))], "products")
    row, column = np.tril_indices(vectors, -1)
    below = node("Gather", [flat, constant("pairs", row * vectors + column)], "below_diagonal", axis=1)
    interaction = node("Concat", [bottom, below], "interaction", axis=1)
    kernel, bias = layers[depth]
    logit = mlp(interaction, depth + 1, [(kernel[:-1], bias), *layers[depth + 1 :]], last_relu=False)
    chance = node("Sigmoid", [logit], "sigmoid")
    node("Reshape", [chance, constant("line", np.array([-1], np.int64))], OUTPUT)
    real = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "dlrm",
        [
            helper.make_tensor_value_info(DENSE, real, ["n", dlrm.dense]),
            helper.make_tensor_value_info(EMBEDDINGS, real, ["n", dlrm.slots, dlrm.dim]),
        ],
        [helper.make_tensor_value_info(OUTPUT, real, ["n"])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model)
    return model
