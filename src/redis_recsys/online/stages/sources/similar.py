"""Candidate source: the items nearest to the one that the user viewed last."""

from __future__ import annotations

import numpy as np

from .nearest import Nearest


class Similar:
    """Neighbours of items, searched and cached when an item is first the last one viewed."""

    def __init__(self, nearest: Nearest, count: int) -> None:
        self._nearest, self._count = nearest, count
        self.forget()

    def __call__(self, seen: np.ndarray) -> np.ndarray:
        """Neighbours int32[b, count] of the first column of ``seen`` int32[b, s]; 0 for users who viewed nothing.

        Raises:
            StoreError: Redis failed.
        """
        if not self._count or not seen.shape[1]:
            return np.zeros((len(seen), self._count), np.int32)
        neighbours, last = self._neighbours, seen[:, 0]  # replaced by a new array when the vectors change
        missing = np.unique(last[neighbours[last, 0] < 0])
        if len(missing):
            queries = self._nearest.embeddings[missing - 1]
            neighbours[missing], _ = self._nearest.search(queries, self._count, missing[:, None])
        return neighbours[last]

    def forget(self) -> None:
        """Discard cached neighbours, since vectors have changed."""
        neighbours = np.full((len(self._nearest.embeddings) + 1, self._count), -1, np.int32)  # -1: not searched yet
        neighbours[0] = 0
        self._neighbours = neighbours
