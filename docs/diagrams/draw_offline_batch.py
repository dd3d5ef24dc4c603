"""Draw example 1, offline batch recommendations, into offline-batch.svg and offline-batch.png."""

from __future__ import annotations

from functools import partial

import drawing
from drawing import DATA, REDIS, SOFT, WORK, canvas, command, frame, save
from matplotlib.axes import Axes

WIDTH, TOP, BOTTOM = 2.35, 4.0, 0.55
COLUMNS = (0.15, 3.0, 5.85, 8.7, 11.55)

arrow = partial(drawing.arrow, head=15)


def box(axes: Axes, x: float, y: float, height: float, colors: tuple[str, str], title: str, text: str) -> None:
    """A rounded box with a bold title and a few lines below it; x and y are its lower left corner."""
    frame(axes, x, y, (WIDTH, height), colors)
    lines = text.count("\n") + 1
    middle = y + height / 2
    axes.text(x + WIDTH / 2, middle + 0.13 * lines, title, ha="center", va="center", weight="bold", size=12.5)
    axes.text(x + WIDTH / 2, middle - 0.17, text, ha="center", va="center", size=9.3, color=SOFT, linespacing=1.35)


def draw() -> None:
    """Write both files."""
    figure, axes = canvas("offline-batch", 14.05, 0.4, 6.3)
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
    box(axes, COLUMNS[3], TOP - 0.6, 1.15, WORK, "DLRM", "ranking: scores candidates\nPyTorch or NVIDIA Merlin")
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
    save(figure, "offline-batch")


if __name__ == "__main__":
    draw()
