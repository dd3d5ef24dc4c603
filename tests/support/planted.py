"""Small data with a planted preference, and small bundles trained on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.config import MerlinSettings, Settings, TrainSettings
from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.entities import Entities
from redis_recsys.dataset.interactions import Dataset
from redis_recsys.dataset.schema import Column, Schema
from redis_recsys.dataset.split import Split
from redis_recsys.dataset.user_history import History
from tests.support.paths import ROOT

GROUPS = 4
MERLIN_ENVIRONMENT = ROOT / ".venv-merlin"
ODD_NAMES = {
    "user": "con",
    "group": "../../../x",
    "recent": ".",
    "item": "user_features:con",
    "title": "Größe [/red]",
    "genres": "topic/sub*?",
    "age": "event_timestamp",
    "price": "Long name " * 50 + ".",
    "click": "raw_id",
    "time": "time",
}
TINY: dict[str, Any] = {
    "epochs": 1,
    "embedding_dim": 8,
    "ranking_dim": 4,
    "retrieval_batch": 256,
    "ranking_batch": 256,
    "device": "cpu",
    "refit": False,
}


def planted(
    folder: Path,
    rows: int = 3000,
    users: int = 60,
    items: int = 40,
    target: bool = True,
    numerics: bool = True,
    lists: bool = True,
    history: bool = True,
    text_ids: bool = False,
    spare: int = 1,
) -> Path:
    """A raw folder in which users click on items of their own group (number modulo 4) and hardly on others.

    The last ``spare`` users and items have features and no interactions. Some lists are empty, some numbers null.
    """
    random = np.random.default_rng(7)
    user, item = random.integers(users - spare, size=rows), random.integers(items - spare, size=rows)
    click = random.random(rows) < np.where(user % GROUPS == item % GROUPS, 0.8, 0.08)
    time = np.arange(rows) * 60
    if not target:
        user, item, time = user[click], item[click], time[click]

    def ids(numbers: np.ndarray, prefix: str) -> Any:
        return [f"{prefix}{number + 1}" for number in numbers] if text_ids else numbers + 1

    columns = [Column(name="user", side="user", kind="categorical", role="id")]
    user_table: dict[str, Any] = {"user": ids(np.arange(users), "u"), "group": np.arange(users) % GROUPS}
    columns.append(Column(name="group", side="user", kind="categorical"))
    if history:
        columns.append(Column(name="recent", side="user", kind="multi-categorical", role="history", max_length=3))
    columns.append(Column(name="item", side="item", kind="categorical", role="id"))
    columns.append(Column(name="title", side="item", kind="text", role="label"))
    item_table: dict[str, Any] = {"item": ids(np.arange(items), "i"), "title": [f"Item {n + 1}" for n in range(items)]}
    if lists:
        columns.append(Column(name="genres", side="item", kind="multi-categorical", max_length=2))
        item_table["genres"] = [["g" + str(n % GROUPS), "even"][: n % 5] for n in range(items)]
    if numerics:
        columns += [Column(name=name, side=side, kind="numeric") for name, side in (("age", "user"), ("price", "item"))]
        user_table["age"] = pa.array([None if n % 7 == 0 else 20.0 + n for n in range(users)])
        item_table["price"] = pa.array([None if n % 5 == 0 else float(n) for n in range(items)])
    columns.append(Column(name="time", side="time", kind="numeric", unit="s"))
    table: dict[str, Any] = {"user": ids(user, "u"), "item": ids(item, "i"), "time": time}
    if target:
        columns.append(Column(name="click", side="target", kind="categorical"))
        table["click"] = click.astype(np.int64)
    (folder / "interactions").mkdir(parents=True)
    Schema(name="planted", columns=columns).save(folder / "schema.yaml")
    pq.write_table(pa.table(table), folder / "interactions" / "part-0.parquet")
    pq.write_table(pa.table(user_table), folder / "users.parquet")
    pq.write_table(pa.table(item_table), folder / "items.parquet")
    return folder


def renamed(folder: Path, names: dict[str, str], **having: Any) -> Path:
    """A planted raw folder whose columns have other names."""
    planted(folder, **having)
    schema = yaml.safe_load((folder / "schema.yaml").read_text())
    for column in schema["columns"]:
        column["name"] = names[column["name"]]
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema, sort_keys=False))
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.rename_columns([names[name] for name in table.column_names]), path)
    return folder


def planted_dataset(folder: Path, **having: Any) -> Dataset:
    """The planted data, encoded."""
    encode(planted(folder / "raw", **having), folder / "dataset", Split())
    return Dataset(folder / "dataset")


@dataclass(frozen=True)
class Trained:
    """A dataset, the bundle trained on it, and the exported torch models or the folder of Merlin's."""

    dataset: Dataset
    bundle: Bundle
    two_tower: Any = None
    dlrm: Any = None
    export: Path | None = None

    def keep(self, folder: Path) -> None:
        """Keep the torch models beside the bundle, for :meth:`kept` in another process."""
        import torch

        torch.save((self.two_tower, self.dlrm), folder / "models.pt")

    @classmethod
    def kept(cls, folder: Path) -> Trained:
        """Dataset, bundle and models in a folder in which one was trained."""
        import torch

        models, export = folder / "models.pt", folder / "export"
        loaded = torch.load(models, weights_only=False) if models.exists() else (None, None)
        return cls(Dataset(folder / "dataset"), Bundle(folder / "bundle"), *loaded, export if export.exists() else None)


