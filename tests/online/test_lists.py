"""Guarantees of lists: the requested length, no items seen before, no removed items, from whatever candidate source."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.bundle.writer import finish
from redis_recsys.config import BatchSettings, OnlineSettings, Settings, load_settings
from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.entities import read_entities, write_entities
from redis_recsys.dataset.interactions import Dataset
from redis_recsys.dataset.schema import Column, Schema
from redis_recsys.dataset.split import Split
from redis_recsys.errors import ConfigError
from redis_recsys.offline.batch import batch
from redis_recsys.online.deploy import deploy
from redis_recsys.store import deployments, history, vectors
from redis_recsys.store.recommendations import get, get_many
from tests.support.commands import Outcome
from tests.support.pipelines import HOW, Ask, Deployed, K, answer, ids, running, running_all, wait
from tests.support.planted import Trained, planted_dataset, trained_on

# The requested length


@pytest.fixture(scope="module")
def three_hundred(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A bundle of 300 items, most of them clicked."""
    folder = tmp_path_factory.mktemp("three hundred")
    return trained_on(planted_dataset(folder, items=300, rows=5000), folder / "bundle")


def test_a_batch_keeps_as_many_as_asked_for_whatever_the_candidates(
    three_hundred: Trained, client: redis.Redis
) -> None:
    bundle = three_hundred.bundle
    for topk in (150, 400):
        batch(bundle, client, Settings(batch=BatchSettings(topk=topk, candidates=5, popular=3)))
        users, seen = next(bundle.users())
        for number, found in enumerate(get_many(client, users.raw_ids.tolist()), 1):
            assert len(set(found.items)) == len(found.items) == min(topk, 300 - len(set(seen[number])))
        unknown = get(client, 10**9)
        assert (unknown.source, len(set(unknown.items))) == ("popular", min(topk, 300))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("topk", [200, 400])
def test_on_demand_as_many_come_as_asked_for_whatever_the_candidates(
    three_hundred: Trained, deployed: Deployed, how: dict[str, Any], topk: int
) -> None:
    settings = deployed(three_hundred.bundle, **how, topk=topk, nearest=5)
    users = next(three_hundred.bundle.users())[0].raw_ids
    found = answer(settings, ids(np.array([*users, 10**9])))
    assert not found["degraded"].any()
    for items, seen in zip(found["item_ids"].tolist(), found["seen"].tolist(), strict=True):
        got = [item for item in items if item != -1]
        assert len(set(got)) == len(got) == min(topk, 300 - len(set(seen) - {0}))


def test_degraded_answers_are_as_long_as_asked_for(
    three_hundred: Trained, deployed: Deployed, client: redis.Redis
) -> None:
    settings = deployed(three_hundred.bundle, topk=200)
    client.delete(history.key(1))
    client.set(history.key(1), "no sorted set")
    with running(settings) as runner:
        found = runner(ids(np.array([1])))
        assert found["degraded"].all()
        assert len(set(found["item_ids"][0].tolist()) - {-1}) == 200
    (settings.deploy.models / deployments.read(client, "1").folder / "ranker.onnx").unlink()
    with running(settings) as runner:  # without the bundle, from Redis
        assert runner(ids(np.array([2])))["item_ids"].tolist() == found["item_ids"].tolist()


def test_recall_is_measured_of_as_many_neighbours_as_requests_ask_for(
    three_hundred: Trained, client: redis.Redis, tmp_path: Path
) -> None:
    settings = Settings(data=tmp_path, online=OnlineSettings(topk=250))
    settings.deploy.models, settings.deploy.feast = tmp_path / "deployed", False
    report = deploy(three_hundred.bundle, client, settings)
    assert (report.neighbours, report.ef >= 250) == (250, True)


