"""One writer at a time: a lock in Redis that a thread renews and that expires when its holder dies.

Own code, since redis-py's ``Lock`` is not renewed while its holder lives, and does not say who holds it.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import redis

from ..errors import StoreError

LOCK_SECONDS = 10.0  # a holder that does not renew it for so long has lost it
RENEW_SECONDS = 2.0


class WriterLock:
    """A lock held from construction to ``release``.

    Attributes:
        owner: value that this holder wrote into the key; while the key has it, the lock is held.
    """

    def __init__(self, client: redis.Redis, key: str) -> None:
        """Take the lock. If its holder died, wait until it expires, at most ``LOCK_SECONDS``.

        Raises:
            StoreError: the holder is alive, which shows within ``RENEW_SECONDS`` when it renews the lock.
            redis.RedisError: Redis fails.
        """
        self._client, self._key = client, key
        self.owner = f"{socket.gethostname()} pid {os.getpid()} {secrets.token_hex(8)}".encode()
        self._acquire()
        self._released = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name=f"renews {key}", daemon=True)
        self._renewal.start()

    def _acquire(self) -> None:
        before = float("inf")
        while not self._client.set(self._key, self.owner, nx=True, px=int(LOCK_SECONDS * 1000)):
            holder: Any = self._client.get(self._key)
            remaining = self._client.pttl(self._key)
            if holder == self.owner:  # the answer to an earlier attempt was lost with its connection
                return
            if holder is not None and remaining > before:
                name = holder.decode(errors="replace").rpartition(" ")[0]
                raise StoreError(f"another run ({name}) is writing to this Redis: wait until it ends, or stop it")
            before = remaining
            time.sleep(0.1)

    def _renew(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            with suppress(redis.RedisError):  # the writer meets the same error and reports it
                if self._client.get(self._key) == self.owner:
                    self._client.pexpire(self._key, int(LOCK_SECONDS * 1000))

    def check(self, holder: bytes | None) -> None:
        """Compare the value just read from the lock's key with our own.

        Raises:
            StoreError: the lock expired while this process was delayed.
        """
        if holder != self.owner:
            raise StoreError(
                "this run was delayed so long that it lost its lock on Redis, and another may write now: run it again"
            )

    def release(self) -> None:
        """Release the lock; without effect if it is lost or Redis is gone."""
        self._released.set()
        self._renewal.join()

        def delete(pipe: redis.client.Pipeline) -> None:
            if pipe.get(self._key) == self.owner:
                pipe.multi()
                pipe.delete(self._key)

        with suppress(redis.RedisError):
            self._client.transaction(delete, self._key)
