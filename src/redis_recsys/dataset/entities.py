"""Users and items as tables: raw ids, packed features and labels, read from and written to parquet.

Entity *n* (counted from 1, most frequent first) is row *n - 1* of its table; entity 0 is "unknown". The parquet
file has the raw id in ``raw_id``, then one column per schema feature with encoded values, then the labels, so that
people and feature stores can read it too.

``item_values.parquet``, beside the items' table and in the same order, keeps what encoding loses: the raw values of
each categorical column, int64 or text, lists whole. Business rules are evaluated on these. Where earlier releases or
other tools wrote the data, the file or some of its columns may be missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from .schema import RAW_ID, Schema, Side

ITEM_VALUES = "item_values.parquet"  # in data sets and bundles: raw values of the items' categorical columns
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
ROW_GROUP = 65_536


@dataclass(frozen=True)
class Entities:
    """Consecutive entities of one side.

    Attributes:
        raw_ids: int64[n] or object[n] of str.
        categorical: int32[n, categorical_width].
        numeric: float32[n, numeric_width].
        labels: name -> list of n texts.
    """

    raw_ids: np.ndarray
    categorical: np.ndarray
    numeric: np.ndarray
    labels: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.raw_ids)

    @property
    def known(self) -> np.ndarray:
        """Mask bool[n] of the entities about which anything is known; see :func:`anything_known`."""
        return anything_known(self.categorical, self.numeric)

    def rows(self, which: np.ndarray | slice) -> Entities:
        """Some of the entities, without labels."""
        return Entities(self.raw_ids[which], self.categorical[which], self.numeric[which])

    @cached_property
    def number_of(self) -> Numbers:
        """Raw ids -> entity numbers, where these entities are a whole table."""
        return Numbers(self.raw_ids)


def anything_known(categorical: np.ndarray, numeric: np.ndarray) -> np.ndarray:
    """Whether packed rows int32[n, C], float32[n, F] hold anything: bool[n], False without id, history and features."""
    return np.asarray(categorical.any(axis=1) | numeric.any(axis=1))


def int64(text: str | bytes) -> int | None:
    """The integer that a raw id's text stands for; None if it is not a 64-bit integer as Redis writes it."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    return int(text) if INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63 else None


class Numbers:
    """Raw ids -> entity numbers.

    Example:
        >>> Numbers(np.array([30, 10, 20]))(np.array([10, 11]))
        array([2, 0], dtype=int32)
    """

    def __init__(self, raw_ids: np.ndarray) -> None:
        """Index ``raw_ids``, int64[n] or object[n] of str, in table order."""
        self._numbers: dict[str, int] | None = None
        if raw_ids.dtype == object:  # hashing text is quicker than comparing it
            self._numbers = dict(zip(raw_ids.tolist(), range(1, len(raw_ids) + 1), strict=True))
        else:
            self._order = np.argsort(raw_ids).astype(np.int32)
            self._sorted = raw_ids[self._order]

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Raw ids int64[...] or object[...] of str, of the table's own kind -> numbers int32[...]; 0 where unknown."""
        if self._numbers is not None:
            numbers = [self._numbers.get(raw_id, 0) for raw_id in raw.ravel().tolist()]
            return np.array(numbers, np.int32).reshape(raw.shape)
        if not len(self._sorted):
            return np.zeros(raw.shape, np.int32)
        position = np.minimum(np.searchsorted(self._sorted, raw), len(self._sorted) - 1)
        return np.where(self._sorted[position] == raw, self._order[position] + 1, 0).astype(np.int32)


def write_entities(path: Path, schema: Schema, side: Side, entities: Entities) -> None:
    """Write a table of entities as parquet in row groups that readers can stream."""
    names: list[str] = [RAW_ID]
    arrays: list[pa.Array] = [pa.array(entities.raw_ids)]
    start = 0
    for column in schema.categorical(side):
        slots = entities.categorical[:, start : start + column.width]
        start += column.width
        flat = pa.array(np.ascontiguousarray(slots).reshape(-1), type=pa.int32())
        names.append(column.name)
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, column.width) if column.max_length else flat)
    for position, column in enumerate(schema.numeric(side)):
        names.append(column.name)
        arrays.append(pa.array(np.ascontiguousarray(entities.numeric[:, position]), type=pa.float32()))
    for name, texts in entities.labels.items():
        names.append(name)
        arrays.append(pa.array(texts, type=pa.string()))
    pq.write_table(pa.table(arrays, names=names), path, row_group_size=ROW_GROUP)


def stream_entities(
    path: Path, schema: Schema, side: Side, labels: bool = False, block: int = ROW_GROUP
) -> Iterator[Entities]:
    """Entities of a parquet table, ``block`` rows at a time, in file order and bounded memory.

    Raises:
        DataError: the file is missing, truncated, or lacks a column of the schema.
    """
    categorical, numeric = schema.categorical(side), schema.numeric(side)
    texts = [c.name for c in schema.labels(side)] if labels else []
    columns = [RAW_ID, *(c.name for c in (*categorical, *numeric)), *texts]
    for batch in stream_parquet(path, columns, block):
        ids = np.empty((batch.num_rows, schema.categorical_width(side)), np.int32)
        start = 0
        for column in categorical:
            values = batch.column(column.name)
            if column.max_length:
                values = values.flatten()
            ids[:, start : start + column.width] = values.to_numpy(zero_copy_only=False).reshape(-1, column.width)
            start += column.width
        numbers = np.empty((batch.num_rows, len(numeric)), np.float32)
        for position, column in enumerate(numeric):
            numbers[:, position] = batch.column(column.name).to_numpy(zero_copy_only=False)
        yield Entities(
            batch.column(RAW_ID).to_numpy(zero_copy_only=False),
            ids,
            numbers,
            {name: batch.column(name).to_pylist() for name in texts},
        )


def read_entities(path: Path, schema: Schema, side: Side, labels: bool = False) -> Entities:
    """All entities of a parquet table at once."""
    blocks = list(stream_entities(path, schema, side, labels))
    if not blocks:
        return Entities(
            np.empty(0, np.int64),
            np.empty((0, schema.categorical_width(side)), np.int32),
            np.empty((0, len(schema.numeric(side))), np.float32),
        )
    return Entities(
        np.concatenate([b.raw_ids for b in blocks]),
        np.concatenate([b.categorical for b in blocks]),
        np.concatenate([b.numeric for b in blocks]),
        {name: [text for b in blocks for text in b.labels[name]] for name in blocks[0].labels},
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise errors of reading a parquet file as one clear line."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is not a readable parquet file (truncated?): {' '.join(str(error).split())}"
        ) from error


def count_rows(path: Path) -> int:
    """Number of rows of a parquet file, from its footer alone.

    Raises:
        DataError: the file is missing or truncated.
    """
    with _readable(path):
        return int(pq.read_metadata(path).num_rows)


def stream_parquet(path: Path, columns: list[str], block: int = ROW_GROUP) -> Iterator[pa.RecordBatch]:
    """Record batches of some columns of one parquet file, with clear errors.

    Raises:
        DataError: the file is missing, truncated, or lacks a column.
    """
    with _readable(path), pq.ParquetFile(path) as file:
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise DataError(f"{path} has no column {', '.join(missing)}: it has {', '.join(file.schema_arrow.names)}")
        yield from file.iter_batches(batch_size=block, columns=columns)
