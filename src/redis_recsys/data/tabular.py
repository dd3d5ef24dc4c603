"""Anyone's CSV or parquet, described by a small ``schema.yaml``, into raw tables.

Interactions are one file or a folder of parts; features of users and items are columns of it, or lie in tables of
their own with one row per id. Every value is checked before anything is written, so that an error names the file,
the row and the column, and each column comes out with one type over all parts. Both passes stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import polars as pl

from ..errors import DataError, SchemaError
from ..files import keep_inputs, written_aside
from ..output_kinds import RAW
from ..progress import progress
from ..schema import Column, Schema

FORMATS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
WHOLE = r"^(0|-?[1-9]\d{0,17})$"  # text that int64 gives back unchanged, unlike "007"
EVERY_FIELD = pl.QueryOptFlags(projection_pushdown=False)  # otherwise Polars passes over rows with too many fields
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
CLOCK = ("%H:%M:%S%.f", "%H:%M")


@dataclass(frozen=True)
class Table:
    """One of interactions, users and items: its files and the schema's columns that are read from it."""

    name: str
    files: list[Path]
    columns: list[Column]


def read(source: Path, schema: Path, folder: Path, users: Path | None = None, items: Path | None = None) -> None:
    """Write the raw folder of the data in ``source``, whole or not at all.

    Ids become int64 where all of them are whole numbers, and texts otherwise. Times become seconds since 1970; a
    text such as ``2024-05-01 12:00:00`` is taken as UTC unless it says otherwise.

    Args:
        source: interactions, a file in one of ``FORMATS`` or a folder of such files with the same columns.
        schema: description of the columns; what it does not name is left out.
        folder: raw data folder to write.
        users: table with one row per user id, a file or a folder.
        items: table with one row per item id.

    Raises:
        SchemaError: the schema is invalid, or the data lacks a column that it names.
        DataError: a file cannot be read, or holds a value that its column must not hold; or ``folder`` holds an input.
    """
    keep_inputs(folder, source, schema, users, items)
    description = Schema.load(schema)
    tables = _tables(description, {"interactions": source, "users": users, "items": items})
    whole = {side: _whole(description.id_column(side).name, tables) for side in ("user", "item")}
    with written_aside(folder, RAW) as raw:
        (raw / "interactions").mkdir()
        for table in tables:
            with progress(f"checking {table.name}", len(table.files)) as advance:
                frames = []
                for file in table.files:
                    frames.append(_checked(file, table.columns, whole))
                    advance(1)
            name = "interactions/part-0" if table.name == "interactions" else table.name
            try:
                pl.concat(frames).sink_parquet(raw / f"{name}.parquet")
            except pl.exceptions.SchemaError as error:
                raise DataError(f"the {table.name} files do not have the same types: {_line(error)}") from error
        description.save(raw / "schema.yaml")


def _tables(schema: Schema, paths: dict[str, Path | None]) -> list[Table]:
    """Decide which table gives which column: a feature comes from the table of its side where that has it."""
    tables = {name: Table(name, _files(path), []) for name, path in paths.items() if path is not None}
    headers = {name: list(_types(table.files[0])) for name, table in tables.items()}
    for column in schema.columns:
        if column.role == "history":
            continue
        own = f"{column.side}s"
        if column.role == "id":
            homes = ["interactions", *([own] if own in tables else [])]
        else:
            homes = [own] if column.name in headers.get(own, ()) else ["interactions"]
        for home in homes:
            if column.name not in headers[home]:
                raise _missing(column, paths[home], headers[home] + headers.get(own, []) * (home != own))
            tables[home].columns.append(column)
    return list(tables.values())


def _missing(column: Column, path: Path | None, names: list[str]) -> SchemaError:
    close = get_close_matches(column.name, names, n=1)
    advice = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names)}"
    return SchemaError(f"{path} has no column {column.name!r}, which the schema names: {advice}")


def _files(path: Path) -> list[Path]:
    path = Path(path)
    if not path.exists():
        raise DataError(f"no data at {path}: give a file or a folder of {', '.join(FORMATS)} files")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("[!._]*") if p.name.endswith(FORMATS))
    if not files or not files[0].name.endswith(FORMATS):
        raise DataError(f"{path} is or holds no {', '.join(FORMATS)} file")
    return files


