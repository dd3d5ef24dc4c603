"""The notebooks run top to bottom, as a reader would run them, on a copy of their folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
OFFLINE_BATCH = Path("offline-batch-recsys/Offline-Batch-Recommender-System.ipynb")


def shown(cell: Any, kind: str) -> list[str]:
    """What a cell shows of one MIME type."""
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


def cell_with(notebook: Any, source: str) -> Any:
    """The one code cell that holds a text."""
    (cell,) = [c for c in notebook.cells if c.cell_type == "code" and source in c.source]
    return cell


@pytest.fixture(scope="module")
def offline_batch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The notebook of example 1 after a short run, and the folder it ran in."""
    work = tmp_path_factory.mktemp("checkout")
    folder = work / OFFLINE_BATCH.parent
    shutil.copytree(ROOT / OFFLINE_BATCH.parent, folder)
    downloads = ROOT / "data" / "downloads"  # shared, so that a run does not download again what is there
    downloads.mkdir(exist_ok=True)
    (work / "data").mkdir()
    (work / "data" / "downloads").symlink_to(downloads)
    notebook = nbformat.read(work / OFFLINE_BATCH, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"EPOCHS": "2", "REFIT": "false", "DEVICE": "cpu"}.items():
            patch.setenv(f"RECSYS_TRAIN_{name}", value)
        for name in ("RECSYS_DATA", "RECSYS_CONFIG", "RECSYS_REDIS_HOST", "RECSYS_REDIS_FOLDER"):
            patch.delenv(name, raising=False)
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook, work


def test_the_offline_batch_notebook_runs_top_to_bottom(offline_batch: tuple[Any, Path]) -> None:
    notebook, _ = offline_batch
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def test_it_shows_a_plot_of_popularity_training_embeddings_metrics_and_latency(offline_batch: tuple[Any, Path]) -> None:
    notebook, _ = offline_batch
    for call in ("popularity_curve", "loss_curves", "embedding_map", "metric_bars", "latency_histogram"):
        cells = [c for c in notebook.cells if c.cell_type == "code" and f"plots.{call}(" in c.source]
        assert cells
        assert all(shown(cell, "image/png") for cell in cells)


def test_it_compares_the_models_with_baselines(offline_batch: tuple[Any, Path]) -> None:
    (table,) = shown(cell_with(offline_batch[0], "report.table()"), "text/plain")
    for name in ("popularity", "item-knn", "als", "bpr", "two-tower", "DLRM"):
        assert name in table


def test_it_reads_titles_of_recommended_films_back_from_redis(offline_batch: tuple[Any, Path]) -> None:
    (table,) = shown(cell_with(offline_batch[0], "get(redis, 1)"), "text/plain")
    films = [line for line in table.splitlines() if "(19" in line]
    assert len(films) == 10


def test_it_tells_that_a_new_user_gets_the_popular_films(offline_batch: tuple[Any, Path]) -> None:
    (output,) = cell_with(offline_batch[0], "get(redis, 999_999)").outputs
    assert output.text.startswith("popular: Star Wars (1977)")


def test_it_leaves_a_bundle_and_no_running_redis(offline_batch: tuple[Any, Path]) -> None:
    _, work = offline_batch
    assert (work / "data" / "notebook-100k" / "bundle" / "ranker.onnx").is_file()
    assert (work / "data" / "redis").is_dir()
    assert not (work / "data" / "redis" / "server.json").exists()


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_that_is_committed_has_been_run_and_is_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert path.stat().st_size < 1_500_000
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
