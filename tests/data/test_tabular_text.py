"""CSV as people have it: separators, encodings, decimal commas, null words, headers; declared or detected."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from redis_recsys.data import tabular
from redis_recsys.dataset.schema import Schema
from redis_recsys.errors import DataError, SchemaError
from tests.support.paths import ROOT
from tests.support.people import AT, BOUGHT, BRAND, ITEM, PRICE, TAGS, USER, People

LOG = "user,item,price\na,1,2.5\nb,2,\n"
ROWS = [("a", 1, 2.5), ("b", 2, None)]


@pytest.fixture
def people(tmp_path: Path) -> People:
    return People(tmp_path)


# Separators


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"], ids=ascii)
@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "LOG.CSV", "log.Csv.GZ", "log.TSV.gz"])
def test_a_separator_is_found_in_the_header(people: People, separator: str, name: str) -> None:
    text = LOG.replace(",", separator)
    people.write(name, gzip.compress(text.encode()) if name.lower().endswith("gz") else text)
    assert people.read(name, [PRICE]).rows() == ROWS


def test_each_file_has_its_own_separator(people: People) -> None:
    people.write("log/1.csv", "user;item\na;1\n")
    people.write("log/2.csv", "user|item\nb|2\n")
    people.write("items.csv", "item\tbrand\n1\tx,y\n2\tz\n")
    assert people.read("log", [BRAND], items="items.csv").rows() == [("a", 1), ("b", 2)]
    assert people.table("items")["brand"].to_list() == ["x,y", "z"]


def test_another_separator_is_an_option(people: People) -> None:
    people.write("log.csv", "user~item~price\na~1~2.5\nb~2~\n")
    with pytest.raises(SchemaError, match="its header is one field, 'user~item~price': give the separator"):
        people.read("log.csv", [PRICE])
    assert people.read("log.csv", [PRICE], options={"separator": "~"}).rows() == ROWS


def test_the_separator_of_the_schema_is_the_only_one(people: People) -> None:
    people.write("log.csv", LOG)
    with pytest.raises(SchemaError, match="has no column 'user'"):
        people.read("log.csv", [PRICE], options={"separator": ";"})


def test_a_table_of_its_own_may_be_written_otherwise(people: People) -> None:
    people.write("log.csv", "user~item\na~1\n")
    people.write("items.csv", "item:brand:price\n1:N/A:2,5\n".encode("utf-16"))
    options = {"separator": "~", "nulls": ["N/A"], "items": {"separator": ":", "decimal": ","}}
    people.read("log.csv", [BRAND, PRICE], items="items.csv", options=options)
    assert people.table("items").rows() == [(1, None, 2.5)]


@pytest.mark.parametrize("quote", ['"', "'"])
def test_quotes_are_an_option(people: People, quote: str) -> None:
    people.write("log.csv", f"user,item\n{quote}a,b{quote},1\n")
    assert people.read("log.csv", options={"quote": quote})["user"].to_list() == ["a,b"]


def test_a_file_without_quotes_may_have_them_in_its_values(people: People) -> None:
    people.write("log.csv", 'user,item\n"a,1\n5" pipe,2\n')
    assert people.read("log.csv", options={"quote": ""})["user"].to_list() == ['"a', '5" pipe']


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le with its mark", "utf-16-be with its mark"])
@pytest.mark.parametrize("packed", [False, True])
def test_files_that_begin_with_a_byte_order_mark_are_read(people: People, encoding: str, packed: bool) -> None:
    name, _, mark = encoding.partition(" with ")
    content = (("\ufeff" if mark else "") + "user,item\nJosé,1\n").encode(name)
    people.write("log.csv.gz" if packed else "log.csv", gzip.compress(content) if packed else content)
    assert people.read("log.csv.gz" if packed else "log.csv").rows() == [("José", 1)]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "cp1251", "shift_jis", "utf-16-le"])
@pytest.mark.parametrize("packed", [False, True])
def test_another_encoding_is_an_option(people: People, encoding: str, packed: bool) -> None:
    name = {"cp1251": "Пётр", "shift_jis": "花子"}.get(encoding, "José")
    content = f"user,item,größe\n{name},1,2\n" if encoding in ("cp1252", "latin-1") else f"user,item\n{name},1\n"
    people.write("log.csv", gzip.compress(content.encode(encoding)) if packed else content.encode(encoding))
    assert people.read("log.csv", options={"encoding": encoding})["user"].to_list() == [name]
    assert {path.name for path in people.raw.iterdir()} == {"schema.yaml", "interactions"}


@pytest.mark.parametrize(
    ("content", "name"),
    [("user,item\nJosé,1\n", "item"), ("user,item,größe\na,1,2\n", "größe")],
    ids=["in a row", "in the header"],
)
def test_what_is_not_utf_8_is_said_with_the_option(people: People, content: str, name: str) -> None:
    people.write("log.csv", content.encode("cp1252"))
    with pytest.raises((DataError, SchemaError), match=r"log\.csv is not UTF-8: .*source: \{encoding: cp1252\}"):
        people.read("log.csv", [BRAND | {"from": name}])


def test_a_wrong_encoding_is_named(people: People) -> None:
    people.write("log.csv", b"user,item\n\xff\x81,1\n")
    with pytest.raises(DataError, match=r"log\.csv is not shift_jis: .*codec can't decode"):
        people.read("log.csv", options={"encoding": "shift_jis"})


# Numbers and missing values


def test_decimal_commas_are_an_option(people: People) -> None:
    people.write("log.csv", 'user;item;price;at\na;1;9,90;"1772323200,5"\na;1;-1;1772323201\na;1;1,5e2;1772323202\n')
    rows = people.read("log.csv", [PRICE, AT], options={"decimal": ","})
    assert rows["price"].to_list() == [9.9, -1.0, 150.0]
    assert rows["at"].to_list() == [1772323200500000, 1772323201000000, 1772323202000000]


def test_a_decimal_comma_that_is_not_declared_is_said_with_the_option(people: People) -> None:
    people.write("log.csv", "user;item;price\na;1;9,90\n")
    with pytest.raises(DataError, match=r"row 1: column 'price' holds '9,90': .*source: \{decimal: ','\}"):
        people.read("log.csv", [PRICE])


def test_null_words_are_an_option_for_every_kind_of_column(people: People) -> None:
    people.write("log.csv", "user,item,brand,price,tags\na,1,NA, NA ,x|NA\nb,2,\\N,\\N,\\N\nc,3,x,1,y\n")
    rows = people.read("log.csv", [BRAND, PRICE, TAGS | {"separator": "|"}], options={"nulls": ["NA", "\\N"]})
    assert rows["brand"].to_list() == [None, None, "x"]
    assert rows["price"].to_list() == [None, None, 1.0]
    assert rows["tags"].to_list() == ["x|NA", None, "y"]


def test_without_the_option_such_a_word_is_a_category_and_no_number(people: People) -> None:
    people.write("log.csv", "user,item,brand,price\na,1,NA,1\nb,2,x,NA\n")
    assert people.read("log.csv", [BRAND])["brand"].to_list() == ["NA", "x"]
    with pytest.raises(DataError, match=r"row 2: column 'price' holds 'NA'.*source: \{nulls: \['NA'\]\}"):
        people.read("log.csv", [PRICE])


def test_a_null_word_is_no_id_and_no_target(people: People) -> None:
    people.write("log.csv", "user,item,bought\na,1,1\nNULL,2,NULL\n")
    with pytest.raises(DataError, match="row 2: column 'user' holds 'NULL': it must be an id"):
        people.read("log.csv", options={"nulls": ["NULL"]})
    people.write("log.csv", "user,item,bought\na,1,1\nb,2,NULL\n")
    with pytest.raises(DataError, match=r"row 2: column 'bought' holds 'NULL': it must be a number$"):
        people.read("log.csv", [BOUGHT], options={"nulls": ["NULL"]})


def test_true_and_false_are_numbers_in_csv_as_in_parquet(people: People) -> None:
    people.write("log.csv", "user,item,bought,price\na,1,True,false\nb,2,FALSE,1.5\n")
    rows = people.read("log.csv", [BOUGHT, PRICE])
    assert rows.select("bought", "price").rows() == [(1.0, 0.0), (0.0, 1.5)]


# Headers, lines and names


def test_blanks_around_the_names_of_a_header_do_no_harm(people: People) -> None:
    people.write("log.csv", '\ufeffuser, item ,"\u00a0price\t"\na,1,2.5\nb,2,\n')
    assert people.read("log.csv", [PRICE]).rows() == ROWS


@pytest.mark.parametrize("header", ["user,item,item", "user,item, item"])
def test_a_column_that_is_there_twice_is_an_error(people: People, header: str) -> None:
    people.write("log.csv", f"{header}\na,1,2\n")
    with pytest.raises(SchemaError, match=r"log\.csv has more than one column 'item'"):
        people.read("log.csv")


def test_a_column_that_nobody_reads_may_be_there_twice(people: People) -> None:
    people.write("log.csv", "user,item,x,x,\na,1,2,3,4\n")
    assert people.read("log.csv").rows() == [("a", 1)]


def test_empty_lines_are_passed_over(people: People) -> None:
    people.write("log.csv", "user,item,price\r\n\r\na,1,2.5\r\nb,2,\r\n\r\n\r\n")
    assert people.read("log.csv", [PRICE]).rows() == ROWS


def test_a_file_without_a_header_is_read_by_the_names_of_the_schema(people: People) -> None:
    people.write("u.data.tsv", "a\t1\t5\t881250949\nb\t2\t3\t881250950\n")
    people.write("u.item.csv", "1|2.5\n2|\n")
    options = {
        "separator": "\t",
        "names": ["user", "item", "rating", "at"],
        "items": {"separator": "|", "names": ["item", "price"]},
    }
    rows = people.read("u.data.tsv", [PRICE, AT], items="u.item.csv", options=options)
    assert rows.rows() == [("a", 1, 881250949), ("b", 2, 881250950)]
    assert people.table("items").rows() == [(1, 2.5), (2, None)]


def test_names_that_are_not_those_of_the_file_are_an_error(people: People) -> None:
    people.write("log.csv", "a,1,5\n")
    with pytest.raises(DataError, match=r"log\.csv.*2 != 3"):
        people.read("log.csv", options={"names": ["user", "item"]})


def test_hidden_folders_and_unusual_names_of_files(people: People) -> None:
    """Jupyter's and Spark's leftovers are not data; brackets and stars in a name are not a pattern."""
    people.write("log/part[1]*.csv", "user,item\na,1\n")
    people.write("log/day=2/PART.CSV", "user,item\nb,2\n")
    people.write("log/.ipynb_checkpoints/part-checkpoint.csv", "user,item\nc,3\n")
    people.write("log/_temporary/0/part.csv", "user,item\nc,3\n")
    people.write("log/table.parquet/part-0.snappy.parquet", {"user": ["d"], "item": [4]})
    people.write("log/table.parquet/_SUCCESS", "")
    assert sorted(people.read("log").rows()) == [("a", 1), ("b", 2), ("d", 4)]


# Columns read from other names


def test_a_column_may_be_read_from_another_name(people: People) -> None:
    people.write("log.csv", "user,item\na,1\nb,2\n")
    people.write("users.csv", "user,country\na,fr\nb,de\n")
    people.write("items.csv", "item,country\n1,it\n2,us\n")
    columns = [
        {"name": "home", "from": "country", "side": "user", "kind": "categorical"},
        {"name": "made_in", "from": "country", "side": "item", "kind": "categorical"},
    ]
    people.read("log.csv", columns, users="users.csv", items="items.csv")
    assert people.table("users").to_dicts() == [{"user": "a", "home": "fr"}, {"user": "b", "home": "de"}]
    assert people.table("items").to_dicts() == [{"item": 1, "made_in": "it"}, {"item": 2, "made_in": "us"}]
    written = yaml.safe_load((people.raw / "schema.yaml").read_text())
    assert all("from" not in column for column in written["columns"])


def test_an_id_may_have_another_name_in_each_table(people: People) -> None:
    people.write("log.csv", "id,user,product_id\n100,a,1\n101,b,2\n")
    people.write("items.csv", "id,brand\n1,x\n2,y\n")
    (people.path / "schema.yaml").write_text(
        yaml.safe_dump({"name": "small", "columns": [USER, ITEM | {"from": ["product_id", "id"]}, BRAND]})
    )
    tabular.read(people.path / "log.csv", people.path / "schema.yaml", people.raw, items=people.path / "items.csv")
    assert people.table("items").to_dicts() == [{"item": 1, "brand": "x"}, {"item": 2, "brand": "y"}]


def test_one_column_may_be_two(people: People) -> None:
    people.write("log.csv", "user,item,year\na,1,1984\n")
    columns: list[dict[str, Any]] = [
        {"name": "decade_of", "from": "year", "side": "item", "kind": "categorical"},
        {"name": "age", "from": "year", "side": "item", "kind": "numeric"},
    ]
    assert people.read("log.csv", columns).rows() == [("a", 1, "1984", 1984.0)]


@pytest.mark.parametrize("name", ["*", "^.*$", "a.b/c d", "Größe", "__item", "item exact"])
def test_a_column_of_the_files_may_have_any_name(people: People, name: str) -> None:
    people.write("log.csv", f"user,item,other,{name},at\na,1,x,y,2026-03-01\n")
    assert people.read("log.csv", [BRAND | {"from": name}, AT]).rows() == [("a", 1, "y", 1772323200)]


def test_a_name_that_no_file_has_is_named(people: People) -> None:
    people.write("log.csv", "user,item,lands\na,1,fr\n")
    with pytest.raises(SchemaError, match="has no column 'land', which the schema names: did you mean 'lands'"):
        people.read("log.csv", [BRAND | {"from": "land"}])


# The schema


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seperator": ";"}, "source.seperator: is not a known field"),
        ({"separator": "::"}, "source.separator: '::' is not one ASCII character"),
        ({"separator": ""}, "source.separator: is empty"),
        ({"separator": "§"}, "source.separator: '§' is not one ASCII character"),
        ({"encoding": "utf-9"}, "source.encoding: 'utf-9' is not a known encoding, such as cp1252"),
        ({"encoding": "base64"}, "source.encoding: 'base64' is not a known encoding"),
        ({"decimal": ";"}, "source.decimal: Input should be '.' or ','"),
        ({"nulls": [None]}, "source.nulls: quote each word, such as 'NULL'"),
        ({"nulls": [False]}, "source.nulls: quote each word"),
        ({"items": {"users": {}}}, "source.items.users: is not a known field"),
    ],
)
def test_a_wrong_option_is_named(people: People, options: dict[str, Any], message: str) -> None:
    people.write("log.csv", LOG)
    with pytest.raises(SchemaError) as caught:
        people.read("log.csv", options=options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (BRAND | {"unit": "s"}, "column 'brand': unit belongs to the time column"),
        (AT | {"unit": "h"}, "Input should be 's', 'ms', 'us' or 'ns'"),
        ({"name": "recent", "from": "x", "side": "user", "kind": "multi-categorical", "role": "history",
          "max_length": 3}, "column 'recent': the history is computed"),
    ],
)  # fmt: skip
def test_a_wrong_field_of_a_column_is_named(people: People, column: dict[str, Any], message: str) -> None:
    people.write("log.csv", LOG)
    with pytest.raises(SchemaError) as caught:
        people.read("log.csv", [column])
    assert message in str(caught.value)


def test_the_example_of_the_documentation_is_read(people: People) -> None:
    page = (ROOT / "docs" / "your-own-data.md").read_text()
    for name in ("source.csv", "source.yaml"):
        people.write(name, page.split(f"<!-- {name} -->")[1].split("```")[1].partition("\n")[2])
    tabular.read(people.path / "source.csv", people.path / "source.yaml", people.raw)
    rows = pl.read_parquet(people.raw / "interactions")
    assert rows.rows() == [("anna", "NA", 101, 9.9, 1714550400), ("ben", None, 102, None, 1714550405)]


def test_the_options_survive_saving(people: People) -> None:
    text = people.write(
        "schema.yaml",
        "name: s\nsource: {separator: ';', nulls: [NA, 0], items: {quote: ''}}\ncolumns:\n"
        "- {name: user, side: user, kind: categorical, role: id, from: [u, uid]}\n"
        "- {name: item, side: item, kind: categorical, role: id}\n- {name: at, side: time, kind: numeric, unit: ms}\n",
    )
    schema = Schema.load(text)
    assert schema.source.nulls == ["NA", "0"]
    assert schema.columns[0].names_in_files == ["u", "uid"]
    schema.save(text)
    assert Schema.load(text) == schema
