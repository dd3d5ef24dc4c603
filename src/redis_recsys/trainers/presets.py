"""Training settings chosen for known data."""

from __future__ import annotations

from typing import Any

from ..config import Settings, TrainSettings

# MovieLens-100k has few users, and tastes change within weeks. These values were chosen on its valid part.
MOVIELENS: dict[str, Any] = {
    "history": "earlier",
    "half_life": 20.0,
    "feature_dropout": 0.5,
    "epochs": 10,
    "patience": 3,
}


def movielens_training(settings: Settings) -> TrainSettings:
    """Return the settings of the torch trainer for MovieLens-100k; settings made by the user win."""
    if settings.train.trainer != "torch":
        return settings.train
    return TrainSettings(**MOVIELENS | settings.train.model_dump(exclude_unset=True))
