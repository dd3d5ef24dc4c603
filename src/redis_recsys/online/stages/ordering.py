"""Selection and order of the ranked candidates that are shown."""

from __future__ import annotations

import numpy as np
import redis

from ...config import OnlineSettings
from ...retrieval.selection import diversify, order
from ...triton.tensors import Columns, Field
from ..loaded_deployment import Deployment
from .stage import Stage


class Ordering(Stage):
    """Top k items: by score, sampled, or with a penalty for similar items; by popularity for unknown users."""

    name = "ordering"
    inputs = (
        Field("known", "bool"),
        Field("items", "int32", (-1,)),
        Field("probability", "float32", (-1,)),
    )
    outputs = (
        Field("item_ids", "item", (-1,)),
        Field("scores", "float32", (-1,)),
        Field("position", "int32", (-1,)),
    )

    def __init__(self, deployment: Deployment, settings: OnlineSettings, client: redis.Redis) -> None:
        self._settings = settings
        self._raw = deployment.raw_items
        self._embeddings = deployment.bundle.item_embeddings if settings.diversity else None
        self._random = np.random.default_rng(settings.seed)
        popular = deployment.bundle.popularity
        self._popularity = np.full(len(self._raw), -np.inf, np.float32)  # by entity number
        self._popularity[popular.items] = popular.scores
        self._popular_first = bool(len(popular.items))

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        items, scores, settings = columns["items"], columns["probability"], self._settings
        unknown = ~columns["known"][:, 0] & self._popular_first
        if self._embeddings is None:
            chosen = order(scores, settings.topk, settings.temperature, self._random)
        else:
            embeddings = self._embeddings[np.maximum(items, 1) - 1]
            chosen = diversify(
                scores, embeddings, settings.topk, settings.diversity, settings.temperature, self._random
            )
        if unknown.any():
            scores = np.where(unknown[:, None], self._popularity[items], scores)
            chosen[unknown] = order(scores[unknown], settings.topk, 0.0, self._random)
        if chosen.shape[1] < settings.topk:  # fewer candidates than positions: pad with columns marked as empty
            chosen = np.pad(chosen, ((0, 0), (0, settings.topk - chosen.shape[1])), constant_values=-1)
        index = np.maximum(chosen, 0)
        best = np.where(chosen < 0, np.float32(-np.inf), np.take_along_axis(scores, index, axis=1))
        shown = np.where(best > -np.inf, np.take_along_axis(items, index, axis=1), 0)
        position = np.where(shown > 0, chosen, -1).astype(np.int32)
        return {"item_ids": self._raw[shown], "scores": best, "position": position}
