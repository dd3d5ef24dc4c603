"""Generations of recommendations: written unseen, switched at once, never half-visible."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.errors import StoreError
from redis_recsys.store import lock
from redis_recsys.store.recommendations import Recommendations, RecommendationsWriter, get, get_many

ClientOf = Callable[[EmbeddedRedis], redis.Redis]
POPULAR = (np.array([7, 8, 9]), np.array([30, 20, 10]))


@pytest.fixture(autouse=True)
def _quick_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead writer's lock expires, and a live one's is renewed, within tenths of a second."""
    monkeypatch.setattr(lock, "LOCK_SECONDS", 1.0)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.1)


def begin(client: redis.Redis, fingerprint: str = "bundle", grace: int = 60) -> RecommendationsWriter:
    return RecommendationsWriter.begin(client, fingerprint, grace)


def write_users(writer: RecommendationsWriter, users: range, first_item: int, k: int = 3) -> None:
    """Every user gets the items first_item, first_item + 1, ... with scores .5, .25, ..."""
    n = len(users)
    items = np.tile(np.arange(first_item, first_item + k), (n, 1))
    scores = np.tile((0.5 ** np.arange(1, k + 1)).astype(np.float32), (n, 1))
    writer.write(np.array(users), items, scores, np.full(n, k))


def publish_users(client: redis.Redis, users: range, first_item: int, grace: int = 60) -> str:
    with begin(client, grace=grace) as writer:
        write_users(writer, users, first_item)
        writer.publish(*POPULAR)
    return writer.generation


def test_what_was_written_is_read_back(client: redis.Redis) -> None:
    with begin(client) as writer:
        writer.write(
            np.array([1, -(2**63), 2**63 - 1]),
            np.array([[10, 11], [2**63 - 1, 0], [12, 0]]),
            np.array([[0.9, 0.1], [0.75, 0.5], [0.25, 0]], np.float32),
            np.array([2, 2, 1]),
        )
        writer.publish(*POPULAR)
    generation = writer.generation
    tenths = [float(np.float32(0.9)), float(np.float32(0.1))]
    one, lowest, highest = get_many(client, [1, -(2**63), 2**63 - 1])
    assert (one.user, one.items, one.source, one.generation) == (1, [10, 11], "model", generation)
    np.testing.assert_array_equal(np.array(one.scores, np.float32), np.array(tenths, np.float32))
    assert lowest == Recommendations(-(2**63), [2**63 - 1, 0], [0.75, 0.5], "model", generation)
    assert highest == Recommendations(2**63 - 1, [12], [0.25], "model", generation)


def test_ids_can_be_text(client: redis.Redis) -> None:
    users = np.array(["ann", "1", "a:b ü\n"], object)
    items = np.array([["x", "1"], ["y", "z"], ['"],["', ""]], object)
    with begin(client) as writer:
        writer.write(users, items, np.full((3, 2), 0.5, np.float32), np.array([2, 2, 1]))
        writer.publish(np.array(["1", "x"], object), np.array([2, 1]))
    assert [r.items for r in get_many(client, list(users))] == [["x", "1"], ["y", "z"], ['"],["']]
    assert get(client, "bob").items == ["1", "x"]


def test_the_keys_are_those_of_the_design(client: redis.Redis) -> None:
    generation = publish_users(client, range(5, 6), first_item=10)
    assert client.get("recs:live") == generation.encode()
    stored = client.get(f"recs:{generation}:5")
    assert stored is not None
    assert json.loads(stored) == {"items": [10, 11, 12], "scores": [0.5, 0.25, 0.125]}
    assert client.zscore(f"popular:{generation}", "8") == 20


def test_an_unknown_user_gets_the_popular_items(client: redis.Redis) -> None:
    generation = publish_users(client, range(5), first_item=10)
    assert get(client, 99) == Recommendations(99, [7, 8, 9], [30, 20, 10], "popular", generation)
    assert get(client, "no such user").source == "popular"


def test_a_user_without_items_gets_none_rather_than_the_popular_ones(client: redis.Redis) -> None:
    with begin(client) as writer:
        writer.write(np.array([1]), np.array([[10]]), np.array([[0.5]], np.float32), np.array([0]))
        writer.publish(*POPULAR)
    assert get(client, 1) == Recommendations(1, [], [], "model", writer.generation)


