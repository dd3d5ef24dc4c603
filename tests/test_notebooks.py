"""Notebooks, run from top to bottom as a reader would run them, on a copy of their folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import polars as pl
import pytest
from nbclient import NotebookClient

from redis_recsys.config import load_settings
from redis_recsys.dlrm.dlrm_serving import reached
from redis_recsys.embedded.redis_cluster import EmbeddedCluster
from redis_recsys.hugectr import sparse
from redis_recsys.parameter_server.remote import Remote
from tests.support.paths import ROOT

OFFLINE_BATCH = Path("offline-batch-recsys/Offline-Batch-Recommender-System.ipynb")
COMPONENTS = Path("multi-stage/01-Building-Online-Multi-Stage-Recsys-Components.ipynb")
LARGE_SCALE = Path("large-scale-recsys/Large-Scale-Recommender-System.ipynb")
TRITON = Path("multi-stage/02-Deploying-Online-Multi-Stage-Recsys-with-Triton.ipynb")
SHORT_HISTORIES = """\
schema = HOME / "raw" / "schema.yaml"
assert schema.read_text().count("max_length: 20") == 1
schema.write_text(schema.read_text().replace("max_length: 20", "max_length: 3"))
"""


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


def run(path: Path, first: str = "", section: str = "TRAIN", **options: str) -> Any:
    """The notebook after a run with only these settings of one section.

    Args:
        path: path of the notebook.
        first: line of its first code cell that replaces the one which sets the same name.
        section: section of the settings.
        options: settings of the section.
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
            patch.setenv(f"RECSYS_{section}_{name}", value)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    return notebook


def ran_top_to_bottom(notebook: Any) -> bool:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def printed(cell: Any) -> str:
    """Printed output of a cell."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.fixture(scope="module")
def offline_batch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The notebook of example 1 after a short run, and the folder it ran in."""
    work = checkout(tmp_path_factory.mktemp("checkout"), OFFLINE_BATCH.parent)
    return run(work / OFFLINE_BATCH, EPOCHS="2", REFIT="false", DEVICE="cpu"), work


@pytest.fixture(scope="module")
def with_merlin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The notebook of example 1 with Merlin as its trainer, and the folder it ran in.

    Histories are of 3 films instead of 20: each place is a column of its own to Merlin, and takes its time.
    """
    work = checkout(tmp_path_factory.mktemp("checkout"), OFFLINE_BATCH.parent)
    notebook = nbformat.read(work / OFFLINE_BATCH, as_version=4)
    cell = cell_with(notebook, "fetch(HOME")
    cell.source, count = re.subn("(?m)^encode", f"{SHORT_HISTORIES}encode", cell.source)
    assert count == 1
    nbformat.write(notebook, work / OFFLINE_BATCH)
    return run(work / OFFLINE_BATCH, 'TRAINER = "merlin"', EPOCHS="2"), work


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The first notebook of example 2 after a short run, and the folder it ran in."""
    work = checkout(tmp_path_factory.mktemp("checkout"), COMPONENTS.parent)
    return run(work / COMPONENTS, EPOCHS="1", REFIT="false", DEVICE="cpu"), work


@pytest.fixture(scope="module")
def triton(components: tuple[Any, Path]) -> tuple[Any, Path]:
    """The second notebook of example 2 after the first, in the same folder.

    Requests wait for Redis for longer than a tenth of a second before they are answered without it, since other tests
    run at the same time.
    """
    work = components[1]
    return run(work / TRITON, section="ONLINE", TIMEOUT="1"), work


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


