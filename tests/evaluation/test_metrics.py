"""Metrics against values computed by hand and against slow, literal versions of their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pytrec_eval import RelevanceEvaluator

from redis_recsys.errors import DataError
from redis_recsys.evaluation.metrics import (
    auc,
    calibration,
    coverage,
    hit_rate,
    hits_of,
    impression_ndcg,
    list_metrics,
    log_loss,
    mrr,
    ndcg_at,
    recall_at,
    title_of,
)

# user 0 finds 3 and 9 relevant, user 1 only 4, user 2 the items 1, 2, 5
RECOMMENDED = np.array([[3, 7, 9, 1], [1, 2, 4, 0], [8, 9, 7, 6]])
STARTS = np.array([0, 2, 3, 6])
RELEVANT = np.array([3, 9, 4, 1, 2, 5])
COUNTS = np.diff(STARTS)


def test_a_hit_is_a_relevant_item_of_that_very_user():
    assert hits_of(RECOMMENDED, STARTS, RELEVANT).tolist() == [
        [True, False, True, False],
        [False, False, True, False],
        [False, False, False, False],
    ]


def test_padding_is_never_a_hit():
    assert not hits_of(np.zeros((2, 3), np.int32), np.array([0, 1, 2]), np.array([1, 2])).any()


def test_list_metrics_are_those_of_trec_eval():
    random = np.random.default_rng(3)
    users, items, length = 200, 60, 20
    lists = np.stack([random.permutation(items)[:length] + 1 for _ in range(users)])
    lists[::7, 5:] = 0  # short ones
    counts = random.integers(1, 31, users)
    relevant = [random.permutation(items)[:count] + 1 for count in counts]
    starts = np.concatenate([[0], np.cumsum(counts)])
    judged = {f"{user}": {f"{item}": 1 for item in found} for user, found in enumerate(relevant)}
    shown = {
        f"{user}": {f"{item}": float(length - place) for place, item in enumerate(row) if item}
        for user, row in enumerate(lists)
    }
    theirs = RelevanceEvaluator(judged, {"ndcg_cut.5,10", "recall.5,10", "success.5,10", "recip_rank"}).evaluate(shown)
    names = {"ndcg": "ndcg_cut", "recall": "recall", "hit_rate": "success"}
    found = list_metrics(lists, starts, np.concatenate(relevant), (5, 10))
    for name, values in found.items():
        kind, *length_of_list = name.split("@")
        their_name = "_".join([names[kind], *length_of_list]) if length_of_list else "recip_rank"
        np.testing.assert_allclose(values, [theirs[f"{user}"][their_name] for user in range(users)], err_msg=name)


def test_recall_is_the_share_of_relevant_items_found():
    hits = hits_of(RECOMMENDED, STARTS, RELEVANT)
    assert recall_at(hits, COUNTS, 2).tolist() == [0.5, 0, 0]
    assert recall_at(hits, COUNTS, 4).tolist() == [1, 1, 0]


def test_ndcg_by_hand():
    hits = hits_of(RECOMMENDED, STARTS, RELEVANT)
    first = (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    assert ndcg_at(hits, COUNTS, 4) == pytest.approx([first, 0.5, 0])


def test_ndcg_is_one_when_the_list_is_as_good_as_k_places_allow():
    hits = np.ones((1, 3), bool)
    assert ndcg_at(hits, np.array([50]), 3) == pytest.approx([1])


def test_ndcg_of_lists_shorter_than_k_counts_the_missing_places_as_misses():
    hits = np.array([[True, False]])
    assert ndcg_at(hits, np.array([2]), 10) == pytest.approx([1 / (1 + 1 / math.log2(3))])


def test_mrr_is_the_reciprocal_place_of_the_first_hit():
    assert mrr(hits_of(RECOMMENDED, STARTS, RELEVANT)) == pytest.approx([1, 1 / 3, 0])


def test_hit_rate_counts_users_with_any_hit():
    hits = hits_of(RECOMMENDED, STARTS, RELEVANT)
    assert hit_rate(hits, 2).tolist() == [1, 0, 0]
    assert hit_rate(hits, 3).tolist() == [1, 1, 0]


def test_coverage_counts_distinct_items_and_no_padding():
    assert coverage(np.array([[1, 2, 0], [2, 3, 0]]), 10) == pytest.approx(0.3)


def test_list_metrics_agree_with_a_literal_loop():
    random = np.random.default_rng(3)
    items, k = 60, 20
    recommended = np.stack([random.permutation(items)[:k] + 1 for _ in range(50)])
    recommended[random.random(recommended.shape) < 0.1] = 0
    relevant = [random.choice(np.arange(1, items + 1), random.integers(1, 30), replace=False) for _ in range(50)]
    starts = np.concatenate([[0], np.cumsum([len(r) for r in relevant])])
    metrics = list_metrics(recommended, starts, np.concatenate(relevant), (5, 20))
    for user, wanted in enumerate(relevant):
        found = [item in wanted for item in recommended[user]]
        for at in (5, 20):
            gained = sum(1 / math.log2(place + 2) for place in range(at) if found[place])
            ideal = sum(1 / math.log2(place + 2) for place in range(min(at, len(wanted))))
            assert metrics[f"ndcg@{at}"][user] == pytest.approx(gained / ideal)
            assert metrics[f"recall@{at}"][user] == pytest.approx(sum(found[:at]) / len(wanted))
            assert metrics[f"hit_rate@{at}"][user] == float(any(found[:at]))
        assert metrics["mrr"][user] == pytest.approx(1 / (found.index(True) + 1) if any(found) else 0)


def test_a_user_without_relevant_items_is_refused():
    with pytest.raises(DataError, match="1 users have no relevant item"):
        list_metrics(RECOMMENDED[:2], np.array([0, 0, 1]), np.array([4]), (2,))


def test_auc_by_hand():
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == pytest.approx(0.75)


@pytest.mark.parametrize("levels", [2, 7, 10_000])
def test_auc_is_the_share_of_click_and_non_click_pairs_in_order_with_ties_as_half(levels: int):
    random = np.random.default_rng(levels)
    score = random.integers(0, levels, 300) / levels
    target = (random.random(300) < 0.3).astype(np.float32)
    clicks, others = score[target > 0], score[target == 0]
    pairs = [(c > o) + 0.5 * (c == o) for c in clicks for o in others]
    assert auc(score, target) == pytest.approx(sum(pairs) / len(pairs))


def test_auc_of_a_constant_is_one_half():
    assert auc(np.zeros(9), np.arange(9) % 2) == 0.5


def test_auc_stays_exact_for_many_rows():
    target = np.arange(3_000_000) % 2
    assert auc(target.astype(np.float32), target) == 1.0


def test_auc_of_one_class_is_refused():
    with pytest.raises(DataError, match="clicks and non-clicks"):
        auc(np.zeros(3), np.ones(3))


def test_log_loss_by_hand():
    expected = -(math.log(0.9) + math.log(1 - 0.2) + math.log(0.5)) / 3
    assert log_loss(np.array([0.9, 0.2, 0.5], np.float32), np.array([1, 0, 1])) == pytest.approx(expected)


def test_log_loss_of_a_certain_mistake_is_large_but_finite():
    assert log_loss(np.array([0.0]), np.array([1])) == pytest.approx(-math.log(1e-7))


def test_impression_ndcg_by_hand():
    user = np.array([2, 1, 2, 1, 2])
    score = np.array([0.9, 0.1, 0.5, 0.3, 0.7])
    target = np.array([0, 1, 1, 0, 1])
    # user 1: the click is second of two; user 2: the clicks are second and third of three
    first = 1 / math.log2(3)
    second = (1 / math.log2(3) + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    assert impression_ndcg(user, score, target, 10) == pytest.approx((first + second) / 2)
    assert impression_ndcg(user, score, target, 1) == 0


def test_impression_ndcg_leaves_out_users_whose_impressions_need_no_order():
    user = np.array([1, 1, 2, 2, 3, 3])
    target = np.array([1, 1, 0, 0, 1, 0])
    assert impression_ndcg(user, np.array([1, 2, 3, 4, 5, 0]), target, 10) == 1
    with pytest.raises(DataError, match="clicks and non-clicks"):
        impression_ndcg(user[:4], np.arange(4), target[:4], 10)


def test_impression_ndcg_of_tied_scores_is_the_mean_over_all_orders():
    # one click among three of equal score: equally likely at each place
    mean = (1 + 1 / math.log2(3) + 1 / math.log2(4)) / 3
    assert impression_ndcg(np.ones(3, int), np.zeros(3), np.array([0, 1, 0]), 10) == pytest.approx(mean)


def test_metrics_have_names_for_people():
    assert [title_of(m) for m in ("ndcg@10", "hit_rate@5", "mrr")] == ["NDCG@10", "Hit rate@5", "MRR"]


def test_calibration_by_hand_with_equal_predictions_in_one_bin():
    # four bins of two rows each, except that the four predictions of 0.5 cannot be told apart
    probability = np.array([0.5, 0.1, 0.5, 0.9, 0.5, 0.3, 0.5, 0.7])
    target = np.array([1, 0, 0, 1, 0, 1, 0, 1])
    found = calibration(probability, target, bins=4)
    assert found.predicted == pytest.approx([0.2, 0.5, 0.8])
    assert found.observed == pytest.approx([0.5, 0.25, 1.0])
    assert found.rows == [2, 4, 2]
    assert found.error == pytest.approx((2 * 0.3 + 4 * 0.25 + 2 * 0.2) / 8)
    assert str(found) == (
        "Of 8 rows, 50.0% are clicks; the mean prediction is 50.0%. Over 3 bins of similar predictions it is off by "
        "25.0 percentage points on average, too high in 1 and too low in 2."
    )


def test_calibration_of_true_probabilities_is_nearly_perfect_and_of_doubled_ones_is_not():
    random = np.random.default_rng(0)
    truth = random.random(200_000) / 2
    target = random.random(200_000) < truth
    right, doubled = calibration(truth, target), calibration(2 * truth, target)
    assert len(right.rows) == 10
    assert right.error < 0.005
    assert doubled.error == pytest.approx(0.25, abs=0.005)


def test_calibration_of_one_constant_prediction_is_one_bin():
    found = calibration(np.full(4, 0.25), np.array([1, 0, 0, 0]))
    assert (found.predicted, found.observed, found.rows, found.error) == ([0.25], [0.25], [4], 0)
