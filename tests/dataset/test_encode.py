"""Raw interactions become a dataset, checked value by value on data small enough to encode by hand."""

from __future__ import annotations

import json
import resource
import signal
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.interactions import Dataset, Part
from redis_recsys.dataset.schema import Column, Schema
from redis_recsys.dataset.split import Split
from redis_recsys.errors import DataError, RecsysError, SchemaError

USER = Column(name="user", side="user", kind="categorical", role="id")
ITEM = Column(name="item", side="item", kind="categorical", role="id")
CLICK = Column(name="click", side="target", kind="categorical")
TIME = Column(name="time", side="time", kind="numeric")
THIRDS = Split(by="time", valid=0.2, test=0.2)

# Ten rows: times 0-5 train, 6-7 validate, 8-9 test.
ROWS: dict[str, list[Any]] = {
    "user": [7, 7, 7, 5, 5, 9, 5, 7, 9, 8],
    "item": ["b", "a", "b", "b", "a", "c", "b", "d", "a", "b"],
    "click": [1, 0, 1, 0, 1, 1, 0, 1, 0, 1],
    "time": list(range(10)),
}


def write_raw(
    folder: Path,
    rows: dict[str, list[Any]] | pl.DataFrame,
    features: list[Column] | None = None,
    core: list[Column] | None = None,
    users: dict[str, list[Any]] | None = None,
    items: dict[str, list[Any]] | None = None,
    files: int = 2,
) -> Path:
    core = [USER, ITEM, CLICK, TIME] if core is None else core
    (folder / "interactions").mkdir(parents=True)
    Schema(name="small", columns=core + (features or [])).save(folder / "schema.yaml")
    frame = pl.DataFrame(rows)
    size = -(-len(frame) // files)
    for number in range(files):
        frame.slice(number * size, size).write_parquet(folder / "interactions" / f"part-{number}.parquet")
    for name, table in (("users", users), ("items", items)):
        if table is not None:
            pl.DataFrame(table).write_parquet(folder / f"{name}.parquet")
    return folder


def encoded(tmp_path: Path, *args: Any, split: Split = THIRDS, **kwargs: Any) -> Dataset:
    encode(write_raw(tmp_path / "raw", *args, **kwargs), tmp_path / "dataset", split)
    return Dataset(tmp_path / "dataset")


def vocabulary(dataset: Dataset, name: str) -> list[Any]:
    return pl.read_parquet(dataset.path / "vocab" / f"{name}.parquet")["value"].to_list()


def raw_rows(dataset: Dataset, part: Part) -> list[tuple[Any, ...]]:
    """The rows of a part with raw ids again."""
    rows = dataset.rows(part)
    users, items = dataset.users.raw_ids[rows.user - 1], dataset.items.raw_ids[rows.item - 1]
    return list(zip(users.tolist(), items.tolist(), rows.target.tolist(), rows.time.tolist(), strict=True))


def test_every_row_is_in_the_part_of_its_time(tmp_path: Path) -> None:
    dataset = encoded(tmp_path, ROWS)
    expected = list(zip(ROWS["user"], ROWS["item"], ROWS["click"], ROWS["time"], strict=True))
    assert raw_rows(dataset, "train") == expected[:6]
    assert raw_rows(dataset, "valid") == expected[6:8]
    assert raw_rows(dataset, "test") == expected[8:]


def test_the_overview_tells_sizes_clicks_newcomers_and_times_of_every_part(tmp_path: Path) -> None:
    train, valid, test = encoded(tmp_path, ROWS).overview()
    assert (train["part"], train["rows"], train["clicks"], train["first"], train["last"]) == ("train", 6, 4 / 6, 0, 5)
    assert (train["users"], train["new users"], train["items"], train["new items"]) == (3, 0, 3, 0)
    assert (valid["part"], valid["rows"], valid["clicks"], valid["first"], valid["last"]) == ("valid", 2, 0.5, 6, 7)
    assert (valid["users"], valid["new users"], valid["items"], valid["new items"]) == (2, 0, 2, 1)  # item d
    assert (test["part"], test["rows"], test["clicks"], test["first"], test["last"]) == ("test", 2, 0.5, 8, 9)
    assert (test["users"], test["new users"], test["items"], test["new items"]) == (2, 1, 2, 0)  # user 8


def test_entities_come_by_frequency_in_training_then_by_id(tmp_path: Path) -> None:
    dataset = encoded(tmp_path, ROWS)
    assert dataset.users.raw_ids.tolist() == [7, 5, 9, 8]
    assert dataset.items.raw_ids.tolist() == ["b", "a", "c", "d"]


def test_entities_not_seen_in_training_have_a_number_but_the_unknown_id(tmp_path: Path) -> None:
    dataset = encoded(tmp_path, ROWS)
    assert dataset.users.categorical.tolist() == [[1], [2], [3], [0]]
    assert vocabulary(dataset, "user") == [7, 5, 9]
    assert dataset.schema.id_column("user").cardinality == 4


def test_the_refit_knows_what_is_new_in_validation_under_the_same_numbers(tmp_path: Path) -> None:
    dataset = encoded(tmp_path, ROWS)
    refit = dataset.refit
    assert vocabulary(dataset, "item") == ["b", "a", "c"]
    assert vocabulary(refit, "item") == ["b", "a", "c", "d"]  # d is in the validation rows alone
    assert vocabulary(refit, "user") == [7, 5, 9]  # user 8 is in the test rows alone
    assert refit.users.categorical.tolist() == [[1], [2], [3], [0]]
    assert refit.items.categorical.tolist() == [[1], [2], [3], [4]]
    for side in ("users", "items"):
        assert getattr(refit, side).raw_ids.tolist() == getattr(dataset, side).raw_ids.tolist()
    for part in ("train", "valid", "test"):
        assert raw_rows(refit, part) == raw_rows(dataset, part)  # type: ignore[arg-type]


def test_the_ids_of_both_vocabularies_come_first_also_with_a_least_frequency(tmp_path: Path) -> None:
    core = [USER, ITEM.model_copy(update={"min_frequency": 2}), CLICK, TIME]
    rows = ROWS | {"item": ["b", "a", "b", "b", "a", "c", "d", "d", "a", "b"]}
    dataset = encoded(tmp_path, rows, core=core)
    assert dataset.items.raw_ids.tolist() == ["b", "a", "d", "c"]  # c has a row in training, d two in validation
    assert dataset.items.categorical.tolist() == [[1], [2], [0], [0]]
    assert dataset.refit.items.categorical.tolist() == [[1], [2], [3], [0]]
    assert vocabulary(dataset.refit, "item") == ["b", "a", "d"]


def test_histories_of_the_refit_include_what_is_new_in_validation(tmp_path: Path) -> None:
    recent = Column(name="recent", side="user", kind="multi-categorical", role="history", max_length=2)
    dataset = encoded(tmp_path, ROWS | {"click": [1] * 10}, features=[recent])
    assert dataset.users.categorical[0].tolist() == [1, 1, 2]
    assert dataset.refit.users.categorical[0].tolist() == [1, 4, 1]


def test_rare_ids_and_ids_beyond_the_vocabulary_are_unknown(tmp_path: Path) -> None:
    core = [USER.model_copy(update={"min_frequency": 2}), ITEM.model_copy(update={"max_vocabulary": 1}), CLICK, TIME]
    dataset = encoded(tmp_path, ROWS, core=core)
    assert dataset.users.categorical.tolist() == [[1], [2], [0], [0]]
    assert dataset.items.categorical.tolist() == [[1], [0], [0], [0]]
    assert vocabulary(dataset, "item") == ["b"]


def test_the_manifest_tells_the_split_the_counts_and_the_cuts(tmp_path: Path) -> None:
    manifest = encoded(tmp_path, ROWS).manifest
    assert manifest["rows"] == {"train": 6, "valid": 2, "test": 2}
    assert (manifest["users"], manifest["items"]) == (4, 4)
    assert manifest["cuts"] == {"valid_from": 6, "test_from": 8}
    assert manifest["split"]["by"] == "time"


def test_rows_in_any_order_are_written_in_time_order(tmp_path: Path) -> None:
    shuffled = pl.DataFrame(ROWS).sample(fraction=1, shuffle=True, seed=3)
    dataset = encoded(tmp_path, shuffled)
    assert dataset.rows("train").time.tolist() == [0, 1, 2, 3, 4, 5]
    assert dataset.users.raw_ids.tolist() == [7, 5, 9, 8]


def test_a_feature_in_the_interactions_is_the_last_of_training(tmp_path: Path) -> None:
    """User 7 moved from x to y in training (and to z later); user 8 is only known from the test rows."""
    rows = ROWS | {"city": ["x", "x", "y", "x", "x", None, "q", "z", "w", "y"]}
    city = Column(name="city", side="user", kind="categorical")
    for order in (pl.DataFrame(rows), pl.DataFrame(rows).reverse()):
        folder = tmp_path / str(order["time"][0])
        dataset = encoded(folder, order, features=[city])
        assert vocabulary(dataset, "city") == ["y", "x"]  # 3 rows of user 7, 2 of user 5
        assert dataset.users.categorical[:, 1].tolist() == [1, 2, 0, 1]


SPARSE = ROWS | {
    "brand": [None, "old", None, "new", "A", None, "B", "late", "later", "latest"],
    "price": [1.0, float("nan"), None, 2.0, 3.0, None, 9.0, float("nan"), 8.0, float("nan")],
    "tags": [["x"], ["y"], [], ["z", None], None, [], ["w"], [None], ["v"], ["u"]],
    "size": ["S|M", " | ", "", None, "L", "|", "XL", "", "Q", "W"],
    "title": ["", "Alien", None, "Brazil", "", "", "Casablanca", "", "Dune", "Eraserhead"],
    "full": list(range(10)),
}


def test_each_feature_is_the_newest_known_one_of_training(tmp_path: Path) -> None:
    """In training, a has rows 1, 4; b has 0, 2, 3; c has 5. The only row of d is row 7, which validates."""
    features = [
        Column(name="brand", side="item", kind="categorical"),
        Column(name="price", side="item", kind="numeric"),
        Column(name="tags", side="item", kind="multi-categorical", max_length=2),
        Column(name="size", side="item", kind="multi-categorical", max_length=2, separator="|"),
        Column(name="title", side="item", kind="text", role="label"),
        Column(name="full", side="item", kind="categorical"),
    ]
    for order in (pl.DataFrame(SPARSE), pl.DataFrame(SPARSE).reverse(), pl.DataFrame(SPARSE).sample(10, shuffle=True)):
        folder = tmp_path / "-".join(map(str, order["time"]))
        dataset = encoded(folder, order, features=features)
        assert dataset.items.raw_ids.tolist() == ["b", "a", "c", "d"]
        brands, tags, sizes = (vocabulary(dataset, name) for name in ("brand", "tags", "size"))
        rows = dataset.items.categorical[:, 1:].tolist()
        assert brands == ["new", "A"]  # what only later rows say is not in the vocabulary
        assert [brands[row[0] - 1] if row[0] else None for row in rows] == ["new", "A", None, None]
        assert [[tags[number - 1] for number in row[1:3] if number] for row in rows] == [["z"], ["y"], [], []]
        assert [[sizes[number - 1] for number in row[3:5] if number] for row in rows] == [["S", "M"], ["L"], [], []]
        assert [vocabulary(dataset, "full")[row[5] - 1] for row in rows[:3]] == [3, 4, 5]
        assert dataset.items.labels == {"title": ["Brazil", "Alien", "", ""]}
        price = dataset.schema.numeric("item")[0]
        assert (price.mean, price.std) == (pytest.approx((3 * 2 + 2 * 3) / 5), pytest.approx(0.24**0.5))
        numbers = dataset.items.numeric[:, 0] * price.std + price.mean
        assert numbers == pytest.approx([2, 3, price.mean, price.mean])


def test_of_somebody_without_training_rows_the_oldest_known_value_counts(tmp_path: Path) -> None:
    """User 8 and item d have only later rows: the first one with a value counts."""
    rows = {
        "user": [7, 7, 5, 5, 7, 7, 8, 8, 8, 8],
        "item": ["a", "b", "a", "b", "a", "b", "d", "d", "d", "d"],
        "click": [1] * 10,
        "time": list(range(10)),
        "city": ["x", None, "y", None, None, None, None, "x", "y", None],
        "colour": [None, "red", None, None, None, None, None, None, None, None],
        "title": [None] * 8 + ["Dune", "Dune II"],
    }
    features = [
        Column(name="city", side="user", kind="categorical"),
        Column(name="colour", side="item", kind="categorical"),
        Column(name="title", side="item", kind="text", role="label"),
    ]
    dataset = encoded(tmp_path, rows, features=features)
    assert dataset.users.raw_ids.tolist() == [7, 5, 8]
    assert vocabulary(dataset, "city") == ["x", "y"]
    assert dataset.users.categorical[:, 1].tolist() == [1, 2, 1]
    assert dataset.items.raw_ids.tolist() == ["a", "b", "d"]
    assert dataset.items.categorical[:, 1].tolist() == [0, 1, 0]
    assert dataset.items.labels == {"title": ["", "", "Dune"]}


@pytest.mark.parametrize("split", [Split(by="user"), Split(by="last"), Split(by="random", seed=3), Split(by="time")])
def test_gaps_are_filled_as_a_loop_would(tmp_path: Path, split: Split) -> None:
    random = np.random.default_rng(5)
    count = 3000
    frame = pl.DataFrame(
        {
            "user": random.integers(300, size=count),
            "item": random.integers(80, size=count).astype(str),
            "click": random.integers(2, size=count),
            "time": random.integers(700, size=count),
            "brand": [None if random.random() < 0.9 else f"b{random.integers(200)}" for _ in range(count)],
            "age": [None if random.random() < 0.7 else random.random() for _ in range(count)],
        }
    )
    brand = Column(name="brand", side="item", kind="categorical")
    age = Column(name="age", side="user", kind="numeric")
    dataset = encoded(tmp_path, frame, features=[brand, age], split=split, files=5)
    order = frame["time"].arg_sort().to_list()  # stable
    left = {part: sorted(raw_rows(dataset, part)) for part in ("train", "valid", "test")}  # type: ignore[arg-type]
    parts = {}
    for name, rows in left.items():
        parts |= dict.fromkeys(rows, name)
    told: dict[str, dict[Any, dict[bool, list[Any]]]] = {"item": {}, "user": {}}
    seen: dict[str, set[Any]] = {"item": set(), "user": set()}
    for at in order:
        row = frame.row(at, named=True)
        training = parts[(row["user"], row["item"], float(row["click"]), row["time"])] == "train"
        for key, name in (("item", "brand"), ("user", "age")):
            if training:
                seen[key].add(row[key])
            if row[name] is not None:
                told[key].setdefault(row[key], {True: [], False: []})[training].append(row[name])

    def expected(key: str, raw: Any) -> Any:
        values = told[key].get(raw, {True: [], False: []})
        if raw in seen[key]:
            return values[True][-1] if values[True] else None
        return values[False][0] if values[False] else None

    brands = vocabulary(dataset, "brand")
    items = zip(dataset.items.raw_ids.tolist(), dataset.items.categorical[:, 1].tolist(), strict=True)
    for raw, number in items:
        wanted = expected("item", raw)
        assert (brands[number - 1] if number else None) == (wanted if wanted in brands else None)
    column = dataset.schema.numeric("user")[0]
    assert column.mean is not None
    assert column.std is not None
    for raw, number in zip(dataset.users.raw_ids.tolist(), dataset.users.numeric[:, 0].tolist(), strict=True):
        wanted = expected("user", raw)
        assert number == pytest.approx(0 if wanted is None else (wanted - column.mean) / column.std, abs=1e-5)


def test_feature_tables_win_and_may_know_entities_without_interactions(tmp_path: Path) -> None:
    rows = ROWS | {"colour": ["wrong"] * 10}
    colour = Column(name="colour", side="item", kind="categorical")
    items = {"item": ["e", "b", "a", "c"], "colour": ["red", "red", "blue", None]}
    dataset = encoded(tmp_path, rows, features=[colour], items=items)
    assert dataset.items.raw_ids.tolist() == ["b", "a", "c", "d", "e"]
    assert dataset.items.categorical.tolist() == [[1, 1], [2, 2], [3, 0], [0, 0], [0, 1]]


def test_categories_below_the_frequency_cut_or_beyond_the_vocabulary_are_unknown(tmp_path: Path) -> None:
    items = {"item": ["a", "b", "c"], "x": [1, 2, 3], "y": [1, 2, 3]}  # in training: a 2 rows, b 3 rows, c 1 row
    features = [
        Column(name="x", side="item", kind="categorical", min_frequency=2),
        Column(name="y", side="item", kind="categorical", max_vocabulary=1),
    ]
    dataset = encoded(tmp_path, ROWS, features=features, items=items)
    assert dataset.items.categorical[:, 1:].tolist() == [[1, 1], [2, 0], [0, 0], [0, 0]]
    assert [c.cardinality for c in dataset.schema.categorical("item")] == [4, 3, 2]


def test_numbers_are_standardised_over_the_training_rows(tmp_path: Path) -> None:
    """Training sees user 7 three times (1.0), user 5 twice (4.0) and user 9 once (no value)."""
    users = {"user": [7, 5, 9, 8], "age": [1.0, 4.0, None, 100.0]}
    age = Column(name="age", side="user", kind="numeric")
    dataset = encoded(tmp_path, ROWS, features=[age], users=users)
    mean, std = 11 / 5, (54 / 25) ** 0.5
    assert dataset.users.numeric[:, 0] == pytest.approx([(1 - mean) / std, (4 - mean) / std, 0, (100 - mean) / std])
    column = dataset.schema.numeric("user")[0]
    assert (column.mean, column.std) == (pytest.approx(mean), pytest.approx(std))


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_tiny_and_huge_numbers_are_standardised_like_others(tmp_path: Path, scale: float) -> None:
    users = {"user": [7, 5, 9, 8], "age": [1.0 * scale, 4.0 * scale, None, 3.0 * scale]}
    age = Column(name="age", side="user", kind="numeric")
    dataset = encoded(tmp_path, ROWS, features=[age], users=users)
    mean, std = 11 / 5, (54 / 25) ** 0.5
    assert dataset.users.numeric[:, 0] == pytest.approx([(1 - mean) / std, (4 - mean) / std, 0, (3 - mean) / std])


def test_a_constant_number_is_zero(tmp_path: Path) -> None:
    users = {"user": [7, 5, 9, 8], "age": [0.1] * 4}
    dataset = encoded(tmp_path, ROWS, features=[Column(name="age", side="user", kind="numeric")], users=users)
    assert dataset.users.numeric[:, 0] == pytest.approx([0, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("values", "separator"),
    [
        (["drama|comedy", "war|drama | comedy", "", None], "|"),
        ([["drama", "comedy"], ["war", "drama", "comedy"], [], None], None),
    ],
)
def test_lists_keep_their_first_known_values_padded_with_zero(
    tmp_path: Path, values: list[Any], separator: str | None
) -> None:
    """Training rows: b 3, a 2, c 1, so drama and comedy are seen 5 times and war twice."""
    genres = Column(name="genres", side="item", kind="multi-categorical", max_length=2, separator=separator)
    dataset = encoded(tmp_path, ROWS, features=[genres], items={"item": ["b", "a", "c", "d"], "genres": values})
    assert vocabulary(dataset, "genres") == ["comedy", "drama", "war"]
    assert dataset.items.categorical[:, 1:].tolist() == [[2, 1], [3, 2], [0, 0], [0, 0]]


def test_labels_are_carried_over(tmp_path: Path) -> None:
    title = Column(name="title", side="item", kind="text", role="label")
    dataset = encoded(tmp_path, ROWS, features=[title], items={"item": ["a", "b"], "title": ["Alien", None]})
    assert dataset.items.labels == {"title": ["", "Alien", "", ""]}


def test_the_history_holds_the_newest_clicks_of_training(tmp_path: Path) -> None:
    """Item c has no id with a vocabulary of two, so its slot is unknown."""
    recent = Column(name="recent", side="user", kind="multi-categorical", role="history", max_length=2)
    core = [USER, recent, ITEM.model_copy(update={"max_vocabulary": 2}), CLICK, TIME]
    rows = ROWS | {"click": [1, 1, 0, 0, 1, 1, 1, 1, 1, 1]}
    dataset = encoded(tmp_path, rows, core=core)
    assert dataset.users.categorical.tolist() == [[1, 2, 1], [2, 2, 0], [3, 0, 0], [0, 0, 0]]
    assert dataset.schema.history is not None
    assert dataset.schema.history.cardinality == 3
    assert not (dataset.path / "vocab" / "recent.parquet").exists()


def test_ratings_become_clicks_from_the_threshold_on(tmp_path: Path) -> None:
    rating = CLICK.model_copy(update={"positive_from": 4})
    dataset = encoded(
        tmp_path, ROWS | {"click": [1.0, 2.0, 3.0, 4.0, 5.0, 4.5, 3.9, 4.0, 1.0, 1.0]}, core=[USER, ITEM, rating, TIME]
    )
    assert dataset.rows("train").target.tolist() == [0, 0, 0, 1, 1, 1]


def test_without_a_target_every_row_is_a_click(tmp_path: Path) -> None:
    assert encoded(tmp_path, ROWS, core=[USER, ITEM, TIME]).rows("train").target.tolist() == [1.0] * 6


def test_without_time_rows_have_time_zero(tmp_path: Path) -> None:
    dataset = encoded(tmp_path, ROWS, core=[USER, ITEM, CLICK], split=Split(by="random", valid=0.3, test=0.3))
    times = np.concatenate([dataset.rows(part).time for part in ("train", "valid", "test")])
    assert times.tolist() == [0] * 10


def test_datetimes_keep_what_they_have_below_a_second(tmp_path: Path) -> None:
    dataset = encoded(tmp_path, ROWS | {"time": [datetime(1970, 1, 2, 0, 0, 0, n) for n in range(10)]})
    assert dataset.rows("test").time.tolist() == [86_400_000_008, 86_400_000_009]
    assert dataset.schema.time is not None
    assert dataset.schema.time.unit == "us"


def test_datetimes_are_written_in_the_unit_of_the_schema(tmp_path: Path) -> None:
    core = [USER, ITEM, CLICK, TIME.model_copy(update={"unit": "s"})]
    dataset = encoded(tmp_path, ROWS | {"time": [datetime(1970, 1, 2, 0, 0, n) for n in range(10)]}, core=core)
    assert dataset.rows("test").time.tolist() == [86_408, 86_409]


def test_dates_become_seconds(tmp_path: Path) -> None:
    dataset = encoded(tmp_path, ROWS | {"time": [datetime(1970, 1, n).date() for n in range(1, 11)]})
    assert dataset.rows("test").time.tolist() == [8 * 86_400, 9 * 86_400]
    assert dataset.schema.time is not None
    assert dataset.schema.time.unit == "s"


def test_the_oracle_stays_beside_its_row(tmp_path: Path) -> None:
    truth = Column(name="truth", side="target", kind="numeric", role="oracle")
    dataset = encoded(tmp_path, ROWS | {"truth": [n / 10 for n in range(10)]}, core=[USER, ITEM, CLICK, truth, TIME])
    oracle = dataset.rows("valid").oracle
    assert oracle is not None
    assert oracle.tolist() == pytest.approx([0.6, 0.7])


def test_a_split_by_user_has_every_busy_user_in_test(tmp_path: Path) -> None:
    rows = {"user": [1, 2, 3] * 10, "item": [1, 2] * 15, "click": [1] * 30, "time": list(range(30))}
    dataset = encoded(tmp_path, rows, split=Split(by="user"))
    assert sorted(dataset.users.raw_ids[dataset.rows("test").user - 1]) == [1, 2, 3]
    assert dataset.manifest["rows"] == {"train": 24, "valid": 3, "test": 3}


def test_many_batches_give_the_same_rows_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    rows = pl.DataFrame(
        {
            "user": random.integers(50, size=5000),
            "item": random.integers(20, size=5000).astype(str),
            "click": random.integers(2, size=5000),
            "time": random.permutation(5000),
        }
    )
    monkeypatch.setattr("redis_recsys.dataset.encode.BATCH", 700)
    dataset = encoded(tmp_path, rows, files=7)
    assert len(list((dataset.path / "train").iterdir())) > 1
    for part, expected in (
        ("train", rows.filter(pl.col("time") < 3000)),
        ("test", rows.filter(pl.col("time") >= 4000)),
    ):
        assert sorted(raw_rows(dataset, part)) == sorted(expected.rows())  # type: ignore[arg-type]


# Refusals and their messages


def refused(
    tmp_path: Path, raw: Path, message: str, error: type[RecsysError] = DataError, split: Split = THIRDS
) -> None:
    with pytest.raises(error, match=message):
        encode(raw, tmp_path / "dataset", split)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"], "something was left behind"


def test_a_missing_column_is_named_with_the_nearest_that_there_is(tmp_path: Path) -> None:
    rows = {("itm" if name == "item" else name): values for name, values in ROWS.items()}
    raw = write_raw(tmp_path / "raw", rows)
    refused(tmp_path, raw, "column 'item'.*did you mean 'itm'.*it has user, itm, click, time", SchemaError)


def test_a_missing_feature_is_named(tmp_path: Path) -> None:
    raw = write_raw(
        tmp_path / "raw", ROWS, [Column(name="age", side="user", kind="numeric")], users={"user": [7], "agee": [1]}
    )
    refused(tmp_path, raw, "column 'age'.*did you mean 'agee'", SchemaError)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user", [float(n) for n in range(10)], "column 'user'.*Float64.*integer or text.*missing values"),
        ("click", ["yes"] * 10, "column 'click'.*String.*a number"),
        ("time", ["2020"] * 10, "column 'time'.*String.*seconds"),
        ("time", [0.5] * 10, "column 'time'.*Float64.*seconds"),
        ("age", ["old"] * 10, "column 'age'.*String.*a number"),
        ("genres", ["a|b"] * 10, "column 'genres'.*a list, or text with a separator"),
        ("genres", [[1.5]] * 10, "column 'genres'.*a list of integers or texts"),
    ],
)
def test_a_wrong_type_is_named_with_its_column(tmp_path: Path, column: str, values: list[Any], message: str) -> None:
    features = [
        Column(name="age", side="user", kind="numeric"),
        Column(name="genres", side="item", kind="multi-categorical", max_length=2),
    ]
    rows = ROWS | {"age": [1] * 10, "genres": [["a"]] * 10} | {column: values}
    refused(tmp_path, write_raw(tmp_path / "raw", rows, features), message, SchemaError)


