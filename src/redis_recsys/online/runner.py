"""Runner of the online stages.

The runner owns what is the same for every stage: the check that every input is there, the timing, the fallback when
Redis fails, and the deployment that answers, the same from a request's first stage to its last.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..config import Settings
from ..errors import ServingError, StoreError
from ..store.connection import check, client_of
from ..triton.tensors import Columns, stack
from .fallback import insert_popular, mark_degraded
from .follower import Follower, LoadedStages
from .partition import stages_of
from .stage_metrics import COUNTED, StageMetrics
from .stages.stage import Stage

log = logging.getLogger(__name__)


class Runner:
    """Runs one model's stages for the live deployment, which a follower exchanges in the background.

    Attributes:
        metrics: metrics of the stages.
        follower: follower of deployments.
    """

    def __init__(self, names: Sequence[str], settings: Settings) -> None:
        """Load the live deployment.

        Args:
            names: names of the stages, in order.
            settings: all settings; Redis must be configured.

        Raises:
            StoreError: Redis fails, or nothing is deployed.
            ConfigError: settings contradict each other.
        """
        stages = stages_of(settings.online)
        self._settings, self._stages = settings, [stages[name] for name in names]
        self._first, self._last = names[0] == next(iter(stages)), names[-1] == next(reversed(stages))
        self.metrics = StageMetrics(names)
        # a connection that Redis has closed meanwhile is reopened at once; a timeout is not retried
        once = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
        self._client = client_of(settings.redis, settings.online.timeout, once)
        self._patient = client_of(settings.redis, settings.redis.timeout, once)
        self._paused_until = 0.0
        check(self._patient)
        self.follower = Follower(self._stages, settings, self._client, self._patient, answers=self._last)

    def close(self) -> None:
        """Stop following deployments and close connections."""
        self.follower.close()
        self._client.close()
        self._patient.close()

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        """Compute the outputs of b requests.

        Args:
            columns: the inputs, each [b, ...].

        Returns:
            Every output of the stages, ``degraded`` and ``generation`` as bool and int64 [b, 1], and, if answers are to
            be explained, the microseconds that the batch spent in each stage, float32[b, 1], as ``us_<stage>``.

        Raises:
            ServingError: an input is missing.
        """
        if self._first:
            live, count = self.follower.live, len(columns["user_id"])
            status = {
                "degraded": np.zeros((count, 1), bool),
                "generation": np.full((count, 1), int(live.generation), np.int64),
            }
            return self._run_or_fall_back(live, {**columns, **status})
        requested = columns["generation"][:, 0]
        generations = np.unique(requested)
        rows = [np.flatnonzero(requested == generation) for generation in generations]
        parts = [
            self._run_or_fall_back(
                self.follower.loaded(str(generation)), {name: column[selected] for name, column in columns.items()}
            )
            for generation, selected in zip(generations, rows, strict=True)
        ]
        back = np.argsort(np.concatenate(rows), kind="stable")
        return {name: stack([outputs[name] for outputs in parts])[back] for name in parts[0]}

    def _run_or_fall_back(self, loaded: LoadedStages, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        failed = loaded.stages is None or time.monotonic() < self._paused_until or columns["degraded"].all()
        if not failed:
            try:
                self._run_stages(loaded.stages or (), columns)
            except StoreError as error:
                log.warning("%s: answering with popular items", error)
                if isinstance(error.__cause__, (redis.ConnectionError, redis.TimeoutError)):  # not just one key
                    self._paused_until = time.monotonic() + self._settings.online.pause
                failed = True
        if failed:
            mark_degraded(columns, self._stages, self._settings.triton.explain)
        if self._last:
            self.metrics.degraded += insert_popular(columns, loaded.popular)
            self.metrics.requests += len(columns["degraded"])
        return columns

    def _run_stages(self, stages: Sequence[Stage], columns: dict[str, np.ndarray]) -> None:
        """Add the outputs of the stages to the columns, in place."""
        for stage in stages:
            began = time.perf_counter()
            columns |= _checked(stage, columns)
            seconds = time.perf_counter() - began
            self.metrics.add(stage.name, seconds)
            if stage.name in COUNTED:
                self.metrics.candidates[stage.name] += int(np.count_nonzero(columns[COUNTED[stage.name]]))
            if self._settings.triton.explain:
                columns["us_" + stage.name] = np.full((len(columns["generation"]), 1), seconds * 1e6, np.float32)


def _checked(stage: Stage, columns: Columns) -> dict[str, np.ndarray]:
    missing = [field.name for field in stage.inputs if field.name not in columns]
    if missing:
        raise ServingError(f"stage {stage.name} lacks its input {', '.join(missing)}: check the partition")
    return stage(columns)