def test_popular_items_that_were_written_for_a_user_are_marked(client: redis.Redis) -> None:
    with begin(client) as writer:
        items, scores = np.array([[10, 11], [12, 13]]), np.array([[0.5, 0.25], [7.5, 3.0]], np.float32)
        writer.write(np.array([1, 2]), items, scores, np.array([2, 2]), np.array([False, True]))
        writer.publish(*POPULAR)
    assert get(client, 1) == Recommendations(1, [10, 11], [0.5, 0.25], "model", writer.generation)
    assert get(client, 2) == Recommendations(2, [12, 13], [7.5, 3.0], "popular", writer.generation)


def test_as_many_popular_items_come_as_recommendations_would(client: redis.Redis) -> None:
    with begin(client) as writer:
        write_users(writer, range(1), first_item=10, k=2)
        writer.publish(*POPULAR)
    assert get(client, 99).items == [7, 8]


def test_known_and_unknown_users_can_be_asked_for_together(client: redis.Redis) -> None:
    publish_users(client, range(1500), first_item=10)
    answers = get_many(client, [1400, 9999, 0])
    assert [r.user for r in answers] == [1400, 9999, 0]
    assert [r.source for r in answers] == ["model", "popular", "model"]
    assert len(get_many(client, range(1500))) == 1500
    assert get_many(client, []) == []


def test_who_is_left_out_or_removed_is_not_written_and_counts_as_done(client: redis.Redis) -> None:
    with begin(client) as writer:
        kept = np.array([True, False, True])
        writer.write(np.arange(3), np.ones((3, 1), int), np.ones((3, 1), np.float32), np.ones(3, int), kept=kept)
        writer.remove(2)
        assert writer.done == 3
        writer.publish(*POPULAR)
    assert [found.source for found in get_many(client, [0, 1, 2])] == ["model", "popular", "popular"]


def test_a_reader_whose_generation_is_gone_meanwhile_reads_the_next_one(client: redis.Redis) -> None:
    old = publish_users(client, range(5), first_item=10)

    class Overtaken(redis.Redis):
        """A client whose generation is replaced, and expires, before it reads the users."""

        def mget(self, *args: Any) -> Any:
            if get(client, 1).generation == old:
                publish_users(client, range(5), first_item=20)
                client.delete(*client.keys(f"recs:{old}:*"))  # type: ignore[misc]
            return super().mget(*args)

    with Overtaken(connection_pool=client.connection_pool) as overtaken:
        found = get(overtaken, 1)
    assert (found.source, found.items) == ("model", [20, 21, 22])


def test_nothing_deployed_is_said(client: redis.Redis) -> None:
    with pytest.raises(StoreError, match="recsys batch"):
        get(client, 1)


def test_a_generation_is_unseen_until_it_is_published(client: redis.Redis) -> None:
    old = publish_users(client, range(5), first_item=10)
    with begin(client) as writer:
        write_users(writer, range(5), first_item=20)
        assert get(client, 1).generation == old
        writer.publish(*POPULAR)
    assert get(client, 1).items == [20, 21, 22]


