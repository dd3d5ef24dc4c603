"""Any name will do for a column: it never becomes a path, and unusable names are refused in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
import yaml

from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.interactions import Dataset
from redis_recsys.dataset.schema import Column, Schema
from redis_recsys.dataset.split import Split
from redis_recsys.dataset.vocabularies import read_vocabulary, vocabulary_path, write_vocabulary
from redis_recsys.errors import DataError, SchemaError
from redis_recsys.online.feature_store import FeastGeneration
from redis_recsys.store import vectors
from redis_recsys.trainers.merlin.flat import RowNames
from tests.support.commands import Outcome
from tests.support.planted import ODD_NAMES, Trained, planted, planted_dataset, renamed, trained_on

ORDINARY = ["item_id", "Brand", "genres2", "user-agent", "price.net", "~x", "__index_level_0__"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A bundle trained on columns with odd names."""
    folder = tmp_path_factory.mktemp("deep") / "down" / "here" / "and" / "on"
    encode(renamed(folder / "raw", ODD_NAMES), folder / "dataset", Split())
    trained = trained_on(Dataset(folder / "dataset"), folder / "bundle")
    assert sorted(path.name for path in folder.iterdir()) == ["bundle", "dataset", "raw"]
    for above in (folder.parent, folder.parents[1], folder.parents[2]):
        assert len(list(above.iterdir())) == 1, "something was written outside"
    return trained


def test_names_make_no_difference_to_what_is_encoded(odd: Trained, tmp_path: Path) -> None:
    plain = planted_dataset(tmp_path)
    for side in ("users", "items"):
        one, other = getattr(odd.dataset, side), getattr(plain, side)
        np.testing.assert_array_equal(one.raw_ids, other.raw_ids)
        np.testing.assert_array_equal(one.categorical, other.categorical)
        np.testing.assert_array_equal(one.numeric, other.numeric)
    assert odd.dataset.items.labels == {ODD_NAMES["title"]: plain.items.labels["title"]}
    for mine, theirs in zip(odd.dataset.schema.columns, plain.schema.columns, strict=True):
        if theirs.kind != "numeric" and theirs.side in ("user", "item") and theirs.role != "label":
            for trained_or_not, path in ((odd.dataset.schema, odd.dataset.path), (odd.bundle.schema, odd.bundle.path)):
                values = read_vocabulary(path, trained_or_not, mine).to_pylist()
                assert values == read_vocabulary(plain.path, plain.schema, theirs).to_pylist()


def test_feast_knows_features_of_any_name(client: redis.Redis, odd: Trained, tmp_path: Path) -> None:
    bundle = odd.bundle
    feast = FeastGeneration(client, tmp_path, "7", "recsys_7", bundle.schema, bundle.id_kinds)
    feast.materialize(bundle)
    users, _ = next(bundle.users())
    for side, entities in (("user", users), ("item", bundle.items)):
        categorical, numeric, known = feast.read(side, entities.raw_ids.tolist())  # type: ignore[arg-type]
        np.testing.assert_array_equal(categorical, entities.categorical)
        np.testing.assert_array_equal(numeric, entities.numeric)
        assert known.all()


def test_vectors_carry_attributes_of_any_name(client: redis.Redis, odd: Trained) -> None:
    bundle = odd.bundle
    vectors.load(client, "7", bundle.item_embeddings, vectors.attributes_of(bundle.items, bundle.schema))
    index = vectors.RedisIndex(client, "7", 100)
    queries, nobody = bundle.item_embeddings[:5], np.zeros((5, 0), np.int32)
    items, _, categorical, numeric = index.search_with_attributes(queries, 3, nobody, bundle.schema)
    np.testing.assert_array_equal(categorical, bundle.items.categorical[items - 1])
    np.testing.assert_array_equal(numeric, bundle.items.numeric[items - 1])


@pytest.mark.usefixtures("use_server")
def test_every_offline_verb_takes_any_name(recsys: Callable[..., Outcome], tmp_path: Path) -> None:
    raw = renamed(tmp_path / "raw", ODD_NAMES)
    log = tmp_path / "log.parquet"
    (raw / "interactions" / "part-0.parquet").rename(log)
    tables = ("--users", raw / "users.parquet", "--items", raw / "items.parquet")
    made = recsys("data", "tabular", log, "--schema", raw / "schema.yaml", *tables, "--out", "dataset")
    assert made.code == 0, made
    made = recsys("train", "dataset", "--out", "bundle", "--epochs", "1")
    assert made.code == 0, made
    assert json.loads(recsys("batch", "bundle", "--json").out)["users"] == 60
    assert json.loads(recsys("get", 1, "--json").out)["source"] == "model"


# Files


def columns(*names: str) -> Schema:
    """A schema with categorical features that have these names."""
    ids = [Column(name=f"{side} id", side=side, kind="categorical", role="id") for side in ("user", "item")]  # type: ignore[arg-type]
    return Schema(name="x", columns=[*ids, *(Column(name=name, side="item", kind="categorical") for name in names)])


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_name_is_the_name_of_the_file(name: str) -> None:
    schema = columns(name)
    assert vocabulary_path(Path("x"), schema, schema.columns[-1]) == Path("x") / "vocab" / f"{name}.parquet"


