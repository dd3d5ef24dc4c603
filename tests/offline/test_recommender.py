"""Retrieval, seen filter, ranking and ordering on blocks, against one user at a time in plain NumPy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.bundle.models import ItemSide, Ranker, RankerHead
from redis_recsys.bundle.writer import write_tables
from redis_recsys.dataset.entities import write_entities
from redis_recsys.dataset.interactions import Rows
from redis_recsys.dataset.popularity import Clicks
from redis_recsys.dataset.user_history import History, users_after
from redis_recsys.errors import DataError
from redis_recsys.evaluation.evaluate import evaluate
from redis_recsys.offline.recommender import BundleRecommender, Recommender, Scored
from tests.support.planted import Trained, before_test, one_by_one, planted_dataset

CANDIDATES = 15


def everyone_of(bundle: Bundle) -> np.ndarray:
    """All user numbers, in another order than the table's."""
    return np.random.default_rng(1).permutation(bundle.manifest.users) + 1


def assert_nearly_all_equal(found: list[list[int]], expected: list[list[int]]) -> None:
    """Check that lists agree, except that rounding may swap two items of a user."""
    assert np.mean([a == b for a, b in zip(found, expected, strict=True)]) > 0.97


def test_recommendations_are_those_of_a_loop_over_users(variant: Trained) -> None:
    bundle = variant.bundle
    expected = one_by_one(bundle, CANDIDATES, 5, users=before_test(variant.dataset))
    users = everyone_of(bundle)
    items = BundleRecommender(bundle, variant.dataset, CANDIDATES, block=16).recommend(users, 5)
    assert_nearly_all_equal(items.tolist(), [expected[user - 1][0] for user in users])


def test_the_towers_alone_recommend_the_nearest_unseen_items(variant: Trained) -> None:
    bundle = variant.bundle
    expected = one_by_one(bundle, CANDIDATES, CANDIDATES, ranked=False, users=before_test(variant.dataset))
    users = everyone_of(bundle)
    items = BundleRecommender(bundle, variant.dataset, CANDIDATES, ranked=False, block=16).recommend(users, 5)
    assert_nearly_all_equal(items.tolist(), [expected[user - 1][0][:5] for user in users])


def test_a_click_probability_of_a_row_is_the_rankers(variant: Trained) -> None:
    bundle, random = variant.bundle, np.random.default_rng(2)
    users = [user for user, _ in before_test(variant.dataset)]
    # few users with many rows and many users with few, some rows twice
    user = np.concatenate([np.full(60, 3), random.integers(1, len(users) + 1, 90)]).astype(np.int32)
    item = random.integers(1, bundle.manifest.items + 1, 150).astype(np.int32)
    rows = Rows(user, item, np.zeros(150, np.float32), np.zeros(150, np.int64))
    found = BundleRecommender(bundle, variant.dataset, block=16).predict(rows)
    ranker = Ranker(bundle.path / "ranker.onnx")
    for n in range(150):
        packed, i = users[user[n] - 1], slice(item[n] - 1, item[n])
        items = bundle.items.categorical[None, i], bundle.items.numeric[None, i]
        assert found[n] == pytest.approx(ranker(packed.categorical, packed.numeric, *items)[0, 0], abs=1e-6)


class FromTables:
    """Recommender with histories from the bundle's tables, as in all evaluations while these ended before the test."""

    name = "two-tower + DLRM"

    def __init__(self, bundle: Bundle) -> None:
        self.models = Recommender(bundle, CANDIDATES)
        ((self.users, self.history),) = bundle.users(block=bundle.manifest.users)

    def recommend(self, users: np.ndarray, k: int) -> np.ndarray:
        lists = [self.history[user] for user in users]
        starts = np.concatenate([[0, 0], np.cumsum([len(items) for items in lists])])
        seen = History(starts, np.concatenate(lists))
        return self.models.recommend(self.users.rows(users - 1), seen, k, 0.0, np.random.default_rng(0)).items

    def predict(self, rows: Rows) -> np.ndarray:
        return np.array([self.models.rank(self.users.rows(u - 1), i)[0, 0] for u, i in pairs(rows)], np.float32)


