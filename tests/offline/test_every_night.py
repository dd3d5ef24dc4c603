"""The nightly production run: it learns from every row, and offers nobody items that they have had."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import redis

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.bundle.models import Tower
from redis_recsys.config import Settings, TrainSettings, load_settings
from redis_recsys.data.tabular import read
from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.interactions import PARTS, Dataset
from redis_recsys.dataset.split import Split
from redis_recsys.errors import DataError
from redis_recsys.online.partition import stages_of
from redis_recsys.online.runner import Runner
from redis_recsys.trainers.training import train
from tests.support.commands import Outcome
from tests.support.planted import GROUPS, MERLIN_ENVIRONMENT, planted, planted_dataset, trained_on

Recsys = Callable[..., Outcome]

ROWS, USERS, ITEMS = 3000, 150, 80
NEWEST = 2700  # first row of the newest tenth: new users, new items, a new brand, and user 1 has moved
SCHEMA = """\
name: shop
columns:
  - {name: user, side: user, kind: categorical, role: id}
  - {name: country, side: user, kind: categorical}
  - {name: recent, side: user, kind: multi-categorical, role: history, max_length: 4}
  - {name: item, side: item, kind: categorical, role: id}
  - {name: brand, side: item, kind: categorical}
  - {name: price, side: item, kind: numeric}
  - {name: time, side: time, kind: numeric}
