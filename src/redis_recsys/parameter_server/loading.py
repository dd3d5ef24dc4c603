"""Loading of trained tables from their files into RocksDB and Redis, once: a loaded table is not loaded again.

A complete load is noted as a fingerprint of the files. A start after an interruption loads again; a start with the same
files does not, so that online updates stay.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator

import numpy as np

from ..hugectr.sparse import SparseModel
from ..utils.progress import progress
from .server import ParameterServer, Table

BLOCK_ROWS = 100_000
SAMPLES = 64
UNFINISHED = "unfinished"

log = logging.getLogger(__name__)


def load(server: ParameterServer, again: bool = False) -> dict[str, int]:
    """Load all tables whose files the configuration names into the tiers that lack them.

    Args:
        server: server whose tiers are filled.
        again: whether to load also where the same files were loaded before, or HPS filled Redis. Online updates since
        then are lost.

    Returns:
        Rows written, by table; 0 where nothing was to do.

    Raises:
        DataError: a folder is damaged, or stored rows have another form than the configuration says.
        StoreError: a tier cannot take the rows.
    """
    written = {name: _load(server, table, again) for name, table in server.tables.items() if table.file is not None}
    for table in server.tables.values():
        for tier in (server.volatile, server.persistent):
            if tier is not None:
                tier.check(table.full, table.dim)
    return written


def _load(server: ParameterServer, table: Table, again: bool) -> int:
    assert table.file is not None
    model = SparseModel(table.file, table.dim)
    print_ = fingerprint(model)
    written = max(_into_rocksdb(server, table, model, print_, again), _into_redis(server, table, model, print_, again))
    if written and table.cache is not None:
        table.cache.clear()
    return written


def _into_rocksdb(server: ParameterServer, table: Table, model: SparseModel, print_: str, again: bool) -> int:
    persistent, note = server.persistent, f"loaded:{table.full}"
    if persistent is None or persistent.read_only or not server.config.persistent_db.initialize_after_startup:
        return 0
    before = persistent.note(note)
    if before == print_.encode() and not again:
        return 0
    notes = server.skip_updates(table)
    if before is not None:
        persistent.set_notes({note: UNFINISHED.encode()})
        persistent.clear(table.full)
    with progress(f"{table.name} into RocksDB", len(model)) as advance:
        for rows in persistent.load(table.full, model.blocks(BLOCK_ROWS)):
            advance(rows)
    persistent.set_notes(notes | {note: print_.encode()})
    return len(model)


def _into_redis(server: ParameterServer, table: Table, model: SparseModel, print_: str, again: bool) -> int:
    volatile, config = server.volatile, server.config.volatile_db
    if volatile is None or not config.initialize_after_startup:
        return 0
    before = volatile.mark(table.full)
    if before == print_ and not again:
        return 0
    if before is None and not again and (rows := volatile.count(table.full)):
        log.warning("Redis holds %s rows of %s already, which stay: 'recsys dlrm load --again' replaces them",
                    f"{rows:,}", table.name)  # fmt: skip
        return 0
    volatile.mark(table.full, UNFINISHED)
    volatile.evict(table.full)
    count = round(len(model) * config.initial_cache_rate)
    with progress(f"{table.name} into Redis", count) as advance:
        for keys, block in _first(model, count):
            volatile.insert(table.full, keys, block)
            advance(len(keys))
    volatile.mark(table.full, print_)
    return count


def _first(model: SparseModel, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for keys, rows in model.blocks(BLOCK_ROWS):
        take = min(count, len(keys))
        if take == 0:
            return
        yield keys[:take], rows[:take]
        count -= take


def fingerprint(model: SparseModel) -> str:
    """Fingerprint of a table: hash of its sizes and a sample of its keys and rows."""
    places = np.unique(np.linspace(0, max(len(model) - 1, 0), SAMPLES).astype(np.int64))[: len(model)]
    digest = hashlib.sha256(f"{model.rows.shape}".encode())
    digest.update(np.ascontiguousarray(model.keys[places]).tobytes())
    digest.update(np.ascontiguousarray(model.rows[places]).tobytes())
    return digest.hexdigest()
