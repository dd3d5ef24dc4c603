"""The two notebooks of example 2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.notebook_runs import (
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

COMPONENTS = Path("multi-stage/01-Building-Online-Multi-Stage-Recsys-Components.ipynb")
TRITON = Path("multi-stage/02-Deploying-Online-Multi-Stage-Recsys-with-Triton.ipynb")


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The first notebook of example 2 after a short run, and the folder it ran in."""
    work = checkout(tmp_path_factory.mktemp("checkout"), COMPONENTS.parent)
    return run(work / COMPONENTS, TRAIN_EPOCHS="1", TRAIN_REFIT="false", TRAIN_DEVICE="cpu"), work


@pytest.fixture(scope="module")
def triton(components: tuple[Any, Path]) -> tuple[Any, Path]:
    """The second notebook of example 2 after the first, in the same folder.

    Requests wait for Redis for longer than a tenth of a second before they are answered without it, since other tests
    run at the same time.
    """
    work = components[1]
    return run(work / TRITON, ONLINE_TIMEOUT="1"), work


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


@pytest.mark.parametrize("fixture", ["components", "triton"])
def test_neither_notebook_shows_a_warning(fixture: str, request: pytest.FixtureRequest) -> None:
    assert not warnings(request.getfixturevalue(fixture)[0])


@pytest.mark.parametrize("fixture", ["components", "triton"])
def test_neither_notebook_calls_a_score_of_drawn_negatives_a_probability(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    assert not named_probability(request.getfixturevalue(fixture)[0])
