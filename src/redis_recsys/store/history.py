"""What each user has interacted with: ``history:{user}``, a capped sorted set of raw item ids.

The score of an item is the time of the live event in epoch milliseconds, with the event's number among those that
were accepted in that millisecond, in 4096ths; or, for what came with a bundle, its position in the user's history,
counted from 1. Every time is above every position, so the newest come last.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
import orjson
import redis

from ..entities import int64
from .connection import store_errors

PIPELINE = 20_000  # items sent before answers are read


def key(user: int | str) -> str:
    """The key of one user's history; the braces keep all of one user in one slot of a cluster."""
    return f"history:{{{user}}}"


def read(pipe: redis.client.Pipeline, users: Iterable[int | str]) -> None:
    """Queue one command per user; :func:`parse` takes the answers."""
    for user in users:
        pipe.execute_command("ZREVRANGE", key(user), 0, -1)


def parse(answers: Sequence[Sequence[bytes]], item_kind: str) -> list[np.ndarray]:
    """Raw item ids from the answers to :func:`read`, newest first.

    Args:
        answers: one per user; empty for a user without a history.
        item_kind: ``int`` or ``str``, of the live generation's item ids.

    Returns:
        int64[n] or object[n] of str for each user; what is not an id of that kind is left out.
    """
    if item_kind != "int":
        return [_texts(answer) for answer in answers]
    members = list(chain.from_iterable(answers))
    try:
        # the array refuses what NumPy would convert: texts and fractions
        numbers = np.array(array("q", orjson.loads(b"[" + b",".join(members) + b"]")), np.int64)
        if len(numbers) == len(members):
            ends = list(accumulate(map(len, answers), initial=0))
            return [numbers[first:last] for first, last in pairwise(ends)]
    except (ValueError, OverflowError, TypeError):
        pass  # some member is no number: leave it out
    return [np.array([n for member in answer if (n := int64(member)) is not None], np.int64) for answer in answers]


def _texts(answer: Sequence[bytes]) -> np.ndarray:
    texts = np.empty(len(answer), object)
    texts[:] = [member.decode(errors="replace") for member in answer]
    return texts


def write_many(
    client: redis.Redis, users: Sequence[int | str], histories: Sequence[Sequence[Any] | np.ndarray], cap: int
) -> None:
    """Add what came with a bundle to the histories of users.

    An item keeps a higher score, so one from a live event stays as new as it was, and writing twice changes nothing.

    Args:
        users: n raw ids.
        histories: of each user the raw item ids, oldest first.
        cap: newest items that are kept per user.

    Raises:
        StoreError: Redis fails.
    """
    with store_errors(client), client.pipeline(transaction=False) as pipe:
        queued = 0
        for user, history in zip(users, histories, strict=True):
            items = history.tolist() if isinstance(history, np.ndarray) else history
            if not items:
                continue
            first = max(len(items) - cap, 0)
            scored = dict(zip(items[first:], range(first + 1, len(items) + 1), strict=True))
            pairs = chain.from_iterable((score, item) for item, score in scored.items())
            pipe.execute_command("ZADD", key(user), "GT", *pairs)
            pipe.execute_command("ZREMRANGEBYRANK", key(user), 0, -cap - 1)
            queued += len(scored)
            if queued >= PIPELINE:
                pipe.execute()
                queued = 0
        pipe.execute()
