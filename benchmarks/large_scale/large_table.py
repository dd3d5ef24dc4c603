"""A table larger than the memory of the process that serves it: all of it in RocksDB, the hot rows in a cache.

Loading and serving run in separate processes, so that the peak memory of each is known. The system caches files in
free memory, and releases that as soon as a process needs it; so both cases are measured: with the files only on disk,
and with those that the system caches.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.large_scale.tiers import (
    FULL,
    KEYS,
    SHAPE,
    SLOTS,
    Ours,
    alternated,
    draw,
    hit_rate,
    into_rocksdb,
    rates,
    read_files,
)
from redis_recsys.dlrm.configure import TABLE, Place, ps_json
from redis_recsys.parameter_server.ps_json import Config, PersistentDatabase
from redis_recsys.parameter_server.server import ParameterServer
from redis_recsys.parameter_server.tiers.rocksdb_tier import PersistentTier

BATCH = 64
ROUND = 20  # lookups between two readings of the clock


def load(folder: Path, rows: int) -> dict[str, Any]:
    """Write the table, block by block."""
    tier = PersistentTier(PersistentDatabase(type="rocks_db", path=str(folder)), [FULL])
    try:
        return into_rocksdb(tier, rows)
    finally:
        tier.close()


def serve(folder: Path, rows: int, cache: int, seconds: float) -> dict[str, Any]:
    """Look up power-law and uniform keys, starting with an empty cache of ``cache`` rows.

    Returns:
        For ``cold``, with the files only on disk at the start, and ``warm``: by kind of keys the result of
        ``tiers.rates``, and ``hit_rate`` of the cache.
    """
    document = ps_json(SHAPE, Place(rocksdb=str(folder)), cache / rows)
    document["volatile_db"]["type"] = "disabled"
    server = ParameterServer(Config(**document), None, "cpu")
    random = np.random.default_rng(4)
    found: dict[str, Any] = {}
    try:
        for state in ("cold", "warm"):
            forget(folder) if state == "cold" else read_files(folder)
            found[state] = {}
            for kind, skewed in KEYS.items():
                if state == "warm":
                    until = time.perf_counter() + seconds
                    while time.perf_counter() < until:  # for the cache
                        server.lookup(TABLE, draw(random, BATCH * SLOTS * ROUND, rows, skewed))
                        server.settle()
                before = server.statistics()[TABLE]
                (times,) = alternated(
                    [Ours(server)],
                    lambda skewed=skewed: [draw(random, BATCH * SLOTS, rows, skewed) for _ in range(ROUND)],  # type: ignore[misc]
                    seconds,
                )
                found[state][kind] = rates(times, BATCH * SLOTS, ROUND) | {"hit_rate": hit_rate(server, before)}
    finally:
        server.close()
    return found


def forget(folder: Path) -> None:
    """Drop the system's cached files of a RocksDB; some systems cannot."""
    for file in folder.glob("*.sst"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
