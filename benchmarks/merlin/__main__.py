"""Comparison of Merlin and this library: the same synthetic rows, the same machine, one after the other.

    python -m benchmarks.merlin --rows 1000000

Both start with parquet files of raw rows and end with exported models. Merlin runs like the public notebook, with its
shapes and batch sizes: once for the notebook's number of epochs, once for as long as its validation metric improves,
like ours. Ours runs on the training part alone, like Merlin, and with the default, which trains once more with the
validation part included. The same code then evaluates all of them on the same test part.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import typer
from matplotlib.figure import Figure

from benchmarks.measure import FOLDER, in_child, machine
from benchmarks.report import into_page, markdown, picture
from redis_recsys.config import MerlinSettings, Settings, TrainSettings
from redis_recsys.data.synthetic import generate
from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.interactions import Dataset
from redis_recsys.dataset.split import Split
from redis_recsys.evaluation.evaluate import evaluate
from redis_recsys.evaluation.plots import COLORS, styled
from redis_recsys.offline.recommender import BundleRecommender

RESULTS = Path("benchmarks/merlin/results/merlin.json")
PLOT = Path("assets/merlin-speed.png")
NOTEBOOK_EPOCHS = 3  # epochs of the notebook's DLRM; its towers get 2
STEPS = ("import", "etl", "retrieval", "ranking", "export")


def measure(rows: int) -> dict[str, Any]:
    """Measure all contenders on ``rows`` synthetic rows."""
    raw, home = FOLDER / f"synthetic-{rows}", FOLDER / f"merlin-{rows}"
    if not raw.exists():
        generate(raw, rows)
    shutil.rmtree(home, ignore_errors=True)
    encode(raw, home / "dataset", Split())
    found: dict[str, Any] = {}
    for name, work, arguments in (
        ("Merlin, epochs of the notebook", _merlin, (home, NOTEBOOK_EPOCHS)),
        ("Merlin, until it gets no better", _merlin, (home, TrainSettings().epochs)),
        ("ours, on the training part", _ours, (raw, home, False)),
        ("ours, default", _ours, (raw, home, True)),
    ):
        print(f"measuring {name} ...", flush=True)
        figures = in_child(work, *arguments)
        found[name] = figures | _quality(Dataset(home / "dataset"), Path(figures.pop("bundle")))
    return found


def _merlin(home: Path, epochs: int) -> dict[str, Any]:
    """Measure the worker alone: writing its rows before and packing its models afterwards are not Merlin's work."""
    from redis_recsys.trainers.merlin.train import MerlinTrainer

    settings = Settings(
        train=TrainSettings(epochs=epochs, patience=2 if epochs > NOTEBOOK_EPOCHS else epochs),
        merlin=MerlinSettings(log=home / "merlin.log"),
    )
    bundle = home / f"merlin-{epochs}"
    with MerlinTrainer(Dataset(home / "dataset"), settings, bundle) as trainer:
        curves = {"retrieval": trainer.fit_retrieval(), "ranking": trainer.fit_ranking()}
        trainer.export()
    seconds = {step: trainer.seconds[step] for step in STEPS}
    peak = {"peak_mb": trainer.peak_mb}
    return {"bundle": str(bundle), "seconds": seconds, **_speed(curves), "worker": peak}


def _ours(raw: Path, home: Path, refit: bool) -> dict[str, Any]:
    """Run the same steps in a fresh process."""
    started = time.perf_counter()
    from redis_recsys.trainers.torch.train import Trainer

    seconds = {"import": time.perf_counter() - started}

    def timed(step: str, work: Any) -> Any:
        begun = time.perf_counter()
        result = work()
        seconds[step] = time.perf_counter() - begun
        return result

    dataset, bundle = home / f"dataset-{refit}", home / f"ours-{refit}"
    timed("etl", lambda: encode(raw, dataset, Split()))
    trainer = Trainer(Dataset(dataset), TrainSettings(refit=refit), bundle)
    curves = {"retrieval": timed("retrieval", trainer.fit_retrieval), "ranking": timed("ranking", trainer.fit_ranking)}
    timed("export", trainer.export)
    return {"bundle": str(bundle), "seconds": seconds, **_speed(curves)}


