"""Requests of the benchmark of tables, and their order; the servers are measured, not tested here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from benchmarks.large_scale.dlrm_load import requests
from benchmarks.large_scale.tiers import alternated, draw

ROWS = 1000


@pytest.mark.parametrize("skewed", [True, False])
def test_keys_are_those_of_the_table(skewed: bool) -> None:
    keys = draw(np.random.default_rng(0), 200_000, ROWS, skewed)
    assert keys.dtype == np.int64
    assert set(keys.tolist()) == set(range(ROWS))


def test_frequencies_of_keys_follow_the_power_law() -> None:
    keys = draw(np.random.default_rng(0), 1_000_000, ROWS, skewed=True)
    counts = np.sort(np.bincount(keys, minlength=ROWS))[::-1]
    ranks = np.arange(10, 300)
    slope, _ = np.polyfit(np.log(ranks + 0.5), np.log(counts[ranks - 1]), 1)
    assert slope == pytest.approx(-1.05, abs=0.03)


def test_requests_hold_one_sample_after_the_other() -> None:
    features = np.arange(5 * 13, dtype=np.float32).reshape(5, 13)
    keys = np.arange(5 * 26).reshape(5, 26)
    made = [
        service_pb2.ModelInferRequest.FromString(each) for each in itertools.islice(requests((features, keys), 2), 3)
    ]
    for request, start in zip(made, (0, 2, 0), strict=True):  # the fifth sample fills no request
        dense, catalogue, pointers = request.raw_input_contents
        assert [(each.name, each.datatype, list(each.shape)) for each in request.inputs] == [
            ("DES", "FP32", [1, 26]),
            ("CATCOLUMN", "INT64", [1, 52]),
            ("ROWINDEX", "INT32", [1, 53]),
        ]
        np.testing.assert_array_equal(np.frombuffer(dense, np.float32), features[start : start + 2].ravel())
        np.testing.assert_array_equal(np.frombuffer(catalogue, np.int64), keys[start : start + 2].ravel())
        np.testing.assert_array_equal(np.frombuffer(pointers, np.int32), np.arange(53))


def test_contenders_get_the_same_lookups_and_take_turns_in_coming_first() -> None:
    asked: list[tuple[str, int]] = []

    class Contender:
        def __init__(self, name: str) -> None:
            self.name = name

        def prepare(self, lookups: list[np.ndarray]) -> list[int]:
            return [int(keys[0]) for keys in lookups]

        def ask(self, prepared: int) -> None:
            asked.append((self.name, prepared))

        def settle(self) -> None:
            pass

    numbers = itertools.count()
    times = alternated([Contender("a"), Contender("b")], lambda: [np.array([next(numbers)])], seconds=1e-9)
    assert asked[:4] == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert [len(each.lookups) for each in times] == [len(each.rounds) for each in times]
