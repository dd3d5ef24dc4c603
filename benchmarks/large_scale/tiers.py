"""Lookups in one embedding table, tier by tier, beside the minimal Redis commands for the same rows.

A lookup has 26 keys per sample, like a DLRM on the Criteo data. Keys follow a power law, or are uniform. No lookup
repeats, except for the cache, which must hold the requested keys. Rates include the background work of a lookup,
latencies end when it returns.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import hiredis
import numpy as np
import redis

from redis_recsys.dlrm.configure import EMBEDDING, MODEL, TABLE, Place, ps_json
from redis_recsys.hugectr.network import DlrmShape
from redis_recsys.parameter_server.layout import ROWS, as_bytes, full_name, partitions, redis_key
from redis_recsys.parameter_server.nodes import Access, Nodes
from redis_recsys.parameter_server.ps_json import Config
from redis_recsys.parameter_server.server import Counts, ParameterServer
from redis_recsys.parameter_server.tiers.host_cache import HostCache
from redis_recsys.parameter_server.tiers.rocksdb_tier import PersistentTier

Tier = Literal["cache", "redis", "rocksdb", "all"]
TIERS: tuple[Tier, ...] = ("cache", "redis", "rocksdb", "all")
BARE = "bare"
KEYS = {"power law": True, "uniform": False}

DIM, SLOTS = 128, 26
EXPONENT = 1.05  # exponent of the power law
SPREAD = 2_654_435_761  # a prime factor that scatters the frequent keys
FULL = full_name(MODEL, EMBEDDING)
BLOCK = 100_000  # rows per write
ROUND_KEYS, MOST = 60_000, 200  # keys and lookups per round, before the other contender's turn
POOL = 200_000  # maximum distinct keys in lookups of the cache alone
WARM_KEYS = 3  # warm-up lookups, as a multiple of the cache's rows
SHAPE = DlrmShape(13, (1,) * SLOTS, DIM, (DIM,), (1,))  # required by the configuration; not used in computation

Lookups = list[np.ndarray]


@dataclass(frozen=True)
class Stored:
    """Location of the table.

    Attributes:
        rows: number of rows; keys are 0 to ``rows`` - 1.
        access: access to Redis.
        rocksdb: folder of RocksDB.
    """

    rows: int
    access: Access
    rocksdb: Path


def draw(random: np.random.Generator, count: int, rows: int, skewed: bool) -> np.ndarray:
    """Draw keys int64[count] from 0 to ``rows`` - 1, with frequencies by rank to the power of -1.05, or uniform."""
    if not skewed:
        return random.integers(0, rows, count)
    power = 1 - EXPONENT
    ranks = ((((rows + 1) ** power - 1) * random.random(count)) + 1) ** (1 / power)
    return (np.minimum(ranks.astype(np.int64), rows) - 1) * SPREAD % rows


def blocks(rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (keys int64[n], random rows float32[n, 128]) of a table, generated on demand."""
    random = np.random.default_rng(0)
    for start in range(0, rows, BLOCK):
        keys = np.arange(start, min(start + BLOCK, rows))
        yield keys, random.random((len(keys), DIM), np.float32)


def configured(tier: Tier, rocksdb: Path, cache: float = 0.2) -> Config:
    """Default configuration with one tier, or all of them."""
    document = ps_json(SHAPE, Place(rocksdb=str(rocksdb) if tier in ("rocksdb", "all") else None), cache)
    document["models"][0]["gpucache"] = tier == "all"
    if tier == "rocksdb":
        document["volatile_db"]["type"] = "disabled"
    return Config(**document)


@contextmanager
def opened(stored: Stored, tier: Tier) -> Iterator[ParameterServer]:
    """Open a parameter server with one tier, for the block."""
    nodes = Nodes(stored.access) if tier != "rocksdb" else None
    server = ParameterServer(configured(tier, stored.rocksdb), nodes, "cpu")
    try:
        yield server
    finally:
        server.close()


def fill(stored: Stored) -> dict[str, Any]:
    """Write the table into Redis and RocksDB; return rows per second of each."""
    with opened(stored, "all") as server:
        assert server.volatile is not None
        assert server.persistent is not None
        started = time.perf_counter()
        for keys, rows in blocks(stored.rows):
            server.volatile.insert(FULL, keys, rows)
        redis_seconds = time.perf_counter() - started
        found = into_rocksdb(server.persistent, stored.rows)
    return {"redis_rows_per_s": stored.rows / redis_seconds, **found}


