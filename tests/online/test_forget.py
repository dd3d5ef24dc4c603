"""`recsys user forget`: no data of the user stays in Redis, whatever is being written, and others keep theirs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from redis_recsys.bundle.bundle import Bundle, Manifest
from redis_recsys.bundle.writer import finish, writing_bundle
from redis_recsys.config import BatchSettings, Settings
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.offline.batch import batch
from redis_recsys.online import consumer as consuming
from redis_recsys.online import deploy as module
from redis_recsys.online.consumer import Consumer
from redis_recsys.online.deploy import deploy
from redis_recsys.online.feature_store import FeastGeneration
from redis_recsys.store import deployments, events, features, recommendations, vectors
from redis_recsys.store.deployments import DeploymentWriter
from redis_recsys.store.events import Group, publish, settled_within
from redis_recsys.store.recommendations import RecommendationsWriter, get
from redis_recsys.store.users import Forgotten, forget
from tests.support.commands import Outcome
from tests.support.planted import Trained

ANN = "zebra-*[ann]?-Ω"
RAW = ANN.encode()
SMALL = Settings(batch=BatchSettings(candidates=10, topk=5, block=16))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRELOAD_SECONDS", 0.0)
    monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(consuming, "WAIT_SECONDS", 0.05)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data", deploy={"models": tmp_path / "data" / "deployed"})


def with_user(bundle: Bundle, folder: Path, name: str | None, made: datetime) -> Bundle:
    """The bundle with its third user called ``name``, or without that one."""
    with writing_bundle(folder) as aside:
        for file in bundle.manifest.files:
            (aside / file).parent.mkdir(exist_ok=True)
            (aside / file).write_bytes((bundle.path / file).read_bytes())
        for file in ("user_features.parquet", "history.parquet"):
            table = pq.read_table(aside / file)
            if name is None:
                table = table.filter(pa.array([row != 2 for row in range(len(table))]))
            elif "raw_id" in table.column_names:
                ids = table["raw_id"].to_pylist()
                table = table.set_column(0, "raw_id", pa.array([*ids[:2], name, *ids[3:]]))
            pq.write_table(table, aside / file)
        users = len(pq.read_table(aside / "user_features.parquet"))
        finish(aside, bundle.schema, "test", {}, bundle.manifest.embedding_dim, users, bundle.manifest.items)
        manifest = Manifest.model_validate_json((aside / "manifest.json").read_text())
        manifest.created = made.isoformat(timespec="seconds")
        (aside / "manifest.json").write_text(manifest.model_dump_json())
    return Bundle(folder)


BEFORE = datetime.now(UTC) - timedelta(days=1)
LATER = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
def texts(bundle_of: Callable[[str], Trained], tmp_path: Path) -> Bundle:
    """A bundle whose ids are texts, with the user ``ANN``, made a day ago."""
    return with_user(bundle_of("text-ids-history-implicit").bundle, tmp_path / "bundle", ANN, BEFORE)


def opened(client: redis.Redis, settings: Settings, generation: str, bundle: Bundle) -> FeastGeneration:
    """A deployment in Feast."""
    project = deployments.read(client, generation).project
    return FeastGeneration(client, settings.data, generation, project, bundle.schema, bundle.id_kinds)


def traces(client: redis.Redis, raw: bytes = RAW) -> list[bytes]:
    """Names of all keys with a text in their name or value, according to their dumps and their types' commands."""
    client.config_set("rdbcompression", "no")
    shown = {
        b"string": lambda key: client.get(key),
        b"hash": lambda key: client.hgetall(key),
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"stream": lambda key: client.xrange(key),
        b"vectorset": lambda key: None,
    }
    found = []
    for key in client.scan_iter():
        content: Any = [client.dump(key), shown[client.type(key)](key)]  # type: ignore[index]
        if raw in key or raw in content[0] or repr(raw)[2:-1] in repr(content):
            found.append(key)
    return found


def everything(client: redis.Redis, bundle: Bundle, settings: Settings) -> None:
    """All data of examples 1 and 2: two deployments with Feast, two batch runs, events applied, pending, rejected."""
    item = bundle.items.raw_ids[3]
    deploy(bundle, client, settings)
    batch(bundle, client, SMALL)
    with Consumer(client, settings):
        for user in (ANN, "u1", f"{ANN}2", ANN):
            name = publish(client, user, item, "click")
        assert settled_within(client, name, 60)
        client.hset(f"counts:{{{ANN}}}", "view", "many")
        for user in (ANN, "u1"):
            client.xadd("events", {"user": user, "type": "click"})  # no item
            name = publish(client, user, item, "view")
        assert settled_within(client, name, 60)
    deploy(bundle, client, settings)
    batch(bundle, client, SMALL)
    for user in ("u1", ANN, f"{ANN}2", ANN):
        publish(client, user, item, "click")


