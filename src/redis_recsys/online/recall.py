"""Recall of the vector set in Redis, and the number of neighbours that queries must explore to reach it."""

from __future__ import annotations

import numpy as np
import redis

from ..errors import StoreError
from ..retrieval.index import LocalIndex
from ..store.vectors import RedisIndex, key

TUNING_QUERIES = 200
TUNING_STEP = 1.15
TUNING_LIMIT = 5000  # neighbours explored; exact search in memory is much faster by then
TIE = 1e-6  # largest difference of similarities that is only rounding


def tune(
    client: redis.Redis,
    generation: str,
    embeddings: np.ndarray,
    queries: np.ndarray,
    count: int = 100,
    target: float = 0.97,
) -> tuple[int, float]:
    """Find the number of neighbours that queries have to explore for a recall, and measure that recall.

    An item counts as found if it is as near as the ``count``-th of exact search: it does not matter which of
    several items at the same distance are found.

    Args:
        client: a connected Redis.
        generation: a generation whose vector set is loaded.
        embeddings: float32[n, D], the vectors in it.
        queries: float32[q, D], unit vectors; some 200 of them, evenly spread, are used.
        count: neighbours searched for.
        target: recall among them, at most 1.

    Returns:
        EF, at least ``count``, and the recall.

    Raises:
        StoreError: the recall cannot be reached at a reasonable cost, or Redis fails.
    """
    queries = queries[np.unique(np.linspace(0, len(queries) - 1, min(len(queries), TUNING_QUERIES)).astype(int))]
    present = min(count, len(embeddings))
    local = LocalIndex(embeddings)
    _, exact = local.search(queries, present, _none(queries))
    scores = local.scores(queries)
    ef, recall, limit = count, 0.0, min(max(len(embeddings), count), TUNING_LIMIT)
    while True:
        index = RedisIndex(client, generation, ef)
        blocks = [queries[start : start + 16] for start in range(0, len(queries), 16)]
        items = np.concatenate([index.search(block, present, _none(block))[0] for block in blocks])
        near = np.take_along_axis(scores, np.maximum(items, 1) - 1, axis=1) >= exact[:, -1:] - TIE
        recall = float((near & (items > 0)).mean())
        if recall >= target:
            return ef, recall
        if ef >= limit:
            raise StoreError(
                f"vector set {key(generation)} has recall {recall:.4f} at EF {ef}, not {target}: "
                "lower RECSYS_DEPLOY_RECALL"
            )
        ef = min(int(ef * TUNING_STEP) + 1, limit)


def _none(queries: np.ndarray) -> np.ndarray:
    return np.zeros((len(queries), 0), np.int32)
