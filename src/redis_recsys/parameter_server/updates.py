"""Online updates: what was published in Redis reaches the tiers of this process, in order and without loss.

Publishing writes a row into its hash and into the stream beside it in one transaction (``VolatileTier.publish``), so
Redis, which all servers share, is up to date at once. A follower reads the streams and brings each server's RocksDB and
cache up to date. How far it came is written into RocksDB together with the rows, so that a restart goes on there. If
the stream does not reach back that far any more, the follower reads the whole partition from Redis instead.
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
READ_ENTRIES = 64  # of a stream at a time
READ_SECONDS = 1.0  # for which a look at the streams is tried again
CLOSE_SECONDS = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FollowedTable:
    """A table whose updates are followed.

    Attributes:
        name, dim: of the table.
        cache: to bring up to date, if there is one.
        persistent: to bring up to date, unless the table's updates are not for it.
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
            tables: to follow.
            nodes, volatile: the Redis with the streams.
            partitions: of each table.
            period: seconds between looks at the streams.
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
        """Find the place to go on from, and begin to follow."""
        self._positions = self._first_positions()
        self._thread.start()

    def close(self) -> None:
        """Stop following. What was published and not applied yet is applied after the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)

    def catch_up(self) -> None:
        """Apply all that has been published until now.

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
                behind = [stream for stream, more in zip(behind, full, strict=True) if more]

    def skip_to_end(self, name: str) -> dict[str, bytes]:
        """Go on after what has been published so far of a table, which is loaded anew; returns the notes for RocksDB.

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
            self._try()

    def _try(self) -> None:
        """Apply what there is; what cannot be applied now is tried again the next time."""
        try:
            self.catch_up()
            self._complaint = ""
        except RecsysError as error:
            if f"{error}" != self._complaint:
                self._complaint = f"{error}"
                log.error("updates wait: %s", error)

    def _apply(self, stream: bytes, entries: list[tuple[bytes, list[bytes]]]) -> None:
        """Apply the entries of one stream, which begin with the one applied last."""
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
        parts = [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in entries]
        keys = np.concatenate([np.frombuffer(part[b"k"], "<i8") for part in parts])
        rows = np.concatenate([np.frombuffer(part[b"v"], "<f4").reshape(-1, table.dim) for part in parts])
        keys, places = newest(keys)
        self._write(table, keys, rows[places], {_note(stream): entries[-1][0]})
        self._positions[stream] = entries[-1][0]

    def _resync(self, stream: bytes, position: bytes) -> None:
        """Read a whole partition from Redis, since updates of it are gone from the stream."""
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
        """Where RocksDB says that it is; for a cache alone, which is still empty, the end."""
        positions = {}
        for stream, (table, _) in self._streams.items():
            noted = table.persistent.note(_note(stream)) if table.persistent is not None else None
            positions[stream] = noted or START
        missing = [stream for stream, (table, _) in self._streams.items() if table.persistent is None]
        positions.update(ends(self._nodes, missing))
        return positions


def ends(nodes: Nodes, streams: list[bytes]) -> dict[bytes, bytes]:
    """The id of the newest entry of each stream.

    Raises:
        StoreError: Redis does not answer.
    """
    commands = [Command.of(stream, ("XREVRANGE", stream, "+", "-", "COUNT", "1")) for stream in streams]
    answers = nodes.run(commands, READ_SECONDS)
    raise_for(answers, "cannot read updates")
    return {stream: answer[0][0] if answer else START for stream, answer in zip(streams, answers, strict=True)}


def _note(stream: bytes) -> str:
    return f"position:{stream.decode()}"
