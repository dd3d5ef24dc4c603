"""The notebook of example 3."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

from redis_recsys.config import load_settings
from redis_recsys.dlrm.dlrm_serving import reached
from redis_recsys.embedded.redis_cluster import EmbeddedCluster
from redis_recsys.hugectr import sparse
from redis_recsys.parameter_server.remote import Remote
from tests.support.notebook_runs import cell_with, checkout, printed, ran_top_to_bottom, run, shown, warnings
from tests.support.paths import ROOT

LARGE_SCALE = Path("large-scale-recsys/Large-Scale-Recommender-System.ipynb")


@pytest.fixture(scope="module")
def large_scale(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The notebook of example 3 after a short run, and the folder it ran in."""
    work = checkout(tmp_path_factory.mktemp("checkout"), LARGE_SCALE.parent)
    return run(work / LARGE_SCALE, "ROWS = 40_000", DLRM_EPOCHS="1"), work


def test_the_large_scale_notebook_runs_top_to_bottom_and_stops_what_it_started(large_scale: tuple[Any, Path]) -> None:
    notebook, work = large_scale
    assert ran_top_to_bottom(notebook)
    assert printed(cell_with(notebook, "opened.close()")) == "stopped\n"
    assert not list((work / "data").glob("*/server.json"))
    assert not list((work / "data").glob("cluster/*/server.json"))


def test_it_shows_that_triton_says_what_the_trained_model_said(large_scale: tuple[Any, Path]) -> None:
    text = printed(cell_with(large_scale[0], "answers = client.predict("))
    (difference,) = re.findall(r"largest difference (\S+)", text)
    assert float(difference) < 1e-5


def test_it_shows_a_table_spread_over_three_nodes(large_scale: tuple[Any, Path]) -> None:
    (table,) = shown(cell_with(large_scale[0], "redis.hlen(key)"), "text/plain")
    assert len(set(re.findall(r"127\.0\.0\.1:\d+", table))) > 1
    rows = [int(count) for count in re.findall(r"┆ (\d+) ", table)]
    report = json.loads((large_scale[1] / "data" / "dlrm" / "report.json").read_text())
    assert sum(rows) == sum(report["slot_sizes"])


def test_it_shows_class_balance_training_that_ends_by_itself_and_calibration(large_scale: tuple[Any, Path]) -> None:
    notebook, _ = large_scale
    (table,) = shown(cell_with(notebook, "dataset.overview()"), "text/plain")
    assert all(word in table for word in ("train", "valid", "test", "clicks", "probability", "40000"))
    assert shown(cell_with(notebook, "plots.loss_curves("), "image/png")
    cell = cell_with(notebook, "plots.reliability_curve(")
    assert shown(cell, "image/png")
    assert "Of 4,000 rows, " in printed(cell)


def test_the_committed_run_trained_until_the_metric_no_longer_rose() -> None:
    notebook = nbformat.read(ROOT / LARGE_SCALE, as_version=4)
    lines = "".join(shown(cell_with(notebook, "train(settings.data"), "text/html"))
    metrics = [float(value) for value in re.findall(r"validation AUC (0\.\d+)", lines)]
    assert 2 < len(metrics) <= 8
    assert metrics[-1] <= max(metrics[:-1])


def test_it_leaves_the_rows_that_training_wrote_in_the_cluster(large_scale: tuple[Any, Path]) -> None:
    notebook, work = large_scale
    (difference,) = re.findall(r"from the answers before (\S+)", printed(cell_with(notebook, "- answers).max()")))
    assert float(difference) < 1e-6
    model = work / "data" / "dlrm"
    keys = np.load(model / "sample.npz")["keys"][0]
    table = sparse.SparseModel(model / "dlrm0_sparse.model", 16)
    trained = dict(zip(table.keys.tolist(), table.rows, strict=True))
    with (
        EmbeddedCluster(work / "data" / "cluster") as cluster,
        Remote.open(model / "ps.json", reached(load_settings(), cluster)) as remote,
    ):
        rows = remote.rows("dlrm.sparse_embedding0", keys)
    np.testing.assert_array_equal(rows, np.stack([trained[key] for key in keys.tolist()]))


def test_it_draws_where_rows_came_from_while_a_node_died(large_scale: tuple[Any, Path]) -> None:
    cell = cell_with(large_scale[0], "plots.tiers(")
    assert shown(cell, "image/png")
    (difference,) = re.findall(r"largest difference from the trained model was (\S+)", printed(cell))
    assert float(difference) < 1e-5
    (share,) = re.findall(r"RocksDB gives (\S+)% of the rows", printed(cell))
    assert float(share) < 3


def test_the_notebook_shows_no_warning(large_scale: tuple[Any, Path]) -> None:
    assert not warnings(large_scale[0])
