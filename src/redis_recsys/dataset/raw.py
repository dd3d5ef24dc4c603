"""Reader of raw folders, which reports every fault in them: files, columns, types, nulls.

The result is lazy frames of columns whose types are settled: ids and categories are int64 or text, targets
are 0 or 1, times are int64 in the unit of the schema, or steps where it has none, and unknown features (NaN, an
empty text, an empty list) are null.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError, SchemaError, one_line
from .schema import INTERNAL, SIDES, Column, Schema, Side

EXACT = 2**53  # whole numbers up to here are told apart as floats
ROW = f"{INTERNAL}row"
NARROW = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)  # all values fit into int64


@dataclass(frozen=True)
class Raw:
    """An opened raw folder.

    Attributes:
        schema: its schema.
        interactions: lazy rows in file order; ids, target, time and oracle under their own names, and feature columns.
        tables: lazy feature tables, by side, where the folder has them.
        flat: columns (features and labels) that are taken from the interactions, by side.
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
    log = _Files.open(folder / "interactions", _parquet_files(folder / "interactions"))
    schema = _with_unit(schema, log.parts[0].types)
    if not log.rows:
        raise DataError(f"{log.place} holds no rows")
    tables: dict[Side, pl.LazyFrame] = {}
    flat: dict[Side, list[Column]] = {}
    for side in SIDES:
        key = schema.id_column(side)
        columns = [c for c in schema.columns if c.side == side and c.role not in ("id", "history")]
        path = folder / f"{side}s.parquet"
        present: list[str] = []
        if path.exists():
            table = _Files.open(path, [path])
            if not table.rows:
                raise DataError(f"{path} holds no rows: remove it if there are no features of {side}s")
            present = table.names
            _check_same_id_type(key, table, log)
            tables[side] = table.scan([key, *(c for c in columns if c.name in present)])
            _check_ids(tables[side], key.name, path)
        flat[side] = [c for c in columns if c.name not in present]
        for column in flat[side]:
            log.check_present(column, also=present)
    core = [c for c in schema.columns if c.role == "id" or c.side in ("target", "time")]
    interactions = log.scan(core + flat["user"] + flat["item"])
    _check_values(interactions, core)
    return Raw(schema, interactions, tables, flat, log.rows)


def _with_unit(schema: Schema, types: dict[str, pl.DataType]) -> Schema:
    """The schema with the unit that dates and datetimes are written in; numbers keep the schema's own unit, or none."""
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


@dataclass(frozen=True)
class _Part:
    """Consecutive files with the same columns of the same types."""

    files: list[Path]
    types: dict[str, pl.DataType]

    @cached_property
    def frame(self) -> pl.LazyFrame:
        return pl.scan_parquet(self.files, glob=False, hive_partitioning=False)


