"""Forgetting a user: all data of one user is removed from Redis, and no running write restores it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import redis

from ..dataset.entities import int64
from . import events, features, forgotten, history, recommendations
from .connection import store_errors
from .generations import COUNTER

PIPELINE = 3000  # keys removed at a time


@dataclass(frozen=True)
class Forgotten:
    """Data removed of a user.

    Attributes:
        keys: number of keys removed: features, histories, counters, recommendations, Feast's.
        events: entries removed from the stream, pending or applied a moment ago.
        dead: entries removed from the dead letters.
    """

    keys: int
    events: int
    dead: int


def forget(client: redis.Redis, user: int | str) -> Forgotten:
    """Remove all data of a user from Redis, and keep running writes from restoring it.

    Each stream of events is rewritten in one step, which blocks Redis for some microseconds per entry.

    Args:
        client: a connected Redis, with the rights to deploy.
        user: raw id.

    Raises:
        StoreError: Redis fails; repeat it.
    """
    ms = forgotten.mark(client, user, events.newest(client))
    removed = remove_all(client, user)
    with store_errors(client):
        while 0 <= ms - _clock(client) < 1000:  # events accepted from now on count again
            pass
    return removed


def remove_all(client: redis.Redis, user: int | str) -> Forgotten:
    """Remove all data of a user from Redis.

    Raises:
        StoreError: Redis fails.
    """
    in_stream, dead = (events.remove_user(client, stream, user) for stream in (events.STREAM, events.DEAD))
    with store_errors(client):
        client.zrem(events.USERS, str(user))
        keys = 0
        names = _keys(client, str(user))
        while page := list(islice(names, PIPELINE)):
            keys += int(client.unlink(*page))
    return Forgotten(keys, in_stream, dead)


def _keys(client: redis.Redis, user: str) -> Iterator[str | bytes]:
    """Names of all keys that may hold a user's data, in every generation that ever existed."""
    yield from (history.key(user), *events.keys_of(user))
    last: Any = client.get(COUNTER)
    for generation in range(1, int(last or 0) + 1):
        name = f"{generation}"
        yield from (features.key(name, "user", user), history.deployed_key(name, user), recommendations.key(name, user))
    # Feast's: the number 1 of join keys, the type code 2 of text, the join key, then the value with type and length
    number = int64(user)
    values = [b"\x02\0\0\0" + _counted(user.encode())]
    if number is not None:
        values.append(b"\x04\0\0\0" + _counted(number.to_bytes(8, "little", signed=True)))
    for value in values:
        pattern = b"\x01\0\0\0\x02\0\0\0*" + _literal(value) + b"recsys_*"
        for row in client.scan_iter(pattern, count=1000):
            if client.hexists(row, "_ts:user_features"):  # an item may have the same id
                yield row


def _clock(client: redis.Redis) -> int:
    seconds, micros = client.time()
    return int(seconds) * 1000 + int(micros) // 1000


def _counted(value: bytes) -> bytes:
    return len(value).to_bytes(4, "little") + value


def _literal(value: bytes) -> bytes:
    """Pattern that matches only this value."""
    return b"".join(b"\\" + bytes([byte]) if byte in b"*?[]\\^-" else bytes([byte]) for byte in value)