@pytest.mark.parametrize("column", ["user", "item", "click", "time"])
def test_a_null_is_named_with_its_row(tmp_path: Path, column: str) -> None:
    rows = ROWS | {column: [*ROWS[column][:6], None, *ROWS[column][7:]]}
    refused(tmp_path, write_raw(tmp_path / "raw", rows), f"column '{column}'.*null in row 7")


def test_a_target_beyond_zero_and_one_asks_for_a_threshold(tmp_path: Path) -> None:
    rows = ROWS | {"click": [1, 0, 5, 1, 0, 1, 0, 1, 1, 0]}
    refused(tmp_path, write_raw(tmp_path / "raw", rows), "column 'click'.*is 5 in row 3.*positive_from")


def test_infinity_in_a_number_is_refused(tmp_path: Path) -> None:
    age = Column(name="age", side="user", kind="numeric")
    raw = write_raw(tmp_path / "raw", ROWS, [age], users={"user": [7, 5], "age": [1.0, float("inf")]})
    refused(tmp_path, raw, "column 'age' holds infinity")


def test_an_id_twice_in_a_feature_table_is_refused(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS, users={"user": [7, 5, 7]})
    refused(tmp_path, raw, "users.parquet has 7 more than once")


def test_a_null_id_in_a_feature_table_is_refused(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS, users={"user": [7, None]})
    refused(tmp_path, raw, "users.parquet is null in row 2")


