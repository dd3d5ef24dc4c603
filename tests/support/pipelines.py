"""Pipelines on a real Redis: deployment of a bundle for a test, and answers of a partition's models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import redis

from redis_recsys.config import Settings
from redis_recsys.online.partition import models, stages_of
from redis_recsys.online.runner import Runner
from redis_recsys.store import deployments

K = 10
PLAIN: dict[str, Any] = {"nearest": 25, "similar": 0, "popular": 0, "topk": K, "timeout": 1.0}

# ways to find candidates and to read their features
HOW: list[dict[str, Any]] = [
    {"items": "memory"},
    {"items": "memory", "similar": 10, "popular": 10},
    {"items": "packed", "retrieval": "redis", "similar": 10, "popular": 10},
    {"items": "attributes", "retrieval": "redis"},
]

Deployed = Callable[..., Settings]  # bundle, settings of Triton, settings of section online
Ask = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]  # users in, all columns out


@contextmanager
def running(settings: Settings, names: tuple[str, ...] | None = None) -> Iterator[Runner]:
    runner = Runner(names or tuple(stages_of(settings.online)), settings)
    try:
        yield runner
    finally:
        runner.close()


def ids(users: np.ndarray) -> dict[str, np.ndarray]:
    """Raw ids as a request carries them."""
    if users.dtype.kind in "iu":
        return {"user_id": users.astype(np.int64)[:, None]}
    return {"user_id": np.array([[user.encode()] for user in users], object)}


@contextmanager
def running_all(settings: Settings) -> Iterator[Ask]:
    """All models of the settings' partition, during the block: users in, all columns out."""
    client = redis_of(settings)
    record = deployments.read(client, deployments.live(client) or "")
    parts = models(settings, record.user_ids, record.item_ids)
    with ExitStack() as stack:
        runners = [stack.enter_context(running(settings, model.stages)) for model in parts]

        def ask(users: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            columns = dict(users)
            for model, runner in zip(parts, runners, strict=True):
                columns |= runner({field.name: columns[field.name] for field in model.inputs})
            return columns

        yield ask


def answer(settings: Settings, users: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All columns that the models of the settings' partition produce together."""
    with running_all(settings) as ask:
        return ask(users)


def redis_of(settings: Settings) -> redis.Redis:
    secret = settings.redis.password
    assert secret is not None
    return redis.Redis(settings.redis.host or "", settings.redis.port, password=secret.get_secret_value())


def wait(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
