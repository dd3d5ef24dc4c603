"""Run the offline benchmarks: print the tables, put them into docs/benchmarks.md, and draw the plots.

python -m benchmarks.offline
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.measure import FOLDER, machine
from benchmarks.offline import batch, etl, models
from benchmarks.report import into_page, markdown, picture
from redis_recsys.evaluation.plots import COLORS, OTHERS, metric_bars, styled
from redis_recsys.offline.recommender import OURS

RESULTS = Path("benchmarks/offline/results/offline.json")
SPEED_PLOT, QUALITY_PLOT = Path("assets/batch-speed.png"), Path("assets/quality-movielens.png")


def main() -> None:
    """Measure one thing after the other, so that none disturbs another."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine()}
    for name, measure in (
        ("etl", etl.measure),
        ("batch", batch.run),
        ("synthetic", models.synthetic),
        ("movielens", models.movielens),
    ):
        print(f"measuring {name} ...", flush=True)
        results[name] = measure()
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    text = tables(results)
    print(text)
    into_page("results", text)
    quality = results["movielens"]
    metric_bars(quality["retrieval"], quality["users"]["all"], OURS, path=QUALITY_PLOT)
    speed_plot(results["batch"], path=SPEED_PLOT)


def tables(results: dict[str, Any]) -> str:
    """Render the results as Markdown."""
    here, e, b = results["machine"], results["etl"], results["batch"]
    synthetic, movielens = results["synthetic"], results["movielens"]
    plain, many, public, loop = b["batch"], b["batch_many"], b["public_shape"], b["loop"]
    speed = [
        ["ETL: 10M synthetic rows encoded and split", f"{e['rows_per_s']:,} rows/s", f"{e['peak_mb']:,.0f} MB"],
        _batch_row("Batch: 100k users × 10k items, 100 candidates → 20, into Redis", plain),
        _batch_row("The same for 1M users", many),
        _batch_row("The same models, one user at a time (500 users)", loop),
        _batch_row("Batch: 100k users × 446 items, 20 candidates → 10, into Redis", public),
        *(
            [
                f"Training, {model} (loader {s['loader']:.0%}, forward {s['forward']:.0%}, "
                f"backward {s['backward']:.0%} of the time)",
                f"{s['rows_per_s']:,.0f} rows/s",
                "",
            ]
            for model, s in synthetic["speed"].items()
        ),
    ]
    ranker = synthetic["ranker"]
    popular, towers = synthetic["retrieval"]["popularity"], synthetic["retrieval"]["two-tower"]
    return "\n".join(
        [
            f"Measured by `make bench` on {here['processor']}, {here['cores']} cores, "
            f"{here['memory_gib']} GiB, no GPU.\n",
            *markdown(["what", "speed", "peak memory"], speed),
            "",
            f"Batch scoring is {b['batch_over_loop']:.0f} times as fast as the loop. Retrieval and ranking alone "
            f"(without Redis) run at {b['share_of_matmul']:.0%} of the machine's rate of float32 matrix products "
            f"({b['matmul_gflops']:.0f} GFLOP/s). The offline half of `recsys demo` took {movielens['demo_s']:.0f} s, "
            f"training on 1M synthetic rows {synthetic['train_s']:.0f} s.\n",
            f"{picture('Users per second', SPEED_PLOT)}\n",
            "**MovieLens-100k**, split by time, full catalogue, seen items filtered for all "
            "({all} test users, {warm} with a history, {cold} without):\n".format(**movielens["users"]),
            *_quality(movielens),
            "",
            " ".join(movielens["comparisons"]) + "\n",
            f"{picture('Quality on MovieLens-100k', QUALITY_PLOT)}\n",
            f"**Synthetic, {synthetic['rows']:,} rows**: the ranker's AUC is {ranker['auc']:.4f}, the best "
            f"possible (true probabilities) {ranker['oracle']['auc']:.4f}: "
            f"{ranker['share_of_oracle_auc']:.1%} of what it has above 0.5. "
            f"NDCG@10 of each user's impressions: {ranker['impression_ndcg@10']:.4f}, oracle "
            f"{ranker['oracle']['impression_ndcg@10']:.4f}. The two towers' recall@10 is "
            f"{towers['recall@10'] / popular['recall@10']:.1f} times that of popularity.\n",
            *_quality(synthetic),
            "",
            " ".join(synthetic["comparisons"]),
        ]
    )


def _batch_row(name: str, figures: dict[str, float]) -> list[str]:
    return [name, f"{figures['users_per_s']:,.0f} users/s", f"{figures['peak_mb']:,.0f} MB"]


def _quality(results: dict[str, Any]) -> list[str]:
    rows = []
    for name, m in results["retrieval"].items():
        ndcg = f"{m['ndcg@10']:.4f} ± {m['ndcg@10_error']:.4f}"
        rest = (f"{m[metric]:.4f}" for metric in ("recall@10", "hit_rate@10", "mrr", "coverage@10"))
        rows.append([f"**{name}**" if name in OURS else name, ndcg, *rest])
    return markdown(["recommender", "NDCG@10 ± standard error", "recall@10", "hit rate@10", "MRR", "coverage@10"], rows)


@styled
def speed_plot(figures: dict[str, Any]) -> Figure:
    """Plot users per second of batch scoring and of the loop."""
    names = {"loop": "one user at a time", "batch": "batch, 100k users", "batch_many": "batch, 1M users"}
    values = [figures[name]["users_per_s"] for name in names]
    figure, axes = plt.subplots(figsize=(7, 2.2))
    bars = axes.barh(list(names.values()), values, color=[OTHERS, COLORS[0], COLORS[0]])
    axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=4)
    axes.set_xlabel("users per second, 10k items, 100 candidates → 20, Redis writes included")
    axes.margins(x=0.15)
    return figure


if __name__ == "__main__":
    main()
