"""Candidates: the items nearest to the user, those similar to what was viewed last, and popular ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import redis

from ...config import OnlineSettings
from ...retrieval.index import AllowedIndex, Change
from ...store.vectors import RedisIndex
from ...triton.tensors import Columns, Field
from ..loaded_deployment import Deployment
from .stage import NEAREST, POPULAR, RAW_ITEMS, SIMILAR, SOURCES, Stage

NARROW = 0.25  # share of the catalogue; where rules leave less, Redis would look at four times what is wanted and more


class Candidates(Stage):
    """Merged candidates of all sources; an item that several bring is listed once, with all of them.

    All are items that may be shown, so that rules and removed items do not shorten the lists. Users of whom nothing is
    known get popular ones alone.
    """

    name = "candidates"
    inputs = (Field("known", "bool"), Field("user_embedding", "float32", (-1,)), Field("seen", "int32", (-1,)))

    outputs: ClassVar[tuple[Field, ...]] = (
        Field("candidates", "int32", (-1,)),
        Field("similarity", "float32", (-1,)),
        Field("sources", "uint8", (-1,)),
    )

    def __init__(self, deployment: Deployment, settings: OnlineSettings, client: redis.Redis) -> None:
        self._settings, self._deployment = settings, deployment
        self._embeddings, allowed = deployment.bundle.item_embeddings, deployment.allowed
        self._index: RedisIndex | AllowedIndex
        if settings.retrieval == "redis" and allowed[1:].mean() >= NARROW:
            self._index = RedisIndex(client, deployment.generation, deployment.record.ef, allowed)
        else:
            self._index = AllowedIndex(self._embeddings, allowed)
        self._popular = deployment.popular
        self._neighbours = self._none_yet()

    def follow(self, changes: Sequence[Change]) -> None:
        """Search, and take what is popular and similar, as the vectors in Redis are now."""
        embeddings = self._embeddings.copy()
        for change in changes:
            if change.embedding is not None and change.item <= len(embeddings):
                embeddings[change.item - 1] = change.embedding
        self._embeddings, self._popular = embeddings, self._deployment.popular
        if isinstance(self._index, AllowedIndex):
            self._index.apply(changes)
        self._neighbours = self._none_yet()

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        queries, seen = columns["user_embedding"], columns["seen"]
        items, similarity = self._index.search(queries, self._settings.retrieved, seen)
        sources = np.full(items.shape, NEAREST, np.uint8)
        popular = self._popular.items[: self._settings.popular]
        further = [(SIMILAR, self._similar(seen)), (POPULAR, np.tile(popular, (len(queries), 1)))]
        further = [(bit, more) for bit, more in further if more.shape[1]]
        if further:
            items = np.concatenate([items, *(more for _, more in further)], axis=1)
            added = items[:, similarity.shape[1] :]
            # similarity of an item that another source brings: the dot product that the index would have computed
            similarity = np.concatenate([similarity, self._dots(added, queries)], axis=1)
            bits = [np.full(more.shape, bit, np.uint8) for bit, more in further]
            sources = np.concatenate([sources, *bits], axis=1)
            items, sources = merge(items, sources)
        self._for_unknown(columns, items, similarity, sources)
        similarity = np.where(items > 0, similarity, 0).astype(np.float32)
        return {"candidates": items, "similarity": similarity, "sources": sources}

    def _dots(self, items: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """Cosines float32[b, n] of items int32[b, n] with the queries float32[b, D]; of item 0 anything."""
        return np.einsum("bnd,bd->bn", self._embeddings[np.maximum(items, 1) - 1], queries)

    def _for_unknown(
        self, columns: Columns, items: np.ndarray, similarity: np.ndarray, sources: np.ndarray
    ) -> np.ndarray:
        """Put the popular items that they have not seen into the rows of users of whom nothing is known, bool[b]."""
        unknown = ~columns["known"][:, 0] & bool(len(self._popular.items))
        if unknown.any():
            items[unknown], _ = self._popular.unseen(columns["seen"][unknown], items.shape[1])
            similarity[unknown] = self._dots(items[unknown], columns["user_embedding"][unknown])
            sources[unknown] = np.where(items[unknown] > 0, POPULAR, 0)
        return unknown

    def _similar(self, seen: np.ndarray) -> np.ndarray:
        """Neighbours int32[b, similar] of the item each user viewed last; 0 for users who viewed none."""
        count = self._settings.similar
        if not count or not seen.shape[1]:
            return np.zeros((len(seen), count), np.int32)
        neighbours, last = self._neighbours, seen[:, 0]  # another array takes its place when the index changes
        missing = np.unique(last[neighbours[last, 0] < 0])
        if len(missing):
            neighbours[missing], _ = self._index.search(self._embeddings[missing - 1], count, missing[:, None])
        return neighbours[last]

    def _none_yet(self) -> np.ndarray:
        """Neighbours of each item, to be filled in when it is first the last one viewed; -1: not yet."""
        neighbours = np.full((len(self._embeddings) + 1, self._settings.similar), -1, np.int32)
        neighbours[0] = 0
        return neighbours


class CandidatesWithFeatures(Candidates):
    """The nearest items alone, with the features that the vector query returns as attributes."""

    outputs = (*Candidates.outputs, *RAW_ITEMS)

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        if isinstance(self._index, AllowedIndex):
            outputs = super().__call__(columns)
            categorical, numeric = self._features(outputs["candidates"])
        else:
            queries, seen, schema = columns["user_embedding"], columns["seen"], self._deployment.bundle.schema
            found = self._index.search_with_attributes(queries, self._settings.retrieved, seen, schema)
            items, similarity, categorical, numeric = found
            sources = np.full(items.shape, NEAREST, np.uint8)
            unknown = self._for_unknown(columns, items, similarity, sources)
            categorical[unknown], numeric[unknown] = self._features(items[unknown])
            outputs = {"candidates": items, "similarity": similarity, "sources": sources}
        return outputs | {"item_categorical": categorical, "item_numeric": numeric}

    def _features(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Packed features of items int32[b, n] that the vector query did not bring."""
        catalogue = self._deployment.bundle.items
        parts = (part[np.maximum(items, 1) - 1] for part in (catalogue.categorical, catalogue.numeric))
        categorical, numeric = (np.where(items[..., None] > 0, part, 0) for part in parts)
        return categorical, numeric


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
