"""Draw example 1, offline batch recommendations, into offline-batch.svg and offline-batch.png beside this file."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, SOFT, LINE = "#161f31", "#5b6675", "#8d99ae"
DATA, WORK, REDIS = ("#f1f4f7", "#b8c2cd"), ("#e4eef4", "#4c8dae"), ("#fbe5e3", "#d82c20")
WIDTH, TOP, BOTTOM = 2.35, 4.0, 0.55
COLUMNS = (0.15, 3.0, 5.85, 8.7, 11.55)


def box(axes: Axes, x: float, y: float, height: float, colors: tuple[str, str], title: str, text: str) -> None:
    """A rounded box with a bold title and a few lines below it; x and y are its lower left corner."""
    shape = "round,pad=0,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch((x, y), WIDTH, height, boxstyle=shape, facecolor=colors[0], edgecolor=colors[1], linewidth=1.4)
    )
    lines = text.count("\n") + 1
    middle = y + height / 2
    axes.text(x + WIDTH / 2, middle + 0.13 * lines, title, ha="center", va="center", weight="bold", size=12.5)
    axes.text(x + WIDTH / 2, middle - 0.17, text, ha="center", va="center", size=9.3, color=SOFT, linespacing=1.35)


def arrow(axes: Axes, *points: tuple[float, float]) -> None:
    """A line through the points with a head at the last."""
    axes.plot(*zip(*points[:-1], strict=True), color=LINE, linewidth=1.8, solid_joinstyle="round")
    axes.add_patch(
        FancyArrowPatch(
            points[-2], points[-1], arrowstyle="-|>", mutation_scale=15, color=LINE, linewidth=1.8, shrinkA=0, shrinkB=1
        )
    )


def command(axes: Axes, x: float, y: float, text: str) -> None:
    """The command that does a step, above its box."""
    axes.text(x, y, text, size=9.5, family="DejaVu Sans Mono", color="#d82c20", va="bottom")


def draw() -> None:
    """Write both files."""
    plt.rcParams |= {"font.family": "DejaVu Sans", "text.color": INK, "svg.hashsalt": "offline-batch"}
    figure, axes = plt.subplots(figsize=(14.05, 5.9))
    axes.set(xlim=(0, 14.05), ylim=(0.4, 6.3), aspect="equal")
    axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    middle = TOP + 0.65

    box(axes, COLUMNS[0], TOP, 1.3, DATA, "Raw events", "MovieLens · Ali-CCP\nsynthetic · your tables")
    box(axes, COLUMNS[1], TOP, 1.3, WORK, "ETL (Polars)", "vocabularies · split by time\nencoded, streamed")
    box(axes, COLUMNS[2], TOP, 1.3, DATA, "Dataset", "train · valid · test parquet\nusers · items · schema.yaml")
    box(
        axes,
        COLUMNS[3],
        TOP + 0.75,
        1.15,
        WORK,
        "Two-tower",
        "retrieval: finds candidates\nPyTorch or NVIDIA Merlin",
    )
    box(axes, COLUMNS[3], TOP - 0.6, 1.15, WORK, "DLRM", "ranking: click probability\nPyTorch or NVIDIA Merlin")
    box(axes, COLUMNS[4], TOP, 1.3, DATA, "Bundle (ONNX)", "models · vocabularies\nfeatures · embeddings")
    for left in (0, 1):
        arrow(axes, (COLUMNS[left] + WIDTH, middle), (COLUMNS[left + 1], middle))
    fork, join = COLUMNS[2] + WIDTH + 0.25, COLUMNS[3] + WIDTH + 0.25
    towers, ranker = TOP + 0.75 + 0.575, TOP - 0.6 + 0.575
    for height in (towers, ranker):
        arrow(axes, (COLUMNS[2] + WIDTH, middle), (fork, middle), (fork, height), (COLUMNS[3], height))
        arrow(axes, (COLUMNS[3] + WIDTH, height), (join, height), (join, middle), (COLUMNS[4], middle))

    low = BOTTOM + 0.7
    box(axes, COLUMNS[1], BOTTOM, 1.4, WORK, "Batch scoring", "exact top-k · seen items out\nranked · blocks of users")
    box(axes, COLUMNS[2], BOTTOM, 1.4, REDIS, "Redis", "a new generation, then one\natomic switch of the pointer")
    box(axes, COLUMNS[3], BOTTOM, 1.4, WORK, "Read one user", "the user's list, or the\npopular items, marked so")
    turn, gap, entry = COLUMNS[4] + WIDTH / 2, 2.7, COLUMNS[1] + WIDTH / 2
    arrow(axes, (turn, TOP), (turn, gap), (entry, gap), (entry, BOTTOM + 1.4))
    arrow(axes, (COLUMNS[1] + WIDTH, low), (COLUMNS[2], low))
    arrow(axes, (COLUMNS[2] + WIDTH, low), (COLUMNS[3], low))

    command(axes, COLUMNS[0], TOP + 1.4, "recsys data")
    command(axes, COLUMNS[3], TOP + 2.0, "recsys train")
    command(axes, COLUMNS[4], TOP + 1.4, "recsys import merlin")
    command(axes, COLUMNS[1], BOTTOM + 1.5, "recsys batch")
    command(axes, COLUMNS[3], BOTTOM + 1.5, "recsys get USER")
    here = Path(__file__).parent
    figure.savefig(here / "offline-batch.svg", facecolor="white", metadata={"Date": None})
    figure.savefig(here / "offline-batch.png", facecolor="white", dpi=110)


if __name__ == "__main__":
    draw()
