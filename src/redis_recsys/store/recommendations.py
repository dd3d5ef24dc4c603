"""Recommendations written ahead of time: one generation after another, switched in one command.

A run writes its recommendations as a new *generation*, which nobody reads until it is complete. Then the pointer
``recs:live`` moves to it and the keys of the old generation get a time to live, long enough for readers that still
hold the old pointer. A run that was cut off leaves the live generation as it was, and can be taken up again. What
generations of every kind have in common is in ``generations``.

::

    recs:live                  name of the live generation
    recs:generations           hash: generation -> writing | live | retiring
    recs:counter               number of generations so far; the next one is named by it
    recs:lock                  who writes at present
    recs:{generation}          hash: fingerprint of the input, users done, topk, type of the item ids
    recs:{generation}:{user}   {"items": [...], "scores": [...]}, best first; empty for who has had everything; with
                               "source": "popular" where nothing is known of the user
    recs:forgotten             who must not be written: see ``forgotten``
    popular:{generation}       sorted set: item -> popularity

Integer ids are written as decimal text. The users of a generation are all integers or all strings, so a key means
one user.
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
    """What one user is recommended, best first.

    Attributes:
        user: the id that was asked for.
        items: raw item ids.
        scores: of the items: of the ranker, between 0 and 1, for source ``model``, popularity for ``popular``.
        source: ``popular`` when the generation does not have this user, or nothing is known of the user.
        generation: that they were read from.
    """

    user: int | str
    items: list[int] | list[str]
    scores: list[float]
    source: Literal["model", "popular"]
    generation: str


def key(generation: str, user: int | str) -> str:
    """Where the recommendations of one user lie."""
    return f"recs:{generation}:{user}"


def get(client: redis.Redis, user: int | str) -> Recommendations:
    """The recommendations of one user, or the popular items for one who is not there; two round trips, or four.

    Raises:
        StoreError: nothing has been published yet, or Redis fails.
    """
    return get_many(client, [user])[0]


def get_many(client: redis.Redis, users: Sequence[int | str]) -> list[Recommendations]:
    """The recommendations of many users, in their order, all of the same generation.

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
                if client.get(LIVE) != live:  # switched in between: what is missing here may only have expired
                    continue
            return [
                Recommendations(user, items, counts, "popular", generation)
                if value is None
                else Recommendations(user, generation=generation, **{"source": "model", **orjson.loads(value)})
                for user, value in zip(users, values, strict=True)
            ]


def _popular(client: redis.Redis, generation: str) -> tuple[list[int] | list[str], list[float]]:
    """As many popular items as the users of the generation have recommendations, and their popularity."""
    topk, kind = client.hmget(f"recs:{generation}", ["topk", "items"])
    return popular_items.read(
        client, generation, None if topk is None else int(topk), "int" if kind == b"int" else "str"
    )


class RecommendationsWriter(GenerationWriter):
    """Writes one generation and makes it the live one.

    Attributes:
        done: users that are already in it, from the start of the list; more than 0 when an earlier run was cut off.

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

        One ``SET`` per user: a few large ``MSET`` would cost this process less, and hold up the readers of a live
        Redis for as long as each takes.

        Args:
            user_ids: raw ids, int64[n] or object[n] of str.
            items: raw ids, best first, int64[n, k] or object[n, k] of str.
            scores: float32[n, k].
            counts: int[n], how many of a row count; a user with 0 has an empty list.
            unknown: bool[n], users of whom nothing is known, so that their items are the popular ones; default: none.
            kept: bool[n], users to be written, the others are left out; default: all.

        Raises:
            StoreError: Redis fails or this run lost its lock; the generation can be taken up again. When Redis is
                out of memory the generation is removed, to make room for what is live.
        """
        unknown = np.zeros(len(user_ids), bool) if unknown is None else unknown
        kept = np.ones(len(user_ids), bool) if kept is None else kept
        for start in range(0, len(user_ids), PIPELINE):
            part = slice(start, start + PIPELINE)
            users = user_ids[part].tolist()
            values = encode(items[part], scores[part], counts[part], unknown[part])
            with self._room_made(), self._client.pipeline(transaction=False) as pipe:
                for user, value, wanted in zip(users, values, kept[part].tolist(), strict=True):
                    if wanted:
                        pipe.execute_command("SET", key(self.generation, user), value)
                pipe.get(LOCK)
                self._lock.check(pipe.execute()[-1])
                # Only now: an answer above may have been an error, and what is counted as done is never written again.
                self.done += len(users)
                self._client.hset(f"recs:{self.generation}", mapping={"done": self.done, "topk": items.shape[1]})

    def remove(self, user: int | str) -> None:
        """Remove what was written of a user.

        Raises:
            StoreError: Redis fails.
        """
        with store_errors(self._client):
            self._client.unlink(key(self.generation, user))

    def publish(self, items: np.ndarray, popularity: np.ndarray) -> None:
        """Add the popular items, switch readers to this generation, let the old one expire.

        Args:
            items: raw ids, int64[m] or object[m] of str.
            popularity: of each, number[m].

        Raises:
            StoreError: as for ``write``.
        """
        with self._room_made():
            popular_items.write(self._client, self.generation, items, popularity)
            kind = "int" if items.dtype.kind in "iu" else "str"
            self._client.hset(f"recs:{self.generation}", "items", kind)
        self.switch()


def encode(items: np.ndarray, scores: np.ndarray, counts: np.ndarray, unknown: np.ndarray) -> list[bytes]:
    """One JSON document per user."""
    rows = np.ascontiguousarray(items) if items.dtype.kind in "iu" else items.tolist()
    sources = [{"source": "popular"} if each else {} for each in unknown.tolist()]
    columns = rows, np.ascontiguousarray(scores, np.float32), counts.tolist(), sources
    return [
        orjson.dumps({"items": row[:n], "scores": row_scores[:n], **source}, option=orjson.OPT_SERIALIZE_NUMPY)
        for row, row_scores, n, source in zip(*columns, strict=True)
    ]
