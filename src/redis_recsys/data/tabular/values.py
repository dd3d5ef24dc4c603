"""Values of one column: their form in one file, the wrong ones among them, and one type over all files.

A :class:`Cells` says how a column of one file is read. Its ``facts`` are computed in one pass over the file, together
with those of all other columns; ``settle`` then gives the expressions that write the column alike for all files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl
from polars.selectors import by_name

from ...dataset.schema import Column
from ...errors import SchemaError
from .parts import BLANKS, Part

Form = Literal["null", "whole", "text", "truth", "list of whole", "list of text", "separated", "number", "moment"]
EXACT = 2**53  # whole numbers up to here are exact as floats
TRUTHS = {"true": 1.0, "false": 0.0}
ADVICE = {
    pl.Duration: "make it a number of days or seconds",
    pl.Datetime: "make it a number or a text of what matters, such as the hour or the year",
    pl.Date: "make it a number or a text of what matters, such as the year",
    pl.Struct: "make each field a column",
    pl.Boolean: "make it a number or a text",
}


@dataclass
class Cells:
    """Reading of a column of one file.

    Attributes:
        part: the file.
        column: column of the schema.
        form: form of the values.
        value: the value, null where it is missing or wrong.
        wrong: whether a value is one that the column must not hold, or is missing where it is needed.
        needed: requirement on a value, in words.
        parsed: name -> expression of an additional column, to which the other expressions refer.
        measures: name -> expression of one value for the whole file.
        facts: name -> that value, once the file has been surveyed.
    """

    part: Part
    column: Column
    form: Form
    value: pl.Expr
    wrong: pl.Expr
    needed: str
    parsed: dict[str, pl.Expr] = field(default_factory=dict)
    measures: dict[str, pl.Expr] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def beside(column: Column) -> str:
    """Name of the additional column with the parsed values of a column of the schema, so that it is parsed once."""
    return f"\0{column.name}"


def with_parsed(part: Part, columns: Sequence[Cells]) -> pl.LazyFrame:
    """The rows of a file with the parsed values of some columns added."""
    return part.rows.with_columns(expr.alias(name) for cells in columns for name, expr in cells.parsed.items())


def raw(part: Part, column: Column) -> tuple[pl.Expr, pl.DataType]:
    """The column as the file has it, and its type; categories and UTF-8 bytes are texts."""
    name = part.require(column)
    dtype, value = part.types[name], by_name(part.names[name]).as_expr()  # pl.col takes "*" and "^…$" as patterns
    return (value.cast(pl.String), pl.String()) if _is_text(dtype) else (value, dtype)


def words(text: pl.Expr, nulls: Sequence[str]) -> pl.Expr:
    """Texts without blanks around them; null for empty texts and for words that mean a missing value."""
    bare = text.str.strip_chars(BLANKS)
    return pl.when(~bare.is_in(["", *nulls]) if nulls else bare != "").then(bare)


def number(text: pl.Expr, part: Part) -> pl.Expr:
    """Texts as Float64, null where they are not numbers."""
    return (text.str.replace(",", ".", literal=True) if part.options.decimal == "," else text).cast(
        pl.Float64, strict=False
    )


def cells(part: Part, column: Column, thorough: bool = False) -> Cells:
    """Decide how a column of a file is read, any column but the time.

    Args:
        part: the file.
        column: column of the schema.
        thorough: look for ``true`` and ``false`` among the texts of numbers, which takes a while.

    Raises:
        SchemaError: the file has no such column, or one of a type that it cannot have.
    """
    value, dtype = raw(part, column)
    if column.kind == "numeric" or column.side == "target":
        column_cells = _number(part, column, value, dtype, thorough)
    elif column.kind == "multi-categorical":
        column_cells = _list(part, column, value, dtype)
    elif column.kind == "text":
        column_cells = _label(part, column, value, dtype)
    else:
        column_cells = _category(part, column, value, dtype)
    if column_cells is None:
        raise unfit(part, column)
    return column_cells


def unfit(part: Part, column: Column) -> SchemaError:
    """Error about a column whose type contradicts the schema."""
    dtype = part.types[part.require(column)]
    what = "an id" if column.role == "id" else f"a {column.kind if column.side in ('user', 'item') else column.side}"
    advice = next((text for kind, text in ADVICE.items() if isinstance(dtype, kind)), "cast it")
    return SchemaError(
        f"column {column.name!r} of {part.path} is of type {dtype}, which {what} column cannot be: {advice}"
    )


def settle(column: Column, surveyed: Sequence[Cells]) -> list[pl.Expr]:
    """Settle one type for all files, and return the expression that writes the column for each of them.

    Args:
        column: column of the schema.
        surveyed: cells of every file that has the column, with their facts.

    Raises:
        SchemaError: two files contradict each other.
    """
    forms: set[Form] = {cells.form for cells in surveyed if cells.form != "null"}
    if "number" in forms or column.kind == "numeric" or column.side == "target":
        return [cells.value.cast(pl.Float64) for cells in surveyed]
    if column.kind == "multi-categorical":
        return _settle_lists(column, surveyed, forms)
    _no_truths_among_texts(column, surveyed, forms)
    if column.role == "id":
        whole = all(cells.facts.get("whole", True) for cells in surveyed)
    else:
        whole = bool(forms) and "text" not in forms and all(cells.facts.get("whole", True) for cells in surveyed)
        whole = whole and forms != {"truth"}
    return [cells.value.cast(pl.Int64 if whole else pl.String) for cells in surveyed]


def _is_text(dtype: pl.DataType) -> bool:
    return isinstance(dtype, (pl.String, pl.Categorical, pl.Enum, pl.Binary))


def _whole(value: pl.Expr, dtype: pl.DataType) -> pl.Expr | None:
    """The whole numbers of a numeric type, null for other numbers; None for types without whole numbers."""
    if dtype.is_integer():
        return value
    if isinstance(dtype, pl.Decimal):
        return pl.when(value % 1 == 0).then(value.cast(pl.Int128, strict=False))
    if dtype.is_float():
        return pl.when((value == value.floor()) & (value.abs() <= EXACT)).then(value.cast(pl.Int64, strict=False))
    return None


def _fits(whole: pl.Expr) -> pl.Expr:
    """Whether whole numbers fit into 64 bits."""
    return whole.cast(pl.Int64, strict=False).is_not_null() | whole.is_null()


def _category(part: Part, column: Column, value: pl.Expr, dtype: pl.DataType) -> Cells | None:
    is_id = column.role == "id"
    needed = "an id" if is_id else "a whole number or a text"
    present = value.is_not_null()
    measures: dict[str, pl.Expr] = {}
    parsed: dict[str, pl.Expr] = {}
    form: Form
    if dtype == pl.Null:
        form = "null"
    elif dtype == pl.String:
        parsed[beside(column)] = words(value, part.options.nulls)
        form, value = "text", pl.col(beside(column))
        present = pl.lit(value=False)
        if is_id:
            measures["whole"] = value.cast(pl.Int64, strict=False).cast(pl.String).eq_missing(value).all()
    elif (whole := _whole(value, dtype)) is not None:
        form = "whole"
        if dtype.is_float():
            present &= value.is_not_nan()
            needed += ", and one of up to 16 digits, as floats round what is longer"
        value = whole
        measures["whole"] = _fits(whole).all()
    elif dtype == pl.Boolean and not is_id:
        form = "truth"
    elif dtype == pl.Date and not is_id:
        form, value = "text", value.cast(pl.String)
    else:
        return None
    wrong = value.is_null() if is_id else present & value.is_null()
    return Cells(part, column, form, value, wrong, needed, parsed, measures)


def _number(part: Part, column: Column, value: pl.Expr, dtype: pl.DataType, thorough: bool) -> Cells | None:
    if dtype == pl.String:
        text = words(value, part.options.nulls)
        present, parsed = text.is_not_null(), number(text, part)
        if thorough:
            truths = text.str.to_lowercase().replace_strict(TRUTHS, default=None, return_dtype=pl.Float64)
            parsed = pl.coalesce(parsed, truths)
    elif dtype.is_numeric() or dtype in (pl.Boolean, pl.Null):
        present, parsed = value.is_not_null(), value.cast(pl.Float64)
    else:
        return None
    value = pl.col(beside(column))
    if column.side == "target":
        wrong = value.is_null() | ~value.is_finite()
    else:
        wrong = (present & value.is_null()) | value.is_infinite()
    return Cells(part, column, "number", value, wrong, "a number", {beside(column): parsed})


def _label(part: Part, column: Column, value: pl.Expr, dtype: pl.DataType) -> Cells | None:
    if not (dtype.is_numeric() or dtype.is_temporal() or dtype in (pl.String, pl.Boolean, pl.Null)):
        return None
    text = words(value.cast(pl.String), part.options.nulls)
    return Cells(part, column, "text", text, pl.lit(value=False), "a text")


def _list(part: Part, column: Column, value: pl.Expr, dtype: pl.DataType) -> Cells | None:
    never = pl.lit(value=False)
    if dtype == pl.Null:
        return Cells(part, column, "null", value, never, "a list")
    if dtype == pl.String:
        if column.separator is None:
            raise SchemaError(f"column {column.name!r} of {part.path} is text: give its separator in the schema")
        return Cells(part, column, "separated", words(value, part.options.nulls), never, "a list")
    if isinstance(dtype, pl.Array):
        value = value.arr.to_list()
    elif not isinstance(dtype, pl.List):
        return None
    inner, element = dtype.inner, pl.element()
    assert isinstance(inner, pl.DataType)
    if inner == pl.Null:
        return Cells(part, column, "null", pl.when(value.is_not_null()).then(value.list.head(0)), never, "a list")
    if _is_text(inner) or inner in (pl.Boolean, pl.Date):
        texts = value.list.eval(words(element.cast(pl.String), part.options.nulls)).list.drop_nulls()
        return Cells(part, column, "list of text", texts, never, "a list")
    whole = _whole(element, inner)
    if whole is None:
        return None
    bad = element.is_not_null() & whole.is_null()
    if inner.is_float():
        bad &= element.is_not_nan()
    return Cells(
        part,
        column,
        "list of whole",
        value.list.eval(whole).list.drop_nulls(),
        value.list.eval(bad).list.any().fill_null(value=False),
        "a list of whole numbers or texts",
        measures={"whole": value.list.eval(_fits(whole)).list.all().all()},
    )


def _settle_lists(column: Column, surveyed: Sequence[Cells], forms: set[Form]) -> list[pl.Expr]:
    if forms == {"separated"} or (not forms and column.separator is not None):
        return [
            cells.value.cast(pl.String) if cells.form == "separated" else pl.lit(None, pl.String) for cells in surveyed
        ]
    whole = forms == {"list of whole"} and all(cells.facts.get("whole", True) for cells in surveyed)
    written = pl.List(pl.Int64 if whole else pl.String)
    expressions = []
    for cells in surveyed:
        value = cells.value
        if cells.form == "separated":
            value = value.str.split(column.separator or "")
            value = value.list.eval(words(pl.element(), cells.part.options.nulls)).list.drop_nulls()
        expressions.append(value.cast(written))
    return expressions


def _no_truths_among_texts(column: Column, surveyed: Sequence[Cells], forms: set[Form]) -> None:
    if {"truth", "text"} <= forms:
        one, other = (next(cells.part.path for cells in surveyed if cells.form == form) for form in ("truth", "text"))
        raise SchemaError(f"column {column.name!r} is true or false in {one} and text in {other}: write them alike")
