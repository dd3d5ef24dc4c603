"""The consumer of live events: every accepted event is applied exactly once, whatever dies in between."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.cli import online
from redis_recsys.config import Settings
from redis_recsys.embedded.redis_binary import find_redis_server
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.errors import StoreError
from redis_recsys.online import consumer as consuming
from redis_recsys.online.consumer import Consumer
from redis_recsys.online.feature_store import FeastGeneration
from redis_recsys.store import deployments, events, features
from redis_recsys.store.deployments import DeploymentRecord, DeploymentWriter
from redis_recsys.store.events import Group, publish, settled
from tests.support.commands import Outcome
from tests.support.planted import Trained

ClientOf = Callable[[EmbeddedRedis], redis.Redis]
RECSYS = Path(sys.executable).with_name("recsys")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of a dead consumer are claimed soon."""
    monkeypatch.setattr(events, "CLAIM_SECONDS", 0.3)
    monkeypatch.setattr(events, "TIDY_SECONDS", 0.05)
    monkeypatch.setattr(consuming, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(consuming, "WAIT_SECONDS", 0.05)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data", deploy={"models": tmp_path / "deployed", "feast": False, "history": 50})


@contextlib.contextmanager
def deploying(client: redis.Redis, bundle: Bundle, settings: Settings) -> Iterator[DeploymentWriter]:
    """A complete generation that is about to go live, with the packed rows of the bundle's users."""
    with DeploymentWriter.begin(client, bundle.fingerprint, grace=60) as writer:
        folder = settings.deploy.models / writer.folder
        folder.parent.mkdir(exist_ok=True)
        if not folder.exists():
            folder.symlink_to(bundle.path)
        generation, kinds = writer.generation, bundle.id_kinds
        for users, histories in bundle.users():
            histories.fill(users.categorical, bundle.schema)
            packed = features.pack(users.categorical, users.numeric)
            features.write_many(client, generation, "user", users.raw_ids.tolist(), packed)
        if settings.deploy.feast:
            feast = FeastGeneration(client, settings.data, generation, writer.project, bundle.schema, kinds)
            feast.materialize(bundle)
        average = np.ones(8, np.float32)
        record = (
            generation,
            bundle.fingerprint,
            128,
            1.0,
            kinds["user"],
            kinds["item"],
            settings.deploy.feast,
            average,
        )
        writer.announce(DeploymentRecord(*record))
        yield writer


def deployed(client: redis.Redis, bundle: Bundle, settings: Settings) -> str:
    """The name of a generation that is live."""
    with deploying(client, bundle, settings) as writer:
        writer.switch()
        return writer.generation


def row(client: redis.Redis, bundle: Bundle, generation: str, user: Any) -> tuple[np.ndarray, np.ndarray, bool]:
    widths = bundle.schema.categorical_width("user"), len(bundle.schema.numeric("user"))
    categorical, numeric, known = features.unpack(features.read(client, generation, "user", [user]), *widths)
    return categorical[0], numeric[0], bool(known[0])


def slots(client: redis.Redis, bundle: Bundle, generation: str, user: Any) -> list[int]:
    assert bundle.schema.history is not None
    found: list[int] = row(client, bundle, generation, user)[0][bundle.schema.slots(bundle.schema.history)].tolist()
    return found


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this took too long"
        time.sleep(0.002)


def all_done(client: redis.Redis) -> bool:
    group = client.xinfo_groups("events")[0]  # type: ignore[index]
    last: Any = client.xinfo_stream("events")["last-generated-id"]  # type: ignore[index]
    return bool(group["pending"] == 0 and group["last-delivered-id"] == last)


def counts(client: redis.Redis, user: Any) -> dict[str, int]:
    found: Any = client.hgetall(f"counts:{{{user}}}")
    return {kind.decode(): int(number) for kind, number in found.items()}


def test_an_event_changes_what_requests_read(client: redis.Redis, variant: Trained, settings: Settings) -> None:
    bundle = variant.bundle
    generation = deployed(client, bundle, settings)
    user = next(bundle.users())[0].raw_ids.tolist()[0]
    known, column = bundle.items.raw_ids.tolist()[3], bundle.schema.history
    before = row(client, bundle, generation, user)
    with Consumer(client, settings) as consumer:
        name = publish(client, user, known, "click")
        eventually(lambda: settled(client, name))
        newcomer = publish(client, f"{user}00", known, "view")
        eventually(lambda: settled(client, newcomer))
    assert (consumer.applied, consumer.refused, consumer.trouble) == (2, 0, None)
    assert client.zrange(f"history:{{{user}}}", 0, -1) == [str(known).encode()]
    assert counts(client, user) == {"click": 1}
    assert counts(client, f"{user}00") == {"view": 1}
    after, new = row(client, bundle, generation, user), row(client, bundle, generation, f"{user}00")
    np.testing.assert_array_equal(after[1], before[1])
    if column is None:
        np.testing.assert_array_equal(after[0], before[0])
        assert not new[2]
    else:
        at = bundle.schema.slots(column)
        others = [number for number in before[0][at].tolist() if number != 4]
        before[0][at] = ([4, *others, 0])[: column.width]
        np.testing.assert_array_equal(after[0], before[0])
        blank = np.zeros_like(before[0])
        blank[at.start] = 4
        np.testing.assert_array_equal(new[0], blank)
        assert not new[1].any()


@pytest.mark.parametrize("schema", ["everything", "text-ids-history-implicit"])
def test_feast_holds_the_same_as_the_packed_rows(
    client: redis.Redis, bundle_of: Callable[[str], Trained], settings: Settings, schema: str
) -> None:
    bundle = bundle_of(schema).bundle
    settings.deploy.feast = True
    generation = deployed(client, bundle, settings)
    some = next(bundle.users())[0].raw_ids.tolist()[:5]
    users = [*some, "ann" if isinstance(some[0], str) else 12345]
    items = bundle.items.raw_ids.tolist()
    with Consumer(client, settings):
        for n in range(30):
            name = publish(client, users[n % 6], items[n % 20], "click")
        eventually(lambda: settled(client, name))
    project = deployments.read(client, generation).project
    feast = FeastGeneration(client, settings.data, generation, project, bundle.schema, bundle.id_kinds)
    categorical, numeric, known = feast.read("user", users)
    assert known.all()
    for n, user in enumerate(users):
        expected = row(client, bundle, generation, user)
        np.testing.assert_array_equal(categorical[n], expected[0])
        np.testing.assert_array_equal(numeric[n], expected[1])
        assert slots(client, bundle, generation, user)[0] == (n + 24) % 20 + 1


def test_effects_show_within_100_ms(client: redis.Redis, trained: Trained, settings: Settings) -> None:
    generation = deployed(client, trained.bundle, settings)
    raw = trained.bundle.items.raw_ids.tolist()
    took = []
    with Consumer(client, settings):
        for number in range(1, 21):
            started = time.perf_counter()
            publish(client, "77", raw[number - 1], "click")
            eventually(lambda number=number: slots(client, trained.bundle, generation, 77)[0] == number)  # type: ignore[misc]
            took.append(time.perf_counter() - started)
    assert np.median(took) < 0.1


def test_an_item_that_the_models_do_not_know_counts_only_as_seen(
    client: redis.Redis, trained: Trained, settings: Settings
) -> None:
    generation = deployed(client, trained.bundle, settings)
    before = row(client, trained.bundle, generation, 1)
    with Consumer(client, settings):
        name = publish(client, 1, 999_999, "click")
        eventually(lambda: settled(client, name))
    np.testing.assert_array_equal(row(client, trained.bundle, generation, 1)[0], before[0])
    assert client.zscore("history:{1}", "999999") is not None
    assert counts(client, 1) == {"click": 1}


@pytest.mark.parametrize(("user", "item"), [("ann", "5"), ("5", "x"), ("5", "007"), ("5", "9" * 19), (" 5", "5")])
def test_an_id_that_cannot_be_of_the_catalogue_is_put_aside(
    client: redis.Redis, trained: Trained, settings: Settings, user: str, item: str
) -> None:
    deployed(client, trained.bundle, settings)
    with Consumer(client, settings) as consumer:
        name = publish(client, user, item, "click")
        good = publish(client, "6", "5", "click")
        eventually(lambda: settled(client, name) and settled(client, good))
    assert (consumer.applied, consumer.refused) == (1, 1)
    assert "is not an integer" in (events.refusal(client, name) or "")
    assert not client.exists(f"history:{{{user}}}")


def test_without_a_deployment_events_are_remembered(client: redis.Redis, settings: Settings) -> None:
    with Consumer(client, settings):
        name = publish(client, "ann", "x", "click")
        eventually(lambda: settled(client, name))
    assert client.zrange("history:{ann}", 0, -1) == [b"x"]


def test_every_generation_in_use_follows_with_its_own_numbers(
    client: redis.Redis, bundle_of: Callable[[str], Trained], settings: Settings
) -> None:
    """The generation about to go live follows, too, and a running consumer notices it."""
    bundle, text = bundle_of("everything").bundle, bundle_of("text-ids-history-implicit").bundle
    item = bundle.items.raw_ids.tolist()[7]
    with Consumer(client, settings):
        old = deployed(client, bundle, settings)
        publish(client, 1, item, "click")
        eventually(lambda: slots(client, bundle, old, 1)[0] == 8)
        with deploying(client, bundle, settings) as new:
            publish(client, 2, item, "click")
            eventually(lambda: slots(client, bundle, new.generation, 2)[0] == 8)
            assert slots(client, bundle, old, 2)[0] == 8
        with deploying(client, text, settings) as foreign:
            publish(client, 3, item, "click")
            eventually(lambda: slots(client, bundle, old, 3)[0] == 8)
            assert not row(client, text, foreign.generation, 3)[2]
            publish(client, 4, text.items.raw_ids[0], "click")
            eventually(lambda: client.exists("events:dead") == 1)  # the live catalogue has no such items


def test_a_missing_bundle_holds_events_back_until_it_is_there(
    client: redis.Redis, trained: Trained, settings: Settings
) -> None:
    generation = deployed(client, trained.bundle, settings)
    link = settings.deploy.models / deployments.read(client, generation).folder
    link.rename(link.with_name("elsewhere"))
    item = trained.bundle.items.raw_ids.tolist()[0]
    with Consumer(client, settings) as consumer:
        name = publish(client, 1, item, "click")
        eventually(lambda: "no bundle" in (consumer.trouble or ""))
        assert not settled(client, name)
        link.with_name("elsewhere").rename(link)
        eventually(lambda: settled(client, name))
        eventually(lambda: consumer.trouble is None)
    assert slots(client, trained.bundle, generation, 1)[0] == 1


def test_a_crash_between_application_and_acknowledgement_has_no_double_effect(
    client: redis.Redis, trained: Trained, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = deployed(client, trained.bundle, settings)
    raw = trained.bundle.items.raw_ids.tolist()
    for number in (5, 6, 7):
        publish(client, 1, raw[number - 1], "click")

    def crash(self: Group, several: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Group, "acknowledge", crash)
        with pytest.raises(KeyboardInterrupt):
            Consumer(client, settings).step()
    assert counts(client, 1) == {"click": 3}
    assert not all_done(client)
    publish(client, 1, raw[7], "click")
    with Consumer(client, settings):
        eventually(lambda: all_done(client))
    assert counts(client, 1) == {"click": 4}
    assert slots(client, trained.bundle, generation, 1) == [8, 7, 6]


def consume(server: tuple[str, int, str], settings: Settings) -> None:
    """A process that consumes until it is killed."""
    host, port, password = server
    with redis.Redis(host, port, password=password) as client:
        events.BATCH = 20
        Consumer(client, settings).run()


def test_consumers_killed_again_and_again_lose_and_double_nothing(
    server: EmbeddedRedis, client: redis.Redis, trained: Trained, settings: Settings
) -> None:
    deployed(client, trained.bundle, settings)
    address = (server.host, server.port, server.password)
    context = multiprocessing.get_context("fork")
    total = 3000
    with client.pipeline(transaction=False) as pipe:
        for n in range(total):
            pipe.xadd("events", {"user": n % 7, "item": n % 40 + 1, "type": "click"})
        pipe.execute()
    for _ in range(6):
        process = context.Process(target=consume, args=(address, settings), daemon=True)
        process.start()
        at: Any = client.zcard("events:users") and sum(counts(client, u)["click"] for u in range(7))
        eventually(lambda at=at: sum(counts(client, u).get("click", 0) for u in range(7)) > at)  # type: ignore[misc]
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    with Consumer(client, settings):
        eventually(lambda: all_done(client))
    assert [counts(client, user)["click"] for user in range(7)] == [len(range(user, total, 7)) for user in range(7)]


def test_many_producers_and_two_consumers(client: redis.Redis, trained: Trained, settings: Settings) -> None:
    generation = deployed(client, trained.bundle, settings)
    raw = trained.bundle.items.raw_ids.tolist()
    last: dict[int, list[int]] = {}

    def produce(user: int) -> None:
        numbers = np.random.default_rng(user).integers(1, len(raw) + 1, 150).tolist()
        for number in numbers:
            publish(client, user, raw[number - 1], "click")
        last[user] = list(dict.fromkeys(reversed(numbers)))[:3]

    producers = [threading.Thread(target=produce, args=(user,)) for user in range(1, 9)]
    with Consumer(client, settings) as one, Consumer(client, settings) as two:
        for thread in producers:
            thread.start()
        for thread in producers:
            thread.join()
        eventually(lambda: all_done(client))
    assert one.applied + two.applied == 8 * 150
    for user in range(1, 9):
        assert counts(client, user) == {"click": 150}
        assert slots(client, trained.bundle, generation, user)[:3] == last[user]
    assert client.xlen("events") <= 8 * 150


def test_the_stream_stays_short(client: redis.Redis, settings: Settings) -> None:
    with Consumer(client, settings):
        for n in range(500):
            publish(client, n % 5, n, "click")
        eventually(lambda: events.waiting(client) <= 1)
        assert all_done(client)


@contextlib.contextmanager
def restartable(folder: Path) -> Iterator[tuple[EmbeddedRedis, Callable[[], None]]]:
    """A persistent Redis, and a function that kills it and, after a while, restarts it at the same address."""
    processes: list[subprocess.Popen[bytes]] = []

    def restart() -> None:
        pid = processes[-1].pid if processes else server.pid
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)  # down for so long
        log = (folder / "second.log").open("ab")
        processes.append(subprocess.Popen([find_redis_server(), "redis.conf"], cwd=folder, stdout=log, stderr=log))
        log.close()

    with EmbeddedRedis(folder) as server:
        try:
            yield server, restart
        finally:
            for process in processes:
                process.kill()
                process.wait()


def test_accepted_events_survive_the_death_of_redis(
    tmp_path: Path, trained: Trained, settings: Settings, client_of: ClientOf
) -> None:
    """Kill Redis three times under load: accepted events are applied once, others at most once."""
    raw = trained.bundle.items.raw_ids.tolist()
    accepted: set[int] = set()
    unknown: set[int] = set()
    stop = threading.Event()

    def produce(client: redis.Redis, first: int) -> None:
        for user in count(first, 2):
            if stop.is_set():
                return
            try:
                publish(client, user, raw[user % 30], "click")
                accepted.add(user)
            except StoreError:
                unknown.add(user)
                time.sleep(0.01)

    with restartable(tmp_path / "redis") as (server, restart), client_of(server) as client:
        # By default, Redis may answer before it writes while the disk is busy.
        client.config_set("appendfsync", "always")
        client.config_rewrite()
        generation = deployed(client, trained.bundle, settings)
        producers = [threading.Thread(target=produce, args=(client_of(server), first)) for first in (1000, 1001)]
        with Consumer(client, settings) as consumer, Consumer(client_of(server), settings):
            for thread in producers:
                thread.start()
            for _ in range(3):
                at = len(accepted)
                eventually(lambda at=at: len(accepted) > at + 100)  # type: ignore[misc]
                restart()
            at = len(accepted)
            eventually(lambda: len(accepted) > at + 100)
            stop.set()
            for thread in producers:
                thread.join()
            eventually(lambda: all_done(client))
            eventually(lambda: consumer.trouble is None)
        assert unknown
        for user in accepted:
            assert counts(client, user) == {"click": 1}
            assert slots(client, trained.bundle, generation, user) == [user % 30 + 1, 0, 0]
        assert all(counts(client, user) in ({}, {"click": 1}) for user in unknown)


def test_a_consumer_can_be_stopped_while_redis_is_gone(tmp_path: Path, settings: Settings, client_of: ClientOf) -> None:
    with EmbeddedRedis(tmp_path / "redis", persist=False) as server:
        consumer = Consumer(client_of(server), settings)
        consumer.start()
        eventually(lambda: client_of(server).exists("events") == 1)
    eventually(lambda: "cannot reach" in (consumer.trouble or ""))
    started = time.monotonic()
    consumer.stop()
    assert time.monotonic() - started < 2


# The command line


def test_an_event_by_hand(
    use_server: redis.Redis, recsys: Callable[..., Outcome], trained: Trained, settings: Settings
) -> None:
    generation = deployed(use_server, trained.bundle, settings)
    item = trained.bundle.items.raw_ids.tolist()[5]
    accepted = recsys("event", 1, item, "click")
    assert (accepted.code, use_server.xlen("events")) == (0, 1)
    assert accepted.out.strip().encode() == use_server.xrange("events")[0][0]  # type: ignore[index]
    with Consumer(use_server, settings):
        done = recsys("event", 2, item, "view", "--wait", "--json")
        assert slots(use_server, trained.bundle, generation, 2)[0] == 6
        assert json.loads(done.out)["state"] == "applied"
        assert "is not an integer" in recsys("event", 2, "x", "click", "--wait").error()
    assert "type of an event" in recsys("event", 2, 3, "two words").error()


def test_an_event_that_nobody_applies_is_named(
    use_server: redis.Redis, recsys: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online, "WAIT_SECONDS", 0.05)
    assert "recsys consume" in recsys("event", 1, 2, "click", "--wait").error()


def test_consume_runs_until_it_is_told_to_end(
    use_server: redis.Redis, trained: Trained, settings: Settings, tmp_path: Path
) -> None:
    generation = deployed(use_server, trained.bundle, settings)
    command = [RECSYS, "consume", "--models", settings.deploy.models, "--no-feast", "--json"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            name = publish(use_server, 1, trained.bundle.items.raw_ids[8], "click")
            eventually(lambda: settled(use_server, name))
            process.send_signal(signal.SIGTERM)
            printed, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert slots(use_server, trained.bundle, generation, 1)[0] == 9
    assert (process.returncode, json.loads(printed), errors) == (0, {"applied": 1, "refused": 0}, "")
