"""Vocabularies: the raw values of a categorical column, one parquet file each in ``vocab/`` of a dataset or bundle.

A file has one column ``value``; row i holds the value of id i + 1, and id 0 is "unknown". It is named after its
column, with all characters percent-encoded that a file system may refuse, take for a folder or confuse: so no name
leads out of the folder, and no two names share a file.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from .schema import Column, Schema

DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # not files on Windows, whatever follows
LONGEST = 70  # characters; file systems take 255 bytes, and an encoded letter takes three


def vocabulary_path(folder: Path, schema: Schema, column: Column) -> Path:
    """File that holds the vocabulary of a column.

    Args:
        folder: a dataset or bundle.
        schema: its schema.
        column: a categorical column; the history has the item id's vocabulary.
    """
    column = schema.vocabulary_column(column)
    name = _encoded(column.name)
    others = (_encoded(c.name) for c in schema.columns if c.name != column.name)
    if name.lower() in (other.lower() for other in others):  # one file where case does not count
        name = re.sub("[A-Z]", lambda letter: f"%{ord(letter[0]):02X}", name)
    return folder / "vocab" / f"{name}.parquet"


def _encoded(name: str) -> str:
    """The name, percent-encoded where needed and cut where it is long."""
    encoded = quote(name, safe="")
    if encoded.startswith(".") or DEVICE.match(encoded):
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    if len(encoded) > LONGEST:
        encoded = f"{encoded[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return encoded


def write_vocabulary(folder: Path, schema: Schema, column: Column, values: pa.Array) -> None:
    """Write the values of ids 1, 2, ... of a column."""
    path = vocabulary_path(folder, schema, column)
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"value": values}), path)


def read_vocabulary(folder: Path, schema: Schema, column: Column) -> pa.ChunkedArray:
    """Values of a column's vocabulary, int64 or text; position i holds the value of id i + 1.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = vocabulary_path(folder, schema, column)
    older = path.parent / f"{schema.vocabulary_column(column).name}.parquet"  # earlier releases did not encode names
    if not path.exists() and older.parent == path.parent and older.exists():
        path = older
    try:
        with pq.ParquetFile(path) as file:
            return file.read(["value"])["value"]
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise DataError(f"{path} is not a readable vocabulary: {' '.join(str(error).split())}") from error