def into_rocksdb(tier: PersistentTier, rows: int) -> dict[str, Any]:
    """Write the table into RocksDB, merge its files, and return rows per second."""
    started = time.perf_counter()
    for _ in tier.load(FULL, blocks(rows)):
        pass
    return {"rocksdb_rows_per_s": rows / (time.perf_counter() - started)}


def read_files(folder: Path) -> None:
    """Read the files of a RocksDB once, so that the system caches as much as fits."""
    for file in folder.glob("*.sst"):
        with file.open("rb", buffering=0) as opened_file:
            while opened_file.read(1 << 24):
                pass


class Contender(Protocol):
    """Contender that answers lookups."""

    def prepare(self, lookups: Lookups) -> Sequence[Any]:
        """Prepare the argument of :meth:`ask`, outside the measured time."""

    def ask(self, prepared: Any) -> None:
        """Run one lookup."""

    def settle(self) -> None:
        """Wait for background work."""


class Ours:
    """Lookups in the parameter server."""

    def __init__(self, server: ParameterServer) -> None:
        self._server = server

    def prepare(self, lookups: Lookups) -> Lookups:
        """Do nothing."""
        return lookups

    def ask(self, prepared: np.ndarray) -> None:
        """Look up the keys."""
        self._server.lookup(TABLE, prepared)

    def settle(self) -> None:
        """Wait for fills and copies."""
        self._server.settle()


class Bare:
    """``HMGET`` of the distinct keys of a lookup, packed beforehand and sent to all nodes, with unparsed answers: the
    minimum for any client that reads its rows from the same hashes."""

    def __init__(self, access: Access, config: Config) -> None:
        volatile = config.volatile_db
        host, port = access.addresses[0]
        self._most = volatile.max_get_batch_size
        with redis.RedisCluster(host, port, password=access.password) as cluster:
            names = [redis_key(FULL, partition, ROWS) for partition in range(volatile.num_partitions)]
            nodes = [cluster.get_node_from_key(name.decode()) for name in names]
        owners = [(node.host, node.port) for node in nodes if node is not None]
        self._hashes = list(zip(names, owners, strict=True))
        self._connections = {
            owner: access.client(owner).connection_pool.get_connection() for owner in dict.fromkeys(owners)
        }

    def prepare(self, lookups: Lookups) -> list[list[tuple[Any, bytes, int]]]:
        """Return for each lookup, by node: the connection, the packed commands, and their number."""
        prepared = []
        for keys in lookups:
            distinct = np.unique(keys)
            places = partitions(distinct, len(self._hashes))
            commands: dict[Any, list[bytes]] = {owner: [] for owner in self._connections}
            for partition, (name, owner) in enumerate(self._hashes):
                mine = as_bytes(distinct[places == partition])
                for start in range(0, len(mine), self._most):
                    command = (b"HMGET", name, *mine[start : start + self._most])
                    commands[owner].append(hiredis.pack_command(command))  # type: ignore[arg-type]
            prepared.append(
                [(self._connections[owner], b"".join(packed), len(packed)) for owner, packed in commands.items()]
            )
        return prepared

    def ask(self, prepared: list[tuple[Any, bytes, int]]) -> None:
        """Send the commands, then read the answers."""
        for connection, packed, count in prepared:
            if count:
                connection.send_packed_command([packed], check_health=False)
        for connection, _, count in prepared:
            for _ in range(count):
                connection.read_response()

    def settle(self) -> None:
        """Do nothing."""


@dataclass
class Times:
    """Times of one contender: seconds of each lookup, and of each round with its background work."""

    lookups: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)


def alternated(contenders: Sequence[Contender], lookups: Callable[[], Lookups], seconds: float) -> list[Times]:
    """Ask the contenders in turns, with an alternating first, so that neither a drift of the machine nor rows in the
    CPU's cache favour one; for so many seconds each on average."""
    times = [Times() for _ in contenders]
    for number in itertools.count():
        asked = lookups()
        for who in range(len(contenders))[:: -1 if number % 2 else 1]:
            contender, mine = contenders[who], times[who]
            prepared = contender.prepare(asked)
            began = time.perf_counter()
            for each in prepared:
                before = time.perf_counter()
                contender.ask(each)
                mine.lookups.append(time.perf_counter() - before)
            contender.settle()
            mine.rounds.append(time.perf_counter() - began)
        if number and sum(sum(each.rounds) for each in times) > seconds * len(contenders):
            return times
    raise AssertionError


