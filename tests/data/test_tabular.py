"""Anyone's CSV and parquet: inputs, resulting types, and the message for each kind of bad input."""

from __future__ import annotations

import gzip
import textwrap
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from redis_recsys.data import tabular
from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.interactions import Dataset
from redis_recsys.dataset.split import Split
from redis_recsys.errors import DataError, SchemaError
from tests.support.paths import ROOT

SCHEMA = """
name: shop
columns:
- {name: customer, side: user, kind: categorical, role: id}
- {name: plan, side: user, kind: categorical}
- {name: age, side: user, kind: numeric}
- {name: recent, side: user, kind: multi-categorical, role: history, max_length: 5}
- {name: product, side: item, kind: categorical, role: id}
- {name: title, side: item, kind: text, role: label}
- {name: tags, side: item, kind: multi-categorical, max_length: 3, separator: "|"}
- {name: bought, side: target, kind: categorical}
- {name: at, side: time, kind: numeric}
"""
FLAT = """\
customer,plan,age,product,title,tags,bought,at,ignored
1,free,30,p1,"Socks, red",wool|red,1,2024-05-01 12:00:00,x
2,paid,,p2,Hat,,0,2024-05-01T12:00:01Z,x
1,free,30.5,p2,Hat,felt,1,2024-05-02,x
"""


