"""A dataset's parts as Merlin reads them: flat rows of raw values, user and item features in every row."""

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
CHOOSING: dict[str, tuple[Part, ...]] = {"train": ("train",), "valid": ("valid",)}  # the number of epochs
TARGET = "click"  # of data that has no target column
RAW = "_raw"  # ends the name of a raw id
OTHER = "column"  # begins the name of a column that does not begin with a letter
TAKEN = ("file", "output")  # names that the worker's files of arrays use


class RowNames:
    """Names of the columns of the rows.

    They are those of the schema, as far as TensorFlow takes them as names of arguments: of letters, digits and
    underscores, a letter first. Other characters become underscores, and a name that is taken already gets one more.

    Attributes:
        columns: name in the schema -> names in the rows, of all features.
        target: the click column's name.
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
        """A name for every slot; of a long list, for as many as NVTabular can name."""
        endings = [f"_{place}" for place in range(1, column.width + 1)]
        first = self._unused(column.name, *endings)
        every = [first.removesuffix(endings[0]) + ending for ending in endings]
        lengths = np.cumsum([len(name) + 1 for name in every])
        return every[: max(1, int((lengths <= LONGEST_NAME).sum()))]

    def _unused(self, name: str, *endings: str) -> str:
        """A name like this one with the first ending, after which none of the endings makes a name that is taken."""
        name = re.sub("[^A-Za-z0-9_]", "_", name)[: LONGEST_NAME // 2]
        name = name if name[0].isalpha() else f"{OTHER}{name}"
        while self._taken & {name + ending for ending in endings}:
            name += "_"
        self._taken |= {name + ending for ending in endings}
        return name + endings[0]


def features(schema: Schema) -> list[Feature]:
    """The columns that the models see, for the worker."""
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
                pl.DataFrame({RowNames(dataset.schema).target: (rows.target > 0).astype(np.int32)}),
            ],
            how="horizontal",
        )
        frame.write_parquet(folder / f"{name}.parquet", row_group_size=1 << 17)


def raw_table(entities: Entities, dataset: Dataset, side: Side) -> pl.DataFrame:
    """Every entity with raw values instead of ids, and its raw id; the history column is left out."""
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
    """Raw values of int32[n, width] ids, one series for each of the column's names, null for 0.

    With gaps, integers become texts: beside nulls pandas would make floats of them, which NVTabular cannot always read.
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
