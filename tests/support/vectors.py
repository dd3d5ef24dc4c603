"""Vectors in the vector set of a generation."""

from __future__ import annotations

import numpy as np
import redis

from redis_recsys.store import vectors

GEN = "7"
ITEMS = 1200


def unit(rows: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    """Random unit vectors float32[rows, dim]."""
    values = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def load(client: redis.Redis, embeddings: np.ndarray) -> None:
    """Fill the vector set of generation ``GEN``, without attributes."""
    vectors.load(client, GEN, embeddings, (b"{}" for _ in embeddings))
