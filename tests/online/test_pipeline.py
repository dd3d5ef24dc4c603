"""The stages together, on a real Redis: their answers in every partition, and under failures."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.config import BatchSettings, OnlineSettings, RedisSettings, Settings, TritonSettings
from redis_recsys.data.movielens import fetch
from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.interactions import PARTS, Dataset
from redis_recsys.dataset.split import Split
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.errors import StoreError
from redis_recsys.offline.batch import score
from redis_recsys.online.deploy import deploy
from redis_recsys.online.partition import STATUS, models, stages_of
from redis_recsys.online.runner import Runner
from redis_recsys.online.stages.sources.merge import POPULAR
from redis_recsys.online.stages.user_embedding import UserEmbedding
from redis_recsys.store import deployments, features, history, vectors
from tests.support.paths import ROOT
from tests.support.pipelines import HOW, PLAIN, Deployed, K, answer, ids, redis_of, running, wait
from tests.support.planted import Trained, trained_on


def offline(bundle: Bundle) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw users, their items and scores as batch scoring computes them: [n], [n, k], [n, k]."""
    settings = BatchSettings(candidates=PLAIN["nearest"], topk=K)
    raw = bundle.items.raw_ids
    parts = [(users.raw_ids, scored) for users, scored in score(bundle, settings)]
    items = np.concatenate([scored.items for _, scored in parts])
    named = np.where(items > 0, raw[np.maximum(items, 1) - 1], -1 if raw.dtype.kind in "iu" else "")
    return np.concatenate([users for users, _ in parts]), named, np.concatenate([s.scores for _, s in parts])


@pytest.mark.parametrize("items", ["memory", "packed", "attributes"])
def test_online_equals_offline_for_every_user(variant: Trained, deployed: Deployed, items: str) -> None:
    settings = deployed(variant.bundle, items=items, retrieval="redis" if items == "attributes" else "local")
    users, expected, scores = offline(variant.bundle)
    with running(settings) as runner:
        found = runner(ids(users))
    shown = found["item_ids"]
    if shown.dtype == object:
        shown = np.array([[each.decode() for each in row] for row in shown], object)
    if items == "attributes":  # the vector set is close to exact, not exact
        assert (shown == expected).mean() > 0.95
    else:
        assert shown.tolist() == expected.tolist()
        np.testing.assert_allclose(found["scores"], scores, atol=1e-5)
    assert not found["degraded"].any()


