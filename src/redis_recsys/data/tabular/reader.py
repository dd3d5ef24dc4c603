"""Reader of anyone's CSV or parquet, described by a small ``schema.yaml``, into raw tables.

Interactions are one file or a folder of parts; features of users and items are columns of it, or lie in tables of
their own with one row per id. One streaming pass over every file checks each value, so that an error names the file,
the row and the column before anything is written, and gathers the facts that give each column one type over all
files; a second pass writes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import polars as pl
from polars.selectors import by_name

from ...dataset.schema import Column, Schema
from ...errors import DataError
from ...utils.files import keep_inputs, written_aside
from ...utils.output_kinds import RAW
from ...utils.progress import console, progress
from .matching import match_ids
from .parts import BLANKS, ROW, Part, files_of, open_part, reading
from .times import TimeCells, settle_times, time_cells
from .values import Cells, cells, settle, with_parsed

EVERY_FIELD = pl.QueryOptFlags(projection_pushdown=False)  # otherwise Polars overlooks rows with too many fields
MISSING = {"na", "n/a", "null", "none", "nan", "nil", "\\n", "-", "?"}
DECIMAL_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+")


@dataclass
class Table:
    """One table: interactions, users or items.

    Attributes:
        name: ``interactions``, ``users`` or ``items``.
        path: file or folder of the table.
        parts: its files, opened.
        columns: the schema's columns that are read from it.
        surveyed: cells of the columns, for every part.
    """

    name: str
    path: Path
    parts: list[Part]
    columns: list[Column] = field(default_factory=list)
    surveyed: list[list[Cells]] = field(default_factory=list)


def read(source: Path, schema: Path, folder: Path, users: Path | None = None, items: Path | None = None) -> None:
    """Write the raw folder of the data in ``source``, whole or not at all.

    Ids become int64 where all of them are whole numbers, and texts otherwise. Times become int64 in one unit, which
    the raw schema names, or steps; see :mod:`.times`.

    Args:
        source: interactions, a file in one of ``FORMATS`` or a folder of such files with the same columns.
        schema: description of the columns; others are left out.
        folder: raw data folder to write.
        users: table with one row per user id, a file or a folder.
        items: table with one row per item id.

    Raises:
        SchemaError: the schema is invalid, the data lacks a column that it names, or types contradict each other.
        DataError: a file cannot be read, or holds a value that its column must not hold; a table of users or items
            has none of the log's ids; or ``folder`` holds an input.
    """
    keep_inputs(folder, source, schema, users, items)
    description = Schema.load(schema)
    paths = {"interactions": Path(source)} | {
        name: Path(path) for name, path in (("users", users), ("items", items)) if path is not None
    }
    with written_aside(folder, RAW) as raw:
        copies = raw / "in_utf8"
        copies.mkdir()
        (raw / "interactions").mkdir()
        tables = _tables(description, paths, copies)
        for table in tables.values():
            with progress(f"checking {table.name}", len(table.parts)) as advance:
                for number, part in enumerate(table.parts):
                    table.parts[number], cells_of_part = _survey(part, table.columns)
                    table.surveyed.append(cells_of_part)
                    advance(1)
        if not any(cells_of_part[0].facts["rows"] for cells_of_part in tables["interactions"].surveyed):
            raise DataError(f"{source} holds no rows")
        written = _write(description, tables, raw)
        shutil.rmtree(copies)
        written.save(raw / "schema.yaml")
        log = raw / "interactions" / "part-0.parquet"
        for name in ("users", "items"):
            if name in tables:
                key = description.id_column("user" if name == "users" else "item")
                match_ids(log, raw / f"{name}.parquet", key, tables[name].path)


def _tables(schema: Schema, paths: dict[str, Path], copies: Path) -> dict[str, Table]:
    """Open the files and decide which table gives which column: a side's own table comes before the interactions."""
    keys = {"users": [schema.id_column("user")], "items": [schema.id_column("item")]}
    core = [column for column in schema.columns if column.role == "id" or column.side in ("target", "time")]
    tables = {}
    for name, path in paths.items():
        needed = keys.get(name, core)
        options = schema.source.of(name)
        tables[name] = Table(name, path, [open_part(file, options, needed, copies) for file in files_of(path)])
    for column in schema.columns:
        if column.role == "history":
            continue
        own, log = tables.get(f"{column.side}s"), tables["interactions"]
        if column.role == "id":
            homes = [log, own] if own else [log]
        else:
            homes = [own] if own and own.parts[0].name_of(column) is not None else [log]
        for home in homes:
            home.parts[0].require(column, also=list(own.parts[0].types) if own and own is not home else ())
            home.columns.append(column)
    return tables


