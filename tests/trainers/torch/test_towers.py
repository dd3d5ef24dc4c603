"""The towers learn what follows what, mask what is clicked next, and look the same when exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from redis_recsys.bundle.models import Tower
from redis_recsys.config import TrainSettings
from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.interactions import Dataset
from redis_recsys.dataset.schema import Column, Schema
from redis_recsys.dataset.split import Split
from redis_recsys.dataset.user_history import History
from redis_recsys.trainers.torch.export import export_models
from redis_recsys.trainers.torch.inputs import NEXT, FeatureVectors, Interactions, RecentItems, RecentVectors, Table
from redis_recsys.trainers.torch.ranker import DLRM
from redis_recsys.trainers.torch.train import Trainer
from redis_recsys.trainers.torch.two_tower import FEW, TwoTower

ITEMS, USERS, LENGTH = 200, 200, 24


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Clicks of users who go from item n to n + 7 (modulo all), with jumps; the newest are held out."""
    folder = tmp_path_factory.mktemp("chain")
    random = np.random.default_rng(3)
    item = np.zeros((USERS, LENGTH), np.int64)
    item[:, 0] = random.integers(ITEMS, size=USERS)
    for step in range(1, LENGTH):
        jump = random.random(USERS) < 0.1
        item[:, step] = np.where(jump, random.integers(ITEMS, size=USERS), (item[:, step - 1] + 7) % ITEMS)
    columns = [
        Column(name="user", side="user", kind="categorical", role="id"),
        Column(name="recent", side="user", kind="multi-categorical", role="history", max_length=5),
        Column(name="item", side="item", kind="categorical", role="id"),
        Column(name="time", side="time", kind="numeric"),
    ]
    raw = folder / "raw"
    (raw / "interactions").mkdir(parents=True)
    Schema(name="chain", columns=columns).save(raw / "schema.yaml")
    rows = {
        "user": np.tile(np.arange(USERS), LENGTH),
        "item": item.T.ravel(),
        "time": np.repeat(np.arange(LENGTH), USERS),
    }
    pl.DataFrame(rows).write_parquet(raw / "interactions" / "part-0.parquet")
    encode(raw, folder / "dataset", Split(valid=1 / LENGTH, test=1 / LENGTH))
    return Dataset(folder / "dataset")


def towers_of(dataset: Dataset, clicks: int = FEW, **settings: Any) -> TwoTower:
    """Untrained towers of a dataset whose users all have so many clicks."""
    counts = np.ones(len(dataset.items) + 1)
    size = dataset.schema.id_column("user").cardinality or 1
    chosen = TrainSettings(embedding_dim=8, **settings)
    return TwoTower(dataset.schema, Table(dataset.items), counts, np.full(size, clicks), chosen)


def batches_of(dataset: Dataset, shown: Any, cold: float = 0.0) -> Interactions:
    rows = dataset.rows("train")
    recent = RecentItems(History.of(rows, len(dataset.users)), dataset.schema)
    tables = Table(dataset.users), Table(dataset.items), recent
    ends = History.ends_before(rows)
    return Interactions(rows, ends, None, *tables, dataset.schema, shown, cold, torch.device("cpu"))


def test_what_follows_the_last_item_is_learnt_from_exact_histories(chain: Dataset, tmp_path: Path) -> None:
    best = {}
    for history in ("exact", "earlier"):
        settings = TrainSettings(
            history=history,
            epochs=15,
            patience=15,
            embedding_dim=16,
            retrieval_batch=256,
            retrieval_lr=0.01,
            device="cpu",
        )
        records = Trainer(chain, settings, tmp_path / history).fit_retrieval()
        best[history] = max(record["metric"] for record in records)
    assert best["exact"] > 0.6
    assert best["exact"] > best["earlier"] + 0.2


