"""The last step of every trainer: the files of a bundle besides its models."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..dataset.entities import ITEM_VALUES, write_entities
from ..dataset.interactions import PARTS, Dataset, Part
from ..dataset.popularity import Clicks
from ..dataset.user_history import users_after
from .bundle import features_file, finish, tower_file, write_tables
from .models import Tower


def complete(
    folder: Path, dataset: Dataset, trainer: str, metrics: dict[str, Any], learned: Sequence[Part], final: bool
) -> None:
    """Write everything but the ONNX files, which must be there.

    Histories, newest items and popularity include every row, whatever the models have learned from: items that users
    had yesterday are not recommended today.

    Args:
        folder: a directory from :func:`bundle.writing_bundle`.
        dataset: dataset on which the models were trained.
        trainer: name for the manifest.
        metrics: metrics of the training.
        learned: parts of the dataset that the models have learned from.
        final: whether these are all parts, for production.
    """
    rows = dataset.rows(*PARTS)
    users, history = users_after(dataset, rows)
    embeddings = Tower(folder / tower_file("item")).embed(dataset.items.categorical, dataset.items.numeric)
    write_tables(folder, embeddings, Clicks.of(rows, len(dataset.items)), history, len(users))
    write_entities(folder / features_file("user"), dataset.schema, "user", users)
    write_entities(folder / features_file("item"), dataset.schema, "item", dataset.items)
    if (dataset.path / ITEM_VALUES).exists():  # data sets of earlier releases have none
        shutil.copyfile(dataset.path / ITEM_VALUES, folder / ITEM_VALUES)
    shutil.copytree(dataset.path / "vocab", folder / "vocab", dirs_exist_ok=True)
    counts_of = {part: dataset.count(part) for part in learned}
    finish(
        folder, dataset.schema, trainer, metrics, embeddings.shape[1], len(users), len(dataset.items), counts_of, final
    )
