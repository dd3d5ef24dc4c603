"""Jobs for the Merlin environment: plain data, in a JSON file that both environments can read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Paths of the offline example's exports in the public multi-stage example: in its model repository and Feast's folder
PUBLISHED = {
    "query_tower": "models/1-user-embeddings/1/model.savedmodel",
    "dlrm": "models/5-ranking/1/model.savedmodel",
    "user_features.parquet": "feature_repo/data/user_features.parquet",
    "item_features.parquet": "feature_repo/data/item_features.parquet",
}


def piece(export: Path, name: str) -> Path:
    """Path of a piece of an export: beside the others, or its path in the public multi-stage example."""
    path = export / name
    published = export / PUBLISHED.get(name, name)
    return published if published.exists() and not path.exists() else path


@dataclass(frozen=True)
class Feature:
    """Input of the models from one column.

    NVTabular's and Merlin's lists are not used, since they fail or crawl without a GPU: a column with several values
    becomes as many columns of one value each, which share one vocabulary and one embedding table.

    Attributes:
        column: name of the column in the schema.
        side: user or item.
        numeric: whether values are standardised numbers; otherwise raw values of categories.
        names: columns of the rows: such as the column itself, or ``column_1``, ``column_2``, ... for several values.
    """

    column: str
    side: str
    numeric: bool
    names: list[str]


@dataclass(frozen=True)
class Job:
    """Training of two-tower and DLRM, and their export as in the public notebooks.

    Attributes:
        rows: folder with ``train.parquet`` and ``valid.parquet``, flat rows of raw values; with ``final`` also
            ``final.parquet``, the rows of all parts, and the other two only if the epochs are yet to be chosen.
        export: folder to write.
        features: all inputs of the models, ids included.
        user_id, item_id, target: columns of the rows; raw ids are in ``{user_id}_raw`` and ``{item_id}_raw``.
        tower_dim, encoder_dim, ranking_dim: width of the towers' output, of their hidden layer, of DLRM's embeddings.
        epochs, patience: maximum number of epochs, and epochs without a better validation metric before stopping.
        retrieval_batch, ranking_batch: rows per step.
        learning_rate: learning rate of Adam, for both models.
        seed: seed of all random draws.
        final: whether to train again on all rows, for the best number of epochs.
        chosen: best epochs by model; empty to choose them on the train and valid parts.
    """

    rows: str
    export: str
    features: list[Feature]
    user_id: str
    item_id: str
    target: str
    tower_dim: int
    encoder_dim: int
    ranking_dim: int
    epochs: int
    patience: int
    retrieval_batch: int
    ranking_batch: int
    learning_rate: float
    seed: int
    final: bool = False
    chosen: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Job:
        """Read a job."""
        document = json.loads(path.read_text())
        return cls(**document | {"features": [Feature(**feature) for feature in document["features"]]})


@dataclass(frozen=True)
class SystemsJob:
    """Writing of Merlin Systems' ensemble for an export.

    Attributes:
        export: folder written by the notebooks.
        target: existing folder to write to.
        feast_path: path of the Feast repository when the ensemble is served.
        redis: Feast's connection string; secrets as ``${VARIABLE}``.
        user_id, item_id: names of columns.
        candidates, topk: number of items from retrieval, and in an answer.
        temperature: temperature of the softmax sampling.
    """

    export: str
    target: str
    feast_path: str
    redis: str
    user_id: str
    item_id: str
    candidates: int
    topk: int
    temperature: float

    @classmethod
    def load(cls, path: Path) -> SystemsJob:
        """Read a job."""
        return cls(**json.loads(path.read_text()))


def save(job: Job | SystemsJob, path: Path) -> None:
    """Write a job."""
    path.write_text(json.dumps(asdict(job), indent=2) + "\n")
