"""What each user has interacted with: what came with a deployment, and the live events, which outlive deployments.

::

    history:{generation}:{user}   string: int32 item numbers of that generation, newest first, little-endian; expires
                                  with it
    history:{user}                sorted set: raw item id -> time of the live event in epoch milliseconds, with the
                                  event's number among those that were accepted in that millisecond, in 4096ths

Both are capped. Live events are newer than all that came with a deployment, so whoever reads puts them first. A
deployment takes nothing over from the one before, so that a wrong one leaves nothing behind.

Earlier versions put what came with a deployment into ``history:{user}``, at the position in the user's history, counted
from 1. Their own generations are read with that; others without (``legacy``). :func:`remove_positions` clears it away
once no generation of theirs is left.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, islice, pairwise

import numpy as np
import orjson
import redis

from ..dataset.entities import int64
from .connection import store_errors

PIPELINE = 100_000  # items sent before answers are read
EARLIEST = 10**11  # ms, in 1973: no live event is older; below are positions that earlier versions put here


def key(user: int | str) -> str:
    """The key of one user's live events; the braces keep all of one user in one slot of a cluster."""
    return f"history:{{{user}}}"


def brought_key(generation: str, user: int | str) -> str:
    """The key of what came with a deployment for one user."""
    return f"history:{generation}:{{{user}}}"


def pattern(generation: str) -> str:
    """Matches the keys of all that came with a deployment."""
    return f"history:{generation}:*"


def read(pipe: redis.client.Pipeline, generation: str, users: Sequence[int | str], legacy: bool = False) -> None:
    """Queue one command for what came with the deployment, and one per user for live events.

    :func:`brought` takes the first answer, :func:`parse` the others.

    Args:
        pipe: a pipeline.
        generation: the generation.
        users: raw ids.
        legacy: whether an earlier version made the generation.
    """
    pipe.mget([brought_key(generation, user) for user in users])
    read_live(pipe, users, legacy)


def read_live(pipe: redis.client.Pipeline, users: Iterable[int | str], legacy: bool = False) -> None:
    """Queue one command per user; :func:`parse` takes the answers."""
    for user in users:
        pipe.execute_command("ZRANGE", key(user), "+inf", "-inf" if legacy else EARLIEST, "BYSCORE", "REV")


def brought(answers: Sequence[bytes | None]) -> list[np.ndarray]:
    """Item numbers int32[n] of each user, newest first, from the first answer to :func:`read`."""
    return [np.frombuffer(answer or b"", "<i4") for answer in answers]


def parse(answers: Sequence[Sequence[bytes]], item_kind: str) -> list[np.ndarray]:
    """Raw item ids of live events from the answers to :func:`read`, newest first.

    Args:
        answers: one per user; empty for a user without live events.
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
    client: redis.Redis, generation: str, users: Sequence[int | str], histories: Sequence[np.ndarray], cap: int
) -> None:
    """Store what came with a deployment.

    Args:
        client: a connected Redis.
        generation: the generation.
        users: n raw ids.
        histories: item numbers int32[m] of each user, oldest first; of an item that repeats the last counts.
        cap: newest items that are kept per user.

    Raises:
        StoreError: Redis fails.
    """
    with store_errors(client), client.pipeline(transaction=False) as pipe:
        queued = 0
        for user, items in zip(users, histories, strict=True):
            if not len(items):
                continue
            newest = list(dict.fromkeys(items[::-1].tolist()))[:cap]
            pipe.execute_command("SET", brought_key(generation, user), np.array(newest, "<i4").tobytes())
            queued += len(newest)
            if queued >= PIPELINE:
                pipe.execute()
                queued = 0
        pipe.execute()


def remove_positions(client: redis.Redis) -> None:
    """Remove what deployments of earlier versions left among the live events.

    Raises:
        StoreError: Redis fails; repeating it goes on.
    """
    with store_errors(client):
        names = client.scan_iter("history:{*", count=1000)
        while page := list(islice(names, 1000)):
            with client.pipeline(transaction=False) as pipe:
                for name in page:
                    pipe.zremrangebyscore(name, "-inf", f"({EARLIEST}")
                pipe.execute(raise_on_error=False)  # a key that holds something else stays
