"""Strict order at temperature 0, the softmax distribution above 0."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import chisquare

from redis_recsys.retrieval.selection import diversify, order

SCORES = np.array([0.1, 0.9, 0.5, 0.3], np.float32)
DRAWS = 20_000


def test_temperature_zero_is_strict_order_and_draws_nothing() -> None:
    rng = np.random.default_rng(1)
    assert order(SCORES[None], 3, 0.0, rng).tolist() == [[1, 2, 3]]
    assert rng.random() == np.random.default_rng(1).random()


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_first_shown_follows_the_softmax(temperature: float) -> None:
    drawn = order(np.tile(SCORES, (DRAWS, 1)), 1, temperature, np.random.default_rng(2))[:, 0]
    weights = np.exp(SCORES.astype(float) / temperature)
    expected = DRAWS * weights / weights.sum()
    assert chisquare(np.bincount(drawn, minlength=4), expected).pvalue > 0.001


def test_those_after_it_follow_the_softmax_over_what_is_left() -> None:
    drawn = order(np.tile(SCORES, (DRAWS, 1)), 2, 0.5, np.random.default_rng(3))
    weights = np.exp(SCORES.astype(float) / 0.5)
    pairs = list(itertools.permutations(range(4), 2))
    expected = [DRAWS * weights[a] / weights.sum() * weights[b] / (weights.sum() - weights[a]) for a, b in pairs]
    observed = [int(((drawn[:, 0] == a) & (drawn[:, 1] == b)).sum()) for a, b in pairs]
    assert chisquare(observed, expected).pvalue > 0.001


def test_nothing_is_drawn_twice_and_missing_candidates_come_last() -> None:
    scores = np.tile(np.array([0.5, -np.inf, 0.4, -np.inf, 0.1], np.float32), (200, 1))
    drawn = order(scores, 5, 1.0, np.random.default_rng(4))
    assert (np.sort(drawn, axis=1) == np.arange(5)).all()
    assert set(drawn[:, :3].ravel()) == {0, 2, 4}


def test_a_low_temperature_comes_close_to_strict_order() -> None:
    drawn = order(np.tile(SCORES, (100, 1)), 4, 1e-4, np.random.default_rng(5))
    assert (drawn == [1, 2, 3, 0]).all()


def test_fewer_candidates_than_asked_for_are_all_returned() -> None:
    assert order(SCORES[None], 10, 0.0, np.random.default_rng(6)).tolist() == [[1, 2, 3, 0]]


def test_the_same_seed_draws_the_same() -> None:
    scores = np.tile(SCORES, (50, 1))
    first, second, other = (order(scores, 4, 1.0, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert (first == second).all()
    assert (first != other).any()


def one_by_one(scores: np.ndarray, embeddings: np.ndarray, k: int, diversity: float) -> list[int]:
    """Maximal marginal relevance, straight from its definition."""
    usable = np.flatnonzero(scores > -np.inf).tolist()
    low, high = scores[usable].min(), scores[usable].max()
    relevance = (scores - low) / (high - low)
    chosen: list[int] = []
    while usable and len(chosen) < k:

        def gain(item: int) -> float:
            if not chosen:
                return float(relevance[item])
            alike = max(float(embeddings[item] @ embeddings[other]) for other in chosen)
            return float((1 - diversity) * relevance[item] - diversity * alike)

        chosen.append(max(usable, key=gain))
        usable.remove(chosen[-1])
    return chosen


@pytest.mark.parametrize("diversity", [0.0, 0.3, 0.7, 1.0])
def test_diversity_is_maximal_marginal_relevance(diversity: float) -> None:
    random = np.random.default_rng(8)
    scores = random.random((6, 30)).astype(np.float32)
    scores[:, ::7] = -np.inf
    embeddings = random.normal(size=(6, 30, 4)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=2, keepdims=True)
    found = diversify(scores, embeddings, 12, diversity, 0.0, random)
    for row in range(6):
        assert found[row].tolist() == one_by_one(scores[row], embeddings[row], 12, diversity)


def test_without_diversity_it_is_the_order_by_score() -> None:
    scores = np.random.default_rng(9).random((5, 20)).astype(np.float32)
    embeddings = np.ones((5, 20, 2), np.float32)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(diversify(scores, embeddings, 20, 0.0, 0.0, rng), order(scores, 20, 0.0, rng))


def test_with_missing_candidates_diversity_still_takes_each_once() -> None:
    scores = np.array([[-np.inf, 0.4, -np.inf, 0.2]], np.float32)
    found = diversify(scores, np.ones((1, 4, 2), np.float32), 4, 0.5, 0.0, np.random.default_rng(0))[0]
    assert sorted(found.tolist()) == [0, 1, 2, 3]
    assert found[:2].tolist() == [1, 3]
