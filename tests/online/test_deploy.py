"""Deployment of a bundle to a real Redis: completely or not at all, with all live events, and without leftovers."""

from __future__ import annotations

import json
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
from redis_recsys.bundle.models import Tower
from redis_recsys.bundle.writer import finish, write_tables, writing_bundle
from redis_recsys.config import Settings
from redis_recsys.dataset.entities import Entities, write_entities
from redis_recsys.dataset.popularity import Clicks
from redis_recsys.dataset.schema import Side
from redis_recsys.dataset.user_history import History
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.errors import BundleError, DataError, StoreError
from redis_recsys.online import deploy as module
from redis_recsys.online import recall
from redis_recsys.online.consumer import Consumer
from redis_recsys.online.deploy import deploy
from redis_recsys.online.feature_store import FeastGeneration
from redis_recsys.store import deployments, features, history, lock, popular_items, vectors
from redis_recsys.store.deployments import DeploymentWriter
from redis_recsys.store.events import publish, settled
from tests.support.commands import Outcome
from tests.support.planted import Trained

ClientOf = Callable[[EmbeddedRedis], redis.Redis]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server to wait for; a live writer renews its lock soon, and that of a dead one soon expires."""
    monkeypatch.setattr(module, "PRELOAD_SECONDS", 0.0)
    monkeypatch.setattr(lock, "LOCK_SECONDS", 2.0)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data", deploy={"models": tmp_path / "data" / "deployed"})


@pytest.fixture
def plain(settings: Settings) -> Settings:
    """Settings without Feast."""
    settings.deploy.feast = False
    return settings


def another(bundle: Bundle, folder: Path) -> Bundle:
    """The same bundle under another fingerprint."""
    path = Path(shutil.copytree(bundle.path, folder))
    (path / "manifest.json").write_text((bundle.path / "manifest.json").read_text() + "\n")
    return Bundle(path)


def folder_of(client: redis.Redis, bundle: Bundle) -> str:
    """Name of the bundle's folder among the deployed ones."""
    owner: Any = client.get("deploy:id")
    return f"{owner.decode()}-{bundle.fingerprint}"


def users_of(bundle: Bundle) -> Entities:
    blocks = [users for users, _ in bundle.users()]
    parts = ([getattr(block, name) for block in blocks] for name in ("raw_ids", "categorical", "numeric"))
    return Entities(*map(np.concatenate, parts))


def packed(
    client: redis.Redis, bundle: Bundle, generation: str, side: Side, raw_ids: list[Any]
) -> tuple[np.ndarray, ...]:
    widths = bundle.schema.categorical_width(side), len(bundle.schema.numeric(side))
    return features.unpack(features.read(client, generation, side, raw_ids), *widths)


def through_feast(
    client: redis.Redis, bundle: Bundle, generation: str, settings: Settings, side: Side, raw_ids: list[Any]
) -> tuple[np.ndarray, ...]:
    project = deployments.read(client, generation).project
    return FeastGeneration(client, settings.data, generation, project, bundle.schema, bundle.id_kinds).read(
        side, raw_ids
    )


def keys_of(client: redis.Redis, generation: str) -> set[bytes]:
    """All keys with a generation in their name, Feast's among them."""
    names, patterns = DeploymentWriter.keys(generation)
    found = {key for pattern in patterns for key in client.scan_iter(pattern)}
    return found | {name.encode() for name in names if client.exists(name)}


def state(client: redis.Redis) -> dict[bytes, Any]:
    """Content of every key except permanent ones: the counter of generations, and the name of this Redis."""
    return {key: client.dump(key) for key in client.scan_iter() if key not in (b"recs:counter", b"deploy:id")}


def files(settings: Settings) -> set[Path]:
    return {path for path in settings.data.rglob("*") if path.is_file()}


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this took too long"
        time.sleep(0.005)


# Contents of a deployment


