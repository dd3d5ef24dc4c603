"""Joining batches of one column."""

from __future__ import annotations

import numpy as np

from redis_recsys.triton.tensors import stack


def test_batches_of_different_widths_are_padded() -> None:
    parts = [np.ones((1, 2), np.int32), np.full((2, 3), 7, np.int32), np.ones((1, 0), np.int32)]
    assert stack(parts).tolist() == [[1, 1, 0], [7, 7, 7], [7, 7, 7], [0, 0, 0]]


def test_batches_of_one_width_are_joined_as_they_are() -> None:
    parts = [np.arange(4).reshape(2, 2), np.arange(2).reshape(1, 2)]
    np.testing.assert_array_equal(stack(parts), np.concatenate(parts))


def test_matrices_per_request_are_padded_in_both_directions() -> None:
    joined = stack([np.ones((1, 1, 2)), np.full((1, 2, 1), 5.0)])
    assert joined.tolist() == [[[1, 1], [0, 0]], [[5, 0], [5, 0]]]


def test_text_keeps_its_type() -> None:
    joined = stack([np.array([[b"a"]], object), np.array([[b"b"]], object)])
    assert joined.tolist() == [[b"a"], [b"b"]]
