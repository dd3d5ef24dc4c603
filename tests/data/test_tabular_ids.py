"""Ids as people write them: empty, padded, with blanks; and tables whose ids do or do not match the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from redis_recsys.errors import DataError
from tests.support.people import BRAND, TAGS, People

LOG = "user,item\na,1\nb,2\nc,3\nd,4\n"


@pytest.fixture
def people(tmp_path: Path) -> People:
    return People(tmp_path)


@pytest.mark.parametrize("blank", ["", '""', '" "', '"\t"', "\u00a0", "\ufeff", "\u200b"], ids=ascii)
@pytest.mark.parametrize("column", ["user", "item"])
def test_an_empty_id_is_an_error(people: People, blank: str, column: str) -> None:
    row = {"user": "a", "item": "b"} | {column: blank}
    people.write("log/1.csv", LOG)
    people.write("log/2.csv", f"user,item,more\na,b,x\n{row['user']},{row['item']},x\n")
    with pytest.raises(DataError, match=rf"2\.csv, row 2: column '{column}' is empty: it must be an id"):
        people.read("log")
    assert not people.raw.exists()


def test_an_empty_id_of_parquet_or_of_a_table_is_an_error(people: People) -> None:
    people.write("log.parquet", {"user": ["a", " "], "item": [1, 2]})
    with pytest.raises(DataError, match=r"log\.parquet, row 2: column 'user' is empty"):
        people.read("log.parquet")
    people.write("log.csv", LOG)
    people.write("items.csv", 'item,brand\n1,x\n"",y\n')
    with pytest.raises(DataError, match=r"items\.csv, row 2: column 'item' is empty"):
        people.read("log.csv", [BRAND], items="items.csv")


@pytest.mark.parametrize(("one", "other", "value"), [("7", " 7", 7), ("7", '"7\t"', 7), ("a b", "\u00a0a b ", "a b")])
def test_ids_that_differ_by_blanks_around_them_are_one(people: People, one: str, other: str, value: object) -> None:
    people.write("log.csv", f"user,item\n{one},1\n{other},1\n")
    assert people.read("log.csv")["user"].to_list() == [value, value]


def test_blanks_are_stripped_in_every_table_alike(people: People) -> None:
    people.write("log.parquet", {"user": ["a", "a "], "item": [" x", "y"], "brand": ["red ", "red"]})
    people.write("users.csv", "user,plan\n a,gold \n")
    plan = {"name": "plan", "side": "user", "kind": "categorical"}
    rows = people.read("log.parquet", [BRAND, plan], users="users.csv")
    assert rows.rows() == [("a", "x", "red"), ("a", "y", "red")]
    assert people.table("users").rows() == [("a", "gold")]


def test_values_of_lists_are_stripped(people: People) -> None:
    people.write("log.parquet", {"user": [1], "item": [1], "tags": [[" a", "a", "", " "]]})
    assert people.read("log.parquet", [TAGS])["tags"].to_list() == [["a", "a"]]


# Tables of users and items


def test_how_many_ids_match_is_said(people: People, capsys: pytest.CaptureFixture) -> None:
    people.write("log.csv", LOG)
    people.write("items.csv", "item,brand\n1,x\n2,x\n3,x\n9,x\n8,x\n")
    people.read("log.csv", [BRAND], items="items.csv")
    said = capsys.readouterr().err
    assert "items.csv has 3 of the 4 items of the log, and 2 others\n" in said
    assert "warning" not in said


def test_a_match_below_half_is_a_warning_with_examples(people: People, capsys: pytest.CaptureFixture) -> None:
    people.write("log.csv", LOG.replace("b,2", "b,x"))
    people.write("items.csv", "item,brand\n1,x\n003,x\n004,x\n")
    people.read("log.csv", [BRAND], items="items.csv")
    said = capsys.readouterr().err
    assert "warning: " in said
    assert (
        "items.csv has 1 of the 4 items of the log, and 2 others; the rest of the log's items have no features" in said
    )
    assert "item '3' of the log is '003' there: write ids alike in all files" in said


@pytest.mark.parametrize(
    ("ids", "example"),
    [
        (["001", "002"], "item '1' of the log is '001' there"),
        (["1.0", "2.0"], "item '1' of the log is '1.0' there"),
        (["i1", "i2"], r"the log has item '1', '2', '3', the table 'i1', 'i2'"),
        ([11, 12], "the log has item 1, 2, 3, the table 11, 12"),
    ],
)
def test_no_match_is_an_error_with_examples(people: People, ids: list[Any], example: str) -> None:
    people.write("log.csv", LOG)
    people.write("items.csv", "item,brand\n" + "".join(f"{each},x\n" for each in ids))
    with pytest.raises(DataError, match=rf"items\.csv has none of the 4 items of the log: {example}"):
        people.read("log.csv", [BRAND], items="items.csv")
    assert not people.raw.exists()


def test_ids_stored_as_floats_match_whole_numbers(people: People) -> None:
    people.write("log.csv", LOG)
    people.write("items.parquet", {"item": [1.0, 2.0, 3.0, 4.0], "brand": ["x"] * 4})
    people.read("log.csv", [BRAND], items="items.parquet")
    assert people.table("items")["item"].to_list() == [1, 2, 3, 4]


def test_an_id_twice_in_a_table_is_an_error(people: People) -> None:
    people.write("log.csv", LOG)
    people.write("items.csv", "item,brand\n1,x\n2,x\n 1,y\n")
    with pytest.raises(DataError, match=r"items\.csv has item 1 in 2 rows: keep one row per id"):
        people.read("log.csv", [BRAND], items="items.csv")


def test_tables_and_logs_without_rows_are_named(people: People) -> None:
    people.write("log.csv", LOG)
    people.write("items.csv", "item,brand\n")
    with pytest.raises(DataError, match=r"items\.csv holds no rows"):
        people.read("log.csv", [BRAND], items="items.csv")
    people.write("log.csv", "user,item\n")
    with pytest.raises(DataError, match=r"log\.csv holds no rows"):
        people.read("log.csv")


def test_a_user_table_is_matched_too(people: People) -> None:
    people.write("log.csv", LOG)
    people.write("users.parquet", pl.DataFrame({"user": ["A", "B"], "plan": [1, 2]}))
    plan = {"name": "plan", "side": "user", "kind": "categorical"}
    with pytest.raises(
        DataError, match=r"users\.parquet has none of the 4 users of the log: the log has user 'a', 'b'"
    ):
        people.read("log.csv", [plan], users="users.parquet")
