"""Runs of notebooks from top to bottom, as a reader would run them, on a copy of their folder, and what they show."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import polars as pl
import pytest
from nbclient import NotebookClient

from tests.support.paths import ROOT

OFFLINE_BATCH = Path("offline-batch-recsys/Offline-Batch-Recommender-System.ipynb")


def shown(cell: Any, kind: str) -> list[str]:
    """Outputs of a cell with one MIME type."""
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


def cell_with(notebook: Any, source: str) -> Any:
    """The one code cell that holds a text."""
    (cell,) = [c for c in notebook.cells if c.cell_type == "code" and source in c.source]
    return cell


def checkout(work: Path, folder: Path) -> Path:
    """A copy of one example in ``work``, with data of its own."""
    shutil.copytree(ROOT / folder, work / folder)
    downloads = ROOT / "data" / "downloads"  # shared, so that a run does not download again what is there
    downloads.mkdir(exist_ok=True)
    (work / "data").mkdir()
    (work / "data" / "downloads").symlink_to(downloads)
    return work


def run(path: Path, first: str = "", **options: str) -> Any:
    """The notebook after a run with only these settings.

    Args:
        path: path of the notebook.
        first: line of its first code cell that replaces the one which sets the same name.
        options: settings, by section and name: ``TRAIN_EPOCHS``.
    """
    notebook = nbformat.read(path, as_version=4)
    if first:
        cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
        cell.source, count = re.subn(rf"(?m)^{first.split()[0]} = .*$", first, cell.source)
        assert count == 1
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RECSYS_")]:
            patch.delenv(name)
        for name, value in options.items():
            patch.setenv(f"RECSYS_{name}", value)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    return notebook


def ran_top_to_bottom(notebook: Any) -> bool:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def printed(cell: Any) -> str:
    """Printed output of a cell."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def film_of_the_day(work: Path) -> str:
    """Title of the film with the most ratings among the newest tenth."""
    raw = work / "data" / "notebook-100k" / "raw"
    ratings = pl.read_parquet(raw / "interactions" / "*.parquet").sort("time")
    item = ratings.tail(len(ratings) // 10)["item_id"].value_counts(sort=True)["item_id"][0]
    return str(pl.read_parquet(raw / "items.parquet").row(by_predicate=pl.col("item_id") == item, named=True)["title"])


def warnings(notebook: Any) -> list[str]:
    """Text that its cells wrote as errors."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.text for output in outputs if output.get("name") == "stderr"]


def named_probability(notebook: Any) -> list[str]:
    """Outputs with the word "probability".

    Lists of columns do not count: they name those of the ranking stage, which clients know.
    """
    cells = [cell for cell in notebook.cells if not cell.source.startswith(("call(", "def names("))]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts = [str(output.get("text", "")) + "".join(map(str, output.get("data", {}).values())) for output in outputs]
    return [text for text in texts if "probability" in text]
