"""The user tower: the user's position in the embedding space."""

from __future__ import annotations

import numpy as np
import redis

from ...config import OnlineSettings
from ...triton.tensors import Columns, Field
from ..loaded_deployment import Deployment
from .stage import Stage


class UserEmbedding(Stage):
    """Unit vectors; unknown users get the average user's."""

    name = "user_embedding"
    inputs = (
        Field("known", "bool"),
        Field("user_categorical", "int32", (-1,)),
        Field("user_numeric", "float32", (-1,)),
    )
    outputs = (Field("user_embedding", "float32", (-1,)),)

    def __init__(self, deployment: Deployment, settings: OnlineSettings, client: redis.Redis) -> None:
        self._tower = deployment.bundle.user_tower()
        self._average = deployment.record.average_user

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        embedding = self._tower.embed(columns["user_categorical"], columns["user_numeric"])
        known = columns["known"]
        return {"user_embedding": embedding if known.all() else np.where(known, embedding, self._average)}