def test_an_interrupted_run_leaves_the_live_generation_and_goes_on_where_it_stopped(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_users(client, range(3000), first_item=10)
    with begin(client, "new bundle") as writer, monkeypatch.context() as cut:
        write_users(writer, range(1200), first_item=20)
        cut.setattr(client, "pipeline", lambda **_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_users(writer, range(1200, 3000), first_item=20)
    assert get(client, 1).items == [10, 11, 12]
    with begin(client, "new bundle") as again:
        assert (again.generation, again.done) == (writer.generation, 1200)
        write_users(again, range(1200, 3000), first_item=20)
        again.publish(*POPULAR)
    assert {r.items[0] for r in get_many(client, range(3000))} == {20}


def test_an_unfinished_generation_of_other_input_is_removed(client: redis.Redis) -> None:
    with begin(client, "one bundle") as first:
        write_users(first, range(2500), first_item=10)
    with begin(client, "another bundle") as second:
        assert second.done == 0
        assert second.generation != first.generation
        assert not list(client.scan_iter(f"recs:{first.generation}*"))


def test_a_generation_whose_removal_was_cut_off_is_not_taken_up(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    with begin(client, "one") as writer:
        write_users(writer, range(2500), first_item=10)
    with monkeypatch.context() as cut:
        cut.setattr(client, "scan", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            begin(client, "two")
    with begin(client, "one") as again:
        assert again.done == 0
        assert not list(client.scan_iter(f"recs:{writer.generation}*"))


def test_a_second_writer_is_refused_while_the_first_one_lives(client: redis.Redis) -> None:
    with begin(client) as writer:
        with pytest.raises(StoreError, match=rf"another run \(.* pid {os.getpid()}\) is writing"):
            begin(client)
        write_users(writer, range(5), first_item=10)
        writer.publish(*POPULAR)
    begin(client).close()


def test_the_lock_of_a_dead_writer_runs_out(client: redis.Redis) -> None:
    client.set("recs:lock", "elsewhere pid 1 token", px=400)
    start = time.monotonic()
    begin(client).close()
    assert time.monotonic() - start < 2


def test_a_slow_writer_keeps_its_lock(client: redis.Redis) -> None:
    with begin(client) as writer:
        time.sleep(1.5)
        write_users(writer, range(5), first_item=10)
        writer.publish(*POPULAR)


def test_a_writer_that_lost_its_lock_does_not_publish(client: redis.Redis) -> None:
    old = publish_users(client, range(5), first_item=10)
    with begin(client) as writer:
        write_users(writer, range(5), first_item=20)
        client.set("recs:lock", "somebody else", ex=60)
        with pytest.raises(StoreError, match="lost its lock"):
            write_users(writer, range(5, 10), first_item=20)
        with pytest.raises(StoreError, match="lost its lock"):
            writer.publish(*POPULAR)
    assert get(client, 1).generation == old
    assert client.get("recs:lock") == b"somebody else"


def test_the_old_generation_expires_after_the_grace_time(client: redis.Redis) -> None:
    old = publish_users(client, range(2500), first_item=10)
    publish_users(client, range(2500), first_item=20, grace=1)
    assert client.mget([f"recs:{old}:0", f"recs:{old}:2499"]) != [None, None]
    time.sleep(1.3)
    assert not list(client.scan_iter(f"recs:{old}:*"))
    assert client.exists(f"recs:{old}", f"popular:{old}") == 0
    assert get(client, 0).items == [20, 21, 22]


def test_a_retirement_that_was_cut_off_is_finished_by_the_next_run(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = publish_users(client, range(2500), first_item=10)
    with begin(client) as writer, monkeypatch.context() as cut:
        write_users(writer, range(5), first_item=20)
        cut.setattr(client, "scan", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            writer.publish(*POPULAR)
    assert get(client, 1).generation == writer.generation
    assert client.ttl(f"recs:{old}:0") == -1
    begin(client, grace=60).close()
    assert all(0 < client.ttl(f"recs:{old}:{user}") <= 60 for user in range(0, 2500, 100))


def test_readers_never_miss_while_generations_switch(client: redis.Redis) -> None:
    publish_users(client, range(50), first_item=0, grace=0)
    answers: list[Recommendations] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                answers.extend(get_many(client, range(50)))
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for first_item in range(10, 100, 10):
            publish_users(client, range(50), first_item, grace=0)
    finally:
        done.set()
        reader.join()
    assert not failures
    assert {r.source for r in answers} == {"model"}
    assert all(r.items == [r.items[0] + i for i in range(3)] for r in answers)
    assert len({r.generation for r in answers}) > 1


def test_a_server_killed_mid_write_serves_the_live_generation_after_a_restart(
    folder: Path, client_of: ClientOf
) -> None:
    with EmbeddedRedis(folder) as server, client_of(server) as client:
        publish_users(client, range(100), first_item=10)
        with begin(client, "new bundle") as writer:
            write_users(writer, range(2000), first_item=20)
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises(StoreError, match="cannot reach Redis at "):
                write_users(writer, range(2000, 4000), first_item=20)
    with EmbeddedRedis(folder) as server, client_of(server) as client:
        assert get(client, 5).items == [10, 11, 12]
        with begin(client, "new bundle") as again:
            assert again.done == 2000
            write_users(again, range(2000, 4000), first_item=20)
            again.publish(*POPULAR)
        assert {r.items[0] for r in get_many(client, range(4000))} == {20}


def test_out_of_memory_is_named_and_leaves_the_live_generation_and_room(folder: Path, client_of: ClientOf) -> None:
    with EmbeddedRedis(folder, max_memory="6mb", persist=False) as server, client_of(server) as client:
        old = publish_users(client, range(100), first_item=10)
        keys = client.dbsize()
        with (
            begin(client, "new bundle") as writer,
            pytest.raises(StoreError, match=r"is out of memory: raise its maxmemory .*RECSYS_REDIS_MAX_MEMORY"),
        ):
            write_users(writer, range(100_000), first_item=20)
        assert get(client, 5).generation == old
        assert client.dbsize() == keys
        assert client.set("live event", 1)
        with begin(client, "new bundle") as again:
            assert again.done == 0
