"""Made-up Criteo rows: their shape, their truth, and that there is something to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from redis_recsys.data.criteo.dataset import PARTS, CriteoDataset, CriteoRows
from redis_recsys.data.criteo.generate import AFFINITIES, PUBLIC_SIZES, generate, scaled
from redis_recsys.errors import DataError
from redis_recsys.evaluation.metrics import auc


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CriteoDataset:
    folder = tmp_path_factory.mktemp("synthetic") / "criteo"
    generate(folder, 200_000, seed=7)
    return CriteoDataset(folder)


@pytest.fixture(scope="module")
def rows(dataset: CriteoDataset) -> CriteoRows:
    return CriteoRows.concatenate(list(dataset.batches("train", 50_000)))


def truth(rows: CriteoRows) -> np.ndarray:
    assert rows.click_probability is not None
    return rows.click_probability.astype(np.float64)


def test_counts_are_those_asked_for(dataset: CriteoDataset) -> None:
    assert [dataset.count(part) for part in PARTS] == [160_000, 20_000, 20_000]


def test_the_public_sizes_are_scaled_and_small_slots_keep_theirs() -> None:
    assert scaled(1.0) == list(PUBLIC_SIZES)
    assert scaled(0.01)[:6] == [49762, 254, 147, 100, 193, 4]
    with pytest.raises(DataError, match="above 0"):
        scaled(0.0)


def test_the_truth_is_neither_trivial_nor_hopeless(rows: CriteoRows) -> None:
    assert 0.78 < auc(truth(rows), rows.label) < 0.84
    assert 0.22 < rows.label.mean() < 0.28


def test_clicks_follow_the_stated_probability(rows: CriteoRows) -> None:
    tenth = (truth(rows) * 10).astype(int)
    for value in np.unique(tenth):
        inside = tenth == value
        assert rows.label[inside].mean() == pytest.approx(
            truth(rows)[inside].mean(), abs=4 * 0.5 / np.sqrt(inside.sum())
        )


def test_keys_follow_a_power_law_and_ids_their_frequency(rows: CriteoRows) -> None:
    """On double logarithmic axes the counts of the first thousand keys fall along a line."""
    counts = np.bincount(rows.ids[:, 0])[1:1001]
    rank = np.arange(1, 1001)
    seen = counts > 0
    assert np.corrcoef(np.log(rank[seen]), np.log(counts[seen]))[0, 1] < -0.95
    assert counts[:10].sum() > 5 * counts[100:110].sum()


def test_pairs_of_slots_say_more_than_the_two_alone(rows: CriteoRows) -> None:
    """The mean log-odds of a pair of frequent keys differs from the sum of the two keys' effects."""
    logit = np.log(truth(rows) / (1 - truth(rows)))
    one, other = (int(slot[1:]) - 1 for slot in AFFINITIES[0][:2])
    left, right = rows.ids[:, one], rows.ids[:, other]
    frequent = (left > 0) & (left <= 3) & (right > 0) & (right <= 3)
    table = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            table[i, j] = logit[(left == i + 1) & (right == j + 1)].mean()
    additive = table.mean(axis=1)[:, None] + table.mean(axis=0) - table.mean()
    noise = logit.std() / np.sqrt(frequent.sum() / 9)
    assert np.abs(table - additive).max() > 4 * noise


def test_the_same_seed_gives_the_same_rows(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate(tmp_path / name, 1000, seed=seed)
    a, b, c = (pq.read_table(tmp_path / name / "train") for name in "abc")
    assert a.equals(b)
    assert not a.equals(c)


def test_slot_sizes_can_be_given(tmp_path: Path) -> None:
    generate(tmp_path / "a", 1000, slot_sizes=[7] * 26)
    dataset = CriteoDataset(tmp_path / "a")
    assert dataset.slot_sizes == (7,) * 26
    assert next(dataset.batches("train", 1000)).ids.max() == 6
    with pytest.raises(DataError, match="26 numbers of at least 2"):
        generate(tmp_path / "b", 1000, slot_sizes=[7] * 25)


def test_too_few_rows_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows must be at least 1"):
        generate(tmp_path / "raw", 0)
    with pytest.raises(DataError, match="3 rows leave none for valid"):
        generate(tmp_path / "raw", 3)
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("redis_recsys.data.criteo.part_writer.pq.write_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "raw", 100)
    assert not list(tmp_path.iterdir())
