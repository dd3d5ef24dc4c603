"""A schema is read whole or refused with the place and the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from redis_recsys.dataset.schema import Column, Schema
from redis_recsys.errors import SchemaError

USER: dict[str, Any] = {"name": "user", "side": "user", "kind": "categorical", "role": "id"}
ITEM: dict[str, Any] = {"name": "item", "side": "item", "kind": "categorical", "role": "id"}
COLUMNS: list[dict[str, Any]] = [
    {"name": "age", "side": "user", "kind": "numeric", "mean": 30.5, "std": 2.0},
    USER | {"cardinality": 11},
    {"name": "recent", "side": "user", "kind": "multi-categorical", "role": "history", "max_length": 5},
    ITEM | {"min_frequency": 2},
    {"name": "genres", "side": "item", "kind": "multi-categorical", "max_length": 3, "separator": "|"},
    {"name": "title", "side": "item", "kind": "text", "role": "label"},
    {"name": "truth", "side": "target", "kind": "numeric", "role": "oracle"},
    {"name": "click", "side": "target", "kind": "categorical"},
    {"name": "when", "side": "time", "kind": "numeric"},
]


def load(path: Path, **document: Any) -> Schema:
    path.write_text(yaml.safe_dump({"name": "shop", **document}))
    return Schema.load(path)


def refused(path: Path, **document: Any) -> str:
    with pytest.raises(SchemaError) as caught:
        load(path, **document)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "schema.yaml"


def test_what_was_saved_is_read_back(path: Path) -> None:
    schema = load(path, columns=COLUMNS)
    schema.save(path)
    assert Schema.load(path) == schema
    assert yaml.safe_load(path.read_text())["version"] == 1


def test_a_packed_row_has_the_categories_and_the_numbers_in_schema_order(path: Path) -> None:
    schema = load(path, columns=COLUMNS)
    assert [c.name for c in schema.categorical("user")] == ["user", "recent"]
    assert [c.name for c in schema.numeric("user")] == ["age"]
    assert [c.name for c in schema.features("item")] == ["item", "genres"]
    assert (schema.categorical_width("user"), schema.categorical_width("item")) == (6, 4)
    assert [c.name for c in schema.labels("item")] == ["title"]


def test_the_special_columns_are_found_by_side_and_role(path: Path) -> None:
    schema = load(path, columns=COLUMNS)
    found = (schema.target, schema.time, schema.oracle, schema.history)
    assert [column.name for column in found if column] == ["click", "when", "truth", "recent"]
    assert load(path, columns=[USER, ITEM]).target is None


def test_the_history_shares_the_vocabulary_of_the_item_id(path: Path) -> None:
    schema = load(path, columns=COLUMNS)
    assert [schema.vocabulary_column(c).name for c in schema.categorical("user")] == ["user", "item"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([USER, ITEM | {"cardinalty": 3}], "columns.1.cardinalty: is not a known field"),
        ([USER, ITEM, {"name": "age", "side": "user"}], "columns.2.kind: Field required"),
        ([USER, ITEM | {"cardinality": "many"}], "columns.1.cardinality: Input should be a valid integer"),
        ([USER, ITEM | {"side": "shop"}], "columns.1.side: Input should be 'user', 'item', 'target' or 'time'"),
        ([USER], "exactly one column must have side item and role id"),
        ([USER, ITEM, USER | {"name": "other"}], "exactly one column must have side user and role id"),
        ([USER, ITEM, USER], "columns named twice: user"),
        ([USER, ITEM | {"kind": "numeric"}], "column 'item': the id role needs side user or item and kind categorical"),
        (
            [USER, ITEM, COLUMNS[4] | {"max_length": None}],
            "column 'genres' is multi-categorical and needs a max_length",
        ),
        ([USER, ITEM | {"max_length": 2}], "column 'item': max_length and separator belong to multi-categorical"),
        ([USER, ITEM, COLUMNS[2] | {"side": "item"}], "column 'recent': the history role needs side user"),
        ([USER, ITEM, COLUMNS[5] | {"role": None}], "column 'title': kind text and role label go together"),
        ([USER, ITEM, COLUMNS[7], COLUMNS[7] | {"name": "buy"}], "at most one target (without a role) column"),
        ([USER, ITEM, COLUMNS[8], COLUMNS[8] | {"name": "then"}], "at most one time column is allowed, found 2"),
    ],
)
def test_a_wrong_column_is_named_with_the_reason(path: Path, columns: list[Any], message: str) -> None:
    assert message in refused(path, columns=columns)


def test_an_unknown_field_of_the_schema_itself_is_named(path: Path) -> None:
    assert "colums: is not a known field" in refused(path, columns=[USER, ITEM], colums=[])


def test_another_version_is_refused(path: Path) -> None:
    assert "version 2 is not 1" in refused(path, columns=[USER, ITEM], version=2)


@pytest.mark.parametrize("text", ["columns: [", "\t- x", "just text", "", "- a list", "\x00"])
def test_what_is_not_a_schema_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(SchemaError, match=r"schema\.yaml"):
        Schema.load(path)


def test_bytes_that_are_not_text_are_refused(path: Path) -> None:
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(SchemaError, match="not valid YAML"):
        Schema.load(path)


def test_a_missing_schema_or_a_folder_in_its_place_is_named(path: Path) -> None:
    with pytest.raises(SchemaError, match=f"no schema at {path}"):
        Schema.load(path)
    path.mkdir()
    with pytest.raises(SchemaError, match=str(path)):
        Schema.load(path)


def test_a_column_can_be_made_in_code_with_the_same_checks() -> None:
    with pytest.raises(ValueError, match="needs a max_length"):
        Column(name="tags", side="item", kind="multi-categorical")
