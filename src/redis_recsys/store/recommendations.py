"""Precomputed recommendations: one generation after another, switched by one command.

A run writes its recommendations as a new *generation*, which nobody reads until it is complete. Then the pointer
``recs:live`` moves to it and the keys of the old generation get a time to live, long enough for readers that still
hold the old pointer. An interrupted run leaves the live generation unchanged, and can be resumed. ``generations`` has
the parts common to all kinds of generations.

::

    recs:live                  name of the live generation
    recs:generations           hash: generation -> writing | live | retiring
    recs:counter               number of generations so far; names the next one
    recs:lock                  owner of the running write
    recs:{generation}          hash: fingerprint of the input, users done, topk, type of the item ids
    recs:{generation}:{user}   {"items": [...], "scores": [...]}, best first; empty for users who have seen everything;
                               with "source": "popular" for unknown users
    recs:forgotten             users who must not be written: see ``forgotten``
    popular:{generation}       sorted set: item -> popularity

Integer ids are written as decimal text. The users of a generation are all integers or all strings, so a key belongs
to one user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson
import redis

from ..errors import StoreError
from . import popular_items
from .connection import store_errors
from .generations import PIPELINE, GenerationWriter
from .lock import WriterLock

LIVE, LOCK = "recs:live", "recs:lock"


@dataclass(frozen=True)
class Recommendations:
    """Items recommended to one user, best first.

    Attributes:
        user: the requested id.
        items: raw item ids.
        scores: scores of the items: the ranker's, between 0 and 1, for source ``model``, popularity for ``popular``.
        source: ``popular`` if the generation lacks this user, or the user is unknown.
        generation: generation they were read from.
    """

    user: int | str
    items: list[int] | list[str]
    scores: list[float]
    source: Literal["model", "popular"]
    generation: str


def key(generation: str, user: int | str) -> str:
    """Key of the recommendations of one user."""
    return f"recs:{generation}:{user}"


def get(client: redis.Redis, user: int | str) -> Recommendations:
    """Read the recommendations of one user, or the popular items if there are none; two round trips, or four.

    Raises:
        StoreError: nothing has been published yet, or Redis fails.
    """
    return get_many(client, [user])[0]


def get_many(client: redis.Redis, users: Sequence[int | str]) -> list[Recommendations]:
    """Read the recommendations of many users, in their order, all of the same generation.

    Raises:
        StoreError: nothing has been published yet, or Redis fails.
    """
    with store_errors(client):
        while True:
            live: Any = client.get(LIVE)
            if live is None:
                raise StoreError("this Redis holds no recommendations yet: write some with 'recsys batch'")
            generation = live.decode()
            values: list[Any] = []
            for start in range(0, len(users), PIPELINE):
                values += client.mget([key(generation, user) for user in users[start : start + PIPELINE]])
            items: list[int] | list[str] = []
            counts: list[float] = []
            if None in values:
                items, counts = _popular(client, generation)
                if client.get(LIVE) != live:  # switched in between: the missing keys may only have expired
                    continue
            return [
                Recommendations(user, items, counts, "popular", generation)
                if value is None
                else Recommendations(user, generation=generation, **{"source": "model", **orjson.loads(value)})
                for user, value in zip(users, values, strict=True)
            ]


def _popular(client: redis.Redis, generation: str) -> tuple[list[int] | list[str], list[float]]:
    """Popular items, as many as the generation's users have recommendations, and their popularity."""
    topk, kind = client.hmget(f"recs:{generation}", ["topk", "items"])
    return popular_items.read(
        client, generation, None if topk is None else int(topk), "int" if kind == b"int" else "str"
    )


