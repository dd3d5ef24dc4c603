"""Features of users and items, one packed value per entity, as requests read them.

A packed value is the row of the schema: int32 categorical ids, then float32 numerics, little-endian. One ``MGET``
reads the features of many entities at once::

    features:{generation}:user:{<raw id>}
    features:{generation}:item:{<raw id>}

The braces around the raw id are part of the key: they keep everything about one user in one slot of a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import redis

from ..dataset.schema import Side
from ..errors import StoreError
from .connection import store_errors
from .generations import PIPELINE


def key(generation: str, side: Side, raw: int | str) -> str:
    """Key of the packed row of one user or item."""
    return f"features:{generation}:{side}:{{{raw}}}"


def pattern(generation: str) -> str:
    """Pattern of the keys of all packed rows of a generation."""
    return f"features:{generation}:*"


def pack(categorical: np.ndarray, numeric: np.ndarray) -> list[bytes]:
    """Pack int32[n, C], float32[n, F] into n rows of 4 (C + F) bytes."""
    slots = [np.ascontiguousarray(array, kind).view("<i4") for array, kind in ((categorical, "<i4"), (numeric, "<f4"))]
    rows = np.concatenate(slots, axis=1)
    data, width = rows.tobytes(), 4 * rows.shape[1]
    return [data[start : start + width] for start in range(0, len(data), width)]


def unpack(values: Sequence[bytes | None], categorical: int, numeric: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unpack rows, None for an unknown entity, to int32[n, C], float32[n, F], and bool[n], whether it is known.

    Args:
        values: n answers of Redis.
        categorical: C, int32 slots of a row.
        numeric: F, float32 slots of a row.

    Raises:
        StoreError: a value has another width.
    """
    width = 4 * (categorical + numeric)
    blank = bytes(width)
    data = b"".join([blank if value is None else value for value in values])
    if len(data) != width * len(values):
        raise StoreError(
            f"packed features in Redis do not have the {width} bytes of the schema: deploy again, and give two "
            "projects Redis servers of their own"
        )
    rows = np.frombuffer(data, "<i4").reshape(len(values), categorical + numeric)
    known = np.array([value is not None for value in values], bool)
    return rows[:, :categorical].copy(), rows[:, categorical:].copy().view("<f4"), known


def read(client: Any, generation: str, side: Side, raw_ids: Iterable[int | str]) -> Any:
    """Read packed rows in one ``MGET``: a client returns the answer, a pipeline queues the command.

    Raises:
        redis.RedisError: Redis fails; callers wrap it, together with their other reads.
    """
    return client.mget([key(generation, side, raw) for raw in raw_ids])


def write_many(
    client: redis.Redis, generation: str, side: Side, raw_ids: Iterable[int | str], packed: Iterable[bytes]
) -> None:
    """Store packed rows, a thousand ``SET`` at a time so that readers of a live Redis are not delayed.

    Raises:
        StoreError: Redis fails.
    """
    pairs = [(key(generation, side, raw), value) for raw, value in zip(raw_ids, packed, strict=True)]
    with store_errors(client), client.pipeline(transaction=False) as pipe:
        for start in range(0, len(pairs), PIPELINE):
            for name, value in pairs[start : start + PIPELINE]:
                pipe.execute_command("SET", name, value)
            pipe.execute()
