"""Example 1 in containers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from engine import Engine
from stack import Stack, code_cells

NOTEBOOK = "Offline-Batch-Recommender-System.ipynb"


@pytest.fixture(scope="module")
def stack(engine: Engine) -> Iterator[Stack]:
    with Stack(engine, "offline-batch-recsys") as stack:
        stack.up("redis", "jupyter")
        yield stack


def test_the_notebook_runs_in_a_browser(stack: Stack) -> None:
    assert NOTEBOOK in stack.link()
    stack.run_notebook(NOTEBOOK, seconds=300)


def test_recommendations_are_read_from_outside(stack: Stack) -> None:
    found = json.loads(stack.library("get", "1", "--json"))
    assert (found["source"], len(found["items"])) == ("model", 20)


@pytest.mark.parametrize("service", ["redis", "jupyter"])
def test_a_service_restarts(stack: Stack, service: str) -> None:
    stack.compose(f"restart {service}")
    stack.healthy(service)
    assert json.loads(stack.library("get", "1", "--json"))["source"] == "model"


def test_what_was_run_is_there_after_down_and_up_within_a_minute(stack: Stack) -> None:
    before = stack.notebook(NOTEBOOK)
    stack.compose("down")
    began = time.monotonic()
    stack.up("redis", "jupyter")
    assert time.monotonic() - began < 60
    after = stack.notebook(NOTEBOOK)
    assert [cell["outputs"] for cell in code_cells(after)] == [cell["outputs"] for cell in code_cells(before)]
    assert json.loads(stack.library("get", "1", "--json"))["source"] == "model"


def test_nothing_is_left(stack: Stack) -> None:
    stack.compose("down --volumes")
    assert stack.left() == ""
