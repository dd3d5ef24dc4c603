"""Replay of live events, for a deployment whose bundle does not contain them.

The rows of every user who ever had a live event are filled from ``history:{user}``, which outlives deployments: the
newest items, as the new bundle numbers them, then the bundle's own. A row that changes meanwhile is filled again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import redis

from ..dataset.entities import Numbers, int64
from ..dataset.schema import IdKind, Schema, Side
from . import events, features, history
from .connection import store_errors
from .forgotten import guarded
from .users import remove_all

BLOCK = 100  # users whose rows are filled together, and again if one of them has an event meanwhile


def replay(
    client: redis.Redis, generation: str, schema: Schema, numbers: Numbers, kinds: dict[Side, IdKind]
) -> Iterator[list[Any]]:
    """Fill the history column of the packed rows of all users with live events.

    A user whom the bundle does not know gets a row of zeros with the history in it.

    Args:
        client: a connected Redis.
        generation: generation whose rows are filled.
        schema: schema of its bundle.
        numbers: raw item ids -> entity numbers.
        kinds: kinds of the raw ids, ``Bundle.id_kinds``.

    Yields:
        raw ids of the users just done, as text or integers.

    Raises:
        StoreError: Redis fails.
    """
    if schema.history is None:
        return
    with store_errors(client):
        names = (name for name, _ in client.zscan_iter(events.USERS, count=1000))
        while block := list(islice(names, BLOCK)):
            users = [user for name in block if (user := _raw(name, kinds["user"])) is not None]
            if users:
                with guarded(client, users, lambda user: remove_all(client, user)):
                    while not _replay_users(client, generation, schema, numbers, kinds["item"], users):
                        pass
                    yield users


def _raw(name: bytes, kind: IdKind) -> int | str | None:
    """Raw id; None if the user cannot belong to this bundle."""
    return name.decode(errors="replace") if kind == "str" else int64(name)


def _replay_users(
    client: redis.Redis, generation: str, schema: Schema, numbers: Numbers, kind: IdKind, users: Sequence[int | str]
) -> bool:
    """Fill the rows of some users; returns False, with nothing written, if an event came in between."""
    column = schema.history
    assert column is not None
    with client.pipeline() as pipe:
        pipe.watch(*(key for user in users for key in (history.key(user), features.key(generation, "user", user))))
        with client.pipeline(transaction=False) as reader:
            features.read(reader, generation, "user", users)
            history.read_live(reader, users)
            packed, *answers = reader.execute()
        width = schema.widths("user")
        categorical, numeric, _ = features.unpack(packed, *width)
        for slots, items in zip(categorical[:, schema.slots(column)], history.parse(answers, kind), strict=True):
            item_numbers = numbers(items)
            item_numbers = item_numbers[(item_numbers > 0) & (item_numbers < (column.cardinality or 0))]
            recent = list(dict.fromkeys([*item_numbers.tolist(), *slots[slots > 0].tolist()]))[: column.width]
            slots[: len(recent)] = recent
        pipe.multi()
        for user, old, new in zip(users, packed, features.pack(categorical, numeric), strict=True):
            if new != old and (old is not None or any(new)):
                pipe.set(features.key(generation, "user", user), new)
        try:
            pipe.execute()
        except redis.WatchError:
            return False
    return True