def test_ids_of_different_types_in_rows_and_table_are_refused(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS, users={"user": ["7", "5"]})
    refused(tmp_path, raw, "column 'user' is String in .*users.parquet but Int64", SchemaError)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", pl.DataFrame(ROWS).clear(), files=1)
    refused(tmp_path, raw, "interactions holds no rows")


def test_an_empty_part_of_the_split_is_named(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS | {"time": [5] * 10})
    refused(tmp_path, raw, "the train part of the split by 'time' is empty")


def test_a_split_by_time_needs_a_time_column(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS, core=[USER, ITEM, CLICK])
    refused(tmp_path, raw, "no time column")


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS)
    path = raw / "interactions" / "part-1.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    refused(tmp_path, raw, "part-1.parquet is not a readable parquet file")


def test_a_file_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS)
    path = raw / "interactions" / "part-1.parquet"
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(data)
    refused(tmp_path, raw, "raw")


def test_files_with_different_types_are_refused(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS)
    pl.DataFrame(ROWS | {"user": ["x"] * 10}).write_parquet(raw / "interactions" / "part-2.parquet")
    refused(tmp_path, raw, "column 'user' is String in .*part-2.parquet but Int64 in .*part-0.parquet", SchemaError)


PARTS_THAT_DIFFER = {
    "a part without values": (pl.Series([None] * 10, dtype=pl.Null), pl.Series(["x"] * 10)),
    "a dictionary and plain text": (pl.Series(["x"] * 10, dtype=pl.Categorical), pl.Series(["x"] * 10)),
    "int32 and int64": (pl.Series([4] * 10, dtype=pl.Int32), pl.Series([4] * 10)),
    "uint64 and int8": (pl.Series([4] * 10, dtype=pl.UInt64), pl.Series([4] * 10, dtype=pl.Int8)),
    "floats because of gaps": (pl.Series([4.0, None, float("nan"), *[4.0] * 7]), pl.Series([4] * 10)),
    "a decimal": (pl.Series([4] * 10, dtype=pl.Decimal(20, 0)), pl.Series([4] * 10)),
}


