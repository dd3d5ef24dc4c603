"""Life of a generation: written unseen by one writer at a time, made live by one command, expired afterwards.

The keys below belong to every kind of generation (precomputed recommendations, deployments). ``{prefix}`` is the
kind's::

    {prefix}:live           name of the live generation
    {prefix}:generations    hash: generation -> writing | live | retiring
    {prefix}:lock           owner of the running write
    {prefix}:{generation}   hash: fingerprint of the generation's input, and fields of its kind
    recs:counter            number of generations of all kinds so far; names the next one

One counter names the generations of all kinds, so that keys with a generation in them never clash.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import redis

from ..errors import StoreError
from .connection import store_errors
from .lock import WriterLock

COUNTER = "recs:counter"
PIPELINE = 1000  # commands sent before their answers are read

Writer = TypeVar("Writer", bound="GenerationWriter")


class GenerationWriter(ABC):
    """The only writer of a generation that is not live yet.

    Attributes:
        prefix: prefix of the kind's keys.
        resumes: whether an unfinished generation with the same fingerprint is resumed.
        generation: its name.
        switched: whether it is live.
    """

    prefix: ClassVar[str]
    resumes: ClassVar[bool]

    def __init__(self, client: redis.Redis, lock: WriterLock, grace: int) -> None:
        self._client, self._lock, self._grace = client, lock, grace
        self.generation = ""
        self.switched = False

    @staticmethod
    @abstractmethod
    def keys(generation: str) -> tuple[list[str], list[str | bytes]]:
        """Keys of a generation: names, and patterns where there are many."""

    @classmethod
    def begin(cls: type[Writer], client: redis.Redis, fingerprint: str, grace: int) -> Writer:
        """Become the only writer, tidy up after earlier runs, and resume or start a generation.

        Args:
            client: a connected Redis.
            fingerprint: fingerprint of everything the generation depends on. An unfinished generation with the same
                one is resumed where it stopped, if its kind can be; others are removed.
            grace: seconds for which a replaced generation stays readable.

        Raises:
            StoreError: another run is writing, or Redis fails.
        """
        with store_errors(client):
            writer = cls(client, WriterLock(client, f"{cls.prefix}:lock"), grace)
            try:
                writer._take_up(fingerprint)
            except BaseException:
                writer.close()
                raise
        return writer

    def _take_up(self, fingerprint: str) -> None:
        states: Any = self._client.hgetall(f"{self.prefix}:generations")
        for name, state in states.items():
            generation = name.decode()
            if state == b"retiring":
                self._retire(generation)
            elif state == b"writing":
                written = self._client.hmget(f"{self.prefix}:{generation}", ["fingerprint"])
                if self.resumes and written == [fingerprint.encode()]:
                    self.generation = generation
                else:
                    self._discard(generation)
        if not self.generation:
            self.generation = str(self._client.incr(COUNTER))
            with self._client.pipeline() as pipe:
                pipe.hset(f"{self.prefix}:{self.generation}", "fingerprint", fingerprint)
                pipe.hset(f"{self.prefix}:generations", self.generation, "writing")
                pipe.execute()

    def check(self) -> None:
        """Make sure that this is still the only writer.

        Raises:
            StoreError: it lost its lock, or Redis fails.
        """
        with store_errors(self._client):
            holder: Any = self._client.get(f"{self.prefix}:lock")
        self._lock.check(holder)

    def switch(self) -> None:
        """Make this generation live, and let the replaced one expire.

        Raises:
            StoreError: Redis fails, or this run lost its lock.
        """
        with self._room_made():
            old: Any = self._client.transaction(self.queue_switch, f"{self.prefix}:lock", value_from_callable=True)
        self.switched = True
        if old is not None:
            with store_errors(self._client):
                self._retire(old.decode())

    def queue_switch(self, pipe: redis.client.Pipeline) -> Any:
        """Queue the switch, which takes effect only if the lock stays ours; returns the previously live generation."""
        holder: Any = pipe.get(f"{self.prefix}:lock")
        self._lock.check(holder)
        old = pipe.get(f"{self.prefix}:live")
        if old == self.generation.encode():  # the answer to an earlier attempt was lost with its connection
            old = None
        pipe.multi()
        pipe.set(f"{self.prefix}:live", self.generation)
        pipe.hset(f"{self.prefix}:generations", self.generation, "live")
        if old is not None:
            pipe.hset(f"{self.prefix}:generations", old, "retiring")
        return old

    def close(self) -> None:
        """Stop writing; a generation that is not live stays unseen, for the next run to resume or to remove."""
        self._lock.release()

    def __enter__(self: Writer) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _room_made(self) -> Iterator[None]:
        """Remove this generation when Redis is out of memory, so that the live data can be written again."""
        try:
            with store_errors(self._client):
                yield
        except StoreError as error:
            if isinstance(error.__cause__, redis.exceptions.OutOfMemoryError):
                with store_errors(self._client):
                    self._discard(self.generation)
            raise

    def _retire(self, generation: str) -> None:
        """Give every key of a generation a time to live, unless it has one from an interrupted retirement."""
        for keys in self._pages(generation):
            with self._client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.execute_command("EXPIRE", key, self._grace, "NX")
                pipe.execute()
        self._client.hdel(f"{self.prefix}:generations", generation)

    def _discard(self, generation: str) -> None:
        """Remove a generation. Its fingerprint goes first, so that a partly removed one is never resumed."""
        self._client.unlink(f"{self.prefix}:{generation}")
        for keys in self._pages(generation):
            self._client.unlink(*keys)
        self._client.hdel(f"{self.prefix}:generations", generation)

    def _pages(self, generation: str) -> Iterator[list[Any]]:
        """All keys of a generation, in lists of bounded length."""
        names, patterns = self.keys(generation)
        yield list(names)
        for pattern in patterns:
            cursor = -1
            while cursor != 0:
                cursor, keys = self._client.scan(max(cursor, 0), match=pattern, count=PIPELINE)
                if keys:
                    yield keys
