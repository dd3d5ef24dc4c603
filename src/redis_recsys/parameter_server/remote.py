"""Tables in Redis from outside of a server: updates are published, tables are read back.

For a trainer, or for people: it needs Redis alone, while servers have RocksDB to themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..config import Settings
from ..errors import ConfigError, DataError
from ..hugectr import sparse
from ..progress import progress
from .access import access_of
from .config import Config, read
from .layout import full_name
from .nodes import Nodes
from .server import checked
from .volatile import VolatileTier

BLOCK_ROWS = 10_000


class Remote:
    """The tables of a ``ps.json``, in Redis.

    Attributes:
        dims: dimension of every table, by ``model.table``.
    """

    def __init__(self, config: Config, nodes: Nodes) -> None:
        self._volatile = VolatileTier(config.volatile_db, nodes)
        self.dims = {
            f"{model.model}.{table}": dim
            for model in config.models
            for table, dim in zip(model.embedding_table_names, model.embedding_vecsize_per_table, strict=True)
        }

    @classmethod
    @contextmanager
    def open(cls, path: Path, settings: Settings) -> Iterator[Remote]:
        """The tables of a ``ps.json``, for as long as the block.

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
        """Change rows, or add some. When this returns they are in Redis, and within a second in every server's tiers.

        Args:
            table: ``model.table``.
            keys: int64[n]; of a repeated one the last row counts.
            rows: float32[n, dim].

        Raises:
            DataError: no such table, or rows of another shape or with values that are not finite.
            StoreError: Redis did not accept all of them; publishing again does no harm.
        """
        dim = self._dim(table)
        self._volatile.publish(_full(table), *checked(keys, rows, dim, table))

    def publish_folder(self, table: str, folder: Path) -> int:
        """Publish a folder with ``key`` and ``emb_vector``; returns the number of rows.

        Raises:
            DataError, StoreError: see :meth:`publish`; the folder is damaged.
        """
        model = sparse.SparseModel(folder, self._dim(table))
        with progress(f"publishing {table}", len(model)) as advance:
            for keys, rows in model.blocks(BLOCK_ROWS):
                self.publish(table, keys, rows)
                advance(len(keys))
        return len(model)

    def dump(self, table: str, folder: Path) -> int:
        """Write a table as Redis has it to a folder with ``key`` and ``emb_vector``; returns the number of rows.

        Raises:
            DataError: no such table, or the folder cannot be written.
            StoreError: a node does not answer, or a row has another size.
        """
        dim, full = self._dim(table), _full(table)
        written = 0

        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            nonlocal written
            with progress(f"reading {table}", self._volatile.count(full)) as advance:
                for keys, rows in self._volatile.scan(full, dim):
                    written += len(keys)
                    advance(len(keys))
                    yield keys, rows

        sparse.write(folder, blocks())
        return written

    def _dim(self, table: str) -> int:
        if table not in self.dims:
            raise DataError(f"there is no table {table!r}: the configuration has {', '.join(self.dims)}")
        return self.dims[table]


def _full(table: str) -> str:
    return full_name(*table.split(".", 1))
