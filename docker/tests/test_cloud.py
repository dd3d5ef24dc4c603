"""Examples 2 and 3 with a Redis elsewhere: only addresses and secrets differ."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from engine import Engine
from stack import Stack, container, until

ADDRESS, PORT = "172.17.0.1", "6390"  # as containers see this machine
TRAIN = "recsys data synthetic --rows 20000 --users 500 --items 200 && recsys train --epochs 1 --no-refit"


@pytest.fixture
def stack(engine: Engine) -> Iterator[Stack]:
    settings = {"REDIS_HOST": ADDRESS, "REDIS_PORT": PORT, "REDIS_TLS": "false", "TRITON_TOKEN": "of-triton"}
    with (
        Stack(engine, "multi-stage", "docker-compose-cloud.yml", **settings) as stack,
        container(engine, f"-p {ADDRESS}:{PORT}:6379", f"redis-server --requirepass {stack.password}"),
    ):
        yield stack


def test_models_are_deployed_and_asked_for(stack: Stack) -> None:
    stack.up("jupyter")
    stack.compose(f"exec -T jupyter sh -c '{TRAIN} && recsys deploy'")
    stack.healthy("triton")
    elsewhere = {"RECSYS_REDIS_HOST": ADDRESS, "RECSYS_REDIS_PORT": PORT, "RECSYS_TRITON_TOKEN": "of-triton"}

    def answered() -> bool:
        (found,) = json.loads(stack.library("recommend", "5", "--json", **elsewhere))
        return not found["degraded"]

    until(answered, 30, "no recommendations")
    stack.library("event", "5", "7", "click", "--wait", **elsewhere)
    stack.compose("down --volumes")
    assert stack.left() == ""
