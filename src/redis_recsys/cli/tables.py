"""Tables that verbs print, and notebooks show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .app import out

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ..demos.observer import Phase
    from ..evaluation.evaluate import Report
    from ..online.recommender_client import Answer
    from ..parameter_server.server import Counts
    from ..store.recommendations import Recommendations


CEILINGS = {
    "ideal reordering": "the candidates of retrieval in the best order",
    "true probability": "all items in the order of their true click probability",
}


def ranked(title: str, items: list[Any], scores: list[float], labels: dict[str, str]) -> Table:
    """A table of recommended items, best first."""
    heading = Text(title)
    table = Table(title=heading, title_justify="left", min_width=heading.cell_len)
    for name in ("#", "item", *(["label"] if labels else []), "score"):
        table.add_column(name)
    for rank, (item, score) in enumerate(zip(items, scores, strict=True), 1):
        label = [labels.get(str(item), "")] if labels else []
        # as Text, since Rich would read brackets in a plain string as markup
        table.add_row(*map(Text, (str(rank), str(item), *label, f"{score:.4g}")))
    return table


def recommendations_table(found: Recommendations, labels: dict[str, str], most: int | None = None) -> Table:
    """The recommendations of one user, the first ``most`` items."""
    title = f"user {found.user}: {found.source} items, generation {found.generation}"
    return ranked(title, found.items[:most], found.scores[:most], labels)


def explained(answer: Answer, labels: dict[str, str]) -> Table:
    """The sources and ranks of each item of an answer."""
    table = Table()
    for name in ("#", "item", *(["label"] if labels else []), "sources", "similarity", "rank", "score", "rank"):
        table.add_column(name)
    for each in answer.explanations:
        label = [labels.get(str(each.item), "")] if labels else []
        row = (each.position, each.item, *label, ", ".join(each.sources), f"{each.similarity:.3f}", each.candidate)
        table.add_row(*(Text(f"{cell}") for cell in (*row, f"{each.score:.4g}", each.ranked)))
    return table


def show_report(report: Report) -> None:
    """Print an evaluation: its tables, the effect of the ranker on the lists, and its calibration."""
    from ..offline.recommender import OURS

    baselines = set(report.retrieval) - set(OURS)
    best = sorted(baselines, key=lambda name: report.retrieval[name]["ndcg@10"])[-1:]
    out.print(report_table(report), intervals_table(report, [*best, OURS[0]]), ranker_table(report))
    out.print(f"{report.compare(*OURS)}\n{report.ranker['calibration']}", highlight=False)


def report_table(report: Report, k: int = 10) -> Table:
    """One row per recommender, the best value of each column in bold."""
    names = {
        f"ndcg@{k}": "NDCG",
        f"recall@{k}": "recall",
        f"hit_rate@{k}": "hits",
        "mrr": "MRR",
        f"coverage@{k}": "coverage",
    }
    if all(f"click_probability@{k}" in metrics for metrics in report.retrieval.values()):
        names[f"click_probability@{k}"] = "truth"
    values = {name: [metrics[c] for c in names] for name, metrics in report.retrieval.items()}
    titles = list(names.values())
    if report.warm and report.cold:
        titles += ["warm", "cold"]
        for name, row in values.items():
            row += [report.warm[name][f"ndcg@{k}"], report.cold[name][f"ndcg@{k}"]]
    best = [max(column) for column in zip(*values.values(), strict=True)]
    title = f"first {k} recommendations out of the full catalogue, means over {{all:,}} test users"
    caption = f"recall, hits, coverage: of the first {k}; MRR: of the whole list"
    caption += "".join(f"; {name}: {CEILINGS[name]}" for name in report.ceilings)
    if "truth" in titles:
        caption += f"; truth: mean true click probability of the first {k}"
    if report.warm and report.cold:
        caption += f"; warm, cold: NDCG@{k} of {{warm:,}} users with and {{cold:,}} without a history"
    words = {"title": title.format(**report.users), "caption": caption.format(**report.users)}
    table = Table(**words, title_justify="left", caption_justify="left", box=None, padding=(0, 2, 0, 0))  # type: ignore[arg-type]
    table.add_column("recommender", no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for name, row in values.items():
        cells = [
            f"[bold]{value:.3f}[/]" if value == top else f"{value:.3f}" for value, top in zip(row, best, strict=True)
        ]
        table.add_row(name, *cells)
    for name, metrics in report.ceilings.items():
        table.add_row(name, *(f"{metrics[m]:.3f}" if m in metrics else "" for m in names), style="italic")
    return table


def intervals_table(report: Report, others: Sequence[str], metric: str = "ndcg@10") -> Table:
    """Means of a metric and their intervals, and differences to some recommenders, paired over users.

    Args:
        report: the evaluation.
        others: names of the recommenders that the rest is compared with.
        metric: a metric of lists.
    """
    from ..evaluation.comparison import CONFIDENCE, RESAMPLES
    from ..evaluation.metrics import title_of

    title = f"{title_of(metric)} and differences of the same users, with {CONFIDENCE:.0%} intervals"
    caption = f"bootstrap over users, {RESAMPLES:,} resamples; bold: the interval excludes 0"
    table = Table(
        title=title, caption=caption, title_justify="left", caption_justify="left", box=None, padding=(0, 1, 0, 0)
    )
    table.add_column("", no_wrap=True)
    for heading in ("mean", *(f"minus\n{name}" for name in others)):
        table.add_column(heading, justify="right", no_wrap=True)
    for group, paired in report.groups.items():
        table.add_row(Text(f"{group}, {report.users[group]:,} users", style="italic"))
        for name in paired.names:
            cells = [Text(f"{_short(paired.mean(name, metric))} {_ends(paired.interval(name, metric))}")]
            for found in (paired.compare(other, name, metric) for other in others):
                text = f"{_short(found.difference, '+')} {_ends((found.low, found.high), '+')}"
                same = found.first == name
                cells.append(Text("" if same else text, style="" if found.verdict == "open" else "bold"))
            table.add_row(name, *cells)
    return table


def _short(value: float, sign: str = "") -> str:
    """Three digits, equally wide up to 1: ``.391`` and ``1.00``, or with ``sign`` ``+``: ``+.024``."""
    text = f"{value:{sign}.3f}"
    return text[:-1] if "1." in text else text.replace("0.", ".", 1)


def _ends(interval: tuple[float, float], sign: str = "") -> str:
    return f"[{', '.join(_short(value, sign) for value in interval)}]"


def ranker_table(report: Report, k: int = 10) -> Table:
    """The ranker's metrics, beside the oracle's where there is one."""
    title = "Ranker on {rows:,} test rows: {positives:,} clicks".format(**report.ranker)
    if report.ranker["sampled_negatives"]:
        title += ", {sampled_negatives:,} items drawn uniformly as non-clicks".format(**report.ranker)
    table = Table(title=title)
    table.add_column("")
    for name in ("AUC", "log loss", f"impression NDCG@{k}"):
        table.add_column(name, justify="right")
    for name, metrics in (("model", report.ranker), ("oracle", report.ranker.get("oracle"))):
        if metrics:
            table.add_row(name, *(f"{metrics[m]:.4f}" for m in ("auc", "log_loss", f"impression_ndcg@{k}")))
    return table


def probabilities_table(served: np.ndarray, trained: np.ndarray) -> Table:
    """Triton's click probabilities beside those of the trained model."""
    table = Table()
    for name in ("row", "probability", "trained model", "difference"):
        table.add_column(name)
    for number, (ours, theirs) in enumerate(zip(served, trained, strict=True)):
        table.add_row(*(Text(cell) for cell in (f"{number}", f"{ours:.6f}", f"{theirs:.6f}", f"{ours - theirs:+.1e}")))
    return table


