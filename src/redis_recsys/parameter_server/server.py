"""The parameter server: rows of embedding tables from the first tier that has them.

A lookup asks the cache, then Redis, then RocksDB; a key in none of them gets the table's default vector. Rows found in
a lower tier are inserted into the tiers above in the background. When enough of a lookup is in the cache
(``hit_rate_threshold``), it does not wait for the cache misses: it answers them with the default vector and fetches
them in the background.

Source: Wei et al. 2022, "A GPU-specialized inference parameter server for large-scale deep recommendation models", and
the documentation of HugeCTR's HPS.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ..config import Settings
from ..errors import ConfigError, DataError, RecsysError
from ..hugectr.sparse import SparseModel
from .access import access_of
from .layout import newest
from .nodes import Nodes
from .ps_json import Config, TableConfig, finds, named, read
from .tiers.host_cache import Cache, HostCache
from .tiers.redis_tier import LookupRequest, VolatileTier, empty_result
from .tiers.rocksdb_tier import PersistentTier
from .updates import FollowedTable, UpdateFollower

BACKLOG = 256  # maximum of pending fills; more are dropped, since a later lookup asks for the rows again
GATHER_SECONDS = 0.002  # pause to gather pending inserts: one insert for many lookups delays them less

log = logging.getLogger(__name__)


@dataclass
class Counts:
    """Counts of one table's lookups. Keys count as often as requested, but below the cache once per lookup.

    Attributes:
        lookups: number of calls.
        keys: keys requested.
        cache: keys found in the cache.
        redis, rocksdb: distinct keys of a lookup found there.
        default: distinct keys in no tier, answered with the default vector.
        deferred: keys answered with the default vector while their rows were fetched in the background.
        unreachable: distinct keys for which a Redis node did not answer.
        malformed: rows in Redis of another size than the table's.
        filled: rows inserted into the cache in the background.
        copied: rows copied from RocksDB to Redis in the background.
        dropped: rows not inserted into a higher tier because too many fills were pending.
    """

    lookups: int = 0
    keys: int = 0
    cache: int = 0
    redis: int = 0
    rocksdb: int = 0
    default: int = 0
    deferred: int = 0
    unreachable: int = 0
    malformed: int = 0
    filled: int = 0
    copied: int = 0
    dropped: int = 0


@dataclass
class Table:
    """One embedding table.

    Attributes:
        name: ``model.table``, the name in lookups.
        full: name in the tiers.
        dim: dimension of the rows.
        default: vector for keys in no tier.
        threshold: hit rate of the cache at or above which a lookup does not wait.
        file: folder of the trained table, if the configuration names one.
        cache: its hot rows.
        pending: pending inserts into the cache: keys, rows, and the cache's versions from before they were read.
        counts: counts of lookups.
    """

    name: str
    full: str
    dim: int
    default: np.ndarray
    threshold: float
    file: Path | None
    cache: Cache | None
    pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)


class ParameterServer:
    """Lookups, updates and statistics over all tables of a configuration.

    Example:
        >>> with ParameterServer.open(Path("ps.json"), load_settings()) as server:  # doctest: +SKIP
        ...     server.lookup("dlrm.sparse_embedding0", np.array([5, 7]))  # float32[2, dim]
    """

    def __init__(self, config: Config, nodes: Nodes | None, device: str = "auto") -> None:
        """
        Args:
            config: tables and tiers.
            nodes: the Redis of the volatile tier, None if it is disabled; closed with this object.
            device: device of the caches: ``cuda``, ``cpu``, or ``auto`` for the GPU if there is one.

        Raises:
            ConfigError: no tier is configured, or the device is missing.
            DataError: a trained table's folder is damaged.
            StoreError: RocksDB cannot be opened, or Redis does not answer.
        """
        if nodes is None and config.persistent_db.type == "disabled":
            raise ConfigError(
                "ps.json disables both volatile_db and persistent_db: there is nothing to look rows up in"
            )
        self.config = config
        self._nodes = nodes
        self.volatile = VolatileTier(config.volatile_db, nodes) if nodes is not None else None
        self.persistent: PersistentTier | None = None
        self._filler = _BackgroundFill()
        self._counting = threading.Lock()
        try:
            if config.persistent_db.type == "rocks_db":
                self.persistent = PersistentTier(config.persistent_db, [table.full for table in config.tables])
            self.tables = {table.name: self._opened(table, device) for table in config.tables}
            self.follower = self._followed()
        except BaseException:
            self._filler.close()
            if self.persistent is not None:
                self.persistent.close()
            raise

    @classmethod
    @contextmanager
    def open(cls, path: Path, settings: Settings) -> Iterator[ParameterServer]:
        """Open the parameter server of a ``ps.json`` during the block.

        ``RECSYS_REDIS_HOST``, if set, is the address of Redis; the password comes from ``RECSYS_REDIS_PASSWORD`` or, as
        in HPS, from the file.

        Raises:
            ConfigError: the file is wrong.
            StoreError: a tier cannot be opened.
        """
        config = read(path)
        for remark, serious in config.remarks.items():
            log.log(logging.WARNING if serious else logging.INFO, "%s: %s", path, remark)
        on = config.volatile_db.type != "disabled"
        nodes = Nodes(access_of(config.volatile_db, settings)) if on else None
        try:
            server = cls(config, nodes, settings.lookup.device)
        except BaseException:
            if nodes is not None:
                nodes.close()
            raise
        try:
            yield server
        finally:
            server.close()

    def close(self) -> None:
        """Finish background work and close all tiers."""
        if self.follower is not None:
            self.follower.close()
        self._filler.close()
        if self.persistent is not None:
            self.persistent.close()
        if self._nodes is not None:
            self._nodes.close()

    def lookup(self, table: str, keys: np.ndarray) -> np.ndarray:
        """Look up rows of one table.

        Args:
            table: ``model.table``.
            keys: int64[n], repeats allowed.

        Returns:
            float32[n, dim]; the default vector for a key in no tier.

        Raises:
            DataError: there is no such table, or keys are not integers.
        """
        return self.lookup_many({table: keys})[table]

    def lookup_many(self, keys: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Look up rows of several tables, in one round trip to Redis; see :meth:`lookup`."""
        answers: dict[str, np.ndarray] = {}
        missing: list[_CacheMiss] = []
        for name, asked in keys.items():
            table = named(self.tables, name)
            asked = checked_keys(asked, name)
            rows = answers[name] = np.empty((len(asked), table.dim), np.float32)
            hits = table.cache.find(asked, rows) if table.cache is not None else np.zeros(len(asked), np.bool_)
            places = np.flatnonzero(~hits)
            held = len(asked) - len(places)
            counts = {"lookups": 1, "keys": len(asked), "cache": held}
            if len(places):
                unique, inverse = np.unique(asked[places], return_inverse=True)
                miss = _CacheMiss(table, unique, places, inverse)
                if table.cache is not None and held >= table.threshold * len(asked):
                    rows[places] = table.default
                    counts["deferred"] = len(places)
                    if not self._filler.submit(lambda miss=miss: self._fetch([miss])):  # type: ignore[misc]
                        counts["dropped"] = len(unique)
                else:
                    missing.append(miss)
            self._count(table, **counts)
        if missing:
            for miss, (rows, row_of_key) in zip(missing, self._fetch(missing), strict=True):
                out = answers[miss.table.name]
                if len(miss.places) == len(out):
                    rows.take(row_of_key[miss.inverse], axis=0, out=out, mode="clip")  # straight into out, unlike []
                else:
                    out[miss.places] = rows[row_of_key[miss.inverse]]
        return answers

    def update(self, table: str, keys: np.ndarray, rows: np.ndarray) -> None:
        """Change or add rows. Lookups use them when this returns, in other processes within a second.

        Args:
            table: ``model.table``.
            keys: int64[n]; of a repeated one the last row counts.
            rows: float32[n, dim].

        Raises:
            DataError: no such table, or rows of another shape or with values that are not finite.
            StoreError: a tier cannot store them; other tiers may have them then, and retrying does no harm.
        """
        changed = named(self.tables, table)
        keys, rows = checked(keys, rows, changed.dim, table)
        if self.follower is not None and changed.full in self.follower.applied:
            assert self.volatile is not None
            self.volatile.publish(changed.full, keys, rows)
            self.follower.catch_up()
            return
        if self.persistent is not None and not self.persistent.read_only:
            self.persistent.insert(changed.full, keys, rows)
        if self.volatile is not None:
            self.volatile.insert(changed.full, keys, rows)
        if changed.cache is not None:
            changed.cache.update(keys, rows)

    def evict(self, table: str, keys: np.ndarray | None = None) -> None:
        """Evict rows, or all, from the cache and from Redis; RocksDB keeps them.

        Raises:
            DataError: no such table.
            StoreError: Redis does not answer.
        """
        evicted = named(self.tables, table)
        keys = checked_keys(keys, table) if keys is not None else None
        if self.volatile is not None:
            self.volatile.evict(evicted.full, keys)
        if evicted.cache is not None:
            evicted.cache.clear() if keys is None else evicted.cache.evict(keys)

    def statistics(self) -> dict[str, Counts]:
        """Counts of lookups so far, by table."""
        with self._counting:
            return {name: Counts(**asdict(table.counts)) for name, table in self.tables.items()}

    def skip_updates(self, table: Table) -> dict[str, bytes]:
        """Skip published updates of a table that is about to be reloaded; returns the notes for RocksDB."""
        return self.follower.skip_to_end(table.full) if self.follower is not None else {}

    def settle(self) -> None:
        """Wait until all background work is done."""
        self._filler.join()

    def _opened(self, table: TableConfig, device: str) -> Table:
        """Open a table, with a cache whose size is a share of its rows."""
        file, model, cache = table.file if table.file.exists() else None, table.model, None
        if model.gpucache:
            rows = len(SparseModel(file, table.dim)) if file is not None else self._rows_stored(table.full)
            cache = new_cache(max(1, round(rows * model.gpucacheper)), table.dim, device)
        default = np.full(table.dim, table.default, np.float32)
        return Table(table.name, table.full, table.dim, default, model.hit_rate_threshold, file, cache)

    def _rows_stored(self, full: str) -> int:
        """Approximate number of a table's rows in the tiers."""
        return max(
            self.volatile.count(full) if self.volatile is not None else 0,
            self.persistent.count(full) if self.persistent is not None else 0,
        )

    def _fetch(self, missing: list[_CacheMiss]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Fetch the rows of cache misses from Redis, RocksDB, or the default.

        Returns:
            For each table: rows float32[m, dim], and int64[n], the row of each key.
        """
        requests = []
        for miss in missing:
            if miss.table.cache is not None:
                miss.versions = miss.table.cache.versions(miss.keys)
            requests.append(LookupRequest(miss.table.full, miss.table.dim, miss.keys))
        results = (
            self.volatile.fetch(requests)
            if self.volatile is not None
            else [empty_result(request) for request in requests]
        )
        fetched = []
        for miss, result in zip(missing, results, strict=True):
            table, rows, row_of_key = miss.table, result.rows, result.row_of_key
            unreachable = int(result.unreachable.sum())
            self._count(table, redis=len(rows), unreachable=unreachable, malformed=result.malformed)
            self._touch(table, miss.keys, row_of_key)
            held = np.ones(len(row_of_key), np.bool_)
            if len(rows) < len(row_of_key):
                below = np.flatnonzero(row_of_key < 0)
                lower_rows, held[below] = self._from_below(table, miss.keys[below], ~result.unreachable[below])
                row_of_key[below] = np.arange(len(rows), len(rows) + len(below))
                rows = np.concatenate([rows, lower_rows]) if len(rows) else lower_rows
            self._refill(miss, rows, row_of_key, held)
            fetched.append((rows, row_of_key))
        return fetched

    def _from_below(self, table: Table, keys: np.ndarray, absent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fetch the rows of keys that Redis did not return.

        Args:
            absent: bool[n], whether Redis confirmed that it lacks them: only then are they copied there.

        Returns:
            float32[n, dim], and bool[n], whether RocksDB has them.
        """
        rows, held = np.empty((len(keys), table.dim), np.float32), np.zeros(len(keys), np.bool_)
        if self.persistent is not None:
            held = self.persistent.fetch(table.full, keys, rows)
            self._copy_up(table, keys[held & absent], rows[held & absent])
        rows[~held] = table.default
        self._count(table, rocksdb=int(held.sum()), default=int((~held).sum()))
        return rows, held

    def _refill(self, miss: _CacheMiss, rows: np.ndarray, row_of_key: np.ndarray, held: np.ndarray) -> None:
        """Insert the rows that a tier has into the cache, in the background."""
        table = miss.table
        if table.cache is None or not held.any():
            return
        keys, rows, versions = miss.keys[held], rows[row_of_key[held]], miss.versions[held]
        with self._counting:
            # the queued job inserts all pending rows
            if len(table.pending) < BACKLOG and (table.pending or self._filler.submit(lambda: self._warm_cache(table))):
                table.pending.append((keys, rows, versions))
                return
        self._count(table, dropped=len(keys))

    def _warm_cache(self, table: Table) -> None:
        """Insert fetched rows into the cache, those of a few milliseconds together."""
        assert table.cache is not None
        time.sleep(GATHER_SECONDS)
        with self._counting:
            pending, table.pending = table.pending, []
        keys, rows, versions = (np.concatenate(parts) for parts in zip(*pending, strict=True))
        table.cache.insert(keys, rows, versions)
        self._count(table, filled=len(keys))

    def _copy_up(self, table: Table, keys: np.ndarray, rows: np.ndarray) -> None:
        """Copy rows from RocksDB to Redis, in the background."""
        volatile = self.volatile
        if volatile is None or not len(keys) or not self.config.volatile_db.cache_missed_embeddings:
            return

        def copy() -> None:
            volatile.insert(table.full, keys, rows, absent_only=True)
            self._count(table, copied=len(keys))

        if not self._filler.submit(copy):
            self._count(table, dropped=len(keys))

    def _touch(self, table: Table, keys: np.ndarray, row_of_key: np.ndarray) -> None:
        """Note in the background that rows in Redis were used, if evictions may be near."""
        volatile = self.volatile
        if volatile is not None and volatile.wants_touches(table.full) and (row_of_key >= 0).any():
            used = keys[row_of_key >= 0]
            self._filler.submit(lambda: volatile.touch(table.full, used))

    def _count(self, table: Table, **increments: int) -> None:
        with self._counting:
            for name, value in increments.items():
                setattr(table.counts, name, getattr(table.counts, name) + value)

    def _followed(self) -> UpdateFollower | None:
        """Start a follower of the tables with online updates, if there are any."""
        if self._nodes is None or self.volatile is None or self.config.update_source.type == "null":
            return None
        stored = self.persistent is not None and not self.persistent.read_only
        followed = [
            FollowedTable(
                table.full,
                table.dim,
                table.cache,
                self.persistent if stored and finds(self.config.persistent_db.update_filters, table.full) else None,
            )
            for table in self.tables.values()
            if finds(self.config.volatile_db.update_filters, table.full)
        ]
        period = self.config.update_source.poll_timeout_ms / 1000
        follower = UpdateFollower(followed, self._nodes, self.volatile, self.config.volatile_db.num_partitions, period)
        follower.start()
        return follower


@dataclass
class _CacheMiss:
    """Cache misses of a lookup.

    Attributes:
        keys: int64[n], distinct.
        places: int64[m], their positions in the lookup.
        inverse: int64[m], the key at each position.
        versions: int64[n], the cache's versions before the lower tiers were read.
    """

    table: Table
    keys: np.ndarray
    places: np.ndarray
    inverse: np.ndarray
    versions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


class _BackgroundFill:
    """One thread that runs jobs in order, and rejects more when too many wait."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[Callable[[], object] | None] = queue.Queue(BACKLOG)
        self._thread = threading.Thread(target=self._fill_until_stopped, name="fills tiers", daemon=True)
        self._complaint = ""
        self._thread.start()

    def submit(self, job: Callable[[], object]) -> bool:
        """Queue a job; returns False if too many wait."""
        with suppress(queue.Full):
            self._jobs.put_nowait(job)
            return True
        return False

    def join(self) -> None:
        """Wait until all submitted jobs are done, including jobs that they submit."""
        self._jobs.join()

    def close(self) -> None:
        """Finish the waiting jobs and stop."""
        self._jobs.put(None)
        self._thread.join()

    def _fill_until_stopped(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._run_job(job)
            self._jobs.task_done()
        self._jobs.task_done()

    def _run_job(self, job: Callable[[], object]) -> None:
        try:
            job()
        except RecsysError as error:  # the row stays in its tier
            if f"{error}" != self._complaint:
                self._complaint = f"{error}"
                log.warning("%s", error)
        except Exception:  # later jobs must not wait forever
            log.exception("rows could not be put into a higher tier")


def new_cache(capacity: int, dim: int, device: str) -> Cache:
    """Create a cache on the GPU, or in memory.

    Raises:
        ConfigError: a GPU is requested and there is none.
    """
    if device != "cpu" and _gpu_there():
        from .tiers.device_cache import DeviceCache

        return DeviceCache(capacity, dim)
    if device == "cuda":
        raise ConfigError("RECSYS_LOOKUP_DEVICE is cuda, and there is no GPU or no PyTorch: set it to auto or cpu")
    return HostCache(capacity, dim)


def _gpu_there() -> bool:
    try:
        import torch
    except ImportError:  # Triton's models run without it
        return False
    return torch.cuda.is_available()


def checked_keys(keys: np.ndarray, table: str) -> np.ndarray:
    """The keys as int64[n].

    Raises:
        DataError: they have another type or shape.
    """
    keys = np.asarray(keys)
    if keys.ndim != 1 or keys.dtype.kind not in "iu" or keys.dtype == np.uint64:
        raise DataError(f"keys of {table} are int64[n], not {keys.dtype}{list(keys.shape)}")
    return np.ascontiguousarray(keys, np.int64)


def checked(keys: np.ndarray, rows: np.ndarray, dim: int, table: str) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys int64[n] and their rows float32[n, dim]; the last row wins for repeated keys.

    Raises:
        DataError: keys or rows have another type or shape, or a value is not finite.
    """
    keys, rows = checked_keys(keys, table), np.asarray(rows)
    if rows.shape != (len(keys), dim) or rows.dtype.kind != "f":
        expected = f"float32[{len(keys)}, {dim}]"
        raise DataError(f"rows for {len(keys)} keys of {table} are {expected}, not {rows.dtype}{list(rows.shape)}")
    if not np.isfinite(rows).all():
        raise DataError(f"rows of {table} hold values that are not finite")
    keys, places = newest(keys)
    return keys, np.ascontiguousarray(rows[places], np.float32)
