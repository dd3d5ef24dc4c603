"""The vector set on a real Redis: recall, exclusions, attributes, changes and their followers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import orjson
import pytest
import redis

from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.errors import StoreError
from redis_recsys.retrieval.index import AllowedIndex, LocalIndex
from redis_recsys.store import vectors
from redis_recsys.store.vectors import RedisIndex
from tests.support.planted import Trained
from tests.support.vectors import GEN, ITEMS, load, unit


@pytest.fixture(params=[2, 3])
def speaking(request: pytest.FixtureRequest, server: EmbeddedRedis, client: redis.Redis) -> Iterator[redis.Redis]:
    """A client of either protocol."""
    with redis.Redis(server.host, server.port, password=server.password, protocol=request.param) as client:
        yield client


@pytest.mark.parametrize("batch", [1, 5])
def test_excluded_items_are_replaced_by_the_next_nearest(speaking: redis.Redis, batch: int) -> None:
    embeddings, queries = unit(ITEMS), unit(batch, seed=1)
    load(speaking, embeddings)
    local, index = LocalIndex(embeddings), RedisIndex(speaking, GEN, 400)
    nearest, _ = local.search(queries, 300, np.zeros((batch, 0), np.int32))
    exclude = np.zeros((batch, 302), np.int32)
    exclude[:, 1:301] = nearest
    exclude[0, 100:] = 0  # a different number of them in each row
    exclude[-1, -1] = 10_000_000
    exact, near = local.search(queries, 80, exclude)
    found, similarity = index.search(queries, 80, exclude)
    assert found.dtype == np.int32
    assert similarity.dtype == np.float32
    for row in range(batch):
        assert not set(found[row]) & set(exclude[row])
        assert len(set(exact[row]) & set(found[row])) >= 78
        assert (np.diff(similarity[row]) <= 0).all()
    np.testing.assert_allclose(similarity, near, atol=0.05)


def test_a_catalogue_smaller_than_the_count_is_padded(speaking: redis.Redis) -> None:
    embeddings, queries = unit(6), unit(2, seed=1)
    load(speaking, embeddings)
    exclude = np.array([[3, 0], [1, 2]], np.int32)
    found, similarity = RedisIndex(speaking, GEN, 100).search(queries, 10, exclude)
    exact, near = LocalIndex(embeddings).search(queries, 10, exclude)
    assert found.tolist() == exact.tolist()
    np.testing.assert_allclose(similarity, near, atol=1e-5)


def test_everything_excluded_leaves_nothing(client: redis.Redis) -> None:
    load(client, unit(3))
    found, similarity = RedisIndex(client, GEN, 10).search(unit(1), 2, np.array([[3, 2, 1]], np.int32))
    assert found.tolist() == [[0, 0]]
    assert similarity.tolist() == [[0, 0]]


def test_no_queries_give_no_answers(client: redis.Redis) -> None:
    found, similarity = RedisIndex(client, GEN, 10).search(unit(0), 2, np.zeros((0, 3), np.int32))
    assert found.shape == similarity.shape == (0, 2)


def test_followers_find_the_same_as_redis(client: redis.Redis) -> None:
    embeddings, queries, none = unit(30), unit(8, seed=1), np.zeros((8, 0), np.int32)
    load(client, embeddings)
    index, follower = RedisIndex(client, GEN, 100), LocalIndex(embeddings)
    assert vectors.changes(client, GEN, "0") == ("0", [])
    new = unit(3, seed=2)
    vectors.put(client, GEN, 5, new[0], b'{"a":1}')
    vectors.remove(client, GEN, 6)
    vectors.put(client, GEN, 33, new[1], b"{}")  # an item not in the deployed catalogue
    after, changes = vectors.changes(client, GEN, "0")
    assert [(change.item, change.embedding is None) for change in changes] == [(5, False), (6, True), (33, False)]
    follower.apply(changes)
    assert follower.search(queries, 31, none)[0].tolist() == index.search(queries, 31, none)[0].tolist()
    assert follower.search(new[:1], 1, none[:1])[0].tolist() == [[5]]
    vectors.put(client, GEN, 6, new[2], b"{}")
    vectors.remove(client, GEN, 77)  # was never there
    again, changes = vectors.changes(client, GEN, after)
    assert [change.item for change in changes] == [6, 77]
    follower.apply(changes)
    assert follower.search(queries, 33, none)[0].tolist() == index.search(queries, 33, none)[0].tolist()
    assert vectors.changes(client, GEN, again) == (again, [])


def test_any_number_of_changes_is_read(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "PAGE", 3)
    load(client, unit(9))
    for item in range(1, 7):
        vectors.remove(client, GEN, item)
    assert [change.item for change in vectors.changes(client, GEN, "0")[1]] == [1, 2, 3, 4, 5, 6]


def test_after_40000_changes_a_follower_reads_the_last_one_of_each_item(client: redis.Redis) -> None:
    random, items, changes = np.random.default_rng(5), 30, 40_000
    load(client, unit(items, dim=4))
    follower, position = LocalIndex(unit(items, dim=4)), "0"
    points = unit(500, dim=4, seed=1)
    expected: dict[int, np.ndarray | None] = {}
    for number in range(changes):
        item, point = int(random.integers(1, items + 1)), points[number % 500]
        if random.random() < 0.5:
            vectors.put(client, GEN, item, point, b"{}")
            expected[item] = point
        else:
            vectors.remove(client, GEN, item)
            expected[item] = None
        if number % 999 == 0:  # a follower that reads along
            position, some = vectors.changes(client, GEN, position)
            assert len(some) <= items
            follower.apply(some)
    assert client.xlen(vectors.changes_key(GEN)) == len(expected) <= items
    assert (client.memory_usage(vectors.changes_key(GEN)) or 0) < 100_000
    _, last = vectors.changes(client, GEN, "0")
    assert {change.item for change in last} == set(expected)
    for change in last:
        np.testing.assert_array_equal(change.embedding, expected[change.item])
    later = LocalIndex(unit(items, dim=4))
    later.apply(last)
    follower.apply(vectors.changes(client, GEN, position)[1])
    queries, none = unit(20, dim=4, seed=2), np.zeros((20, 0), np.int32)
    found = RedisIndex(client, GEN, 100).search(queries, items, none)[0]
    assert later.search(queries, items, none)[0].tolist() == found.tolist()
    assert follower.search(queries, items, none)[0].tolist() == found.tolist()


def test_a_set_that_is_empty_answers_with_nothing_and_can_be_filled_again(client: redis.Redis) -> None:
    load(client, unit(2))
    for item in (1, 2, 2):
        vectors.remove(client, GEN, item)
    index, none = RedisIndex(client, GEN, 100), np.zeros((2, 0), np.int32)
    assert index.search(unit(2), 3, none)[0].tolist() == [[0] * 3] * 2
    vectors.put(client, GEN, 2, unit(1)[0], b"{}")
    assert index.search(unit(1), 3, none[:1])[0].tolist() == [[2, 0, 0]]


def test_a_set_that_is_filled_again_expires_with_its_generation(client: redis.Redis) -> None:
    load(client, unit(1))
    for name in (vectors.key(GEN), vectors.changes_key(GEN)):
        client.expire(name, 60)
    vectors.remove(client, GEN, 1)
    vectors.put(client, GEN, 1, unit(1)[0], b"{}")
    for name in (vectors.key(GEN), vectors.changes_key(GEN), vectors.latest_key(GEN)):
        assert 50 < client.ttl(name) <= 60, name


def test_only_allowed_items_are_found_however_many_are_nearer(speaking: redis.Redis) -> None:
    embeddings, queries = unit(ITEMS), unit(3, seed=1)
    load(speaking, embeddings)
    nearest = LocalIndex(embeddings).search(queries, ITEMS, np.zeros((3, 0), np.int32))[0]
    allowed = np.zeros(ITEMS + 1, bool)
    allowed[nearest[0, 900:]] = True  # none of the 900 nearest to the first query
    exclude = np.array([[nearest[0, 900], 0], [0, 0], [0, 0]], np.int32)
    exact = AllowedIndex(embeddings, allowed).search(queries, 250, exclude)
    found = RedisIndex(speaking, GEN, 400, allowed).search(queries, 250, exclude)
    for mine, right in zip(found[0].tolist(), exact[0].tolist(), strict=True):
        assert all(allowed[item] for item in mine)
        assert len(set(mine) & set(right)) > 240
    assert nearest[0, 900] not in found[0][0]


def test_put_replaces_the_attributes(client: redis.Redis) -> None:
    load(client, unit(9))
    vectors.put(client, GEN, 4, unit(1)[0], b'{"price":2}')
    assert orjson.loads(client.execute_command("VGETATTR", vectors.key(GEN), "4")) == {"price": 2}


def test_loading_starts_a_stream_that_can_expire_with_the_set(client: redis.Redis) -> None:
    load(client, unit(2))
    assert client.exists(vectors.key(GEN), vectors.changes_key(GEN)) == 2
    assert client.xlen(vectors.changes_key(GEN)) == 0


def test_a_set_that_is_missing_is_an_error_and_not_made_anew(client: redis.Redis) -> None:
    index, none = RedisIndex(client, GEN, 100), np.zeros((2, 0), np.int32)
    for act in (
        lambda: index.search(unit(2), 5, none),
        lambda: vectors.put(client, GEN, 1, unit(1)[0], b"{}"),
        lambda: vectors.remove(client, GEN, 1),
    ):
        with pytest.raises(StoreError, match=f"vector set items:{GEN} is not in this Redis.*recsys deploy"):
            act()
    assert client.keys("*") == []


def test_queries_of_another_width_are_an_error(client: redis.Redis) -> None:
    load(client, unit(5))
    with pytest.raises(StoreError, match="dimension"):
        RedisIndex(client, GEN, 100).search(unit(1, dim=8), 5, np.zeros((1, 0), np.int32))


@pytest.mark.parametrize("protocol", [2, 3])
def test_packed_features_come_back_from_the_attributes(
    variant: Trained, server: EmbeddedRedis, client: redis.Redis, protocol: int
) -> None:
    bundle = variant.bundle
    items, schema = bundle.items, bundle.schema
    vectors.load(client, GEN, bundle.item_embeddings, vectors.attributes_of(items, schema))
    queries, exclude = bundle.item_embeddings[:3], np.array([[1], [0], [0]], np.int32)
    with redis.Redis(server.host, server.port, password=server.password, protocol=protocol) as speaking:
        index = RedisIndex(speaking, GEN, 100)
        found, similarity, categorical, numeric = index.search_with_attributes(queries, len(items), exclude, schema)
        plain = index.search(queries, len(items), exclude)
    assert found.tolist() == plain[0].tolist()
    assert similarity.tolist() == plain[1].tolist()
    assert found[0, -1] == 0
    there, rows = found > 0, np.maximum(found, 1) - 1
    assert categorical.dtype == np.int32
    assert np.array_equal(categorical, np.where(there[..., None], items.categorical[rows], 0))
    assert numeric.dtype == np.float32
    assert np.array_equal(numeric, np.where(there[..., None], items.numeric[rows], 0))
    document = orjson.loads(client.execute_command("VGETATTR", vectors.key(GEN), "1"))
    assert document["raw_id"] == items.raw_ids.tolist()[0]


def test_attributes_of_another_schema_are_an_error(trained: Trained, client: redis.Redis) -> None:
    load(client, trained.bundle.item_embeddings)
    index, none = RedisIndex(client, GEN, 100), np.zeros((1, 0), np.int32)
    with pytest.raises(StoreError, match=f"of vector set items:{GEN} lacks attributes of the schema"):
        index.search_with_attributes(trained.bundle.item_embeddings[:1], 5, none, trained.bundle.schema)
