"""Filter of items that must not be shown: already seen, excluded by the business rules, or removed."""

from __future__ import annotations

import numpy as np
import redis

from ...config import OnlineSettings
from ...triton.tensors import Columns, Field
from ..loaded_deployment import Deployment
from .stage import Stage


class Filter(Stage):
    """Candidates with 0 in place of filtered ones, so that positions stay."""

    name = "filter"
    inputs = (Field("candidates", "int32", (-1,)), Field("seen", "int32", (-1,)))
    outputs = (Field("items", "int32", (-1,)),)

    def __init__(self, deployment: Deployment, settings: OnlineSettings, client: redis.Redis) -> None:
        self._deployment = deployment

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        candidates, seen, shown = columns["candidates"], columns["seen"], self._deployment.shown
        rows = np.arange(len(candidates))[:, None]
        had = np.zeros((len(candidates), len(shown)), bool)
        had[rows, seen] = True
        return {"items": np.where(shown[candidates] & ~had[rows, candidates], candidates, 0)}
