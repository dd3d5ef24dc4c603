"""Popular items of a generation: ``popular:{generation}``, a sorted set raw item id -> popularity."""

from __future__ import annotations

from typing import Any

import numpy as np
import redis

from ..dataset.schema import IdKind
from .connection import store_errors
from .generations import PIPELINE


def key(generation: str) -> str:
    """Key of the popular items of a generation."""
    return f"popular:{generation}"


def write(client: redis.Redis, generation: str, items: np.ndarray, popularity: np.ndarray) -> None:
    """Replace the popular items of a generation.

    Args:
        items: raw ids, int64[m] or object[m] of str.
        popularity: popularity of each, number[m].

    Raises:
        StoreError: Redis fails.
    """
    members = list(zip(items.tolist(), popularity.tolist(), strict=True))
    with store_errors(client):
        client.delete(key(generation))
        for start in range(0, len(members), PIPELINE):
            client.zadd(key(generation), dict(members[start : start + PIPELINE]))


def read(
    client: redis.Redis, generation: str, count: int | None, kind: IdKind
) -> tuple[list[int] | list[str], list[float]]:
    """Read the most popular items, at most ``count`` of them, and their popularity.

    Args:
        count: number of items; None for all.
        kind: kind of the item ids.

    Raises:
        StoreError: Redis fails.
    """
    with store_errors(client):
        pairs: Any = client.zrange(key(generation), 0, -1 if count is None else count - 1, desc=True, withscores=True)
    scores = [score for _, score in pairs]
    return ([int(item) for item, _ in pairs] if kind == "int" else [item.decode() for item, _ in pairs]), scores
