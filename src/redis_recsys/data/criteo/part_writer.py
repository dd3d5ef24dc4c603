"""Streaming writer of the parts of a Criteo dataset (see ``dataset.py``); rows come in oldest first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import DataError
from .dataset import ORACLE, PARTS, PREPROCESSING, VERSION, schema

ROW_GROUP = 65_536


class PartWriter:
    """Writer of rows in time order: the oldest to ``train``, the next to ``valid``, the newest to ``test``.

    Attributes:
        rows: number of rows of each part.
    """

    def __init__(self, folder: Path, rows: int, valid: float, test: float, oracle: bool) -> None:
        """
        Args:
            folder: existing dataset folder.
            rows: total number of rows to come.
            valid, test: shares of the rows, the newest.
            oracle: whether there are true click probabilities.

        Raises:
            DataError: the shares are not shares, or leave a part without a row.
        """
        if min(valid, test) < 0 or valid + test >= 1:
            raise DataError(f"valid ({valid}) and test ({test}) must be shares of the rows that leave some to train")
        counts = round(rows * valid), round(rows * test)
        self.rows = dict(zip(PARTS, (rows - sum(counts), *counts), strict=True))
        for part, count in self.rows.items():
            if count < 1:
                raise DataError(f"{rows} rows leave none for {part}: give more rows or another share")
            (folder / part).mkdir()
        self._folder, self._schema = folder, schema(oracle)
        self._bounds = np.cumsum([0, *self.rows.values()]).tolist()
        self._written = self._files = 0

    def write(self, table: pa.Table) -> None:
        """Write the next rows, which have the columns of :func:`schema`."""
        table = table.select(self._schema.names).cast(self._schema)
        for part, start, end in zip(PARTS, self._bounds, self._bounds[1:], strict=False):
            low, high = max(start - self._written, 0), min(end - self._written, len(table))
            if low < high:
                path = self._folder / part / f"part-{self._files:05}.parquet"
                pq.write_table(table.slice(low, high - low), path, compression="snappy", row_group_size=ROW_GROUP)
        self._files += 1
        self._written += len(table)

    def finish(self, slot_sizes: list[int]) -> None:
        """Write ``criteo.json``."""
        document = {
            "version": VERSION,
            "slot_sizes": slot_sizes,
            "rows": self.rows,
            "dense": PREPROCESSING,
            "oracle": ORACLE in self._schema.names,
        }
        (self._folder / "criteo.json").write_text(json.dumps(document, indent=2) + "\n")