def measure(stored: Stored, tier: Tier, batches: Sequence[int], seconds: float) -> dict[str, Any]:
    """Measure lookups of one tier.

    Returns:
        By kind of keys and number of samples: ``ours``, and for Redis ``bare`` and ``share``, our rate as a share of
        the bare one, the median of all pairs of rounds; each with lookups, rows_per_s, p50_ms and p99_ms. Also
        ``hit_rate`` of the cache.
    """
    found: dict[str, Any] = {}
    random = np.random.default_rng(1)
    with opened(stored, tier) as server:
        if tier == "rocksdb":
            read_files(stored.rocksdb)
        contenders: list[Contender] = [Ours(server)]
        if tier == "redis":
            contenders.append(Bare(stored.access, server.config))
        for kind, skewed in KEYS.items():
            if tier == "all":
                warm(server, stored.rows, skewed)
            found[kind] = {}
            for batch in batches:
                count = batch * SLOTS
                lookups = min(max(ROUND_KEYS // count, 1), MOST)

                def fresh(count: int = count, lookups: int = lookups, skewed: bool = skewed) -> Lookups:
                    return [draw(random, count, stored.rows, skewed) for _ in range(lookups)]

                source = held(server, fresh, lookups * count) if tier == "cache" else fresh
                for contender in contenders:  # warms up connections and code
                    contender.ask(contender.prepare(source()[:1])[0])
                before = server.statistics()[TABLE]
                ours, *bare = alternated(contenders, source, seconds)
                result: dict[str, Any] = {"ours": rates(ours, count, lookups), "hit_rate": hit_rate(server, before)}
                if bare:
                    result[BARE] = rates(bare[0], count, lookups)
                    pairs = zip(bare[0].rounds, ours.rounds, strict=True)
                    result["share"] = float(np.median([least / own for least, own in pairs]))
                found[kind][str(batch)] = result
    return found


def warm(server: ParameterServer, rows: int, skewed: bool) -> None:
    """Ask until the content of the cache is stable."""
    random = np.random.default_rng(2)
    cache = server.tables[TABLE].cache
    assert cache is not None
    for _ in range(WARM_KEYS * cache.capacity // ROUND_KEYS + 1):
        server.lookup(TABLE, draw(random, ROUND_KEYS, rows, skewed))
        server.settle()


def held(server: ParameterServer, fresh: Callable[[], Lookups], keys: int) -> Callable[[], Lookups]:
    """Return a source of lookups whose keys are all in the cache: a few rounds, repeated."""
    rounds = [fresh() for _ in range(max(POOL // keys, 1))]
    asked = np.unique(np.concatenate(list(itertools.chain(*rounds))))
    cache = server.tables[TABLE].cache = HostCache(4 * len(asked), DIM)
    rows = np.random.default_rng(3).random((len(asked), DIM), np.float32)
    cache.insert(asked, rows, cache.versions(asked))
    some = asked[cache.find(asked, rows)][0]
    for lookup in itertools.chain(*rounds):  # one key in thousands does not fit
        lookup[~cache.find(lookup, np.empty((len(lookup), DIM), np.float32))] = some
    turns = itertools.cycle(rounds)
    return lambda: next(turns)


def hit_rate(server: ParameterServer, before: Counts) -> float:
    """Hit rate of the cache since then."""
    after = server.statistics()[TABLE]
    return (after.cache - before.cache) / (after.keys - before.keys)


def rates(times: Times, keys: int, lookups: int) -> dict[str, float]:
    """Figures of a table from measured times."""
    p50, p99 = np.percentile(np.array(times.lookups) * 1e3, [50, 99])
    return {
        "lookups": len(times.lookups),
        "rows_per_s": keys * lookups * len(times.rounds) / sum(times.rounds),
        "p50_ms": float(p50),
        "p99_ms": float(p99),
    }
