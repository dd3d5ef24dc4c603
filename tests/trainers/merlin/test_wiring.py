"""The surgery preserves the output of any row-wise model, whatever is inside it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from redis_recsys.bundle.models import ItemSide, Ranker, RankerHead, session
from redis_recsys.errors import BundleError
from redis_recsys.trainers.merlin.wiring import Wire, packed_ranker

USERS, ITEMS = 11, 7
WIRES = {
    "age": Wire("user", 0),
    "user": Wire("user", 1, np.array([0, 3, 1, 4], np.int32)),
    "city": Wire("user", 0, np.arange(6, dtype=np.int32)),
    "item": Wire("item", 0, np.array([2, 0, 1, 4, 3], np.int32)),
    "price": Wire("item", 0),
}
WIDTHS = {"user": (2, 1), "item": (1, 1)}


def cross_network(last: str = "Sigmoid", item_too: bool = True) -> onnx.ModelProto:
    """A cross layer (DCN) over all features, with other operations of real graphs.

    A reshape takes the number of rows from one user input, and one id is also used as a number.
    """
    random = np.random.default_rng(3)
    constants = {
        "user_table": random.standard_normal((6, 3)), "city_table": random.standard_normal((6, 2)),
        "item_table": random.standard_normal((6, 4)), "weight": random.standard_normal((11, 11)),
        "out": random.standard_normal((11, 1)), "tenth": np.array(0.1),
    }  # fmt: skip
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    initializers += [
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in {"one": [1], "eleven": [11], "minus": [-1, 1]}.items()
    ]
    add = helper.make_node
    features = ["user_v", "city_v", "age_v", *(["item_v", "price_v"] if item_too else ["user_v", "city_v"])]
    nodes = [
        add("Gather", ["user_table", "user"], ["user_v"]),
        add("Gather", ["city_table", "city"], ["city_v"]),
        add("Gather", ["item_table", "item"], ["item_v"]),
        add("Unsqueeze", ["age", "one"], ["age_v"]),
        add("Unsqueeze", ["price", "one"], ["price_v"]),
        add("Concat", features, ["x"], axis=1),
        add("MatMul", ["x", "weight"], ["wx"]),
        add("Mul", ["x", "wx"], ["xwx"]),
        add("Add", ["xwx", "x"], ["crossed"]),
        add("Shape", ["user"], ["rows"]),
        add("Concat", ["rows", "eleven"], ["shape"], axis=0),
        add("Reshape", ["crossed", "shape"], ["again"]),
        add("MatMul", ["again", "out"], ["score"]),
        add("Cast", ["city"], ["city_number"], to=TensorProto.FLOAT),
        add("Mul", ["city_number", "tenth"], ["city_scaled"]),
        add("Reshape", ["city_scaled", "minus"], ["city_score"]),
        add("Add", ["score", "city_score"], ["logit"]),
        add(last, ["logit"], ["output"]),
    ]
    kinds = {"age": TensorProto.FLOAT, "price": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.INT32), ["n"]) for name in WIRES]
    out = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 1])
    graph = helper.make_graph(nodes, "dcn", inputs, [out], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


SAMPLE = {name: np.ones(4, np.float32 if wire.ids is None else np.int32) for name, wire in WIRES.items()}


def test_any_row_wise_model_is_cut_and_computes_the_same(tmp_path) -> None:
    random = np.random.default_rng(5)
    users = random.integers(0, (6, 4), (USERS, 2)).astype(np.int32), random.random((USERS, 1), np.float32)
    items = random.integers(0, 5, (USERS, ITEMS, 1)).astype(np.int32), random.random((USERS, ITEMS, 1), np.float32)
    model = cross_network()
    onnx.save(packed_ranker(model, WIRES, WIDTHS, SAMPLE), tmp_path / "ranker.onnx")
    actual = Ranker(tmp_path / "ranker.onnx")(*users, *items)

    of = np.repeat(np.arange(USERS), ITEMS)
    flat = [part.reshape(-1, 1) for part in items]
    inputs = {
        "age": users[1][of, 0], "user": WIRES["user"].ids[users[0][of, 1]], "city": users[0][of, 0],
        "item": WIRES["item"].ids[flat[0][:, 0]], "price": flat[1][:, 0],
    }  # fmt: skip
    expected = session(model).run(["output"], inputs)[0].reshape(USERS, ITEMS)
    np.testing.assert_allclose(actual, expected, atol=1e-6)

    catalogue = items[0][0], items[1][0]
    side, head = ItemSide(tmp_path / "ranker.onnx", *catalogue), RankerHead(tmp_path / "ranker.onnx")
    numbers = np.tile(np.arange(1, ITEMS + 1), (USERS, 1))
    everything = [np.tile(part[None], (USERS, 1, 1)) for part in catalogue]
    whole = Ranker(tmp_path / "ranker.onnx")(*users, *everything)
    np.testing.assert_allclose(head(*users, *side(numbers)), whole, atol=1e-6)


def test_a_model_that_does_not_look_at_the_item_is_refused() -> None:
    model = cross_network(item_too=False)
    model.graph.initializer[3].CopyFrom(numpy_helper.from_array(np.ones((11, 11), np.float32), "weight"))
    with pytest.raises(BundleError, match="uses no feature of items"):
        packed_ranker(model, WIRES, WIDTHS, SAMPLE)


def test_a_model_without_a_sigmoid_is_refused() -> None:
    with pytest.raises(BundleError, match="ends in Tanh, not in a sigmoid"):
        packed_ranker(cross_network("Tanh"), WIRES, WIDTHS, SAMPLE)


def test_ids_that_a_float_cannot_hold_are_refused_where_they_are_used_as_numbers() -> None:
    wires = WIRES | {"user": Wire("user", 1, np.array([0, 1 << 25], np.int32))}
    with pytest.raises(BundleError, match="uses user itself as a number"):
        packed_ranker(cross_network(), wires, WIDTHS, SAMPLE)
