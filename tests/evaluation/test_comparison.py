"""Two recommenders compared by their differences on the same users."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from redis_recsys.evaluation.comparison import compare

BEFORE = np.array([0.5, 0.2, 0.9, 0.4])


def test_the_interval_is_that_of_a_paired_t_test():
    random = np.random.default_rng(0)
    before, after = random.random((2, 50))
    found = compare("towers", "ranked", "ndcg@10", before, after)
    expected = ttest_rel(after, before).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.before, found.after, found.users) == (pytest.approx(before.mean()), pytest.approx(after.mean()), 50)


def test_users_that_all_lose_a_little_show_more_than_the_spread_between_users_would():
    after = BEFORE - [0.10, 0.11, 0.09, 0.10]
    sentence = str(compare("towers", "ranked", "ndcg@10", BEFORE, after))
    # deviations 0, -.01, .01, 0: standard error sqrt(.0002 / 3) / 2, times t(0.975, 3) = 3.182 is 0.013
    assert sentence == (
        "ranked lowers NDCG@10 from 0.500 (towers) to 0.400 "
        "(difference -0.100, 95% interval -0.113 to -0.087, paired over 4 test users)"
    )


def test_a_gain_is_told_with_the_metrics_name():
    assert str(compare("a", "b", "mrr", BEFORE, np.add(BEFORE, [0.1, 0.12, 0.1, 0.12]))).startswith(
        "b raises MRR from 0.500 (a) to 0.610 (difference +0.110, "
    )


def test_a_difference_within_the_interval_is_not_told_as_one():
    found = compare("towers", "ranked", "recall@10", BEFORE, np.add(BEFORE, [0.2, -0.2, 0.1, -0.05]))
    assert found.verdict == "open"
    assert str(found).startswith(
        "ranked has Recall@10 0.512, towers 0.500: 4 test users cannot tell them apart (difference +0.012, 95% interval"
    )


@pytest.mark.parametrize("users", [1, 3])
def test_one_user_and_equal_values_show_nothing(users: int):
    found = compare("a", "b", "mrr", BEFORE[:users], BEFORE[:users])
    assert found.verdict == "open"
    assert (found.high == np.inf) == (users == 1)
