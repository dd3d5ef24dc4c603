"""Example 1 with NVIDIA Merlin as its trainer."""

from __future__ import annotations

import json

from engine import Engine
from stack import Stack

DATA = "recsys data synthetic --rows 20000 --users 500 --items 200"


def test_merlin_trains_what_is_then_read_from_redis(engine: Engine) -> None:
    with Stack(engine, "offline-batch-recsys") as stack:
        stack.compose("up --quiet-pull --detach jupyter-merlin")
        stack.healthy("redis", "jupyter-merlin", seconds=60)
        assert "Offline-Batch" in stack.link("jupyter-merlin")
        train = f"{DATA} && recsys train --trainer merlin --epochs 1 && recsys batch --topk 5"
        stack.compose(f"exec -T jupyter-merlin sh -c '{train}'")
        assert json.loads(stack.library("get", "1", "--json"))["source"] == "model"
        stack.compose("--profile merlin down --volumes")
        assert stack.left() == ""
