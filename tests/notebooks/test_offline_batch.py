"""The notebook of example 1."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.notebook_runs import (
    OFFLINE_BATCH,
    cell_with,
    checkout,
    film_of_the_day,
    named_probability,
    printed,
    ran_top_to_bottom,
    run,
    shown,
    warnings,
)


@pytest.fixture(scope="module")
def offline_batch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The notebook of example 1 after a short run, and the folder it ran in."""
    work = checkout(tmp_path_factory.mktemp("checkout"), OFFLINE_BATCH.parent)
    return run(work / OFFLINE_BATCH, TRAIN_EPOCHS="2", TRAIN_REFIT="false", TRAIN_DEVICE="cpu"), work


def test_the_offline_batch_notebook_runs_top_to_bottom(offline_batch: tuple[Any, Path]) -> None:
    assert ran_top_to_bottom(offline_batch[0])


def test_it_shows_a_plot_of_popularity_training_embeddings_metrics_and_latency(offline_batch: tuple[Any, Path]) -> None:
    notebook, _ = offline_batch
    for call in ("popularity_curve", "loss_curves", "embedding_map", "metric_bars", "latency_histogram"):
        cells = [c for c in notebook.cells if c.cell_type == "code" and f"plots.{call}(" in c.source]
        assert cells
        assert all(shown(cell, "image/png") for cell in cells)


def test_it_compares_the_models_with_baselines(offline_batch: tuple[Any, Path]) -> None:
    (table,) = shown(cell_with(offline_batch[0], "report_table(report)"), "text/plain")
    for name in ("popularity", "item-knn", "als", "bpr", "two-tower", "DLRM"):
        assert name in table


def test_it_says_whether_the_ranker_raises_or_lowers_the_figures_with_its_uncertainty(
    offline_batch: tuple[Any, Path],
) -> None:
    lines = printed(cell_with(offline_batch[0], "report.compare(towers.name")).splitlines()
    assert len(lines) == 3
    for line, metric in zip(lines, ("NDCG@10", "Recall@10", "MRR"), strict=True):
        assert re.search(rf"two-tower \+ DLRM (raises|lowers|has) {metric} .*95% interval [+-]0\.\d+ to [+-]0", line)


def test_its_training_curves_name_the_metric_and_the_part(offline_batch: tuple[Any, Path]) -> None:
    notebook, work = offline_batch
    manifest = json.loads((work / "data" / "notebook-100k" / "trial" / "manifest.json").read_text())
    for records in manifest["metrics"]["curves"].values():
        assert {record["metric_name"] for record in records} == {"NDCG@10"}
    assert "validation NDCG@10 0." in "".join(shown(cell_with(notebook, "fit_retrieval()"), "text/html"))


def test_it_shows_class_balance_time_range_and_calibration(offline_batch: tuple[Any, Path]) -> None:
    notebook, _ = offline_batch
    *_, table = shown(cell_with(notebook, "dataset.overview()"), "text/plain")  # after a note of the download
    assert all(word in table for word in ("clicks", "new users", "first", "1997-09-20", "1998-04-22"))
    assert shown(cell_with(notebook, "plots.rows_over_time("), "image/png")
    cell = cell_with(notebook, "plots.reliability_curve(")
    assert shown(cell, "image/png")
    assert re.search(r"Of [\d,]+ rows, 2\d\.\d% are clicks; the mean prediction is", printed(cell))


def test_it_reads_titles_of_recommended_films_back_from_redis(offline_batch: tuple[Any, Path]) -> None:
    (table,) = shown(cell_with(offline_batch[0], "get(redis, 1)"), "text/plain")
    films = [line for line in table.splitlines() if "(19" in line]
    assert len(films) == 10


def test_it_tells_that_a_new_user_gets_the_films_popular_now(offline_batch: tuple[Any, Path]) -> None:
    notebook, work = offline_batch
    (output,) = cell_with(notebook, "get(redis, 999_999)").outputs
    assert output.text.startswith(f"popular: {film_of_the_day(work)}")


def test_the_models_in_redis_have_learned_every_row(offline_batch: tuple[Any, Path]) -> None:
    notebook, work = offline_batch
    trial, final = (
        json.loads((work / "data" / "notebook-100k" / name / "manifest.json").read_text())
        for name in ("trial", "bundle")
    )
    assert (trial["final"], final["final"]) == (False, True)
    assert sum(final["learned_from"].values()) == 100_000
    assert "79,999 train + 10,001 valid + 10,000 test rows" in printed(cell_with(notebook, "final=True"))


def test_it_leaves_a_bundle_and_no_running_redis(offline_batch: tuple[Any, Path]) -> None:
    _, work = offline_batch
    assert (work / "data" / "notebook-100k" / "bundle" / "ranker.onnx").is_file()
    assert (work / "data" / "redis").is_dir()
    assert not (work / "data" / "redis" / "server.json").exists()


def test_the_notebook_shows_no_warning(offline_batch: tuple[Any, Path]) -> None:
    assert not warnings(offline_batch[0])


def test_it_calls_no_score_of_drawn_negatives_a_probability(offline_batch: tuple[Any, Path]) -> None:
    assert not named_probability(offline_batch[0])
