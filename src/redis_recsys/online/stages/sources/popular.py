"""Candidate source: the most popular items that may be shown."""

from __future__ import annotations

import numpy as np

from ...loaded_deployment import Deployment


class PopularItems:
    """Popular items of a deployment: the same for every user, and the only candidates for unknown users."""

    def __init__(self, deployment: Deployment, count: int) -> None:
        self._deployment, self._count = deployment, count
        self.refresh()

    def __call__(self, users: int) -> np.ndarray:
        """The most popular items int32[users, count], fewer columns if there are fewer items."""
        return np.tile(self._popular.items[: self._count], (users, 1))

    def unseen(self, seen: np.ndarray, width: int) -> np.ndarray:
        """The most popular items int32[b, width] that are not ``seen`` int32[b, s]; 0 where there are no more."""
        if not len(self._popular.items):
            return np.zeros((len(seen), width), np.int32)
        return self._popular.unseen(seen, width)[0]

    def refresh(self) -> None:
        """Leave out items removed since."""
        self._popular = self._deployment.popular
