"""Candidates: the items nearest to the user, those similar to what was viewed last, and popular ones."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import redis

from ..config import OnlineSettings
from ..deployment import Deployment
from ..errors import ConfigError
from ..index import LocalIndex, VectorIndex
from ..store import vectors
from ..store.vectors import RedisIndex
from .stage import NEAREST, POPULAR, RAW_ITEMS, SIMILAR, SOURCES, Columns, Field, Stage


class Candidates(Stage):
    """Merged candidates of all sources; an item that several bring is listed once, with all of them."""

    name = "candidates"
    inputs = (Field("user_embedding", "float32", (-1,)), Field("seen", "int32", (-1,)))

    outputs: ClassVar[tuple[Field, ...]] = (
        Field("candidates", "int32", (-1,)),
        Field("similarity", "float32", (-1,)),
        Field("sources", "uint8", (-1,)),
    )

    def __init__(self, deployment: Deployment, settings: OnlineSettings, client: redis.Redis) -> None:
        self._settings, self._client, self._deployment = settings, client, deployment
        self._embeddings = deployment.bundle.item_embeddings
        self._index: VectorIndex
        if settings.retrieval == "redis":
            self._index = RedisIndex(client, deployment.generation, deployment.record.ef)
        else:
            self._index = LocalIndex(self._embeddings)
        self._change = "0"
        self._popular = deployment.popular[: settings.popular]
        self._neighbours = self._none_yet()

    def refresh(self) -> None:
        """Follow the changes to the vectors in Redis."""
        self._change, changes = vectors.changes(self._client, self._deployment.generation, self._change)
        if changes:
            if isinstance(self._index, LocalIndex):
                self._index.apply(changes)
            self._neighbours = self._none_yet()

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        queries, seen = columns["user_embedding"], columns["seen"]
        items, similarity = self._index.search(queries, self._settings.nearest, seen)
        sources = np.full(items.shape, NEAREST, np.uint8)
        further = [(SIMILAR, self._similar(seen)), (POPULAR, np.tile(self._popular, (len(queries), 1)))]
        further = [(bit, more) for bit, more in further if more.shape[1]]
        if further:
            items = np.concatenate([items, *(more for _, more in further)], axis=1)
            added = items[:, similarity.shape[1] :]
            # similarity of an item that another source brings: the dot product that the index would have computed
            dots = np.einsum("bnd,bd->bn", self._embeddings[np.maximum(added, 1) - 1], queries)
            similarity = np.concatenate([similarity, dots], axis=1)
            bits = [np.full(more.shape, bit, np.uint8) for bit, more in further]
            sources = np.concatenate([sources, *bits], axis=1)
            items, sources = merge(items, sources)
        similarity = np.where(items > 0, similarity, 0).astype(np.float32)
        return {"candidates": items, "similarity": similarity, "sources": sources}

    def _similar(self, seen: np.ndarray) -> np.ndarray:
        """Neighbours int32[b, similar] of the item each user viewed last; 0 for users who viewed none."""
        count = self._settings.similar
        if not count or not seen.shape[1]:
            return np.zeros((len(seen), count), np.int32)
        neighbours, last = self._neighbours, seen[:, 0]  # another array takes its place when the index changes
        missing = np.unique(last[neighbours[last, 0] < 0])
        if len(missing):
            found, _ = self._index.search(self._embeddings[missing - 1], count, missing[:, None])
            # an item that came after the deployment has no features, so it cannot be ranked
            neighbours[missing] = np.where(found <= len(self._embeddings), found, 0)
        return neighbours[last]

    def _none_yet(self) -> np.ndarray:
        """Neighbours of each item, to be filled in when it is first the last one viewed; -1: not yet."""
        neighbours = np.full((len(self._embeddings) + 1, self._settings.similar), -1, np.int32)
        neighbours[0] = 0
        return neighbours


class CandidatesWithFeatures(Candidates):
    """The nearest items alone, with the features that the vector query returns as attributes."""

    outputs = (*Candidates.outputs, *RAW_ITEMS)

    def __init__(self, deployment: Deployment, settings: OnlineSettings, client: redis.Redis) -> None:
        if settings.retrieval != "redis" or settings.similar or settings.popular:
            raise ConfigError("online.items 'attributes' needs online.retrieval 'redis', .similar 0 and .popular 0")
        super().__init__(deployment, settings, client)

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        assert isinstance(self._index, RedisIndex)
        queries, seen, schema = columns["user_embedding"], columns["seen"], self._deployment.bundle.schema
        found = self._index.search_with_attributes(queries, self._settings.nearest, seen, schema)
        outputs = dict(zip(("candidates", "similarity", "item_categorical", "item_numeric"), found, strict=True))
        return outputs | {"sources": np.full(outputs["candidates"].shape, NEAREST, np.uint8)}


def merge(items: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the first of equal items in each row, with the sources of all of them; the others become 0.

    Args:
        items: int32[b, n].
        sources: uint8[b, n] bits.
    """
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    bits = np.take_along_axis(sources, order, axis=1)
    repeated = np.zeros(items.shape, bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    for _ in range(len(SOURCES) - 1):  # an item is there at most once per source: hand bits on towards the first
        bits[:, :-1] |= np.where(repeated[:, 1:], bits[:, 1:], 0).astype(np.uint8)
    ordered[repeated] = 0
    bits[ordered == 0] = 0
    merged, kept = np.empty_like(items), np.empty_like(sources)
    np.put_along_axis(merged, order, ordered, axis=1)
    np.put_along_axis(kept, order, bits, axis=1)
    return merged, kept
