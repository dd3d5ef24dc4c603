"""Comparison of the ids in a table of users or items with those of the log, once both are written with one type."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ...dataset.schema import Column, Side
from ...errors import DataError
from ...utils.progress import console

ENOUGH = 0.5  # share of the log's ids below which a warning is given


def match_ids(log: Path, table: Path, key: Column, path: Path) -> None:
    """Report how many ids of the log a table has.

    Args:
        log: written interactions.
        table: written table of users or items.
        key: the id column.
        path: path of people's table, for messages.

    Raises:
        DataError: the table has no rows, an id twice, or none of the log's ids.
    """
    side: Side = "user" if key.side == "user" else "item"
    name = key.name
    own = pl.scan_parquet(table, glob=False).select(name)
    counted = own.group_by(name).len().collect(engine="streaming")
    if counted.is_empty():
        raise DataError(f"{path} holds no rows: leave it out if there are no features of {side}s")
    twice = counted.filter(pl.col("len") > 1).sort(name)
    if len(twice):
        value, count = twice.row(0)
        raise DataError(f"{path} has {name} {value!r} in {count} rows: keep one row per id")
    ids = pl.scan_parquet(log, glob=False).select(name).unique().collect(engine="streaming")
    shared = ids.join(counted, on=name, how="semi")
    message = (
        f"{path} has {len(shared):,} of the {len(ids):,} {side}s of the log, and {len(counted) - len(shared):,} others"
    )
    if not len(shared):
        raise DataError(f"{path} has none of the {len(ids):,} {side}s of the log: {_examples(ids, counted, name)}")
    if len(shared) < ENOUGH * len(ids):
        missing, others = ids.join(shared, on=name, how="anti"), counted.join(shared, on=name, how="anti")
        message = (
            f"warning: {message}; the rest of the log's {side}s have no features: {_examples(missing, others, name)}"
        )
    console.print(message, markup=False, highlight=False, soft_wrap=True)


def _examples(log: pl.DataFrame, table: pl.DataFrame, name: str) -> str:
    """Two ids that stand for the same number, if there are any; otherwise the first ids of both sides."""
    as_number = pl.col(name).cast(pl.Float64, strict=False).alias("number")
    one, other = (frame.select(name, as_number).drop_nulls().sort(name) for frame in (log, table))
    same = one.join(other, on="number", how="inner", suffix="_there").head(1)
    if len(same):
        in_log, in_table = same[name][0], same[f"{name}_there"][0]
        return f"{name} {in_log!r} of the log is {in_table!r} there: write ids alike in all files"
    in_log = ", ".join(repr(value) for value in log[name].sort().head(3))
    in_table = ", ".join(repr(value) for value in table[name].sort().head(3)) or "no other"
    return f"the log has {name} {in_log}, the table {in_table}: are these the same kind of ids?"
