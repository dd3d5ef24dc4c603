"""Users' packed features and the items already seen, in one round trip for the whole batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import redis

from ...config import OnlineSettings
from ...dataset.entities import anything_known
from ...dataset.user_history import padded
from ...store import features, history
from ...store.connection import store_errors
from ...triton.tensors import Columns, Field
from ..loaded_deployment import Deployment
from .stage import Stage


class UserFeatures(Stage):
    """Packed features from Redis, which include live events as soon as they are applied."""

    name = "user_features"
    inputs = (Field("user_id", "user"),)
    outputs = (
        Field("known", "bool"),
        Field("user_categorical", "int32", (-1,)),
        Field("user_numeric", "float32", (-1,)),
        Field("seen", "int32", (-1,)),
    )

    def __init__(self, deployment: Deployment, settings: OnlineSettings, client: redis.Redis) -> None:
        self._deployment, self._client = deployment, client
        self._number_of = deployment.bundle.items.number_of
        self._widths = deployment.bundle.schema.widths("user")

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        users = raw_users(columns["user_id"])
        with store_errors(self._client), self._client.pipeline(transaction=False) as pipe:
            self._request(pipe, users)
            history.read(pipe, self._deployment.generation, users, self._deployment.record.legacy)
            answers = pipe.execute()
        of_history = -len(users) - 1
        categorical, numeric, _ = self._features(users, answers[:of_history])
        return {
            "known": anything_known(categorical, numeric)[:, None],
            "user_categorical": categorical,
            "user_numeric": numeric,
            "seen": self._seen(*answers[of_history:]),
        }

    def _request(self, pipe: redis.client.Pipeline, users: list[Any]) -> None:
        features.read(pipe, self._deployment.generation, "user", users)

    def _features(self, users: list[Any], answers: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features int32[b, Cu], float32[b, Fu], and bool[b], whether each user is known."""
        return features.unpack(answers[0], *self._widths)

    def _seen(self, deployed: list[Any], *lists: Any) -> np.ndarray:
        """Entity numbers int32[b, longest], live events first, padded with 0; 0 also for items not in the catalogue."""
        raw = history.parse(lists, self._deployment.record.item_ids)
        ends = np.cumsum([len(ids) for ids in raw])
        live = np.split(self._number_of(np.concatenate(raw)), ends[:-1])
        parts = [items for pair in zip(live, history.item_numbers(deployed), strict=True) for items in pair]
        lengths = np.array([len(items) for items in parts]).reshape(-1, 2).sum(axis=1)
        return padded(np.concatenate(parts), lengths)


def raw_users(column: np.ndarray) -> list[Any]:
    """User ids [b, 1] as int or str; text that is not UTF-8 belongs to no user."""
    ids = column[:, 0].tolist()
    return ids if column.dtype != object else [user_id.decode(errors="replace") for user_id in ids]