def test_everything_that_serving_reads_is_there(client: redis.Redis, variant: Trained, settings: Settings) -> None:
    bundle = variant.bundle
    settings.batch.popular, settings.online.topk = 5, 3
    report = deploy(bundle, client, settings)
    generation = report.generation
    assert deployments.live(client) == generation
    assert deployments.upcoming(client) is None
    sides: dict[Side, Entities] = {"user": users_of(bundle), "item": bundle.items}
    for side, expected in sides.items():
        ids = expected.raw_ids.tolist()
        for found in (
            packed(client, bundle, generation, side, ids),
            through_feast(client, bundle, generation, settings, side, ids),
        ):
            np.testing.assert_array_equal(found[0], expected.categorical)
            np.testing.assert_array_equal(found[1], expected.numeric)
            assert found[2].all()
    raw, best = bundle.items.raw_ids, bundle.popularity
    assert popular_items.read(client, generation, None, bundle.id_kinds["item"]) == (
        raw[best.items[:5] - 1].tolist(),
        best.scores[:5].tolist(),
    )
    for users, seen in bundle.users():
        with client.pipeline(transaction=False) as pipe:
            history.read(pipe, generation, users.raw_ids.tolist())
            deployed, *live = pipe.execute()
        assert not any(live)
        for number, items in enumerate(history.item_numbers(deployed), 1):
            assert items.tolist() == list(dict.fromkeys(seen[number][::-1].tolist()))
    record = deployments.read(client, generation)
    assert (record.fingerprint, record.user_ids, record.item_ids, record.feast) == (
        bundle.fingerprint,
        bundle.id_kinds["user"],
        bundle.id_kinds["item"],
        True,
    )
    everyone = users_of(bundle)
    mean = Tower(bundle.path / "user_tower.onnx").embed(everyone.categorical, everyone.numeric).mean(axis=0)
    np.testing.assert_allclose(record.average_user, mean / np.linalg.norm(mean), atol=1e-5)
    assert (report.users, report.items, report.replayed) == (len(everyone), len(raw), 0)
    assert Bundle(settings.deploy.models / record.folder).fingerprint == bundle.fingerprint


