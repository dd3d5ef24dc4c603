"""Verbs of the offline way: train, evaluate, score everyone ahead of time, read back."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import BatchSettings, RedisSettings, TrainSettings, load_settings
from .app import BEHIND, BUNDLE, DATASET, Bundle_, Dataset_, Force, Json, TakesIds, app, out, ranked, setting, titles

if TYPE_CHECKING:
    from rich.table import Table

    from ..evaluation.evaluate import Report
    from ..store.recommendations import Recommendations


@app.command()
def train(
    dataset: Dataset_ = DATASET,
    target: Annotated[Path, typer.Option("--out", help="bundle folder to write")] = BUNDLE,
    trainer: Annotated[str | None, setting(TrainSettings, "trainer")] = None,
    export: Annotated[
        Path | None, typer.Option(help="merlin: keep SavedModels, features and NVTabular's files in this folder")
    ] = None,
    device: Annotated[str | None, setting(TrainSettings, "device")] = None,
    epochs: Annotated[int | None, setting(TrainSettings, "epochs")] = None,
    patience: Annotated[int | None, setting(TrainSettings, "patience")] = None,
    seed: Annotated[int | None, setting(TrainSettings, "seed")] = None,
    embedding_dim: Annotated[int | None, setting(TrainSettings, "embedding_dim")] = None,
    temperature: Annotated[float | None, setting(TrainSettings, "temperature")] = None,
    uniform_negatives: Annotated[int | None, setting(TrainSettings, "uniform_negatives")] = None,
    ranking_negatives: Annotated[int | None, setting(TrainSettings, "ranking_negatives")] = None,
    feature_dropout: Annotated[float | None, setting(TrainSettings, "feature_dropout")] = None,
    half_life: Annotated[float | None, setting(TrainSettings, "half_life")] = None,
    refit: Annotated[bool | None, setting(TrainSettings, "refit")] = None,
    final: Annotated[bool | None, setting(TrainSettings, "final")] = None,
    epochs_of: Annotated[
        Path | None, typer.Option(help="with --final: take the best epochs of this bundle's training, choose no others")
    ] = None,
    resume: Annotated[bool | None, setting(TrainSettings, "resume")] = None,
    force: Force = False,
) -> None:
    """Train retrieval and ranking models and export them as a bundle.

    With PyTorch, or with NVIDIA Merlin in an environment of its own (make merlin): NVTabular, TwoTowerModelV2 and
    DLRMModel, converted to the same bundle.
    """
    from ..bundle.bundle import Bundle
    from ..dataset.interactions import Dataset
    from ..trainers.training import train as fit

    flags = {name: value for name, value in locals().items() if name in TrainSettings.model_fields}
    chosen = Bundle(epochs_of) if epochs_of else None
    made = fit(Dataset(dataset), load_settings(train=flags), target, export, chosen, force).manifest
    learned = " + ".join(f"{count:,} {part}" for part, count in made.learned_from.items() if count)
    out.print(f"bundle with {made.users:,} users and {made.items:,} items in {target}, learned from {learned} rows")


@app.command()
def evaluate(
    bundle: Bundle_ = BUNDLE,
    dataset: Annotated[Path, typer.Option(help="dataset folder the bundle was trained on")] = DATASET,
    candidates: Annotated[int | None, setting(BatchSettings, "candidates")] = None,
    baselines: Annotated[
        bool, typer.Option(help="also fit and measure popularity (of all time and recent), item-kNN, ALS and BPR")
    ] = True,
    plot: Annotated[Path | None, typer.Option(help="write a bar chart to this .png or .svg")] = None,
    as_json: Json = False,
) -> None:
    """Measure a bundle on the test part over the full catalogue, beside simple baselines."""
    if plot:
        from ..evaluation.plots import check_path

        check_path(plot)  # now, not in an hour
    report = _evaluate(bundle, dataset, load_settings(batch={"candidates": candidates}).batch.candidates, baselines)
    if plot:
        from ..evaluation.plots import metric_bars
        from ..offline.recommender import OURS

        metric_bars(report.retrieval, report.users["all"], highlight=OURS, path=plot)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        show_report(report)


@app.command()
def batch(
    bundle: Bundle_ = BUNDLE,
    topk: Annotated[int | None, setting(BatchSettings, "topk")] = None,
    candidates: Annotated[int | None, setting(BatchSettings, "candidates")] = None,
    temperature: Annotated[float | None, setting(BatchSettings, "temperature")] = None,
    seed: Annotated[int | None, setting(BatchSettings, "seed")] = None,
    block: Annotated[int | None, setting(BatchSettings, "block")] = None,
    workers: Annotated[int | None, setting(BatchSettings, "workers")] = None,
    grace: Annotated[int | None, setting(BatchSettings, "grace")] = None,
    host: Annotated[str | None, setting(RedisSettings, "host")] = None,
    port: Annotated[int | None, setting(RedisSettings, "port")] = None,
    as_json: Json = False,
) -> None:
    """Score every user and publish the recommendations in Redis. Run again after a cut, it goes on where it stopped."""
    from ..bundle.bundle import Bundle
    from ..offline.batch import batch as run
    from ..store.connection import connect

    flags = {name: value for name, value in locals().items() if name in BatchSettings.model_fields}
    settings = load_settings(batch=flags, redis={"host": host, "port": port})
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
def get(
    users: Annotated[list[str], typer.Argument(help=f"raw user ids{BEHIND}", metavar="USER...")],
    bundle: Annotated[Path | None, typer.Option(help="show the items' labels from this bundle")] = None,
    host: Annotated[str | None, setting(RedisSettings, "host")] = None,
    port: Annotated[int | None, setting(RedisSettings, "port")] = None,
    as_json: Json = False,
) -> None:
    """Read recommendations from Redis. A user whom the batch did not know gets the popular items, marked as such."""
    from ..store.connection import connect
    from ..store.recommendations import get_many

    with connect(load_settings(redis={"host": host, "port": port}).redis) as client:
        found = get_many(client, users)
    if as_json:
        records = [vars(each) for each in found]
        print(json.dumps(records[0] if len(records) == 1 else records, default=str))
        return
    labels = titles(bundle) if bundle else {}
    for each in found:
        out.print(recommendations_table(each, labels))


def show_report(report: Report) -> None:
    """Print an evaluation: both tables, the effect of the ranker on the lists, and its calibration."""
    from ..offline.recommender import OURS

    out.print(report.table(), report.ranker_table())
    out.print(f"{report.compare(*OURS)}\n{report.ranker['calibration']}", highlight=False)


def recommendations_table(found: Recommendations, labels: dict[str, str], most: int | None = None) -> Table:
    """What one user is recommended, the first ``most`` items."""
    title = f"user {found.user}: {found.source} items, generation {found.generation}"
    return ranked(title, found.items[:most], found.scores[:most], labels)


def _evaluate(bundle: Path, dataset: Path, candidates: int, with_baselines: bool) -> Any:
    from ..bundle.bundle import Bundle
    from ..dataset.interactions import Dataset
    from ..evaluation.baselines import fit_baselines
    from ..evaluation.evaluate import check_test
    from ..evaluation.evaluate import evaluate as measure
    from ..offline.recommender import Everyone

    opened, rows = Bundle(bundle), Dataset(dataset)
    check_test(rows)
    towers = Everyone(opened, rows, candidates, ranked=False)
    both = Everyone(opened, rows, candidates)
    baselines = fit_baselines(rows) if with_baselines else []
    return measure(rows, [*baselines, towers, both], predict=both.predict)