def trained_on(dataset: Dataset, target: Path, **settings: Any) -> Trained:
    """Train a small bundle and keep the torch models."""
    from redis_recsys.trainers.torch import train as trainer

    models: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        export = trainer.export_models

        def kept(towers: Any, ranker: Any, *args: Any) -> Any:
            models.extend([towers, ranker])
            return export(towers, ranker, *args)

        patch.setattr(trainer, "export_models", kept)
        training = trainer.Trainer(dataset, TrainSettings(**TINY | settings), target)
        training.fit_retrieval()
        training.fit_ranking()
        bundle = training.export()
    return Trained(dataset, bundle, *models)


def trained_by_merlin(dataset: Dataset, folder: Path) -> Trained:
    """Train a small bundle in the Merlin environment, and keep Merlin's export."""
    from redis_recsys.trainers.training import train

    settings = Settings(
        train=TrainSettings(trainer="merlin", epochs=25, patience=25, embedding_dim=16),
        merlin=MerlinSettings(
            environment=MERLIN_ENVIRONMENT, log=folder / "merlin.log", retrieval_batch=256, ranking_batch=256,
            learning_rate=0.01, encoder_dim=16, ranking_dim=16,
        ),
    )  # fmt: skip
    bundle = train(dataset, settings, folder / "bundle", folder / "export")
    return Trained(dataset, bundle, export=folder / "export")


VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {"rows": 4000, "users": 200},
    "ids-and-one-category": {"target": False, "numerics": False, "lists": False, "history": False},
    "text-ids-history-implicit": {"target": False, "numerics": False, "text_ids": True},
    "numerics-no-history": {"lists": False, "history": False},
}


def before_test(dataset: Dataset) -> Iterator[tuple[Entities, History]]:
    """Every user after the train and the valid part, one at a time: features with newest items, and all items."""
    column, clicks = dataset.schema.history, dataset.rows("train", "valid").positives()
    for number in range(len(dataset.users)):
        items = clicks.item[clicks.user == number + 1]  # rows are in the order of time
        user = dataset.users.rows(slice(number, number + 1))
        if column is not None:
            assert column.cardinality is not None
            newest = [item if item < column.cardinality else 0 for item in items[::-1][: column.width]]
            user.categorical[0, dataset.schema.slots(column)] = newest + [0] * (column.width - len(newest))
        yield user, History(np.array([0, 0, len(items)]), items)


def one_by_one(
    bundle: Bundle,
    candidates: int,
    k: int,
    ranked: bool = True,
    users: Iterable[tuple[Entities, History]] | None = None,
) -> list[tuple[list[int], list[float]]]:
    """Items (by number) and scores of every user, one user at a time: plain NumPy and the bundle's whole models.

    Users are those of the bundle unless others are given, such as those of :func:`before_test`.
    """
    tower, ranker = bundle.user_tower(), bundle.ranker()
    catalogue = bundle.items
    results = []
    for user, history in users or bundle.users(block=1):
        nearness = bundle.item_embeddings @ tower.embed(user.categorical, user.numeric)[0]
        seen = set(history[1].tolist())
        ranking = [item for item in (np.argsort(-nearness, kind="stable") + 1).tolist() if item not in seen]
        items, scores = ranking[:candidates], np.zeros(len(ranking[:candidates]))
        if ranked and items:
            at = np.array(items) - 1
            features = catalogue.categorical[None, at], catalogue.numeric[None, at]
            scores = ranker(user.categorical, user.numeric, *features)[0]
        best = np.argsort(-scores, kind="stable")[:k]
        results.append(([items[n] for n in best], scores[best].tolist()))
    return results