def test_blocks_change_nothing(
    client: redis.Redis, trained: Trained, plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, one = deploy(trained.bundle, client, plain), {}
    for generation in (whole.generation, None):
        if generation is None:
            monkeypatch.setattr(module, "BLOCK", 7)
            generation = deploy(trained.bundle, client, plain).generation
        one[generation] = packed(client, trained.bundle, generation, "user", users_of(trained.bundle).raw_ids.tolist())
    first, second = one.values()
    np.testing.assert_array_equal(first[0], second[0])
    averages = [deployments.read(client, generation).average_user for generation in one]
    np.testing.assert_allclose(*averages, atol=1e-6)


def test_recall_and_ef_of_the_record_are_true(
    client: redis.Redis, trained: Trained, plain: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "LINKS", 4)  # an index so poor that EF has to rise
    monkeypatch.setattr(vectors, "BUILD_EF", 4)
    bundle, plain.deploy.recall = many_items(trained.bundle, tmp_path / "many", 2000), 0.97
    report = deploy(bundle, client, plain)
    record = deployments.read(client, report.generation)
    assert (record.ef, record.recall) == (report.ef, report.recall)
    assert 0.97 <= report.recall < 1
    assert report.ef > 100
    users = users_of(bundle)
    queries = Tower(bundle.path / "user_tower.onnx").embed(users.categorical, users.numeric)
    none = np.zeros((len(queries), 0), np.int32)
    found, _ = vectors.RedisIndex(client, report.generation, record.ef).search(queries, 100, none)
    exact = np.argsort(-queries @ bundle.item_embeddings.T, axis=1)[:, :100] + 1
    recall = np.mean([len(set(a) & set(b)) / 100 for a, b in zip(found, exact, strict=True)])
    assert recall == pytest.approx(report.recall, abs=0.003)


def many_items(bundle: Bundle, folder: Path, count: int) -> Bundle:
    """The bundle with another catalogue, of random embeddings."""
    with writing_bundle(folder) as aside:
        for name in bundle.manifest.files:
            shutil.copyfile(bundle.path / name, aside / name)
        at = np.arange(count) % len(bundle.items)
        items = Entities(
            np.arange(count),
            bundle.items.categorical[at],
            bundle.items.numeric[at],
            {name: [texts[n] for n in at] for name, texts in bundle.items.labels.items()},
        )
        write_entities(aside / "item_features.parquet", bundle.schema, "item", items)
        dim, users = bundle.manifest.embedding_dim, bundle.manifest.users
        embeddings = np.random.default_rng(1).standard_normal((count, dim)).astype(np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        nothing = History(np.zeros(users + 2, np.int64), np.empty(0, np.int32))
        write_tables(aside, embeddings, Clicks(np.arange(count)), nothing, users)
        finish(aside, bundle.schema, "test", {}, dim, users, count)
    return Bundle(folder)


def test_a_recall_that_cannot_be_had_is_said_and_nothing_goes_live(
    client: redis.Redis, trained: Trained, plain: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "TUNING_LIMIT", 100)
    monkeypatch.setattr(vectors, "LINKS", 4)
    monkeypatch.setattr(vectors, "BUILD_EF", 4)
    bundle, plain.deploy.recall = many_items(trained.bundle, tmp_path / "many", 2000), 1.0
    with pytest.raises(StoreError, match="lower RECSYS_DEPLOY_RECALL"):
        deploy(bundle, client, plain)
    assert deployments.live(client) is None


def test_no_file_holds_the_password(
    client: redis.Redis, server: EmbeddedRedis, trained: Trained, settings: Settings
) -> None:
    deploy(trained.bundle, client, settings)
    assert len(files(settings)) > 10
    assert not [path for path in files(settings) if server.password.encode() in path.read_bytes()]


# The copy of the bundle


def test_the_copy_is_links_where_it_can_be_and_else_copies(
    client: redis.Redis, trained: Trained, plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = trained.bundle
    deploy(bundle, client, plain)
    copy = plain.deploy.models / folder_of(client, bundle)
    assert (copy / "ranker.onnx").samefile(bundle.path / "ranker.onnx")
    shutil.rmtree(copy)

    def refuse(*_: object) -> None:
        raise OSError("links are not for this file system")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    deploy(bundle, client, plain)
    assert not (copy / "ranker.onnx").samefile(bundle.path / "ranker.onnx")
    assert Bundle(copy).fingerprint == bundle.fingerprint


def test_a_damaged_copy_is_replaced(client: redis.Redis, trained: Trained, plain: Settings) -> None:
    deploy(trained.bundle, client, plain)
    copy = plain.deploy.models / folder_of(client, trained.bundle)
    (copy / "ranker.onnx").unlink()
    (copy / "ranker.onnx").write_bytes(b"half")
    deploy(trained.bundle, client, plain)
    assert Bundle(copy).fingerprint == trained.bundle.fingerprint


def test_a_deployed_bundle_can_be_deployed_again(client: redis.Redis, trained: Trained, plain: Settings) -> None:
    first = deploy(trained.bundle, client, plain)
    copy = plain.deploy.models / folder_of(client, trained.bundle)
    second = deploy(Bundle(copy), client, plain)
    assert deployments.live(client) == second.generation != first.generation


def test_a_damaged_bundle_is_refused(client: redis.Redis, trained: Trained, plain: Settings, tmp_path: Path) -> None:
    bundle = another(trained.bundle, tmp_path / "bundle")
    (bundle.path / "user_tower.onnx").write_bytes(b"half")
    with pytest.raises(BundleError, match=r"user_tower\.onnx does not match its checksum"):
        deploy(bundle, client, plain)
    assert not state(client)
    assert not files(plain)


def test_a_folder_that_cannot_be_written_is_named(
    client: redis.Redis, trained: Trained, plain: Settings, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    plain.deploy.models = tmp_path / "file"
    with pytest.raises(DataError, match="cannot write"):
        deploy(trained.bundle, client, plain)
    assert not state(client)


# Completely or not at all

STEPS: list[tuple[Any, str]] = [
    (module, "_copied"),
    (FeastGeneration, "materialize"),
    (features, "write_many"),
    (popular_items, "write"),
    (vectors, "load"),
    (module, "tune"),
    (module, "_replay"),
    (DeploymentWriter, "announce"),
]


@pytest.mark.parametrize(("where", "step"), STEPS, ids=[step for _, step in STEPS])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_deployment_that_is_cut_off_leaves_no_trace(
    client: redis.Redis,
    trained: Trained,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    step: str,
    error: type[BaseException],
) -> None:
    settings.deploy.feast = step in ("materialize", "announce")
    deploy(trained.bundle, client, settings)
    before, had = state(client), files(settings)
    done = getattr(where, step)

    def cut(*args: Any, **named: Any) -> None:
        done(*args, **named)
        raise error

    monkeypatch.setattr(where, step, cut)
    with pytest.raises(error):
        deploy(another(trained.bundle, tmp_path / "new"), client, settings)
    assert state(client) == before
    assert files(settings) == had


def test_a_switch_whose_answer_was_lost_stays(
    client: redis.Redis, trained: Trained, plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue_switch = DeploymentWriter.queue_switch

    def lost(writer: DeploymentWriter, pipe: redis.client.Pipeline) -> Any:
        queue_switch(writer, pipe)
        pipe.execute()
        raise redis.ConnectionError("gone")

    monkeypatch.setattr(DeploymentWriter, "queue_switch", lost)
    with pytest.raises(StoreError, match="cannot reach"):
        deploy(trained.bundle, client, plain)
    live = deployments.live(client)
    assert live is not None
    assert deployments.read(client, live).fingerprint == trained.bundle.fingerprint
    assert client.exists(vectors.key(live))
    assert (plain.deploy.models / folder_of(client, trained.bundle)).is_dir()


def test_what_the_death_of_redis_leaves_is_removed_by_the_next_deployment(
    folder: Path, trained: Trained, settings: Settings, tmp_path: Path, client_of: ClientOf, monkeypatch: Any
) -> None:
    load = vectors.load
    with EmbeddedRedis(folder) as server, client_of(server) as client:
        client.config_set("appendfsync", "always")
        live = deploy(trained.bundle, client, settings).generation

        def killed(*args: Any) -> None:
            load(*args)
            os.kill(server.pid, signal.SIGKILL)

        monkeypatch.setattr(vectors, "load", killed)
        with pytest.raises(StoreError, match="cannot reach"):
            deploy(another(trained.bundle, tmp_path / "new"), client, settings)
    monkeypatch.setattr(vectors, "load", load)
    with EmbeddedRedis(folder) as server, client_of(server) as client:
        assert deployments.live(client) == live
        dead = str(int(live) + 1)
        assert keys_of(client, dead)
        last = deploy(trained.bundle, client, settings).generation
        assert not keys_of(client, dead)
        assert deployments.known(client) == [last]
        assert {path.name for path in settings.deploy.models.iterdir()} == {folder_of(client, trained.bundle)}
        owner: Any = client.get("deploy:id")
        projects = {f"recsys_{owner.decode()}_{generation}" for generation in (live, last)}
        assert {path.name for path in (settings.data / "feast").iterdir()} == projects


def test_a_full_redis_is_said_and_the_live_deployment_stays(
    folder: Path, trained: Trained, settings: Settings, tmp_path: Path, client_of: ClientOf
) -> None:
    with EmbeddedRedis(folder, persist=False) as server, client_of(server) as client:
        deploy(trained.bundle, client, settings)
        new = another(trained.bundle, tmp_path / "new")
        before, had = state(client), files(settings)
        used = client.info("memory")["used_memory"]
        for spare in (1, 30_000, 60_000, 100_000):
            client.config_set("maxmemory", used + spare)
            with pytest.raises(StoreError, match="is out of memory"):
                deploy(new, client, settings)
            assert state(client) == before
            assert files(settings) == had
        client.config_set("maxmemory", 0)
        deploy(new, client, settings)


def test_only_one_deploys_at_a_time(client: redis.Redis, trained: Trained, plain: Settings) -> None:
    with (
        DeploymentWriter.begin(client, "other", 60),
        pytest.raises(StoreError, match=r"another run .* is writing"),
    ):
        deploy(trained.bundle, client, plain)


# One after the other


def test_the_replaced_deployment_expires_and_its_files_are_removed_later(
    client: redis.Redis, trained: Trained, settings: Settings, tmp_path: Path
) -> None:
    first = deploy(trained.bundle, client, settings).generation
    count = len(keys_of(client, first))
    histories = sum(1 for users, seen in trained.bundle.users() for n in range(1, len(users) + 1) if len(seen[n]))
    assert count == 2 * (trained.bundle.manifest.users + trained.bundle.manifest.items) + histories + 4
    assert {client.ttl(key) for key in keys_of(client, first)} == {-1}
    new = another(trained.bundle, tmp_path / "new")
    settings.deploy.grace = 600
    second = deploy(new, client, settings).generation
    lives = [client.ttl(key) for key in keys_of(client, first)]
    assert len(lives) == count
    assert all(500 < left <= 600 for left in lives)
    assert {client.ttl(key) for key in keys_of(client, second)} == {-1}
    assert deployments.read(client, first).fingerprint == trained.bundle.fingerprint

    third = deploy(new, client, settings).generation
    folders = settings.deploy.models, settings.data / "feast"
    assert [len(list(folder.iterdir())) for folder in folders] == [2, 3]

    late = features.key(first, "user", "late")  # written by a consumer that had not noticed
    client.set(late, b"")
    client.delete(*keys_of(client, first) - {late.encode()})
    fourth = deploy(new, client, settings).generation
    assert not client.exists(late)
    assert [path.name for path in folders[0].iterdir()] == [folder_of(client, new)]
    owner: Any = client.get("deploy:id")
    projects = {f"recsys_{owner.decode()}_{generation}" for generation in (second, third, fourth)}
    assert {path.name for path in folders[1].iterdir()} == projects


# Live events


@pytest.mark.parametrize("name", ["everything", "text-ids-history-implicit"])
def test_live_events_before_and_during_a_deployment_are_in_it(
    client: redis.Redis,
    bundle_of: Callable[[str], Trained],
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    bundle = bundle_of(name).bundle
    users, items = users_of(bundle).raw_ids.tolist(), bundle.items.raw_ids.tolist()
    newcomer = 10**9 if bundle.id_kinds["user"] == "int" else "new"
    newest: dict[Any, int] = {}

    def happens(user: Any, number: int) -> None:
        event = publish(client, user, items[number - 1], "click")
        newest[user] = number
        eventually(lambda: settled(client, event))

    def meanwhile(where: Any, step: str, user: Any, number: int) -> None:
        done = getattr(where, step)

        def with_event(*args: Any, **named: Any) -> Any:
            result = done(*args, **named)
            happens(user, number)
            return result

        monkeypatch.setattr(where, step, with_event)

    deploy(bundle, client, settings)
    with Consumer(client, settings):
        happens(users[0], 3)
        happens(newcomer, 4)
        meanwhile(FeastGeneration, "materialize", users[1], 5)
        meanwhile(vectors, "load", users[2], 6)
        meanwhile(DeploymentWriter, "announce", users[3], 7)
        meanwhile(DeploymentWriter, "switch", users[4], 8)
        report = deploy(another(bundle, tmp_path / "new"), client, settings)
        happens(users[5], 9)
    assert report.replayed == 5
    asked = [*users, newcomer]
    rows = packed(client, bundle, report.generation, "user", asked)
    theirs = through_feast(client, bundle, report.generation, settings, "user", asked)
    for ours, other in zip(rows, theirs, strict=True):
        np.testing.assert_array_equal(ours, other)
    assert bundle.schema.history is not None
    first = bundle.schema.slots(bundle.schema.history).start
    assert {user: rows[0][asked.index(user), first] for user in newest} == newest
    untouched = users_of(bundle).rows(slice(6, None))
    np.testing.assert_array_equal(rows[0][6:-1], untouched.categorical)


# The command line


def test_the_command_says_what_it_wrote(
    use_server: redis.Redis, recsys: Callable[..., Outcome], trained: Trained, tmp_path: Path
) -> None:
    done = recsys("deploy", trained.bundle.path)
    assert (done.code, deployments.live(use_server)) == (0, "1")
    assert "generation 1 is live: 200 users, 40 items" in done.out
    assert "recall@100 1.0000 at EF 100" in " ".join(done.out.split())
    assert "feast" in done.out
    project = f"recsys_{use_server.get('deploy:id').decode()}_1"  # type: ignore[union-attr]
    assert (tmp_path / "data" / "feast" / project / "registry.db").is_file()
    options = ("--no-feast", "--recall", "0.5", "--history", "2", "--grace", "60", "--models", tmp_path / "elsewhere")
    again = json.loads(recsys("deploy", trained.bundle.path, *options, "--json").out)
    assert (again["generation"], again["users"], again["items"], again["ef"], again["recall"]) == ("2", 200, 40, 100, 1)
    assert {"copy", "users", "items", "vectors", "recall", "switch"} <= set(again["seconds"])
    assert "feast" not in again["seconds"]
    assert again["folder"] == folder_of(use_server, trained.bundle)
    assert (tmp_path / "elsewhere" / again["folder"]).is_dir()
    assert 0 < use_server.ttl("deploy:1") <= 60


def test_a_folder_without_a_bundle_is_said_in_one_line(
    use_server: redis.Redis, recsys: Callable[..., Outcome], tmp_path: Path
) -> None:
    assert recsys("deploy", "nowhere").error() == "error: no bundle at nowhere: make one with 'recsys train'"
    assert "setting deploy.recall" in recsys("deploy", "nowhere", "--recall", "2").error()
    assert not use_server.dbsize()