def pairs(rows: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for user, item in zip(rows.user, rows.item, strict=True):
        yield np.array([user]), np.array([[item]])


def with_tables(trained: Trained, target: Path, after: Rows) -> Bundle:
    """A copy of a bundle with users and histories as they are after some rows."""
    folder = Path(shutil.copytree(trained.bundle.path, target))
    users, history = users_after(trained.dataset, after)
    write_entities(folder / "user_features.parquet", trained.bundle.schema, "user", users)
    write_tables(
        folder, trained.bundle.item_embeddings, Clicks.of(after, len(trained.dataset.items)), history, len(users)
    )
    return Bundle(folder, verify=False)


def test_an_evaluation_gives_the_figures_that_tables_up_to_the_test_give(variant: Trained, tmp_path: Path) -> None:
    dataset = variant.dataset
    both = BundleRecommender(variant.bundle, dataset, CANDIDATES)
    found = evaluate(dataset, [both], (5, 10), both.predict)
    before = FromTables(with_tables(variant, tmp_path / "before", dataset.rows("train", "valid")))
    expected = evaluate(dataset, [before], (5, 10), before.predict)
    assert found.retrieval == expected.retrieval
    assert found.warm == expected.warm
    curve, wanted = found.ranker.pop("calibration"), expected.ranker.pop("calibration")
    assert found.ranker == {name: pytest.approx(value, abs=1e-6) for name, value in expected.ranker.items()}
    assert curve.rows == wanted.rows
    assert curve.predicted == pytest.approx(wanted.predicted, abs=1e-6)
    leaking = FromTables(variant.bundle)  # the production histories hold the very items to be found
    assert evaluate(dataset, [leaking], (5, 10)).retrieval[both.name]["hit_rate@10"] == 0
    assert found.retrieval[both.name]["hit_rate@10"] > 0


def test_an_evaluation_can_find_every_item_of_the_test_and_none_from_before(variant: Trained) -> None:
    dataset, items = variant.dataset, len(variant.dataset.items)
    before = dataset.rows("train", "valid").positives()
    test = dataset.rows("test").positives()
    users = np.unique(test.user)
    lists = BundleRecommender(variant.bundle, dataset, items).recommend(users, items)
    for user, found in zip(users, lists.tolist(), strict=True):
        had = set(before.item[before.user == user].tolist())
        assert set(found) - {0} == set(range(1, items + 1)) - had
        assert set(test.item[test.user == user].tolist()) - had <= set(found)


def test_a_bundle_of_other_data_is_not_evaluated(trained: Trained, tmp_path: Path) -> None:
    other = planted_dataset(tmp_path, rows=1000)
    with pytest.raises(DataError, match=r"bundle was not trained on .*dataset: the users differ"):
        BundleRecommender(trained.bundle, other)


def test_the_ranker_in_parts_equals_the_ranker_whole(variant: Trained) -> None:
    bundle = variant.bundle
    users, items = next(bundle.users(9))[0], np.random.default_rng(3).integers(1, bundle.manifest.items + 1, (9, 7))
    path = bundle.path / "ranker.onnx"
    item_side, head = ItemSide(path, bundle.items.categorical, bundle.items.numeric), RankerHead(path)
    whole = Ranker(path)
    features = bundle.items.categorical[items - 1], bundle.items.numeric[items - 1]
    expected = whole(users.categorical, users.numeric, *features)
    np.testing.assert_allclose(head(users.categorical, users.numeric, *item_side(items)), expected, atol=1e-6)


def test_more_candidates_than_unseen_items_are_filled_with_zero(trained: Trained) -> None:
    bundle = trained.bundle
    models = Recommender(bundle, candidates=1000)
    for users, history in bundle.users(64):
        items, _ = models.retrieve(users, history)
        assert items.shape == (len(users), bundle.manifest.items)
        for row, found in enumerate(items):
            unseen = set(range(1, bundle.manifest.items + 1)) - set(history[row + 1])
            assert set(found[: len(unseen)]) == unseen
            assert not found[len(unseen) :].any()
        scores = models.rank(users, items)
        assert ((scores > -np.inf) == (items > 0)).all()


def test_counts_are_the_items_that_there_are() -> None:
    scored = Scored(
        np.array([[3, 1], [2, 0], [0, 0]]), np.array([[0.5, 0.4], [0.3, -np.inf], [-np.inf] * 2]), np.zeros(3, bool)
    )
    assert scored.counts.tolist() == [2, 1, 0]