@pytest.fixture(scope="module")
def movielens(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of MovieLens-100k with all its users and films, trained briefly."""
    folder = tmp_path_factory.mktemp("movielens")
    downloads = ROOT / "data" / "downloads"  # kept between runs
    fetch(folder / "raw", "100k", cache=downloads)
    encode(folder / "raw", folder / "dataset", Split())
    return trained_on(Dataset(folder / "dataset"), folder / "bundle", embedding_dim=64, ranking_dim=16).bundle


def test_online_equals_offline_for_every_user_of_movielens(movielens: Bundle, deployed: Deployed) -> None:
    settings = deployed(movielens, nearest=100, topk=20)
    raw = movielens.items.raw_ids
    with running(settings) as runner:
        for users, scored in score(movielens, BatchSettings(candidates=100, topk=20)):
            for size in (1, 13):  # batches of another size than offline
                for start in range(0, len(users), size):
                    part = slice(start, start + size)
                    found = runner(ids(users.raw_ids[part]))
                    assert found["item_ids"].tolist() == raw[scored.items[part] - 1].tolist()
                    np.testing.assert_allclose(found["scores"], scored.scores[part], atol=1e-5)
                    assert not found["degraded"].any()


@pytest.mark.parametrize("partition", ["staged", "consolidated"])
def test_models_of_every_partition_hand_on_what_the_next_needs(
    variant: Trained, deployed: Deployed, partition: str
) -> None:
    settings = deployed(variant.bundle, {"partition": partition}, similar=5, popular=5)
    record = deployments.read(redis_of(settings), deployments.live(redis_of(settings)) or "")
    users = ids(next(variant.bundle.users())[0].raw_ids)
    with running(settings) as whole:
        expected = whole(users)
    columns: dict[str, np.ndarray] = dict(users)
    for model in models(settings, record.user_ids, record.item_ids):
        with running(settings, model.stages) as runner:
            made = runner({field.name: columns[field.name] for field in model.inputs})
        columns |= {field.name: made[field.name] for field in model.outputs}
        for field in model.outputs:
            assert made[field.name].dtype == np.dtype(field.dtype), field
            assert made[field.name].ndim == 1 + len(field.shape), field
    for name in ("item_ids", "scores", "degraded", "generation", "candidates", "sources", "similarity", "position"):
        assert columns[name].tolist() == expected[name].tolist(), name


def test_every_partition_offers_the_contract(deployed: Deployed, trained: Trained) -> None:
    for partition in ("fused", "staged", "consolidated"):
        settings = Settings(triton=TritonSettings(partition=partition, explain=False))
        parts = models(settings, "int", "str")
        outputs = {field.name: field.dtype for part in parts for field in part.outputs}
        assert parts[0].inputs[0].name == "user_id"
        assert (outputs["item_ids"], outputs["scores"], outputs["degraded"]) == ("object", "float32", "bool")
    assert [part.name for part in models(Settings(), "int", "int")] == ["recommender"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("partition", ["fused", "staged"])
def test_users_of_whom_nothing_is_known_get_what_is_popular_now_less_what_they_have_seen(
    trained: Trained, deployed: Deployed, client: redis.Redis, how: dict[str, Any], partition: str
) -> None:
    settings = deployed(trained.bundle, {"partition": partition}, **how, temperature=0.5)
    clicks = trained.dataset.rows(*PARTS).positives()
    ever = np.bincount(clicks.item, minlength=trained.bundle.manifest.items + 1)
    edge = np.sort(clicks.time)[::-1][-(-len(clicks) // 10) - 1]
    recent = np.bincount(clicks.item[clicks.time >= edge], minlength=len(ever))
    number = trained.bundle.items.number_of
    second = int(trained.bundle.items.raw_ids[trained.bundle.popularity.items[1] - 1])
    client.zadd(history.key(-3), {str(second): time.time() * 1000})
    users = {"user_id": np.array([[10**15], [-3], [1]])}
    found = answer(settings, users)
    assert not found["degraded"].any()
    shown = number(found["item_ids"][:2])
    assert (np.diff([[recent[n] + ever[n] / 1e6 for n in row] for row in shown]) <= 0).all()
    assert set(recent[shown[0]]) == set(np.sort(recent)[::-1][:K])
    assert second in found["item_ids"][0]
    assert found["item_ids"][1].tolist() == [item for item in found["item_ids"][0].tolist() if item != second] + [
        found["item_ids"][1, -1]
    ]
    assert (found["sources"][:2][found["items"][:2] > 0] == POPULAR).all()
    assert found["scores"][0].tolist() == trained.bundle.popularity.scores[:K].astype(np.float32).tolist()
    assert (found["scores"][2] < 1).all()
    np.testing.assert_allclose(found["user_embedding"][0], trained_average(trained), atol=1e-5)


def test_a_user_with_a_row_that_says_nothing_gets_the_popular_items(
    trained: Trained, deployed: Deployed, client: redis.Redis
) -> None:
    settings = deployed(trained.bundle)
    generation = deployments.live(client) or ""
    categorical, numeric = trained.bundle.schema.widths("user")
    (blank,) = features.pack(np.zeros((1, categorical), np.int32), np.zeros((1, numeric), np.float32))
    client.set(features.key(generation, "user", 1), blank)
    client.delete(history.key(1))
    with running(settings) as runner:
        blank_row, nobody = runner({"user_id": np.array([[1], [-3]])})["item_ids"].tolist()
    assert blank_row == nobody
    assert len(set(nobody)) == K


def trained_average(trained: Trained) -> np.ndarray:
    from redis_recsys.bundle.models import Tower

    users = next(trained.bundle.users(10_000))[0]
    embeddings = Tower(trained.bundle.path / "user_tower.onnx").embed(users.categorical, users.numeric)
    mean = embeddings.mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_nothing_seen_is_shown_whatever_brings_it(trained: Trained, deployed: Deployed, client: redis.Redis) -> None:
    settings = deployed(trained.bundle, similar=10, popular=20)
    users = next(trained.bundle.users())[0].raw_ids
    with running(settings) as runner:
        before = runner(ids(users))
        first = int(before["item_ids"][0, 0])
        client.zadd(history.key(int(users[0])), {str(first): time.time() * 1000})
        after = runner(ids(users))
    assert first not in after["item_ids"][0]
    assert after["item_ids"][1:].tolist() == before["item_ids"][1:].tolist()
    _, histories = next(trained.bundle.users())
    raw = trained.bundle.items.raw_ids
    for row in range(len(users)):
        assert not set(raw[histories[row + 1] - 1].tolist()) & set(after["item_ids"][row].tolist())


def test_items_similar_to_the_last_viewed_are_candidates(trained: Trained, deployed: Deployed) -> None:
    settings = deployed(trained.bundle, nearest=3, similar=4)
    bundle = trained.bundle
    with running(settings) as runner:
        found = runner(ids(next(bundle.users())[0].raw_ids))
    vectors = bundle.item_embeddings
    row = int(np.flatnonzero((found["seen"] > 0).any(axis=1))[0])
    last = found["seen"][row, 0]
    nearness = vectors @ vectors[last - 1]
    nearness[last - 1] = -np.inf
    expected = set((np.argsort(-nearness)[:4] + 1).tolist())
    brought = {
        int(item) for item, bits in zip(found["candidates"][row], found["sources"][row], strict=True) if bits & 2
    }
    assert brought == expected


def test_sampling_with_a_seed_repeats_and_without_varies(trained: Trained, deployed: Deployed) -> None:
    users = ids(next(trained.bundle.users())[0].raw_ids)
    settings = deployed(trained.bundle, temperature=1.0, seed=5)
    answers = []
    for seed in (5, 5, None):
        settings.online.seed = seed
        with running(settings) as runner:
            answers.append(runner(users)["item_ids"].tolist())
    assert answers[0] == answers[1] != answers[2]


def test_diversity_spreads_what_is_shown(trained: Trained, deployed: Deployed) -> None:
    users = ids(next(trained.bundle.users())[0].raw_ids)

    def alike(diversity: float) -> float:
        settings = deployed(trained.bundle, diversity=diversity)
        with running(settings) as runner:
            found = runner(users)
        items = np.take_along_axis(found["items"], np.maximum(found["position"], 0).astype(np.int64), axis=1)
        shown = trained.bundle.item_embeddings[items - 1]
        return float(np.einsum("nad,nbd->", shown, shown))

    assert alike(0.7) < alike(0.0)


def test_a_user_with_nothing_left_to_see_gets_padding(
    trained: Trained, deployed: Deployed, client: redis.Redis
) -> None:
    settings = deployed(trained.bundle)
    raw = trained.bundle.items.raw_ids.tolist()
    client.zadd(history.key(1), {str(item): 1_700_000_000_000 + n for n, item in enumerate(raw[2:])})
    with running(settings) as runner:
        found = runner({"user_id": np.array([[1]])})
    shown = found["item_ids"][0].tolist()
    assert set(shown[:2]) <= set(raw[:2]) | {-1}
    assert shown[2:] == [-1] * (K - 2)
    assert (found["scores"][0, 2:] == -np.inf).all()
    assert (found["position"][0, 2:] == -1).all()


def test_when_redis_is_gone_popular_items_are_shown_and_marked(
    trained: Trained, tmp_path: Path, client_of: Callable[[EmbeddedRedis], redis.Redis]
) -> None:
    users = ids(next(trained.bundle.users())[0].raw_ids[:4])
    with EmbeddedRedis(tmp_path / "redis") as own:
        where = RedisSettings.model_validate({"host": own.host, "port": own.port, "password": own.password})
        online = OnlineSettings(**PLAIN | {"timeout": 0.2, "pause": 0.1})
        settings = Settings(data=tmp_path, redis=where, online=online)
        settings.deploy.models, settings.deploy.feast = tmp_path / "deployed", False
        deploy(trained.bundle, client_of(own), settings)
        with running(settings) as runner:
            good = runner(users)
            client_of(own).execute_command("CLIENT", "PAUSE", "1500", "ALL")
            began = time.monotonic()
            bad = runner(users)
            assert time.monotonic() - began < 1.0
            assert bad["degraded"].all()
            best = trained.bundle.popularity
            assert bad["item_ids"][0].tolist() == trained.bundle.items.raw_ids[best.items[:K] - 1].tolist()
            np.testing.assert_allclose(bad["scores"][0], best.scores[:K], rtol=1e-6)
            deadline = time.monotonic() + 10
            while runner(users)["degraded"].any():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert runner(users)["item_ids"].tolist() == good["item_ids"].tolist()


def test_after_a_failure_redis_is_left_alone_for_as_long_as_is_set(
    trained: Trained, deployed: Deployed, server: EmbeddedRedis, client: redis.Redis
) -> None:
    users = ids(next(trained.bundle.users())[0].raw_ids[:4])
    settings = deployed(trained.bundle, timeout=0.2, pause=60.0)
    with running(settings) as runner:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            assert runner(users)["degraded"].all()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert client.ping()
        for _ in range(3):
            assert runner(users)["degraded"].all()
    settings.online.pause = 0.5
    with running(settings) as runner:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            assert runner(users)["degraded"].all()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        wait(lambda: not runner(users)["degraded"].any(), 30)


def test_a_new_deployment_takes_over_and_a_damaged_one_does_not(trained: Trained, deployed: Deployed) -> None:
    settings = deployed(trained.bundle)
    users = ids(next(trained.bundle.users())[0].raw_ids)
    with running(settings) as runner:
        first = int(runner(users)["generation"][0, 0])
        deployed(trained.bundle)
        wait(lambda: int(runner(users)["generation"][0, 0]) > first)
        second = int(runner(users)["generation"][0, 0])
        copy = settings.data / "another"
        shutil.copytree(trained.bundle.path, copy)
        manifest = (copy / "manifest.json").read_text()
        (copy / "manifest.json").write_text(manifest + "\n")  # another fingerprint
        bundle = Bundle(copy)
        damage(bundle, settings)
        deployed(bundle)
        time.sleep(0.5)
        found = runner(users)
        assert int(found["generation"][0, 0]) == second
        assert not found["degraded"].any()
        redis_of(settings).delete(f"deploy:{second}")  # as when it expires: its features are gone, too
        wait(lambda: bool(runner(users)["degraded"].all()))


def damage(bundle: Bundle, settings: Settings) -> None:
    """Damage the deployed copy of a bundle as soon as it exists."""
    import threading

    owner: Any = redis_of(settings).get("deploy:id")
    target = settings.deploy.models / f"{owner.decode()}-{bundle.fingerprint}" / "ranker.onnx"

    def spoil() -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if target.exists():
                content = target.read_bytes()
                target.unlink()  # it may be a link to the original
                target.write_bytes(content[:-100])
                return
            time.sleep(0.001)

    threading.Thread(target=spoil, daemon=True).start()


def test_a_deployment_that_cannot_be_loaded_at_the_start_is_answered_for_and_then_repaired(
    trained: Trained, deployed: Deployed
) -> None:
    settings = deployed(trained.bundle)
    users = ids(next(trained.bundle.users())[0].raw_ids)
    owner: Any = redis_of(settings).get("deploy:id")
    file = settings.deploy.models / f"{owner.decode()}-{trained.bundle.fingerprint}" / "user_tower.onnx"
    away = settings.data / "away.onnx"
    file.rename(away)
    with running(settings) as runner:
        found = runner(users)
        assert found["degraded"].all()
        assert (found["item_ids"] > 0).all()
        away.rename(file)
        wait(lambda: not runner(users)["degraded"].any())


@pytest.mark.parametrize("retrieval", ["local", "redis"])
def test_items_that_came_after_the_deployment_are_not_shown_nor_take_the_place_of_others(
    trained: Trained, deployed: Deployed, client: redis.Redis, retrieval: str
) -> None:
    settings = deployed(trained.bundle, nearest=3, similar=4, retrieval=retrieval)
    users = ids(next(trained.bundle.users())[0].raw_ids)
    count, generation = trained.bundle.manifest.items, deployments.live(client) or ""
    with running(settings) as runner:
        before = runner(users)
        row = int(np.flatnonzero((before["seen"] > 0).any(axis=1))[0])
        last, gone = before["seen"][row, 0], before["candidates"][row, 0]
        vectors.put(client, generation, count + 1, trained.bundle.item_embeddings[last - 1], b"{}")
        for number in range(count + 2, count + 30):
            vectors.put(client, generation, number, before["user_embedding"][row], b"{}")
        vectors.remove(client, generation, int(gone))  # once this is noticed, so are earlier changes
        wait(lambda: not (runner(users)["candidates"] == gone).any())
        found = runner(users)
        assert (found["candidates"] <= count).all()
        assert (found["item_ids"] > 0).all(axis=1).sum() == (before["item_ids"] > 0).all(axis=1).sum()
        assert not found["degraded"].any()


def test_degraded_answers_obey_the_rules(trained: Trained, deployed: Deployed, client: redis.Redis) -> None:
    favourite = int(trained.bundle.items.raw_ids[trained.bundle.popularity.items[0] - 1])
    settings = deployed(trained.bundle, deny={"item": [favourite]}, timeout=0.2, pause=0.0)
    with running(settings) as runner:
        client.execute_command("CLIENT", "PAUSE", "600", "ALL")
        found = runner({"user_id": np.array([[1]])})
    assert found["degraded"].all()
    assert favourite not in found["item_ids"]
    assert (found["item_ids"] > 0).all()


def test_one_bad_key_is_no_reason_to_do_without_redis(
    trained: Trained, deployed: Deployed, client: redis.Redis
) -> None:
    settings = deployed(trained.bundle, pause=60.0)
    client.delete(history.key(1))
    client.set(history.key(1), "no sorted set")
    with running(settings) as runner:
        assert runner({"user_id": np.array([[1]])})["degraded"].all()
        assert not runner({"user_id": np.array([[2]])})["degraded"].any()


def test_a_deployment_with_ids_of_another_type_is_not_served(
    trained: Trained, bundle_of: Callable[[str], Trained], deployed: Deployed
) -> None:
    settings = deployed(trained.bundle)
    users = ids(next(trained.bundle.users())[0].raw_ids)
    with running(settings) as runner:
        before = runner(users)
        deployed(bundle_of("text-ids-history-implicit").bundle)
        time.sleep(0.5)
        after = runner(users)
    assert after["item_ids"].tolist() == before["item_ids"].tolist()
    assert not after["degraded"].any()


def test_nothing_deployed_is_said(server: EmbeddedRedis, client: redis.Redis) -> None:
    where = RedisSettings.model_validate({"host": server.host, "port": server.port, "password": server.password})
    with pytest.raises(StoreError, match="recsys deploy"):
        Runner(tuple(stages_of(OnlineSettings())), Settings(redis=where))


def test_a_generation_that_is_gone_degrades_its_requests_and_no_others(trained: Trained, deployed: Deployed) -> None:
    settings = deployed(trained.bundle, {"partition": "staged", "explain": False})
    with running(settings, ("user_features",)) as first, running(settings, ("user_embedding",)) as second:
        columns = first({"user_id": np.array([[1], [2], [3]])})
        columns["generation"][1] = 0
        made = second({field.name: columns[field.name] for field in (*UserEmbedding.inputs, *STATUS)})
    assert made["degraded"].tolist() == [[False], [True], [False]]
    assert (np.linalg.norm(made["user_embedding"][[0, 2]], axis=1) > 0.99).all()


def test_times_of_stages_are_told_and_counted(trained: Trained, deployed: Deployed) -> None:
    settings = deployed(trained.bundle)
    with running(settings) as runner:
        found = runner({"user_id": np.array([[1], [2]])})
        for name in stages_of(settings.online):
            assert (found["us_" + name] > 0).all()
            assert runner.metrics.counts[name].sum() == 1
            assert runner.metrics.seconds[name] == pytest.approx(found["us_" + name][0, 0] / 1e6, rel=1e-3)
        assert runner.metrics.requests == 2


@pytest.mark.parametrize("partition", ["fused", "staged"])
def test_candidates_are_counted_as_they_come_out_of_the_index_and_of_the_filter(
    trained: Trained, deployed: Deployed, partition: str
) -> None:
    settings = deployed(trained.bundle, {"partition": partition, "explain": True}, popular=20)
    users = next(trained.bundle.users())[0]
    columns: dict[str, np.ndarray] = ids(users.raw_ids[:5])
    counted: dict[str, int] = {}
    for model in models(settings, "int", "int"):
        with running(settings, model.stages) as runner:
            columns |= runner({field.name: columns[field.name] for field in model.inputs})
            counted |= runner.metrics.candidates
    found = {"candidates": np.count_nonzero(columns["candidates"]), "filter": np.count_nonzero(columns["items"])}
    assert counted == found
    assert found["candidates"] > found["filter"] > 0


def test_degraded_requests_have_no_candidates(trained: Trained, deployed: Deployed, client: redis.Redis) -> None:
    settings = deployed(trained.bundle)
    with running(settings) as runner:
        client.delete(*client.keys("deploy:*"))
        runner.follower.look()
        assert runner({"user_id": np.array([[1], [2]])})["degraded"].all()
        assert runner.metrics.requests == runner.metrics.degraded == 2
        assert runner.metrics.candidates == {"candidates": 0, "filter": 0}