def film_of_the_day(work: Path) -> str:
    """Title of the film with the most ratings among the newest tenth."""
    raw = work / "data" / "notebook-100k" / "raw"
    ratings = pl.read_parquet(raw / "interactions" / "*.parquet").sort("time")
    item = ratings.tail(len(ratings) // 10)["item_id"].value_counts(sort=True)["item_id"][0]
    return str(pl.read_parquet(raw / "items.parquet").row(by_predicate=pl.col("item_id") == item, named=True)["title"])


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


def test_the_components_notebook_runs_top_to_bottom_and_trains_if_there_is_no_bundle(
    components: tuple[Any, Path],
) -> None:
    notebook, work = components
    assert ran_top_to_bottom(notebook)
    assert (work / "data" / "notebook-100k" / "bundle" / "ranker.onnx").is_file()
    assert len(list((work / "data" / "deployed").iterdir())) == 1


def test_it_shows_that_feast_and_the_packed_rows_hold_the_same(components: tuple[Any, Path]) -> None:
    cell = cell_with(components[0], "def both_ways(")
    text = printed(cell)
    (table,) = shown(cell, "text/plain")
    milliseconds = [float(number) for number in re.findall(r"\d+\.\d+", table)]
    assert "users: all 943 are equal" in text
    assert "items: all 1,682 are equal" in text
    assert milliseconds[0] > milliseconds[1]


def test_it_draws_the_recall_of_the_vector_index_and_the_time_of_the_stages(components: tuple[Any, Path]) -> None:
    for call in ("recall_curves", "stage_times"):
        assert shown(cell_with(components[0], f"plots.{call}("), "image/png")


def test_it_shows_a_copy_of_the_vectors_that_follows_the_one_in_redis(components: tuple[Any, Path]) -> None:
    (table,) = shown(cell_with(components[0], "vectors.put("), "text/plain")
    texts = re.split("before|it is put into Redis|the copy has followed", table)[1:]
    assert [text.count("new film 1683") for text in texts] == [0, 1, 2]


def test_it_shows_what_goes_in_and_out_of_every_stage(components: tuple[Any, Path]) -> None:
    for stage, made in {
        "user_features": "seen",
        "user_embedding": "user_embedding",
        "candidates": "sources",
        "filter": "items",
        "item_features": "item_vectors",
        "ranking": "probability",
        "ordering": "item_ids",
    }.items():
        (table,) = shown(cell_with(components[0], f'call("{stage}")'), "text/plain")
        assert re.search(rf"out\W+{made}\W+\(3, ", table)


def test_films_are_shown_by_their_titles(components: tuple[Any, Path]) -> None:
    for stage, column in {"user_features": "seen", "candidates": "candidates", "ordering": "item_ids"}.items():
        (table,) = shown(cell_with(components[0], f'call("{stage}")'), "text/plain")
        assert re.search(rf"out ┆ {column} +┆ \(3, \d+\) +┆ .*\(19\d\d\)", table)


def test_it_counts_candidates_after_merging_and_after_the_filter(components: tuple[Any, Path]) -> None:
    (table,) = shown(cell_with(components[0], "import funnel"), "text/plain")
    rows = [
        [int(number) for number in re.findall(r"\d+", line)] for line in table.splitlines() if re.search(r"│ \d", line)
    ]
    assert [row[0] for row in rows] == [405, 155, 999_999]
    for _, nearest, similar, popular, merged, filtered, shown_items in rows:
        assert nearest + similar + popular >= merged >= filtered >= shown_items == 20
    assert rows[0][4] > rows[0][5]  # the first user has seen some of the popular ones


def test_it_shows_that_an_event_reaches_history_features_and_the_next_answer(components: tuple[Any, Path]) -> None:
    (states,) = shown(cell_with(components[0], "Consumer(redis, settings)"), "text/plain")
    (films,) = shown(cell_with(components[0], '"new score"'), "text/plain")
    assert "{'click': 1}" in states
    clicked = re.findall(r"^│ (\S+)", films, re.MULTILINE)[1]
    for line in states.splitlines():
        if re.match("│ (history|packed row|Feast) ", line):
            before, after = line.split("┆")[1:]
            assert after.split()[0] == clicked != before.split()[0]


def test_the_triton_notebook_runs_top_to_bottom_and_stops_what_it_started(triton: tuple[Any, Path]) -> None:
    notebook, work = triton
    assert ran_top_to_bottom(notebook)
    assert printed(cell_with(notebook, "opened.close()")) == "stopped\n"
    assert not list((work / "data").glob("*/server.json"))


def test_it_shows_a_generated_model_and_answers_by_plain_grpc(triton: tuple[Any, Path]) -> None:
    notebook, _ = triton
    assert 'name: "user_id"\n  data_type: TYPE_INT64' in printed(cell_with(notebook, "config.pbtxt"))
    cell = cell_with(notebook, "grpc.InferenceServerClient(")
    (answer,) = shown(cell, "text/plain")
    assert "item_ids (2, 20) scores (2, 20)" in printed(cell)
    assert len(re.findall(r"│ \d+ +┆ .*\(19\d\d\) +┆ 0\.\d+", answer)) == 20


def test_it_draws_stages_load_deployment_and_failure(triton: tuple[Any, Path]) -> None:
    notebook, _ = triton
    for call in ("plots.stage_times(", "plots.load_curve(", "A new deployment under load", "Redis paused"):
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and call in cell.source]
        assert cells
        assert all(shown(cell, "image/png") for cell in cells)


