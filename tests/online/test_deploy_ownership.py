"""Several Redis, one data folder: each has its own files, and a deployment's data goes away with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.bundle.writer import finish, write_tables, writing_bundle
from redis_recsys.config import OnlineSettings, RedisSettings, Settings
from redis_recsys.dataset.popularity import Clicks
from redis_recsys.dataset.user_history import History
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.online import deploy as module
from redis_recsys.online.consumer import Consumer
from redis_recsys.online.deploy import deploy
from redis_recsys.online.feature_store import FeastGeneration
from redis_recsys.online.partition import stages_of
from redis_recsys.online.runner import Runner
from redis_recsys.store import deployments, features, vectors
from redis_recsys.store.events import publish, settled_within
from tests.support.planted import Trained

THEN = 1_700_000_000_000


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRELOAD_SECONDS", 0.0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data", deploy={"models": tmp_path / "data" / "deployed", "feast": False})


@pytest.fixture
def other(tmp_path: Path) -> Iterator[redis.Redis]:
    """A second Redis."""
    with (
        EmbeddedRedis(tmp_path / "other", persist=False) as server,
        redis.Redis(server.host, server.port, password=server.password) as client,
    ):
        yield client


def another(bundle: Bundle, folder: Path) -> Bundle:
    path = Path(shutil.copytree(bundle.path, folder))
    (path / "manifest.json").write_text((bundle.path / "manifest.json").read_text() + "\n")
    return Bundle(path)


def opened(client: redis.Redis, settings: Settings, generation: str, bundle: Bundle) -> FeastGeneration:
    """A deployment in Feast."""
    project = deployments.read(client, generation).project
    return FeastGeneration(client, settings.data, generation, project, bundle.schema, bundle.id_kinds)


def with_histories(bundle: Bundle, folder: Path, items: list[int]) -> Bundle:
    """The bundle with the same history for every user."""
    users = bundle.manifest.users
    with writing_bundle(folder) as aside:
        for name in bundle.manifest.files:
            (aside / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(bundle.path / name, aside / name)
        starts = np.concatenate([[0, 0], np.arange(1, users + 1) * len(items)]).astype(np.int64)
        history, nobody = History(starts, np.tile(items, users).astype(np.int32)), np.zeros(len(bundle.items), np.int64)
        write_tables(aside, bundle.item_embeddings, Clicks(nobody), history, users)
        shutil.copyfile(bundle.path / "popularity.parquet", aside / "popularity.parquet")
        finish(aside, bundle.schema, "test", {}, bundle.manifest.embedding_dim, users, len(bundle.items))
    return Bundle(folder)


def failing(*_: object, **__: object) -> None:
    raise RuntimeError


def serving(client: redis.Redis, settings: Settings) -> Runner:
    where = client.get_connection_kwargs()
    own = RedisSettings(host=where["host"], port=where["port"], password=where["password"])
    online = OnlineSettings(nearest=25, similar=0, popular=0, topk=20, timeout=5.0)
    chosen = settings.model_copy(update={"redis": own, "online": online})
    return Runner(tuple(stages_of(online)), chosen)


def shown(client: redis.Redis, settings: Settings, bundle: Bundle, user: int = 1) -> list[int]:
    """Numbers of the items that a freshly started server shows to a user."""
    runner = serving(client, settings)
    try:
        answer = runner({"user_id": np.array([[user]])})
    finally:
        runner.close()
    assert not answer["degraded"].any()
    numbers: list[int] = bundle.items.number_of(answer["item_ids"][0]).tolist()
    return [number for number in numbers if number]


def files(settings: Settings) -> set[Path]:
    return {path for path in settings.data.rglob("*") if path.is_file()}


# Files


def test_a_failed_deployment_leaves_the_same_bundle_live_in_another_redis(
    client: redis.Redis, other: redis.Redis, trained: Trained, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.deploy.feast = True
    deploy(trained.bundle, client, settings)
    had, before = files(settings), shown(client, settings, trained.bundle)
    with monkeypatch.context() as patch:
        patch.setattr(module, "tune", failing)
        with pytest.raises(RuntimeError):
            deploy(trained.bundle, other, settings)
    assert files(settings) == had
    assert shown(client, settings, trained.bundle) == before
    feast = opened(client, settings, "1", trained.bundle)
    assert feast.read("user", [1])[2].all()


def test_an_expired_deployment_takes_no_files_of_another_redis_with_it(
    client: redis.Redis, other: redis.Redis, trained: Trained, settings: Settings, tmp_path: Path
) -> None:
    """Both count generations from 1, and both have deployed the same bundle."""
    settings.deploy.feast = True
    folders = [deploy(trained.bundle, each, settings).folder for each in (client, other)]
    assert len(set(folders)) == 2
    had = files(settings)
    for _ in range(2):
        deploy(another(trained.bundle, tmp_path / f"new{_}"), other, settings)
        other.delete("deploy:1")  # as when it expires
    assert not (settings.deploy.models / folders[1]).exists()
    mine = {path for path in had if folders[1].partition("-")[0] not in str(path)}
    assert len(mine) == len(had) / 2
    assert mine <= files(settings)
    feast = opened(client, settings, "1", trained.bundle)
    assert feast.read("user", [1])[2].all()
    shown(client, settings, trained.bundle)


def test_a_redis_that_was_emptied_leaves_the_files_of_others_alone(
    client: redis.Redis, other: redis.Redis, trained: Trained, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(trained.bundle, other, settings)
    first = deploy(trained.bundle, client, settings)
    client.flushall()
    again = deploy(trained.bundle, client, settings)
    assert again.generation == first.generation
    assert again.folder != first.folder
    monkeypatch.setattr(module, "tune", failing)
    with pytest.raises(RuntimeError):
        deploy(trained.bundle, client, settings)
    shown(client, settings, trained.bundle)
    shown(other, settings, trained.bundle)


def test_a_redis_restored_from_its_backup_goes_on_with_its_files(
    client: redis.Redis, trained: Trained, settings: Settings, tmp_path: Path
) -> None:
    settings.deploy.feast = True
    deploy(trained.bundle, client, settings)
    backup = {key: client.dump(key) for key in client.scan_iter()}
    new = another(trained.bundle, tmp_path / "new")
    assert deploy(new, client, settings).generation == "2"
    client.flushall()
    for key, value in backup.items():
        client.restore(key, 0, value)
    shown(client, settings, trained.bundle)
    assert deploy(trained.bundle, client, settings).generation == "2"
    shown(client, settings, trained.bundle)
    feast = opened(client, settings, "2", trained.bundle)
    assert feast.read("user", [1])[2].all()


# Deployments of earlier versions


def by_an_earlier_version(client: redis.Redis, bundle: Bundle, settings: Settings) -> None:
    """Turn generation 1 into that of an earlier version: no owner, histories among the live events."""
    deploy(bundle, client, settings)
    folder = settings.deploy.models / deployments.read(client, "1").folder
    folder.rename(settings.deploy.models / bundle.fingerprint)
    client.hdel("deploy:1", "owner")
    client.hset("deploy:folders", "1", bundle.fingerprint)
    client.delete("deploy:id", *client.scan_iter("history:1:*"))
    raw = bundle.items.raw_ids
    for users, seen in bundle.users():
        for number, user in enumerate(users.raw_ids.tolist(), 1):
            scored = {str(raw[item - 1]): position for position, item in enumerate(seen[number].tolist(), 1)}
            client.zadd(f"history:{{{user}}}", scored, gt=True)


def test_a_deployment_of_an_earlier_version_is_served_replaced_and_cleared_away(
    client: redis.Redis, trained: Trained, settings: Settings, tmp_path: Path
) -> None:
    wrong = with_histories(trained.bundle, tmp_path / "wrong", list(range(1, 31)))
    right = with_histories(trained.bundle, tmp_path / "right", [39, 40])
    by_an_earlier_version(client, wrong, settings)
    raw = trained.bundle.items.raw_ids.tolist()
    client.zadd("history:{1}", {str(raw[37]): THEN})
    assert set(shown(client, settings, wrong)) == {31, 32, 33, 34, 35, 36, 37, 39, 40}
    runner = serving(client, settings)
    try:
        before = runner({"user_id": np.array([[1]])})
        assert deploy(right, client, settings).generation == "2"
        old = client.zrange("history:{1}", 0, -1)
        assert len(old) == 31  # needed as long as the old generation is read
    finally:
        runner.close()
    assert trained.bundle.items.number_of(before["item_ids"][0]).max() == 40
    assert not set(shown(client, settings, right)) & {38, 39, 40}
    assert len(shown(client, settings, right)) == 20
    client.delete("deploy:1")  # as when it expires
    deploy(right, client, settings)
    assert client.zrange("history:{1}", 0, -1) == [str(raw[37]).encode()]
    assert not client.exists("history:{2}")
    assert (settings.deploy.models / wrong.fingerprint).is_dir()  # it may also belong to another Redis


# Histories


def test_deploying_the_right_bundle_again_mends_a_wrong_deployment(
    client: redis.Redis, trained: Trained, settings: Settings, tmp_path: Path
) -> None:
    right = with_histories(trained.bundle, tmp_path / "right", [1, 2, 3])
    wrong = with_histories(trained.bundle, tmp_path / "wrong", list(range(4, 37)))
    raw = trained.bundle.items.raw_ids.tolist()
    deploy(right, client, settings)
    with Consumer(client, settings):
        assert settled_within(client, publish(client, 1, raw[37], "click"), 60)
        before = shown(client, settings, right)
        assert not set(before) & {1, 2, 3, 38}
        deploy(wrong, client, settings)
        assert settled_within(client, publish(client, 1, raw[38], "click"), 60)
        assert set(shown(client, settings, wrong)) == {1, 2, 3, 37, 40}
        deploy(right, client, settings)
    after = shown(client, settings, right)
    assert len(after) == 20
    assert not set(after) & {1, 2, 3, 38, 39}
    column = right.schema.history
    assert column is not None
    rows: Any = features.read(client, "3", "user", [1])
    packed, _, _ = features.unpack(rows, *right.schema.widths("user"))
    assert packed[0, right.schema.slots(column)].tolist()[:2] == [39, 38]


def test_a_server_answers_with_the_history_of_its_generation_while_another_is_written(
    client: redis.Redis, trained: Trained, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = with_histories(trained.bundle, tmp_path / "right", [1, 2, 3])
    wrong = with_histories(trained.bundle, tmp_path / "wrong", list(range(4, 37)))
    deploy(right, client, settings)
    load = vectors.load
    meanwhile: list[list[int]] = []

    def loading(*args: Any) -> None:
        meanwhile.append(shown(client, settings, right))
        load(*args)

    monkeypatch.setattr(vectors, "load", loading)
    before = shown(client, settings, right)
    deploy(wrong, client, settings)
    assert meanwhile == [before]
    assert client.ttl("history:1:{1}") > 0
    assert client.ttl("history:2:{1}") == -1


def test_live_events_survive_any_number_of_deployments(
    client: redis.Redis, trained: Trained, settings: Settings
) -> None:
    raw = trained.bundle.items.raw_ids.tolist()
    deploy(trained.bundle, client, settings)
    with Consumer(client, settings):
        assert settled_within(client, publish(client, 1, raw[4], "click"), 60)
    for _ in range(4):
        deploy(trained.bundle, client, settings)
        assert 5 not in shown(client, settings, trained.bundle)
    assert client.zrange("history:{1}", 0, -1) == [str(raw[4]).encode()]