@dataclass(frozen=True)
class _Files:
    """Parquet files that are read as one table, whose columns may differ in type from file to file.

    Attributes:
        place: folder or file, for messages.
        parts: the files in order.
        rows: number of rows of all files together.
    """

    place: Path
    parts: list[_Part]
    rows: int

    @classmethod
    def open(cls, place: Path, files: Sequence[Path]) -> _Files:
        """Read the footers.

        Raises:
            DataError: a file is not parquet.
        """
        parts: list[_Part] = []
        rows = 0
        for path in files:
            try:
                rows += pq.read_metadata(path).num_rows
                types = dict(pl.scan_parquet(path, glob=False, hive_partitioning=False).collect_schema())
            except (pa.ArrowInvalid, OSError, pl.exceptions.PolarsError) as error:
                reason = one_line(error)
                raise DataError(f"{path} is not a readable parquet file (truncated?): {reason}") from error
            if parts and parts[-1].types == types:
                parts[-1].files.append(path)
            else:
                parts.append(_Part([path], types))
        return cls(place, parts, rows)

    @property
    def names(self) -> list[str]:
        """Names of the columns, as the first file has them."""
        return list(self.parts[0].types)

    def scan(self, columns: Sequence[Column]) -> pl.LazyFrame:
        """Rows in file order, every column with one settled type.

        Raises:
            SchemaError: a column is missing or of the wrong type.
            DataError: a whole number is beyond int64.
        """
        categories = {column.name: self.category(column) for column in columns}
        frames = []
        for part in self.parts:
            settled = [_settle(c, part.types[c.name], categories[c.name], self.place) for c in columns]
            self._check_fit(part, [c for c in columns if _may_not_fit(c, part.types[c.name])])
            frames.append(part.frame.select(value.alias(c.name) for c, value in zip(columns, settled, strict=True)))
        return frames[0] if len(frames) == 1 else pl.concat(frames)

    def check_present(self, column: Column, also: Sequence[str] = ()) -> None:
        """Check that every file has a column.

        Raises:
            SchemaError: the column is missing.
        """
        for part in self.parts:
            names = [*part.types, *(name for name in also if name not in part.types)]
            if column.name in names:
                continue
            if part is not self.parts[0]:
                raise SchemaError(
                    f"column {column.name!r} is missing in {part.files[0]} but not in {self.parts[0].files[0]}: "
                    "write them alike"
                )
            close = get_close_matches(column.name, names, n=1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise SchemaError(
                f"column {column.name!r} of the schema is not in {self.place}{meant}: it has {', '.join(names)}"
            )

    def category(self, column: Column) -> pl.DataType:
        """Type of a categorical column's values in all files, int64 or text; text where all are null.

        Raises:
            SchemaError: the column is missing, or its type differs between files.
        """
        self.check_present(column)
        first: tuple[pl.DataType, _Part] | None = None
        for part in self.parts:
            settled = _category(part.types[column.name])
            if settled is None:
                continue
            if first is not None and settled != first[0]:
                other, own = (p.types[column.name] for p in (first[1], part))
                raise SchemaError(
                    f"column {column.name!r} is {own} in {part.files[0]} but {other} in {first[1].files[0]}: "
                    "write them alike"
                )
            first = first or (settled, part)
        return first[0] if first else pl.String()

    def _check_fit(self, part: _Part, columns: Sequence[Column]) -> None:
        """Check that all values of some columns are whole numbers of int64."""
        for column in columns:
            rows = part.frame.select(pl.col(column.name)).with_row_index(ROW, 1)
            wrong = (
                rows.filter(_unfit(pl.col(column.name), part.types[column.name])).head(1).collect(engine="streaming")
            )
            if len(wrong):
                row, value = wrong.row(0)
                where = part.files[0] if len(part.files) == 1 else self.place
                raise DataError(
                    f"column {column.name!r} of {where} holds {value} in row {row}: it must be a whole number that "
                    "fits into int64; write the column as text, or as a number of kind numeric"
                )


def _category(dtype: pl.DataType) -> pl.DataType | None:
    """Type that values of ``dtype`` are settled to, as far as files must agree on it; None for nothing but nulls."""
    if isinstance(dtype, (pl.List, pl.Array)):
        assert isinstance(dtype.inner, pl.DataType)
        return _category(dtype.inner)
    if dtype == pl.Null:
        return None
    if isinstance(dtype, (pl.Datetime, pl.Date)):
        return pl.Datetime()
    return pl.String() if _text(dtype) else pl.Int64()


def _text(dtype: pl.DataType) -> bool:
    """Whether values of a type can be texts; nulls can."""
    return dtype in (pl.String, pl.Null) or isinstance(dtype, (pl.Categorical, pl.Enum))


def _whole(dtype: pl.DataType) -> bool:
    """Whether a type is one of whole numbers."""
    return dtype.is_integer() or dtype == pl.Boolean or (isinstance(dtype, pl.Decimal) and dtype.scale == 0)


def _settle(column: Column, dtype: pl.DataType, category: pl.DataType, place: Path) -> pl.Expr:
    """The column with its type settled.

    Args:
        column: the column of the schema.
        dtype: type of the column in the file.
        category: type that its values are settled to if it is categorical.
        place: folder or file, for messages.
    """
    value = pl.col(column.name)

    def wrong(needed: str) -> SchemaError:
        return SchemaError(f"column {column.name!r} of {place} is {dtype}: it must be {needed}")

    number = dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)
    if column.side == "time":
        if isinstance(dtype, (pl.Datetime, pl.Date)):
            return value.dt.epoch(column.unit or "s").cast(pl.Int64)
        if not (_whole(dtype) or dtype == pl.Null):
            raise wrong("integer seconds (or of the unit in the schema), a date or a datetime; convert it")
        return value.cast(pl.Int64)
    if column.side == "target":
        if not number:
            raise wrong("a number or true/false")
        if column.role is None and column.positive_from is not None:
            return (value.cast(pl.Float64).fill_nan(None) >= column.positive_from).cast(pl.Float32)
        return value.cast(pl.Float32).fill_nan(None)
    if column.kind == "numeric":
        if not number:
            raise wrong("a number; declare it categorical if these are names")
        return value.cast(pl.Float64).fill_nan(None)
    if column.kind == "text":
        return _filled(value.cast(pl.String), pl.String())
    if column.kind == "multi-categorical":
        return _settle_list(column, dtype, category, wrong)
    if column.role == "id":
        if not (_text(dtype) or _whole(dtype)) or dtype == pl.Boolean:
            raise wrong("integer or text; cast it (a float id often comes from missing values)")
        return value.cast(category)
    if not (_text(dtype) or _whole(dtype) or dtype.is_float()):
        raise wrong("integer or text; cast it")
    if dtype.is_float():
        value = value.fill_nan(None)
    return _filled(value.cast(category), category)


