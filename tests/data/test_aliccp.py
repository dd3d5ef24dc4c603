"""The Ali-CCP reader on hand-made files in the published layout."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from redis_recsys.data import aliccp
from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.interactions import Dataset
from redis_recsys.dataset.schema import Schema
from redis_recsys.dataset.split import Split
from redis_recsys.errors import DataError


def features(text: str) -> str:
    """``"101:7 109_14:5:0.5"`` as a feature list, preceded by its length."""
    triples = [part.split(":") for part in text.split()]
    return f"{len(triples)}," + "\x01".join(f"{t[0]}\x02{t[1]}\x03{[*t, '1.0'][2]}" for t in triples)


TRAIN_COMMON = [
    "s1," + features("101:7 121:3 122:4 124:1 125:2 127:3 128:0 129:2 109_14:50:0.5 109_14:51:2.5 110_14:60 126:9"),
    "s2," + features("101:8 121:30 127_14:70:0.1 127_14:71:0.3 127_14:72:0.2 150_14:80"),
]
TRAIN_ROWS = [
    "1,1,0,s1," + features("205:100 206:10 207:20 216:30 210:1 301:5 508:9"),
    "2,0,0,s2," + features("206:11 205:101"),
    "3,0,1,s2," + features("205:102"),
    "4,1,1,s2," + features("205:100 206:99"),
]
TEST_COMMON = ["s1," + features("101:8 121:31"), "s9," + features("101:9 124:2")]
TEST_ROWS = ["1,0,0,s9," + features("205:103 206:12"), "2,1,0,s1," + features("205:101 206:77")]


def write(source: Path, **changed: list[str]) -> Path:
    files = {
        "sample_train/common_features_train.csv": TRAIN_COMMON,
        "sample_train/sample_skeleton_train.csv": changed.get("rows", TRAIN_ROWS),
        "sample_test/common_features_test.csv": changed.get("common", TEST_COMMON),
        "sample_test/sample_skeleton_test.csv": TEST_ROWS,
    }
    for name, lines in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("\n".join(lines) + "\n")
    return source


@pytest.fixture(params=[1 << 25, 60], ids=["one block", "a block per line"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliccp, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
def test_impressions_keep_their_order_and_find_their_user(tmp_path: Path) -> None:
    aliccp.read(write(tmp_path / "source"), tmp_path / "raw")
    rows = pl.read_parquet(tmp_path / "raw" / "interactions").sort("time")
    assert rows.columns == ["user_id", "item_id", "click", "time"]
    assert rows.rows() == [(7, 100, 1, 0), (8, 101, 0, 1), (8, 100, 1, 2), (9, 103, 0, 3), (8, 101, 1, 4)]


@pytest.mark.usefixtures("block")
def test_users_and_items_keep_the_features_of_their_first_row(tmp_path: Path) -> None:
    aliccp.read(write(tmp_path / "source"), tmp_path / "raw")
    users = pl.read_parquet(tmp_path / "raw" / "users.parquet")
    assert users.columns == ["user_id", "user_profile", "user_group", "user_gender", "user_age", "user_consumption_2",
                             "user_is_occupied", "user_geography", "user_categories", "user_shops", "user_brands",
                             "user_intentions"]  # fmt: skip
    assert users.rows() == [
        (7, 3, 4, 1, 2, 3, 0, 2, [51, 50], [60], [], []),
        (8, 30, None, None, None, None, None, None, [], [], [71, 72, 70], [80]),
        (9, None, None, 2, None, None, None, None, [], [], [], []),
    ]
    items = pl.read_parquet(tmp_path / "raw" / "items.parquet")
    assert items.columns == ["item_id", "item_category", "item_shop", "item_brand"]
    assert items.rows() == [(100, 10, 20, 30), (101, 11, None, None), (103, 12, None, None)]


def test_the_raw_folder_holds_the_tables_and_nothing_else(tmp_path: Path) -> None:
    aliccp.read(write(tmp_path / "source"), tmp_path / "raw")
    assert {p.name for p in (tmp_path / "raw").iterdir()} == {
        "schema.yaml",
        "interactions",
        "users.parquet",
        "items.parquet",
    }
    schema = Schema.load(tmp_path / "raw" / "schema.yaml")
    assert schema.target is not None
    assert schema.target.name == "click"


def test_the_training_files_alone_are_enough(tmp_path: Path) -> None:
    write(tmp_path / "source")
    for file in (tmp_path / "source" / "sample_test").iterdir():
        file.unlink()
    aliccp.read(tmp_path / "source", tmp_path / "raw")
    assert len(pl.read_parquet(tmp_path / "raw" / "interactions")) == 3


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(
    "bad",
    [
        "3,1,0,s1",
        "3,2,0,s1," + features("205:100"),
        "3,1,0,s1," + features("206:10"),
        "3,1,0,s1,9," + features("205:100").partition(",")[2],
        "3,1,0,s1," + features("205:100") + "\x01206\x0210",
        "3,1,0,s1," + features("205:seven"),
        "",
    ],
    ids=["cut off", "click of 2", "no item", "wrong feature_num", "half a feature", "text for an id", "empty"],
)
def test_a_malformed_line_is_named_by_file_and_number(bad: str, tmp_path: Path) -> None:
    source = write(tmp_path / "source", rows=[*TRAIN_ROWS[:2], bad, *TRAIN_ROWS[3:]])
    with pytest.raises(DataError, match=r"sample_skeleton_train\.csv, line 3: not of the form sample_id,click"):
        aliccp.read(source, tmp_path / "raw")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.usefixtures("block")
def test_a_session_that_no_line_describes_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "source", common=TEST_COMMON[1:])
    with pytest.raises(DataError, match=r"sample_skeleton_test\.csv, line 2: common_feature_index 's1' is not in"):
        aliccp.read(source, tmp_path / "raw")


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "source", rows=[])
    (source / "sample_train" / "sample_skeleton_train.csv").write_text("")
    with pytest.raises(DataError, match=r"sample_skeleton_train\.csv is empty"):
        aliccp.read(source, tmp_path / "raw")
    (source / "sample_test" / "common_features_test.csv").unlink()
    with pytest.raises(DataError, match=r"no common_features_test\.csv in or below"):
        aliccp.read(source, tmp_path / "raw")


def test_output_never_replaces_input(tmp_path: Path) -> None:
    source = write(tmp_path / "aliccp")
    with pytest.raises(DataError, match="would replace"):
        aliccp.read(source, tmp_path / "aliccp")
    assert len(list(source.rglob("*.csv"))) == 4


def test_the_raw_folder_becomes_a_dataset(tmp_path: Path) -> None:
    rows = [f"{n},{n % 2},0,s{1 + n % 2}," + features(f"205:{100 + n % 7} 206:{n % 7}") for n in range(38)]
    aliccp.read(write(tmp_path / "source", rows=rows), tmp_path / "raw")
    encode(tmp_path / "raw", tmp_path / "dataset", Split())
    dataset = Dataset(tmp_path / "dataset")
    assert dataset.rows("train").target.tolist() == [0.0, 1.0] * 16
    assert sorted(dataset.users.raw_ids.tolist()) == [7, 8, 9]
    assert dataset.rows("test").time.tolist() == [36, 37, 38, 39]