def others(client: redis.Redis) -> dict[bytes, Any]:
    """Content of all keys except streams and marks, without the user's data."""
    kept = {}
    for key in client.scan_iter():
        if client.type(key) != b"stream" and key != b"recs:forgotten" and b"{" + RAW + b"}" not in key:
            kept[key] = client.dump(key) if key != b"events:users" else set(client.zrange(key, 0, -1)) - {RAW}  # type: ignore[arg-type]
    return {key: value for key, value in kept.items() if RAW + b"recsys" not in key and not key.endswith(b":" + RAW)}


def test_nothing_of_the_user_is_left_and_all_of_others(client: redis.Redis, texts: Bundle, settings: Settings) -> None:
    everything(client, texts, settings)
    assert len(traces(client)) > 12
    before = others(client)
    waiting = [fields[b"user"] for _, fields in client.xrange("events")]  # type: ignore[union-attr]
    assert waiting.count(RAW) >= 2  # and events applied a moment ago
    dead = client.xlen("events:dead")
    done = forget(client, ANN)
    # two generations each: features, histories, recommendations, Feast; in all: history, counts, applied
    assert done == Forgotten(keys=11, events=waiting.count(RAW), dead=2)
    # another user's id begins with this one
    assert {key for key in traces(client) if f"{ANN}2".encode() not in key} == {b"events", b"events:users"}
    assert not traces(client, RAW + b"'")
    assert others(client) == before
    assert [f for _, f in client.xrange("events") if f[b"user"] == RAW] == []  # type: ignore[union-attr]
    kept = [fields[b"user"] for _, fields in client.xrange("events")]  # type: ignore[union-attr]
    assert kept == [user for user in waiting if user != RAW]
    assert client.xlen("events:dead") == dead - 2
    forget(client, f"{ANN}2")
    assert traces(client) == []


def test_the_user_stays_away_while_consumers_run_and_others_events_are_applied_once(
    client: redis.Redis, texts: Bundle, settings: Settings
) -> None:
    settings.deploy.feast = False
    deploy(texts, client, settings)
    item = texts.items.raw_ids[3]
    stop = threading.Event()
    sent: list[str] = []

    def send() -> None:
        while not stop.is_set():
            sent.append(publish(client, "u1", item, "click"))
            publish(client, ANN, item, "click")

    with Consumer(client, settings) as one, Consumer(client, settings) as two:
        thread = threading.Thread(target=send)
        thread.start()
        for _ in range(10):
            forget(client, ANN)
        stop.set()
        thread.join()
        forget(client, ANN)
        name = publish(client, "u1", item, "view")
        sent.append(name)
        assert settled_within(client, name, 60)
        assert settled_within(client, sent[-2], 60)
    assert (one.refused, two.refused) == (0, 0)
    assert client.hgetall("counts:{u1}") == {b"click": b"%d" % (len(sent) - 1), b"view": b"1"}
    forget(client, "somebody else")  # removed entries leave no trace in the stream's memory
    assert traces(client) == []


