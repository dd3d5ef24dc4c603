"""Pictures of data, training, quality and speed, in one style.

Every function returns a Matplotlib figure, which notebooks show, and writes it to ``path`` if one is given (the
suffix chooses the format). Figures are closed, so that nothing opens a window or needs a display.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from ..dataset.schema import Column
from ..errors import ConfigError, DataError
from ..utils.files import check_file, written_aside_file
from .metrics import Calibration, title_of

COLORS = ("#d82c20", "#161f31", "#4c8dae", "#e6a23c", "#6a994e", "#8e6c8a", "#8d99ae", "#b5651d", "#2a9d8f", "#c9ada7")
FORMATS = {".png": (b"\x89PNG",), ".svg": (b"<?xml", b"<svg")}  # suffix -> first bytes of such files
INK, GRID, OTHERS = "#161f31", "#dfe3e8", "#9aa7b5"
BELOW_CACHE = {"redis": "Redis", "rocksdb": "RocksDB", "default": "no tier (default vector)"}
STYLE: Any = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
    "svg.hashsalt": "redis-recsys",
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLORS),
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.bottom": False,
    "ytick.left": False,
    "legend.frameon": False,
    "lines.linewidth": 2,
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Make a drawing function apply the style, close its figure, and take a ``path`` to save to."""

    @wraps(draw)
    def drawn(*args: Any, path: Path | None = None, **named: Any) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*args, **named)
            plt.close(figure)
            if path is not None:
                check_path(path)
                with written_aside_file(path, FORMATS[path.suffix]) as aside:
                    metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {}
                    figure.savefig(aside, format=path.suffix[1:], metadata=metadata)
        return figure

    return drawn


def check_path(path: Path) -> None:
    """Refuse a path to which a picture must not be written.

    Raises:
        ConfigError: its suffix is not in ``FORMATS``.
        DataError: something other than a picture of that format is there.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path} must end with {' or '.join(FORMATS)}")
    check_file(path, FORMATS[path.suffix])


@styled
def metric_bars(
    retrieval: Mapping[str, Mapping[str, float]],
    users: int,
    highlight: Collection[str] = (),
    metrics: Sequence[str] = ("ndcg@10", "recall@10", "mrr"),
) -> Figure:
    """Recommenders one below the other, one panel per metric, with whiskers of 95% intervals.

    Args:
        retrieval: recommender -> metric -> value, as in :attr:`redis_recsys.evaluation.evaluate.Report.retrieval`.
        users: number of test users behind the values.
        highlight: recommenders in a colour of their own: the project's, to set them apart from the baselines.
        metrics: metrics of the panels; each has an interval.
    """
    names = list(retrieval)
    figure, panels = plt.subplots(
        1, len(metrics), figsize=(3.3 * len(metrics) + 1, 0.42 * len(names) + 1.3), sharey=True, squeeze=False
    )
    places = np.arange(len(names))
    colors = [COLORS[0] if name in highlight else OTHERS for name in names]
    for panel, metric in zip(panels[0], metrics, strict=True):
        values = [retrieval[name][metric] for name in names]
        ends = np.array([[retrieval[name][f"{metric}_{end}"] for name in names] for end in ("low", "high")])
        panel.barh(places, values, height=0.68, color=colors)
        panel.errorbar(values, places, xerr=np.abs(ends - values), fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
        for place, value, high in zip(places, values, ends[1], strict=True):
            panel.text(high, place, f" {value:.3f}", va="center", fontsize=9)
        panel.set(title=title_of(metric), xlim=(0, max(ends[1]) * 1.22 or 1))
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.grid(axis="y", visible=False)
    panels[0][0].set_yticks(places, names)
    panels[0][0].invert_yaxis()
    figure.supxlabel(f"mean over {users:,} test users; whiskers: 95% interval, bootstrap over users", fontsize=9)
    return figure


@styled
def loss_curves(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Training loss, and the validation metric if one was measured, by epoch, one panel per model.

    A dotted line marks the epoch that was kept, the one with the highest metric.

    Args:
        models: model -> one record per epoch with ``epoch``, ``loss`` and, if validated, ``metric`` and
            ``metric_name``; ``best_possible`` adds the metric's upper bound.
    """
    figure, panels = plt.subplots(1, len(models), figsize=(5.6 * len(models), 3.4), squeeze=False)
    for panel, (name, records) in zip(panels[0], models.items(), strict=True):
        epochs = [record["epoch"] for record in records]
        panel.plot(epochs, [record["loss"] for record in records], marker="o", markersize=4, color=COLORS[0])
        panel.set(title=name, xlabel="epoch")
        panel.set_ylabel("training loss, nats", color=COLORS[0])
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if records and "metric" in records[0]:
            _metric_axis(panel, epochs, records)
    return figure