@pytest.mark.parametrize("values", PARTS_THAT_DIFFER.values(), ids=list(PARTS_THAT_DIFFER))
@pytest.mark.parametrize("turned", [False, True])
def test_parts_may_write_the_same_in_other_types(
    tmp_path: Path, values: tuple[pl.Series, pl.Series], turned: bool
) -> None:
    features = [Column(name="feature", side="item", kind="categorical")]
    features.append(Column(name="list", side="item", kind="multi-categorical", max_length=2))
    raw = write_raw(tmp_path / "raw", ROWS | {"feature": values[1], "list": pl.Series([[1]] * 10)}, features, files=1)
    late = pl.DataFrame(ROWS | {"feature": values[0]}).with_columns(
        pl.col("time").cast(pl.Int32) + 10, pl.col("click").cast(pl.Float32), list=pl.Series([[]] * 10)
    )
    late.write_parquet(raw / "interactions" / ("part--.parquet" if turned else "part-9.parquet"))
    encode(raw, tmp_path / "dataset", THIRDS)
    dataset = Dataset(tmp_path / "dataset")
    assert vocabulary(dataset, "feature") == [values[1][0]]
    assert vocabulary(dataset, "list") == [1]
    assert dataset.items.categorical.tolist() == [[1, 1, 1, 0], [2, 1, 1, 0], [3, 1, 1, 0], [4, 1, 1, 0]]
    assert [dataset.count(part) for part in ("train", "valid", "test")] == [12, 4, 4]