class Folder:
    """Files of a user, and the reader on them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = path / "raw"
        self.write("schema.yaml", SCHEMA)

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def read(self, source: str, **tables: str) -> pl.DataFrame:
        paths = {name: self.path / table for name, table in tables.items()}
        tabular.read(self.path / source, self.path / "schema.yaml", self.raw, **paths)
        return pl.read_parquet(self.raw / "interactions")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_flat_csv_becomes_typed_columns(folder: Folder) -> None:
    folder.write("log.csv", FLAT)
    rows = folder.read("log.csv")
    assert rows.rows(named=True) == [
        {"customer": 1, "plan": "free", "age": 30.0, "product": "p1", "title": "Socks, red", "tags": "wool|red",
         "bought": 1.0, "at": 1714564800},
        {"customer": 2, "plan": "paid", "age": None, "product": "p2", "title": "Hat", "tags": None,
         "bought": 0.0, "at": 1714564801},
        {"customer": 1, "plan": "free", "age": 30.5, "product": "p2", "title": "Hat", "tags": "felt",
         "bought": 1.0, "at": 1714608000},
    ]  # fmt: skip
    assert not (folder.raw / "users.parquet").exists()


def test_times_may_be_numbers_of_any_unit(folder: Folder) -> None:
    log = "customer,product,bought,at,plan,age,title,tags\n1,p1,1,1714564800123,f,1,t,\n1,p1,0,1714564800124.9,f,1,t,\n"
    folder.write("log.csv", log)
    assert folder.read("log.csv")["at"].to_list() == [1714564800123000, 1714564800124900]
    folder.write("log.csv", log.replace("1714564800124.9", "2024-05-01"))
    with pytest.raises(DataError, match="row 2: column 'at' holds '2024-05-01'"):
        folder.read("log.csv")


def test_compressed_and_tab_separated_text_is_read_too(folder: Folder) -> None:
    (folder.path / "log.csv.gz").write_bytes(gzip.compress(FLAT.encode()))
    packed = folder.read("log.csv.gz")
    folder.write("log.tsv", FLAT.replace('"Socks, red"', "Socks; red").replace(",", "\t").replace(";", ","))
    assert folder.read("log.tsv").equals(packed)


def test_parquet_keeps_lists_and_timestamps(folder: Folder) -> None:
    pl.DataFrame(
        {"customer": ["a", "b"], "plan": [3, 4], "age": [30, None], "product": [1, 2], "title": ["x", "y"],
         "tags": [["u", "v"], []], "bought": [True, False], "at": [datetime(1970, 1, 2), datetime(1970, 1, 3)]}
    ).write_parquet(folder.path / "log.parquet")  # fmt: skip
    rows = folder.read("log.parquet")
    assert rows.rows() == [("a", 3, 30.0, 1, "x", ["u", "v"], 1.0, 86400), ("b", 4, None, 2, "y", [], 0.0, 172800)]


def test_a_folder_of_parts_is_read_in_the_order_of_names(folder: Folder) -> None:
    header, *lines = FLAT.splitlines(keepends=True)
    folder.write("log/2.csv", header + lines[2])
    folder.write("log/1.csv", header + lines[0] + lines[1])
    folder.write("log/_SUCCESS", "")
    assert folder.read("log")["age"].to_list() == [30.0, None, 30.5]


def test_features_come_from_tables_of_their_own_where_given(folder: Folder) -> None:
    folder.write("log.csv", "customer,product,bought,at,plan\n1,p1,1,10,old\n2,p1,0,11,old\n")
    folder.write("people.csv", "plan,age,customer\nfree,30,1\npaid,,2\n")
    folder.write("products.csv", "product,title,tags\np1,Socks,a|b\n")
    rows = folder.read("log.csv", users="people.csv", items="products.csv")
    assert rows.columns == ["customer", "product", "bought", "at"]
    assert pl.read_parquet(folder.raw / "users.parquet").rows() == [(1, "free", 30.0), (2, "paid", None)]
    assert pl.read_parquet(folder.raw / "items.parquet").rows() == [("p1", "Socks", "a|b")]
    assert {path.name for path in folder.raw.iterdir()} == {
        "schema.yaml",
        "interactions",
        "users.parquet",
        "items.parquet",
    }


def test_ids_are_text_in_every_table_when_one_of_them_is_not_a_whole_number(folder: Folder) -> None:
    folder.write("log.csv", "customer,product,bought,at,plan,age,title,tags\n1,p1,1,10,f,1,t,\n")
    folder.write("people.csv", "customer,plan\n1,free\n007,paid\n")
    assert folder.read("log.csv", users="people.csv")["customer"].to_list() == ["1"]
    assert pl.read_parquet(folder.raw / "users.parquet")["customer"].to_list() == ["1", "007"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("age", "agee", r"log\.csv has no column 'age', which the schema names: did you mean 'agee'\?"),
        ("bought", "x", r"log\.csv has no column 'bought', which the schema names: it has customer, plan, age"),
        ("2,paid", ",paid", r"log\.csv, row 2: column 'customer' is empty: it must be an id"),
        ("Z,x\n1,free,30.5,p2", "Z,x\n1,free,30.5,", r"row 3: column 'product' is empty"),
        ("30.5", "old", r"row 3: column 'age' holds 'old': it must be a number"),
        ("30.5", "inf", r"row 3: column 'age' holds 'inf': it must be a number"),
        ("0,2024-05-01T", "yes,2024-05-01T", r"row 2: column 'bought' holds 'yes': it must be a number"),
        ("0,2024-05-01T", ",2024-05-01T", r"row 2: column 'bought' is empty"),
        ("2024-05-02", "May 2nd", r"row 3: column 'at' holds 'May 2nd': it must be a number or a time such as"),
        ("felt,1", "felt,1,1,1,1,1", r"log\.csv cannot be read .*more fields"),
    ],
)
def test_bad_rows_and_columns_are_named(folder: Folder, old: str, new: str, message: str) -> None:
    assert old in FLAT
    folder.write("log.csv", FLAT.replace(old, new, 1))
    with pytest.raises((DataError, SchemaError), match=message):
        folder.read("log.csv")
    assert not folder.raw.exists()


def test_the_part_with_a_bad_row_is_named(folder: Folder) -> None:
    folder.write("log/1.csv", FLAT)
    folder.write("log/2.csv", FLAT.replace("30.5", "old"))
    with pytest.raises(DataError, match=r"2\.csv, row 3: column 'age'"):
        folder.read("log")
    folder.write("log/2.csv", FLAT.replace("plan", "plans"))
    with pytest.raises(SchemaError, match=r"2\.csv has no column 'plan'.*did you mean 'plans'"):
        folder.read("log")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("customer", [True, False], "'customer' of .* is of type Boolean, which an id column cannot be"),
        ("plan", [["a"], ["b"]], r"'plan' of .* is of type List\(String\), which a categorical column cannot be"),
        ("tags", [1, 2], "'tags' of .* is of type Int64, which a multi-categorical column cannot be"),
        ("age", [["a"], ["b"]], "'age' of .* which a numeric column cannot be"),
        ("at", [True, False], "'at' of .* is of type Boolean, which a time column cannot be"),
    ],
)
def test_parquet_types_that_a_column_cannot_have_are_named(
    folder: Folder, column: str, values: list, message: str
) -> None:
    good = {"customer": [1, 2], "plan": ["a", "b"], "age": [1, 2], "product": [1, 2], "title": ["x", "y"],
            "tags": [["u"], []], "bought": [1, 0], "at": [1, 2]}  # fmt: skip
    pl.DataFrame(good | {column: values}).write_parquet(folder.path / "log.parquet")
    with pytest.raises(SchemaError, match=message):
        folder.read("log.parquet")


def test_text_lists_need_a_separator(folder: Folder) -> None:
    folder.write("schema.yaml", SCHEMA.replace(', separator: "|"', ""))
    folder.write("log.csv", FLAT)
    with pytest.raises(SchemaError, match=r"'tags' of .* is text: give its separator"):
        folder.read("log.csv")


@pytest.mark.parametrize("name", ["log.parquet", "log.csv.gz"])
def test_a_truncated_file_is_named(folder: Folder, name: str) -> None:
    rows = pl.DataFrame({"customer": range(50_000), "product": range(50_000), "bought": 1, "at": range(50_000)})
    rows = rows.with_columns(pl.lit(value).alias(name) for name, value in (("plan", "a"), ("title", "t"), ("age", 3)))
    rows = rows.with_columns(tags=pl.lit("x|y"))
    if name.endswith("parquet"):
        rows.write_parquet(folder.path / name)
    else:
        (folder.path / name).write_bytes(gzip.compress(rows.write_csv().encode()))
    whole = (folder.path / name).read_bytes()
    (folder.path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{name} cannot be read \(truncated"):
        folder.read(name)
    assert not folder.raw.exists()


def test_no_data_or_an_unknown_format_is_named(folder: Folder) -> None:
    with pytest.raises(DataError, match=r"no data at .*log\.csv"):
        folder.read("log.csv")
    folder.write("log.xlsx", "")
    with pytest.raises(DataError, match=r"log\.xlsx is or holds no \.csv"):
        folder.read("log.xlsx")
    folder.write("log.csv", "")
    with pytest.raises(DataError, match=r"log\.csv cannot be read .*empty"):
        folder.read("log.csv")


def test_output_never_replaces_input(folder: Folder) -> None:
    log = folder.write("raw/log.csv", FLAT)
    with pytest.raises(DataError, match=r"would replace .*raw, which is read"):
        folder.read("raw")
    assert log.read_text() == FLAT


def test_the_worked_example_of_the_documentation_becomes_a_dataset(folder: Folder) -> None:
    page = (ROOT / "docs" / "your-own-data.md").read_text()
    for name in ("my.csv", "schema.yaml"):
        folder.write(name, page.split(f"<!-- {name} -->")[1].split("```")[1].partition("\n")[2])
    folder.read("my.csv")
    encode(folder.raw, folder.path / "dataset", Split())
    dataset = Dataset(folder.path / "dataset")
    assert [dataset.count(part) for part in ("train", "valid", "test")] == [16, 2, 2]
    assert sorted(dataset.users.raw_ids) == ["anna", "ben", "carl", "dora"]
    titles = dict(zip(dataset.items.raw_ids.tolist(), dataset.items.labels["title"], strict=True))
    assert titles[101] == "Dune, part one"
    train = dataset.rows("train")
    bought = {dataset.items.raw_ids[i - 1] for i in train.positives().item}
    assert bought == {101, 102, 103, 104, 105, 106}


def test_an_invalid_schema_stops_before_anything_is_read(folder: Folder) -> None:
    folder.write("schema.yaml", SCHEMA.replace("kind: numeric}", "kind: numeric, colour: red}", 1))
    with pytest.raises(SchemaError, match="colour: is not a known field"):
        folder.read("log.csv")
