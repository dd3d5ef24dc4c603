"""Example 3 in containers."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest
from engine import Engine
from stack import Stack

NOTEBOOK = "Large-Scale-Recommender-System.ipynb"
NODES = ("redis-1", "redis-2", "redis-3")
# One sample of keys that no table has: HugeCTR's tensors, as any client sends them.
ASK = """
import numpy as np, tritonclient.grpc as grpc
inputs = []
for name, kind, value in (
    ("DES", "FP32", np.zeros((1, 13), np.float32)),
    ("CATCOLUMN", "INT64", np.arange(26)[None]),
    ("ROWINDEX", "INT32", np.arange(27, dtype=np.int32)[None]),
):
    inputs.append(grpc.InferInput(name, value.shape, kind))
    inputs[-1].set_data_from_numpy(value)
print(float(grpc.InferenceServerClient("127.0.0.1:8001").infer("dlrm", inputs).as_numpy("OUTPUT0")[0]))
"""


@pytest.fixture(scope="module")
def stack(engine: Engine) -> Iterator[Stack]:
    with Stack(engine, "large-scale-recsys") as stack:
        stack.up(*NODES, "jupyter")
        yield stack


def cluster(stack: Stack) -> str:
    return stack.compose("exec -T redis-2 redis-cli -p 6374 cluster info")


def predicted(stack: Stack) -> float:
    """Triton's answer, from outside."""
    return float(stack.engine.beside(sys.executable, "-c", ASK))


def test_three_nodes_form_a_cluster(stack: Stack) -> None:
    assert "3 nodes form a cluster" in stack.compose("logs redis-cluster")
    assert {"cluster_state:ok", "cluster_known_nodes:3"} <= set(cluster(stack).split())


def test_the_notebook_runs_in_a_browser_and_triton_answers(stack: Stack) -> None:
    assert NOTEBOOK in stack.link()
    stack.run_notebook(NOTEBOOK, seconds=400)
    stack.healthy("triton")
    assert 0 < predicted(stack) < 1


@pytest.mark.parametrize("services", [*NODES, " ".join(NODES), "triton", "jupyter", ""])
def test_services_restart(stack: Stack, services: str) -> None:
    """One node after the other, all at once, and everything."""
    before = predicted(stack)
    stack.compose(f"restart {services}")
    stack.healthy(*NODES, "triton", "jupyter")
    assert "cluster_state:ok" in cluster(stack)
    assert predicted(stack) == before


def test_everything_is_back_within_a_minute(stack: Stack) -> None:
    before = predicted(stack)
    stack.compose("down")
    began = time.monotonic()
    stack.up(*NODES, "triton", "jupyter")
    assert time.monotonic() - began < 60
    assert predicted(stack) == before


def test_nothing_is_left(stack: Stack) -> None:
    stack.compose("down --volumes")
    assert stack.left() == ""
