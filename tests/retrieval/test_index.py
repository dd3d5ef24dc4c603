"""Exact search in memory against a plain sort: exclusions, ties, small catalogues, and concurrent changes."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from redis_recsys.retrieval.index import AllowedIndex, Change, LocalIndex

NOBODY = np.zeros((1, 0), np.int32)


def unit(rows: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def one_by_one(embeddings: np.ndarray, query: np.ndarray, excluded: list[int], count: int) -> list[int]:
    ranking = np.argsort(-(embeddings @ query), kind="stable") + 1
    found = [item for item in ranking.tolist() if item not in excluded][:count]
    return found + [0] * (count - len(found))


@pytest.mark.parametrize("items", [1, 7, 300, 5000])
@pytest.mark.parametrize("batch", [1, 3, 70])
def test_the_nearest_items_that_are_not_excluded(items: int, batch: int) -> None:
    embeddings, queries = unit(items), unit(batch, seed=1)
    exclude = np.random.default_rng(2).integers(0, items + 1, (batch, 9)).astype(np.int32)
    found, similarity = LocalIndex(embeddings).search(queries, 20, exclude)
    assert found.dtype == np.int32
    assert similarity.dtype == np.float32
    assert found.tolist() == [
        one_by_one(embeddings, query, excluded, 20) for query, excluded in zip(queries, exclude.tolist(), strict=True)
    ]
    expected = np.einsum("bnd,bd->bn", embeddings[np.maximum(found, 1) - 1], queries)
    np.testing.assert_allclose(similarity, np.where(found > 0, expected, 0), atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_among_some_items_the_nearest_of_these_are_found(share: float) -> None:
    embeddings, queries = unit(700), unit(5, seed=1)
    allowed = np.random.default_rng(3).random(701) < share
    allowed[0] = False
    exclude = np.random.default_rng(2).integers(0, 800, (5, 40)).astype(np.int32)  # some that the catalogue lacks
    index = AllowedIndex(embeddings, allowed)
    barred = np.flatnonzero(~allowed).tolist()

    def expected() -> list[list[int]]:
        return [one_by_one(embeddings, q, [*e, *barred], 20) for q, e in zip(queries, exclude.tolist(), strict=True)]

    found, similarity = index.search(queries, 20, exclude)
    assert (found.dtype, found.tolist()) == (np.int32, expected())
    dots = np.einsum("bnd,bd->bn", embeddings[np.maximum(found, 1) - 1], queries)
    np.testing.assert_allclose(similarity, np.where(found > 0, dots, 0), atol=1e-6)
    some, moved = np.flatnonzero(allowed)[:2].tolist(), unit(1, seed=9)[0]
    index.apply([Change(item, None) for item in [*some[:1], *barred[1:3], 900]])
    index.apply([Change(item, moved) for item in [*some[1:], *barred[1:3], 900]])
    barred += some[:1]
    for item in some[1:]:
        embeddings[item - 1] = moved
    assert index.search(queries, 20, exclude)[0].tolist() == expected()


def test_of_equally_near_items_the_lower_number_comes_first() -> None:
    embeddings = np.tile(unit(1), (50, 1))
    found, _ = LocalIndex(embeddings).search(embeddings[:1], 5, np.array([[2]], np.int32))
    assert found.tolist() == [[1, 3, 4, 5, 6]]


def test_everything_excluded_leaves_nothing() -> None:
    found, similarity = LocalIndex(unit(3)).search(unit(1), 5, np.array([[3, 1, 2, 0, 0]], np.int32))
    assert found.tolist() == [[0] * 5]
    assert similarity.tolist() == [[0.0] * 5]


def test_excluded_numbers_beyond_the_catalogue_do_no_harm() -> None:
    found, _ = LocalIndex(unit(3)).search(unit(1), 3, np.array([[4, 99, 2]], np.int32))
    assert sorted(found[0].tolist()) == [0, 1, 3]


def test_no_queries_give_no_answers() -> None:
    found, similarity = LocalIndex(unit(3)).search(unit(0), 5, np.zeros((0, 2), np.int32))
    assert found.shape == similarity.shape == (0, 5)


@pytest.mark.parametrize("items", [40, 1682, 3000, 10_001])
def test_a_query_alone_scores_as_it_does_among_others(items: int) -> None:
    embeddings, queries = unit(items, 64), unit(64, 64, seed=1)
    index = LocalIndex(embeddings)
    together = index.scores(queries)
    kernels = {info.get("architecture") for info in threadpool_info() if info["internal_api"] == "openblas"}
    for size in (1, 2, 7, 33):
        alone = index.scores(queries[:size])
        np.testing.assert_allclose(alone, together[:size], atol=1e-6)
        if kernels == {"SkylakeX"}:
            assert np.array_equal(alone, together[:size])
    np.testing.assert_allclose(together[:, :items], queries @ embeddings.T, atol=1e-6)
    assert np.isneginf(together[:, items:]).all()


def test_changes_are_applied_in_their_order() -> None:
    embeddings, index = unit(6), LocalIndex(unit(6))
    new = unit(2, seed=5)
    index.apply([Change(2, None), Change(8, new[0]), Change(3, None), Change(3, new[1]), Change(99, None)])
    expected = np.concatenate([embeddings, np.zeros((2, 16), np.float32)])
    expected[[7, 2]] = new
    found, _ = index.search(unit(1, seed=9), 8, NOBODY)
    assert found[0].tolist() == one_by_one(expected, unit(1, seed=9)[0], [2, 7], 8)
    index.apply([Change(2, embeddings[1])])
    found, _ = index.search(unit(1, seed=9), 8, NOBODY)
    assert found[0].tolist() == one_by_one(expected, unit(1, seed=9)[0], [7], 8)


def test_a_search_sees_all_of_the_changes_or_none() -> None:
    first, second = unit(400, seed=1), unit(400, seed=2)
    query = unit(4, seed=3)
    exclude = np.zeros((4, 0), np.int32)
    expected = {LocalIndex(each).search(query, 30, exclude)[0].tobytes() for each in (first, second)}
    index, seen, done = LocalIndex(first), list[bytes](), threading.Event()

    def search() -> None:
        while not done.is_set():
            seen.append(index.search(query, 30, exclude)[0].tobytes())

    thread = threading.Thread(target=search)
    thread.start()
    try:
        turn = 0
        while thread.is_alive() and len(seen) < 200:
            turn += 1
            index.apply([Change(item, row) for item, row in enumerate((first, second)[turn % 2], 1)])
    finally:
        done.set()
        thread.join()
    assert len(seen) >= 200
    assert set(seen) <= expected
