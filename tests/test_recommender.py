"""Retrieval, seen filter, ranking and ordering on blocks, against one user at a time in plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from planted import Trained, one_by_one

from redis_recsys.bundle import Bundle
from redis_recsys.dataset import Rows
from redis_recsys.entities import read_entities
from redis_recsys.inference import ItemSide, Ranker, RankerHead
from redis_recsys.recommender import Everyone, Recommender, Scored

CANDIDATES = 15


def everyone_of(bundle: Bundle) -> np.ndarray:
    """All user numbers, in an order that is not the table's."""
    return np.random.default_rng(1).permutation(bundle.manifest.users) + 1


def assert_nearly_all_equal(found: list[list[int]], expected: list[list[int]]) -> None:
    """Two items of one user may change places where rounding decides."""
    assert np.mean([a == b for a, b in zip(found, expected, strict=True)]) > 0.97


def test_recommendations_are_those_of_a_loop_over_users(variant: Trained) -> None:
    bundle = variant.bundle
    expected = one_by_one(bundle, CANDIDATES, 5)
    users = everyone_of(bundle)
    items = Everyone(bundle, CANDIDATES, block=16).recommend(users, 5)
    assert_nearly_all_equal(items.tolist(), [expected[user - 1][0] for user in users])


def test_the_towers_alone_recommend_the_nearest_unseen_items(variant: Trained) -> None:
    bundle = variant.bundle
    expected = one_by_one(bundle, CANDIDATES, CANDIDATES, ranked=False)
    users = everyone_of(bundle)
    items = Everyone(bundle, CANDIDATES, ranked=False, block=16).recommend(users, 5)
    assert_nearly_all_equal(items.tolist(), [expected[user - 1][0][:5] for user in users])


def test_a_click_probability_of_a_row_is_the_rankers(variant: Trained) -> None:
    bundle, random = variant.bundle, np.random.default_rng(2)
    users = read_entities(bundle.path / "user_features.parquet", bundle.schema, "user")
    # few users with many rows and many users with few, some rows twice
    user = np.concatenate([np.full(60, 3), random.integers(1, len(users) + 1, 90)]).astype(np.int32)
    item = random.integers(1, bundle.manifest.items + 1, 150).astype(np.int32)
    rows = Rows(user, item, np.zeros(150, np.float32), np.zeros(150, np.int64))
    found = Everyone(bundle, block=16).predict(rows)
    ranker = Ranker(bundle.path / "ranker.onnx")
    for n in range(150):
        u, i = slice(user[n] - 1, user[n]), slice(item[n] - 1, item[n])
        items = bundle.items.categorical[None, i], bundle.items.numeric[None, i]
        assert found[n] == pytest.approx(ranker(users.categorical[u], users.numeric[u], *items)[0, 0], abs=1e-6)


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
