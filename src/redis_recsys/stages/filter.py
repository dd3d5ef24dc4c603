"""What must not be shown: items already seen, and those that the business rules exclude."""

from __future__ import annotations

import numpy as np
import redis

from ..config import OnlineSettings
from ..deployment import Deployment
from .stage import Columns, Field, Stage


class Filter(Stage):
    """Candidates with 0 in place of what was removed, so that positions stay."""

    name = "filter"
    inputs = (Field("candidates", "int32", (-1,)), Field("seen", "int32", (-1,)))
    outputs = (Field("items", "int32", (-1,)),)

    def __init__(self, deployment: Deployment, settings: OnlineSettings, client: redis.Redis) -> None:
        self._allowed = deployment.allowed

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        candidates, seen = columns["candidates"], columns["seen"]
        # an item that came into the index after the deployment has no features here, so it cannot be ranked
        known = np.where(candidates < len(self._allowed), candidates, 0)
        rows = np.arange(len(known))[:, None]
        shown = np.zeros((len(known), len(self._allowed)), bool)
        shown[rows, seen] = True
        return {"items": np.where(self._allowed[known] & ~shown[rows, known], known, 0)}
