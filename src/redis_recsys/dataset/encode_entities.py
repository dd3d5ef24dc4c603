"""Encoding of raw entities: vocabularies, standardised numbers, padded lists.

Every frequency, mean and deviation is over the training rows: an entity's value counts as often as the entity
occurs there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from ..errors import DataError
from .entities import Entities
from .schema import INTERNAL, Column, Schema, Side
from .vocabularies import write_vocabulary

COUNT = f"{INTERNAL}count"  # training rows of an entity


def encode_entities(frame: pl.DataFrame, schema: Schema, side: Side, folder: Path) -> tuple[Entities, Schema]:
    """Encode the entities of a side and write their vocabularies.

    Args:
        frame: one row per entity, most frequent first: the id, the raw features and labels, and COUNT.
        schema: meaning of the columns.
        side: user or item.
        folder: dataset that gets one vocabulary per categorical column.

    Returns:
        The entities (history slots are left 0), and the schema with the cardinalities, means and deviations of this
        side.
    """
    categorical = np.zeros((len(frame), schema.categorical_width(side)), np.int32)
    numeric = np.zeros((len(frame), len(schema.numeric(side))), np.float32)
    settled: dict[str, Column] = {}
    start = 0
    for column in schema.categorical(side):
        slots = categorical[:, start : start + column.width]
        start += column.width
        if column.role == "history":
            continue
        values = _id_vocabulary(frame, column) if column.role == "id" else _vocabulary(frame, column)
        write_vocabulary(folder, schema, column, values.to_arrow())
        settled[column.name] = column.model_copy(update={"cardinality": len(values) + 1})
        if column.role == "id":
            slots[: len(values), 0] = np.arange(1, len(values) + 1)
        elif column.max_length:
            _fill_lists(slots, frame[column.name], values)
        else:
            slots[:, 0] = _encode(frame[column.name], values).fill_null(0).to_numpy()
    for position, column in enumerate(schema.numeric(side)):
        mean, std = _moments(frame, column)
        settled[column.name] = column.model_copy(update={"mean": mean, "std": std})
        numeric[:, position] = ((frame[column.name] - mean) / std).fill_null(0).to_numpy()
    labels = {c.name: frame[c.name].fill_null("").to_list() for c in schema.labels(side)}
    columns = [settled.get(c.name, c) for c in schema.columns]
    entities = Entities(frame[schema.id_column(side).name].to_numpy(), categorical, numeric, labels)
    return entities, schema.model_copy(update={"columns": columns})


def raw_values(frame: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """The items' categorical columns as they are in the data, for ``item_values.parquet``; ids are in the item table.

    Args:
        frame: one row per item, as for :func:`encode_entities`.
        schema: meaning of the columns.
    """
    return frame.select(column.name for column in schema.categorical("item") if column.role is None)


def _id_vocabulary(frame: pl.DataFrame, column: Column) -> pl.Series:
    """Raw ids of the most frequent entities, which the table has first already."""
    size = int((frame[COUNT] >= column.min_frequency).sum())
    return frame[column.name].head(min(size, column.max_vocabulary or size)).alias("value")


def _vocabulary(frame: pl.DataFrame, column: Column) -> pl.Series:
    """Values seen often enough, most frequent first, ties by value."""
    rows = frame.lazy().select(pl.col(column.name).alias("value"), COUNT)
    if column.max_length:
        rows = rows.explode("value")
    counts = rows.drop_nulls("value").group_by("value").agg(pl.col(COUNT).sum())
    kept = (
        counts.filter(pl.col(COUNT) >= column.min_frequency).sort([COUNT, "value"], descending=[True, False]).collect()
    )
    return kept["value"].head(column.max_vocabulary or len(kept))


def _encode(raw: pl.Series, values: pl.Series) -> pl.Series:
    """uint32 ids of raw values, in their order; null where a value has none."""
    table = values.to_frame("value").with_row_index("id", 1)
    return raw.to_frame("value").join(table, on="value", how="left", maintain_order="left")["id"]


def _fill_lists(slots: np.ndarray, raw: pl.Series, values: pl.Series) -> None:
    """Write the first known values of each list into int32[n, max_length]."""
    flat = raw.to_frame("value").with_row_index("row").explode("value")
    encoded = flat.select("row", id=_encode(flat["value"], values)).drop_nulls("id")
    row = encoded["row"].to_numpy().astype(np.int64)
    position = np.arange(len(row)) - np.searchsorted(row, row)
    kept = position < slots.shape[1]
    slots[row[kept], position[kept]] = encoded["id"].to_numpy()[kept]


def _moments(frame: pl.DataFrame, column: Column) -> tuple[float, float]:
    """Mean and standard deviation over the training rows that have a value; (0, 1) without any."""
    present = frame.select(pl.col(column.name), COUNT).drop_nulls()
    value, weight = present[column.name].to_numpy(), present[COUNT].to_numpy().astype(np.float64)
    if not np.isfinite(value).all():
        raise DataError(f"column {column.name!r} holds infinity: replace it by a number or null")
    if not weight.sum():
        return 0.0, 1.0
    scale = 2.0 ** int(np.frexp(np.abs(value).max())[1])  # squares of scaled values neither overflow nor vanish
    scaled = value / scale
    mean = float(np.average(scaled, weights=weight))
    std = float(np.sqrt(np.average((scaled - mean) ** 2, weights=weight)))
    return mean * scale, std * scale if std > 1e-12 * abs(mean) else 1.0
