"""The DLRM: a score for each candidate."""

from __future__ import annotations

import numpy as np
import redis

from ...bundle.bundle import Bundle
from ...bundle.models import Ranker, RankerHead
from ...config import OnlineSettings
from ...triton.tensors import Columns, Field
from ..loaded_deployment import Deployment
from .stage import COMPUTED_ITEMS, RAW_ITEMS, Stage

USER = (
    Field("items", "int32", (-1,)),
    Field("user_categorical", "int32", (-1,)),
    Field("user_numeric", "float32", (-1,)),
)


class Ranking(Stage):
    """Scores from computed item sides; -inf where there is no item. The user's side runs once per user.

    Scores lie between 0 and 1. If the ranker learned from non-clicks, they estimate the probability of a click; if its
    negatives were sampled, they order items and mean nothing else.
    """

    name = "ranking"
    inputs = (*USER, *COMPUTED_ITEMS)
    outputs = (Field("probability", "float32", (-1,)),)

    def __init__(self, deployment: Deployment, settings: OnlineSettings, client: redis.Redis) -> None:
        self._model = self._open(deployment.bundle)

    def _open(self, bundle: Bundle) -> Ranker | RankerHead:
        return bundle.ranker_head()

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        scores = self._model(*(columns[field.name] for field in self.inputs[1:]))
        return {"probability": np.where(columns["items"] > 0, scores, np.float32(-np.inf))}


class RankingOfFeatures(Ranking):
    """Scores from item features: the item side runs for every candidate of every request."""

    inputs = (*USER, *RAW_ITEMS)

    def _open(self, bundle: Bundle) -> Ranker:
        return bundle.ranker()
