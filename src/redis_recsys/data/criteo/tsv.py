"""Reader of the public Criteo click logs (Kaggle 2014, Terabyte): their TSV files become a dataset.

A line is an impression: the label, 13 whole numbers and 26 hashed values of 8 hex digits, separated by tabs; all but
the label may be empty. There is no header, and later lines are newer. The terms of use forbid redistribution.

There are three passes, each in bounded blocks: lines are checked and become typed parquet; the values of each slot are
counted over the training part, which decides their ids; values become ids. Memory holds a block of lines and the values
of one slot while counting, and all kept values while encoding.

Source: https://ailab.criteo.com/download-criteo-1tb-click-logs-dataset/
"""

from __future__ import annotations

import gzip
import io
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import polars as pl

from ...errors import DataError
from ...utils.files import keep_inputs, written_aside
from ...utils.output_kinds import CRITEO
from ...utils.progress import progress
from .dataset import DENSE, LABEL, SLOTS
from .part_writer import PartWriter

COLUMNS = (LABEL, *DENSE, *SLOTS)
BLOCK = 1 << 26  # bytes
TEXTS = dict.fromkeys(COLUMNS, pl.String)


def read(
    source: Path,
    target: Path,
    min_count: int = 1,
    max_size: int | None = None,
    valid: float = 0.1,
    test: float = 0.1,
) -> None:
    """Write the dataset of Criteo's TSV files, whole or not at all.

    Args:
        source: a file, plain or .gz, or a folder of such files whose names sort by time.
        target: dataset folder to write.
        min_count: values that occur fewer times in the training part become id 0.
        max_size: largest number of ids of a slot, 0 included; the most frequent values keep theirs. None: no limit.
        valid, test: shares of the rows, the newest ones.

    Raises:
        DataError: no file, a line is malformed (file, line and column are named), or ``target`` holds the source.
    """
    keep_inputs(target, source)
    files = _files(Path(source))
    with written_aside(target, CRITEO) as aside:
        raw, vocab = aside / "raw", aside / "vocab"
        raw.mkdir()
        vocab.mkdir()
        number = rows = 0
        for file in files:
            for block in _blocks(file):
                block.write_parquet(raw / f"{number:06}.parquet")
                number, rows = number + 1, rows + len(block)
        writer = PartWriter(aside, rows, valid, test, oracle=False)
        sizes = []
        with progress("counting values", len(SLOTS)) as advance:
            for slot in SLOTS:
                kept = _vocabulary(pl.scan_parquet(raw / "*.parquet").head(writer.rows["train"]), slot, min_count)
                kept = kept if max_size is None else kept.head(max_size - 1)
                kept.write_parquet(vocab / f"{slot}.parquet")
                sizes.append(len(kept) + 1)
                advance(1)
        _encode(raw, vocab, writer, rows)
        for slot in SLOTS:
            table = pl.read_parquet(vocab / f"{slot}.parquet")
            texts = pl.Series("raw", [f"{value:08x}" for value in table["raw"]], pl.String)
            table.with_columns(texts).write_parquet(vocab / f"{slot}.parquet")
        writer.finish(sizes)
        shutil.rmtree(raw)


def _files(source: Path) -> list[Path]:
    if not source.exists():
        raise DataError(f"no data at {source}: give Criteo's file, or a folder with its files")
    files = [source] if source.is_file() else sorted(path for path in source.glob("[!._]*") if path.is_file())
    if not files:
        raise DataError(f"{source} holds no file: unpack the Criteo archive there")
    return files


def _blocks(path: Path) -> Iterator[pl.DataFrame]:
    """Checked rows in blocks: label int8, dense features float32, slots uint32, null where empty."""
    start = 1
    with path.open("rb") as stored, progress(f"reading {path.name}", path.stat().st_size, in_bytes=True) as advance:
        file = cast(IO[bytes], gzip.GzipFile(fileobj=stored) if path.suffix == ".gz" else stored)
        position = 0
        try:
            while block := file.read(BLOCK) + file.readline():
                yield _typed(block, path, start)
                start += block.count(b"\n")
                advance(stored.tell() - position)
                position = stored.tell()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path} cannot be unpacked: {error}; download it again") from error
    if start == 1 and not position:
        raise DataError(f"{path} is empty: download it again")


