"""Stage ``candidates``: the items of all candidate sources, merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import redis

from ...config import OnlineSettings
from ...retrieval.index import Change
from ...triton.tensors import Columns, Field
from ..loaded_deployment import Deployment
from .sources.merge import NEAREST, POPULAR, SIMILAR, merge
from .sources.nearest import Nearest
from .sources.popular import PopularItems
from .sources.similar import Similar
from .stage import RAW_ITEMS, Stage


class Candidates(Stage):
    """Merged candidates of all sources; an item that several found is listed once, with all of them.

    All of them may be shown, so that rules and removed items do not shorten the lists. Unknown users get popular items
    alone.
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
        self._nearest = Nearest(deployment, settings, client)
        self._similar = Similar(self._nearest, settings.similar)
        self._popular = PopularItems(deployment, settings.popular)

    def follow(self, changes: Sequence[Change]) -> None:
        """Bring all candidate sources up to date with the vectors in Redis."""
        self._nearest.follow(changes)
        self._similar.forget()
        self._popular.refresh()

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        queries, seen = columns["user_embedding"], columns["seen"]
        items, similarity = self._nearest.search(queries, self._settings.retrieved, seen)
        sources = np.full(items.shape, NEAREST, np.uint8)
        further = [(SIMILAR, self._similar(seen)), (POPULAR, self._popular(len(queries)))]
        further = [(bit, source_items) for bit, source_items in further if source_items.shape[1]]
        if further:
            items = np.concatenate([items, *(source_items for _, source_items in further)], axis=1)
            added = items[:, similarity.shape[1] :]
            # similarity of an item that another source found: the dot product that the index would have computed
            similarity = np.concatenate([similarity, self._nearest.similarity(added, queries)], axis=1)
            bits = [np.full(source_items.shape, bit, np.uint8) for bit, source_items in further]
            sources = np.concatenate([sources, *bits], axis=1)
            items, sources = merge(items, sources)
        self._replace_for_unknown(columns, items, similarity, sources)
        similarity = np.where(items > 0, similarity, 0).astype(np.float32)
        return {"candidates": items, "similarity": similarity, "sources": sources}

    def _replace_for_unknown(
        self, columns: Columns, items: np.ndarray, similarity: np.ndarray, sources: np.ndarray
    ) -> np.ndarray:
        """Fill the rows of unknown users with popular items, in place; returns these rows, bool[b]."""
        unknown: np.ndarray = ~columns["known"][:, 0]
        if unknown.any():
            items[unknown] = self._popular.unseen(columns["seen"][unknown], items.shape[1])
            similarity[unknown] = self._nearest.similarity(items[unknown], columns["user_embedding"][unknown])
            sources[unknown] = np.where(items[unknown] > 0, POPULAR, 0)
        return unknown


class CandidatesWithFeatures(Candidates):
    """The nearest items alone, with the features that the vector query returns as attributes."""

    outputs = (*Candidates.outputs, *RAW_ITEMS)

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        queries, seen, schema = columns["user_embedding"], columns["seen"], self._deployment.bundle.schema
        nearest = self._nearest.search_with_features(queries, self._settings.retrieved, seen, schema)
        if nearest is None:
            outputs = super().__call__(columns)
            categorical, numeric = self._features(outputs["candidates"])
        else:
            items, similarity, categorical, numeric = nearest
            sources = np.full(items.shape, NEAREST, np.uint8)
            unknown = self._replace_for_unknown(columns, items, similarity, sources)
            categorical[unknown], numeric[unknown] = self._features(items[unknown])
            outputs = {"candidates": items, "similarity": similarity, "sources": sources}
        return outputs | {"item_categorical": categorical, "item_numeric": numeric}

    def _features(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Packed features of items int32[b, n] that the vector query did not return."""
        catalogue = self._deployment.bundle.items
        parts = (table[np.maximum(items, 1) - 1] for table in (catalogue.categorical, catalogue.numeric))
        categorical, numeric = (np.where(items[..., None] > 0, table, 0) for table in parts)
        return categorical, numeric
