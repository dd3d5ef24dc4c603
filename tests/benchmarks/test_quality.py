"""The benchmark of quality: its cuts, its figures from pieces, its tables, and a run that goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.offline import quality
from benchmarks.offline.quality import Data, Piece
from redis_recsys.config import Settings, TrainSettings
from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.interactions import Dataset
from redis_recsys.dataset.split import Split
from redis_recsys.evaluation.evaluate import IDEAL
from redis_recsys.offline.recommender import OURS
from tests.support.planted import TINY, planted

TOWERS, RANKED = OURS


def piece(ids: list[str], **values: list[float]) -> Piece:
    warm = np.array([each != "new" for each in ids])
    return Piece({name: {"ndcg@10": np.array(of)} for name, of in values.items()}, np.array(ids), warm, {})


def test_cuts_test_on_different_rows_and_know_nothing_of_what_follows(tmp_path: Path) -> None:
    end = None
    data = Data("mine", "Mine", planted, 3, Split(), Settings())
    for number in range(3):
        dataset = Dataset(quality.prepared(data, tmp_path, number) / "dataset")
        train, valid, test = (dataset.rows(part).time for part in ("train", "valid", "test"))
        assert [len(valid), len(test)] == pytest.approx([300, 300], abs=2)
        assert train.max() < valid.min() <= valid.max() < test.min()
        assert end is None or test.min() == pytest.approx(end, abs=120)  # the next minute
        end = test.max()
    assert end == pl.read_parquet(tmp_path / "raw" / "interactions" / "*.parquet")["time"].max()


def test_figures_are_means_over_seeds_and_users_are_drawn_with_all_their_cuts() -> None:
    baselines = [
        piece(["a", "b"], popularity=[0.1, 0.2], ease=[0.3, 0.4]),
        piece(["a", "new"], popularity=[0.5, 0.9], ease=[0.6, 0.7]),
    ]
    models = [
        [
            piece(["a", "b"], **{TOWERS: [0.2, 0.2], RANKED: [0.3, 0.3], IDEAL: [1.0, 1.0]}),
            piece(["a", "b"], **{TOWERS: [0.4, 0.6], RANKED: [0.5, 0.7], IDEAL: [1.0, 1.0]}),
        ],
        [
            piece(["a", "new"], **{TOWERS: [0.1, 0.1], RANKED: [0.1, 0.1], IDEAL: [1.0, 1.0]}),
            piece(["a", "new"], **{TOWERS: [0.3, 0.5], RANKED: [0.3, 0.7], IDEAL: [1.0, 1.0]}),
        ],
    ]
    found = quality.summary("Mine", baselines, models, [1, 2])
    assert (found["windows"], found["users"]) == (
        {"all": 4, "warm": 3, "cold": 1},
        {"all": 3, "warm": 2, "cold": 1},
    )
    assert found["best"] == "ease"
    assert found["means"]["all"][TOWERS]["ndcg@10"] == pytest.approx((0.3 + 0.4 + 0.2 + 0.3) / 4)
    assert found["means"]["cold"][RANKED]["ndcg@10"] == pytest.approx(0.4)
    assert found["differences"]["all"][RANKED][TOWERS][0] == pytest.approx((0.1 + 0.1 + 0.0 + 0.1) / 4)
    assert found["differences"]["all"][RANKED]["ease"][0] == pytest.approx((0.4 + 0.5 + 0.2 + 0.4 - 2.0) / 4)
    assert [cut["towers"] for cut in found["cuts"]] == pytest.approx([0.35, 0.25])
    assert [of[TOWERS] for of in found["seeds"].values()] == pytest.approx([0.15, 0.45])
    shown = quality.tables({"mine": found | {"machine": {"processor": "CPU", "cores": 2}}})
    assert "4 evaluations of 3 users (3 warm, 1 cold), 2 cuts, seeds 1, 2, on CPU, 2 cores" in shown
    assert "by cut: +0.1000, +0.0500" in shown
    assert "| recommender | NDCG@10 | minus two-tower | minus ease | warm NDCG@10 | cold NDCG@10 |" in shown
    assert f"\n| {IDEAL} | 1.0000 [1.0000, 1.0000] |" in shown


def test_a_piece_comes_back_from_its_file_if_the_same_was_measured(tmp_path: Path) -> None:
    made = piece(["a", "new"], popularity=[0.1, 0.2])
    made.save(tmp_path / "piece.npz", "this")
    assert Piece.load(tmp_path / "piece.npz", "that") is None
    assert Piece.load(tmp_path / "none.npz", "this") is None
    found = Piece.load(tmp_path / "piece.npz", "this")
    assert found is not None
    assert found.values["popularity"]["ndcg@10"].tolist() == [0.1, 0.2]
    assert (found.ids.tolist(), found.warm.tolist()) == (["a", "new"], [True, False])
    assert [path.name for path in tmp_path.iterdir()] == ["piece.npz"]


def test_lines_of_users_and_items_are_left_out_by_their_order(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("1 10 11 12 13\n2 11 10 13\n")
    quality.from_lines(tmp_path / "mine.txt", tmp_path / "raw")
    encode(tmp_path / "raw", tmp_path / "dataset", Split(by="last"))
    dataset = Dataset(tmp_path / "dataset")
    rows = dataset.rows("test")
    pairs = zip(dataset.users.raw_ids[rows.user - 1], dataset.items.raw_ids[rows.item - 1], strict=True)
    assert sorted(pairs) == [("1", "13"), ("2", "13")]


def test_a_run_measures_baselines_and_each_seed_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "FOLDER", tmp_path)
    data = Data("mine", "Mine", planted, 1, Split(), Settings(train=TrainSettings(**TINY)))
    found = quality.measure(data, [1])
    assert set(OURS) | {"ease", "popularity-7-days", IDEAL} <= set(found["means"]["all"])
    assert found["chosen"][0]["ease"]["penalty"] > 0
    assert capsys.readouterr().err.count("Mine, cut ") == 2
    again = quality.measure(data, [1, 2])
    assert capsys.readouterr().err.count("Mine, cut ") == 1
    assert json.dumps(again["means"]["all"]["ease"]) == json.dumps(found["means"]["all"]["ease"])
    assert again["seeds"]["1"] == found["seeds"]["1"]
    quality.plot(again, tmp_path)
    assert quality.picture_of(again, tmp_path).read_bytes().startswith(b"\x89PNG")
