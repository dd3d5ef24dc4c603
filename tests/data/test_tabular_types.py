"""Columns of any type, and parts that differ: one right column, or a fitting message."""

from __future__ import annotations

import decimal
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from redis_recsys.errors import DataError, SchemaError
from tests.support.people import AT, BOUGHT, BRAND, PRICE, TAGS, People

NAN = float("nan")
LARGEST = 2**63 - 1
TITLE: dict[str, Any] = {"name": "title", "side": "item", "kind": "text", "role": "label"}


@pytest.fixture
def people(tmp_path: Path) -> People:
    return People(tmp_path)


def part(**columns: Any) -> pl.DataFrame:
    """A part of a log with as many rows as its columns have."""
    size = len(next(iter(columns.values())))
    return pl.DataFrame({"user": list(range(size)), "item": list(range(size))} | columns)


def arrow(path: Path, **columns: pa.Array) -> None:
    size = len(next(iter(columns.values())))
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"user": list(range(size)), "item": list(range(size))} | columns), path)


# One column


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series([None, None]), [None, None]),
        (pl.Series(["a", None]), ["a", None]),
        (pl.Series([" red ", "red"]), ["red", "red"]),
        (pl.Series(["", " \u00a0\t"]), [None, None]),
        (pl.Series(["a", "b"], dtype=pl.Categorical), ["a", "b"]),
        (pl.Series(["a", None], dtype=pl.Enum(["b", "a"])), ["a", None]),
        (pl.Series([b"a", None]), ["a", None]),
        (pl.Series([3, None], dtype=pl.Int8), [3, None]),
        (pl.Series([3, None], dtype=pl.UInt64), [3, None]),
        (pl.Series([3, 2**64 - 1], dtype=pl.UInt64), ["3", "18446744073709551615"]),
        (pl.Series([3.0, None, NAN]), [3, None, None]),
        (pl.Series([3.0, None], dtype=pl.Float32), [3, None]),
        (pl.Series([decimal.Decimal("3.00"), None]), [3, None]),
        (pl.Series([decimal.Decimal(10**20), None], dtype=pl.Decimal(38, 0)), ["100000000000000000000", None]),
        (pl.Series([True, None]), ["true", None]),
        (pl.Series([date(2024, 5, 1), None]), ["2024-05-01", None]),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, pl.Series) else "",
)
def test_a_category_of_any_type_is_text_or_a_whole_number(people: People, values: pl.Series, expected: list) -> None:
    people.write("log.parquet", part(brand=values))
    assert people.read("log.parquet", [BRAND])["brand"].to_list() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series(["a", "b"], dtype=pl.Categorical), ["a", "b"]),
        (pl.Series(["7", "8"], dtype=pl.Categorical), [7, 8]),
        (pl.Series([b"7", b"b"]), ["7", "b"]),
        (pl.Series([1, LARGEST], dtype=pl.UInt64), [1, LARGEST]),
        (pl.Series([1, 2**63], dtype=pl.UInt64), ["1", str(2**63)]),
        (pl.Series([1.0, 2.0]), [1, 2]),
        (pl.Series([decimal.Decimal(1), decimal.Decimal(10**20)], dtype=pl.Decimal(38, 0)), ["1", str(10**20)]),
        (pl.Series([str(LARGEST), "-5"]), [LARGEST, -5]),
        (pl.Series([str(LARGEST), str(2**63)]), [str(LARGEST), str(2**63)]),
        (pl.Series(["+5", "5"]), ["+5", "5"]),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, pl.Series) else "",
)
def test_an_id_of_any_type_is_text_or_a_whole_number(people: People, values: pl.Series, expected: list) -> None:
    people.write("log.parquet", part(user=values))
    rows = people.read("log.parquet")
    assert rows["user"].to_list() == expected
    assert rows["user"].dtype in (pl.Int64, pl.String)