def test_a_column_without_any_value_is_unknown(tmp_path: Path) -> None:
    nothing = pl.Series([None] * 10, dtype=pl.Null)
    features = [
        Column(name="a", side="item", kind="categorical"),
        Column(name="b", side="user", kind="numeric"),
        Column(name="c", side="item", kind="multi-categorical", max_length=2),
        Column(name="d", side="item", kind="multi-categorical", max_length=2, separator="|"),
        Column(name="e", side="user", kind="text", role="label"),
    ]
    dataset = encoded(
        tmp_path, ROWS | dict.fromkeys("abcd", nothing), features=features, users={"user": [7], "e": [None]}
    )
    assert not dataset.items.categorical[:, 1:].any()
    assert not dataset.users.numeric.any()
    assert [c.cardinality for c in dataset.schema.categorical("item")[1:]] == [1, 1, 1]
    assert dataset.users.labels == {} or dataset.users.labels == {"e": [""] * 4}


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user", pl.Series([2**64 - 1] * 10, dtype=pl.UInt64), "holds 18446744073709551615 in row 1.*int64.*text"),
        ("colour", pl.Series([1, 2**63, *[None] * 8], dtype=pl.UInt64), "holds 9223372036854775808 in row 2"),
        ("colour", pl.Series([1.0, None, 1.5, *[None] * 7]), "holds 1.5 in row 3.*kind numeric"),
        ("colour", pl.Series([2.0**60] * 10), r"holds 1\.15.*e\+18 in row 1"),
        ("tags", pl.Series([[1], [1, 2**63], *[None] * 8], dtype=pl.List(pl.UInt64)), "9223372036854775808.*in row 2"),
    ],
)
def test_a_number_that_int64_cannot_hold_is_named_with_its_row(
    tmp_path: Path, column: str, values: pl.Series, message: str
) -> None:
    features = [
        Column(name="colour", side="item", kind="categorical"),
        Column(name="tags", side="item", kind="multi-categorical", max_length=2),
    ]
    rows = ROWS | {"colour": [1] * 10, "tags": [["a"]] * 10} | {column: values}
    refused(tmp_path, write_raw(tmp_path / "raw", rows, features, files=1), f"column '{column}'.*{message}")


