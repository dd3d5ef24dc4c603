"""Features through the Feast SDK, as in the public Merlin pipeline. It needs Feast in the server's environment.

The values equal those of the packed rows; only the time differs (see ``benchmarks/online``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import redis

from ...config import OnlineSettings
from ..loaded_deployment import Deployment
from .item_features import ItemFeatures
from .user_features import UserFeatures

if TYPE_CHECKING:
    from ..feature_store import FeastGeneration


def _open(deployment: Deployment, client: redis.Redis) -> FeastGeneration:
    from ..feature_store import FeastGeneration  # takes seconds, and only these stages need it

    bundle, project = deployment.bundle, deployment.record.project
    return FeastGeneration(client, deployment.data, deployment.generation, project, bundle.schema, bundle.id_kinds)


class UserFeaturesFromFeast(UserFeatures):
    """User features from ``get_online_features``; the items seen come from Redis as usual."""

    def __init__(self, deployment: Deployment, settings: OnlineSettings, client: redis.Redis) -> None:
        super().__init__(deployment, settings, client)
        self._feast = _open(deployment, client)

    def _request(self, pipe: redis.client.Pipeline, users: list[Any]) -> None:
        pass

    def _features(self, users: list[Any], answers: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._feast.read("user", users)


class ItemFeaturesFromFeast(ItemFeatures):
    """Item features from ``get_online_features``."""

    def __init__(self, deployment: Deployment, settings: OnlineSettings, client: redis.Redis) -> None:
        super().__init__(deployment, settings, client)
        self._feast = _open(deployment, client)

    def _features(self, raw: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        return self._feast.read("item", raw)[:2]