def test_dictionaries_of_pyarrow_are_read(people: People) -> None:
    texts, numbers = pa.array(["b", "a", "b"]).dictionary_encode(), pa.array([5, 6, 5]).dictionary_encode()
    arrow(people.path / "log.parquet", user=texts, item=numbers, brand=texts)
    rows = people.read("log.parquet", [BRAND])
    assert rows.rows() == [("b", 5, "b"), ("a", 6, "a"), ("b", 5, "b")]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series([None, None]), [None, None]),
        (pl.Series([["a", " b ", "", None], None]), [["a", "b"], None]),
        (pl.Series([[None], []], dtype=pl.List(pl.Null)), [[], []]),
        (pl.Series([["a"], ["b"]], dtype=pl.List(pl.Categorical)), [["a"], ["b"]]),
        (pl.Series([[1, 2], [None, 3]], dtype=pl.List(pl.Int16)), [[1, 2], [3]]),
        (pl.Series([[1.0, NAN], None]), [[1], None]),
        (pl.Series([[2**64 - 1], [1]], dtype=pl.List(pl.UInt64)), [["18446744073709551615"], ["1"]]),
        (pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int32, 2)), [[1, 2], [3, 4]]),
        (pl.Series([[b"a"], None]), [["a"], None]),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, pl.Series) else "",
)
def test_a_list_of_any_type_is_of_texts_or_whole_numbers(people: People, values: pl.Series, expected: list) -> None:
    people.write("log.parquet", part(tags=values))
    assert people.read("log.parquet", [TAGS])["tags"].to_list() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series([None, None]), [None, None]),
        (pl.Series([1, None], dtype=pl.UInt64), [1.0, None]),
        (pl.Series([1.5, NAN]), [1.5, NAN]),
        (pl.Series([decimal.Decimal("9.90"), None]), [9.9, None]),
        (pl.Series([True, None]), [1.0, None]),
        (pl.Series(["True", "false", "TRUE", " 1.5", "", "1e3", "nan"]), [1.0, 0.0, 1.0, 1.5, None, 1000.0, NAN]),
        (pl.Series(["1", "2"], dtype=pl.Categorical), [1.0, 2.0]),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, pl.Series) else "",
)
def test_a_number_of_any_type_is_a_float(people: People, values: pl.Series, expected: list) -> None:
    people.write("log.parquet", part(price=values))
    rows = people.read("log.parquet", [PRICE])
    assert rows["price"].equals(pl.Series("price", expected, dtype=pl.Float64))


@pytest.mark.parametrize("values", [["True", "false"], [True, False], ["1", "0"], [1.0, 0.0], ["true", "0"]])
def test_a_target_may_be_true_or_false(people: People, values: list[Any]) -> None:
    people.write("log.parquet", part(bought=values))
    assert people.read("log.parquet", [BOUGHT])["bought"].to_list() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [(pl.Series([" Dune", ""]), ["Dune", None]), (pl.Series([1984, 2]), ["1984", "2"]), (pl.Series([None]), [None])],
)
def test_a_label_is_a_text(people: People, values: pl.Series, expected: list[Any]) -> None:
    people.write("log.parquet", part(title=values))
    assert people.read("log.parquet", [TITLE])["title"].to_list() == expected


# Values and types that are wrong


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (BRAND, [1.0, 0.5], "row 2: column 'brand' holds 0.5: it must be a whole number or a text"),
        (BRAND, [decimal.Decimal("1.0"), decimal.Decimal("0.5")], "row 2: column 'brand' holds .*0.5.*whole number"),
        (TAGS, [[1.0], [0.5]], "row 2: column 'tags' holds .*0.5.*: it must be a list of whole numbers or texts"),
        (PRICE, [1.0, float("inf")], "row 2: column 'price' holds inf: it must be a number"),
        (BOUGHT, [1.0, NAN], "row 2: column 'bought' holds nan: it must be a number"),
        (BOUGHT, [True, None], "row 2: column 'bought' is empty"),
    ],
)
def test_a_wrong_value_is_named(people: People, column: dict, values: list[Any], message: str) -> None:
    people.write("log.parquet", part(**{column["name"]: values}))
    with pytest.raises(DataError, match=message):
        people.read("log.parquet", [column])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, None], "row 2: column 'user' is empty"),
        ([1.0, NAN], "row 2: column 'user' holds nan: it must be an id"),
        ([1.0, 1.5], "row 2: column 'user' holds 1.5: it must be an id"),
        ([1.0, 1e17], "row 2: column 'user' holds 1e\\+17: it must be an id.* up to 16 digits, as floats round"),
    ],
)
def test_a_wrong_id_of_floats_is_named(people: People, values: list[Any], message: str) -> None:
    people.write("log.parquet", part(user=values))
    with pytest.raises(DataError, match=message):
        people.read("log.parquet")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (BRAND, {"a": 1}, "which a categorical column cannot be: make each field a column"),
        (BRAND, ["a"], "which a categorical column cannot be: cast it"),
        (BRAND, datetime(2024, 5, 1), "which a categorical column cannot be: make it a number or a text of what"),
        (BRAND, timedelta(days=1), "which a categorical column cannot be: make it a number of days or seconds"),
        (PRICE, timedelta(days=1), "which a numeric column cannot be: make it a number of days or seconds"),
        (PRICE, date(2024, 5, 1), "which a numeric column cannot be: make it a number"),
        (TAGS, [{"a": 1}], "which a multi-categorical column cannot be"),
        (TITLE, ["a"], "which a text column cannot be"),
        (BOUGHT, time(12), "which a target column cannot be"),
    ],
)
def test_types_that_hold_something_else_are_refused_with_advice(
    people: People, column: dict[str, Any], value: Any, message: str
) -> None:
    people.write("log.parquet", part(**{column["name"]: [value]}))
    with pytest.raises(SchemaError, match=message):
        people.read("log.parquet", [column])


def test_bytes_that_are_no_text_are_named(people: People) -> None:
    people.write("log.parquet", part(brand=[b"\xff\xfe"]))
    with pytest.raises(DataError, match=r"log\.parquet holds bytes that are no UTF-8 text"):
        people.read("log.parquet", [BRAND])