def _settle_list(
    column: Column, dtype: pl.DataType, category: pl.DataType, wrong: Callable[[str], SchemaError]
) -> pl.Expr:
    """A multi-categorical column as lists without nulls and empty texts; null where nothing is left."""
    value = pl.col(column.name)
    if isinstance(dtype, (pl.List, pl.Array)):
        assert isinstance(dtype.inner, pl.DataType)
        if not (_whole(dtype.inner) or _text(dtype.inner)):
            raise wrong("a list of integers or texts")
        value = value.cast(pl.List(category))
    elif dtype == pl.Null:
        return value.cast(pl.List(category))
    elif not _text(dtype) or column.separator is None:
        raise wrong("a list, or text with a separator in the schema")
    else:
        value = value.cast(pl.String).str.split(column.separator).list.eval(pl.element().str.strip_chars())
    value = value.list.eval(_filled(pl.element(), category)).list.drop_nulls()
    return pl.when(value.list.len() > 0).then(value)


def _filled(value: pl.Expr, category: pl.DataType) -> pl.Expr:
    """The values, null for empty texts."""
    return pl.when(value != "").then(value) if category == pl.String else value


def _may_not_fit(column: Column, dtype: pl.DataType) -> bool:
    """Whether a column that becomes int64 may hold values that int64 cannot."""
    if isinstance(dtype, (pl.List, pl.Array)):
        assert isinstance(dtype.inner, pl.DataType)
        return _may_not_fit(column, dtype.inner)
    wide = _whole(dtype) and dtype not in (pl.Boolean, *NARROW)
    whole = column.side == "time" or (column.side != "target" and column.kind in ("categorical", "multi-categorical"))
    return whole and (wide or dtype.is_float())


def _unfit(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """True where a value is no whole number of int64; for a list, where any of its values is none."""
    if isinstance(dtype, (pl.List, pl.Array)):
        assert isinstance(dtype.inner, pl.DataType)
        return value.cast(pl.List(dtype.inner)).list.eval(_unfit(pl.element(), dtype.inner)).list.any()
    if dtype.is_float():
        return value.is_not_nan() & ((value != value.round()) | (value.abs() > EXACT))
    return value.is_not_null() & value.cast(pl.Int64, strict=False).is_null()


def _check_same_id_type(key: Column, table: _Files, log: _Files) -> None:
    if table.category(key) != log.category(key):
        in_table, in_log = (files.parts[0].types[key.name] for files in (table, log))
        raise SchemaError(
            f"column {key.name!r} is {in_table} in {table.place} but {in_log} in the interactions: write them alike"
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
    """Check that ids, target and time have no nulls, and that the target is 0 or 1."""
    bad = {c.name: pl.col(c.name).is_null() for c in core}
    for column in core:
        if column.side == "target" and column.role is None and column.positive_from is None:
            bad[column.name] |= ~pl.col(column.name).is_in([0.0, 1.0])
        if column.role == "oracle":
            bad[column.name] |= ~pl.col(column.name).is_between(0, 1)
    wrong = rows.select(expression.any().alias(name) for name, expression in bad.items()).collect(engine="streaming")
    for column in core:
        if wrong[column.name][0]:
            first = rows.with_row_index(ROW).filter(bad[column.name]).select(ROW, column.name).head(1).collect()
            row, value = first.row(0)
            if value is None:
                raise DataError(f"column {column.name!r} of the interactions is null in row {row + 1}: drop or fill it")
            raise DataError(
                f"column {column.name!r} of the interactions is {value:g} in row {row + 1}: it must be "
                + ("a probability" if column.role == "oracle" else "0 or 1, or the schema must say positive_from")
            )
