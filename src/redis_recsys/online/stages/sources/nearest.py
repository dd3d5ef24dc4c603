"""Candidate source: the items nearest to the user's embedding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import redis

from ....config import OnlineSettings
from ....dataset.schema import Schema
from ....retrieval.index import AllowedIndex, Change
from ....store.vectors import RedisIndex
from ...loaded_deployment import Deployment

NARROW = 0.25  # share of the catalogue; if rules leave less, Redis would explore over four times the items needed


class Nearest:
    """Search among the items that may be shown: in the vector set in Redis, or exact in the server's memory."""

    def __init__(self, deployment: Deployment, settings: OnlineSettings, client: redis.Redis) -> None:
        self.embeddings, allowed = deployment.bundle.item_embeddings, deployment.allowed
        self._index: RedisIndex | AllowedIndex
        if settings.retrieval == "redis" and allowed[1:].mean() >= NARROW:
            self._index = RedisIndex(client, deployment.generation, deployment.record.ef, allowed)
        else:
            self._index = AllowedIndex(self.embeddings, allowed)

    def search(self, queries: np.ndarray, count: int, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` nearest items int32[b, count] that are not ``seen`` int32[b, s], and cosines float32[b, count].

        Raises:
            StoreError: Redis failed.
        """
        return self._index.search(queries, count, seen)

    def search_with_features(
        self, queries: np.ndarray, count: int, seen: np.ndarray, schema: Schema
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
        """Search with the packed features that the vector query returns as attributes; None if Redis is not queried.

        Raises:
            StoreError: Redis failed.
        """
        if isinstance(self._index, AllowedIndex):
            return None
        return self._index.search_with_attributes(queries, count, seen, schema)

    def similarity(self, items: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """Cosines float32[b, n] of items int32[b, n] with the queries float32[b, D]; arbitrary for item 0."""
        return np.einsum("bnd,bd->bn", self.embeddings[np.maximum(items, 1) - 1], queries)

    def follow(self, changes: Sequence[Change]) -> None:
        """Apply changes of the vectors in Redis."""
        embeddings = self.embeddings.copy()
        for change in changes:
            if change.embedding is not None and change.item <= len(embeddings):
                embeddings[change.item - 1] = change.embedding
        self.embeddings = embeddings
        if isinstance(self._index, AllowedIndex):
            self._index.apply(changes)
