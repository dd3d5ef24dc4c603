"""Forgotten users: hashes that identify them, and guards that keep them out of all writes.

::

    recs:forgotten   hash: SHA-256 of the raw id -> time of forgetting the user, epoch milliseconds; and, after a blank,
                     time of making the first bundle without the user

Every writer of users' data reads the marks before and after each block (:func:`guarded`): a user forgotten in between
is removed again. A user forgotten later is removed by ``users.forget``, which sets the mark before it searches. So
nothing is locked, and a deployment, a batch run and consumers may run meanwhile.

Bundles made before still hold the user's rows until a training without them. These rows are left out of every bundle
that is deployed or scored, until one without the user has been; then only out of bundles made before that one. So an
older bundle may be deployed again, and a user may come back later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import redis

from .connection import store_errors

KEY = "recs:forgotten"
FEW = 64  # users looked up without checking first whether anybody is forgotten
NOTHING = -2  # PTTL of a missing key

# Sets a time later than every event so far and than an earlier mark. KEYS: forgotten. ARGV: digest, newest event.
MARK = """
local now = redis.call('TIME')
local ms = math.max(now[1] * 1000 + math.floor(now[2] / 1000), tonumber(ARGV[2]))
local before = redis.call('HGET', KEYS[1], ARGV[1])
if before then ms = math.max(ms, tonumber(string.match(before, '^%d+')) + 1) end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', ms))
return ms
"""


def digest(user: int | str) -> bytes:
    """SHA-256 of a raw id, 32 bytes."""
    return hashlib.sha256(str(user).encode(errors="surrogatepass")).digest()


def marks(client: redis.Redis, users: Sequence[int | str]) -> list[bytes | None]:
    """Marks of users in ``recs:forgotten``; None for those never forgotten.

    Raises:
        StoreError: Redis fails.
    """
    if not users:
        return []
    with store_errors(client):
        if len(users) > FEW and client.pttl(KEY) == NOTHING:
            return [None] * len(users)
        answers: Any = client.hmget(KEY, [digest(user) for user in users])
    return list(answers)


def forgotten_at(mark: bytes | None) -> int:
    """Epoch milliseconds from a mark; 0 without one."""
    return int(mark.split()[0]) if mark is not None else 0


def left_out(mark: bytes | None, made: int) -> bool:
    """Whether a bundle's rows of a user must be left out.

    Args:
        mark: the user's mark, from :func:`marks`.
        made: time when the bundle was made, epoch milliseconds.
    """
    if mark is None:
        return False
    _, *without = map(int, mark.split())
    return not without or made <= without[0]


def mark(client: redis.Redis, user: int | str, newest: int) -> int:
    """Mark a user as forgotten; returns the time, epoch milliseconds.

    Args:
        client: a connected Redis.
        user: raw id.
        newest: time of acceptance of the newest event.

    Raises:
        StoreError: Redis fails.
    """
    with store_errors(client):
        return int(client.eval(MARK, 1, KEY, digest(user), newest))


@contextmanager
def guarded(
    client: redis.Redis, users: Sequence[int | str], remove: Callable[[int | str], object]
) -> Iterator[list[bytes | None]]:
    """Remove users again who are forgotten while the block writes their data.

    Args:
        client: a connected Redis.
        users: raw ids of users whose data the block may write.
        remove: removes the data that the block may have written of a user.

    Yields:
        the users' marks before the block.

    Raises:
        StoreError: Redis fails.
    """
    before = marks(client, users)
    try:
        yield before
    finally:
        for user, old, new in zip(users, before, marks(client, users), strict=True):
            if forgotten_at(new) != forgotten_at(old):
                remove(user)


class BundleUsers:
    """A bundle's users while they are written to Redis, without forgotten ones."""

    def __init__(self, client: redis.Redis, made: int, remove: Callable[[int | str], object]) -> None:
        """
        Args:
            client: a connected Redis.
            made: time when the bundle was made, epoch milliseconds.
            remove: function as in :func:`guarded`.
        """
        self._client, self._made, self._remove = client, made, remove
        self._held: set[bytes] = set()

    @contextmanager
    def block(self, raw_ids: np.ndarray) -> Iterator[np.ndarray]:
        """Guard the writing of some users; yields bool[n], whether each is to be written.

        Args:
            raw_ids: int64[n] or object[n] of str.

        Raises:
            StoreError: Redis fails.
        """
        users = raw_ids.tolist()
        with guarded(self._client, users, self._remove) as user_marks:
            self._held |= {digest(user) for user, mark in zip(users, user_marks, strict=True) if mark is not None}
            yield np.array([not left_out(mark, self._made) for mark in user_marks], bool)

    def live(self) -> None:
        """Note which forgotten users this bundle was trained without, once all blocks are written and live.

        Raises:
            StoreError: Redis fails.
        """
        with store_errors(self._client):
            stored: Any = self._client.hgetall(KEY)
            for name, value in stored.items():
                if b" " not in value and int(value) < self._made and name not in self._held:
                    self._client.hset(KEY, name, b"%s %d" % (value, self._made))
