"""`recsys event` and its neighbours with the documented rights: nobody is led to send an event twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_recsys.cli import online
from redis_recsys.config import Settings
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.online import consumer as consuming
from redis_recsys.online.consumer import Consumer
from tests.support.commands import Outcome
from tests.support.paths import ROOT

SECURITY = ROOT / "docs" / "operations" / "security.md"
Verb = Callable[..., Outcome]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """A Redis with the proposed users and with `deploy`, as in the cloud; verbs log in as `sender`."""
    monkeypatch.setattr(consuming, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(online, "WAIT_SECONDS", 60.0)
    with (
        EmbeddedRedis(tmp_path / "redis", persist=False) as server,
        redis.Redis(server.host, server.port, password=server.password) as owner,
    ):
        for line in SECURITY.read_text().splitlines():
            if line.startswith("ACL SETUSER"):
                owner.execute_command(*line.split())
        owner.execute_command("ACL", "SETUSER", "deploy", "on", ">CHANGE_ME", "~*", "+@all", "-@admin", "-@dangerous")
        monkeypatch.setenv("RECSYS_REDIS_HOST", server.host)
        monkeypatch.setenv("RECSYS_REDIS_PORT", str(server.port))
        monkeypatch.setenv("RECSYS_REDIS_USERNAME", "sender")
        monkeypatch.setenv("RECSYS_REDIS_PASSWORD", "CHANGE_ME")
        yield owner


@pytest.fixture
def consumer(own: redis.Redis, tmp_path: Path) -> Iterator[Consumer]:
    """One that logs in as `deploy`."""
    where = own.get_connection_kwargs()
    settings = Settings(data=tmp_path / "data", deploy={"models": tmp_path / "deployed", "feast": False})
    with (
        redis.Redis(where["host"], where["port"], username="deploy", password="CHANGE_ME") as client,
        Consumer(client, settings) as consumer,
    ):
        yield consumer


def entries(client: redis.Redis) -> list[Any]:
    """Everything that was ever accepted, and has not been tidied away."""
    return list(client.xrange("events"))  # type: ignore[arg-type]


def test_a_sender_may_do_all_that_a_producer_needs(own: redis.Redis, consumer: Consumer, recsys: Verb) -> None:
    assert recsys("check").code == 0
    assert recsys("event", "ann", "x", "click").code == 0
    done = recsys("event", "ann", "y", "click", "--wait")
    assert (done.code, done.err) == (0, "")
    assert recsys("event", "bob", "y", "view", "--wait", "--json").code == 0
    assert own.zrange("history:{ann}", 0, -1) == [b"x", b"y"]
    assert own.hgetall("counts:{ann}") == {b"click": b"2"}


def test_a_sender_hears_why_an_event_was_put_aside_and_that_it_was_accepted(
    own: redis.Redis, consumer: Consumer, recsys: Verb
) -> None:
    own.set("history:{ann}", "no sorted set")
    done = recsys("event", "ann", "x", "click", "--wait")
    name = done.out.strip()
    assert done.code == 3
    assert done.error().startswith(f"error: event {name} is accepted, do not send it again; it was put aside")
    assert "WRONGTYPE" in done.error()


@pytest.mark.parametrize("rules", ["+xadd", "+xadd +xinfo|groups +xpending"], ids=["before", "without brackets"])
def test_with_fewer_rights_the_wait_fails_and_says_that_the_event_is_accepted(
    own: redis.Redis, consumer: Consumer, recsys: Verb, rules: str
) -> None:
    """Rights as proposed by an earlier version of the documentation."""
    own.execute_command(
        "ACL", "SETUSER", "sender", "reset", "on", ">CHANGE_ME", "resetchannels", "~events", "+ping", "+client|setinfo",
        *rules.split(),
    )  # fmt: skip
    assert recsys("event", "ann", "x", "click").code == 0
    done = recsys("event", "ann", "y", "click", "--wait", "--json")
    told = json.loads(done.out)
    assert done.code == 3
    assert told["state"] == "accepted"
    assert f"event {told['id']} is accepted, do not send it again" in done.error()
    assert "ACL" in done.error()


def test_a_redis_that_dies_while_the_verb_waits_is_no_reason_to_send_again(
    own: redis.Redis, recsys: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_REDIS_RETRIES", "0")
    monkeypatch.setenv("RECSYS_REDIS_TIMEOUT", "0.5")

    def die() -> None:
        while not entries(own):
            pass
        own.shutdown(nosave=True)

    thread = threading.Thread(target=die)
    thread.start()
    done = recsys("event", "ann", "x", "click", "--wait")
    thread.join()
    assert done.code == 3
    assert f"event {done.out.strip()} is accepted, do not send it again; waiting for it failed" in done.error()


def test_an_event_that_nobody_applies_in_time_is_accepted_once(
    own: redis.Redis, recsys: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online, "WAIT_SECONDS", 0.05)
    done = recsys("event", "ann", "x", "click", "--wait")
    assert done.code == 3
    assert [name.decode() for name, _ in entries(own)] == [done.out.strip()]
    assert "do not send it again" in done.error()
    assert "recsys consume" in done.error()


def test_what_is_not_accepted_ends_with_another_code(own: redis.Redis, recsys: Verb) -> None:
    assert recsys("event", "ann", "x", "two words", "--wait").code == 1
    own.execute_command("ACL", "SETUSER", "sender", "off")
    assert recsys("event", "ann", "x", "click", "--wait").code == 1
    assert entries(own) == []


def test_a_sender_may_read_nothing_of_others_but_what_was_put_aside(own: redis.Redis, recsys: Verb) -> None:
    recsys("event", "ann", "x", "click")
    where = own.get_connection_kwargs()
    with redis.Redis(where["host"], where["port"], username="sender", password="CHANGE_ME") as sender:
        for command in (("XRANGE", "events", "-", "+"), ("XREVRANGE", "events", "+", "-"), ("XLEN", "events"),
                        ("XADD", "events:dead", "*", "a", "b"), ("GET", "deploy:live"), ("XDEL", "events", "1-1"),
                        ("ZRANGE", "history:{ann}", 0, -1)):  # fmt: skip
            with pytest.raises(redis.exceptions.NoPermissionError):
                sender.execute_command(*command)