# Parts that differ


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pl.Series(["a"]), pl.Series([None], dtype=pl.Null), ["a", None]),
        (pl.Series([1], dtype=pl.Int32), pl.Series([2], dtype=pl.Int64), [1, 2]),
        (pl.Series([1], dtype=pl.Int32), pl.Series([2.0, NAN]), [1, 2, None]),
        (pl.Series([1], dtype=pl.UInt64), pl.Series([None, 2.0]), [1, None, 2]),
        (pl.Series([1], dtype=pl.Int64), pl.Series(["a"]), ["1", "a"]),
        (pl.Series([1.0]), pl.Series(["1"]), ["1", "1"]),
        (pl.Series(["a"], dtype=pl.Categorical), pl.Series(["a"]), ["a", "a"]),
        (pl.Series([True]), pl.Series([0]), [1, 0]),
        (pl.Series([b"a"]), pl.Series(["a"]), ["a", "a"]),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, pl.Series) else "",
)
def test_parts_that_differ_harmlessly_are_one_category(
    people: People, one: pl.Series, other: pl.Series, expected: list[Any]
) -> None:
    people.write("log/1.parquet", part(brand=one))
    people.write("log/2.parquet", part(brand=other))
    assert people.read("log", [BRAND])["brand"].to_list() == expected
    people.write("log/1.parquet", part(brand=other))
    people.write("log/2.parquet", part(brand=one))
    assert sorted(people.read("log", [BRAND])["brand"].to_list(), key=str) == sorted(expected, key=str)


def test_plain_and_large_strings_and_lists_are_alike(people: People) -> None:
    plain, large = pa.array(["a", None]), pa.array(["a", "b"], pa.large_string())
    lists, large_lists = pa.array([["x"], None]), pa.array([["x"], ["y"]], pa.large_list(pa.large_string()))
    nulls, null_lists = pa.nulls(2), pa.array([[None], []], pa.list_(pa.null()))
    arrow(people.path / "log" / "1.parquet", brand=plain, tags=lists)
    arrow(people.path / "log" / "2.parquet", brand=large, tags=large_lists)
    arrow(people.path / "log" / "3.parquet", brand=nulls, tags=null_lists)
    rows = people.read("log", [BRAND, TAGS])
    assert rows["brand"].to_list() == ["a", None, "a", "b", None, None]
    assert rows["tags"].to_list() == [["x"], None, ["x"], ["y"], [], []]


def test_lists_and_separated_texts_are_alike(people: People) -> None:
    people.write("log/1.parquet", part(tags=[["a", "b"]]))
    people.write("log/2.csv", "user,item,tags\n1,1,a| b |\n1,1,\n")
    rows = people.read("log", [TAGS | {"separator": "|"}])
    assert rows["tags"].to_list() == [["a", "b"], ["a", "b"], None]


def test_ids_that_are_whole_in_one_part_and_texts_in_another_are_texts(people: People) -> None:
    people.write("log/1.parquet", part(user=[1.0, 2.0]))
    people.write("log/2.csv", "user,item\n1,0\nx,1\n")
    people.write("log/3.parquet", part(user=pl.Series(["1", "2"], dtype=pl.Categorical)))
    assert people.read("log")["user"].to_list() == ["1", "2", "1", "x", "1", "2"]


def test_parts_with_and_without_rows_agree(people: People) -> None:
    people.write("log/1.csv", "user,item,brand,at\n")
    people.write("log/2.csv", "user,item,brand,at\n1,2,a,2026-03-01\n")
    people.write("log/3.parquet", part(brand=[1], at=[1772323200000]).clear())
    assert people.read("log", [BRAND, AT]).rows() == [(1, 2, "a", 1772323200)]


def test_parts_that_truly_contradict_each_other_are_both_named(people: People) -> None:
    people.write("log/1.parquet", part(brand=["True"]))
    people.write("log/2.parquet", part(brand=[True]))
    with pytest.raises(SchemaError, match=r"'brand' is true or false in .*2\.parquet and text in .*1\.parquet"):
        people.read("log", [BRAND])


def test_a_part_that_lacks_a_column_is_named(people: People) -> None:
    people.write("log/1.parquet", part(brand=["a"]))
    people.write("log/2.parquet", part(other=["a"]))
    with pytest.raises(SchemaError, match=r"2\.parquet has no column 'brand', which the schema names: it has user"):
        people.read("log", [BRAND])


def test_null_columns_become_a_dataset(people: People) -> None:
    """From files to encoded rows: a column of nulls is unknown for everybody."""
    rows = part(brand=[None] * 20, price=[None] * 20, tags=[None] * 20, at=list(range(20)))
    people.write("log.parquet", rows.with_columns(pl.col("item") % 4))
    people.read("log.parquet", [BRAND, PRICE, TAGS, AT])
    dataset = people.dataset()
    assert dataset.items.categorical[:, 1:].tolist() == [[0, 0, 0, 0]] * 4
    assert dataset.items.numeric.tolist() == [[0.0]] * 4
