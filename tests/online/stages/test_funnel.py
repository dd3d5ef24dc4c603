"""Candidates counted from source to answer."""

from __future__ import annotations

import numpy as np

from redis_recsys.online.stages.funnel import funnel
from redis_recsys.online.stages.sources.merge import NEAREST, POPULAR, SIMILAR


def test_candidates_are_counted_by_source_once_merged_once_filtered_and_once_shown() -> None:
    row = {
        # item 7 came from two sources and item 9 from three; the merge left their other positions empty
        "candidates": np.array([7, 8, 9, 0, 0, 5], np.int32),
        "sources": np.array([NEAREST | SIMILAR, NEAREST, NEAREST | SIMILAR | POPULAR, 0, 0, POPULAR], np.uint8),
        "items": np.array([7, 8, 0, 0, 0, 5], np.int32),
        "scores": np.array([0.9, 0.4, -np.inf], np.float32),
    }
    assert funnel(row) == {"nearest": 3, "similar": 2, "popular": 2, "merged": 4, "filtered": 3, "shown": 2}
