"""Reading a raw folder, with every complaint about it made here: files, columns, types, nulls.

What comes out are lazy frames of columns whose types are settled: ids and categories are int64 or text, targets
are 0 or 1, times are int64 in the unit of the schema, or steps where it has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError, SchemaError
from ..schema import Column, Schema, Side

SIDES: tuple[Side, Side] = ("user", "item")


@dataclass(frozen=True)
class Raw:
    """An opened raw folder.

    Attributes:
        schema: what it declares.
        interactions: lazy rows in file order; ids, target, time and oracle under their own names, and feature columns.
        tables: lazy feature tables, by side, where the folder has them.
        flat: by side, the columns (features and labels) that are to be taken from the interactions.
        rows: number of interactions.
    """

    schema: Schema
    interactions: pl.LazyFrame
    tables: dict[Side, pl.LazyFrame]
    flat: dict[Side, list[Column]]
    rows: int


def open_raw(folder: Path) -> Raw:
    """Open a raw folder and check that it has what its schema declares, with the right types.

    Raises:
        SchemaError: the schema is invalid, or a column is missing or of the wrong type.
        DataError: a file is missing, truncated, empty, or not parquet; or the values of an id, time or target
            column cannot be used.
    """
    if not folder.is_dir():
        raise DataError(f"no raw data at {folder}: make some with 'recsys data ...'")
    schema = Schema.load(folder / "schema.yaml")
    files = _parquet_files(folder / "interactions")
    types, rows = _types(files)
    schema = _with_unit(schema, types)
    if not rows:
        raise DataError(f"{folder / 'interactions'} holds no rows")
    tables: dict[Side, pl.LazyFrame] = {}
    flat: dict[Side, list[Column]] = {}
    for side in SIDES:
        key = schema.id_column(side)
        columns = [c for c in schema.columns if c.side == side and c.role not in ("id", "history")]
        path = folder / f"{side}s.parquet"
        here: dict[str, pl.DataType] = {}
        if path.exists():
            here, count = _types([path])
            if not count:
                raise DataError(f"{path} holds no rows: remove it if there are no features of {side}s")
            wanted = [key, *(c for c in columns if c.name in here)]
            tables[side] = pl.scan_parquet(path).select(_expression(c, here, path) for c in wanted)
            _check_same_id_type(key, here, types, path)
            _check_ids(tables[side], key.name, path)
        flat[side] = [c for c in columns if c.name not in here]
        for column in flat[side]:
            _check_present(column, types, folder / "interactions", also=list(here))
    core = [c for c in schema.columns if c.role == "id" or c.side in ("target", "time")]
    wanted = core + flat["user"] + flat["item"]
    scan = pl.scan_parquet(files)
    interactions = scan.select(_expression(c, types, folder / "interactions") for c in wanted)
    _check_values(interactions, core)
    return Raw(schema, interactions, tables, flat, rows)


def _with_unit(schema: Schema, types: dict[str, pl.DataType]) -> Schema:
    """The schema with the unit that dates and datetimes are written in; numbers have the one that it says, or none."""
    dtype = types.get(schema.time.name) if schema.time else None
    if schema.time is None or schema.time.unit is not None or not isinstance(dtype, (pl.Datetime, pl.Date)):
        return schema
    unit = dtype.time_unit if isinstance(dtype, pl.Datetime) else "s"
    columns = [c.model_copy(update={"unit": unit}) if c.side == "time" else c for c in schema.columns]
    return schema.model_copy(update={"columns": columns})


def _parquet_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: raw data keeps its interactions there as parquet files")
    files = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))
    strange = [path.name for path in files if path.suffix != ".parquet"]
    if strange:
        raise DataError(
            f"{folder / strange[0]} is not a parquet file: remove it, or read it with 'recsys data tabular'"
        )
    if not files:
        raise DataError(f"{folder} holds no parquet files")
    return files


def _types(files: Sequence[Path]) -> tuple[dict[str, pl.DataType], int]:
    """Column types, which must be the same in all files, and the number of rows."""
    types: dict[str, pl.DataType] = {}
    rows = 0
    for path in files:
        try:
            rows += pq.read_metadata(path).num_rows
            here = dict(pl.read_parquet_schema(path))
        except (pa.ArrowInvalid, OSError, pl.exceptions.PolarsError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{path} is not a readable parquet file (truncated?): {reason}") from error
        for name, dtype in (types or here).items():
            if here.get(name) != dtype:
                found = f"{here[name]}" if name in here else "missing"
                raise SchemaError(f"column {name!r} is {found} in {path} but {dtype} in {files[0]}: write them alike")
        types = types or here
    return types, rows


def _check_present(column: Column, types: dict[str, pl.DataType], place: Path, also: Sequence[str] = ()) -> None:
    names = [*types, *(name for name in also if name not in types)]
    if column.name not in names:
        close = get_close_matches(column.name, names, n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise SchemaError(f"column {column.name!r} of the schema is not in {place}{meant}: it has {', '.join(names)}")


def _expression(column: Column, types: dict[str, pl.DataType], place: Path) -> pl.Expr:
    """The column with its type settled."""
    _check_present(column, types, place)
    dtype, value = types[column.name], pl.col(column.name)

    def wrong(needed: str) -> SchemaError:
        return SchemaError(f"column {column.name!r} of {place} is {dtype}: it must be {needed}")

    if column.side == "time":
        if isinstance(dtype, (pl.Datetime, pl.Date)):
            return value.dt.epoch(column.unit or "s").cast(pl.Int64)
        if not dtype.is_integer():
            raise wrong("integer seconds (or of the unit in the schema), a date or a datetime; convert it")
        return value.cast(pl.Int64)
    if column.side == "target":
        if not (dtype.is_numeric() or dtype == pl.Boolean):
            raise wrong("a number or true/false")
        if column.role is None and column.positive_from is not None:
            return (value.cast(pl.Float64).fill_nan(None) >= column.positive_from).cast(pl.Float32)
        return value.cast(pl.Float32).fill_nan(None)
    if column.kind == "numeric":
        if not (dtype.is_numeric() or dtype == pl.Boolean):
            raise wrong("a number; declare it categorical if these are names")
        return value.cast(pl.Float64).fill_nan(None)
    if column.kind == "text":
        return value.cast(pl.String)
    if column.kind == "multi-categorical":
        if isinstance(dtype, (pl.List, pl.Array)):
            inner = _category_type(dtype.inner)
            if inner is None:
                raise wrong("a list of integers or texts")
            return value.cast(pl.List(inner))
        if dtype != pl.String or column.separator is None:
            raise wrong("a list, or text with a separator in the schema")
        parts = value.str.split(column.separator).list.eval(pl.element().str.strip_chars())
        return parts.list.eval(pl.element().filter(pl.element() != ""))
    settled = _category_type(dtype)
    if settled is None or (column.role == "id" and dtype == pl.Boolean):
        raise wrong("integer or text; cast it (a float id often comes from missing values)")
    return value.cast(settled)


def _category_type(dtype: object) -> pl.DataType | None:
    """What values of a category are settled to; None for types that cannot be categories."""
    assert isinstance(dtype, pl.DataType)
    if dtype.is_integer() or dtype == pl.Boolean:
        return pl.Int64()
    if dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum)):
        return pl.String()
    return None


def _check_same_id_type(key: Column, table: dict[str, pl.DataType], rows: dict[str, pl.DataType], path: Path) -> None:
    there = rows.get(key.name)
    if there is not None and _category_type(there) != _category_type(table[key.name]):
        raise SchemaError(
            f"column {key.name!r} is {table[key.name]} in {path} but {there} in the interactions: write them alike"
        )


def _check_ids(table: pl.LazyFrame, name: str, path: Path) -> None:
    ids = table.select(name).collect()[name]
    if ids.null_count():
        row = ids.is_null().arg_true()[0] + 1
        raise DataError(f"column {name!r} of {path} is null in row {row}: every row needs an id")
    twice = ids.is_duplicated()
    if twice.any():
        row = twice.arg_true()[0]
        raise DataError(f"column {name!r} of {path} has {ids[row]!r} more than once: keep one row per id")


def _check_values(rows: pl.LazyFrame, core: Sequence[Column]) -> None:
    """No nulls in ids, target, time; a target that is 0 or 1."""
    bad = {c.name: pl.col(c.name).is_null() for c in core}
    for column in core:
        if column.side == "target" and column.role is None and column.positive_from is None:
            bad[column.name] |= ~pl.col(column.name).is_in([0.0, 1.0])
        if column.role == "oracle":
            bad[column.name] |= ~pl.col(column.name).is_between(0, 1)
    found = rows.select(expression.any().alias(name) for name, expression in bad.items()).collect(engine="streaming")
    for column in core:
        if found[column.name][0]:
            first = rows.with_row_index("__row").filter(bad[column.name]).select("__row", column.name).head(1).collect()
            row, value = first.row(0)
            if value is None:
                raise DataError(f"column {column.name!r} of the interactions is null in row {row + 1}: drop or fill it")
            raise DataError(
                f"column {column.name!r} of the interactions is {value:g} in row {row + 1}: it must be "
                + ("a probability" if column.role == "oracle" else "0 or 1, or the schema must say positive_from")
            )
