"""Behaviour common to generations of all kinds, beyond the tests of recommendations."""

from __future__ import annotations

import numpy as np
import pytest
import redis

from redis_recsys.errors import StoreError
from redis_recsys.store import deployments, lock
from redis_recsys.store.deployments import DeploymentRecord, DeploymentWriter
from redis_recsys.store.generations import GenerationWriter
from redis_recsys.store.recommendations import RecommendationsWriter

KINDS = [RecommendationsWriter, DeploymentWriter]


@pytest.fixture(autouse=True)
def _quick_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOCK_SECONDS", 1.0)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.1)


def record(generation: str, owner: str = "") -> DeploymentRecord:
    return DeploymentRecord(generation, "4f2a", 128, 0.98, "int", "str", True, np.array([0.6, -0.8], np.float32), owner)


def test_no_two_generations_share_a_name(client: redis.Redis) -> None:
    names = []
    for kind in KINDS * 2:
        with kind.begin(client, "bundle", 60) as writer:
            writer.switch()
        names.append(writer.generation)
    assert len(set(names)) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_writer_that_cannot_begin_gives_its_lock_back(client: redis.Redis, kind: type[GenerationWriter]) -> None:
    client.set(f"{kind.prefix}:generations", "no hash")
    with pytest.raises(StoreError):
        kind.begin(client, "bundle", 60)
    assert not client.exists(f"{kind.prefix}:lock")


def test_kinds_do_not_lock_each_other_out(client: redis.Redis) -> None:
    with RecommendationsWriter.begin(client, "a", 60) as one, DeploymentWriter.begin(client, "b", 60) as other:
        one.switch()
        other.switch()
    assert deployments.live(client) == other.generation


@pytest.mark.parametrize("kind", KINDS)
def test_a_switch_whose_answer_was_lost_is_not_taken_for_a_replaced_generation(
    client: redis.Redis, kind: type[GenerationWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    with kind.begin(client, "old", 60) as old:
        old.switch()
    with kind.begin(client, "new", 60) as new:
        execute = redis.client.Pipeline.execute
        lost = []

        def loses_one_answer(pipe: redis.client.Pipeline, *args: bool) -> list[object]:
            answers = execute(pipe, *args)
            if not lost and client.get(f"{kind.prefix}:live") == new.generation.encode():
                lost.append(answers)
                raise redis.WatchError("connection lost while watching")  # redis-py's error for it
            return answers

        monkeypatch.setattr(redis.client.Pipeline, "execute", loses_one_answer)
        new.switch()
        assert lost
    with kind.begin(client, "next", 60):
        assert client.ttl(f"{kind.prefix}:{new.generation}") == -1
        assert 0 < client.ttl(f"{kind.prefix}:{old.generation}") <= 60
    assert client.get(f"{kind.prefix}:live") == new.generation.encode()


def test_a_writer_can_ask_whether_it_still_has_the_lock(client: redis.Redis) -> None:
    with DeploymentWriter.begin(client, "bundle", 60) as writer:
        writer.check()
        client.set("deploy:lock", "somebody else", ex=60)
        with pytest.raises(StoreError, match="lost its lock"):
            writer.check()


def test_a_record_is_read_as_it_was_written(client: redis.Redis) -> None:
    with DeploymentWriter.begin(client, "4f2a", 60) as writer:
        written = record(writer.generation, writer.owner)
        writer.announce(written)
        found = deployments.read(client, writer.generation)
        writer.switch()
    assert found.owner
    assert (found.folder, found.project) == (writer.folder, writer.project)
    np.testing.assert_array_equal(found.average_user, written.average_user)
    assert {**vars(found), "average_user": 0} == {**vars(written), "average_user": 0}


def test_there_is_no_record_of_what_is_not_complete(client: redis.Redis) -> None:
    with DeploymentWriter.begin(client, "4f2a", 60) as writer:
        for generation in (writer.generation, "99"):
            with pytest.raises(StoreError, match="recsys deploy"):
                deployments.read(client, generation)


def test_pointers_and_known_generations_follow_the_life_of_a_deployment(client: redis.Redis) -> None:
    def state() -> tuple[str | None, str | None, list[str]]:
        return deployments.live(client), deployments.upcoming(client), deployments.known(client)

    assert state() == (None, None, [])
    with DeploymentWriter.begin(client, "4f2a", 60) as one:
        assert state() == (None, None, [one.generation])
        one.announce(record(one.generation))
        assert state() == (None, one.generation, [one.generation])
        one.switch()
        assert state() == (one.generation, None, [one.generation])
    with DeploymentWriter.begin(client, "5a", 60) as two:
        two.announce(record(two.generation))
        assert state() == (one.generation, two.generation, [one.generation, two.generation])
        two.switch()
    assert state() == (two.generation, None, [two.generation])


def test_a_deployment_that_does_not_go_live_is_removed_at_once(client: redis.Redis) -> None:
    with DeploymentWriter.begin(client, "4f2a", 60) as writer:
        generation = writer.generation
        client.set(f"features:{generation}:user:{{1}}", "row")
        for project in (writer.project, f"recsys_{generation}"):  # and the name by an earlier version
            client.hset(b"\x01\0\0\0\x02\0\0\0\x04\0\0\0user..." + project.encode(), "field", "value")
        writer.announce(record(generation))
    assert set(client.keys("*")) == {b"recs:counter", b"deploy:folders", b"deploy:id"}  # the files may still be there


def test_generations_whose_names_end_alike_are_kept_apart(client: redis.Redis) -> None:
    feast = [b"\x01\0\0\0\x02\0\0\0\x04\0\0\0user...recsys_" + generation for generation in (b"2", b"12", b"21")]
    client.set("recs:counter", 1)
    for key in (*feast, "features:12:user:{2}", "features:21:user:{2}", "features:2:user:{2}", "items:12", "items:21"):
        client.hset(key, "field", "value")
    with DeploymentWriter.begin(client, "4f2a", 60) as writer:
        assert writer.generation == "2"
    left = {key for key in client.keys("*") if not key.startswith((b"deploy", b"recs"))}
    assert left == {*feast[1:], b"features:12:user:{2}", b"features:21:user:{2}", b"items:12", b"items:21"}
