"""Online updates: rows published in Redis reach the tiers of this process, in order and without loss.

Publishing writes a row into its hash and into the stream beside it in one transaction (``VolatileTier.publish``), so
Redis, which all servers share, is up to date at once. A follower reads the streams and updates each server's RocksDB
and cache. Its position is written into RocksDB together with the rows, so that a restart continues there. If the stream
no longer reaches back that far, the follower reads the whole partition from Redis instead.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import RecsysError
from .layout import UPDATES, newest, redis_key
from .nodes import Command, Nodes
from .tiers.host_cache import Cache
from .tiers.redis_tier import VolatileTier, raise_for
from .tiers.rocksdb_tier import PersistentTier

START = b"0-0"
READ_ENTRIES = 64  # entries read from a stream at a time
READ_SECONDS = 1.0  # limit for retries of a read of the streams
CLOSE_SECONDS = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FollowedTable:
    """A table whose updates are followed.

    Attributes:
        name, dim: name of the table and dimension of its rows.
        cache: cache to update, if there is one.
        persistent: RocksDB to update; None if it does not take the table's updates.
    """

    name: str
    dim: int
    cache: Cache | None
    persistent: PersistentTier | None


class UpdateFollower:
    """Applies published updates until it is closed.

    Attributes:
        applied: rows applied so far, by table.
    """

    def __init__(
        self, tables: list[FollowedTable], nodes: Nodes, volatile: VolatileTier, partitions: int, period: float
    ) -> None:
        """
        Args:
            tables: tables to follow.
            nodes, volatile: Redis with the streams.
            partitions: number of partitions of each table.
            period: seconds between reads of the streams.
        """
        self._nodes, self._volatile = nodes, volatile
        self._streams = {
            redis_key(table.name, partition, UPDATES): (table, partition)
            for table in tables
            for partition in range(partitions)
        }
        self._positions: dict[bytes, bytes] = {}
        self._period = period
        self._applying = threading.Lock()
        self._stop = threading.Event()
        self._complaint = ""
        self.applied = {table.name: 0 for table in tables}
        self._thread = threading.Thread(target=self._follow_until_stopped, name="follows updates", daemon=True)

    def start(self) -> None:
        """Find the position to continue from, and begin to follow."""
        self._positions = self._first_positions()
        self._thread.start()

    def close(self) -> None:
        """Stop following. Published updates not applied yet are applied after the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)

    def catch_up(self) -> None:
        """Apply all updates published so far.

        Raises:
            StoreError: Redis does not answer, or RocksDB cannot be written.
        """
        with self._applying:
            behind = list(self._streams)
            while behind:
                commands = [
                    Command.of(stream, ("XRANGE", stream, self._positions[stream], "+", "COUNT", f"{READ_ENTRIES}"))
                    for stream in behind
                ]
                answers = self._nodes.run(commands, READ_SECONDS)
                raise_for(answers, "cannot read updates")
                full = [len(answer) == READ_ENTRIES for answer in answers]
                for stream, answer in zip(behind, answers, strict=True):
                    self._apply(stream, answer)
                behind = [stream for stream, is_full in zip(behind, full, strict=True) if is_full]

    def skip_to_end(self, name: str) -> dict[str, bytes]:
        """Skip the updates published so far of a table that is about to be reloaded; returns the notes for RocksDB.

        Raises:
            StoreError: Redis does not answer.
        """
        with self._applying:
            positions = ends(
                self._nodes, [stream for stream, (table, _) in self._streams.items() if table.name == name]
            )
            self._positions |= positions
        return {_note(stream): position for stream, position in positions.items()}

    def _follow_until_stopped(self) -> None:
        while not self._stop.wait(self._period):
            self._catch_up_or_log()

    def _catch_up_or_log(self) -> None:
        """Apply new updates; those that cannot be applied now are retried the next time."""
        try:
            self.catch_up()
            self._complaint = ""
        except RecsysError as error:
            if f"{error}" != self._complaint:
                self._complaint = f"{error}"
                log.error("updates wait: %s", error)

    def _apply(self, stream: bytes, entries: list[tuple[bytes, list[bytes]]]) -> None:
        """Apply the entries of one stream, which begin with the last one applied."""
        table, _ = self._streams[stream]
        position = self._positions[stream]
        if position != START:
            if entries and entries[0][0] == position:
                entries = entries[1:]
            else:
                self._resync(stream, entries[-1][0] if entries else START)
                return
        if not entries:
            return
        updates = [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in entries]
        keys = np.concatenate([np.frombuffer(update[b"k"], "<i8") for update in updates])
        rows = np.concatenate([np.frombuffer(update[b"v"], "<f4").reshape(-1, table.dim) for update in updates])
        keys, places = newest(keys)
        self._write(table, keys, rows[places], {_note(stream): entries[-1][0]})
        self._positions[stream] = entries[-1][0]

    def _resync(self, stream: bytes, position: bytes) -> None:
        """Read a whole partition from Redis, since some of its updates are gone from the stream."""
        table, partition = self._streams[stream]
        log.warning("updates of %s, partition %s, were missed: reading all of its rows", table.name, partition)
        for keys, rows in self._volatile.scan(table.name, table.dim, partition):
            self._write(table, keys, rows, {})
        if table.persistent is not None:
            table.persistent.set_notes({_note(stream): position})
        self._positions[stream] = position

    def _write(self, table: FollowedTable, keys: np.ndarray, rows: np.ndarray, notes: Mapping[str, bytes]) -> None:
        if table.persistent is not None:
            table.persistent.insert(table.name, keys, rows, notes)
        if table.cache is not None:
            table.cache.update(keys, rows)
        self.applied[table.name] += len(keys)

    def _first_positions(self) -> dict[bytes, bytes]:
        """Positions noted in RocksDB; the end for a table with only a cache, which is still empty."""
        positions = {}
        for stream, (table, _) in self._streams.items():
            noted = table.persistent.note(_note(stream)) if table.persistent is not None else None
            positions[stream] = noted or START
        missing = [stream for stream, (table, _) in self._streams.items() if table.persistent is None]
        positions.update(ends(self._nodes, missing))
        return positions


def ends(nodes: Nodes, streams: list[bytes]) -> dict[bytes, bytes]:
    """Id of the newest entry of each stream.

    Raises:
        StoreError: Redis does not answer.
    """
    commands = [Command.of(stream, ("XREVRANGE", stream, "+", "-", "COUNT", "1")) for stream in streams]
    answers = nodes.run(commands, READ_SECONDS)
    raise_for(answers, "cannot read updates")
    return {stream: answer[0][0] if answer else START for stream, answer in zip(streams, answers, strict=True)}


def _note(stream: bytes) -> str:
    return f"position:{stream.decode()}"
