"""Means with bootstrap intervals, and recommenders compared by their differences on the same users."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap, ttest_rel

from redis_recsys.evaluation.comparison import Comparison, Paired

BEFORE = np.array([0.5, 0.2, 0.9, 0.4])


def compared(first: str, second: str, metric: str, before: np.ndarray, after: np.ndarray) -> Comparison:
    return Paired({first: {metric: before}, second: {metric: after}}).compare(first, second, metric)


def test_the_interval_of_a_mean_is_that_of_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).random(80) ** 2
    found = Paired({"towers": {"mrr": values}})
    expected = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert found.interval("towers", "mrr") == pytest.approx((expected.low, expected.high), abs=0.004)
    assert found.mean("towers", "mrr") == pytest.approx(values.mean())


def test_the_interval_of_a_difference_is_about_that_of_a_paired_t_test():
    before = np.random.default_rng(0).random(500)
    after = before + np.random.default_rng(1).normal(0.01, 0.05, 500)
    found = compared("towers", "ranked", "ndcg@10", before, after)
    expected = ttest_rel(after, before).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.0006)
    assert (found.before, found.after, found.users) == (pytest.approx(before.mean()), pytest.approx(after.mean()), 500)
    assert found.difference == pytest.approx((after - before).mean())


def test_values_of_one_user_are_drawn_together():
    random = np.random.default_rng(0)
    values = random.random(40)
    once, ids = Paired({"a": {"mrr": values}}), np.repeat(np.arange(40), 5)
    five_times = Paired({"a": {"mrr": np.repeat(values, 5)}}, ids)
    assert five_times.users == once.users == 40
    assert five_times.interval("a", "mrr") == pytest.approx(once.interval("a", "mrr"))
    apart = Paired({"a": {"mrr": np.repeat(values, 5)}})
    widths = [high - low for low, high in (apart.interval("a", "mrr"), five_times.interval("a", "mrr"))]
    assert widths[0] < 0.6 * widths[1]


def test_users_with_more_values_weigh_more_and_may_come_in_any_order():
    ids, values = np.array(["x", "y", "x", "z"]), np.array([0.1, 0.5, 0.3, 0.9])
    found = Paired({"a": {"mrr": values}}, ids)
    assert found.mean("a", "mrr") == pytest.approx(values.mean())
    order = [3, 0, 2, 1]
    assert found.interval("a", "mrr") == Paired({"a": {"mrr": values[order]}}, ids[order]).interval("a", "mrr")


def test_two_runs_give_the_same_interval():
    values = np.random.default_rng(0).random((2, 30))
    first, second = (compared("a", "b", "mrr", *values) for _ in range(2))
    assert first == second


def test_users_that_all_lose_a_little_show_more_than_the_spread_between_users_would():
    after = BEFORE - [0.10, 0.11, 0.09, 0.10]
    found = compared("towers", "ranked", "ndcg@10", BEFORE, after)
    assert found.verdict == "lowers"
    assert -0.11 <= found.low <= -0.1 <= found.high <= -0.09
    assert str(found) == (
        "ranked lowers NDCG@10 from 0.500 (towers) to 0.400 "
        f"(difference -0.100, 95% interval {found.low:.3f} to {found.high:.3f}, paired over 4 test users)"
    )


def test_a_gain_is_told_with_the_metrics_name():
    assert str(compared("a", "b", "mrr", BEFORE, np.add(BEFORE, [0.1, 0.12, 0.1, 0.12]))).startswith(
        "b raises MRR from 0.500 (a) to 0.610 (difference +0.110, "
    )


def test_a_difference_within_the_interval_is_not_told_as_one():
    found = compared("towers", "ranked", "recall@10", BEFORE, np.add(BEFORE, [0.2, -0.2, 0.1, -0.05]))
    assert found.verdict == "open"
    assert str(found).startswith(
        "ranked has Recall@10 0.512, towers 0.500: 4 test users cannot tell them apart (difference +0.012, 95% interval"
    )


@pytest.mark.parametrize("users", [1, 3])
def test_one_user_and_equal_values_show_nothing(users: int):
    found = compared("a", "b", "mrr", BEFORE[:users], BEFORE[:users])
    assert found.verdict == "open"
    assert (found.high == 1) == (users == 1)
