"""A Criteo dataset: clicks with 13 numbers and 26 categories each, encoded and split, as DLRM training reads them.

::

    criteo/
      criteo.json             version, slot sizes, rows of each part, formula of the dense features
      vocab/C1.parquet ...    columns ``raw``, ``id``; only where there were raw values
      train/ valid/ test/     parquet parts: label int8, I1..I13 float32, C1..C26 int64 [, click_probability float32]

Dense features are ``log(1 + max(x, 0))``, a missing one is 0. The categories are slots: the ids of each count from 0
up to its size, 0 means unknown, rare or missing, and the others follow by falling frequency. Ids of different slots
have nothing to do with each other; keys for one common table add the sizes of the preceding slots.

Reading is made for processes that train together: each reads a share of its own, a window at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import DataError

VERSION = 1
Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")
LABEL, ORACLE = "label", "click_probability"
OVERVIEW_ROWS = 65_536  # rows read at a time
DENSE = tuple(f"I{number}" for number in range(1, 14))
SLOTS = tuple(f"C{number}" for number in range(1, 27))
PREPROCESSING = "log(1 + max(x, 0)), missing 0"
WINDOW = 4  # row groups that are shuffled together


def schema(oracle: bool) -> pa.Schema:
    """Columns of a parquet part."""
    columns = [(LABEL, pa.int8()), *((name, pa.float32()) for name in DENSE), *((name, pa.int64()) for name in SLOTS)]
    return pa.schema([*columns, *([(ORACLE, pa.float32())] if oracle else [])])


@dataclass(frozen=True)
class CriteoRows:
    """Impressions.

    Attributes:
        label: float32[n], 1 for a click, 0 for none.
        dense: float32[n, 13].
        ids: int64[n, 26], numbered within each slot.
        click_probability: float32[n], the truth behind synthetic rows, or None.
    """

    label: np.ndarray
    dense: np.ndarray
    ids: np.ndarray
    click_probability: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, which: slice | np.ndarray) -> CriteoRows:
        oracle = None if self.click_probability is None else self.click_probability[which]
        return CriteoRows(self.label[which], self.dense[which], self.ids[which], oracle)

    @staticmethod
    def concatenate(blocks: list[CriteoRows]) -> CriteoRows:
        """All rows of all blocks."""
        oracles = [block.click_probability for block in blocks if block.click_probability is not None]
        return CriteoRows(
            np.concatenate([block.label for block in blocks]),
            np.concatenate([block.dense for block in blocks]),
            np.concatenate([block.ids for block in blocks]),
            np.concatenate(oracles) if oracles else None,
        )


@dataclass(frozen=True)
class _Stretch:
    """Rows from ``start`` to ``end`` of a row group of a file."""

    path: Path
    group: int
    start: int
    end: int


class CriteoDataset:
    """An opened dataset folder.

    Attributes:
        path: the folder.
        slot_sizes: numbers of ids of C1 to C26, id 0 included.
        has_oracle: whether the true click probabilities are known.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            DataError: the folder is missing or incomplete, or a file lacks a column or has it in another type.
        """
        self.path = Path(path)
        try:
            document: dict[str, Any] = json.loads((self.path / "criteo.json").read_text())
            version, rows = document["version"], document["rows"]
            self.slot_sizes = tuple(int(size) for size in document["slot_sizes"])
            self._counts = {part: int(rows[part]) for part in PARTS}
        except FileNotFoundError:
            raise DataError(
                f"no Criteo dataset at {self.path}: run 'recsys data criteo' or 'recsys data criteo-synthetic'"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path / 'criteo.json'} is damaged ({error!r}): make the dataset again") from error
        if version != VERSION:
            raise DataError(f"{self.path} is of version {version}, this code reads {VERSION}: make the dataset again")
        if len(self.slot_sizes) != len(SLOTS) or min(self.slot_sizes) < 1:
            raise DataError(f"{self.path / 'criteo.json'}: slot_sizes must be {len(SLOTS)} numbers of at least 1")
        self.has_oracle = bool(document.get("oracle"))
        self._groups = {part: list(self._stretches(part)) for part in PARTS}

    def count(self, part: Part) -> int:
        """Number of rows of a part."""
        return self._counts[part]

    def overview(self) -> list[dict[str, Any]]:
        """Size and class balance, one record per part, in the order of time.

        Returns:
            ``part``, ``rows``, ``first`` and ``last`` row (counted from 1 over all parts), ``clicks`` (share of rows
            with a click), and with an oracle ``probability``, the mean of the true click probabilities.

        Raises:
            DataError: a part is empty, or a file cannot be read.
        """
        records: list[dict[str, Any]] = []
        before = 0
        for part in PARTS:
            rows, sums = self.count(part), {"clicks": 0.0} | ({"probability": 0.0} if self.has_oracle else {})
            for batch in self.batches(part, OVERVIEW_ROWS):
                sums["clicks"] += float(batch.label.sum())
                if batch.click_probability is not None:
                    sums["probability"] += float(batch.click_probability.sum())
            record = {"part": part, "rows": rows, "first": before + 1, "last": before + rows}
            records.append(record | {name: total / rows for name, total in sums.items()})
            before += rows
        return records

    def _stretches(self, part: Part) -> Iterator[_Stretch]:
        """Every row group of a part; checks the files."""
        fields = schema(self.has_oracle)
        total = 0
        for path in sorted((self.path / part).glob("*.parquet")):
            try:
                file = pq.ParquetFile(path)
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{path} cannot be read (truncated?): {error}; make the dataset again") from error
            with file:
                for field in fields:
                    index = file.schema_arrow.get_field_index(field.name)
                    if index < 0:
                        raise DataError(f"{path} has no column {field.name!r}: make the dataset again")
                    if file.schema_arrow.field(index).type != field.type:
                        is_type = file.schema_arrow.field(index).type
                        raise DataError(f"{path}: column {field.name!r} is {is_type}, it must be {field.type}")
                for group in range(file.metadata.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    total += rows
                    yield _Stretch(path, group, 0, rows)
        if total != self.count(part):
            raise DataError(
                f"{self.path / part} has {total:,} rows, criteo.json says {self.count(part):,}: make the dataset again"
            )

    def steps(self, part: Part, batch: int, processes: int = 1) -> int:
        """Number of batches that :meth:`batches` gives, the same for every rank."""
        return -(-self.count(part) // (processes * batch))

    def batches(
        self, part: Part, batch: int, rank: int = 0, processes: int = 1, seed: tuple[int, int] | None = None
    ) -> Iterator[CriteoRows]:
        """One process's share of a part in batches; memory holds a window of a few hundred thousand rows.

        Every rank gets the same number of batches, so that none waits for ever for another. Without ``seed`` they
        come in stored order, hold every row of the part, and differ in size by one row at most. With it they are
        shuffled, up to ``processes - 1`` rows are left out, and the n-th batch has the same size on every rank.

        Args:
            part: train, valid or test.
            batch: largest number of rows per batch.
            rank: rank of this process, from 0.
            processes: number of processes, each of which reads its own share.
            seed: seed of the run, and number of the epoch.

        Raises:
            DataError: fewer rows than processes, a file cannot be read, or an id is not below its slot's size.
        """
        total = self.count(part)
        if total < processes:
            raise DataError(f"the {part} part of {self.path} has {total} rows, too few for {processes} processes")
        if seed is None:
            start, end = (total * r // processes for r in (rank, rank + 1))
        else:
            start, end = ((total // processes) * r for r in (rank, rank + 1))
        steps = self.steps(part, batch, processes)
        ends = [(end - start) * step // steps for step in range(1, steps + 1)]
        return _cut(self._windows(self._share(part, start, end), seed, rank), np.diff([0, *ends]).tolist())

    def _share(self, part: Part, start: int, end: int) -> list[_Stretch]:
        """Stretches that hold the rows from ``start`` to ``end`` of a part."""
        share, first = [], 0
        for group in self._groups[part]:
            low, high = max(start - first, 0), min(end - first, group.end)
            if low < high:
                share.append(_Stretch(group.path, group.group, low, high))
            first += group.end
        return share

    def _windows(self, share: list[_Stretch], seed: tuple[int, int] | None, rank: int) -> Iterator[CriteoRows]:
        random = None if seed is None else np.random.default_rng([*seed, rank])
        if random is not None:
            share = [share[position] for position in random.permutation(len(share))]
        for first in range(0, len(share), WINDOW):
            rows = CriteoRows.concatenate([self._read(stretch) for stretch in share[first : first + WINDOW]])
            yield rows if random is None else rows[random.permutation(len(rows))]

    def _read(self, stretch: _Stretch) -> CriteoRows:
        try:
            with pq.ParquetFile(stretch.path) as file:
                table = file.read_row_group(stretch.group, columns=schema(self.has_oracle).names)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{stretch.path} cannot be read: {error}; make the dataset again") from error
        table = table.slice(stretch.start, stretch.end - stretch.start)
        for name in table.column_names:
            if table[name].null_count:
                raise DataError(f"{stretch.path}: column {name!r} has missing values: make the dataset again")
        ids = np.stack([table[name].to_numpy() for name in SLOTS], axis=1)
        wrong = (ids.min(axis=0) < 0) | (ids.max(axis=0) >= self.slot_sizes)
        if wrong.any():
            slot = int(wrong.argmax())
            raise DataError(
                f"{stretch.path}: column {SLOTS[slot]!r} has ids outside 0 to {self.slot_sizes[slot] - 1}, "
                "which criteo.json says are all: make the dataset again"
            )
        return CriteoRows(
            table[LABEL].to_numpy().astype(np.float32),
            np.stack([table[name].to_numpy() for name in DENSE], axis=1),
            ids,
            table[ORACLE].to_numpy() if self.has_oracle else None,
        )


def _cut(windows: Iterator[CriteoRows], sizes: list[int]) -> Iterator[CriteoRows]:
    """The rows of all windows in batches of the given sizes."""
    held = next(windows)
    for size in sizes:
        while len(held) < size:
            held = CriteoRows.concatenate([held, next(windows)])
        yield held[:size]
        held = held[size:]
