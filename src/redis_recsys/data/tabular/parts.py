"""People's files: the search below a path, and the opening of each.

Separator and encoding come from ``source`` in the schema. Without it they are detected where that is certain: another
separator if only that one gives the needed columns in the header, UTF-16 by its first two bytes.
"""

from __future__ import annotations

import errno
import gzip
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

import polars as pl

from ...dataset.schema import Column, TextOptions
from ...errors import DataError, SchemaError, one_line

FORMATS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
BLANKS = " \t\r\n\x0b\x0c\xa0\u2007\u202f\u3000\ufeff\u200b"  # byte order mark and zero-width space included
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # only writing a copy ends with one of these
SEPARATORS = (",", ";", "\t", "|")
ROW = "\0\0row"
NOT_UTF8 = "{path} is not UTF-8: say how it is written in the schema, such as source: {{encoding: cp1252}}"


@dataclass(frozen=True)
class Part:
    """One opened file of a table.

    Attributes:
        path: path of the file, as its owner knows it.
        rows: lazy rows with the columns under the names of the file.
        names: names without blanks around them -> names of the file.
        types: names without blanks -> type of the column.
        options: format of its texts.
        is_text: whether it is CSV, where every column is text.
    """

    path: Path
    rows: pl.LazyFrame
    names: dict[str, str]
    types: dict[str, pl.DataType]
    options: TextOptions
    is_text: bool

    def name_of(self, column: Column) -> str | None:
        """The file's name, without blanks, for a column of the schema; None where it lacks the column."""
        return next((name for name in column.names_in_files if name in self.types), None)

    def require(self, column: Column, also: Sequence[str] = ()) -> str:
        """The name as :meth:`name_of` gives it, with an error where the file lacks the column or has it twice.

        Args:
            column: column of the schema.
            also: further names for a message to suggest.

        Raises:
            SchemaError: there is no such column, or more than one.
        """
        name = self.name_of(column)
        if name is None:
            raise SchemaError(self._missing(column, [*self.types, *also]))
        same = [other for other in self.rows.collect_schema() if other.strip(BLANKS) == name]
        if len(same) > 1 or (self.is_text and f"{name}_duplicated_0" in self.types):
            raise SchemaError(f"{self.path} has more than one column {name!r}: rename or remove the others")
        return name

    def without_blank_lines(self) -> Part:
        """The part without the rows in which every field is empty."""
        return replace(self, rows=self.rows.filter(pl.any_horizontal(pl.all().is_not_null())))

    def _missing(self, column: Column, names: list[str]) -> str:
        if any("\ufffd" in name for name in self.types):
            return NOT_UTF8.format(path=self.path)
        expected = " or ".join(repr(name) for name in column.names_in_files)
        text = f"{self.path} has no column {expected}, which the schema names: "
        close = get_close_matches(column.names_in_files[0], names, n=1)
        if close:
            return f"{text}did you mean {close[0]!r}?"
        if len(self.types) == 1 and self.is_text:
            return f"{text}its header is one field, {names[0]!r}: give the separator in the schema, source: separator"
        return f"{text}it has {', '.join(names)}"


def files_of(path: Path) -> list[Path]:
    """Data files of a path: the file itself, or those below a folder, sorted, without hidden ones.

    Raises:
        DataError: there is none, or a file of another format was given.
    """
    if not path.exists():
        raise DataError(f"no data at {path}: give a file or a folder of {', '.join(FORMATS)} files")
    if path.is_dir():
        below = (p for p in path.rglob("*") if not any(q.startswith((".", "_")) for q in p.relative_to(path).parts))
        files = sorted(p for p in below if p.is_file() and p.name.lower().endswith(FORMATS))
    else:
        files = [path] if path.name.lower().endswith(FORMATS) else []
    if not files:
        raise DataError(f"{path} is or holds no {', '.join(FORMATS)} file")
    return files


def open_part(path: Path, options: TextOptions, needed: Sequence[Column], scratch: Path) -> Part:
    """Open a file.

    Args:
        path: path of the file.
        options: text format of its table.
        needed: columns that the file certainly has, by which its separator is recognised.
        scratch: folder for a copy of a file that is not UTF-8.

    Raises:
        DataError: the file cannot be read.
    """
    with reading(path):
        if path.suffix.lower() == ".parquet":
            rows = pl.scan_parquet(path, glob=False)
            return _part(path, rows, options, is_text=False)
        readable = _in_utf8(path, options, scratch)
        usual = "\t" if ".tsv" in path.name.lower() else ","
        first = _part(path, _scan_text(readable, options.separator or usual, options), options, is_text=True)
        if options.separator is not None or _has(first, needed):
            return first
        others = (_scan_text(readable, separator, options) for separator in SEPARATORS if separator != usual)
        return next((p for rows in others if _has(p := _part(path, rows, options, is_text=True), needed)), first)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise errors of reading a file as this project's."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno in WRITING:
            raise
        reason = one_line(error)
        if "utf-8" in reason.lower() or "utf8" in reason.lower():
            if path.suffix.lower() == ".parquet":
                raise DataError(
                    f"{path} holds bytes that are no UTF-8 text in a column of texts: write texts"
                ) from error
            raise DataError(NOT_UTF8.format(path=path)) from error
        raise DataError(f"{path} cannot be read (truncated or not {' or '.join(FORMATS)}?): {reason}") from error


def _part(path: Path, rows: pl.LazyFrame, options: TextOptions, is_text: bool) -> Part:
    types = dict(rows.collect_schema())
    names = {name.strip(BLANKS): name for name in types}
    return Part(path, rows, names, {short: types[name] for short, name in names.items()}, options, is_text)


def _has(part: Part, columns: Sequence[Column]) -> bool:
    return all(part.name_of(column) is not None for column in columns)


def _scan_text(path: Path, separator: str, options: TextOptions) -> pl.LazyFrame:
    return pl.scan_csv(
        path,
        separator=separator,
        quote_char=options.quote or None,
        has_header=options.names is None,
        new_columns=options.names,
        infer_schema=False,
        glob=False,
    )


def _in_utf8(path: Path, options: TextOptions, scratch: Path) -> Path:
    """The file, or a copy of it in UTF-8 if it has another encoding."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with _open(path, packed) as file:
        wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    encoding = "utf-16" if wide else options.encoding
    if encoding == "utf-8":
        return path
    copy = scratch / f"{len(list(scratch.iterdir()))}.csv"
    with _open(path, packed, encoding) as source, copy.open("w", encoding="utf-8", newline="") as target:
        try:
            shutil.copyfileobj(source, target, 1 << 20)
        except UnicodeError as error:
            raise DataError(f"{path} is not {encoding}: {error}") from error
    return copy


def _open(path: Path, packed: bool, encoding: str | None = None) -> IO[Any]:
    opened: Any = gzip.open if packed else open
    return opened(path, "rb") if encoding is None else opened(path, "rt", encoding=encoding, newline="")
