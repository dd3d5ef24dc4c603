"""MovieLens of any size as raw tables: timed ratings, and features of users and movies.

The zip comes from GroupLens. Where that host cannot be reached, the 100k release is read from the copy that the
Python package ``recbole`` carries as an example, so that a machine with nothing but a package index can train on
real interactions. Both give the same tables. A cache folder keeps downloads, which are verified on each use; the
licence forbids redistributing the data, so this repository holds none of it.

Source: F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import polars as pl

from ..dataset.schema import Column, Schema
from ..errors import ConfigError, DataError
from ..utils.files import claimed, disk_error, sha256, written_aside
from ..utils.output_kinds import MOVIELENS, RAW
from ..utils.progress import console
from .download import download
from .movielens_releases import RATING, RELEASES, Tables, read_recbole, read_zip

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
RECBOLE = "recbole==1.2.1"
RECBOLE_FILES = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}
NO_GENRE = ("unknown", "(no genres listed)")


def fetch(
    folder: Path,
    name: str = "100k",
    cache: Path = Path("data/downloads"),
    positive_from: float | None = None,
    host: str = GROUPLENS,
) -> None:
    """Write the raw tables of a MovieLens release to ``folder``, whole or not at all.

    Args:
        folder: raw data folder to write.
        name: one of ``RELEASES``.
        cache: folder for downloads.
        positive_from: lowest rating that counts as a click; None: every rating is a positive interaction (implicit
            feedback).
        host: address below which ``ml-<name>.zip`` lies.

    Raises:
        ConfigError: there is no release of that name.
        DataError: the data cannot be downloaded, or is not what was published.
    """
    if name not in RELEASES:
        raise ConfigError(f"no MovieLens release {name!r}: choose one of {', '.join(RELEASES)}")
    cache = Path(cache)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, cache) from error
    with tempfile.TemporaryDirectory(dir=cache, prefix=".movielens-") as scratch, written_aside(folder, RAW) as raw:
        try:
            _write(raw, name, _obtain(name, cache, Path(scratch), host), positive_from)
        except pl.exceptions.PolarsError as error:
            if "No space left" in str(error):
                raise
            raise DataError(f"MovieLens {name} is not laid out as expected: {str(error).splitlines()[0]}") from error


def _obtain(name: str, cache: Path, scratch: Path, host: str) -> Tables:
    release = RELEASES[name]
    archive = cache / f"ml-{name}.zip"
    packaged = cache / "ml-100k-recbole"
    if name == "100k" and not archive.exists() and _intact(packaged):
        return read_recbole(packaged)
    try:
        download(f"{host}/ml-{name}.zip", archive, release.md5)
    except DataError as error:
        if name != "100k":
            raise
        with claimed(packaged, MOVIELENS, wait=True):  # another run may be fetching the same
            if not _intact(packaged):
                message = f"{error}; until then, the copy inside the Python package {RECBOLE} is used"
                console.print(message, markup=False, soft_wrap=True)
                _unpack_recbole(packaged)
        return read_recbole(packaged)
    return read_zip(archive, release, scratch)


def _unpack_recbole(folder: Path) -> None:
    """Let pip download the package, and keep its three files of MovieLens 100k."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".recbole-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
        command += ["--disable-pip-version-check", "--timeout", "10", "--retries", "2", "--dest", scratch, RECBOLE]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired as error:
            raise DataError(f"downloading the Python package {RECBOLE} took over 300 s: try again") from error
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise DataError(
                f"cannot download MovieLens 100k, neither from GroupLens nor inside the Python package {RECBOLE} "
                f"({reason}): check the network"
            ) from error
        with written_aside(folder, MOVIELENS) as aside, zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            for name in RECBOLE_FILES:
                (aside / name).write_bytes(wheel.read(f"recbole/dataset_example/ml-100k/{name}"))
            if not _intact(aside):
                raise DataError(f"MovieLens 100k inside the Python package {RECBOLE} was altered: it is not used")


def _intact(folder: Path) -> bool:
    return all((folder / name).is_file() and sha256(folder / name) == hash_ for name, hash_ in RECBOLE_FILES.items())


def _write(raw: Path, name: str, tables: Tables, positive_from: float | None) -> None:
    (raw / "interactions").mkdir()
    columns = RATING if positive_from is not None else ("user_id", "item_id", "time")
    tables.ratings.select(columns).sink_parquet(raw / "interactions" / "part-0.parquet")
    year = pl.col("title").str.extract(r"^.*\((\d{4})[)–-]").cast(pl.Int64)
    tables.items.select(
        pl.col("item_id").cast(pl.Int64),
        "title",
        release_year=year,
        genres=pl.col("genres").list.filter(~pl.element().is_in(NO_GENRE)),
    ).write_parquet(raw / "items.parquet")
    if tables.users is not None:
        tables.users.select(
            pl.col("user_id").cast(pl.Int64),
            pl.col("age").cast(pl.Float32),
            "gender",
            "occupation",
            zip_region=pl.col("zip_code").str.slice(0, 1).str.to_uppercase(),
        ).write_parquet(raw / "users.parquet")
    _schema(name, tables.users is not None, positive_from).save(raw / "schema.yaml")


def _schema(name: str, people: bool, positive_from: float | None) -> Schema:
    user = [Column(name="user_id", side="user", kind="categorical", role="id")]
    if people:
        user.append(Column(name="age", side="user", kind="numeric"))
        user += [Column(name=n, side="user", kind="categorical") for n in ("gender", "occupation", "zip_region")]
    user.append(Column(name="recent_items", side="user", kind="multi-categorical", role="history", max_length=20))
    item = [
        Column(name="item_id", side="item", kind="categorical", role="id"),
        Column(name="title", side="item", kind="text", role="label"),
        Column(name="release_year", side="item", kind="categorical"),
        Column(name="genres", side="item", kind="multi-categorical", max_length=6),
    ]
    rows = [Column(name="time", side="time", kind="numeric", unit="s")]
    if positive_from is not None:
        rows.append(Column(name="rating", side="target", kind="numeric", positive_from=positive_from))
    return Schema(name=f"movielens-{name}", columns=[*user, *item, *rows])
