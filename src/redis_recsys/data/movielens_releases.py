"""Published layouts of MovieLens, all read into the same three tables.

100k has genres as flags and Latin-1 text, 1m and 10m separate fields with ``::``, later releases are CSV. The
Python package ``recbole`` carries 100k in a layout of its own.
"""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import polars as pl

from ..errors import DataError
from ..utils.files import disk_error

# fmt: off
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime",
    "Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical",
    "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on
RATING = ("user_id", "item_id", "rating", "time")


@dataclass(frozen=True)
class Release:
    """One published size: the folder inside its zip, the published MD5 (None where GroupLens keeps updating the
    file) and the layout of its files."""

    folder: str
    md5: str | None
    layout: Literal["flags", "dat", "csv"]


RELEASES = {
    "100k": Release("ml-100k", "0e33842e24a9c977be4e0107933c0723", "flags"),
    "1m": Release("ml-1m", "c4d9eecfca2ab87c1945afe126590906", "dat"),
    "10m": Release("ml-10M100K", "ce571fd55effeba0271552578f2648bd", "dat"),
    "20m": Release("ml-20m", "cd245b17a1ae2cc31bb14903e1204af3", "csv"),
    "25m": Release("ml-25m", "6b51fb2759a8657d3bfcbfc42b592ada", "csv"),
    "32m": Release("ml-32m", "d472be332d4daa821edc399621853b57", "csv"),
    "latest-small": Release("ml-latest-small", None, "csv"),
}


@dataclass(frozen=True)
class Tables:
    """Ratings (``user_id, item_id, rating, time``), movies (``item_id, title, genres``) and, in the two oldest
    releases, people (``user_id, age, gender, occupation, zip_code``)."""

    ratings: pl.LazyFrame
    items: pl.DataFrame
    users: pl.DataFrame | None


def read_zip(archive: Path, release: Release, scratch: Path) -> Tables:
    """The tables in a zip of GroupLens; its files are unpacked into ``scratch``, where they must stay while in use.

    Raises:
        DataError: the zip is damaged or lacks a file, or the disk is full.
    """

    def extracted(name: str) -> Path:
        return _extract(archive, release, name, scratch)

    if release.layout == "csv":
        ratings = pl.scan_csv(
            extracted("ratings.csv"), schema=_rating_types("userId", "movieId", "rating", "timestamp")
        ).rename({"userId": "user_id", "movieId": "item_id", "timestamp": "time"})
        movies = pl.read_csv(extracted("movies.csv"), infer_schema=False)
        return Tables(
            ratings, movies.select(item_id="movieId", title="title", genres=pl.col("genres").str.split("|")), None
        )
    if release.layout == "flags":
        items = _text(
            extracted("u.item"), ["item_id", "title", "released", "video_released", "address", *GENRES_100K], "|"
        ).with_columns(
            genres=pl.concat_list(pl.when(pl.col(g) == "1").then(pl.lit(g)) for g in GENRES_100K).list.drop_nulls()
        )
        users = _text(extracted("u.user"), ["user_id", "age", "gender", "occupation", "zip_code"], "|")
        return Tables(_ratings(extracted("u.data")), items, users)
    items = _text(extracted("movies.dat"), ["item_id", "title", "genres"]).with_columns(pl.col("genres").str.split("|"))
    people = None
    if release.folder == "ml-1m":
        people = _text(extracted("users.dat"), ["user_id", "gender", "age", "occupation", "zip_code"])
    return Tables(_ratings(extracted("ratings.dat")), items, people)


def _ratings(path: Path, skip_rows: int = 0) -> pl.LazyFrame:
    return pl.scan_csv(path, separator="\t", has_header=False, skip_rows=skip_rows, schema=_rating_types(*RATING))


def _rating_types(*names: str) -> dict[str, pl.DataType]:
    return dict(zip(names, (pl.Int64(), pl.Int64(), pl.Float32(), pl.Int64()), strict=True))


def _text(path: Path, names: list[str], separator: str = "\t") -> pl.DataFrame:
    return pl.read_csv(
        path, separator=separator, has_header=False, quote_char=None, schema=dict.fromkeys(names, pl.String)
    )


def _extract(archive: Path, release: Release, name: str, scratch: Path) -> Path:
    """One file of the zip as UTF-8 with single-byte separators."""
    try:
        with (
            zipfile.ZipFile(archive) as content,
            content.open(f"{release.folder}/{name}") as source,
            (scratch / name).open("wb") as target,
        ):
            _transcode(source, target, release, name)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise DataError(f"{archive} is damaged or not MovieLens ({error}): delete it and run again") from error
    except OSError as error:
        raise disk_error(error, scratch) from error
    return scratch / name


def _transcode(source: IO[bytes], target: IO[bytes], release: Release, name: str) -> None:
    if name in ("ratings.csv", "movies.csv", "u.data"):
        shutil.copyfileobj(source, target, 1 << 20)
        return
    while lines := b"".join(source.readlines(1 << 24)):
        if release.folder in ("ml-100k", "ml-1m"):
            lines = lines.decode("latin-1").encode()
        target.write(lines.replace(b"::", b"\t") if release.layout == "dat" else lines)


def read_recbole(folder: Path) -> Tables:
    """The tables in the package's copy, which moves the year out of the titles and spells a missing one "unkonwn"."""
    items = pl.read_csv(folder / "ml-100k.item", separator="\t", quote_char=None, infer_schema=False)
    items.columns = ["item_id", "title", "year", "genres"]
    users = pl.read_csv(folder / "ml-100k.user", separator="\t", quote_char=None, infer_schema=False)
    users.columns = ["user_id", "age", "gender", "occupation", "zip_code"]
    has_year = pl.col("year") != "unkonwn"
    return Tables(
        _ratings(folder / "ml-100k.inter", skip_rows=1),
        items.with_columns(
            title=pl.when(has_year).then(pl.format("{} ({})", "title", "year")).otherwise(pl.lit("unknown")),
            genres=pl.col("genres").str.split(" "),
        ),
        users,
    )
