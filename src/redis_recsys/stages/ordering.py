"""Which of the ranked candidates are shown, and in which order."""

from __future__ import annotations

import numpy as np
import redis

from ..config import OnlineSettings
from ..deployment import Deployment
from ..ordering import diversify, order
from .stage import Columns, Field, Stage


class Ordering(Stage):
    """The first k: by score, or sampled, or with a penalty for items alike."""

    name = "ordering"
    inputs = (Field("items", "int32", (-1,)), Field("candidate_scores", "float32", (-1,)))
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

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        items, scores, settings = columns["items"], columns["candidate_scores"], self._settings
        if self._embeddings is None:
            chosen = order(scores, settings.topk, settings.temperature, self._random)
        else:
            embeddings = self._embeddings[np.maximum(items, 1) - 1]
            chosen = diversify(
                scores, embeddings, settings.topk, settings.diversity, settings.temperature, self._random
            )
        if chosen.shape[1] < settings.topk:  # fewer candidates than places: repeat the last column, marked as empty
            chosen = np.pad(chosen, ((0, 0), (0, settings.topk - chosen.shape[1])), constant_values=-1)
        place = np.maximum(chosen, 0)
        best = np.where(chosen < 0, np.float32(-np.inf), np.take_along_axis(scores, place, axis=1))
        shown = np.where(best > -np.inf, np.take_along_axis(items, place, axis=1), 0)
        position = np.where(shown > 0, chosen, -1).astype(np.int32)
        return {"item_ids": self._raw[shown], "scores": best, "position": position}