def _survey(part: Part, columns: Sequence[Column]) -> tuple[Part, list[Cells]]:
    """Check every value of a file and compute the facts of its columns.

    Returns:
        The part, without empty lines, and the cells of the columns.

    Raises:
        SchemaError: a column is missing or has a type that it cannot have.
        DataError: the file cannot be read, or a value is wrong.
    """
    surveyed = _cells(part, columns)
    if _measure(part, surveyed):
        part = part.without_blank_lines()
        surveyed = _cells(part, columns)
        _measure(part, surveyed)
    if any(one.facts["wrong"] for one in surveyed):
        surveyed = _cells(part, columns, thorough=True)
        _measure(part, surveyed)
    for one in surveyed:
        if one.facts["wrong"]:
            raise _wrong(one)
    return part, surveyed


def _cells(part: Part, columns: Sequence[Column], thorough: bool = False) -> list[Cells]:
    return [(time_cells if column.side == "time" else cells)(part, column, thorough) for column in columns]


def _measure(part: Part, columns: Sequence[Cells]) -> bool:
    """Compute the facts of all columns of a file in one pass; return whether it has empty lines."""
    all_empty = pl.all_horizontal(by_name(*part.rows.collect_schema()).is_null())
    blank = all_empty.any() if part.is_text else pl.lit(value=False)
    measures = {"blank": blank, "rows": pl.len()}
    for number, one in enumerate(columns):
        column_measures = {"wrong": one.wrong.any(), **one.measures}
        measures |= {f"{number}/{name}": expression for name, expression in column_measures.items()}
    with reading(part.path):
        row = (
            with_parsed(part, columns)
            .select(expression.alias(name) for name, expression in measures.items())
            .collect(engine="streaming", optimizations=EVERY_FIELD)
        )
    values = row.row(0, named=True)
    for number, one in enumerate(columns):
        one.facts = {name: values[f"{number}/{name}"] for name in ("wrong", *one.measures)} | {"rows": values["rows"]}
    return bool(values["blank"])


def _wrong(one: Cells) -> DataError:
    """Error about the first wrong value of a column."""
    name = one.part.require(one.column)
    with reading(one.part.path):
        rows = (
            with_parsed(one.part, [one])
            .with_row_index(ROW, 1)
            .filter(one.wrong)
            .select(ROW, by_name(one.part.names[name]))
        )
        row, value = rows.head(1).collect().row(0)
    bare = value.strip(BLANKS) if isinstance(value, str) else None
    held = "is empty" if value is None or bare == "" else f"holds {value!r}"
    text = f"{one.part.path}, row {row}: column {name!r} {held}: it must be {one.needed}"
    if bare is not None and bare.lower() in MISSING and not one.column.role and one.column.side in ("user", "item"):
        text += f" (if {bare!r} means that it is missing, say so in the schema: source: {{nulls: [{bare!r}]}})"
    elif bare is not None and DECIMAL_COMMA.fullmatch(bare):
        text += " (if the comma is the decimal mark, say so in the schema: source: {decimal: ','})"
    return DataError(text)


def _write(schema: Schema, tables: dict[str, Table], raw: Path) -> Schema:
    """Write the tables with one type per column over all files; return the schema of the written tables."""
    columns = []
    expressions: dict[tuple[str, str], list[pl.Expr]] = {}
    for column in schema.columns:
        homes = [table for table in tables.values() if column in table.columns]
        surveyed = [cells[table.columns.index(column)] for table in homes for cells in table.surveyed]
        unit = column.unit
        if column.side == "time":
            settled, scale = settle_times(cast(list[TimeCells], surveyed))
            unit = scale.unit
            console.print(f"{column.name}: {scale}", markup=False, highlight=False, soft_wrap=True)
        else:
            settled = settle(column, surveyed)
        for table in homes:
            expressions[table.name, column.name] = settled[: len(table.parts)]
            settled = settled[len(table.parts) :]
        columns.append(column.model_copy(update={"read_from": None, "unit": unit}))
    for table in tables.values():
        frames = [
            with_parsed(part, table.surveyed[number]).select(
                expressions[table.name, c.name][number].alias(c.name) for c in table.columns
            )
            for number, part in enumerate(table.parts)
        ]
        path = raw / ("interactions/part-0.parquet" if table.name == "interactions" else f"{table.name}.parquet")
        pl.concat(frames).sink_parquet(path)
    return Schema(name=schema.name, columns=columns)
