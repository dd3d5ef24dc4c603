"""Tuning of the vector set on a real Redis: the recall that it promises holds."""

from __future__ import annotations

import numpy as np
import pytest
import redis

from redis_recsys.errors import StoreError
from redis_recsys.online.recall import tune
from redis_recsys.retrieval.index import LocalIndex
from redis_recsys.store.vectors import RedisIndex
from tests.support.vectors import GEN, ITEMS, load, unit


def test_tuning_finds_an_ef_whose_recall_holds(client: redis.Redis) -> None:
    embeddings, queries = unit(3 * ITEMS, 32), unit(150, 32, seed=1)
    load(client, embeddings)
    none = np.zeros((150, 0), np.int32)
    ef, recall = tune(client, GEN, embeddings, queries, count=50, target=0.99)
    exact, near = LocalIndex(embeddings).search(queries, 50, none)
    found, similarity = RedisIndex(client, GEN, ef).search(queries, 50, none)
    again = np.mean([len(set(a) & set(b)) / 50 for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
    assert recall >= 0.99
    assert ef > 50
    assert again == pytest.approx(recall, abs=1e-3)
    same = exact == found
    assert same.mean() > 0.5
    np.testing.assert_allclose(similarity[same], near[same], atol=1e-5)


def test_a_recall_that_cannot_be_reached_is_an_error(client: redis.Redis) -> None:
    embeddings = unit(ITEMS)
    load(client, embeddings[: ITEMS // 2])
    with pytest.raises(StoreError, match=f"items:{GEN} has recall 0\\.[45].* at EF {ITEMS}.*RECSYS_DEPLOY_RECALL"):
        tune(client, GEN, embeddings, unit(100, seed=1))


def test_items_in_the_same_place_count_as_found_whichever_come(client: redis.Redis) -> None:
    embeddings = np.repeat(unit(10), 12, axis=0)
    load(client, embeddings)
    assert tune(client, GEN, embeddings, unit(20, seed=1), count=6, target=1.0)[1] == 1.0
