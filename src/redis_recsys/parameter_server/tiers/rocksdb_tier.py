"""The third tier: whole tables on disk, in RocksDB, one column family per table, as HPS keeps them.

A row's key is its key's 8 little-endian bytes, its value the float32 row, so that a folder that HPS filled can be read.
The default column family holds what this project notes beside the tables: what was loaded, and how far the streams of
updates were applied. Such a note is written in one batch with the rows it speaks of.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    IngestExternalFileOptions,
    Options,
    Rdict,
    SstFileWriter,
    WriteBatch,
)

from ...errors import StoreError, one_line
from ...utils.machine import cores
from ..layout import as_bytes, check_row, newest
from ..ps_json import PersistentDatabase

CACHE_BYTES = 256 << 20
BLOOM_BITS = 10  # per key: one of a hundred absent keys costs a read
DEFAULT = "default"
FEW_ROWS = 8  # that are looked at before a table is served
OWN_FILES = ("rocksdict-config.json", "LOCK", "LOG")
CORRUPT = ("Corruption", "checksum")

log = logging.getLogger(__name__)


class PersistentTier:
    """Tables in one RocksDB folder. One process writes it; others may open it read-only."""

    def __init__(self, config: PersistentDatabase, names: Iterable[str]) -> None:
        """
        Args:
            config: where the folder is.
            names: of the tables; those that are not there yet are made.

        Raises:
            StoreError: the folder cannot be opened: another process has it, it is damaged, or not to be written.
        """
        self.path = Path(config.path)
        self.read_only = config.read_only
        self._damaged = False
        self._view: tempfile.TemporaryDirectory[str] | None = None
        with _store_errors(self.path):
            there = set(Rdict.list_cf(str(self.path), _options())) if (self.path / "CURRENT").exists() else set()
            if config.read_only:
                families = {name: _options() for name in there}
                self._view = _linked(self.path)
                self._db = Rdict(self._view.name, _options(), families, AccessType.read_only())
            else:
                families = {name: _options() for name in there | set(names) | {DEFAULT}}
                self.path.mkdir(parents=True, exist_ok=True)
                self._db = Rdict(str(self.path), _options(), families)
        self._tables = {name: self._db.get_column_family(name) for name in families if name != DEFAULT}

    def close(self) -> None:
        """Write out what is in memory and let go of the folder."""
        tables, self._tables = self._tables, {}
        for table in tables.values():
            table.close()
        self._db.close()
        if self._view is not None:
            self._view.cleanup()

    def fetch(self, name: str, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Read rows.

        Args:
            name: of the table.
            keys: int64[n].
            rows: float32[n, dim], where they go; rows that are not found keep what they are.

        Returns:
            bool[n], which were found. A row in a damaged part of a file, or of another size, is not.
        """
        table, width = self._tables.get(name), 4 * rows.shape[1]
        if table is None:
            return np.zeros(len(keys), bool)
        values = self._values(table, as_bytes(keys))
        found = np.array([len(value) == width for value in values], np.bool_)
        present = b"".join(value for value, there in zip(values, found, strict=True) if there)
        rows[found] = np.frombuffer(present, "<f4").reshape(-1, rows.shape[1])
        return found

    def check(self, name: str, dim: int) -> None:
        """Look at the first few rows of a table: whoever filled it may have had other settings.

        Raises:
            DataError: keys or rows have another size than this table's.
            StoreError: the folder is damaged.
        """
        with _store_errors(self.path):
            few: list[Any] = list(islice(self._tables[name].items(), FEW_ROWS)) if name in self._tables else []
        for field, value in few:
            check_row(name, dim, field, value, f"RocksDB in {self.path}")

    def _values(self, table: Rdict, fields: list[Any]) -> list[bytes]:
        """The values of the fields; an empty one of a field that is not there or lies in a damaged part."""
        try:
            return [value or b"" for value in table.get(fields) or ()]
        except Exception as error:
            if not self._damaged:
                log.error("%s", _explained(error, self.path))
                self._damaged = True
            return [_one(table, field) for field in fields]

    def insert(self, name: str, keys: np.ndarray, rows: np.ndarray, notes: Mapping[str, bytes] | None = None) -> None:
        """Write rows and notes, all or none.

        Raises:
            StoreError: the folder is read-only, full or damaged.
        """
        with _store_errors(self.path):
            batch = WriteBatch(raw_mode=True)
            family = self._db.get_column_family_handle(name)
            for field, value in zip(as_bytes(keys), as_bytes(rows), strict=True):
                batch.put(field, value, family)
            for note, value in (notes or {}).items():
                batch.put(note.encode(), value)
            self._db.write(batch)

    def load(self, name: str, blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[int]:
        """Put whole tables in, much faster than row by row; yields the number of rows after each block.

        In the end the blocks' files are merged, which takes about as long as the rest: a lookup in many files that
        overlap was measured to take 40 times as long.

        Args:
            name: of the table.
            blocks: (keys int64[n], rows float32[n, dim]); a later block wins.

        Raises:
            StoreError: the folder is read-only, full or damaged.
        """
        scratch, table = self.path / ".recsys-loading", self._tables[name]
        try:
            with _store_errors(self.path):
                table.set_options({"disable_auto_compactions": "true"})
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(parents=True)
                for number, (keys, rows) in enumerate(blocks):
                    keys, places = newest(keys)
                    order = np.argsort(keys.byteswap().view(np.uint64), kind="stable")
                    writer, file = SstFileWriter(_options()), str(scratch / f"{number}.sst")
                    writer.open(file)
                    for field, value in zip(as_bytes(keys[order]), as_bytes(rows[places[order]]), strict=True):
                        writer[field] = value
                    writer.finish()
                    options = IngestExternalFileOptions()
                    options.set_move_files(True)
                    table.ingest_external_file([file], options)
                    yield len(keys)
                table.compact_range(None, None)
        finally:
            table.set_options({"disable_auto_compactions": "false"})
            shutil.rmtree(scratch, ignore_errors=True)

    def clear(self, name: str) -> None:
        """Remove all rows of a table.

        Raises:
            StoreError: the folder is read-only or damaged.
        """
        with _store_errors(self.path):
            self._tables[name].delete_range(b"", b"\xff" * 9)

    def set_notes(self, notes: Mapping[str, bytes]) -> None:
        """Write notes alone, all or none.

        Raises:
            StoreError: the folder is read-only, full or damaged.
        """
        with _store_errors(self.path):
            batch = WriteBatch(raw_mode=True)
            for note, value in notes.items():
                batch.put(note.encode(), value)
            self._db.write(batch)

    def note(self, name: str) -> bytes | None:
        """What was noted under a name."""
        value = self._db.get(name.encode())
        return value if value is None or isinstance(value, bytes) else None

    def count(self, name: str) -> int:
        """About how many rows a table has, as RocksDB estimates it."""
        return self._tables[name].property_int_value("rocksdb.estimate-num-keys") or 0


def _linked(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder of links to the files of ``folder``, since rocksdict writes into what it opens, even to read it only."""
    view = tempfile.TemporaryDirectory(prefix="recsys-rocksdb-")
    for file in folder.iterdir():
        if file.name not in OWN_FILES:
            (Path(view.name) / file.name).symlink_to(file.absolute())
    return view


def _one(table: Rdict, field: bytes) -> bytes:
    try:
        return table.get(field) or b""
    except Exception:  # in the damaged part
        return b""


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_compression_type(DBCompressionType.none())  # embeddings do not get smaller
    options.set_max_subcompactions(cores())
    blocks = BlockBasedOptions()
    blocks.set_block_cache(_CACHE)
    blocks.set_bloom_filter(BLOOM_BITS, False)
    options.set_block_based_table_factory(blocks)
    return options


_CACHE = Cache(CACHE_BYTES)  # one for all tables of the process


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    """Raise as StoreError, with advice, whatever RocksDB raises; rocksdict has nothing narrower than Exception."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(_explained(error, path)) from error


def _explained(error: Exception, path: Path) -> str:
    reason = one_line(error)
    if "lock" in reason.lower():
        return f"RocksDB in {path} is in use by another process: stop it, or set persistent_db.read_only"
    if any(word in reason for word in CORRUPT):
        return f"RocksDB in {path} is damaged ({reason}): move the folder away and load the tables again"
    if "No space left" in reason:
        return f"the disk is full while writing RocksDB in {path}: free some space"
    if "ermission denied" in reason or "ead-only" in reason or "read only" in reason.lower():
        return f"RocksDB in {path} cannot be written ({reason}): check its permissions, or set persistent_db.read_only"
    return f"RocksDB in {path}: {reason}"
