"""The main job from end to end on MovieLens-100k, as ``make demo`` runs it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .batch import batch
from .config import Settings, TrainSettings
from .data.movielens import fetch
from .dataset import Dataset
from .etl import encode
from .evaluate import Report, evaluate
from .progress import console
from .recommender import Everyone
from .split import Split
from .store.connection import connect
from .store.recommendations import Recommendations, get_many

# MovieLens-100k has few users and fashions that change within weeks. These values were chosen on its valid part.
MOVIELENS: dict[str, Any] = {"half_life": 20.0, "feature_dropout": 0.5, "epochs": 10, "patience": 3}


def movielens_training(settings: Settings) -> TrainSettings:
    """Training settings for MovieLens-100k; those that the user has set win."""
    return TrainSettings(**MOVIELENS | settings.train.model_dump(exclude_unset=True))


def demo(settings: Settings, users: int = 3) -> tuple[Report, list[Recommendations]]:
    """Fetch, encode, train, evaluate beside baselines, score everyone into Redis, and read a few users back.

    Args:
        settings: where data goes and where Redis is; training settings that were set win over the demo's own.
        users: how many users to read.

    Returns:
        The evaluation, and what Redis holds for the first users.
    """
    from .baselines import fit_baselines
    from .trainers.torch.train import train

    folder = settings.data / "demo"
    with _step("1/5  MovieLens-100k"):
        fetch(settings.data / "raw" / "movielens-100k", "100k", cache=settings.data / "downloads")
    with _step("2/5  encode and split by time"):
        encode(settings.data / "raw" / "movielens-100k", folder / "dataset", Split())
    dataset = Dataset(folder / "dataset")
    with _step("3/5  train two-tower and DLRM, export to ONNX"):
        bundle = train(dataset, movielens_training(settings), folder / "bundle")
    with _step("4/5  evaluate on the newest 10%, over the full catalogue"):
        candidates = settings.batch.candidates
        towers, both = Everyone(bundle, candidates, ranked=False), Everyone(bundle, candidates)
        report = evaluate(dataset, [*fit_baselines(dataset), towers, both], predict=both.predict)
    with _step("5/5  score every user and write to Redis"), connect(settings.redis) as client:
        written = batch(bundle, client, settings.batch)
        console.print(f"{written.users:,} users written at {written.users_per_second:,.0f} users/s", highlight=False)
        first = next(bundle.users(users))[0].raw_ids
        return report, get_many(client, first.tolist())


@contextmanager
def _step(name: str) -> Iterator[None]:
    console.print(f"[bold]{name}[/]", highlight=False)
    started = time.perf_counter()
    yield
    console.print(f"     {time.perf_counter() - started:.1f} s", highlight=False)
