"""The notebook of example 1 with Merlin as its trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.notebook_runs import OFFLINE_BATCH, cell_with, checkout, ran_top_to_bottom, run, shown


@pytest.fixture(scope="module")
def with_merlin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The notebook of example 1 with Merlin as its trainer, and the folder it ran in."""
    work = checkout(tmp_path_factory.mktemp("checkout"), OFFLINE_BATCH.parent)
    return run(work / OFFLINE_BATCH, 'TRAINER = "merlin"', EPOCHS="1"), work


def test_the_offline_batch_notebook_runs_top_to_bottom_with_merlin(with_merlin: tuple[Any, Path]) -> None:
    notebook, work = with_merlin
    assert ran_top_to_bottom(notebook)
    manifest = json.loads((work / "data" / "notebook-100k" / "bundle" / "manifest.json").read_text())
    assert manifest["trainer"] == "merlin"
    (table,) = shown(cell_with(notebook, "get(redis, 1)"), "text/plain")
    assert len([line for line in table.splitlines() if "(19" in line]) == 10


def test_it_shows_the_nvtabular_schema_and_the_keras_curves(with_merlin: tuple[Any, Path]) -> None:
    cell = cell_with(with_merlin[0], "trainer.schema")
    assert any("categorical" in table and "recent_items_1" in table for table in shown(cell, "text/plain"))
    assert shown(cell, "image/png")
    assert shown(cell_with(with_merlin[0], '"DLRMModel"'), "image/png")