"""
TRAIN = ("--epochs", 2, "--embedding-dim", 8, "--device", "cpu")
HOW = {"train": {"refit": False}, "train + valid": {}, "all": {"final": True}}


def purchases() -> pl.DataFrame:
    """A log in which some users and items of the newest tenth are new."""
    random = np.random.default_rng(5)
    user = random.integers(USERS - 20, size=ROWS)
    item = random.integers(ITEMS - 10, size=ROWS)
    late = np.arange(ROWS) >= NEWEST
    user[late] = random.integers(USERS, size=late.sum())
    item[late] = random.integers(ITEMS, size=late.sum())
    user[-1] = 0
    return pl.DataFrame(
        {
            "user": [f"u{number + 1}" for number in user],
            "country": np.where((user == 0) & late, "elsewhere", np.array(["de", "fr", "it"])[user % 3]),
            "item": [f"i{number + 1}" for number in item],
            "brand": np.where(item >= ITEMS - 10, "new", np.array(["a", "b", "c", "d"])[item % 4]),
            "price": item * 2.5,
            "time": 1_700_000_000 + np.arange(ROWS) * 600,
        }
    )


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    return purchases()


def shop_of(log: pl.DataFrame, folder: Path) -> Dataset:
    """The log, encoded with a tenth for validation and a tenth for the test."""
    log.write_csv(folder / "purchases.csv")
    (folder / "schema.yaml").write_text(SCHEMA)
    read(folder / "purchases.csv", folder / "schema.yaml", folder / "raw")
    encode(folder / "raw", folder / "dataset", Split())
    return Dataset(folder / "dataset")


@pytest.fixture(scope="module")
def dataset(log: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return shop_of(log, tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def bundle_of(dataset: Dataset) -> Callable[[str], Bundle]:
    """Function that trains on the parts that ``HOW`` names, once."""

    @functools.cache
    def make(parts: str) -> Bundle:
        settings = TrainSettings(epochs=2, embedding_dim=8, device="cpu", **HOW[parts])
        return train(dataset, Settings(train=settings), dataset.path.parent / parts)

    return make


@pytest.fixture
def shop(dataset: Dataset, tmp_path: Path) -> Path:
    """The log and its schema in the working directory of ``recsys``."""
    for name in ("purchases.csv", "schema.yaml"):
        shutil.copy(dataset.path.parent / name, tmp_path)
    return tmp_path


def good(outcome: Outcome) -> str:
    """Output of a command that must succeed, in one line."""
    assert outcome.code == 0, outcome
    return " ".join(outcome.out.split())


def encoded(recsys: Recsys, *options: object) -> Dataset:
    good(recsys("data", "tabular", "purchases.csv", "--schema", "schema.yaml", *options))
    return Dataset(Path("data/dataset"))


def had(log: pl.DataFrame) -> dict[str, set[str]]:
    """Items that each user has bought, in the whole log."""
    return {str(user): set(items) for user, items in log.group_by("user").agg("item").iter_rows()}


# Nobody is offered items that they have had


@pytest.mark.parametrize("parts", list(HOW))
def test_nothing_of_the_whole_log_is_recommended_again_ahead_of_time(
    recsys: Recsys, bundle_of: Callable[[str], Bundle], log: pl.DataFrame, use_server: redis.Redis, parts: str
) -> None:
    good(recsys("batch", bundle_of(parts).path))
    bought = had(log)
    found = json.loads(good(recsys("get", *bought, "--json")))
    assert len(found) == len(bought) == USERS
    for each in found:
        assert each["source"] == "model"
        assert len(each["items"]) == 20
        assert not set(each["items"]) & bought[each["user"]], each


@pytest.mark.parametrize("parts", list(HOW))
def test_nothing_of_the_whole_log_is_recommended_again_on_demand(
    recsys: Recsys, bundle_of: Callable[[str], Bundle], log: pl.DataFrame, use_server: redis.Redis, parts: str
) -> None:
    good(recsys("deploy", bundle_of(parts).path, "--no-feast"))
    settings = load_settings(online={"similar": 10, "popular": 20})
    runner = Runner(tuple(stages_of(settings.online)), settings)
    try:
        bought = had(log)
        answers = runner({"user_id": np.array([[user.encode()] for user in bought], object)})
    finally:
        runner.close()
    assert not answers["degraded"].any()
    for user, items in zip(bought, answers["item_ids"].tolist(), strict=True):
        shown = {item.decode() for item in items} - {""}
        assert len(shown) == 20
        assert not shown & bought[user]


# New users, items and values are learned


def test_only_the_final_tables_know_what_only_the_newest_rows_tell(dataset: Dataset) -> None:
    for known, data in ((False, dataset), (True, dataset.final)):
        users = dict(zip(data.users.raw_ids.tolist(), data.users.categorical.tolist(), strict=True))
        items = dict(zip(data.items.raw_ids.tolist(), data.items.categorical.tolist(), strict=True))
        assert (users[f"u{USERS}"][0] > 0, items[f"i{ITEMS}"][0] > 0, items[f"i{ITEMS}"][1] > 0) == (known,) * 3
        countries = pl.read_parquet(data.path / "vocab" / "country.parquet")["value"].to_list()
        assert countries[users["u1"][1] - 1] == ("elsewhere" if known else "de")
        assert ("new" in pl.read_parquet(data.path / "vocab" / "brand.parquet")["value"]) is known


def test_the_final_tables_hold_the_same_interactions(dataset: Dataset, log: pl.DataFrame) -> None:
    for data in (dataset, dataset.final):
        rows = data.rows(*PARTS)
        users, items = data.users.raw_ids[rows.user - 1], data.items.raw_ids[rows.item - 1]
        assert users.tolist() == log["user"].to_list()
        assert items.tolist() == log["item"].to_list()
        assert rows.time.tolist() == log["time"].to_list()
        assert len(data.rows("test")) == data.count("test") == ROWS - NEWEST


def test_the_final_tables_are_those_of_data_that_trains_with_every_row(dataset: Dataset, log: pl.DataFrame) -> None:
    """Ids by frequency over all rows, and newest items, mean and deviation after all rows."""
    final = dataset.final
    counts = log.group_by("item").len().sort(["len", "item"], descending=[True, False])
    assert final.items.raw_ids.tolist() == counts["item"].to_list()
    assert final.items.categorical[:, 0].tolist() == list(range(1, ITEMS + 1))
    price = next(column for column in final.schema.columns if column.name == "price")
    assert price.mean == pytest.approx(log["price"].mean())
    assert price.std == pytest.approx(log["price"].std(ddof=0))
    newest = dict(log.group_by("user", maintain_order=True).agg(pl.col("item").tail(4).reverse()).iter_rows())
    slots = final.schema.slots(next(column for column in final.schema.columns if column.name == "recent"))
    for user, recent in zip(final.users.raw_ids, final.users.categorical[:, slots], strict=True):
        assert final.items.raw_ids[recent[recent > 0] - 1].tolist() == newest[user]


def test_rare_and_surplus_ids_are_those_by_the_frequency_in_all_rows(
    recsys: Recsys, shop: Path, log: pl.DataFrame
) -> None:
    item = "name: item, side: item, kind: categorical, role: id"
    (shop / "schema.yaml").write_text(SCHEMA.replace(item, f"{item}, min_frequency: 5, max_vocabulary: 75"))
    dataset = encoded(recsys)
    for data, rows in ((dataset, log.head(2400)), (dataset.final, log)):
        counts = rows.group_by("item").len().sort(["len", "item"], descending=[True, False])
        expected = counts.filter(pl.col("len") >= 5)["item"].head(75).to_list()
        assert pl.read_parquet(data.path / "vocab" / "item.parquet")["value"].to_list() == expected
        assert data.items.raw_ids[data.items.categorical[:, 0] > 0].tolist() == expected


def hit(folder: Path) -> Dataset:
    """Clicks within groups; item 40 is new in the newest rows, where users of its group click on it."""
    raw = planted(folder / "raw", rows=6000, users=200, target=False, numerics=False, lists=False, history=False)
    path = raw / "interactions" / "part-0.parquet"
    rows = pl.read_parquet(path)
    buyers = range(4, 164, 4)
    start = rows["time"].to_list()[-1] + 1
    new = {"user": [*buyers, *buyers], "item": [40] * 80, "time": list(range(start, start + 80))}
    pl.concat([rows, pl.DataFrame(new, dict(rows.schema))]).write_parquet(path)
    encode(raw, folder / "dataset", Split(valid=0.03, test=0.03))
    return Dataset(folder / "dataset")


def test_an_item_that_is_new_in_the_newest_rows_is_near_to_those_who_would_like_it(tmp_path: Path) -> None:
    dataset = hit(tmp_path)
    assert 40 not in pl.read_parquet(dataset.path / "vocab" / "item.parquet")["value"]
    learns = {"epochs": 6, "patience": 6, "embedding_dim": 16, "ranking_dim": 8, "ranking_batch": 64}
    bundle = trained_on(dataset, tmp_path / "bundle", **learns, final=True).bundle
    ((users, history),) = bundle.users(block=bundle.manifest.users)
    nearness = Tower(bundle.path / "user_tower.onnx").embed(users.categorical, users.numeric) @ bundle.item_embeddings.T
    at = int(np.flatnonzero(bundle.items.raw_ids == 40)[0])
    nearer = (nearness > nearness[:, at : at + 1]).sum(axis=1)
    without = np.array([at + 1 not in history[user] for user in range(1, len(users) + 1)])
    own = users.raw_ids % GROUPS == 0
    assert np.median(nearer[without & own]) < 10  # as many of the 40 items as the group has
    assert np.median(nearer[without & ~own]) > 10


# Manifest of a bundle


def test_the_manifest_says_what_was_learned(bundle_of: Callable[[str], Bundle]) -> None:
    parts = {name: bundle_of(name).manifest for name in HOW}
    assert {name: (manifest.learned_from, manifest.final) for name, manifest in parts.items()} == {
        "train": ({"train": 2400}, False),
        "train + valid": ({"train": 2400, "valid": 300}, False),
        "all": ({"train": 2400, "valid": 300, "test": 300}, True),
    }


def test_a_final_bundle_is_not_evaluated(recsys: Recsys, dataset: Dataset, bundle_of: Callable[[str], Bundle]) -> None:
    path = bundle_of("all").path
    line = f"{path} has learned the test part (--final): evaluate the bundle that was trained without --final"
    assert recsys("evaluate", path, "--dataset", dataset.path).error() == f"error: {line}"


# Epochs chosen by another training


def test_a_final_training_takes_the_best_epochs_of_a_bundle(
    recsys: Recsys, dataset: Dataset, bundle_of: Callable[[str], Bundle]
) -> None:
    trial = bundle_of("train + valid")
    ended = recsys("train", dataset.path, *TRAIN, "--final", "--epochs-of", trial.path)
    rows = "learned from 2,400 train + 300 valid + 300 test rows"
    assert good(ended).endswith(f"bundle with 150 users and 80 items in data/bundle, {rows}")
    made = Bundle(Path("data/bundle"))
    before, curves = trial.manifest.metrics["curves"], made.manifest.metrics["curves"]
    for name in ("retrieval", "ranking"):
        assert f"{name} epoch" not in ended.err
        assert curves[name] == before[name]
        assert len(curves[f"{name}_final"]) == max(before[name], key=lambda record: record["metric"])["epoch"]
    assert (made.item_embeddings == bundle_of("all").item_embeddings).all()  # which chose them itself


def test_epochs_of_a_bundle_are_for_the_same_trainer_and_a_final_training(
    recsys: Recsys, dataset: Dataset, bundle_of: Callable[[str], Bundle]
) -> None:
    trial = Path(shutil.copytree(bundle_of("train + valid").path, "trial"))
    assert "--epochs-of is for --final" in recsys("train", dataset.path, "--epochs-of", trial).error()
    text = (trial / "manifest.json").read_text()
    (trial / "manifest.json").write_text(text.replace('"trainer": "torch"', '"trainer": "merlin"'))
    error = recsys("train", dataset.path, "--final", "--epochs-of", trial).error()
    assert error == "error: trial was trained by merlin: its epochs mean nothing to torch"
    (trial / "manifest.json").write_text(text.replace('"curves"', '"none"'))
    error = recsys("train", dataset.path, "--final", "--epochs-of", trial).error()
    assert error == "error: trial has no records of its training: choose the epochs anew, without --epochs-of"


# No test part


@pytest.mark.parametrize("split", ["time", "user", "random"])
def test_without_a_test_part_the_others_have_all_rows(recsys: Recsys, shop: Path, split: str) -> None:
    dataset = encoded(recsys, "--test", 0, "--split", split)
    assert dataset.count("test") == len(dataset.rows("test")) == 0
    assert dataset.count("train") + dataset.count("valid") == ROWS
    assert dataset.count("valid") == pytest.approx(300, abs=60)
    assert dataset.manifest["rows"]["test"] == 0


def test_without_a_test_part_everything_works_but_the_evaluation(
    recsys: Recsys, shop: Path, use_server: redis.Redis, bundle_of: Callable[[str], Bundle]
) -> None:
    encoded(recsys, "--test", 0, "--valid", 0.05)
    error = recsys("evaluate", bundle_of("train").path).error()
    assert (
        error == "error: data/dataset has no test part, so there is nothing to evaluate on: make it without '--test 0'"
    )
    assert good(recsys("train", *TRAIN, "--final")).endswith("learned from 2,850 train + 150 valid rows")
    good(recsys("batch"))
    assert json.loads(good(recsys("get", "u1", "--json")))["source"] == "model"


def test_a_part_that_was_not_asked_away_must_have_rows(recsys: Recsys, shop: Path) -> None:
    dataset = encoded(recsys, "--test", 0)
    for file in (dataset.path / "valid").iterdir():
        file.unlink()
    assert "the valid part of data/dataset is empty" in recsys("train", *TRAIN).error()


# Merlin


@pytest.fixture
def use_merlin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_MERLIN_ENVIRONMENT", str(MERLIN_ENVIRONMENT))


@pytest.mark.usefixtures("use_merlin")
def test_merlin_learns_from_every_row_too(
    recsys: Recsys, log: pl.DataFrame, use_server: redis.Redis, tmp_path: Path
) -> None:
    numbers = pl.col("user", "item").str.slice(1).cast(pl.Int64)
    dataset = shop_of(log.with_columns(numbers), tmp_path)
    options = ("--trainer", "merlin", "--epochs", 2, "--embedding-dim", 8, "--final", "--export", "export")
    printed = good(recsys("train", dataset.path, *options))
    assert printed.endswith("learned from 2,400 train + 300 valid + 300 test rows")
    bundle = Bundle(Path("data/bundle"))
    assert bundle.manifest.final
    assert bundle.schema == dataset.final.schema
    curves = bundle.manifest.metrics["curves"]
    for name in ("retrieval", "ranking"):
        best = max(curves[name], key=lambda record: record["metric"])["epoch"]
        assert [record["epoch"] for record in curves[f"{name}_final"]] == list(range(1, best + 1))
    categories = pl.read_parquet("export/categories/unique.item.parquet")["item"].to_list()
    assert set(categories) == set(range(1, ITEMS + 1))
    assert len(pl.read_parquet("export/item_features.parquet")) == ITEMS
    good(recsys("batch"))
    bought = had(log)
    for each in json.loads(good(recsys("get", *(user[1:] for user in bought), "--json"))):
        assert len(each["items"]) == 20
        assert not {f"i{item}" for item in each["items"]} & bought[f"u{each['user']}"]


def test_a_dataset_of_an_earlier_release_is_read_and_final_asks_for_a_new_one(tmp_path: Path) -> None:
    dataset = planted_dataset(tmp_path)
    manifest = json.loads((dataset.path / "manifest.json").read_text())
    (dataset.path / "manifest.json").write_text(json.dumps(manifest | {"version": 1}))
    shutil.rmtree(dataset.path / "final")
    earlier = Dataset(dataset.path)
    assert len(earlier.rows("train"))
    with pytest.raises(DataError, match="make it again"):
        _ = earlier.final
