"""Number of candidates of one request from stage to stage."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .sources.merge import SOURCES


def funnel(row: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Count a request's candidates after each step; an item of several sources counts once after merging.

    Args:
        row: one request's row of the columns ``candidates``, ``sources``, ``items`` and ``scores``.

    Returns:
        The number of candidates by source, then ``merged``, ``filtered`` and ``shown``.
    """
    counts = {name: int((row["sources"] & bit > 0).sum()) for bit, name in SOURCES.items()}
    left = {"merged": row["candidates"] > 0, "filtered": row["items"] > 0, "shown": np.isfinite(row["scores"])}
    return counts | {name: int(kept.sum()) for name, kept in left.items()}
