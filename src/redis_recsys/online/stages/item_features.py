"""Hydration of candidates: their side of the ranker from memory, or their features from Redis."""

from __future__ import annotations

from typing import Any

import numpy as np
import redis

from ...config import OnlineSettings
from ...store import features
from ...store.connection import store_errors
from ...triton.tensors import Columns, Field
from ..loaded_deployment import Deployment
from .stage import COMPUTED_ITEMS, RAW_ITEMS, Stage


class ItemFeaturesInMemory(Stage):
    """The ranker's item side, computed once per deployment for the whole catalogue."""

    name = "item_features"
    inputs = (Field("items", "int32", (-1,)),)
    outputs = COMPUTED_ITEMS

    def __init__(self, deployment: Deployment, settings: OnlineSettings, client: redis.Redis) -> None:
        self._side = deployment.bundle.item_side()

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        vectors, log_odds = self._side(columns["items"])
        return {"item_vectors": vectors, "item_log_odds": log_odds}


class ItemFeatures(Stage):
    """Packed features from Redis, each item of the batch read once."""

    name = "item_features"
    inputs = (Field("items", "int32", (-1,)),)
    outputs = RAW_ITEMS

    def __init__(self, deployment: Deployment, settings: OnlineSettings, client: redis.Redis) -> None:
        self._deployment, self._client = deployment, client
        self._raw = deployment.bundle.items.raw_ids
        self._widths = deployment.bundle.schema.widths("item")

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        items = columns["items"]
        distinct, inverse = np.unique(items, return_inverse=True)
        present = distinct[distinct > 0]  # 0, no item, sorts first
        rows = [
            np.zeros((len(distinct), width), dtype)
            for width, dtype in zip(self._widths, (np.int32, np.float32), strict=True)
        ]
        if len(present):
            for row, values in zip(rows, self._features(self._raw[present - 1].tolist()), strict=True):
                row[-len(present) :] = values
        inverse = inverse.reshape(items.shape)
        return {"item_categorical": rows[0][inverse], "item_numeric": rows[1][inverse]}

    def _features(self, raw: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Features int32[n, Ci], float32[n, Fi] of n items."""
        with store_errors(self._client):
            values: Any = features.read(self._client, self._deployment.generation, "item", raw)
        categorical, numeric, _ = features.unpack(values, *self._widths)
        return categorical, numeric
