"""Draw example 2, multi-stage recommendations, into multi-stage.svg and multi-stage.png."""

from __future__ import annotations

from drawing import DATA, FRAME, RED, REDIS, STORE, WORK, arrow, box, canvas, command, frame, label, save
from matplotlib.axes import Axes

STAGES = {
    "User\nfeatures": "packed row,\nitems seen",
    "User\nembedding": "user tower,\nONNX Runtime",
    "Candidates": "nearest, similar,\npopular items",
    "Filter": "seen items,\nbusiness rules",
    "Item\nfeatures": "from memory\nor from Redis",
    "Ranking": "DLRM,\nONNX Runtime",
    "Ordering": "by score, drawn,\nor diverse",
}
STAGE_WIDTH, STEP, LEFT = 1.47, 1.693, 2.55
WIDTH = 2.76  # of the boxes in Redis and below
COLUMNS = (2.55, 5.506, 8.462, 11.418)
TOP, MIDDLE, BOTTOM = 5.05, 2.55, 0.35


def stages(axes: Axes) -> None:
    """The request: from the caller through the stages and back."""
    frame(axes, 2.3, TOP - 0.3, (12.13, 2.45), FRAME)
    center = TOP + 0.7
    box(axes, 0.15, TOP, (1.5, 1.4), DATA, "Your\nservice", "gRPC or HTTP")
    for number, (title, text) in enumerate(STAGES.items()):
        x = LEFT + number * STEP
        box(axes, x, TOP, (STAGE_WIDTH, 1.4), WORK, title, text)
        arrow(axes, (1.65 if number == 0 else x - STEP + STAGE_WIDTH, center), (x, center))
    label(axes, 1.72, center + 0.2, "user")
    last, over = LEFT + 6 * STEP + STAGE_WIDTH / 2, TOP + 1.75
    arrow(axes, (last, TOP + 1.4), (last, over), (0.9, over), (0.9, TOP + 1.4))
    label(axes, 1.05, over - 0.16, "items, scores")
    axes.text(2.5, TOP + 1.95, "Triton: model “recommender”, requests in batches", weight="bold", size=10, va="center")


def stores(axes: Axes) -> None:
    """Redis, and which stage reads what."""
    frame(axes, 2.3, MIDDLE - 0.2, (12.13, 1.75), STORE)
    axes.text(14.25, MIDDLE + 1.36, "Redis 8", weight="bold", size=10, va="center", ha="right", color=RED)
    texts = {
        "Features · histories": "a packed row and a sorted set\nper user; the same in Feast",
        "Vectors": "vector set of all items, and\na stream of its changes",
        "Popular items": "sorted set: the answer when\nsomething fails (degraded)",
        "Events": "stream of what users do,\nas it happens",
    }
    for x, (title, text) in zip(COLUMNS, texts.items(), strict=True):
        box(axes, x, MIDDLE, (WIDTH, 1.15), REDIS, title, text)
    above = MIDDLE + 1.15
    for x, y in (
        (LEFT + STAGE_WIDTH / 2, TOP),
        (LEFT + 2 * STEP + STAGE_WIDTH / 2, TOP),
        (COLUMNS[2] + 1.38, TOP - 0.3),
    ):
        arrow(axes, (x, above), (x, y))


def writers(axes: Axes) -> None:
    """What changes Redis: deployments and live events."""
    center, above, below = BOTTOM + 0.55, BOTTOM + 1.1, MIDDLE - 0.2
    box(axes, COLUMNS[0], BOTTOM, (WIDTH, 1.1), DATA, "Bundle", "models in ONNX, features,\nembeddings, from training")
    box(axes, COLUMNS[1], BOTTOM, (WIDTH, 1.1), WORK, "Deploy", "models, features, vectors;\nthen one atomic switch")
    box(
        axes,
        COLUMNS[2],
        BOTTOM,
        (WIDTH, 1.1),
        WORK,
        "Consumer",
        "history, features, counters:\natomically, and only once",
    )
    box(axes, COLUMNS[3], BOTTOM, (WIDTH, 1.1), DATA, "Your users", "clicks, views,\npurchases")
    arrow(axes, (COLUMNS[0] + WIDTH, center), (COLUMNS[1], center))
    arrow(axes, (COLUMNS[1] + WIDTH / 2, above), (COLUMNS[1] + WIDTH / 2, below))
    arrow(axes, (COLUMNS[2] + 2.3, below), (COLUMNS[2] + 2.3, above))
    arrow(axes, (COLUMNS[2] + 1.9, above), (COLUMNS[2] + 1.9, below))
    arrow(axes, (COLUMNS[3] + 2.3, above), (COLUMNS[3] + 2.3, MIDDLE))
    command(axes, COLUMNS[1], above + 0.1, "recsys deploy")
    command(axes, COLUMNS[2], above + 0.1, "recsys consume")
    command(axes, COLUMNS[3], above + 0.1, "recsys event")


def draw() -> None:
    """Write both files."""
    figure, axes = canvas("multi-stage", 14.6, 0.1, 7.7)
    stages(axes)
    stores(axes)
    writers(axes)
    command(axes, 0.15, TOP - 0.5, "recsys\nrecommend USER")
    command(axes, 2.3, TOP + 2.25, "recsys serve")
    save(figure, "multi-stage")


if __name__ == "__main__":
    draw()
