"""Verbs of the offline way: train, evaluate, score everyone ahead of time, read back."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import Settings
from .app import BEHIND, BUNDLE, DATASET, Bundle_, Dataset_, Force, Json, TakesIds, app, out, titles
from .options import options
from .tables import recommendations_table, show_report

if TYPE_CHECKING:
    from ..evaluation.evaluate import Report


@app.command()
@options("train", prefixed=["merlin"])
def train(
    settings: Settings,
    dataset: Dataset_ = DATASET,
    target: Annotated[Path, typer.Option("--out", help="bundle folder to write")] = BUNDLE,
    export: Annotated[
        Path | None, typer.Option(help="merlin: keep SavedModels, features and NVTabular's files in this folder")
    ] = None,
    epochs_of: Annotated[
        Path | None, typer.Option(help="with --final: take the best epochs of this bundle's training, choose no others")
    ] = None,
    force: Force = False,
) -> None:
    """Train retrieval and ranking models and export them as a bundle.

    With PyTorch, or with NVIDIA Merlin in an environment of its own (recsys setup merlin): NVTabular, TwoTowerModelV2
    and DLRMModel, converted to the same bundle.
    """
    from ..bundle.bundle import Bundle
    from ..dataset.interactions import Dataset
    from ..trainers.training import train as fit

    chosen = Bundle(epochs_of) if epochs_of else None
    made = fit(Dataset(dataset), settings, target, export, chosen, force).manifest
    learned = " + ".join(f"{count:,} {part}" for part, count in made.learned_from.items() if count)
    out.print(f"bundle with {made.users:,} users and {made.items:,} items in {target}, learned from {learned} rows")


@app.command()
@options("batch.candidates")
def evaluate(
    settings: Settings,
    bundle: Bundle_ = BUNDLE,
    dataset: Annotated[Path, typer.Option(help="dataset folder the bundle was trained on")] = DATASET,
    baselines: Annotated[
        bool, typer.Option(help="also fit and measure popularities, item-kNN, RP3beta, EASE, ALS and BPR")
    ] = True,
    plot: Annotated[Path | None, typer.Option(help="write a bar chart to this .png or .svg")] = None,
    as_json: Json = False,
) -> None:
    """Measure a bundle on the test part over the full catalogue, beside simple baselines.

    Differences between recommenders are those of the same users, with intervals by the bootstrap.
    """
    if plot:
        from ..evaluation.plots import check_path

        check_path(plot)  # now, not in an hour
    report = _evaluate(bundle, dataset, settings.batch.candidates, baselines)
    if plot:
        from ..evaluation.plots import metric_bars
        from ..offline.recommender import OURS

        metric_bars(report.retrieval, report.users["all"], highlight=OURS, path=plot)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        show_report(report)


@app.command()
@options("batch", "redis", prefixed=["online.allow", "online.deny"])
def batch(
    settings: Settings,
    bundle: Bundle_ = BUNDLE,
    as_json: Json = False,
) -> None:
    """Score every user and publish the recommendations in Redis. Run again after a cut, it goes on where it stopped."""
    from ..bundle.bundle import Bundle
    from ..offline.batch import batch as run
    from ..store.connection import connect

    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # values that no item has, on the error stream
    with connect(settings.redis) as client:
        report = run(Bundle(bundle), client, settings)
    if as_json:
        print(json.dumps(vars(report) | {"users_per_second": report.users_per_second}))
    else:
        resumed = f", resumed at {report.resumed_at:,}" if report.resumed_at else ""
        out.print(
            f"{report.users:,} users in generation {report.generation}: {report.seconds:.1f} s, "
            f"{report.users_per_second:,.0f} users/s{resumed}"
        )


@app.command(cls=TakesIds)
@options("redis")
def get(
    settings: Settings,
    users: Annotated[list[str], typer.Argument(help=f"raw user ids{BEHIND}", metavar="USER...")],
    bundle: Annotated[Path | None, typer.Option(help="show the items' labels from this bundle")] = None,
    as_json: Json = False,
) -> None:
    """Read recommendations from Redis. A user whom the batch did not know gets the popular items, marked as such."""
    from ..store.connection import connect
    from ..store.recommendations import get_many

    with connect(settings.redis) as client:
        found = get_many(client, users)
    if as_json:
        records = [vars(each) for each in found]
        print(json.dumps(records[0] if len(records) == 1 else records, default=str))
        return
    labels = titles(bundle) if bundle else {}
    for each in found:
        out.print(recommendations_table(each, labels))


def _evaluate(bundle: Path, dataset: Path, candidates: int, with_baselines: bool) -> Report:
    from ..bundle.bundle import Bundle
    from ..data.synthetic import truth_of
    from ..dataset.interactions import Dataset, raw_folder
    from ..evaluation.baselines import fit_baselines
    from ..evaluation.evaluate import check_test
    from ..evaluation.evaluate import evaluate as measure
    from ..offline.recommender import BundleRecommender

    opened, rows = Bundle(bundle), Dataset(dataset)
    check_test(rows)
    towers = BundleRecommender(opened, rows, candidates, ranked=False)
    both = BundleRecommender(opened, rows, candidates)
    baselines = fit_baselines(rows) if with_baselines else []
    truth = truth_of(raw_folder(dataset))
    return measure(rows, [*baselines, towers, both], predict=both.predict, retrieval=towers, truth=truth)