def _metric_axis(panel: Axes, epochs: list[int], records: Sequence[Mapping[str, Any]]) -> None:
    """A second axis with the validation metric and the epoch that was kept."""
    axis, values = panel.twinx(), [record["metric"] for record in records]
    axis.plot(epochs, values, marker="s", markersize=4, color=COLORS[2])
    axis.set_ylabel(f"{records[0]['metric_name']}, valid part", color=COLORS[2])
    axis.grid(visible=False)
    if "best_possible" in records[0]:
        bound = records[-1]["best_possible"]
        axis.axhline(bound, color=COLORS[2], linestyle="--", linewidth=1.2)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.text(epochs[-1], bound, "best possible", color=COLORS[2], ha="right", va="center", fontsize=9, bbox=box)
        axis.margins(y=0.12)
    kept = epochs[int(np.argmax(values))]
    panel.axvline(kept, color=INK, linewidth=0.9, linestyle=":")
    panel.annotate(
        "kept", (kept, 1), (3, 2), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=9
    )


@styled
def reliability_curve(models: Mapping[str, Calibration], title: str = "Calibration on the test part") -> Figure:
    """Predicted against observed shares of clicks: points on the diagonal are predictions that can be taken literally.

    Args:
        models: model -> its calibration; whiskers are 95% intervals of the observed shares (Wilson).
        title: title of the figure.
    """
    from scipy.stats import binomtest

    figure, axes = plt.subplots(figsize=(5.8, 4.4))
    axes.axline((0, 0), slope=1, color=OTHERS, linestyle="--", linewidth=1.2, label="prediction = observed")
    for (name, calibration), color in zip(models.items(), COLORS, strict=False):
        observed = np.array(calibration.observed)
        clicks = np.rint(observed * calibration.rows).astype(int).tolist()
        ends = [binomtest(k, n).proportion_ci(method="wilson") for k, n in zip(clicks, calibration.rows, strict=True)]
        whiskers = np.abs(np.array(ends).T - observed)
        label = f"{name}, {sum(calibration.rows):,} rows in {len(calibration.rows)} bins"
        axes.errorbar(
            calibration.predicted, observed, whiskers, marker="o", markersize=5, capsize=3, color=color, label=label
        )
    most = max(max(*calibration.predicted, *calibration.observed) for calibration in models.values())
    limit = min(1.0, most * 1.1)
    axes.set(title=title, xlim=(0, limit), ylim=(0, limit), aspect="equal")
    axes.set(xlabel="mean prediction of the bin", ylabel="observed share of clicks, 95% interval")
    axes.legend(loc="upper left", fontsize=9)
    return figure


