"""The notebook of example 1 with Merlin as its trainer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.support.notebook_runs import OFFLINE_BATCH, cell_with, checkout, ran_top_to_bottom, run, shown

SHORT_HISTORIES = """\
schema = HOME / "raw" / "schema.yaml"
assert schema.read_text().count("max_length: 20") == 1
schema.write_text(schema.read_text().replace("max_length: 20", "max_length: 3"))
"""


@pytest.fixture(scope="module")
def with_merlin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The notebook of example 1 with Merlin as its trainer, and the folder it ran in.

    Histories are of 3 films instead of 20, since each place is a column of its own to Merlin, and batches are smaller:
    the time of the softmax within a batch grows with their size.
    """
    work = checkout(tmp_path_factory.mktemp("checkout"), OFFLINE_BATCH.parent)
    notebook = nbformat.read(work / OFFLINE_BATCH, as_version=4)
    cell = cell_with(notebook, "fetch(HOME")
    cell.source, count = re.subn("(?m)^encode", f"{SHORT_HISTORIES}encode", cell.source)
    assert count == 1
    nbformat.write(notebook, work / OFFLINE_BATCH)
    return run(work / OFFLINE_BATCH, 'TRAINER = "merlin"', TRAIN_EPOCHS="2", MERLIN_RETRIEVAL_BATCH="512"), work


def test_the_offline_batch_notebook_runs_top_to_bottom_with_merlin(with_merlin: tuple[Any, Path]) -> None:
    notebook, work = with_merlin
    assert ran_top_to_bottom(notebook)
    manifest = json.loads((work / "data" / "notebook-100k" / "bundle" / "manifest.json").read_text())
    assert manifest["trainer"] == "merlin"
    (table,) = shown(cell_with(notebook, "get(redis, 1)"), "text/plain")
    assert len([line for line in table.splitlines() if "(19" in line]) == 10


def test_the_final_training_with_merlin_takes_the_best_epochs_of_the_trial(with_merlin: tuple[Any, Path]) -> None:
    notebook, work = with_merlin
    trial, final = (
        json.loads((work / "data" / "notebook-100k" / name / "manifest.json").read_text())["metrics"]["curves"]
        for name in ("trial", "bundle")
    )
    progress = "".join(shown(cell_with(notebook, "final=True"), "text/plain"))
    for name in ("retrieval", "ranking"):
        assert f"{name}_final epoch 1:" in progress
        assert f"{name} epoch" not in progress
        assert final[name] == trial[name]
        best = max(trial[name], key=lambda record: record["metric"])["epoch"]
        assert [record["epoch"] for record in final[f"{name}_final"]] == list(range(1, best + 1))


def test_it_shows_the_nvtabular_schema_and_the_keras_curves(with_merlin: tuple[Any, Path]) -> None:
    cell = cell_with(with_merlin[0], "trainer.schema")
    assert any("categorical" in table and "recent_items_1" in table for table in shown(cell, "text/plain"))
    assert shown(cell, "image/png")
    assert shown(cell_with(with_merlin[0], '"DLRMModel"'), "image/png")
