"""Every baseline keeps the same promises, and each finds its own kind of structure."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from redis_recsys.dataset.interactions import Rows
from redis_recsys.dataset.popularity import Clicks
from redis_recsys.dataset.user_history import History
from redis_recsys.errors import TrainingError
from redis_recsys.evaluation.baselines import ALS, BPR, EASE, ItemKNN, Personal, Popularity, RecentPopularity, RP3beta

PERSONAL = (ItemKNN, RP3beta, EASE, ALS, BPR)
BASELINES = (Popularity, RecentPopularity, *PERSONAL)
USERS, ITEMS = 60, 40
COLD = USERS  # the last user has no rows


def rows_of(pairs: list[tuple[int, int]], target: list[float] | None = None) -> Rows:
    user, item = np.array(pairs, np.int32).T
    clicks = np.ones(len(pairs), np.float32) if target is None else np.array(target, np.float32)
    return Rows(user, item, clicks, np.arange(len(pairs)))


@pytest.fixture(scope="module")
def tastes() -> Rows:
    """Users 1..59 click on 8 of the 20 items of their taste, odd users odd items, even users even ones."""
    random = np.random.default_rng(1)
    pairs = []
    for user in range(1, USERS):
        liked = np.arange(1 + (user % 2 == 0), ITEMS + 1, 2)
        pairs += [(user, int(item)) for item in random.choice(liked, 8, replace=False)]
    order = random.permutation(len(pairs))
    return rows_of([pairs[at] for at in order])


@pytest.mark.parametrize("kind", BASELINES)
def test_nothing_seen_and_nothing_twice_is_recommended(kind: type[Popularity], tastes: Rows):
    baseline = kind()
    baseline.fit(tastes, USERS, ITEMS)
    users = np.arange(1, USERS + 1)
    lists = baseline.recommend(users, 12)
    assert lists.shape == (USERS, 12)
    assert lists.dtype == np.int32
    history = History.of(tastes, USERS)
    for user, items in zip(users, lists.tolist(), strict=True):
        assert len(set(items)) == 12
        assert min(items) >= 1
        assert max(items) <= ITEMS
        assert not set(items) & set(history[user].tolist())


@pytest.mark.parametrize("kind", BASELINES)
def test_a_user_without_history_gets_the_popular_items_and_from_personal_baselines_the_recently_popular(
    kind: type[Popularity], tastes: Rows
):
    baseline = kind()
    baseline.fit(tastes, USERS, ITEMS)
    counts = np.bincount(tastes.item, minlength=ITEMS + 1)
    if kind is not Popularity:
        newest = tastes.item[-48:]  # the newest tenth of 472 clicks
        counts = counts / 1000 + np.bincount(newest, minlength=ITEMS + 1)
    items = baseline.recommend(np.array([COLD]), 10)[0]
    assert counts[items].tolist() == sorted(counts[1:], reverse=True)[:10]


@pytest.mark.parametrize("kind", PERSONAL)
def test_personal_baselines_find_the_taste_of_a_user(kind: type[Popularity], tastes: Rows):
    baseline = kind()
    baseline.fit(tastes, USERS, ITEMS)
    users = np.arange(1, USERS)
    lists = baseline.recommend(users, 5)
    assert (lists % 2 == users[:, None] % 2).mean() > 0.9


@pytest.mark.parametrize("kind", BASELINES)
def test_two_fits_recommend_the_same(kind: type[Popularity], tastes: Rows):
    lists = []
    for _ in range(2):
        baseline = kind()
        baseline.fit(tastes, USERS, ITEMS)
        lists.append(baseline.recommend(np.arange(1, USERS), 10))
    assert np.array_equal(*lists)


@pytest.mark.parametrize("kind", BASELINES)
def test_fitting_is_silent(kind: type[Popularity], tastes: Rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind().fit(tastes, USERS, ITEMS)


def test_only_clicks_count():
    baseline = Popularity()
    baseline.fit(rows_of([(1, 1), (2, 1), (1, 2), (2, 1)], [0, 0, 1, 0]), 3, 2)
    assert baseline.recommend(np.array([1, 3]), 1).tolist() == [[1], [2]]


def test_lists_end_in_zeros_where_the_catalogue_does():
    baseline = Popularity()
    baseline.fit(rows_of([(1, 1), (1, 2), (2, 3), (3, 3), (2, 1)]), 3, 3)
    assert baseline.recommend(np.array([1, 2]), 5).tolist() == [[3, 0, 0, 0, 0], [2, 0, 0, 0, 0]]


def test_item_neighbours_by_hand():
    # 1 and 2 are clicked by the same two users; 3 is clicked most, but by others
    rows = rows_of([(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (4, 3), (5, 3), (6, 1)])
    baseline = ItemKNN()
    baseline.fit(rows, 6, 3)
    assert baseline.recommend(np.array([6]), 2).tolist() == [[2, 3]]


def clicks_of(rows: Rows) -> np.ndarray:
    """float64[users, items], 1 for a click."""
    clicks = np.zeros((USERS, ITEMS))
    clicks[rows.user - 1, rows.item - 1] = 1
    return clicks


@pytest.mark.parametrize("penalty", [0.5, 30.0])
def test_ease_is_a_ridge_regression_of_each_item_on_all_others(penalty: float, tastes: Rows):
    tastes = tastes.take(tastes.item != 7)  # an item without clicks
    baseline = EASE(penalty)
    baseline.fit(tastes, USERS, ITEMS)
    clicks = clicks_of(tastes)
    weights = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        others = np.delete(np.arange(ITEMS), item)
        x = clicks[:, others]
        weights[others, item] = np.linalg.solve(x.T @ x + penalty * np.eye(ITEMS - 1), x.T @ clicks[:, item])
    np.testing.assert_allclose(baseline.scores(np.arange(USERS)), clicks @ weights, atol=2e-6)


@pytest.mark.parametrize(("neighbours", "alpha", "beta"), [(3, 1.0, 0.0), (5, 0.6, 0.4), (ITEMS, 1.5, 1.0)])
def test_rp3beta_walks_from_the_user_over_an_item_and_another_user(
    neighbours: int, alpha: float, beta: float, tastes: Rows
):
    baseline = RP3beta(neighbours, alpha, beta)
    baseline.fit(tastes, USERS, ITEMS)
    clicks = clicks_of(tastes)
    of_item, of_user = clicks.sum(axis=0), clicks.sum(axis=1)
    walks = np.zeros((ITEMS, ITEMS))
    for start in range(ITEMS):
        for user in np.flatnonzero(clicks[:, start]):
            for end in np.flatnonzero(clicks[user]):
                walks[start, end] += (1 / of_item[start] * 1 / of_user[user]) ** alpha / of_item[end] ** beta
    np.fill_diagonal(walks, 0)
    kept = np.sort(walks, axis=1)[:, -neighbours, None]
    similarity = baseline.similarity.toarray()
    assert (np.count_nonzero(similarity, axis=1) <= neighbours).all()
    np.testing.assert_allclose(similarity.sum(axis=1), np.sort(walks, axis=1)[:, -neighbours:].sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(similarity, np.where((walks >= kept) & (similarity > 0), walks, 0), rtol=1e-5)


def test_shrinkage_makes_neighbours_of_few_users_weaker():
    rows = rows_of([(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (4, 3), (5, 3), (6, 1)])
    baseline = ItemKNN(shrinkage=5)
    baseline.fit(rows, 6, 3)
    assert baseline.similarity.toarray()[0, 1] == pytest.approx(2 / (np.sqrt(3 * 2) + 5))


def test_popularity_of_some_days_counts_the_clicks_of_those_days_and_then_all():
    rows = rows_of([(1, 1), (2, 1), (3, 1), (1, 2), (2, 3)])
    days = rows.time * 24  # of hours: one click a day
    baseline = RecentPopularity(2, 24)
    baseline.fit(Rows(rows.user, rows.item, rows.target, days), 4, 4)
    assert baseline.name == "popularity-2-days"
    assert baseline.recommend(np.array([4]), 4).tolist() == [[2, 3, 1, 4]]


def test_a_personal_baseline_gives_newcomers_the_popularity_it_is_told(tastes: Rows):
    baseline: Personal = ItemKNN()
    baseline.for_all = Popularity()
    baseline.fit(tastes, USERS, ITEMS)
    ever = Popularity()
    ever.fit(tastes, USERS, ITEMS)
    assert np.array_equal(*(each.recommend(np.array([COLD]), 10) for each in (baseline, ever)))


def test_recent_popularity_prefers_what_is_clicked_now():
    rows = rows_of([(user, 1) for user in range(1, 19)] + [(19, 2), (20, 2)])
    baseline = RecentPopularity()
    baseline.fit(rows, 21, 3)
    assert baseline.recommend(np.array([21]), 3).tolist() == [[2, 1, 3]]


@pytest.mark.parametrize("kind", BASELINES)
def test_data_without_a_click_is_refused(kind: type[Popularity]):
    with pytest.raises(TrainingError, match="no row is a click"):
        kind().fit(rows_of([(1, 1)], [0]), 1, 1)


def test_clicks_of_one_time_are_recent_together_and_without_times_all_are() -> None:
    rows = Rows(
        user=np.ones(20, np.int32),
        item=np.array([1] * 12 + [2, 2, 3, 3, 3, 4, 4, 5], np.int32),
        target=np.ones(20, np.float32),
        time=np.array([0] * 12 + [1] * 5 + [2, 3, 3]),
    )
    clicks = Clicks.of(rows, 6)
    assert clicks.recent is not None
    assert (clicks.ever.tolist(), clicks.recent.tolist()) == ([12, 2, 3, 2, 1, 0], [0, 0, 0, 1, 1, 0])
    assert (np.argsort(-clicks.scores) + 1).tolist() == [4, 5, 1, 3, 2, 6]
    tied = Clicks.of(Rows(rows.user, rows.item, rows.target, np.where(rows.time == 2, 3, rows.time)), 6)
    assert tied.recent is not None
    assert tied.recent.tolist() == [0, 0, 0, 2, 1, 0]  # two of twenty are the newest tenth, three have the newest time
    timeless = Clicks.of(Rows(rows.user, rows.item, rows.target, np.zeros(20, np.int64)), 6)
    assert (np.argsort(-timeless.scores, kind="stable") + 1).tolist() == [1, 3, 2, 4, 5, 6]