@styled
def rows_over_time(parts: Mapping[str, np.ndarray], column: Column, title: str = "Rows over time") -> Figure:
    """Number of rows per stretch of time, coloured by the part of the split.

    Args:
        parts: part -> times of its rows, int64[n].
        column: time column, which gives their unit.
        title: title of the figure.
    """
    if column.ticks_per_day is None:
        raise DataError(f"column {column.name!r} holds steps, not times: declare its unit in the schema")
    days = {part: times / column.ticks_per_day for part, times in parts.items()}  # Matplotlib's dates
    edges = np.histogram_bin_edges(np.concatenate(list(days.values())), bins=60)
    figure, axes = plt.subplots(figsize=(8.2, 2.8))
    labels = [f"{part}, {len(times):,} rows" for part, times in parts.items()]
    axes.hist(list(days.values()), bins=edges.tolist(), stacked=True, color=COLORS[2 : 2 + len(parts)], label=labels)
    axes.xaxis.set_major_locator(locator := AutoDateLocator())
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set(title=title, ylabel=f"rows per {edges[1] - edges[0]:.1f} days")
    axes.grid(axis="x", visible=False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def keras_curves(records: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Keras' own metrics by epoch, in training and in validation, one panel per metric.

    Args:
        records: one per epoch with ``epoch`` and ``keras``, which maps metric -> value; ``val_`` marks validation.
        title: title of the figure.
    """
    names = [name for name in records[0]["keras"] if f"val_{name}" in records[0]["keras"] and "_loss" not in name]
    names = [name for name in names if not name.startswith("loss_")]
    epochs = [record["epoch"] for record in records]
    figure, panels = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.0), squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        for label, key, color in (("training", name, COLORS[0]), ("validation", f"val_{name}", COLORS[2])):
            values = [record["keras"][key] for record in records]
            panel.plot(epochs, values, marker="o", markersize=4, color=color, label=label)
        panel.set(title=name, xlabel="epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0][0].legend(frameon=False)
    figure.suptitle(title)
    return figure


@styled
def popularity_curve(counts: np.ndarray) -> Figure:
    """Clicks of each item by popularity rank, both logarithmic: a power law is a straight line.

    Args:
        counts: int[items], in any order; items without clicks are left out.
    """
    counts = np.sort(counts[counts > 0])[::-1]
    figure, axes = plt.subplots(figsize=(5.4, 3.4))
    axes.loglog(np.arange(1, len(counts) + 1), counts, color=COLORS[0])
    fifth = counts[: max(1, len(counts) // 5)].sum() / counts.sum()
    axes.set(title="Item popularity", xlabel="rank of the item", ylabel="clicks")
    axes.text(0.03, 0.06, f"the top 20% of the items have {fifth:.0%} of the clicks", transform=axes.transAxes)
    return figure


@styled
def embedding_map(embeddings: np.ndarray, categories: Sequence[str], title: str = "Item embeddings") -> Figure:
    """Embeddings on their two main axes (principal components), coloured by category.

    Args:
        embeddings: float[n, D].
        categories: n names; the most frequent get a colour each, in the order of their names, the others share grey.
        title: title of the figure.
    """
    centred = embeddings - embeddings.mean(axis=0)
    _, strength, axes_of = np.linalg.svd(centred, full_matrices=False)
    points = centred @ axes_of[:2].T
    share = strength[:2] ** 2 / (strength**2).sum()
    labels = np.asarray(categories)
    names, sizes = np.unique(labels, return_counts=True)
    shown = np.sort(names[np.argsort(-sizes, kind="stable")][: len(COLORS) - 2])
    figure, axes = plt.subplots(figsize=(7.2, 4.6))
    others = ~np.isin(labels, shown)
    if others.any():
        axes.scatter(points[others, 0], points[others, 1], s=9, color="#c5ccd4", label="other", linewidths=0)
    for name, color in zip(shown, COLORS, strict=False):
        members = points[labels == name]
        axes.scatter(members[:, 0], members[:, 1], s=13, color=color, label=name, alpha=0.8, linewidths=0)
    axes.set(
        title=title,
        xlabel=f"component 1 ({share[0]:.0%} of the variance)",
        ylabel=f"component 2 ({share[1]:.0%})",
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.8)
    return figure


@styled
def latency_histogram(seconds: np.ndarray, title: str = "Latency") -> Figure:
    """Durations of single calls on a logarithmic axis, with the median and the 99th percentile marked.

    Args:
        seconds: float[n], one duration per call, each above 0.
        title: title of the figure.
    """
    milliseconds = np.asarray(seconds) * 1e3
    edges = np.geomspace(milliseconds.min(), milliseconds.max() * 1.01, 61)
    figure, axes = plt.subplots(figsize=(7.2, 3.4))
    axes.hist(milliseconds, bins=edges.tolist(), color=COLORS[2], alpha=0.85)
    for percent, color in ((50, COLORS[1]), (99, COLORS[0])):
        value = np.percentile(milliseconds, percent)
        axes.axvline(value, color=color, linestyle="--", linewidth=1.6, label=f"p{percent}  {value:.3g} ms")
    axes.set(title=title, xlabel="milliseconds, logarithmic", ylabel=f"calls (of {len(milliseconds):,})", xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def recall_curves(explored: Sequence[int], indexes: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Recall and query time of vector indexes by the number of neighbours explored.

    Args:
        explored: EF of each measurement, rising.
        indexes: name -> share of the true neighbours found and seconds of one query, for each EF.
    """
    figure, (recalls, time) = plt.subplots(1, 2, figsize=(8.2, 3.2))
    for (name, measured), color in zip(indexes.items(), COLORS, strict=False):
        recall, seconds = zip(*measured, strict=True)
        recalls.plot(explored, recall, marker="o", markersize=4, color=color, label=name)
        time.plot(explored, np.multiply(seconds, 1e3), marker="o", markersize=4, color=color, label=name)
    recalls.set(title="Recall", ylabel="share of the true neighbours", ylim=(None, 1.01))
    recalls.legend(loc="lower right")
    time.set(title="Milliseconds per query", ylim=(0, None))
    for panel in (recalls, time):
        panel.set(xlabel="neighbours explored (EF)", xscale="log")
        panel.set_xticks(explored, [f"{ef}" for ef in explored])
        panel.minorticks_off()
    return figure


@styled
def stage_times(times: Mapping[str, Mapping[str, float]], title: str = "Time per stage") -> Figure:
    """Time per stage: one stacked bar per way of serving, with the sum at its end.

    Args:
        times: way -> part -> microseconds; parts in the order of the first way.
        title: title of the figure.
    """
    parts = list(dict.fromkeys(part for way in times.values() for part in way))
    figure, axes = plt.subplots(figsize=(8.2, 1.5 + 0.5 * len(times)))
    ends = np.zeros(len(times))
    for part, color in zip(parts, COLORS, strict=False):
        widths = np.array([way.get(part, 0.0) for way in times.values()])
        axes.barh(range(len(times)), widths, left=ends, height=0.6, label=part, color=color)
        ends += widths
    for place, end in enumerate(ends.tolist()):
        axes.text(end, place, f"  {end:,.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(times)), list(times))
    axes.invert_yaxis()
    axes.set(title=title, xlabel="microseconds", xlim=(0, ends.max() * 1.12))
    axes.grid(axis="y", visible=False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def load_curve(concurrency: Sequence[int], per_second: Sequence[float], seconds: Sequence[np.ndarray]) -> Figure:
    """Throughput and latency by the number of concurrent callers.

    Args:
        concurrency: number of callers of each measurement, rising.
        per_second: answers per second of all callers together.
        seconds: durations of the single answers, float[n] per measurement.
    """
    figure, (rate, latency) = plt.subplots(1, 2, figsize=(8.2, 3.2))
    rate.plot(concurrency, per_second, marker="o", markersize=4, color=COLORS[0])
    rate.set(title="Throughput", xlabel="callers", ylabel="answers per second")
    for percent, color in ((99, COLORS[0]), (50, COLORS[1])):
        values = [float(np.percentile(durations, percent)) * 1e3 for durations in seconds]
        latency.plot(concurrency, values, marker="o", markersize=4, color=color, label=f"p{percent}")
    latency.set(title="Latency", xlabel="callers", ylabel="milliseconds")
    latency.legend()
    for panel in (rate, latency):
        panel.set_xscale("log", base=2)
        panel.set_xticks(concurrency, [f"{callers}" for callers in concurrency])
        panel.set_ylim(bottom=0)
    return figure


@styled
def answers_over_time(
    moments: np.ndarray, seconds: np.ndarray, groups: Sequence[str], title: str = "Answers"
) -> Figure:
    """Single answers as dots, so that a gap, a failure or a change shows when it happened.

    Args:
        moments: float[n], times of the requests, in seconds from any start.
        seconds: float[n], durations of the answers.
        groups: n names, such as the kind of each answer; each gets a colour, and the legend its number of answers.
        title: title of the figure.
    """
    labels = np.asarray(groups)
    figure, axes = plt.subplots(figsize=(8.2, 3.2))
    for name, color in zip(dict.fromkeys(groups), (COLORS[2], COLORS[0], *COLORS[3:]), strict=False):
        members = labels == name
        label = f"{name} ({members.sum():,})"
        axes.scatter(moments[members], seconds[members] * 1e3, s=9, color=color, label=label, linewidths=0)
    axes.set(title=title, xlabel="seconds", ylabel="milliseconds until the answer", yscale="log")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    return figure


@styled
def tiers(
    windows: Sequence[tuple[str, Mapping[str, float]]], title: str = "Rows that the cache did not have"
) -> Figure:
    """Rows by the tier below the cache that served them, one stacked bar per window of time.

    The cache serves nearly all rows, so its share is written above the bars instead of drawn. Windows of the same
    name are bracketed together.

    Args:
        windows: (name, shares of rows from cache, Redis, RocksDB and none), in the order of time.
        title: title of the figure.
    """
    figure, axes = plt.subplots(figsize=(8.2, 3.6))
    places = np.arange(len(windows))
    ends = np.zeros(len(windows))
    for (name, label), color in zip(BELOW_CACHE.items(), (COLORS[0], COLORS[1], COLORS[3]), strict=True):
        heights = np.array([shares[name] for _, shares in windows]) * 100
        axes.bar(places, heights, bottom=ends, width=0.82, color=color, label=label)
        ends += heights
    for place, end, (_, shares) in zip(places.tolist(), ends.tolist(), windows, strict=True):
        axes.text(place, end, f"cache\n{shares['cache']:.1%}", ha="center", va="bottom", fontsize=8)
    names = [name for name, _ in windows]
    starts = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    for start, end in zip(starts, [*starts[1:], len(names)], strict=True):
        axes.text((start + end - 1) / 2, 1.02, names[start], ha="center", va="bottom", fontsize=9,
                  transform=axes.get_xaxis_transform())  # fmt: skip
        if start:
            axes.axvline(start - 0.5, ymax=1.06, color=INK, linewidth=0.8, linestyle=":", clip_on=False)
    axes.set(xlabel="window", ylabel="share of all rows, %", ylim=(0, max(ends.max() * 1.25, 0.1)), xticks=places)
    axes.set_xticklabels([f"{place + 1}" for place in places])
    axes.set_title(title, pad=22)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="given by", alignment="left")
    return figure