@pytest.mark.parametrize("way", ["flags", "variables", "file"])
def test_settings_that_contradict_each_other_are_refused_with_one_message(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: dict[str, Any] = {}
    if way == "flags":
        flags = {"items": "attributes", "retrieval": "local"}
    elif way == "variables":
        monkeypatch.setenv("RECSYS_ONLINE_ITEMS", "attributes")
    else:
        (tmp_path / "settings.yaml").write_text("online: {items: attributes, retrieval: redis, similar: 0}")
        monkeypatch.setenv("RECSYS_CONFIG", str(tmp_path / "settings.yaml"))
    with pytest.raises(ConfigError) as caught:
        load_settings(online=flags)
    assert str(caught.value).startswith(
        "setting online: items 'attributes' needs retrieval 'redis', similar 0 and popular 0: the vector query"
    )


# No items seen before


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Seven items; the first users have seen all of them before the test rows, the others some."""
    folder = tmp_path_factory.mktemp("seven")
    user = [u for u in range(1, 41) for _ in range(7 if u <= 10 else 4)]
    item = [n % 7 + 1 for u in range(1, 41) for n in range(7 if u <= 10 else 4)]
    table = {"user": user, "item": item, "at": np.arange(len(user))}
    (folder / "raw" / "interactions").mkdir(parents=True)
    columns = [
        Column(name="user", side="user", kind="categorical", role="id"),
        Column(name="recent", side="user", kind="multi-categorical", role="history", max_length=8),
        Column(name="item", side="item", kind="categorical", role="id"),
        Column(name="at", side="time", kind="numeric"),
    ]
    Schema(name="seven", columns=columns).save(folder / "raw" / "schema.yaml")
    pq.write_table(pa.table(table), folder / "raw" / "interactions" / "part-0.parquet")
    encode(folder / "raw", folder / "dataset", Split())
    return trained_on(Dataset(folder / "dataset"), folder / "bundle")


def had(bundle: Bundle) -> dict[int, set[int]]:
    """Raw items that each user has interacted with."""
    users, seen = next(bundle.users())
    raw = bundle.items.raw_ids
    return {user: set(raw[seen[n] - 1].tolist()) for n, user in enumerate(users.raw_ids.tolist(), 1)}


def test_who_has_had_everything_gets_nothing_again(
    seven: Trained, use_server: redis.Redis, recsys: Callable[..., Outcome], deployed: Deployed
) -> None:
    past = had(seven.bundle)
    assert sum(len(items) == 7 for items in past.values()) >= 5
    assert recsys("batch", seven.bundle.path).code == 0
    for found in get_many(use_server, list(past)):
        assert set(found.items) == set(range(1, 8)) - past[int(found.user)], found
        assert found.source == "model" or not past[int(found.user)]
    shown = recsys("get", 1)
    assert (shown.code, "popular" in shown.out) == (0, False)
    for how in HOW:
        settings = deployed(seven.bundle, **how)
        items = answer(settings, ids(np.array(list(past))))["item_ids"]
        for (user, had_before), row in zip(past.items(), items.tolist(), strict=True):
            assert set(row) - {-1} == set(range(1, 8)) - had_before, user


# Unknown users


def test_nothing_known_means_the_same_list_ahead_of_time_and_on_demand(
    trained: Trained, deployed: Deployed, client: redis.Redis, tmp_path: Path
) -> None:
    bundle = without_anything_known(trained.bundle, tmp_path / "bundle", user=7)
    batch(bundle, client, Settings(batch=BatchSettings(topk=K, temperature=0.4)))
    stored, absent = get_many(client, [7, 10**9])
    assert (stored.source, absent.source) == ("popular", "popular")
    assert stored.items == absent.items
    np.testing.assert_allclose(stored.scores, absent.scores, rtol=1e-6)
    settings = deployed(bundle, similar=10, popular=10)
    client.delete(history.key(7))
    found = answer(settings, ids(np.array([7, 10**9])))
    assert not found["degraded"].any()
    assert found["item_ids"].tolist() == [stored.items, stored.items]
    np.testing.assert_allclose(found["scores"], [absent.scores] * 2, rtol=1e-6)


def without_anything_known(bundle: Bundle, target: Path, user: int) -> Bundle:
    """A copy of a bundle in which a user has neither features nor a history."""
    shutil.copytree(bundle.path, target)
    users = read_entities(bundle.path / "user_features.parquet", bundle.schema, "user")
    row = users.raw_ids.tolist().index(user)
    users.categorical[row] = 0
    users.numeric[row] = 0
    write_entities(target / "user_features.parquet", bundle.schema, "user", users)
    lists = pq.read_table(target / "history.parquet")["items"].to_pylist()
    lists[row] = []
    pq.write_table(pa.table({"items": pa.array(lists, pa.large_list(pa.int32()))}), target / "history.parquet")
    (target / "manifest.json").unlink()
    manifest = bundle.manifest
    finish(target, bundle.schema, "copy", {}, manifest.embedding_dim, manifest.users, manifest.items)
    return Bundle(target)


def test_users_with_features_and_no_history_are_scored_by_the_model(trained: Trained, client: redis.Redis) -> None:
    batch(trained.bundle, client, Settings())
    users, seen = next(trained.bundle.users())
    (row,) = np.flatnonzero(users.raw_ids == 200)  # a user without rows
    assert not len(seen[row + 1])
    assert users.categorical[row].tolist() == [0, users.categorical[row, 1], 0, 0, 0]  # only its group
    assert get(client, 200).source == "model"


# No removed items


@pytest.mark.parametrize("partition", ["fused", "consolidated", "staged"])
@pytest.mark.parametrize("how", HOW)
def test_a_removed_item_is_brought_by_nothing_and_a_returned_one_by_all(
    trained: Trained, deployed: Deployed, client: redis.Redis, how: dict[str, Any], partition: str
) -> None:
    bundle = trained.bundle
    settings = deployed(bundle, {"partition": partition}, **how, topk=40)
    generation, raw_ids = deployments.live(client) or "", bundle.items.raw_ids
    gone = bundle.popularity.items[:2].tolist()
    raw = raw_ids[np.array(gone) - 1].tolist()
    client.delete(history.key(3))
    client.set(history.key(3), "no sorted set")  # which makes requests of user 3 fail
    users = ids(np.array([user for user in [*next(bundle.users())[0].raw_ids, 10**9] if user != 3]))

    def counts(ask: Ask) -> tuple[int, int, int]:
        """Number of times that the items are candidates, are shown, and are shown in a degraded answer."""
        found, degraded = ask(users), ask(ids(np.array([3])))
        assert degraded["degraded"].all()
        assert not found["degraded"].any()
        shown = [np.isin(each["item_ids"], raw).sum() for each in (found, degraded)]
        return int(np.isin(found["candidates"], gone).sum()), int(shown[0]), int(shown[1])

    with running_all(settings) as ask:
        before = counts(ask)
        assert min(before) > 0
        for item in gone:
            vectors.remove(client, generation, item)
        wait(lambda: counts(ask) == (0, 0, 0))
        with running_all(settings) as later:  # knows items removed before its start at once
            assert counts(later) == (0, 0, 0)
        attributes = list(vectors.attributes_of(bundle.items, bundle.schema))
        for item in gone:
            vectors.put(client, generation, item, bundle.item_embeddings[item - 1], attributes[item - 1])
        wait(lambda: counts(ask) == before)


def test_without_the_bundle_nothing_is_shown_once_something_was_removed(
    trained: Trained, deployed: Deployed, client: redis.Redis
) -> None:
    settings = deployed(trained.bundle)
    users, generation = ids(np.array([1])), deployments.live(client) or ""
    (settings.deploy.models / deployments.read(client, generation).folder / "ranker.onnx").unlink()
    with running(settings) as runner:
        assert (runner(users)["item_ids"] > 0).all()
        vectors.remove(client, generation, int(trained.bundle.popularity.items[0]))
        wait(lambda: bool((runner(users)["item_ids"] == -1).all()))  # only the bundle tells which item that is


@pytest.mark.parametrize("how", HOW)
def test_a_catalogue_may_be_emptied_and_filled_again(
    trained: Trained, deployed: Deployed, client: redis.Redis, how: dict[str, Any]
) -> None:
    bundle = trained.bundle
    settings = deployed(bundle, **how)
    generation, users = deployments.live(client) or "", ids(np.array([1, 2, 10**9]))
    attributes = list(vectors.attributes_of(bundle.items, bundle.schema))
    with running(settings) as runner:
        before = runner(users)["item_ids"].tolist()
        for item in range(1, bundle.manifest.items + 1):
            vectors.remove(client, generation, item)
        wait(lambda: bool((runner(users)["item_ids"] == -1).all()))
        assert not runner(users)["degraded"].any()
        assert not client.exists(vectors.key(generation))
        for item, (embedding, document) in enumerate(zip(bundle.item_embeddings, attributes, strict=True), 1):
            vectors.put(client, generation, item, embedding, document)
        wait(lambda: runner(users)["item_ids"].tolist() == before)


def test_a_server_forgets_what_was_removed_when_redis_has_lost_its_data(
    trained: Trained, deployed: Deployed, client: redis.Redis
) -> None:
    settings = deployed(trained.bundle, topk=40)
    users = ids(np.array([10**9]))
    with running(settings) as runner:
        full = runner(users)["item_ids"].tolist()
        vectors.remove(client, "1", 5)
        wait(lambda: runner(users)["item_ids"].tolist() != full)
        client.flushall()
        wait(lambda: bool(runner(users)["degraded"].all()))
        deployed(trained.bundle, topk=40)
        assert deployments.live(client) == "1"
        wait(lambda: runner(users)["item_ids"].tolist() == full)