def _typed(block: bytes, path: Path, start: int) -> pl.DataFrame:
    """A block of whole lines as a table; ``start`` is the number of its first line."""
    block = block.replace(b"\r\n", b"\n")
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    try:
        texts = pl.read_csv(io.BytesIO(block), separator="\t", has_header=False, schema=TEXTS, quote_char=None)
    except pl.exceptions.PolarsError:
        raise _malformed(block, path, start) from None
    if len(texts) != lines or block.count(b"\t") != lines * (len(COLUMNS) - 1):
        raise _malformed(block, path, start)
    label = pl.col(LABEL).cast(pl.Int8, strict=False)
    dense = [pl.col(name).cast(pl.Int64, strict=False) for name in DENSE]
    slots = [pl.col(name).str.to_integer(base=16, dtype=pl.UInt32, strict=False) for name in SLOTS]
    rows = texts.select(label, *dense, *slots)
    hexadecimal = [pl.col(name).str.contains("^[0-9a-f]{8}$").all() for name in SLOTS]
    if (
        not rows[LABEL].is_in([0, 1]).all()
        or rows[LABEL].null_count()
        or any(rows[name].null_count() != texts[name].null_count() for name in DENSE)
        or not all(texts.select(hexadecimal).row(0))
    ):
        raise _malformed(block, path, start)
    return rows.with_columns(
        *((pl.col(name).clip(lower_bound=0) + 1).log().fill_null(0.0).cast(pl.Float32) for name in DENSE)
    )


def _malformed(block: bytes, path: Path, start: int) -> DataError:
    """Error about the first malformed line of a block."""
    for number, line in enumerate(block.decode("utf-8", "replace").removesuffix("\n").split("\n"), start):
        values = line.split("\t")
        where = f"{path}, line {number}"
        if len(values) != len(COLUMNS):
            return DataError(
                f"{where}: {len(values)} columns, Criteo's have {len(COLUMNS)} "
                "(label, 13 numbers, 26 values, between tabs): remove the line, or download the file again"
            )
        for name, value in zip(COLUMNS, values, strict=True):
            if name == LABEL:
                right, form = value in ("0", "1"), "0 or 1"
            elif name in DENSE:
                right, form = value.removeprefix("-").isdecimal() or not value, "a whole number or empty"
            else:
                right, form = (
                    not value or (len(value) == 8 and set(value) <= set("0123456789abcdef")),
                    ("8 hex digits or empty"),
                )
            if not right:
                return DataError(f"{where}: column {name} holds {value!r}: it must be {form}")
    return DataError(f"{path}, from line {start} on: cannot be read as a table: download the file again")


def _vocabulary(rows: pl.LazyFrame, slot: str, min_count: int) -> pl.DataFrame:
    """``raw`` uint32 and ``id`` int64 of the values of a slot that occur often enough, most frequent first."""
    counts = rows.select(raw=pl.col(slot)).drop_nulls().group_by("raw").len()
    kept = counts.filter(pl.col("len") >= min_count).collect(engine="streaming")
    return kept.sort("len", "raw", descending=[True, False]).select(
        "raw", id=pl.int_range(1, pl.len() + 1, dtype=pl.Int64)
    )


def _encode(raw: Path, vocab: Path, writer: PartWriter, rows: int) -> None:
    tables = {slot: pl.read_parquet(vocab / f"{slot}.parquet") for slot in SLOTS}
    with progress("encoding rows", rows) as advance:
        for file in sorted(raw.iterdir()):
            block = pl.read_parquet(file)
            ids = [
                pl.col(slot).replace_strict(table["raw"], table["id"], default=0, return_dtype=pl.Int64)
                for slot, table in tables.items()
            ]
            writer.write(block.with_columns(ids).to_arrow())
            advance(len(block))
