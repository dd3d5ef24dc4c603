"""Criteo's TSV files become a dataset, malformed ones are refused with their line, and shares never overlap."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from redis_recsys.data.criteo import dataset as criteo
from redis_recsys.data.criteo import part_writer as criteo_writer
from redis_recsys.data.criteo import tsv as criteo_tsv
from redis_recsys.data.criteo.dataset import CriteoDataset, Part
from redis_recsys.data.criteo.generate import generate
from redis_recsys.data.criteo.tsv import read
from redis_recsys.errors import DataError


def line(label: object = 0, first: object = 1, c1: str = "0000000a", last: str = "00ff00ff") -> str:
    """A line with the given values; its other dense features are 2, its other slots all alike."""
    return "\t".join([str(label), str(first), *["2"] * 12, c1, *["68fd1e64"] * 24, last])


def rows_of(dataset: CriteoDataset, part: Part) -> criteo.CriteoRows:
    return criteo.CriteoRows.concatenate(list(dataset.batches(part, 1000)))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str, end: str = "\n") -> Path:
        path = tmp_path / "day.tsv"
        path.write_bytes((end.join(lines) + end).encode())
        return path

    return write


@pytest.fixture
def ten(write: Callable[..., Path]) -> Path:
    """C1 of the eight training lines: b three times, a three times, c once, none once; d occurs only in test."""
    values = ["0000000b", "0000000a", "0000000b", "0000000a", "0000000c", "", "0000000b", "0000000a"]
    lines = [line(number % 2, number, value) for number, value in enumerate(values)]
    return write(*lines, line(1, "", "0000000c"), line(0, -3, "0000000d"))


def test_ids_follow_the_frequency_in_the_training_part_and_unknown_values_are_0(ten: Path, tmp_path: Path) -> None:
    read(ten, tmp_path / "out")
    dataset = CriteoDataset(tmp_path / "out")
    assert dataset.slot_sizes[0] == 4
    assert rows_of(dataset, "train").ids[:, 0].tolist() == [2, 1, 2, 1, 3, 0, 2, 1]
    assert rows_of(dataset, "valid").ids[:, 0].tolist() == [3]
    assert rows_of(dataset, "test").ids[:, 0].tolist() == [0]
    assert pl.read_parquet(tmp_path / "out" / "vocab" / "C1.parquet").to_dict(as_series=False) == {
        "raw": ["0000000a", "0000000b", "0000000c"],
        "id": [1, 2, 3],
    }


def test_order_is_time_and_labels_stay_with_their_rows(ten: Path, tmp_path: Path) -> None:
    read(ten, tmp_path / "out")
    dataset = CriteoDataset(tmp_path / "out")
    assert [dataset.count(part) for part in criteo.PARTS] == [8, 1, 1]
    assert rows_of(dataset, "train").label.tolist() == [0, 1] * 4
    assert rows_of(dataset, "valid").label.tolist() == [1]


def test_dense_features_are_logarithms_and_empty_or_negative_ones_are_0(ten: Path, tmp_path: Path) -> None:
    read(ten, tmp_path / "out")
    dataset = CriteoDataset(tmp_path / "out")
    np.testing.assert_allclose(rows_of(dataset, "train").dense[:, 0], np.log([1, 2, 3, 4, 5, 6, 7, 8]), rtol=1e-6)
    np.testing.assert_allclose(rows_of(dataset, "train").dense[:, 1:], 1.0986123, rtol=1e-6)
    assert rows_of(dataset, "valid").dense[0, 0] == 0
    assert rows_of(dataset, "test").dense[0, 0] == 0


def test_rare_values_and_values_beyond_the_largest_size_become_0(ten: Path, tmp_path: Path) -> None:
    read(ten, tmp_path / "common", min_count=2)
    assert rows_of(CriteoDataset(tmp_path / "common"), "train").ids[:, 0].tolist() == [2, 1, 2, 1, 0, 0, 2, 1]
    read(ten, tmp_path / "small", max_size=2)
    small = CriteoDataset(tmp_path / "small")
    assert small.slot_sizes[0] == 2
    assert rows_of(small, "train").ids[:, 0].tolist() == [0, 1, 0, 1, 0, 0, 0, 1]


def test_compressed_files_windows_line_ends_and_folders_give_the_same(ten: Path, tmp_path: Path) -> None:
    read(ten, tmp_path / "plain")
    folder = tmp_path / "days"
    folder.mkdir()
    lines = ten.read_bytes().splitlines(keepends=True)
    (folder / "day_0.gz").write_bytes(gzip.compress(b"".join(lines[:4])))
    (folder / "day_1").write_bytes(b"".join(lines[4:]).replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    read(folder, tmp_path / "folder")
    for part in criteo.PARTS:
        plain, other = (rows_of(CriteoDataset(tmp_path / name), part) for name in ("plain", "folder"))
        np.testing.assert_array_equal(plain.ids, other.ids)
        np.testing.assert_array_equal(plain.dense, other.dense)
        np.testing.assert_array_equal(plain.label, other.label)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (line() + "\t1", "line 4: 41 columns, Criteo's have 40"),
        ("\t".join(line().split("\t")[:39]), "line 4: 39 columns, Criteo's have 40"),
        ("", "line 4: 1 columns"),
        (line(label=2), "line 4: column label holds '2': it must be 0 or 1"),
        (line(label=""), "line 4: column label holds ''"),
        (line(first="1.5"), "line 4: column I1 holds '1.5': it must be a whole number or empty"),
        (line(c1="xyz"), "line 4: column C1 holds 'xyz': it must be 8 hex digits or empty"),
        (line(last="0123456789"), "line 4: column C26 holds '0123456789'"),
    ],
)
def test_a_malformed_line_is_named_with_its_column(
    write: Callable[..., Path], tmp_path: Path, wrong: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteo_tsv, "BLOCK", 300)  # so that the line is not in the first block
    source = write(line(), line(), line(), wrong, line())
    with pytest.raises(DataError, match=f"day.tsv, {said}"):
        read(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["day.tsv"]


def test_one_field_too_many_here_and_one_too_few_there_are_not_taken_for_right(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="line 1: 41 columns"):
        read(write(line() + "\t", "\t".join(line().split("\t")[:-1])), tmp_path / "out")


def test_a_cut_archive_an_empty_file_and_a_missing_one_are_refused(ten: Path, tmp_path: Path) -> None:
    cut, empty = tmp_path / "cut.gz", tmp_path / "empty"
    cut.write_bytes(gzip.compress(ten.read_bytes())[:-12])
    empty.touch()
    for path, said in ((cut, "cut.gz cannot be unpacked"), (empty, "is empty"), (tmp_path / "none", "no data at")):
        with pytest.raises(DataError, match=said):
            read(path, tmp_path / "out")
    with pytest.raises(DataError, match="leave none for valid"):
        read(ten, tmp_path / "out", valid=0.01)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> CriteoDataset:
    """10,007 rows in row groups of 512, each identified by its click probability."""
    folder = tmp_path_factory.mktemp("criteo") / "dataset"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(criteo_writer, "ROW_GROUP", 512)
        generate(folder, 10_007, scale=1e-4)
    return CriteoDataset(folder)


def keys(rows: criteo.CriteoRows) -> list[tuple[float, ...]]:
    return [tuple(row) for row in rows.dense.tolist()]


def test_stored_order_gives_every_row_once_over_all_ranks(made: CriteoDataset) -> None:
    stored = pl.concat(pl.read_parquet(path) for path in sorted((made.path / "test").glob("*.parquet")))
    shares = [list(made.batches("test", 100, rank, 3)) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    assert max(len(batch) for share in shares for batch in share) <= 100
    everything = criteo.CriteoRows.concatenate([batch for share in shares for batch in share])
    np.testing.assert_array_equal(everything.ids[:, 4], stored["C5"])
    np.testing.assert_array_equal(everything.label, stored["label"])


def test_the_overview_counts_rows_and_clicks_of_every_part_in_order(made: CriteoDataset) -> None:
    overview = made.overview()
    assert [each["part"] for each in overview] == ["train", "valid", "test"]
    assert overview[0]["first"] == 1
    assert [each["first"] for each in overview[1:]] == [each["last"] + 1 for each in overview[:-1]]
    assert overview[2]["last"] == 10_007
    for each in overview:
        stored = pl.concat(pl.read_parquet(path) for path in sorted((made.path / each["part"]).glob("*.parquet")))
        assert each["rows"] == each["last"] - each["first"] + 1 == len(stored)
        assert each["clicks"] == pytest.approx(stored["label"].mean())
        assert each["probability"] == pytest.approx(stored["click_probability"].mean(), rel=1e-5)


def test_shuffled_shares_are_disjoint_and_of_equal_batches(made: CriteoDataset) -> None:
    shares = [list(made.batches("train", 256, rank, 4, seed=(1, 1))) for rank in range(4)]
    sizes = [[len(batch) for batch in share] for share in shares]
    assert sizes[0] == sizes[1] == sizes[2] == sizes[3]
    assert len(sizes[0]) == made.steps("train", 256, 4)
    seen = [key for share in shares for key in keys(criteo.CriteoRows.concatenate(share))]
    assert made.count("train") - 4 < len(seen) <= made.count("train")
    stored = keys(rows_of(made, "train"))
    assert len(set(seen)) == len(set(stored) & set(seen))
    assert len(set(stored) - set(seen)) < 4


def test_each_epoch_has_another_order_and_the_same_seed_the_same(made: CriteoDataset) -> None:
    orders = [
        keys(criteo.CriteoRows.concatenate(list(made.batches("train", 512, seed=seed))))
        for seed in ((1, 1), (1, 1), (1, 2))
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    assert orders[0] != keys(rows_of(made, "train"))


def test_fewer_rows_than_processes_are_refused(made: CriteoDataset) -> None:
    with pytest.raises(DataError, match="too few for 2000 processes"):
        made.batches("valid", 10, 0, 2000)


def damaged(made: CriteoDataset, folder: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """A copy of the dataset with another first training file; its path."""
    for path in made.path.rglob("*.*"):
        if path.is_file():
            copy = folder / path.relative_to(made.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    first = min((folder / "train").iterdir())
    pq.write_table(change(pq.read_table(first)), first)
    return first


def test_a_missing_column_a_wrong_type_and_lost_rows_are_found_when_opening(
    made: CriteoDataset, tmp_path: Path
) -> None:
    first = damaged(made, tmp_path / "a", lambda table: table.drop_columns("C7"))
    with pytest.raises(DataError, match=f"{first} has no column 'C7'"):
        CriteoDataset(tmp_path / "a")
    damaged(made, tmp_path / "b", lambda table: table.set_column(1, "I1", table["C1"]))
    with pytest.raises(DataError, match="column 'I1' is int64, it must be float"):
        CriteoDataset(tmp_path / "b")
    damaged(made, tmp_path / "c", lambda table: table.slice(1))
    with pytest.raises(DataError, match=r"train has 8,0\d\d rows, criteo.json says"):
        CriteoDataset(tmp_path / "c")


def test_an_id_beyond_its_slot_is_named_before_it_reaches_a_table(made: CriteoDataset, tmp_path: Path) -> None:
    first = damaged(made, tmp_path / "a", lambda table: table)
    document = json.loads((tmp_path / "a" / "criteo.json").read_text())
    document["slot_sizes"][2] = 3
    (tmp_path / "a" / "criteo.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=f"{first}: column 'C3' has ids outside 0 to 2"):
        next(CriteoDataset(tmp_path / "a").batches("train", 100))


def test_no_dataset_and_a_damaged_description_are_refused(made: CriteoDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Criteo dataset at"):
        CriteoDataset(tmp_path)
    (tmp_path / "criteo.json").write_text('{"version": 1}')
    with pytest.raises(DataError, match="is damaged"):
        CriteoDataset(tmp_path)