def hits_table(found: dict[str, Counts]) -> Group:
    """The rows that each tier gave, one table below the other, since their names alone fill a line."""
    meanings = {
        "cache": "in the cache", "redis": "in Redis", "rocksdb": "in RocksDB", "default": "nowhere: default vector",
        "deferred": "default vector, fetched in the background", "unreachable": "Redis node away",
    }  # fmt: skip
    tables = []
    for name, counts in found.items():
        table = Table(title=Text(f"{name}: {counts.lookups:,} lookups of {counts.keys:,} keys"), title_justify="left")
        for heading in ("keys", "", "share"):
            table.add_column(heading, justify="left" if not heading else "right")
        for field, meaning in meanings.items():
            value = getattr(counts, field)
            table.add_row(*map(Text, (f"{value:,}", meaning, f"{value / max(1, counts.keys):.1%}")))
        tables.append(table)
    return Group(*tables)


def phases_table(phases: Sequence[Phase]) -> Table:
    """The tiers that rows came from and the times of requests, phase by phase of the demonstration."""
    from ..demos.large_scale_demo import BATCH

    title = f"where rows came from, {phases[0].requests} requests of {BATCH} samples each"
    table = Table(title=title, title_justify="left")
    for name in ("", "cache", "Redis", "RocksDB", "none", "p50 ms", "p99 ms"):
        table.add_column(name)
    for phase in phases:
        cells = [f"{share:.1%}" for share in phase.shares().values()]
        cells += [f"{phase.p50_ms:.1f}", f"{phase.p99_ms:.1f}"]
        table.add_row(*map(Text, (phase.name, *cells)))
    return table