def test_a_click_is_shown_with_the_items_just_before_it_newest_first(chain: Dataset) -> None:
    data, rows = batches_of(chain, "exact"), chain.rows("train")
    slots = chain.schema.slots(chain.schema.id_column("user")).stop
    batch = data.batch(torch.arange(len(rows)))
    for number in range(0, len(rows), 371):
        before = rows.item[(rows.user == rows.user[number]) & (rows.time < rows.time[number])][::-1][:5]
        shown = batch.users.categorical[number, slots:].tolist()
        assert shown == [*before.tolist(), *[0] * (5 - len(before))]
        after = rows.item[(rows.user == rows.user[number]) & (rows.time > rows.time[number])][:NEXT]
        assert batch.later[number].tolist() == [*after.tolist(), *[0] * (NEXT - len(after))]


def test_new_users_have_neither_id_nor_history(chain: Dataset) -> None:
    batch = batches_of(chain, "exact", cold=1.0).batch(torch.arange(500))
    assert not batch.users.categorical.any()


def test_what_a_user_clicks_next_is_no_negative(chain: Dataset) -> None:
    model = towers_of(chain).eval()
    batch = batches_of(chain, "exact").batch(torch.arange(60))

    nothing, everything = torch.zeros(60, 1), torch.arange(1, len(chain.items) + 1).expand(60, -1)
    with torch.inference_mode():
        losses = [model.compute_loss(batch._replace(later=later)).item() for later in (nothing, everything)]
    assert losses[0] > 1
    assert losses[1] < 1e-4  # with every other item left out, nothing is confused with the click


def test_a_weighted_history_begins_between_its_mean_and_its_newest_item(chain: Dataset) -> None:
    items = FeatureVectors(chain.schema, "item", 8)
    recent = RecentVectors(chain.schema, items)
    row = torch.tensor([[1, 3, 4, 5, 0, 0], [1, 0, 0, 0, 0, 0]], dtype=torch.int32)
    vectors = recent(row)
    table = items.embedding.weight
    assert torch.allclose(vectors[0, 0], table[3:6].mean(0), atol=1e-6)
    assert torch.allclose(vectors[0, -1], table[3], atol=0.02)
    assert torch.allclose(vectors[1], table[0].expand(recent.count, -1))


def test_exported_towers_weigh_the_history_as_the_models_do(chain: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = towers_of(chain).eval()
    recent = model.user_tower.vectors.recent
    assert recent is not None
    with torch.no_grad():
        recent.place.normal_()
        recent.score.normal_()
        model.item_tower.vectors.embedding.weight.normal_()
    ranker = DLRM(chain.schema, np.zeros(len(chain.items) + 1), TrainSettings())
    assert max(export_models(model, ranker, Table(chain.users), Table(chain.items), tmp_path).values()) < 1e-5
    row = chain.users.categorical[:1].copy()
    row[0, -5:] = [3, 4, 5, 6, 7]
    turned = row.copy()
    turned[0, -5:] = row[0, -5:][::-1]
    rows, numeric = np.concatenate([row, turned]), np.empty((2, 0), np.float32)
    exported = Tower(tmp_path / "user_tower.onnx").embed(rows, numeric)
    with torch.inference_mode():
        expected = model.user_tower(torch.from_numpy(rows), torch.from_numpy(numeric)).numpy()
    assert exported == pytest.approx(expected, abs=1e-5)
    assert np.abs(exported[0] - exported[1]).max() > 0.01  # the order counts


@pytest.mark.parametrize(("clicks", "own"), [(FEW, True), (FEW - 1, False)])
def test_users_with_few_clicks_are_unknown_in_training_and_afterwards(chain: Dataset, clicks: int, own: bool) -> None:
    model = towers_of(chain, clicks).eval()
    rows = Table(chain.users)(torch.tensor([1, 2]))
    rows.categorical[:, 1:] = 0
    before = model.embed("user", rows)
    model.settle()
    with torch.inference_mode():
        after = model.user_tower(*rows).numpy()
    assert after == pytest.approx(before, abs=1e-6)
    assert (np.abs(after[0] - after[1]).max() > 1e-6) == own
