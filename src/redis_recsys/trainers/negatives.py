"""Negatives for data that has only positives."""

from __future__ import annotations

import numpy as np

from ..dataset.interactions import Rows


def with_negatives(rows: Rows, items: int, per_positive: int, rng: np.random.Generator) -> tuple[Rows, np.ndarray]:
    """Positive rows and, for each, items drawn uniformly from the whole catalogue.

    A draw may hit an item that the user has interacted with. Leaving those out would be wrong: it would push up what
    active users have known for long, since such items would rarely serve as negatives.

    Args:
        rows: positives, n of them.
        items: size of the catalogue plus one.
        per_positive: negatives for each row.
        rng: source of randomness.

    Returns:
        ``n * (1 + per_positive)`` rows, and for each the int64 position in ``rows`` that it was made from.
    """
    source = np.tile(np.arange(len(rows)), 1 + per_positive)
    item = rng.integers(1, items, len(source), dtype=np.int32)
    item[: len(rows)] = rows.item
    target = np.zeros(len(source), np.float32)
    target[: len(rows)] = 1
    return Rows(rows.user[source], item, target, rows.time[source]), source
