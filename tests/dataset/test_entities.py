"""Raw ids become entity numbers."""

from __future__ import annotations

import numpy as np
import pytest

from redis_recsys.dataset.entities import Entities, Numbers


def table(raw_ids: np.ndarray) -> Entities:
    return Entities(raw_ids, np.zeros((len(raw_ids), 1), np.int32), np.zeros((len(raw_ids), 0), np.float32))


@pytest.mark.parametrize(
    ("raw_ids", "asked"),
    [
        (np.array([30, -(2**63), 20, 2**63 - 1]), np.array([[20, 30], [2**63 - 1, 31]])),
        (np.array(["b", "", "a", "ü"], object), np.array([["a", "b"], ["ü", "B"]], object)),
    ],
    ids=["int", "str"],
)
def test_a_number_is_the_place_in_the_table_and_unknown_ids_are_0(raw_ids: np.ndarray, asked: np.ndarray) -> None:
    numbers = table(raw_ids).number_of(asked)
    assert numbers.tolist() == [[3, 1], [4, 0]]
    assert numbers.dtype == np.int32


@pytest.mark.parametrize("raw_ids", [np.empty(0, np.int64), np.empty(0, object)], ids=["int", "str"])
def test_an_empty_table_knows_nobody(raw_ids: np.ndarray) -> None:
    asked = np.array([1]) if raw_ids.dtype == np.int64 else np.array(["a"], object)
    assert Numbers(raw_ids)(asked).tolist() == [0]
    assert Numbers(raw_ids)(asked[:0]).tolist() == []


def test_every_row_of_a_table_finds_itself() -> None:
    raw_ids = np.random.default_rng(0).permutation(5000) * 7
    assert Numbers(raw_ids)(raw_ids).tolist() == list(range(1, 5001))
