"""Items each user has interacted with: those deployed with a bundle, and live events, which outlive deployments.

::

    history:{generation}:{user}   string: int32 item numbers of that generation, newest first, little-endian; expires
                                  with it
    history:{user}                sorted set: raw item id -> time of the live event in epoch milliseconds, with the
                                  event's number among those accepted in that millisecond, in 4096ths

Both are capped. Live events are newer than the deployed history, so readers put them first. A deployment takes nothing
over from the previous one, so that a wrong one leaves nothing behind.

Earlier versions put the deployed history into ``history:{user}``, with the position in the user's history, counted from
1, as score. Their own generations are read with these entries, others without (``legacy``). :func:`remove_positions`
removes them once no such generation is left.
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
EARLIEST = 10**11  # ms, in 1973: no live event is older; lower scores are positions from earlier versions


def key(user: int | str) -> str:
    """Key of one user's live events; the braces keep all of one user in one slot of a cluster."""
    return f"history:{{{user}}}"


def deployed_key(generation: str, user: int | str) -> str:
    """Key of one user's history in a deployment."""
    return f"history:{generation}:{{{user}}}"


def pattern(generation: str) -> str:
    """Pattern of the keys of all histories in a deployment."""
    return f"history:{generation}:*"


def read(pipe: redis.client.Pipeline, generation: str, users: Sequence[int | str], legacy: bool = False) -> None:
    """Queue one command for the deployed histories, and one per user for live events.

    :func:`item_numbers` takes the first answer, :func:`parse` the others.

    Args:
        pipe: a pipeline.
        generation: the generation.
        users: raw ids.
        legacy: whether an earlier version wrote the generation.
    """
    pipe.mget([deployed_key(generation, user) for user in users])
    read_live(pipe, users, legacy)


def read_live(pipe: redis.client.Pipeline, users: Iterable[int | str], legacy: bool = False) -> None:
    """Queue one command per user; :func:`parse` takes the answers."""
    for user in users:
        pipe.execute_command("ZRANGE", key(user), "+inf", "-inf" if legacy else EARLIEST, "BYSCORE", "REV")


def item_numbers(answers: Sequence[bytes | None]) -> list[np.ndarray]:
    """Item numbers int32[n] of each user, newest first, from the first answer to :func:`read`."""
    return [np.frombuffer(answer or b"", "<i4") for answer in answers]


def parse(answers: Sequence[Sequence[bytes]], item_kind: str) -> list[np.ndarray]:
    """Raw item ids of live events from the answers to :func:`read`, newest first.

    Args:
        answers: one per user; empty for a user without live events.
        item_kind: kind of the live generation's item ids, ``int`` or ``str``.

    Returns:
        int64[n] or object[n] of str for each user; members that are not ids of that kind are left out.
    """
    if item_kind != "int":
        return [_texts(answer) for answer in answers]
    members = list(chain.from_iterable(answers))
    try:
        # unlike NumPy, the array refuses texts and fractions instead of converting them
        numbers = np.array(array("q", orjson.loads(b"[" + b",".join(members) + b"]")), np.int64)
        if len(numbers) == len(members):
            ends = list(accumulate(map(len, answers), initial=0))
            return [numbers[first:last] for first, last in pairwise(ends)]
    except (ValueError, OverflowError, TypeError):
        pass  # a member is not a number: leave it out
    return [np.array([n for member in answer if (n := int64(member)) is not None], np.int64) for answer in answers]


def _texts(answer: Sequence[bytes]) -> np.ndarray:
    texts = np.empty(len(answer), object)
    texts[:] = [member.decode(errors="replace") for member in answer]
    return texts


def write_many(
    client: redis.Redis, generation: str, users: Sequence[int | str], histories: Sequence[np.ndarray], cap: int
) -> None:
    """Store the histories of a deployment.

    Args:
        client: a connected Redis.
        generation: the generation.
        users: n raw ids.
        histories: item numbers int32[m] of each user, oldest first; the last one wins for repeated items.
        cap: number of newest items kept per user.

    Raises:
        StoreError: Redis fails.
    """
    with store_errors(client), client.pipeline(transaction=False) as pipe:
        queued = 0
        for user, items in zip(users, histories, strict=True):
            if not len(items):
                continue
            newest = list(dict.fromkeys(items[::-1].tolist()))[:cap]
            pipe.execute_command("SET", deployed_key(generation, user), np.array(newest, "<i4").tobytes())
            queued += len(newest)
            if queued >= PIPELINE:
                pipe.execute()
                queued = 0
        pipe.execute()


def remove_positions(client: redis.Redis) -> None:
    """Remove entries that deployments of earlier versions left among the live events.

    Raises:
        StoreError: Redis fails; a repeated call continues.
    """
    with store_errors(client):
        names = client.scan_iter("history:{*", count=1000)
        while page := list(islice(names, 1000)):
            with client.pipeline(transaction=False) as pipe:
                for name in page:
                    pipe.zremrangebyscore(name, "-inf", f"({EARLIEST}")
                pipe.execute(raise_on_error=False)  # a key of another type stays
