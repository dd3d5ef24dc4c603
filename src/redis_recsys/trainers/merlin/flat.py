"""Rows of a dataset's parts for Merlin: flat rows of raw values, with user and item features in every row."""

from __future__ import annotations

import re
from functools import reduce
from pathlib import Path

import numpy as np
import polars as pl

from ...dataset.entities import Entities
from ...dataset.interactions import Dataset, Part, Rows
from ...dataset.schema import SIDES, Column, Schema, Side
from ...dataset.user_history import History
from ...dataset.vocabularies import read_vocabulary
from ..negatives import with_negatives
from .worker_job import Feature

LONGEST_NAME = 220  # NVTabular names a file after all columns that share a vocabulary
CHOOSING: dict[str, tuple[Part, ...]] = {
    "train": ("train",),
    "valid": ("valid",),
}  # to choose the number of epochs
TARGET = "click"  # target of data without a target column
RAW = "_raw"  # suffix of raw ids
OTHER = "column"  # prefix of a column name that does not begin with a letter
TAKEN = ("file", "output")  # names in use in the worker's array files


class RowNames:
    """Column names of the rows.

    They are the schema's names, as far as TensorFlow accepts them as argument names: letters, digits and underscores,
    a letter first. Other characters become underscores, and a duplicate gets a further underscore.

    Attributes:
        columns: names in the rows by name in the schema, of all features.
        target: name of the click column.
    """

    def __init__(self, schema: Schema) -> None:
        self._taken = set(TAKEN)
        self.columns: dict[str, list[str]] = {}
        for side in SIDES:
            key = schema.id_column(side).name
            self.columns[key] = [self._unused(key, "", RAW)]
        self.target = self._unused(schema.target.name if schema.target else TARGET, "")
        for side in SIDES:
            for column in schema.features(side):
                if column.role != "id":
                    self.columns[column.name] = (
                        self._several(column) if column.max_length else [self._unused(column.name, "")]
                    )

    def _several(self, column: Column) -> list[str]:
        """Return a name for every slot, or for as many slots of a long list as NVTabular can name."""
        endings = [f"_{number}" for number in range(1, column.width + 1)]
        first = self._unused(column.name, *endings)
        names = [first.removesuffix(endings[0]) + ending for ending in endings]
        lengths = np.cumsum([len(name) + 1 for name in names])
        return names[: max(1, int((lengths <= LONGEST_NAME).sum()))]

    def _unused(self, name: str, *endings: str) -> str:
        """Return a variant of the name, with the first ending, for which all the endings give unused names."""
        name = re.sub("[^A-Za-z0-9_]", "_", name)[: LONGEST_NAME // 2]
        name = name if name[0].isalpha() else f"{OTHER}{name}"
        while self._taken & {name + ending for ending in endings}:
            name += "_"
        self._taken |= {name + ending for ending in endings}
        return name + endings[0]


def features(schema: Schema) -> list[Feature]:
    """Feature columns of the models, for the worker."""
    names = RowNames(schema).columns
    return [
        Feature(column.name, column.side, column.kind == "numeric", names[column.name])
        for side in SIDES
        for column in schema.features(side)
    ]


def write_rows(
    dataset: Dataset, folder: Path, negatives: int, seed: int, files: dict[str, tuple[Part, ...]] = CHOOSING
) -> None:
    """Write the rows as parquet files.

    Values with an id in the dataset are raw, others null, so that NVTabular assigns ids to exactly these. Numerics are
    already standardised. The history column holds each user's items before the row, from all files.

    Args:
        dataset: source of the rows.
        folder: existing folder to write to.
        negatives: negatives drawn per positive if the data has no target column.
        seed: seed of the draws.
        files: parts of the dataset by file name, ``train`` for ``train.parquet``.
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
            # keep each click with its negatives: Merlin shuffles only rows near each other
            together = np.argsort(source, kind="stable")
            rows, before = rows.take(together), before[source[together]]
        frame = pl.concat(
            [
                tables["user"][rows.user - 1],
                tables["item"][rows.item - 1],
                _recent(dataset, rows, history, before),
                pl.DataFrame({RowNames(dataset.schema).target: (rows.target > 0).astype(np.int32)}),
            ],
            how="horizontal",
        )
        frame.write_parquet(folder / f"{name}.parquet", row_group_size=1 << 17)


def raw_table(entities: Entities, dataset: Dataset, side: Side) -> pl.DataFrame:
    """Table of all entities with raw values instead of ids, and raw ids; without the history column."""
    columns: list[pl.Series] = []
    names = RowNames(dataset.schema).columns
    for column in dataset.schema.features(side):
        if column.role == "id":
            columns.append(pl.Series(f"{names[column.name][0]}{RAW}", entities.raw_ids.tolist()))
        if column.kind == "numeric":
            position = dataset.schema.numeric(side).index(column)
            columns.append(pl.Series(names[column.name][0], np.ascontiguousarray(entities.numeric[:, position])))
        elif column.role != "history":
            ids = entities.categorical[:, dataset.schema.slots(column)]
            columns += decoded(dataset, column, ids, gaps=bool((ids == 0).any()))
    return pl.DataFrame(columns)


def decoded(dataset: Dataset, column: Column, ids: np.ndarray, gaps: bool) -> list[pl.Series]:
    """Decode ids int32[n, width] to raw values, one series for each of the column's names, null for 0.

    With gaps, integers become strings: pandas would turn integers with nulls into floats, which NVTabular cannot always
    read.
    """
    values = pl.Series("value", read_vocabulary(dataset.path, dataset.schema, column))
    values = values.cast(pl.String) if gaps else values
    names = RowNames(dataset.schema).columns[column.name]
    padded = pl.concat([pl.Series("value", [None], dtype=values.dtype), values])
    return [padded[slot].alias(name) for slot, name in zip(ids.T, names, strict=False)]


def _recent(dataset: Dataset, rows: Rows, history: History, ends: np.ndarray) -> pl.DataFrame:
    column = dataset.schema.history
    if column is None:
        return pl.DataFrame()
    recent = history.recent(rows.user, column.width, ends)
    ids = np.where(recent < (column.cardinality or 0), recent, 0)
    return pl.DataFrame(decoded(dataset, column, ids, gaps=True))
