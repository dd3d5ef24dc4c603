"""Plots show the numbers they are given and land in a file, without a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

from redis_recsys.dataset.schema import Column
from redis_recsys.errors import DataError
from redis_recsys.evaluation import plots
from redis_recsys.evaluation.metrics import Calibration

BELOW, ABOVE = {"ndcg@10": 0.01, "recall@10": 0.02, "mrr": 0.04}, 0.05  # lengths of the whiskers


def with_intervals(**means: float) -> dict[str, float]:
    means = {name.replace("_", "@"): value for name, value in means.items()}
    lows = {f"{name}_low": value - BELOW[name] for name, value in means.items()}
    return means | lows | {f"{name}_high": value + ABOVE for name, value in means.items()}


RETRIEVAL = {
    "popularity": with_intervals(ndcg_10=0.1, recall_10=0.2, mrr=0.3),
    "two-tower": with_intervals(ndcg_10=0.25, recall_10=0.4, mrr=0.5),
}


def texts(figure: plt.Figure) -> str:
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    return " ".join(titles + [text.get_text() for axes in figure.axes for text in axes.texts])


def test_bars_show_every_recommender_and_value():
    figure = plots.metric_bars(RETRIEVAL, 166, highlight=["two-tower"])
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["popularity", "two-tower"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.1, 0.25]
    assert "NDCG@10" in texts(figure)
    assert "0.250" in texts(figure)


def test_every_panel_of_bars_has_whiskers_and_the_figure_says_what_they_are():
    figure = plots.metric_bars(RETRIEVAL, 166)
    for axes, (metric, below) in zip(figure.axes, BELOW.items(), strict=True):
        (whiskers,) = [lines for lines in axes.collections if hasattr(lines, "get_segments")]
        for segment, metrics in zip(whiskers.get_segments(), RETRIEVAL.values(), strict=True):
            assert segment[:, 0] == pytest.approx([metrics[metric] - below, metrics[metric] + ABOVE])
    assert figure.get_supxlabel() == "mean over 166 test users; whiskers: 95% interval, bootstrap over users"


def test_loss_curves_have_one_panel_per_model_and_a_second_axis_for_the_metric():
    losses, metrics = [3.0, 2.0, 1.5], [0.1, 0.2, 0.15]
    records = [
        {"epoch": epoch, "loss": loss, "metric": metric, "metric_name": "NDCG@10", "best_possible": 0.4}
        for epoch, loss, metric in zip((1, 2, 3), losses, metrics, strict=True)
    ]
    figure = plots.loss_curves({"two-tower": records, "DLRM": [{"epoch": 1, "loss": 0.5}]})
    assert [axes.lines[0].get_ydata().tolist() for axes in figure.axes] == [losses, [0.5], metrics]
    assert figure.axes[2].get_ylabel() == "NDCG@10, valid part"
    assert figure.axes[2].lines[1].get_ydata() == [0.4, 0.4]
    assert figure.axes[0].lines[1].get_xdata() == [2, 2]  # the epoch that was kept
    assert "kept" in texts(figure)
    assert "best possible" in texts(figure)


def test_keras_curves_have_one_panel_per_metric_with_training_and_validation():
    keras = {"loss": 2.0, "auc": 0.6, "loss_batch": 1.0, "val_loss": 2.1, "val_auc": 0.5, "val_loss_batch": 1.0}
    more = {"val_regularization_loss": 0.0, "regularization_loss": 0.0}
    figure = plots.keras_curves([{"epoch": 1, "keras": keras | more}], "DLRMModel")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "auc"]
    assert [line.get_ydata().tolist() for line in figure.axes[1].lines] == [[0.6], [0.5]]


def test_popularity_curve_falls_and_leaves_out_items_without_clicks():
    figure = plots.popularity_curve(np.array([0, 1, 90, 5, 4, 0]))
    assert figure.axes[0].lines[0].get_ydata().tolist() == [90, 5, 4, 1]
    assert "90% of the clicks" in texts(figure)


def test_embedding_map_draws_every_item_and_names_frequent_categories():
    random = np.random.default_rng(0)
    names = ["drama"] * 30 + ["comedy"] * 20 + [f"rare {i}" for i in range(20)]
    figure = plots.embedding_map(random.standard_normal((70, 8)), names)
    drawn = sum(len(points.get_offsets()) for points in figure.axes[0].collections)
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert drawn == 70
    assert {"drama", "comedy", "other"} <= set(legend)


def test_latency_histogram_marks_median_and_99th_percentile():
    figure = plots.latency_histogram(np.arange(1, 1002) / 1e3)
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["p50  501 ms", "p99  991 ms"]


def test_recall_curves_draw_recall_and_milliseconds_of_every_index():
    figure = plots.recall_curves(
        [10, 80], {"films": [(0.9, 0.001), (1.0, 0.002)], "random": [(0.5, 0.003), (0.8, 0.004)]}
    )
    lines = [[line.get_ydata().tolist() for line in axes.lines] for axes in figure.axes]
    assert lines == [[[0.9, 1.0], [0.5, 0.8]], [[1.0, 2.0], [3.0, 4.0]]]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["10", "80"]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["films", "random"]


def test_stage_times_stacks_the_parts_of_every_way_and_tells_the_sum():
    figure = plots.stage_times(
        {"fused": {"features": 100.0, "ranking": 50.0}, "staged": {"ranking": 60.0, "rest": 1e3}}
    )
    bars = [(bar.get_x(), bar.get_width()) for bar in figure.axes[0].patches]
    assert bars == [(0, 100), (0, 0), (100, 50), (0, 60), (150, 0), (60, 1000)]
    assert "150" in texts(figure)
    assert "1,060" in texts(figure)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["features", "ranking", "rest"]


def test_load_curve_draws_rate_median_and_99th_percentile():
    figure = plots.load_curve([1, 4], [100.0, 300.0], [np.arange(1, 102) / 1e3, np.full(5, 0.25)])
    assert figure.axes[0].lines[0].get_ydata().tolist() == [100, 300]
    lines = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[1].lines}
    assert lines == {"p50": [51, 250], "p99": [100, 250]}


def test_answers_over_time_gives_every_group_a_colour_and_draws_every_answer():
    groups = ["model", "degraded", "model"]
    figure = plots.answers_over_time(np.array([0.0, 1.0, 2.0]), np.array([0.001, 0.1, 0.002]), groups)
    model, degraded = figure.axes[0].collections
    assert model.get_offsets().tolist() == [[0, 1], [2, 2]]
    assert degraded.get_offsets().tolist() == [[1, 100]]
    assert model.get_facecolor().tolist() != degraded.get_facecolor().tolist()
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["model (2)", "degraded (1)"]


def test_tiers_stacks_what_the_cache_did_not_have_and_names_what_was_going_on():
    first = {"cache": 0.97, "redis": 0.03, "rocksdb": 0.0, "default": 0.0}
    second = {"cache": 0.96, "redis": 0.01, "rocksdb": 0.02, "default": 0.01}
    axes = plots.tiers([("whole", first), ("whole", first), ("a node is dead", second)]).axes[0]
    tops = [round(bars[2].get_y() + bars[2].get_height(), 6) for bars in axes.containers]
    assert tops == [1, 3, 4]
    assert 4 < axes.get_ylim()[1] < 8  # so that the bars fill the figure, whatever the cache had
    shares = ["cache\n97.0%", "cache\n97.0%", "cache\n96.0%"]
    assert [text.get_text() for text in axes.texts] == [*shares, "whole", "a node is dead"]


def test_tiers_can_be_drawn_when_the_cache_had_everything():
    everything = {"cache": 1.0, "redis": 0.0, "rocksdb": 0.0, "default": 0.0}
    assert plots.tiers([("whole", everything)]).axes[0].get_ylim()[1] > 0


def test_reliability_curve_draws_every_bin_with_a_wilson_interval_and_the_diagonal():
    found = Calibration([0.1, 0.4], [0.2, 0.5], [100, 50])
    axes = plots.reliability_curve({"DLRM": found}).axes[0]
    diagonal, points = axes.lines[:2]
    assert diagonal.get_slope() == 1
    assert (points.get_xdata().tolist(), points.get_ydata().tolist()) == ([0.1, 0.4], [0.2, 0.5])
    (whiskers,) = [each for each in axes.collections if hasattr(each, "get_segments")]
    ends = [segment[:, 1].tolist() for segment in whiskers.get_segments()]
    # Wilson: (p + z^2 / 2n -+ z sqrt(p q / n + z^2 / 4n^2)) / (1 + z^2 / n) with z = 1.96
    assert ends == [pytest.approx([0.1334, 0.2888], abs=1e-4), pytest.approx([0.3664, 0.6336], abs=1e-4)]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["prediction = observed", "DLRM, 150 rows in 2 bins"]


def test_rows_over_time_counts_every_row_in_the_colour_of_its_part():
    day = 86_400_000
    at = Column(name="at", side="time", kind="numeric", unit="ms")
    axes = plots.rows_over_time({"train": np.arange(50) * day, "test": np.arange(50, 60) * day}, at).axes[0]
    counts = [sum(bar.get_height() for bar in bars) for bars in axes.containers]
    assert counts == [50, 10]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["train, 50 rows", "test, 10 rows"]
    assert axes.get_ylabel() == "rows per 1.0 days"


def test_steps_have_no_place_on_an_axis_of_time():
    with pytest.raises(DataError, match="'at' holds steps"):
        plots.rows_over_time({"train": np.arange(50)}, Column(name="at", side="time", kind="numeric"))


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_path_gets_the_picture_and_no_window_stays_open(tmp_path: Path, suffix: str):
    path = tmp_path / "new folder" / f"bars.{suffix}"
    plots.metric_bars(RETRIEVAL, 166, path=path)
    assert path.stat().st_size > 1000
    assert not plt.get_fignums()


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        plots.metric_bars(RETRIEVAL, 166, path=tmp_path / "file" / "bars.png")
