"""The second tier: tables in Redis, in HPS's layout, read and written in batches per partition.

Reading never raises because of Redis: a row that Redis lacks, or cannot return in time, is a miss, and the next tier
is asked. Writing raises, so that nobody mistakes a failed update for a stored one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import redis

from ...errors import DataError, StoreError
from ..layout import (
    FIELD,
    KEY_BYTES,
    LOADED,
    ROWS,
    TIMES,
    UPDATES,
    arguments,
    as_bytes,
    check_row,
    hmget,
    partitions,
    redis_key,
)
from ..nodes import Command, Nodes
from ..ps_json import NO_LIMIT, VolatileDatabase

WRITE_SECONDS = 10.0  # limit for retries of a write while a node is away
WRITE_ROWS = 2_000  # per command: a megabyte at 128 dimensions
WRITE_BLOCKS = 8  # commands in flight together
SCAN_ROWS = 1_000
FEW_ROWS = 8  # checked per partition before a table is served
ENTRIES = 256  # minimum kept in a stream of updates; a follower that missed more reads the whole partition
ENTRY_ROWS = 256
LOOK_SECONDS = 60.0  # pause between checks of the partitions' sizes
NEVER = (-LOOK_SECONDS, False)
NEARLY = 0.5  # share of the margin from which times of use are noted
REPLICA_MILLISECONDS = 200  # wait for a replica before an update is published again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LookupRequest:
    """Request for rows of a table.

    Attributes:
        name, dim: name of the table and dimension of its rows.
        keys: int64[n], distinct.
    """

    name: str
    dim: int
    keys: np.ndarray


@dataclass
class LookupResult:
    """Result of a lookup.

    Attributes:
        rows: float32[m, dim], in any order.
        row_of_key: int64[n], position in ``rows`` of each key's row; -1: none.
        unreachable: bool[n], whether the node of each key did not answer.
        malformed: number of keys whose row has another size than the table's.
    """

    rows: np.ndarray
    row_of_key: np.ndarray
    unreachable: np.ndarray
    malformed: int = 0


def empty_result(request: LookupRequest) -> LookupResult:
    """Result of a lookup that finds nothing."""
    count = len(request.keys)
    return LookupResult(np.zeros((0, request.dim), np.float32), np.full(count, -1), np.zeros(count, np.bool_))


class VolatileTier:
    """Tables in one Redis or a cluster."""

    def __init__(self, config: VolatileDatabase, nodes: Nodes) -> None:
        self._config = config
        self._nodes = nodes
        self._complained: set[str] = set()
        self._fullness: dict[str, tuple[float, bool]] = {}  # time of the check, and whether a partition was nearly full

    @property
    def evicts_oldest(self) -> bool:
        """Whether the least recently used rows are evicted, so that times of use are kept."""
        return self._config.overflow_policy == "evict_oldest"

    def fetch(self, requests: Sequence[LookupRequest]) -> list[LookupResult]:
        """Read rows of one or more tables in one round trip."""
        commands: list[Command] = []
        asked: list[list[np.ndarray]] = []  # positions of each command's keys, by table
        for request in requests:
            order, ends = self._ordered(request.keys)
            fields, size = arguments(request.keys[order]), FIELD.itemsize
            asked.append([])
            for partition, (start, end) in enumerate(pairwise(ends)):
                key = redis_key(request.name, partition, ROWS)
                for first in range(start, end, self._config.max_get_batch_size):
                    last = min(end, first + self._config.max_get_batch_size)
                    commands.append(Command(key, hmget(key, fields[first * size : last * size])))
                    asked[-1].append(order[first:last])
        answers = iter(self._nodes.run(commands))
        results = []
        for request, places in zip(requests, asked, strict=True):
            own = list(islice(answers, len(places)))
            result = _unpack(own, places, request)
            results.append(result)
            if result.unreachable.any():
                error = next(answer for answer in own if isinstance(answer, Exception))
                self._complain(f"Redis cannot be asked for rows of {request.name}", error)
            if result.malformed:
                self._complain(f"Redis has rows of {request.name} that are not {request.dim} float32", "skipped")
        return results

    def insert(self, name: str, keys: np.ndarray, rows: np.ndarray, absent_only: bool = False) -> None:
        """Write rows, and evict some where a partition is too full.

        Args:
            name: name of the table.
            keys: int64[n], distinct.
            rows: float32[n, dim].
            absent_only: keep existing rows, and do not wait for a node that is away.

        Raises:
            StoreError: some could not be written: Redis is full, or a node stays away.
        """
        blocks = self._blocks(keys, WRITE_ROWS)
        for first in range(0, len(blocks), WRITE_BLOCKS):
            commands = []
            for partition, positions in blocks[first : first + WRITE_BLOCKS]:
                key = redis_key(name, partition, ROWS)
                written = self._writing(key, as_bytes(keys[positions]), as_bytes(rows[positions]), absent_only)
                commands.append(Command.of(key, *written))
            answers = self._nodes.run(commands, 0.0 if absent_only else WRITE_SECONDS)
            raise_for(answers, f"cannot write rows of {name}")
            for (partition, _), (*_, size) in zip(blocks[first : first + WRITE_BLOCKS], answers, strict=True):
                self._keep_margin(name, partition, size)

    def publish(self, name: str, keys: np.ndarray, rows: np.ndarray) -> None:
        """Write rows and append them to the streams of updates, both or neither per partition and block of rows.

        When this returns, a crash of a Redis server does not lose them: they are in its append-only file, if it keeps
        one, and in a replica, if there is one.

        Args:
            name: name of the table.
            keys: int64[n], distinct.
            rows: float32[n, dim].

        Raises:
            StoreError: some were not accepted: Redis is full, or a node stays away. Publishing again does no harm.
        """
        blocks = self._blocks(keys, ENTRY_ROWS)
        deadline = time.monotonic() + WRITE_SECONDS
        while blocks:
            hashes = [redis_key(name, partition, ROWS) for partition, _ in blocks]
            copies = [int(self._nodes.replicated(key)) for key in hashes]
            commands = [
                Command.of(
                    key,
                    ("MULTI",),
                    *self._writing(key, as_bytes(keys[positions]), as_bytes(rows[positions])),
                    _entry(key, keys[positions], rows[positions]),
                    ("EXEC",),
                    ("WAIT", str(count), str(REPLICA_MILLISECONDS)),
                )
                for key, count, (_, positions) in zip(hashes, copies, blocks, strict=True)
            ]
            answers = self._nodes.run(commands, WRITE_SECONDS)
            raise_for(answers, f"cannot publish updates of {name}")
            for (partition, _), (*_, done, _) in zip(blocks, answers, strict=True):
                raise_for(done, f"cannot publish updates of {name}")
                self._keep_margin(name, partition, done[-2])
            blocks = [block for block, answer, count in zip(blocks, answers, copies, strict=True) if answer[-1] < count]
            if blocks and time.monotonic() > deadline:
                raise StoreError(f"updates of {name} reached no replica within {WRITE_SECONDS:.0f} s: is one away?")

    def wants_touches(self, name: str) -> bool:
        """Whether times of use matter: a partition was nearly full at the last check, or the next check is due."""
        if not self.evicts_oldest or self._config.overflow_margin == NO_LIMIT:
            return False
        looked, full = self._fullness.get(name, NEVER)
        return full or time.monotonic() - looked >= LOOK_SECONDS

    def touch(self, name: str, keys: np.ndarray) -> None:
        """Note that rows were used just now, if a partition is nearly full.

        Raises:
            StoreError: a node does not answer.
        """
        looked, full = self._fullness.get(name, NEVER)
        if time.monotonic() - looked >= LOOK_SECONDS:
            full = max(self._sizes(name)) > NEARLY * self._config.overflow_margin
            self._fullness[name] = time.monotonic(), full
        if not full:
            return
        now = _now()
        commands = []
        for partition, where in self._by_partition(keys):
            key = redis_key(name, partition, TIMES)
            fields = as_bytes(keys[where])
            commands.append(Command.of(key, ("HSET", key, *_alternating(fields, [now] * len(fields)))))
        raise_for(self._nodes.run(commands), f"cannot note the use of rows of {name}")

    def evict(self, name: str, keys: np.ndarray | None = None) -> None:
        """Evict rows, or without keys the whole table.

        Raises:
            StoreError: some could not be removed.
        """
        if keys is None:
            commands = [self._unlinking(name, partition) for partition in range(self._config.num_partitions)]
            self._evict_beyond(name)
        else:
            commands = [
                self._removal(name, partition, as_bytes(keys[where])) for partition, where in self._by_partition(keys)
            ]
        raise_for(self._nodes.run(commands, WRITE_SECONDS), f"cannot remove rows of {name}")

    @staticmethod
    def _unlinking(name: str, partition: int) -> Command:
        rows = redis_key(name, partition, ROWS)
        return Command.of(rows, ("UNLINK", rows, rows[:-1] + TIMES))

    def _evict_beyond(self, name: str) -> None:
        """Remove the partitions left by a larger ``num_partitions``."""
        partition, removed = self._config.num_partitions, 1
        while removed:
            answers = self._nodes.run([self._unlinking(name, partition)], WRITE_SECONDS)
            raise_for(answers, f"cannot remove rows of {name}")
            partition, removed = partition + 1, answers[0]

    def count(self, name: str) -> int:
        """Number of rows of a table.

        Raises:
            StoreError: a node does not answer.
        """
        return sum(self._sizes(name))

    def _sizes(self, name: str) -> list[int]:
        """Number of rows of every partition."""
        keys = [redis_key(name, partition, ROWS) for partition in range(self._config.num_partitions)]
        answers = self._nodes.run([Command.of(key, ("HLEN", key)) for key in keys], WRITE_SECONDS)
        raise_for(answers, f"cannot count the rows of {name}")
        return answers

    def mark(self, name: str, value: str | None = None) -> str | None:
        """Note about a table; with a value, write it.

        Raises:
            StoreError: a node does not answer.
        """
        key = redis_key(name, 0, LOADED)
        command = Command.of(key, ("GET", key) if value is None else ("SET", key, value))
        answers = self._nodes.run([command], WRITE_SECONDS)
        raise_for(answers, f"cannot read or write what was loaded of {name}")
        return answers[0].decode() if value is None and answers[0] is not None else value

    def scan(self, name: str, dim: int, only: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Read all rows of a table, or of one partition: (keys int64[n], rows float32[n, dim]) block by block.

        A key may come twice while the table changes.

        Raises:
            StoreError: a node does not answer, or a row has another size.
        """
        for partition in range(self._config.num_partitions) if only is None else (only,):
            key, cursor = redis_key(name, partition, ROWS), b"0"
            while True:
                command = Command.of(key, ("HSCAN", key, cursor, "COUNT", str(SCAN_ROWS)))
                answers = self._nodes.run([command], WRITE_SECONDS)
                raise_for(answers, f"cannot read the rows of {name}")
                cursor, pairs = answers[0]
                if pairs:
                    yield _pairs(pairs, dim, key)
                if cursor == b"0":
                    break

    def check(self, name: str, dim: int) -> None:
        """Check a few rows of every partition: the table may have been filled with other settings.

        With 32-bit keys, or with another number of partitions, no row would ever be found. A node that does not
        answer is not waited for.

        Raises:
            DataError: keys or rows have another size than this table's, or a key lies in the wrong partition.
        """
        count = self._config.num_partitions
        keys = [redis_key(name, partition, ROWS) for partition in range(count + 1)]  # of twice as many, half would fit
        answers = self._nodes.run([Command.of(key, ("HSCAN", key, "0", "COUNT", str(FEW_ROWS))) for key in keys])
        for partition, answer in enumerate(answers):
            pairs = answer[1] if isinstance(answer, list) else []
            for field, value in zip(pairs[::2], pairs[1::2], strict=True):
                check_row(name, dim, field, value, "Redis")
            stored = np.frombuffer(b"".join(pairs[::2]), "<i8")
            astray = np.flatnonzero(partitions(stored, count) != partition)
            if len(astray):
                key = stored[astray[0]]
                raise DataError(
                    f"Redis has key {key} of {name} in partition {partition}, and with num_partitions {count} it "
                    f"belongs in {partitions(stored[astray[:1]], count)[0]}: set volatile_db.num_partitions to what "
                    "it was when Redis was filled, or fill it anew ('recsys dlrm load --again')"
                )

    def _keep_margin(self, name: str, partition: int, size: int) -> None:
        """Evict rows, the least recently used or random ones, where there are more than ``overflow_margin``."""
        if size <= self._config.overflow_margin:
            return
        rows, times = (redis_key(name, partition, suffix) for suffix in (ROWS, TIMES))
        reads = [Command.of(rows, ("HKEYS", rows))]
        if self.evicts_oldest:
            reads.append(Command.of(rows, ("HGETALL", times)))
        answers = self._nodes.run(reads, WRITE_SECONDS)
        raise_for(answers, f"cannot make room in {name}")
        fields = answers[0]
        if self.evicts_oldest:
            used = dict(zip(answers[1][::2], answers[1][1::2], strict=True))
            fields.sort(key=lambda field: int.from_bytes(used.get(field, b""), "little"))
        else:
            np.random.default_rng().shuffle(fields)
        surplus = size - int(self._config.overflow_margin * self._config.overflow_resolution_target)
        going = fields[:surplus]
        batches = [going[start : start + WRITE_ROWS] for start in range(0, len(going), WRITE_ROWS)]
        commands = [self._removal(name, partition, batch) for batch in batches]
        raise_for(self._nodes.run(commands, WRITE_SECONDS), f"cannot make room in {name}")

    def _ordered(self, keys: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Positions of the keys in the order of their partitions, the start of each partition in it, and the end."""
        count = self._config.num_partitions
        parts = partitions(keys, count)
        return np.argsort(parts, kind="stable"), [0, *np.bincount(parts, minlength=count).cumsum().tolist()]

    def _by_partition(self, keys: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(partition, positions of its keys) for every partition that has some."""
        order, ends = self._ordered(keys)
        for partition, (start, end) in enumerate(pairwise(ends)):
            if end > start:
                yield partition, order[start:end]

    def _blocks(self, keys: np.ndarray, size: int) -> list[tuple[int, np.ndarray]]:
        """``_by_partition`` with at most ``size`` positions at a time."""
        return [
            (partition, where[start : start + size])
            for partition, where in self._by_partition(keys)
            for start in range(0, len(where), size)
        ]

    def _writing(
        self, key: bytes, fields: list[bytes], values: list[bytes], absent_only: bool = False
    ) -> list[Sequence[str | bytes]]:
        """Commands that write rows and, if the policy needs them, times of use; the last one counts rows."""
        commands: list[Sequence[str | bytes]] = []
        if absent_only:
            commands += [("HSETNX", key, field, value) for field, value in zip(fields, values, strict=True)]
        else:
            commands.append(("HSET", key, *_alternating(fields, values)))
        if self.evicts_oldest:
            commands.append(("HSET", key[:-1] + TIMES, *_alternating(fields, [_now()] * len(fields))))
        return [*commands, ("HLEN", key)]

    def _removal(self, name: str, partition: int, fields: list[bytes]) -> Command:
        rows, times = (redis_key(name, partition, suffix) for suffix in (ROWS, TIMES))
        return Command.of(rows, ("HDEL", rows, *fields), ("HDEL", times, *fields))

    def _complain(self, what: str, why: object) -> None:
        """Log a problem once, until another one occurs."""
        line = f"{what}: {' '.join(f'{why}'.split())[-200:]}"
        if line not in self._complained:
            self._complained = {line}
            log.warning(line)


def raise_for(answers: Sequence[Any], what: str) -> None:
    """Raise StoreError for the first answer that is an error."""
    for answer in answers:
        if isinstance(answer, redis.RedisError):
            hint = ": raise its maxmemory" if isinstance(answer, redis.exceptions.OutOfMemoryError) else ""
            raise StoreError(f"{what}: Redis answered {' '.join(f'{answer}'.split())[-200:]}{hint}") from answer


def _unpack(answers: list[Any], places: list[np.ndarray], request: LookupRequest) -> LookupResult:
    """Unpack rows from answers.

    Args:
        answers: answers to HMGET commands; some may be errors.
        places: int64[k], positions of the keys of each.
        request: the request that they answer.
    """
    result, width = empty_result(request), 4 * request.dim
    values: list[bytes] = []
    for answer, where in zip(answers, places, strict=True):
        if isinstance(answer, Exception):
            result.unreachable[where] = True
            continue
        if not _all_of(width, answer):
            fits = np.array([value is not None and len(value) == width for value in answer])
            result.malformed += sum(value is not None for value in answer) - int(fits.sum())
            answer = [value for value, fit in zip(answer, fits, strict=True) if fit]
            where = where[fits]
        result.row_of_key[where] = np.arange(len(values), len(values) + len(answer))
        values += answer
    result.rows = np.frombuffer(b"".join(values), "<f4").reshape(len(values), request.dim)
    return result


def _all_of(width: int, values: list[bytes | None]) -> bool:
    """Whether all values are present and ``width`` bytes long."""
    try:
        return set(map(len, values)) == {width}  # type: ignore[arg-type]
    except TypeError:  # a None among them
        return False


def _pairs(pairs: list[bytes], dim: int, key: bytes) -> tuple[np.ndarray, np.ndarray]:
    fields, values = pairs[::2], pairs[1::2]
    if any(len(field) != KEY_BYTES for field in fields) or any(len(value) != 4 * dim for value in values):
        raise StoreError(f"{key.decode()} holds fields or rows of other sizes than 8 bytes and {dim} float32")
    return np.frombuffer(b"".join(fields), "<i8"), np.frombuffer(b"".join(values), "<f4").reshape(-1, dim)


def _now() -> bytes:
    return int(time.time()).to_bytes(8, "little")


def _entry(key: bytes, keys: np.ndarray, rows: np.ndarray) -> Sequence[str | bytes]:
    """Command that appends rows to the stream of updates and trims old entries."""
    fields = ("k", keys.astype("<i8").tobytes(), "v", rows.astype("<f4").tobytes())
    return ("XADD", key[:-1] + UPDATES, "MAXLEN", "~", str(ENTRIES), "*", *fields)


def _alternating(fields: list[bytes], values: list[bytes]) -> list[bytes]:
    pairs = [b""] * (2 * len(fields))
    pairs[::2], pairs[1::2] = fields, values
    return pairs
