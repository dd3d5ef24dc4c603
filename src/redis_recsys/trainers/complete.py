"""The last step of every trainer: what a bundle holds besides its models."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..bundle import finish, write_tables
from ..dataset import Dataset, Rows
from ..entities import ITEM_VALUES, Entities, write_entities
from ..history import History
from ..inference import Tower
from ..popularity import Clicks


def users_after(dataset: Dataset, rows: Rows) -> tuple[Entities, History]:
    """Users as they are after ``rows``, their newest items filled in, and who has interacted with what."""
    history = History.of(rows, len(dataset.users))
    users = replace(dataset.users, categorical=dataset.users.categorical.copy())
    history.fill(users.categorical, dataset.schema)
    return users, history


def complete(
    folder: Path, dataset: Dataset, rows: Rows, users: Entities, history: History, trainer: str, metrics: dict[str, Any]
) -> None:
    """Write everything but the ONNX files, which must be there.

    Args:
        folder: a directory from :func:`bundle.writing_bundle`.
        dataset: that the models were trained on.
        rows: its interactions up to the test.
        users, history: what :func:`users_after` returns of them.
        trainer: name for the manifest.
        metrics: of the training.
    """
    embeddings = Tower(folder / "item_tower.onnx").embed(dataset.items.categorical, dataset.items.numeric)
    write_tables(folder, embeddings, Clicks.of(rows, len(dataset.items)), history, len(users))
    write_entities(folder / "user_features.parquet", dataset.schema, "user", users)
    write_entities(folder / "item_features.parquet", dataset.schema, "item", dataset.items)
    if (dataset.path / ITEM_VALUES).exists():  # data sets of earlier releases have none
        shutil.copyfile(dataset.path / ITEM_VALUES, folder / ITEM_VALUES)
    shutil.copytree(dataset.path / "vocab", folder / "vocab", dirs_exist_ok=True)
    finish(folder, dataset.schema, trainer, metrics, embeddings.shape[1], len(users), len(dataset.items))