def _scan(file: Path) -> pl.LazyFrame:
    if file.suffix == ".parquet":
        return pl.scan_parquet(file)
    return pl.scan_csv(file, separator="\t" if ".tsv" in file.suffixes else ",", infer_schema=False)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file} cannot be read (truncated or not {' or '.join(FORMATS)}?): {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _types(file: Path) -> dict[str, pl.DataType]:
    with _reading(file):
        return dict(_scan(file).collect_schema())


def _whole(name: str, tables: list[Table]) -> bool:
    """Whether an id is a whole number in all rows of all tables that have it."""
    for table in tables:
        for file in table.files if any(column.name == name for column in table.columns) else ():
            dtype = _types(file).get(name)
            if dtype == pl.String:
                with _reading(file):
                    if (
                        not _scan(file)
                        .select(pl.col(name).str.contains(WHOLE).all())
                        .collect(engine="streaming")
                        .item()
                    ):
                        return False
    return True


def _checked(file: Path, columns: list[Column], whole: dict[str, bool]) -> pl.LazyFrame:
    """The wanted columns of one file with their types settled, every value having been checked."""
    types = _types(file)
    for column in columns:
        if column.name not in types:
            raise _missing(column, file, list(types))
    settled = {c.name: _settle(c, types[c.name], whole, file) for c in columns}
    wrong = {}
    for column in columns:
        value, raw = settled[column.name][0], pl.col(column.name)
        needed = column.role in ("id", "oracle") or column.side in ("target", "time")
        wrong[column.name] = value.is_null() if needed else value.is_null() & raw.is_not_null()
    rows = _scan(file)
    with _reading(file):
        found = rows.select(mask.any().alias(name) for name, mask in wrong.items()).collect(
            engine="streaming", optimizations=EVERY_FIELD
        )
        for name in [name for name in wrong if found[name][0]]:
            row, value = rows.with_row_index("", 1).filter(wrong[name]).select("", name).head(1).collect().row(0)
            held = "is empty" if value is None else f"holds {value!r}"
            raise DataError(f"{file}, row {row}: column {name!r} {held}: it must be {settled[name][1]}")
    return rows.select(value.alias(name) for name, (value, _) in settled.items())


def _settle(column: Column, dtype: pl.DataType, whole: dict[str, bool], file: Path) -> tuple[pl.Expr, str]:
    """The column with its type settled, null where a value is wrong, and what a value must be."""
    raw = pl.col(column.name)
    text = dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum))
    if column.role == "id" and (text or dtype.is_integer()):
        return (raw.cast(pl.Int64, strict=False) if whole[column.side] else raw.cast(pl.String)), "an id"
    if column.side == "time":
        if text:
            with _reading(file):
                first = _scan(file).select(raw.cast(pl.String).drop_nulls().first()).collect().item()
            return _epoch(raw.cast(pl.String), first), "a number or a time such as 2024-05-01 12:00:00"
        if isinstance(dtype, (pl.Datetime, pl.Date)):
            return raw.dt.epoch("s"), "a time"
        if dtype.is_numeric():
            return raw.cast(pl.Int64, strict=False), "a time in seconds"
    elif column.kind == "numeric" or column.side == "target":
        if text or dtype.is_numeric() or dtype == pl.Boolean:
            value = raw.str.strip_chars() if dtype == pl.String else raw
            value = value.cast(pl.Float64, strict=False)
            missing = value.is_nan() if dtype.is_float() and column.side != "target" else pl.lit(value=False)
            return pl.when(value.is_finite() | missing).then(value), "a number"
    elif column.kind == "multi-categorical":
        if isinstance(dtype, (pl.List, pl.Array)) or (text and column.separator is not None):
            return raw, "a list"
        if text:
            raise SchemaError(f"column {column.name!r} of {file} is text: give its separator in the schema")
    elif text or dtype == pl.Boolean or column.kind == "text":
        return raw.cast(pl.String), "a text"
    elif dtype.is_integer():
        return raw.cast(pl.Int64, strict=False), "a whole number"
    kind = "id" if column.role == "id" else column.kind if column.side in ("user", "item") else column.side
    raise SchemaError(f"column {column.name!r} of {file} is of type {dtype}, which a {kind} column cannot be: cast it")


def _epoch(text: pl.Expr, first: str | None) -> pl.Expr:
    """Seconds since 1970 of ISO 8601 times, or the numbers where ``first`` is one; null for anything else."""
    text = text.str.strip_chars()
    if first is not None and NUMBER.fullmatch(first.strip()):
        number = text.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False)
        return pl.coalesce(text.cast(pl.Int64, strict=False), number)
    text = text.str.replace("T", " ", literal=True)
    forms = []
    for clock in CLOCK:
        forms.append(text.str.to_datetime(f"%Y-%m-%d {clock}%#z", time_zone="UTC", strict=False).dt.epoch("s"))
        forms.append(text.str.to_datetime(f"%Y-%m-%d {clock}", strict=False).dt.epoch("s"))
    forms.append(text.str.to_date("%Y-%m-%d", strict=False).dt.epoch("s"))
    return pl.coalesce(forms)
