"""What the pictures of the examples share: colours, boxes, arrows, and how they are written."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, SOFT, LINE, RED = "#161f31", "#5b6675", "#8d99ae", "#d82c20"
DATA, WORK, REDIS = ("#f1f4f7", "#b8c2cd"), ("#e4eef4", "#4c8dae"), ("#fbe5e3", RED)
FRAME, STORE = ("#f8fafc", "#4c8dae"), ("#fff8f7", RED)


def canvas(name: str, width: float, bottom: float, top: float) -> tuple[Figure, Axes]:
    """An empty picture in units of an inch; whatever makes its SVG again makes the same one."""
    plt.rcParams |= {"font.family": "DejaVu Sans", "text.color": INK, "svg.hashsalt": name}
    figure, axes = plt.subplots(figsize=(width, round(top - bottom, 3)))
    axes.set(xlim=(0, width), ylim=(bottom, top), aspect="equal")
    axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    return figure, axes


def save(figure: Figure, name: str) -> None:
    """Write the picture to ``assets/``, as SVG and PNG."""
    here = Path(__file__).parents[2] / "assets"
    figure.savefig(here / f"{name}.svg", facecolor="white", metadata={"Date": None})
    figure.savefig(here / f"{name}.png", facecolor="white", dpi=110)


def frame(axes: Axes, x: float, y: float, size: tuple[float, float], colors: tuple[str, str]) -> None:
    """A rounded box; x and y are its lower left corner."""
    shape = "round,pad=0,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch((x, y), *size, boxstyle=shape, facecolor=colors[0], edgecolor=colors[1], linewidth=1.4)
    )


def box(
    axes: Axes, x: float, y: float, size: tuple[float, float], colors: tuple[str, str], title: str, text: str
) -> None:
    """A rounded box with a bold title and a few lines below it."""
    frame(axes, x, y, size, colors)
    width, height = size
    middle, above, below = y + height / 2, title.count("\n"), text.count("\n")
    center = x + width / 2
    axes.text(center, middle + 0.1 + 0.1 * below, title, ha="center", va="center", weight="bold", size=11.5)
    axes.text(
        center, middle - 0.22 - 0.13 * above, text, ha="center", va="center", size=9, color=SOFT, linespacing=1.35
    )


def arrow(axes: Axes, *points: tuple[float, float], head: float = 14) -> None:
    """A line through the points with a head at the last."""
    axes.plot(*zip(*points[:-1], strict=True), color=LINE, linewidth=1.8, solid_joinstyle="round")
    axes.add_patch(
        FancyArrowPatch(
            points[-2],
            points[-1],
            arrowstyle="-|>",
            mutation_scale=head,
            color=LINE,
            linewidth=1.8,
            shrinkA=0,
            shrinkB=1,
        )
    )


def command(axes: Axes, x: float, y: float, text: str) -> None:
    """The command that does a step, above or beside its box."""
    axes.text(x, y, text, size=9.5, family="DejaVu Sans Mono", color=RED, va="bottom")


def label(axes: Axes, x: float, y: float, text: str) -> None:
    """What an arrow carries."""
    axes.text(x, y, text, size=9, color=SOFT, va="center")
