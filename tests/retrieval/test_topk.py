"""Exact top-k against a full sort, in the shapes where its shortcut applies and where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from redis_recsys.retrieval.topk import topk


@pytest.mark.parametrize("columns", [1, 7, 99, 1000, 4321])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_the_highest_scores_come_first(columns: int, k: int):
    scores = np.random.default_rng(columns + k).standard_normal((30, columns)).astype(np.float32)
    expected = np.argsort(-scores, axis=1)[:, :k]
    assert np.array_equal(topk(scores, k), expected)


@pytest.mark.parametrize("columns", [50, 5000])
def test_tied_scores_still_give_the_k_highest_values(columns: int):
    scores = np.random.default_rng(0).integers(0, 3, (30, columns)).astype(np.float32)
    picked = topk(scores, 10)
    values = np.take_along_axis(scores, picked, axis=1)
    assert np.array_equal(values, -np.sort(-scores, axis=1)[:, :10])
    assert all(len(set(row)) == 10 for row in picked.tolist())


def test_equal_scores_are_listed_by_position():
    assert topk(np.array([[1, 5, 5, 1, 5]], np.float32), 3).tolist() == [[1, 2, 4]]


def test_a_row_narrower_than_k_is_sorted_whole():
    assert topk(np.array([[1, 3, 2]], np.float32), 10).tolist() == [[1, 2, 0]]


def test_removed_items_come_last():
    scores = np.full((2, 2000), -np.inf, np.float32)
    scores[0, 1999], scores[0, 3] = 2, 1
    picked = topk(scores, 4)
    assert picked[0, :2].tolist() == [1999, 3]
    assert np.isneginf(np.take_along_axis(scores, picked, axis=1)[0, 2:]).all()


def test_the_scores_are_left_as_they_were():
    scores = np.random.default_rng(0).random((4, 600)).astype(np.float32)
    before = scores.copy()
    topk(scores, 3)
    assert np.array_equal(scores, before)


def test_no_rows_give_no_positions():
    assert topk(np.empty((0, 500), np.float32), 3).shape == (0, 3)
