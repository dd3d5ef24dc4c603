"""The lock of writers on a real Redis: nobody waits forever for a dead holder, and a live one keeps it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redis_recsys.store import lock
from redis_recsys.store.lock import WriterLock
from tests.support.pipelines import wait

KEY = "some:lock"


@pytest.fixture(autouse=True)
def _quick_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOCK_SECONDS", 60.0)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.1)


@contextmanager
def held(client: redis.Redis) -> Iterator[WriterLock]:
    taken = WriterLock(client, KEY)
    try:
        yield taken
    finally:
        taken.release()


def test_the_lock_of_a_holder_that_dies_at_once_expires(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 3600.0)
    with held(client):
        assert 0 < client.pttl(KEY) <= 60_000  # type: ignore[operator]
    assert not client.exists(KEY)


def test_a_holder_whose_answer_was_lost_has_the_lock(client: redis.Redis) -> None:
    class Resending(redis.Redis):
        """A client that sends SET again, as after a lost connection, and sees only the second answer."""

        def set(self, *args: Any, **options: Any) -> Any:
            super().set(*args, **options)
            return super().set(*args, **options)

    with Resending(connection_pool=client.connection_pool) as resending, held(resending) as taken:
        taken.check(client.get(KEY))  # type: ignore[arg-type]


def test_a_holder_renews_the_lock_after_redis_did_not_answer_for_a_moment(client: redis.Redis) -> None:
    where = client.get_connection_kwargs()
    hasty = redis.Redis(
        where["host"], where["port"], password=where["password"], socket_timeout=0.1, retry=Retry(NoBackoff(), 0)
    )
    with hasty, held(hasty):
        client.client_pause(400)
        client.pexpire(KEY, 30_000)  # answered once the pause is over
        wait(lambda: client.pttl(KEY) > 30_000)  # type: ignore[operator]


def test_a_holder_that_lost_the_lock_leaves_that_of_the_next_one_alone(client: redis.Redis) -> None:
    with held(client):
        client.set(KEY, "somebody else", px=3_600_000)
        time.sleep(0.3)
        assert client.pttl(KEY) > 60_000  # type: ignore[operator]
    assert client.get(KEY) == b"somebody else"
