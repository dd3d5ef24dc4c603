"""Fallback: popular items, marked ``degraded``, for requests that the stages cannot answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import redis

from ..config import OnlineSettings
from ..store import popular_items, vectors
from ..store.deployments import DeploymentRecord
from .loaded_deployment import Deployment
from .stages.stage import Stage


def popular_answer(
    settings: OnlineSettings,
    text: bool,
    client: redis.Redis,
    record: DeploymentRecord | None,
    deployment: Deployment | None,
) -> dict[str, np.ndarray]:
    """Popular items by column, each [k], without those that the business rules exclude or that were removed.

    Args:
        settings: rules and number of items.
        text: whether the model's raw item ids are text.
        client: a connected Redis, read if the bundle cannot be.
        record: record of the deployment; None if it is unknown.
        deployment: the loaded deployment; None if its bundle cannot be read.

    Raises:
        StoreError: Redis fails.
    """
    k = settings.topk
    columns = {
        "item_ids": np.full(k, b"" if text else -1, object if text else np.int64),
        "scores": np.full(k, -np.inf, np.float32),
        "position": np.full(k, -1, np.int32),
    }
    if record is None or text != (record.item_ids == "str"):
        return columns
    if deployment is not None:
        best = deployment.popular
        raw_ids, scores = deployment.raw_items[best.items[:k]].tolist(), best.scores[:k].tolist()
    elif settings.allow or settings.deny or vectors.any_removed(client, record.generation):
        return columns  # only the bundle tells which may be shown
    else:
        items, scores = popular_items.read(client, record.generation, k, record.item_ids)
        raw_ids = [raw.encode() if isinstance(raw, str) else raw for raw in items]
    columns["item_ids"][: len(raw_ids)] = raw_ids
    columns["scores"][: len(raw_ids)] = scores
    return columns


def mark_degraded(columns: dict[str, np.ndarray], stages: Sequence[type[Stage]], explain: bool) -> None:
    """Mark all requests degraded, and add empty columns in place of the stages' outputs.

    Args:
        columns: columns of b requests, including ``degraded`` bool[b, 1]; changed in place.
        stages: stages of the model.
        explain: whether stage times are among the outputs.
    """
    count = len(columns["degraded"])
    columns["degraded"] = np.ones((count, 1), bool)
    for stage in stages:
        if explain:
            columns["us_" + stage.name] = np.zeros((count, 1), np.float32)
        for field in stage.outputs:
            dtype = field.dtype if field.dtype != "item" else object
            columns[field.name] = np.zeros((count, *(max(size, 0) for size in field.shape)), dtype)


def insert_popular(columns: dict[str, np.ndarray], answer: dict[str, np.ndarray]) -> int:
    """Fill the rows of degraded requests with popular items, in place.

    Args:
        columns: columns of b requests, from the last stage.
        answer: columns from :func:`popular_answer`.

    Returns:
        The number of degraded requests.
    """
    degraded = columns["degraded"]
    if degraded.any():
        for name, instead in answer.items():
            columns[name] = np.where(degraded, instead, columns[name] if columns[name].shape[1] else instead)
    return int(degraded.sum())
