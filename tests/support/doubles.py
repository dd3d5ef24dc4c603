"""Trivial stages, for tests of the code around them. The models of a test's Triton import this file."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from redis_recsys.config import Settings
from redis_recsys.errors import StoreError
from redis_recsys.online.stage_metrics import StageMetrics

FAILS, SLOW, HELD = -1, -2, -3  # users that make the model fail, take SECONDS, or wait until the test opens the gate
SECONDS = 0.3
GATE = "RECSYS_TEST_GATE"  # variable that names a folder: each waiting model is a file in it, and `open` releases them
BROKEN = 13  # value of online.topk with which no model can be made


class Runner:
    """Runner that answers from the user's number alone.

    ``whole`` does everything. ``first`` makes candidates, one more than the last digit of its batch's largest user;
    ``middle`` counts them, and ``last`` answers.
    """

    def __init__(self, stages: tuple[str, ...], settings: Settings) -> None:
        if settings.online.topk == BROKEN:
            raise StoreError("this Redis holds no deployment yet: make one with 'recsys deploy'")
        self.stages, self.topk = stages, settings.online.topk
        self.metrics = StageMetrics(stages)

    def close(self) -> None:
        pass

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        began = time.perf_counter()
        made = dict(columns)
        for stage in self.stages:
            made |= getattr(self, stage)(made)
        self.metrics.add(self.stages[0], time.perf_counter() - began)
        self.metrics.requests += len(made["degraded"]) if "degraded" in made else 0
        return made

    def first(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sizes = numbers(columns) % 10 + 1
        candidates = np.arange(1, sizes.max() + 1, dtype=np.int32)[None]
        return {
            "candidates": np.where(candidates <= sizes, candidates, 0).astype(np.int32),
            "degraded": np.zeros(sizes.shape, bool),
            "generation": np.full(sizes.shape, 7),
        }

    def middle(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        candidates = columns["candidates"]
        return {
            "size": np.count_nonzero(candidates, axis=1)[:, None],
            "width": np.full((len(candidates), 1), candidates.shape[1]),
            "degraded": ~columns["degraded"],
        }

    def last(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        users = numbers(columns)
        if (users == SLOW).any():
            time.sleep(SECONDS)
        if (users == HELD).any():
            gate = Path(os.environ[GATE])
            (gate / f"{os.getpid()}").touch()
            while not (gate / "open").exists():
                time.sleep(0.01)
        if (users == FAILS).any():
            raise ValueError("this user\nmakes it fail")
        items = users * 100 + np.arange(self.topk)
        if columns["user_id"].dtype == object:
            items = np.char.mod("item %d", items).astype("S").astype(object)
        return {
            "item_ids": items,
            "scores": np.linspace(1, 0, self.topk, dtype=np.float32)[None].repeat(len(users), 0),
            "rows": np.full((len(users), 1), len(users)),
        }

    def whole(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.last(columns) | self.first(columns) | {"pid": np.full((len(columns["user_id"]), 1), os.getpid())}


def numbers(columns: dict[str, np.ndarray]) -> np.ndarray:
    """The users' numbers, int64[b, 1]."""
    return np.array([int(user) for user in columns["user_id"][:, 0]], np.int64)[:, None]
