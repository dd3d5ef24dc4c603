"""What the main environment asks of the Merlin environment: plain data, in a JSON file that both can read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Where the public multi-stage example has what its offline example exported: in its model repository and Feast's folder
PUBLISHED = {
    "query_tower": "models/1-user-embeddings/1/model.savedmodel",
    "dlrm": "models/5-ranking/1/model.savedmodel",
    "user_features.parquet": "feature_repo/data/user_features.parquet",
    "item_features.parquet": "feature_repo/data/item_features.parquet",
}


def piece(export: Path, name: str) -> Path:
    """The place of a piece of an export: beside the others, or where the public multi-stage example has it."""
    path = export / name
    published = export / PUBLISHED.get(name, name)
    return published if published.exists() and not path.exists() else path


@dataclass(frozen=True)
class Feature:
    """What the models see of a column.

    NVTabular's and Merlin's lists are not used, since they fail or crawl without a GPU: a column with several values is
    as many columns of one value each, with one vocabulary and one embedding table between them.

    Attributes:
        column: of the schema.
        side: user or item.
        numeric: standardised numbers; otherwise raw values of categories.
        names: columns of the rows: such as the column itself, or ``column_1``, ``column_2``, ... of several values.
    """

    column: str
    side: str
    numeric: bool
    names: list[str]


@dataclass(frozen=True)
class Job:
    """Train two-tower and DLRM, and export them as the public notebooks do.

    Attributes:
        rows: folder with ``train.parquet`` and ``valid.parquet``, flat rows of raw values; with ``final`` those of all
            parts in ``final.parquet``, and the other two only if the epochs are still to be chosen.
        export: folder to write.
        features: all that the models see, the ids among them.
        user_id, item_id, target: columns of the rows; beside the ids are raw ones, ``{user_id}_raw``.
        tower_dim, encoder_dim, ranking_dim: width of the towers' output, of their hidden layer, of DLRM's embeddings.
        epochs, patience: at most so many, and early stopping after so many without a better validation metric.
        retrieval_batch, ranking_batch: rows per step.
        learning_rate: of Adam, for both models.
        seed: of everything random.
        final: train again on all rows for as many epochs as were best.
        chosen: these epochs by model; empty if they are to be chosen on the train and valid part.
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
        return cls(**document | {"features": [Feature(**each) for each in document["features"]]})


@dataclass(frozen=True)
class SystemsJob:
    """Write the ensemble of Merlin Systems for an export.

    Attributes:
        export: folder that the notebooks wrote.
        target: existing folder to write to.
        feast_path: where the Feast repository will be when the ensemble is served.
        redis: Feast's connection string; secrets as ``${VARIABLE}``.
        user_id, item_id: names of columns.
        candidates, topk: items that retrieval hands on, and that are answered.
        temperature: of the softmax sampling.
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
