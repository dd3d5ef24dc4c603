"""A dataset's parts as Merlin reads them: flat rows of raw values, user and item features in every row."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import numpy as np
import polars as pl

from ...dataset import Dataset, Part, Rows
from ...entities import Entities
from ...history import History
from ...schema import Column, Schema, Side
from ..negatives import with_negatives
from .graph import SIDES
from .job import Feature

LONGEST_NAME = 220  # NVTabular names a file after all columns that share a vocabulary
CHOOSING: dict[str, tuple[Part, ...]] = {"train": ("train",), "valid": ("valid",)}  # the number of epochs
TARGET = "click"  # of data that has no target column


def features(schema: Schema) -> list[Feature]:
    """The columns that the models see, for the worker."""
    return [
        Feature(column.name, column.side, column.kind == "numeric", names(column))
        for side in SIDES
        for column in schema.features(side)
    ]


def names(column: Column) -> list[str]:
    """The columns of the rows that a column of the schema becomes; of a long list, as many as NVTabular can name."""
    if column.max_length is None:
        return [column.name]
    every = [f"{column.name}_{place}" for place in range(1, column.max_length + 1)]
    lengths = np.cumsum([len(name) + 1 for name in every])
    return every[: max(1, int((lengths <= LONGEST_NAME).sum()))]


def target_name(schema: Schema) -> str:
    """The click column's name."""
    return schema.target.name if schema.target else TARGET


def write_rows(
    dataset: Dataset, folder: Path, negatives: int, seed: int, files: dict[str, tuple[Part, ...]] = CHOOSING
) -> None:
    """Write the rows as parquet files.

    Values are raw where they have an id in the dataset, null where not, so that NVTabular numbers exactly these.
    Numerics are standardised already. The history column holds what each user did before the row, in any of the files.

    Args:
        dataset: to take the rows from.
        folder: an existing one.
        negatives: drawn per positive where the data has no target column.
        seed: of the drawing.
        files: parts of the dataset by name of the file, ``train`` for ``train.parquet``.
    """
    written = {name: dataset.rows(*parts) for name, parts in files.items()}
    everything = reduce(Rows.__add__, written.values())
    ends = History.ends_before(everything)
    history = History.of(everything, len(dataset.users))
    starts = np.cumsum([0, *map(len, written.values())])
    sides: list[tuple[Side, Entities]] = [("user", dataset.users), ("item", dataset.items)]
    tables = {side: raw_table(entities, dataset, side) for side, entities in sides}
    for number, (name, rows) in enumerate(written.items()):
        before = ends[starts[number] : starts[number + 1]]
        if dataset.schema.target is None:
            rng = np.random.default_rng([seed, number])
            rows, source = with_negatives(rows, len(dataset.items) + 1, negatives, rng)
            # each click with its negatives: Merlin shuffles only rows that lie near each other
            together = np.argsort(source, kind="stable")
            rows, before = rows.take(together), before[source[together]]
        frame = pl.concat(
            [
                tables["user"][rows.user - 1],
                tables["item"][rows.item - 1],
                _recent(dataset, rows, history, before),
                pl.DataFrame({target_name(dataset.schema): (rows.target > 0).astype(np.int32)}),
            ],
            how="horizontal",
        )
        frame.write_parquet(folder / f"{name}.parquet", row_group_size=1 << 17)


def raw_table(entities: Entities, dataset: Dataset, side: Side) -> pl.DataFrame:
    """Every entity with raw values instead of ids, and its raw id; the history column is left out."""
    columns: list[pl.Series] = []
    for column in dataset.schema.features(side):
        if column.role == "id":
            columns.append(pl.Series(f"{column.name}_raw", entities.raw_ids.tolist()))
        if column.kind == "numeric":
            position = dataset.schema.numeric(side).index(column)
            columns.append(pl.Series(column.name, np.ascontiguousarray(entities.numeric[:, position])))
        elif column.role != "history":
            ids = entities.categorical[:, dataset.schema.slots(column)]
            columns += decoded(dataset, column, ids, gaps=bool((ids == 0).any()))
    return pl.DataFrame(columns)


def decoded(dataset: Dataset, column: Column, ids: np.ndarray, gaps: bool) -> list[pl.Series]:
    """Raw values of int32[n, width] ids, one series for each of the column's ``names``, null for 0.

    With gaps, integers become texts: beside nulls pandas would make floats of them, which NVTabular cannot always read.
    """
    values = vocabulary(dataset.path, dataset.schema.vocabulary_name(column))
    values = values.cast(pl.String) if gaps else values
    padded = pl.concat([pl.Series("value", [None], dtype=values.dtype), values])
    return [padded[slot].alias(name) for slot, name in zip(ids.T, names(column), strict=False)]


def vocabulary(folder: Path, name: str) -> pl.Series:
    """The values of a column of a dataset or bundle; position i holds the value of id i + 1."""
    return pl.read_parquet(folder / "vocab" / f"{name}.parquet")["value"]


def _recent(dataset: Dataset, rows: Rows, history: History, ends: np.ndarray) -> pl.DataFrame:
    column = dataset.schema.history
    if column is None:
        return pl.DataFrame()
    recent = history.recent(rows.user, column.width, ends)
    ids = np.where(recent < (column.cardinality or 0), recent, 0)
    return pl.DataFrame(decoded(dataset, column, ids, gaps=True))
