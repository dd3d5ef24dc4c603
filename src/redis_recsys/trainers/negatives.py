"""Negatives for data that has only positives."""

from __future__ import annotations

import numpy as np

from ..dataset.interactions import Rows


def with_negatives(rows: Rows, items: int, per_positive: int, rng: np.random.Generator) -> tuple[Rows, np.ndarray]:
    """Positive rows and, for each, items drawn uniformly from the whole catalogue.

    A draw may hit an item that the user has interacted with. Excluding those would be wrong: items that active users
    have long known would rarely serve as negatives, and be ranked too high.

    Args:
        rows: n positive rows.
        items: size of the catalogue plus one.
        per_positive: negatives for each row.
        rng: source of randomness.

    Returns:
        ``n * (1 + per_positive)`` rows, and for each the int64 position of its source in ``rows``.
    """
    source = np.tile(np.arange(len(rows)), 1 + per_positive)
    item = rng.integers(1, items, len(source), dtype=np.int32)
    item[: len(rows)] = rows.item
    target = np.zeros(len(source), np.float32)
    target[: len(rows)] = 1
    return Rows(rows.user[source], item, target, rows.time[source]), source
