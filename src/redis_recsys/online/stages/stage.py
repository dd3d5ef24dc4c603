"""Base class of the online pipeline's stages: named columns in, named columns out, for a batch of requests at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...triton.tensors import Columns, Field

if TYPE_CHECKING:
    import redis

    from ...config import OnlineSettings
    from ...retrieval.index import Change
    from ..loaded_deployment import Deployment

RAW_ITEMS = (Field("item_categorical", "int32", (-1, -1)), Field("item_numeric", "float32", (-1, -1)))
"""Columns of candidates that the ranker needs when it computes their side itself."""

COMPUTED_ITEMS = (Field("item_vectors", "float32", (-1, -1)), Field("item_log_odds", "float32", (-1, 1)))
"""Columns of candidates that it needs when their side is already computed."""


class Stage(ABC):
    """One step. A stage belongs to one deployment, knows nothing of Triton, and keeps no state between requests.

    Attributes:
        name: name of the stage in settings, metrics and model names; alternatives of one stage share it.
        inputs, outputs: columns that it reads and produces.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[Field, ...]]
    outputs: ClassVar[tuple[Field, ...]]

    @abstractmethod
    def __init__(self, deployment: Deployment, settings: OnlineSettings, client: redis.Redis) -> None:
        """Load what the stage needs.

        Args:
            deployment: deployment that the stage belongs to.
            settings: settings of the pipeline.
            client: a Redis with a short timeout, for stages that read it at every request.

        Raises:
            BundleError: a model cannot be loaded.
            ConfigError: a setting does not fit the deployment.
        """

    @abstractmethod
    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        """Compute the outputs of b requests; every array has b as its first axis.

        Raises:
            StoreError: Redis failed; the runner then answers with popular items.
        """

    def follow(self, changes: Sequence[Change]) -> None:  # noqa: B027  # most stages have nothing to follow
        """Apply changes of the catalogue, already in ``deployment.shown``; called concurrently with requests."""
