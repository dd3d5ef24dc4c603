"""Access to tables in Redis from outside a server: publish updates, read tables back.

For trainers and people: it needs only Redis, since servers own their RocksDB exclusively.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..config import Settings
from ..errors import ConfigError, DataError, StoreError
from ..hugectr import sparse
from ..utils.progress import progress
from .access import access_of
from .nodes import Nodes
from .ps_json import Config, named, read
from .server import checked
from .tiers.redis_tier import LookupRequest, VolatileTier

BLOCK_ROWS = 10_000


class Remote:
    """Tables of a ``ps.json``, in Redis.

    Attributes:
        tables: the tables by ``model.table``.
    """

    def __init__(self, config: Config, nodes: Nodes) -> None:
        self._volatile = VolatileTier(config.volatile_db, nodes)
        self.tables = {table.name: table for table in config.tables}

    @classmethod
    @contextmanager
    def open(cls, path: Path, settings: Settings) -> Iterator[Remote]:
        """Open the tables of a ``ps.json`` during the block.

        Raises:
            ConfigError: the file is wrong, or disables Redis.
            StoreError: Redis cannot be reached.
        """
        config = read(path)
        if config.volatile_db.type == "disabled":
            raise ConfigError(f"{path} disables volatile_db: there is no Redis to publish to or to read from")
        nodes = Nodes(access_of(config.volatile_db, settings))
        try:
            yield cls(config, nodes)
        finally:
            nodes.close()

    def publish(self, table: str, keys: np.ndarray, rows: np.ndarray) -> None:
        """Change or add rows. When this returns they are in Redis, and within a second in every server's tiers.

        Args:
            table: ``model.table``.
            keys: int64[n]; the last row wins for repeated keys.
            rows: float32[n, dim].

        Raises:
            DataError: no such table, or rows have another shape or values that are not finite.
            StoreError: Redis did not accept all of them; publishing again does no harm.
        """
        changed = named(self.tables, table)
        self._volatile.publish(changed.full, *checked(keys, rows, changed.dim, table))

    def rows(self, table: str, keys: np.ndarray) -> np.ndarray:
        """Read the current rows from Redis.

        Args:
            table: ``model.table``.
            keys: int64[n], distinct.

        Returns:
            float32[n, dim].

        Raises:
            DataError: no such table, or Redis has no row for a key.
            StoreError: a node does not answer.
        """
        asked = named(self.tables, table)
        (result,) = self._volatile.fetch([LookupRequest(asked.full, asked.dim, keys)])
        if result.unreachable.any():
            raise StoreError(f"rows of {table} cannot be read: a node of Redis does not answer")
        if (result.row_of_key < 0).any():
            raise DataError(f"Redis has no row for key {keys[result.row_of_key < 0][0]} of {table}")
        return result.rows[result.row_of_key]

    @contextmanager
    def changed(self, table: str, keys: np.ndarray, rows: np.ndarray) -> Iterator[None]:
        """Publish rows during the block, then the previous ones again, also after an error.

        Args:
            table: ``model.table``.
            keys: int64[n], distinct; Redis has a row for each.
            rows: float32[n, dim].

        Raises:
            DataError, StoreError: see :meth:`rows` and :meth:`publish`.
        """
        before = self.rows(table, keys)
        try:
            self.publish(table, keys, rows)
            yield
        finally:
            self.publish(table, keys, before)

    def publish_folder(self, table: str, folder: Path) -> int:
        """Publish a folder with ``key`` and ``emb_vector``; returns the number of rows.

        Raises:
            DataError, StoreError: see :meth:`publish`; the folder is damaged.
        """
        model = sparse.SparseModel(folder, named(self.tables, table).dim)
        with progress(f"publishing {table}", len(model)) as advance:
            for keys, rows in model.blocks(BLOCK_ROWS):
                self.publish(table, keys, rows)
                advance(len(keys))
        return len(model)

    def dump(self, table: str, folder: Path) -> int:
        """Write a table from Redis to a folder with ``key`` and ``emb_vector``; returns the number of rows.

        Raises:
            DataError: no such table, or the folder cannot be written.
            StoreError: a node does not answer, or a row has another size.
        """
        read_back = named(self.tables, table)
        written = 0

        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            nonlocal written
            with progress(f"reading {table}", self._volatile.count(read_back.full)) as advance:
                for keys, rows in self._volatile.scan(read_back.full, read_back.dim):
                    written += len(keys)
                    advance(len(keys))
                    yield keys, rows

        sparse.write(folder, blocks())
        return written