def test_ids_at_the_edges_of_int64_stay_what_they_are(tmp_path: Path) -> None:
    edges = [2**63 - 1, -(2**63), 0, -1, 2**53 + 1]
    dataset = encoded(tmp_path, ROWS | {"user": edges * 2, "item": pl.Series([1, 2] * 5, dtype=pl.UInt64)})
    assert sorted(dataset.users.raw_ids.tolist()) == sorted(edges)
    assert [row[0] for row in raw_rows(dataset, "train")] == [*edges, edges[0]]


def test_a_time_that_is_a_date_in_one_part_and_a_number_in_another_is_refused(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS)
    pl.DataFrame(ROWS | {"time": [datetime(1970, 1, 1)] * 10}).write_parquet(raw / "interactions" / "part-2.parquet")
    refused(tmp_path, raw, "column 'time' is Datetime.*part-2.parquet but Int64 in .*part-0.parquet", SchemaError)


def test_a_column_that_one_part_lacks_is_refused(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS)
    pl.DataFrame(ROWS).drop("click").write_parquet(raw / "interactions" / "part-2.parquet")
    refused(tmp_path, raw, "column 'click' is missing in .*part-2.parquet but not in .*part-0.parquet", SchemaError)


def test_columns_that_the_schema_does_not_name_may_differ(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS | {"note": ["x"] * 10})
    more = pl.DataFrame(ROWS).with_columns(other=pl.lit(1)).select("time", "other", "item", "user", "click")
    more.write_parquet(raw / "interactions" / "part-2.parquet")
    encode(raw, tmp_path / "dataset", THIRDS)
    assert sum(Dataset(tmp_path / "dataset").manifest["rows"].values()) == 20