def _speed(curves: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Rows per second of an epoch: the median without the first, which traces graphs and fills caches."""
    speed: dict[str, Any] = {"epochs": {name: len(records) for name, records in curves.items()}}
    for name, records in curves.items():
        rates = sorted(record["rows_per_s"] for record in records[1:] or records)
        speed[f"{name}_rows_per_s"] = rates[len(rates) // 2]
    return speed


def _quality(dataset: Dataset, path: Path) -> dict[str, Any]:
    from redis_recsys.bundle.bundle import Bundle

    bundle = Bundle(path)
    both = BundleRecommender(bundle, dataset)
    report = evaluate(dataset, [BundleRecommender(bundle, dataset, ranked=False), both], predict=both.predict)
    towers, pipeline = report.retrieval["two-tower"], report.retrieval["two-tower + DLRM"]
    return {
        "auc": report.ranker["auc"],
        "share_of_oracle": report.ranker["share_of_oracle_auc"],
        "towers_ndcg@10": towers["ndcg@10"],
        "towers_ndcg@10_error": towers["ndcg@10_error"],
        "towers_recall@10": towers["recall@10"],
        "both_ndcg@10": pipeline["ndcg@10"],
        "both_recall@10": pipeline["recall@10"],
    }


def tables(results: dict[str, Any]) -> str:
    """Render the results as Markdown."""
    here, rows, found = results["machine"], results["rows"], results["found"]
    speed, quality = [], []
    for name, f in found.items():
        total, peak = sum(f["seconds"].values()), f.get("worker", f)["peak_mb"]
        epochs = "{retrieval} + {ranking}".format(**f["epochs"])
        rates = (f"{f[f'{model}_rows_per_s']:,.0f}" for model in ("retrieval", "ranking"))
        speed.append([name, f"{f['seconds']['etl']:.2f}", *rates, epochs, f"{total:.0f}", f"{peak:,.0f}"])
        ndcg = f"{f['towers_ndcg@10']:.4f} ± {f['towers_ndcg@10_error']:.4f}"
        rest = (f"{f[metric]:.4f}" for metric in ("towers_recall@10", "both_ndcg@10", "both_recall@10"))
        quality.append([name, f"{f['auc']:.4f}", f"{f['share_of_oracle']:.1%}", ndcg, *rest])
    slow, fast = (found[name] for name in ("Merlin, epochs of the notebook", "ours, on the training part"))
    long = found["Merlin, until it gets no better"]
    end = {name: sum(f["seconds"].values()) for name, f in (("slow", slow), ("fast", fast), ("long", long))}
    return "\n".join(
        [
            f"Measured by `make bench-merlin` on {here['processor']}, {here['cores']} cores, "
            f"{here['memory_gib']} GiB, no GPU: {rows:,} synthetic rows, from importing the libraries to exported "
            "models.\n",
            *markdown(
                ["", "ETL s", "towers rows/s", "ranker rows/s", "epochs", "end to end s", "peak MB"],
                speed,
            ),
            "",
            *markdown(
                ["", "AUC", "of the oracle's", "towers NDCG@10", "recall@10", "with ranker NDCG@10", "recall@10"],
                quality,
            ),
            "",
            f"On the training part, ours takes 1/{end['slow'] / end['fast']:.1f} of the time of Merlin with the "
            f"notebook's epochs, and 1/{end['long'] / end['fast']:.1f} of Merlin's time when both stop by themselves. "
            f"Its ETL is {slow['seconds']['etl'] / fast['seconds']['etl']:.0f} times as fast, although it encodes the "
            "test part too.\n",
            picture("Seconds from raw rows to exported models", PLOT),
        ]
    )


@styled
def plot(results: dict[str, Any]) -> Figure:
    """Plot the seconds of each step, stacked."""
    found = results["found"]
    figure, axes = plt.subplots(figsize=(8, 2.6))
    left, bars = [0.0] * len(found), None
    for step, color in zip(STEPS, COLORS, strict=False):
        widths = [f["seconds"][step] for f in found.values()]
        bars = axes.barh(list(found), widths, left=left, label=step, color=color)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    assert bars is not None
    axes.bar_label(bars, [f"{total:.0f} s" for total in left], padding=4)
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds, {results['rows']:,} synthetic rows")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.02), fontsize="small")
    axes.margins(x=0.12)
    return figure


def main(
    rows: Annotated[int, typer.Option(min=20_000, help="Synthetic rows.")] = 1_000_000,
    publish: Annotated[bool, typer.Option(help="Write the tables into docs/benchmarks.md, and the plot.")] = True,
) -> None:
    """Measure Merlin and this library."""
    results = {"machine": machine(), "rows": rows, "found": measure(rows)}
    print(tables(results))
    if publish:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        into_page("merlin", tables(results))
        plot(results, path=PLOT)


if __name__ == "__main__":
    typer.run(main)