def test_a_consumer_that_has_read_an_event_before_does_not_bring_the_user_back(
    client: redis.Redis, texts: Bundle, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(texts, client, settings)
    item = texts.items.raw_ids[3]
    read, apply, follow, dead_letter = Group.read, Group.apply, FeastGeneration.follow, Group.dead_letter
    moments: list[str] = []

    def at(moment: str, call: Callable[..., Any], before: bool) -> Callable[..., Any]:
        def with_forgetting(*args: Any, **named: Any) -> Any:
            if before and chosen == moment:
                moments.append(moment)
                forget(client, ANN)
            result = call(*args, **named)
            if not before and chosen == moment and (result or moment != "read"):
                moments.append(moment)
                forget(client, ANN)
            return result

        return with_forgetting

    monkeypatch.setattr(Group, "read", at("read", read, before=False))
    monkeypatch.setattr(Group, "apply", at("apply", apply, before=True))
    monkeypatch.setattr(FeastGeneration, "follow", at("follow", follow, before=True))
    monkeypatch.setattr(Group, "dead_letter", at("put aside", dead_letter, before=True))
    chosen = "none"
    for chosen in ("read", "apply", "follow", "put aside"):
        for user in (ANN, "u1"):
            client.xadd("events", {"user": user, "type": "click"})
            name = publish(client, user, item, "click")
        consumer = Consumer(client, settings, name="tester")
        while consumer.applied < 1 or not settled_within(client, name, 0):
            consumer.step()
        if chosen not in moments:  # the moment has to come
            raise AssertionError(chosen)
        forget(client, "somebody else")
        assert traces(client) == [], chosen


STEPS: list[tuple[Any, str]] = [
    (module, "_copied"),
    (FeastGeneration, "write_rows"),
    (features, "write_many"),
    (vectors, "load"),
    (module, "_replay"),
    (DeploymentWriter, "announce"),
    (DeploymentWriter, "switch"),
]


@pytest.mark.parametrize(("where", "step"), STEPS, ids=[step for _, step in STEPS])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_deployment_that_is_being_written_does_not_bring_the_user_back(
    client: redis.Redis,
    texts: Bundle,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    step: str,
    before: bool,
) -> None:
    settings.deploy.feast = where is FeastGeneration
    item = texts.items.raw_ids[3]
    deploy(texts, client, settings)
    with Consumer(client, settings):
        assert settled_within(client, publish(client, ANN, item, "click"), 60)
    done, forgotten = getattr(where, step), []

    def with_forgetting(*args: Any, **named: Any) -> Any:
        if before and not forgotten:
            forgotten.append(forget(client, ANN))
        result = done(*args, **named)
        if not before and not forgotten:
            forgotten.append(forget(client, ANN))
        return result

    monkeypatch.setattr(where, step, with_forgetting)
    report = deploy(texts, client, settings)
    assert forgotten[0].keys > 3
    assert traces(client) == []
    assert deployments.live(client) == report.generation


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_batch_run_that_is_being_written_does_not_bring_the_user_back(
    client: redis.Redis, texts: Bundle, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    batch(texts, client, SMALL)
    assert traces(client)
    write, forgotten = RecommendationsWriter.write, []

    def with_forgetting(*args: Any) -> None:
        if before and not forgotten:
            forgotten.append(forget(client, ANN))
        write(*args)
        if not before and not forgotten:
            forgotten.append(forget(client, ANN))

    monkeypatch.setattr(RecommendationsWriter, "write", with_forgetting)
    batch(texts, client, SMALL)
    assert forgotten
    assert traces(client) == []
    assert get(client, ANN).source == "popular"


def test_a_batch_run_that_was_cut_off_and_goes_on_leaves_the_user_out(
    client: redis.Redis, texts: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RecommendationsWriter.write

    def cut(*args: Any) -> None:
        write(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RecommendationsWriter, "write", cut)
        with pytest.raises(KeyboardInterrupt):
            batch(texts, client, SMALL)
    assert client.exists(recommendations.key("1", ANN))
    forget(client, ANN)
    assert batch(texts, client, SMALL).resumed_at == 16
    assert traces(client) == []


def test_bundles_are_deployed_and_scored_without_the_user_until_one_was_trained_without(
    client: redis.Redis, texts: Bundle, settings: Settings, tmp_path: Path
) -> None:
    forget(client, ANN)

    def written(bundle: Bundle) -> tuple[bool, bool]:
        generation = deploy(bundle, client, settings).generation
        batch(bundle, client, SMALL)
        feast = opened(client, settings, generation, bundle)
        assert bool(feast.read("user", [ANN])[2][0]) == bool(client.exists(features.key(generation, "user", ANN)))
        source = pq.read_table(feast.folder / "user_features.parquet")
        assert (ANN in source[bundle.schema.id_column("user").name].to_pylist()) == bool(
            client.exists(features.key(generation, "user", ANN))
        )
        return bool(client.exists(features.key(generation, "user", ANN))), get(client, ANN).source == "model"

    assert deploy(texts, client, settings).users == texts.manifest.users - 1
    assert written(texts) == (False, False)
    assert traces(client) == []
    still = with_user(texts, tmp_path / "still", ANN, LATER)  # trained later, on the same log
    assert written(still) == (False, False)
    without = with_user(texts, tmp_path / "without", None, LATER + timedelta(hours=1))
    assert written(without) == (False, False)
    assert written(still) == (False, False)
    again = with_user(texts, tmp_path / "again", ANN, LATER + timedelta(hours=2))
    assert written(again) == (True, True)  # came back
    forget(client, ANN)
    assert traces(client) == []
    assert written(texts) == (False, False)


def test_a_user_who_comes_back_starts_anew(client: redis.Redis, texts: Bundle, settings: Settings) -> None:
    settings.deploy.feast = False
    deploy(texts, client, settings)
    raw = texts.items.raw_ids
    with Consumer(client, settings):
        assert settled_within(client, publish(client, ANN, raw[3], "click"), 60)
        forget(client, ANN)
        assert settled_within(client, publish(client, ANN, raw[4], "click"), 60)
    assert client.zrange(f"history:{{{ANN}}}", 0, -1) == [raw[4].encode()]
    assert client.hgetall(f"counts:{{{ANN}}}") == {b"click": b"1"}
    column = texts.schema.history
    assert column is not None
    generation = deploy(texts, client, settings).generation
    row: Any = features.read(client, generation, "user", [ANN])
    categorical, _, _ = features.unpack(row, *texts.schema.widths("user"))
    assert categorical[0, texts.schema.slots(column)].tolist() == [5, 0, 0]
    assert not np.delete(categorical[0], np.r_[texts.schema.slots(column)]).any()


def test_an_item_with_the_same_id_stays(client: redis.Redis, trained: Trained, settings: Settings) -> None:
    """Both ids are integers here, which Feast writes as eight bytes."""
    generation = deploy(trained.bundle, client, settings).generation
    feast = opened(client, settings, generation, trained.bundle)
    assert feast.read("user", [7, 8])[2].all()
    forget(client, 7)
    assert feast.read("user", [7, 8])[2].tolist() == [False, True]
    assert feast.read("item", [7])[2].all()
    assert client.exists(features.key(generation, "item", 7))
    assert not client.exists(features.key(generation, "user", 7), f"history:{generation}:{{7}}")


def test_groups_of_the_stream_and_what_is_pending_stay_as_they_are(client: redis.Redis) -> None:
    ids = [publish(client, user, "x", "click") for user in ("a", ANN, "b", "c", ANN, "d")]
    client.xgroup_create("events", "features", "0")
    client.xgroup_create("events", "theirs", ids[1])
    client.xreadgroup("features", "one", {"events": ">"}, count=3)
    client.xreadgroup("features", "two", {"events": ">"}, count=1)
    client.xack("events", "features", ids[0])
    client.xdel("events", ids[5])

    def told() -> Any:
        groups: Any = client.xinfo_groups("events")
        pending: Any = client.xpending_range("events", "features", "-", "+", 10)
        stream: Any = client.xinfo_stream("events")
        return (
            [(group["name"], group["last-delivered-id"], group["entries-read"]) for group in groups],
            [(each["message_id"], each["consumer"], each["times_delivered"]) for each in pending],
            [stream[name] for name in ("last-generated-id", "entries-added", "max-deleted-entry-id")],
        )

    before = told()
    assert forget(client, ANN).events == 2
    groups, pending, stream = told()
    assert groups == before[0]
    assert pending == [each for each in before[1] if each[0] != ids[1].encode()]
    assert len(pending) == 2
    assert stream == before[2]
    assert [name.decode() for name, _ in client.xrange("events")] == [ids[0], ids[2], ids[3]]  # type: ignore[union-attr]
    assert traces(client) == []
    client.xtrim("events", 0, approximate=False)
    assert forget(client, "nobody").events == 0
    assert told()[0] == groups
    assert publish(client, "a", "x", "click") > ids[5]


def test_the_command_says_what_it_removed_and_what_it_does_not(
    server: EmbeddedRedis, use_server: redis.Redis, recsys: Callable[..., Outcome], texts: Bundle, settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The user has the rights to deploy, as in the cloud."""
    everything(use_server, texts, settings)
    use_server.execute_command("ACL", "SETUSER", "deploy", "on", ">word", "~*", "+@all", "-@admin", "-@dangerous")
    monkeypatch.setenv("RECSYS_REDIS_USERNAME", "deploy")
    monkeypatch.setenv("RECSYS_REDIS_PASSWORD", "word")
    waiting = [fields[b"user"] for _, fields in use_server.xrange("events")]  # type: ignore[union-attr]
    done = recsys("user", "forget", ANN, "--json")
    assert json.loads(done.out) == {"user": ANN, "keys": 11, "events": waiting.count(RAW), "dead": 2}
    done = recsys("user", "forget", f"{ANN}2")
    assert done.code == 0
    assert traces(use_server) == []
    told = " ".join(done.out.split())
    assert "removed from Redis: 7 keys, " in told  # per deployment a row and Feast's; history, counts, applied
    assert "Files still hold the user" in told
    assert recsys("user", "forget", "nobody").code == 0
    assert events.newest(use_server) > 0