def test_a_folder_may_be_called_like_a_pattern(tmp_path: Path) -> None:
    dataset = encoded(tmp_path / "log [1]*" / "day=1", ROWS | {"day": ["x"] * 10})
    assert len(dataset.rows("train")) == 6


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS)
    (raw / "interactions" / "more.csv").write_text("user,item\n")
    refused(tmp_path, raw, "more.csv is not a parquet file")


def test_no_raw_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    refused(tmp_path, tmp_path / "nowhere", "no raw data at .*nowhere")


def test_an_unknown_schema_field_is_named(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS)
    (raw / "schema.yaml").write_text((raw / "schema.yaml").read_text().replace("side: item", "sides: item"))
    refused(tmp_path, raw, "sides: is not a known field", SchemaError)


def test_the_raw_folder_is_never_overwritten(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS)
    with pytest.raises(DataError, match="would replace"):
        encode(raw, raw, THIRDS)
    assert (raw / "interactions").is_dir()


def test_an_interruption_leaves_the_previous_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded(tmp_path, ROWS)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("redis_recsys.dataset.encode.encode_entities", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path / "raw", tmp_path / "dataset", THIRDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "raw"]
    assert len(Dataset(tmp_path / "dataset").rows("train")) == 6


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """The operating system refuses files above a limit, just as it refuses writes to a full disk."""
    raw = write_raw(tmp_path / "raw", pl.concat([pl.DataFrame(ROWS)] * 500).with_columns(time=pl.int_range(5000)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        refused(tmp_path, raw, "cannot write .*dataset")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_the_dataset_is_plain_parquet_and_json(tmp_path: Path) -> None:
    dataset = encoded(tmp_path, ROWS)
    schema = pq.read_schema(next((dataset.path / "train").iterdir()))
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "user": "int32",
        "item": "int32",
        "target": "float",
        "time": "int64",
    }
    assert json.loads((dataset.path / "manifest.json").read_text())["version"] == 3
