"""Offline batch scoring: every user of a bundle gets recommendations in Redis, as one new generation.

Threads score blocks of users (matrix products and ONNX Runtime release the interpreter) while the main thread writes
finished blocks to Redis. Only a few blocks exist at a time, so memory does not grow with the number of users.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import redis
from threadpoolctl import threadpool_limits

from ..bundle.bundle import Bundle
from ..bundle.rules import Rules
from ..config import BatchSettings, Settings
from ..dataset.entities import Entities
from ..dataset.user_history import History
from ..store.forgotten import BundleUsers
from ..store.recommendations import RecommendationsWriter
from ..utils.machine import cores
from ..utils.progress import progress
from .recommender import Recommender, Scored


@dataclass(frozen=True)
class BatchReport:
    """Result of a batch run."""

    generation: str
    users: int
    resumed_at: int
    seconds: float

    @property
    def users_per_second(self) -> float:
        """Users scored and written by this run, per second."""
        return (self.users - self.resumed_at) / self.seconds


def batch(bundle: Bundle, client: redis.Redis, settings: Settings) -> BatchReport:
    """Score all users and publish the result; readers see the old generation until everything is written.

    Args:
        bundle: bundle with the models and users.
        client: a connected Redis.
        settings: section ``batch``, and the business rules of section ``online``; the same bundle and settings resume
            an interrupted run where it stopped.

    Raises:
        ConfigError: the rules do not fit the bundle.
        StoreError: Redis fails, or another batch run is writing. The live generation stays as it was.
    """
    started = time.perf_counter()
    rules, options = Rules.of(bundle, settings.online), settings.batch
    rules.warn()
    raw_items = bundle.items.raw_ids
    with RecommendationsWriter.begin(client, _fingerprint(bundle, settings), options.grace) as writer:
        writer.done -= writer.done % options.block  # an interrupted block is scored and written again
        resumed_at = writer.done
        people = BundleUsers(client, bundle.made, writer.remove)
        with progress("scoring users", bundle.manifest.users) as advance:
            advance(resumed_at)
            for users, scored in score(bundle, options, rules.allowed, skip=resumed_at):
                items = raw_items[np.maximum(scored.items, 1) - 1]
                with people.block(users.raw_ids) as kept:
                    for user in users.raw_ids[~kept].tolist():  # an interrupted run may have written them
                        writer.remove(user)
                    writer.write(users.raw_ids, items, scored.scores, scored.counts, scored.unknown, kept)
                advance(len(users))
        popular = bundle.popularity.among(rules.allowed)
        best = slice(options.popular_kept)
        writer.publish(raw_items[popular.items[best] - 1], popular.scores[best])
        if not resumed_at:  # else nobody knows which users were written before
            people.live()
        return BatchReport(writer.generation, bundle.manifest.users, resumed_at, time.perf_counter() - started)


def _fingerprint(bundle: Bundle, settings: Settings) -> str:
    """Fingerprint of everything that recommendations depend on."""
    options = settings.batch.model_dump_json(include={"candidates", "topk", "temperature", "seed", "block", "popular"})
    return f"{bundle.fingerprint}:{options}:{settings.online.model_dump_json(include={'allow', 'deny'})}"


def score(
    bundle: Bundle, settings: BatchSettings, allowed: np.ndarray | None = None, skip: int = 0
) -> Iterator[tuple[Entities, Scored]]:
    """Recommendations of all users in table order, a block at a time.

    Args:
        bundle: bundle with the models and users.
        settings: settings of the run.
        allowed: mask bool[items + 1] by entity number of the items that may be recommended; default: all.
        skip: number of users that were done before, whole blocks.
    """
    models = Recommender(bundle, settings.retrieved, allowed)
    workers = settings.workers or cores()

    def work(number: int, users: Entities, history: History) -> tuple[Entities, Scored]:
        rng = np.random.default_rng([settings.seed, number])
        return users, models.recommend(users, history, settings.topk, settings.temperature, rng)

    waiting: deque[Future[tuple[Entities, Scored]]] = deque()
    with threadpool_limits(1), ThreadPoolExecutor(workers, thread_name_prefix="score") as pool:
        try:
            for number, (users, history) in enumerate(bundle.users(settings.block)):
                if number * settings.block < skip:
                    continue
                waiting.append(pool.submit(work, number, users, history))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
