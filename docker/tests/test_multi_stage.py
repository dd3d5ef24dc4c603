"""Example 2 in containers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from engine import CommandError, Engine
from stack import Stack, until

FIRST = "01-Building-Online-Multi-Stage-Recsys-Components.ipynb"
SECOND = "02-Deploying-Online-Multi-Stage-Recsys-with-Triton.ipynb"
SERVICES = ("redis", "triton", "events", "jupyter")


@pytest.fixture(scope="module")
def stack(engine: Engine) -> Iterator[Stack]:
    with Stack(engine, "multi-stage") as stack:
        stack.up("redis", "jupyter")
        yield stack


def answer(stack: Stack) -> bool:
    """Whether Triton answers from outside, with recommendations of its own for this user."""
    (found,) = json.loads(stack.library("recommend", "155", "--json"))
    assert len(found["items"]) == 20
    return not found["degraded"]


def applied(stack: Stack) -> bool:
    """Whether an event from outside is applied within the seconds that a client waits; it is kept if not."""
    try:
        stack.library("event", "155", "50", "click", "--wait")
    except CommandError as error:
        if "was not applied within" in str(error):  # what applies them takes some seconds to start
            return False
        raise
    return True


def test_triton_answers_once_the_first_notebook_has_deployed(stack: Stack) -> None:
    assert stack.services()["triton"]["State"] == "running"
    assert FIRST in stack.link()
    stack.run_notebook(FIRST, seconds=400)
    stack.healthy("triton")
    assert answer(stack)


def test_an_event_from_outside_is_applied(stack: Stack) -> None:
    stack.library("event", "155", "50", "click", "--wait")  # which fails if it is not


def test_the_second_notebook_runs(stack: Stack) -> None:
    stack.run_notebook(SECOND, seconds=300, link=stack.link().replace(FIRST, SECOND))


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_restarts(stack: Stack, service: str) -> None:
    stack.compose(f"restart {service}")
    stack.healthy("redis", "triton", "jupyter")
    until(lambda: answer(stack), 30, "recommendations are not back")
    until(lambda: applied(stack), 60, "events are not applied")


def test_everything_is_back_within_a_minute(stack: Stack) -> None:
    stack.compose("down")
    began = time.monotonic()
    stack.up("redis", "triton", "jupyter")
    until(lambda: answer(stack), 30, "recommendations are not back")
    assert time.monotonic() - began < 60


def test_nothing_is_left(stack: Stack) -> None:
    stack.compose("down --volumes")
    assert stack.left() == ""