def test_names_that_a_file_system_would_confuse_have_files_of_their_own(tmp_path: Path) -> None:
    names = [
        "brand", "Brand", "BRAND", "con", "CON", "Con", "Nul.x", "a/b", "a\\b", "a%2Fb", ".", "..", "..a", "a.", "a ",
        "a", "größe", "gro\u0308ße", "Größe",
        *("x" * n for n in (69, 70, 71, 254, 255, 256)), "X" * 255, "x" * 254 + "X",
        "ß" * 255, "日本", "😀", "~", "a:b", "a*", "a?", '"', "C:", "-", "%", "%25",
    ]  # fmt: skip
    schema = columns(*names)
    files = [vocabulary_path(tmp_path, schema, column) for column in schema.columns]
    assert {path.parent for path in files} == {tmp_path / "vocab"}
    assert len({path.name.lower() for path in files}) == len(files)
    for path in files:
        assert re.fullmatch(r"[A-Za-z0-9_%~-][A-Za-z0-9_.%~-]*\.parquet", path.name)
        assert len(path.name) <= 255
    for number, column in enumerate(schema.columns):
        write_vocabulary(tmp_path, schema, column, pa.array([number]))
    assert [read_vocabulary(tmp_path, schema, column).to_pylist() for column in schema.columns] == [
        [number] for number in range(len(names) + 2)
    ]


@pytest.mark.parametrize("name", ["größe", "two words", "a%b", "a" * 200])
def test_a_dataset_with_files_named_plainly_is_read_as_before(tmp_path: Path, name: str) -> None:
    schema = columns(name)
    (tmp_path / "vocab").mkdir()
    pq.write_table(pa.table({"value": ["x"]}), tmp_path / "vocab" / f"{name}.parquet")
    assert read_vocabulary(tmp_path, schema, schema.columns[-1]).to_pylist() == ["x"]


def test_a_name_does_not_lead_out_of_a_bundle(tmp_path: Path) -> None:
    schema = columns("../../secret")
    (tmp_path / "bundle" / "vocab").mkdir(parents=True)
    pq.write_table(pa.table({"value": ["x"]}), tmp_path / "secret.parquet")
    with pytest.raises(DataError, match="is missing"):
        read_vocabulary(tmp_path / "bundle", schema, schema.columns[-1])


# Merlin


def test_merlin_gets_names_that_tensorflow_takes_and_each_once() -> None:
    text: dict[str, Any] = {"kind": "categorical"}
    schema = Schema(
        name="x",
        columns=[
            Column(name="user", side="user", role="id", **text),
            Column(name="item", side="item", role="id", **text),
            Column(name="user_raw", side="user", **text),
            Column(name="tags", side="item", kind="multi-categorical", max_length=2),
            Column(name="tags_1", side="item", **text),
            *(Column(name=name, side="item", **text) for name in ("a/b", "a-b", "a b", "1st", "_x", "größe", "click")),
            Column(name="output", side="user", kind="numeric"),
        ],
    )
    names = RowNames(schema)
    assert names.columns == {
        "user": ["user"], "item": ["item"], "user_raw": ["user_raw_"], "tags": ["tags_1", "tags_2"],
        "tags_1": ["tags_1_"], "a/b": ["a_b"], "a-b": ["a_b_"], "a b": ["a_b__"], "1st": ["column1st"],
        "_x": ["column_x"], "größe": ["gr__e"], "click": ["click_"], "output": ["output_"],
    }  # fmt: skip
    assert names.target == "click"


# Refusals


NOT_NAMES = {
    "": "a column needs a name",
    " ": "a column needs a name",
    "a\nb": r"column 'a\nb': a name holds no line breaks",
    "a\0b": r"column 'a\x00b': a name holds no line breaks or control characters",
    "__recsys_part": "column '__recsys_part': names that begin with __recsys_ are reserved",
    "*": "column '*': that is a pattern",
    "^a$": "column '^a$': that is a pattern",
}
RESERVED = {"raw_id": "column 'raw_id': the name is reserved for the raw id in tables of users and items"}


@pytest.mark.parametrize(
    ("column", "name", "message"),
    [
        *((column, *each) for column in ("user", "genres", "age", "click", "time") for each in NOT_NAMES.items()),
        *((column, *each) for column in ("user", "recent", "title", "genres", "age") for each in RESERVED.items()),
    ],
)
def test_a_name_that_cannot_be_is_refused_by_the_schema(tmp_path: Path, column: str, name: str, message: str) -> None:
    folder = planted(tmp_path / "raw")
    document = yaml.safe_load((folder / "schema.yaml").read_text())
    for each in document["columns"]:
        each["name"] = name if each["name"] == column else each["name"]
    (folder / "schema.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(SchemaError, match=re.escape(message)) as caught:
        encode(folder, tmp_path / "dataset", Split())
    assert "\n" not in str(caught.value)
    assert "give it another name here, and say 'from'" in str(caught.value)
