"""The third tier: whole tables on disk, in RocksDB, one column family per table, as in HPS.

A row is stored under the 8 little-endian bytes of its key, as float32, so that a folder that HPS filled can be read.
The default column family holds this project's notes: the loaded files, and the applied positions in the streams of
updates. A note is written in one batch with the rows it describes.
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
BLOOM_BITS = 10  # per key: one in a hundred absent keys costs a read
DEFAULT = "default"
FEW_ROWS = 8  # checked before a table is served
OWN_FILES = ("rocksdict-config.json", "LOCK", "LOG")
CORRUPT = ("Corruption", "checksum")

log = logging.getLogger(__name__)


class PersistentTier:
    """Tables in one RocksDB folder. One process writes it; others may open it read-only."""

    def __init__(self, config: PersistentDatabase, names: Iterable[str]) -> None:
        """
        Args:
            config: configuration with the folder's path.
            names: names of the tables; missing ones are created.

        Raises:
            StoreError: the folder cannot be opened: another process has it, it is damaged, or it is not writable.
        """
        self.path = Path(config.path)
        self.read_only = config.read_only
        self._damaged = False
        self._view: tempfile.TemporaryDirectory[str] | None = None
        with _store_errors(self.path):
            existing = set(Rdict.list_cf(str(self.path), _options())) if (self.path / "CURRENT").exists() else set()
            if config.read_only:
                families = {name: _options() for name in existing}
                self._view = _linked(self.path)
                self._db = Rdict(self._view.name, _options(), families, AccessType.read_only())
            else:
                families = {name: _options() for name in existing | set(names) | {DEFAULT}}
                self.path.mkdir(parents=True, exist_ok=True)
                self._db = Rdict(str(self.path), _options(), families)
        self._tables = {name: self._db.get_column_family(name) for name in families if name != DEFAULT}

    def close(self) -> None:
        """Flush memory to disk and close the folder."""
        tables, self._tables = self._tables, {}
        for table in tables.values():
            table.close()
        self._db.close()
        if self._view is not None:
            self._view.cleanup()

    def fetch(self, name: str, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Read rows.

        Args:
            name: name of the table.
            keys: int64[n].
            rows: float32[n, dim], receives the rows; rows not found stay unchanged.

        Returns:
            bool[n], whether each was found. A row in a damaged part of a file, or of another size, is not.
        """
        table, width = self._tables.get(name), 4 * rows.shape[1]
        if table is None:
            return np.zeros(len(keys), bool)
        values = self._values(table, as_bytes(keys))
        held = np.array([len(value) == width for value in values], np.bool_)
        present = b"".join(value for value, is_held in zip(values, held, strict=True) if is_held)
        rows[held] = np.frombuffer(present, "<f4").reshape(-1, rows.shape[1])
        return held

    def check(self, name: str, dim: int) -> None:
        """Check the first few rows of a table: it may have been filled with other settings.

        Raises:
            DataError: keys or rows have another size than this table's.
            StoreError: the folder is damaged.
        """
        with _store_errors(self.path):
            few: list[Any] = list(islice(self._tables[name].items(), FEW_ROWS)) if name in self._tables else []
        for field, value in few:
            check_row(name, dim, field, value, f"RocksDB in {self.path}")

    def _values(self, table: Rdict, fields: list[Any]) -> list[bytes]:
        """Values of the fields; empty if a field is missing or lies in a damaged part."""
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
        """Load whole tables, much faster than row by row; yields the number of rows after each block.

        At the end the blocks' files are merged, which takes about as long as the rest: a lookup in many overlapping
        files was measured to take 40 times as long.

        Args:
            name: name of the table.
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
        """Write only notes, all or none.

        Raises:
            StoreError: the folder is read-only, full or damaged.
        """
        with _store_errors(self.path):
            batch = WriteBatch(raw_mode=True)
            for note, value in notes.items():
                batch.put(note.encode(), value)
            self._db.write(batch)

    def note(self, name: str) -> bytes | None:
        """Read the note under a name."""
        value = self._db.get(name.encode())
        return value if value is None or isinstance(value, bytes) else None

    def count(self, name: str) -> int:
        """Approximate number of a table's rows, as RocksDB estimates it."""
        return self._tables[name].property_int_value("rocksdb.estimate-num-keys") or 0


def _linked(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder of links to the files of ``folder``, since rocksdict writes into a folder even to read it only."""
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
    """Raise RocksDB's errors as StoreError, with advice; rocksdict raises nothing narrower than Exception."""
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
