"""Merging the sources of candidates."""

from __future__ import annotations

import numpy as np
import pytest

from redis_recsys.online.stages.sources.merge import NEAREST, POPULAR, SIMILAR, merge, sources_of


@pytest.mark.parametrize("seed", range(5))
def test_an_item_of_several_sources_is_listed_once_with_all_of_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    parts = [np.stack([random.permutation(12)[:n] for _ in range(6)]).astype(np.int32) for n in (7, 3, 5)]
    bits = (NEAREST, SIMILAR, POPULAR)
    items = np.concatenate(parts, axis=1)
    sources = np.concatenate([np.full(p.shape, bit, np.uint8) for p, bit in zip(parts, bits, strict=True)], axis=1)
    merged, kept = merge(items, sources)
    for row in range(6):
        expected: dict[int, int] = {}
        for item, bit in zip(items[row].tolist(), sources[row].tolist(), strict=True):
            if item:
                expected[item] = expected.get(item, 0) | bit
        found = dict(zip(merged[row].tolist(), kept[row].tolist(), strict=True))
        assert found.pop(0, 0) == 0
        assert found == expected
        first = [items[row].tolist().index(item) for item in expected]
        assert [merged[row, at] for at in first] == list(expected)  # each at its first position


def test_sources_have_names() -> None:
    assert sources_of(NEAREST | POPULAR) == ("nearest", "popular")
    assert sources_of(0) == ()
