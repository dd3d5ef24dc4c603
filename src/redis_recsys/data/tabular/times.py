"""Times: their form in one file, and one unit for the whole data set.

A number is a time since 1970 in the unit in which it falls into the years 1990 to 2100, which no number does in two
units; ``unit`` in the schema overrides that. Numbers that fall there in no unit are *steps*: an order without days.
Dates and ISO 8601 texts are absolute, UTC where they name no offset. All times are written as int64 in the finest
unit that any file needs, so that events within a second keep their order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

import polars as pl
from polars.selectors import by_name

from ...dataset.schema import TICKS, Column, Unit
from ...errors import DataError
from .parts import ROW, Part, reading
from .values import Cells, beside, number, raw, unfit, with_parsed, words

NAMES: dict[Unit, str] = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
ORDER: tuple[Unit, ...] = ("s", "ms", "us", "ns")  # from coarse to fine
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
BEGIN, END = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (1990, 2100))
LAST = 253_402_300_800  # seconds: the year 10000
FORMS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M%#z", "%Y-%m-%d")
STEPS = "steps"
FRACTIONS = 10**6  # parts of a step, where steps are not whole numbers
NEEDED = "a number or a time such as 2024-05-01 12:00:00, alike within a file"


@dataclass
class TimeCells(Cells):
    """Reading of a file's time column: as numbers or as moments, which are datetimes.

    Attributes:
        exact: numbers as int64, null where they are not whole.
        finest: unit of the moments that keeps them all apart.
    """

    exact: pl.Expr | None = None
    finest: Unit = "us"


@dataclass(frozen=True)
class TimeScale:
    """Unit and range of the times of a data set.

    Attributes:
        unit: unit of the int64 that are written; None for steps.
        first: smallest time, in seconds since 1970, or smallest step.
        last: largest time or step.
    """

    unit: Unit | None
    first: float
    last: float

    def __str__(self) -> str:
        """Describe the times for people."""
        if self.unit is None:
            return (
                f"steps from {self.first:g} to {self.last:g}, which give an order and no days "
                "(if they are times since 1970, give the time column its unit: s, ms, us or ns)"
            )
        return f"{NAMES[self.unit]} since 1970, from {_moment(self.first)} to {_moment(self.last)} UTC"


def time_cells(part: Part, column: Column, thorough: bool = False) -> TimeCells:
    """Decide how the time column of a file is read.

    Args:
        part: the file.
        column: the time column.
        thorough: try every form of a text, not only that of its first value.

    Raises:
        SchemaError: the file has no such column, or one of a type that holds no times.
    """
    value, dtype = raw(part, column)
    if dtype == pl.String:
        text = words(value, part.options.nulls)
        with reading(part.path):
            first = part.rows.select(text.alias("first")).drop_nulls().head(1).collect().to_series()
        if len(first) and NUMBER.fullmatch(first[0]):
            return _numbers(part, column, text.cast(pl.Int64, strict=False), number(text, part))
        return _moments(part, column, _parsed(text, None if thorough else first), "us")
    if isinstance(dtype, pl.Datetime):
        return _moments(part, column, value, dtype.time_unit)
    if dtype == pl.Date:
        return _moments(part, column, value.cast(pl.Datetime("us")), "us")
    if dtype.is_integer():
        whole = value.cast(pl.Int64, strict=False)
        return _numbers(part, column, whole, whole.cast(pl.Float64))
    if dtype.is_numeric():
        return _numbers(part, column, pl.lit(None, pl.Int64), value.cast(pl.Float64))
    if dtype == pl.Null:
        return TimeCells(part, column, "null", pl.lit(None, pl.Int64), value.is_null(), "a time")
    raise unfit(part, column)


def settle_times(surveyed: Sequence[TimeCells]) -> tuple[list[pl.Expr], TimeScale]:
    """Settle one unit for all files.

    Args:
        surveyed: cells of every file, with their facts.

    Returns:
        The expressions that write the column, one for each file, and the scale of the times.

    Raises:
        DataError: numbers are in different units, in two files or in one, or steps are mixed with times.
    """
    kinds = {kind for cells in surveyed for kind in _kinds(cells)}
    numbers = [kind for kind in (*ORDER, STEPS) if kind in kinds]
    if len(numbers) > 1 or kinds == {STEPS, "moment"}:
        raise _contradiction(surveyed, [*numbers, "moment"])
    if numbers == [STEPS]:
        scale = FRACTIONS if any(cells.facts.get("fraction") for cells in surveyed) else 1
        return [_written(cells, None, scale) for cells in surveyed], TimeScale(None, *_range(surveyed, 1))
    own = cast(Unit, numbers[0] if numbers else "s")
    unit = max((_needed_unit(cells, own) for cells in surveyed), key=ORDER.index)
    first, last = _range(surveyed, TICKS[own])
    if unit == "ns" and max(abs(first), abs(last)) >= 2**63 / TICKS["ns"]:
        raise DataError(f"times from {_moment(first)} to {_moment(last)} do not fit nanoseconds, in which some are")
    return [_written(cells, unit, TICKS[unit] // TICKS[own]) for cells in surveyed], TimeScale(unit, first, last)


def _numbers(part: Part, column: Column, exact: pl.Expr, rounded: pl.Expr) -> TimeCells:
    value, whole = pl.col(beside(column)), pl.col("\0\0exact")
    parsed = {beside(column): pl.when(rounded.is_finite()).then(rounded), "\0\0exact": exact}
    wrong, needed = value.is_null(), NEEDED
    measures = {"first": value.min(), "last": value.max(), "fraction": (value != value.floor()).any()}
    if column.unit is not None:
        wrong |= value.abs() >= LAST * TICKS[column.unit]
        needed += f", and in {NAMES[column.unit]}, as the schema says, before the year 10000"
    return TimeCells(part, column, "number", value, wrong, needed, parsed, measures, exact=whole)


def _moments(part: Part, column: Column, moment: pl.Expr, finest: Unit) -> TimeCells:
    value = pl.col(beside(column))
    ticks, micro = value.dt.epoch(finest), value.dt.epoch("us")
    measures = {"first": micro.min(), "last": micro.max(), "fraction": (ticks % TICKS[finest] != 0).any()}
    parsed = {beside(column): moment}
    return TimeCells(part, column, "moment", value, value.is_null(), NEEDED, parsed, measures, finest=finest)


def _parsed(text: pl.Expr, first: pl.Series | None) -> pl.Expr:
    """Datetimes of ISO 8601 texts, in UTC; with ``first``, only of texts in its form."""
    if first is not None and len(first):
        for form in FORMS:
            if pl.select(_as(form, pl.lit(first))).item() is not None:
                return _as(form, text)
    return pl.coalesce(
        _as(form, text.str.replace(r" ?(UTC|GMT)$", "Z").str.replace(",", ".", literal=True)) for form in FORMS
    )


def _as(form: str, text: pl.Expr) -> pl.Expr:
    text = text.str.replace("T", " ", literal=True)
    if form.endswith("%d"):
        return text.str.to_date(form, strict=False).cast(pl.Datetime("us"))
    if form.endswith("%#z"):
        zoned = text.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False)
        return zoned.dt.replace_time_zone(None)
    return text.str.to_datetime(form, time_unit="us", strict=False)


def _kind(number: float) -> str:
    """The unit in which a number is a time between 1990 and 2100, or steps."""
    return next((unit for unit in ORDER if BEGIN <= number / TICKS[unit] < END), STEPS)


def _kinds(cells: TimeCells) -> set[str]:
    """Kinds of a file's values: "moment", units of numbers, or steps; none for a file without rows.

    The smallest and the largest number decide: each unit is an interval of numbers.
    """
    if cells.facts.get("first") is None:
        return set()
    if cells.form == "moment":
        return {"moment"}
    if cells.column.unit is not None:
        return {cells.column.unit}
    return {_kind(cells.facts["first"]), _kind(cells.facts["last"])}


def _contradiction(surveyed: Sequence[TimeCells], kinds: Sequence[str]) -> DataError:
    """Error about a data set with times of more than one kind, with an example of each of two."""
    examples = []
    for kind in kinds[:2]:
        cells = next(cells for cells in surveyed if kind in _kinds(cells))
        name = cells.part.names[cells.part.require(cells.column)]
        mask = pl.lit(value=True) if cells.form == "moment" else cells.value.is_in(_ends(cells, kind))
        rows = with_parsed(cells.part, [cells]).with_row_index(ROW, 1).filter(mask).select(ROW, by_name(name))
        row, value = rows.head(1).collect().row(0)
        what = {STEPS: "no time since 1970 in any unit", "moment": "a time"}.get(kind) or NAMES[cast(Unit, kind)]
        examples.append(f"{cells.part.path}, row {row}, holds {value} ({what})")
    return DataError(
        f"column {surveyed[0].column.name!r} has times of different kinds: {' but '.join(examples)}; "
        "write all alike, or give the column its unit in the schema: s, ms, us or ns"
    )


def _ends(cells: TimeCells, kind: str) -> list[float]:
    """The smallest and the largest number of a file, those that are of a kind."""
    return [number for number in (cells.facts["first"], cells.facts["last"]) if _kind(number) == kind]


def _needed_unit(cells: TimeCells, own: Unit) -> Unit:
    """The coarsest unit that keeps the times of a file apart; ``own`` is the unit of numbers."""
    if cells.form == "moment":
        return cells.finest if cells.facts["fraction"] else "s"
    if cells.facts.get("fraction"):
        return "ns" if own in ("us", "ns") else "us"
    return own


def _written(cells: TimeCells, unit: Unit | None, scale: int) -> pl.Expr:
    """Times as int64 in the unit that all files share; ``scale`` converts numbers to it."""
    if cells.form == "moment":
        return cells.value.dt.epoch(unit or "us")
    if cells.exact is None:
        return cells.value
    return pl.coalesce(cells.exact * scale, (cells.value * scale).round().cast(pl.Int64, strict=False))


def _range(surveyed: Sequence[TimeCells], ticks: int) -> tuple[float, float]:
    """First and last time of all files in seconds; ``ticks`` is the number of their units per second."""
    ends = []
    for cells in surveyed:
        if cells.facts.get("first") is not None:
            second = TICKS["us"] if cells.form == "moment" else ticks
            ends += [cells.facts["first"] / second, cells.facts["last"] / second]
    return min(ends, default=0.0), max(ends, default=0.0)


def _moment(seconds: float) -> str:
    try:
        return f"{datetime(1970, 1, 1) + timedelta(seconds=seconds):%Y-%m-%d %H:%M:%S}"
    except OverflowError:
        return f"{seconds:.0f} s"
