"""Made-up clicks: their shape, their truth, and that there is something to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from redis_recsys.data.synthetic import TRUTH, generate, truth_of
from redis_recsys.dataset.schema import Schema
from redis_recsys.errors import DataError
from redis_recsys.evaluation.metrics import auc

ALI_CCP = {
    *("user_id", "user_shops", "user_profile", "user_group", "user_gender", "user_age", "user_consumption_2"),
    *("user_is_occupied", "user_geography", "user_intentions", "user_brands", "user_categories"),
    *("item_id", "item_category", "item_shop", "item_brand", "click", "time"),
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "raw"
    generate(folder, 200_000, users=2000, items=1000, seed=7)
    return folder


@pytest.fixture(scope="module")
def rows(raw: Path) -> pl.DataFrame:
    return pl.read_parquet(raw / "interactions" / "*.parquet")


def test_it_has_the_columns_of_ali_ccp_as_integers_and_the_truth(rows: pl.DataFrame) -> None:
    assert set(rows.columns) == ALI_CCP | {"click_probability"}
    assert all(rows[name].dtype == pl.Int64 for name in ALI_CCP)
    assert rows["click_probability"].dtype == pl.Float32


def test_the_truth_of_any_pair_is_known_from_the_raw_folder(raw: Path, rows: pl.DataFrame) -> None:
    truth = truth_of(raw)
    assert truth is not None
    some = rows.head(1000)
    found = truth(some["user_id"].to_numpy(), some["item_id"].to_numpy()[:, None])
    np.testing.assert_allclose(found[:, 0], some["click_probability"].to_numpy(), rtol=1e-6)
    assert truth(np.array([1, 2]), np.array([[1, 2, 3], [4, 5, 6]])).shape == (2, 3)


def test_other_data_has_no_truth_and_a_damaged_one_is_an_error(raw: Path, tmp_path: Path) -> None:
    assert truth_of(tmp_path) is None
    (tmp_path / TRUTH).write_text('{"seed": 1}')
    with pytest.raises(DataError, match=r"truth\.json is damaged"):
        truth_of(tmp_path)


def test_the_schema_describes_every_column(raw: Path, rows: pl.DataFrame) -> None:
    schema = Schema.load(raw / "schema.yaml")
    assert {c.name for c in schema.columns} == set(rows.columns)
    assert schema.oracle is not None
    assert schema.oracle.name == "click_probability"


def test_counts_are_those_asked_for(rows: pl.DataFrame) -> None:
    assert len(rows) == 200_000
    assert rows["user_id"].min() == 1
    assert rows["user_id"].max() == 2000
    assert rows["item_id"].max() == 1000


def test_attributes_belong_to_their_user_and_item(rows: pl.DataFrame) -> None:
    for side in ("user", "item"):
        attributes = [name for name in rows.columns if name.startswith(f"{side}_")]
        assert rows.select(attributes).unique().height == rows[f"{side}_id"].n_unique()


def test_time_rises_over_a_month(rows: pl.DataFrame) -> None:
    assert rows["time"].is_sorted()
    assert rows["time"].item(-1) - rows["time"].item(0) == pytest.approx(30 * 86_400, rel=0.01)


def test_clicks_follow_the_stated_probability(rows: pl.DataFrame) -> None:
    tenths = rows.group_by((pl.col("click_probability") * 10).floor().alias("tenth")).agg(
        pl.col("click", "click_probability").mean(), n=pl.len()
    )
    for _, click, probability, n in tenths.iter_rows():
        assert click == pytest.approx(probability, abs=4 * 0.5 / n**0.5)


def test_users_and_items_follow_power_laws(rows: pl.DataFrame) -> None:
    """On double logarithmic axes the counts of the busiest half fall along a line."""
    for name in ("user_id", "item_id"):
        counts = np.sort(rows[name].value_counts()["count"].to_numpy())[::-1]
        half = counts[5 : len(counts) // 2]
        rank = np.log(np.arange(6, len(half) + 6))
        assert np.corrcoef(rank, np.log(half))[0, 1] < -0.9
        assert counts[: len(counts) // 10].sum() > 0.25 * counts.sum()


def test_tastes_follow_from_the_attributes_of_the_user(rows: pl.DataFrame) -> None:
    """Users with the same taste click on few categories, and not on those that everybody clicks on."""
    clicks = rows.filter(pl.col("click") == 1)
    everybody = clicks["item_category"].value_counts(sort=True)["count"].head(3).sum() / len(clicks)
    group = clicks.filter(pl.col("user_categories") == 1, pl.col("user_intentions") == 1)
    alike = group["item_category"].value_counts(sort=True)["count"].head(3).sum() / len(group)
    assert alike > 3 * everybody


def test_the_same_seed_gives_the_same_rows(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate(tmp_path / name, 1000, seed=seed)
    a, b, c = (pq.read_table(tmp_path / name / "interactions") for name in "abc")
    assert a.equals(b)
    assert not a.equals(c)


@pytest.mark.parametrize("rows", [1, 10, 137])
def test_any_number_of_rows_works(tmp_path: Path, rows: int) -> None:
    generate(tmp_path / "raw", rows)
    assert pq.read_table(tmp_path / "raw" / "interactions").num_rows == rows


def test_a_count_below_one_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows must be at least 1"):
        generate(tmp_path / "raw", 0)
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("redis_recsys.data.synthetic.pq.write_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "raw", 100)
    assert not list(tmp_path.iterdir())


def test_the_truth_is_neither_trivial_nor_hopeless(rows: pl.DataFrame) -> None:
    assert 0.7 < auc(rows["click_probability"].to_numpy(), rows["click"].to_numpy()) < 0.85
    assert 0.2 < rows["click"].cast(pl.Float64).mean() < 0.4  # type: ignore[operator]
