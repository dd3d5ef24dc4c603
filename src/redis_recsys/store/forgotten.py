"""Users who are forgotten: who they are, as hashes, and how whoever writes users keeps them out.

::

    recs:forgotten   hash: SHA-256 of the raw id -> when the user was forgotten, in epoch milliseconds; and, after a
                     blank, when the first bundle without the user was made

Whoever writes something of users looks before and after each block (:func:`guarded`): a user forgotten in between is
removed again. One who is forgotten later is removed by ``users.forget``, which sets its mark before it looks. So
nothing is locked, and a deployment, a batch run and consumers may be at work meanwhile.

Bundles made before hold the user's rows until there is a training without them. They are left out of whatever is
deployed or scored: of every bundle, until one without the user has been; then of those that were made before that one.
So an older bundle may be deployed again, and a user who comes back later is welcome.
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
FEW = 64  # users that are looked up without asking first whether anybody is forgotten
NOTHING = -2  # PTTL of a key that is not there

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
    """What ``recs:forgotten`` says of each user; None of those never forgotten.

    Raises:
        StoreError: Redis fails.
    """
    if not users:
        return []
    with store_errors(client):
        if len(users) > FEW and client.pttl(KEY) == NOTHING:
            return [None] * len(users)
        found: Any = client.hmget(KEY, [digest(user) for user in users])
    return list(found)


def forgotten_at(mark: bytes | None) -> int:
    """Epoch milliseconds from a mark; 0 without one."""
    return int(mark.split()[0]) if mark is not None else 0


def left_out(mark: bytes | None, made: int) -> bool:
    """Whether a bundle's rows of a user are to be left out.

    Args:
        mark: from :func:`marks`.
        made: when the bundle was made, epoch milliseconds.
    """
    if mark is None:
        return False
    _, *without = map(int, mark.split())
    return not without or made <= without[0]


def mark(client: redis.Redis, user: int | str, newest: int) -> int:
    """Note that a user is forgotten, and return when: epoch milliseconds.

    Args:
        client: a connected Redis.
        user: raw id.
        newest: when the newest event was accepted.

    Raises:
        StoreError: Redis fails.
    """
    with store_errors(client):
        return int(client.eval(MARK, 1, KEY, digest(user), newest))


@contextmanager
def guarded(
    client: redis.Redis, users: Sequence[int | str], remove: Callable[[int | str], object]
) -> Iterator[list[bytes | None]]:
    """Remove users again who are forgotten while the block writes something of them.

    Args:
        client: a connected Redis.
        users: raw ids of those of whom the block may write something.
        remove: removes what the block may have written of one.

    Yields:
        the users' marks as they are before.

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
    """A bundle's users on their way into Redis, without those who are forgotten."""

    def __init__(self, client: redis.Redis, made: int, remove: Callable[[int | str], object]) -> None:
        """
        Args:
            client: a connected Redis.
            made: when the bundle was made, epoch milliseconds.
            remove: see :func:`guarded`.
        """
        self._client, self._made, self._remove = client, made, remove
        self._held: set[bytes] = set()

    @contextmanager
    def block(self, raw_ids: np.ndarray) -> Iterator[np.ndarray]:
        """Guard the writing of some users; yields bool[n], which of them are to be written.

        Args:
            raw_ids: int64[n] or object[n] of str.

        Raises:
            StoreError: Redis fails.
        """
        users = raw_ids.tolist()
        with guarded(self._client, users, self._remove) as found:
            self._held |= {digest(user) for user, each in zip(users, found, strict=True) if each is not None}
            yield np.array([not left_out(each, self._made) for each in found], bool)

    def live(self) -> None:
        """Note, once all blocks are written and live, which forgotten users this bundle was trained without.

        Raises:
            StoreError: Redis fails.
        """
        with store_errors(self._client):
            found: Any = self._client.hgetall(KEY)
            for name, each in found.items():
                if b" " not in each and int(each) < self._made and name not in self._held:
                    self._client.hset(KEY, name, b"%s %d" % (each, self._made))