def test_it_explains_where_each_film_came_from(triton: tuple[Any, Path]) -> None:
    (table,) = shown(cell_with(triton[0], "answer.explanations"), "text/plain")
    assert "nearest" in table
    assert "(19" in table
    (counts,) = shown(cell_with(triton[0], "each.funnel"), "text/plain")
    assert all(step in counts for step in ("nearest", "similar", "popular", "merged", "filtered", "shown"))


def test_no_notebook_calls_a_score_of_drawn_negatives_a_probability(
    offline_batch: tuple[Any, Path], components: tuple[Any, Path], triton: tuple[Any, Path]
) -> None:
    for notebook, _ in (offline_batch, components, triton):
        # lists of columns name those of the ranking stage, which clients know
        cells = [cell for cell in notebook.cells if not cell.source.startswith(("call(", "def names("))]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        texts = [str(output.get("text", "")) + "".join(map(str, output.get("data", {}).values())) for output in outputs]
        assert not [text for text in texts if "probability" in text]


def test_it_shows_an_event_in_the_next_answer(triton: tuple[Any, Path]) -> None:
    cell = cell_with(triton[0], "publish(redis")
    (table,) = shown(cell, "text/plain")
    rows = [[each.strip() for each in line.strip("│").split("┆")] for line in table.splitlines() if "(19" in line]
    assert "in the answer after" in printed(cell)
    assert rows[0][0] not in [after for _, after in rows]


def test_it_deploys_under_load_without_a_failed_or_degraded_answer(triton: tuple[Any, Path]) -> None:
    text = printed(cell_with(triton[0], "pool.submit(refresh)"))
    assert re.search(r"^[\d,]{3,} answers, 0 of them degraded, of generations 1 and 2$", text, re.MULTILINE)


def test_it_shows_metrics_of_the_pipeline(triton: tuple[Any, Path]) -> None:
    text = printed(cell_with(triton[0], "/metrics"))
    assert re.search(r"^recsys_requests_total \d{3,}", text, re.MULTILINE)
    assert 'recsys_stage_seconds_sum{stage="ranking"}' in text


def test_it_shows_popular_films_while_redis_is_paused_and_recovery(triton: tuple[Any, Path]) -> None:
    notebook, work = triton
    text = printed(cell_with(notebook, "client_pause("))
    assert f"while Redis was paused: {film_of_the_day(work)}" in text
    assert "in the end: recommended" in text


@pytest.fixture(scope="module")
def large_scale(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The notebook of example 3 after a short run, and the folder it ran in."""
    work = checkout(tmp_path_factory.mktemp("checkout"), LARGE_SCALE.parent)
    return run(work / LARGE_SCALE, "ROWS = 40_000", section="DLRM", EPOCHS="1"), work


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


@pytest.mark.parametrize("fixture", ["offline_batch", "components", "triton", "large_scale"])
def test_no_notebook_shows_a_warning(fixture: str, request: pytest.FixtureRequest) -> None:
    notebook, _ = request.getfixturevalue(fixture)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_that_is_committed_has_been_run_and_is_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert path.stat().st_size < 1_500_000
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
