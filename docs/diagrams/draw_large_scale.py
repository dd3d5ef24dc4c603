"""Draw example 3, tables beyond one device, into large-scale.svg and large-scale.png."""

from __future__ import annotations

from drawing import DATA, FRAME, RED, REDIS, SOFT, STORE, WORK, arrow, box, canvas, command, frame, label, save
from matplotlib.axes import Axes

LEFT, RIGHT = 3.3, 14.3  # of the frames
COLUMNS, WIDTH = (3.6, 7.2, 10.8), 3.2  # of the boxes in them
TRITON, CLUSTER, DISK, TRAINING = 7.05, 4.35, 2.4, 0.35  # lower edges of the boxes
DENSE = 14.75  # where the dense model goes up
DOWN, UP, UPDATES = 7.6, 8.4, 10.1  # columns of the arrows between the tiers


def serving(axes: Axes) -> None:
    """The request: its keys, their rows, the network."""
    frame(axes, LEFT, TRITON - 0.3, (RIGHT - LEFT, 2.45), FRAME)
    axes.text(
        LEFT + 0.2, TRITON + 1.95, "Triton: model “dlrm”, requests in batches", weight="bold", size=10, va="center"
    )
    box(axes, 0.15, TRITON, (1.6, 1.4), DATA, "Your\nservice", "HugeCTR's tensors")
    box(axes, COLUMNS[0], TRITON, (WIDTH, 1.4), WORK, "Keys", "of all requests of the batch,\neach only once")
    box(axes, COLUMNS[1], TRITON, (WIDTH, 1.4), WORK, "Device cache", "tier 1: the hot rows,\non the GPU or in memory")
    box(axes, COLUMNS[2], TRITON, (WIDTH, 1.4), WORK, "DLRM", "bottom MLP, interaction,\ntop MLP: click probability")
    center = TRITON + 0.7
    arrow(axes, (1.75, center), (COLUMNS[0], center))
    for column in COLUMNS[:2]:
        arrow(axes, (column + WIDTH, center), (column + 3.6, center))
    label(axes, 1.87, center + 0.36, "DES\nCATCOLUMN\nROWINDEX")
    last, over = COLUMNS[2] + WIDTH / 2, TRITON + 1.75
    arrow(axes, (last, TRITON + 1.4), (last, over), (0.95, over), (0.95, TRITON + 1.4))
    label(axes, 1.1, over - 0.16, "OUTPUT0")
    command(axes, LEFT, TRITON + 2.25, "recsys dlrm serve")


def tiers(axes: Axes) -> None:
    """Where rows come from that the cache does not have, and how they get into it."""
    frame(axes, LEFT, CLUSTER - 0.2, (RIGHT - LEFT, 1.75), STORE)
    axes.text(RIGHT - 0.2, CLUSTER + 1.36, "Redis Cluster", weight="bold", size=10, va="center", ha="right", color=RED)
    label(axes, LEFT + 0.2, CLUSTER + 1.36, "tier 2, which all servers share")
    for number, column in enumerate(COLUMNS, start=1):
        text = "partitions of every table: rows in\nhashes, updates in streams"
        box(axes, column, CLUSTER, (WIDTH, 1.15), REDIS, f"Node {number}", text)
    box(
        axes, COLUMNS[0], DISK, (9.0, 0.9), DATA, "RocksDB", "tier 3, one per server: every row of every table, on disk"
    )
    above, below, disk = CLUSTER + 1.55, CLUSTER - 0.2, DISK + 0.9
    for low, high in ((above, TRITON), (disk, below)):
        middle = (low + min(high, TRITON - 0.3)) / 2
        arrow(axes, (DOWN, high), (DOWN, low))
        arrow(axes, (UP, low), (UP, high))
        label(axes, DOWN - 0.68, middle, "misses")
        label(axes, UP + 0.1, middle, "rows; fill in the\nbackground")
        label(axes, UPDATES + 0.12, middle, "updates, in order")
    arrow(axes, (UPDATES, above), (UPDATES, TRITON))
    arrow(axes, (UPDATES, below), (UPDATES, disk))
    box(axes, 0.15, CLUSTER - 0.1, (2.15, 1.35), DATA, "Online updates", "new rows, while\nrequests go on")
    arrow(axes, (2.3, CLUSTER + 0.575), (LEFT, CLUSTER + 0.575))


def training(axes: Axes) -> None:
    """From clicks to a model, and how it gets into the tiers."""
    center, above = TRAINING + 0.6, TRAINING + 1.2
    box(axes, COLUMNS[0], TRAINING, (2.6, 1.2), DATA, "Criteo clicks", "13 numbers, 26 categories,\nmillions of values")
    for shift in (0.16, 0.08):
        frame(axes, COLUMNS[1] + shift, TRAINING + shift, (2.6, 1.2), WORK)
    box(axes, COLUMNS[1], TRAINING, (2.6, 1.2), WORK, "TorchRec", "n processes, each with\nits shards of the tables")
    box(
        axes,
        COLUMNS[2],
        TRAINING,
        (WIDTH, 1.2),
        DATA,
        "HugeCTR's files",
        "dlrm.json, dense model,\nkey and emb_vector of each table",
    )
    arrow(axes, (COLUMNS[0] + 2.6, center), (COLUMNS[1], center))
    arrow(axes, (COLUMNS[1] + 2.76, center), (COLUMNS[2], center))
    arrow(axes, (COLUMNS[2] + 1.2, above), (COLUMNS[2] + 1.2, DISK))
    arrow(axes, (COLUMNS[2] + 2.5, above), (COLUMNS[2] + 2.5, CLUSTER - 0.2))
    label(axes, COLUMNS[2] + 1.32, above + 0.42, "keys, rows")
    level = TRITON + 0.7
    arrow(axes, (COLUMNS[2] + WIDTH, center), (DENSE, center), (DENSE, level), (COLUMNS[2] + WIDTH, level))
    axes.text(DENSE + 0.1, CLUSTER + 0.575, "network, dense weights", size=9, color=SOFT, va="center", rotation=90)
    command(axes, COLUMNS[0], above + 0.1, "recsys data criteo")
    command(axes, COLUMNS[1], above + 0.26, "recsys dlrm train")


def draw() -> None:
    """Write both files."""
    figure, axes = canvas("large-scale", 15.15, 0.1, 9.75)
    serving(axes)
    tiers(axes)
    training(axes)
    save(figure, "large-scale")


if __name__ == "__main__":
    draw()