class RecommendationsWriter(GenerationWriter):
    """Writes one generation and makes it live.

    Attributes:
        done: number of users already in it, from the start of the list; above 0 after an interrupted run.

    Example:
        >>> with RecommendationsWriter.begin(client, "bundle 4f2a, topk 20", grace=3600) as writer:  # doctest: +SKIP
        ...     for block in blocks[writer.done:]:
        ...         writer.write(*block)
        ...     writer.publish(popular_items, popularity)
    """

    prefix, resumes = "recs", True

    def __init__(self, client: redis.Redis, lock: WriterLock, grace: int) -> None:
        super().__init__(client, lock, grace)
        self.done = 0

    @staticmethod
    def keys(generation: str) -> tuple[list[str], list[str | bytes]]:
        return [f"recs:{generation}", popular_items.key(generation)], [f"recs:{generation}:*"]

    def _take_up(self, fingerprint: str) -> None:
        super()._take_up(fingerprint)
        (done,) = self._client.hmget(f"recs:{self.generation}", ["done"])
        self.done = int(done or 0)

    def write(
        self,
        user_ids: np.ndarray,
        items: np.ndarray,
        scores: np.ndarray,
        counts: np.ndarray,
        unknown: np.ndarray | None = None,
        kept: np.ndarray | None = None,
    ) -> None:
        """Add the next users.

        One ``SET`` per user: a few large ``MSET`` would cost this process less, but each would block the readers of a
        live Redis.

        Args:
            user_ids: raw ids, int64[n] or object[n] of str.
            items: raw ids, best first, int64[n, k] or object[n, k] of str.
            scores: float32[n, k].
            counts: int[n], number of valid items in each row; a user with 0 gets an empty list.
            unknown: bool[n], unknown users, whose items are the popular ones; default: none.
            kept: bool[n], users to write, the others are left out; default: all.

        Raises:
            StoreError: Redis fails or this run lost its lock; the generation can be resumed. When Redis is
                out of memory the generation is removed, to make room for the live data.
        """
        unknown = np.zeros(len(user_ids), bool) if unknown is None else unknown
        kept = np.ones(len(user_ids), bool) if kept is None else kept
        for start in range(0, len(user_ids), PIPELINE):
            block = slice(start, start + PIPELINE)
            users = user_ids[block].tolist()
            values = encode(items[block], scores[block], counts[block], unknown[block])
            with self._room_made(), self._client.pipeline(transaction=False) as pipe:
                for user, value, keep in zip(users, values, kept[block].tolist(), strict=True):
                    if keep:
                        pipe.execute_command("SET", key(self.generation, user), value)
                pipe.get(LOCK)
                self._lock.check(pipe.execute()[-1])
                # Only now: an answer above may have been an error, and users counted as done are never written again.
                self.done += len(users)
                self._client.hset(f"recs:{self.generation}", mapping={"done": self.done, "topk": items.shape[1]})

    def remove(self, user: int | str) -> None:
        """Remove a user's recommendations.

        Raises:
            StoreError: Redis fails.
        """
        with store_errors(self._client):
            self._client.unlink(key(self.generation, user))

    def publish(self, items: np.ndarray, popularity: np.ndarray) -> None:
        """Add the popular items, switch readers to this generation, and let the old one expire.

        Args:
            items: raw ids, int64[m] or object[m] of str.
            popularity: popularity of each, number[m].

        Raises:
            StoreError: see ``write``.
        """
        with self._room_made():
            popular_items.write(self._client, self.generation, items, popularity)
            kind = "int" if items.dtype.kind in "iu" else "str"
            self._client.hset(f"recs:{self.generation}", "items", kind)
        self.switch()


def encode(items: np.ndarray, scores: np.ndarray, counts: np.ndarray, unknown: np.ndarray) -> list[bytes]:
    """Encode one JSON document per user."""
    rows = np.ascontiguousarray(items) if items.dtype.kind in "iu" else items.tolist()
    sources = [{"source": "popular"} if is_unknown else {} for is_unknown in unknown.tolist()]
    columns = rows, np.ascontiguousarray(scores, np.float32), counts.tolist(), sources
    return [
        orjson.dumps({"items": row[:n], "scores": row_scores[:n], **source}, option=orjson.OPT_SERIALIZE_NUMPY)
        for row, row_scores, n, source in zip(*columns, strict=True)
    ]
