"""A deployment as a server sees it: its record in Redis, its bundle on disk, and data derived from the bundle."""

from __future__ import annotations

import logging
from functools import cached_property

import numpy as np
import redis

from ..bundle.bundle import Bundle
from ..bundle.rules import Rules
from ..config import Settings
from ..dataset.popularity import Popular
from ..retrieval.index import Change
from ..store import deployments, vectors

log = logging.getLogger(__name__)


class Deployment:
    """One generation. Data that stages share is computed once, on first use.

    Attributes:
        generation: its name in Redis.
        record: its record in Redis.
        bundle: the deployed bundle.
        data: the data folder, which holds Feast's registry.
        allowed: whether the business rules allow each item, bool[items + 1] by entity number; never the unknown item 0.
        shown: the same without items removed from the vectors; replaced by a new array when that changes.
    """

    def __init__(self, record: deployments.DeploymentRecord, settings: Settings) -> None:
        """
        Args:
            record: record from ``deployments.read``.
            settings: settings with the folder of deployed bundles and the business rules.

        Raises:
            BundleError: the bundle is missing there or damaged.
            ConfigError: the rules do not fit the bundle.
        """
        self.generation = record.generation
        self.record = record
        self.bundle = Bundle(settings.deploy.models / record.folder)
        self.data = settings.data
        rules = Rules.of(self.bundle, settings.online)
        rules.warn(f"generation {self.generation}: ")
        self.allowed = self.shown = rules.allowed
        self._change = "0"

    def follow(self, client: redis.Redis) -> list[Change]:
        """Apply the changes of the vectors since the last call; returns these changes.

        Raises:
            StoreError: Redis fails.
        """
        self._change, changes = vectors.changes(client, self.generation, self._change)
        if changes:
            shown = self.shown.copy()
            for change in changes:
                if change.item < len(shown):  # an item added later has no features, so it cannot be ranked
                    shown[change.item] = self.allowed[change.item] and change.embedding is not None
            self.shown = shown
        return changes

    @cached_property
    def raw_items(self) -> np.ndarray:
        """Raw ids by entity number: int64[items + 1], or object[items + 1] of bytes; row 0, no item, is -1 or b''."""
        raw = self.bundle.items.raw_ids
        if raw.dtype.kind in "iu":
            return np.concatenate([[-1], raw]).astype(np.int64)
        return np.array([b"", *(raw_id.encode() for raw_id in raw)], object)

    @property
    def popular(self) -> Popular:
        """The items that may be shown now, most popular first."""
        return self.bundle.popularity.among(self.shown)
