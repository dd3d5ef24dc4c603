"""The first tier of the parameter server: the hot rows of one embedding table, in a cache of fixed size.

A lookup asks here first. Missing rows come from the tiers below and are inserted afterwards, in the background; an
update writes through. The cache is set-associative: a key belongs to one set of eight ways, where it displaces the
least recently used row, so that array operations find or insert a whole batch. This is the design of the embedding
cache of HugeCTR's hierarchical parameter server (Wei et al. 2022, "A GPU-specialized inference parameter server for
large-scale deep recommendation models").

:class:`HostCache` holds the rows in this process's memory; ``device_cache.DeviceCache`` holds them on a GPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from threading import Lock

import numpy as np

WAYS = 8  # rows per set; their keys fill one cache line
PIECE = 4096  # keys handled at a time, so that the lock is held briefly and the data stays in the CPU's caches
SHIFT_1, SHIFT_2 = np.uint64(30), np.uint64(27)  # of splitmix64
FACTOR_1, FACTOR_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
HALF = np.uint64(32)
# Eight comparisons, at most one of them true, are read as one integer: times this, its highest byte is the position.
PLACES, TOP = np.uint64(0x0001020304050607), np.uint64(56)


class Cache(ABC):
    """Rows of one embedding table by key. Every int64 is a legal key. Any number of threads may call any method.

    Attributes:
        capacity: maximum number of rows, in whole sets.
        dim: length of a row.
    """

    def __init__(self, capacity: int, dim: int) -> None:
        """
        Args:
            capacity: minimum number of rows; rounded up to whole sets, at least two.
            dim: length of a row.
        """
        self._sets = max(-(-capacity // WAYS), 2)  # vacant_keys needs two at least
        self.capacity = self._sets * WAYS
        self.dim = dim
        self._lock = Lock()
        self._clock = 0
        self._versions = np.zeros(self._sets, np.int64)

    @abstractmethod
    def find(self, keys: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Copy the rows held, which makes them the most recently used.

        Args:
            keys: int64[n], repeats allowed.
            out: float32[n, dim]; receives the rows, unchanged where a key is missing.

        Returns:
            bool[n], whether each key is held.
        """

    def versions(self, keys: np.ndarray) -> np.ndarray:
        """Versions to pass to :meth:`insert`; read them before reading the rows from the tier below.

        Args:
            keys: int64[n].

        Returns:
            int64[n]; it changes once a key, or another of its set, has been updated or evicted.
        """
        sets = self._sets_of(keys)
        with self._lock:
            return self._versions[sets]

    @abstractmethod
    def insert(self, keys: np.ndarray, rows: np.ndarray, versions: np.ndarray) -> None:
        """Insert rows read from the tier below, except those that may have changed since.

        A key that is held is overwritten. Others displace the least recently used rows of their set, but none of the
        same call: rows without room are left out. The last row wins for repeated keys.

        Args:
            keys: int64[n].
            rows: float32[n, dim].
            versions: int64[n] from :meth:`versions`.
        """

    @abstractmethod
    def update(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Overwrite the rows held, and insert no others; pending inserts for these keys are invalidated.

        Call this after the tiers below have the rows; then no old row comes back. The last row wins for repeated
        keys.

        Args:
            keys: int64[n].
            rows: float32[n, dim].
        """

    @abstractmethod
    def evict(self, keys: np.ndarray) -> None:
        """Evict keys, int64[n]; pending inserts for these keys are invalidated."""

    @abstractmethod
    def clear(self) -> None:
        """Evict all keys; all pending inserts are invalidated."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows held."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all arrays, regardless of the rows held."""

    def _sets_of(self, keys: np.ndarray) -> np.ndarray:
        """Set of each key, int64[n]."""
        return set_of(mixed(keys), self._sets)

    def _sorted(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the keys in the order of their sets, only the last one of repeated keys, and these sets."""
        hashes = mixed(keys)
        order = ordered(hashes)
        return order, set_of(hashes[order], self._sets)


class HostCache(Cache):
    """A :class:`Cache` in this process's memory."""

    def __init__(self, capacity: int, dim: int) -> None:
        """See :class:`Cache`."""
        super().__init__(capacity, dim)
        self._vacant = vacant_keys(self._sets)
        self._keys = np.repeat(self._vacant[:, None], WAYS, axis=1)
        self._used = np.zeros(self.capacity, np.int64)  # clock at the last use, 0 for a vacant way
        self._rows = np.zeros((self.capacity, dim), np.float32)

    def find(self, keys: np.ndarray, out: np.ndarray) -> np.ndarray:
        """See :class:`Cache`."""
        hits = np.empty(len(keys), bool)
        for start in range(0, len(keys), PIECE):
            piece = slice(start, start + PIECE)
            hits[piece] = self._find(keys[piece], out[piece])
        return hits

    def _find(self, keys: np.ndarray, out: np.ndarray) -> np.ndarray:
        sets = self._sets_of(keys)
        with self._lock:
            slots, hits = self._slots(keys, sets)
            if hits.all():
                # NumPy writes straight into ``out`` only in this mode; no slot is out of bounds.
                self._rows.take(slots, axis=0, out=out, mode="clip")
            else:
                positions = np.flatnonzero(hits)
                slots = slots[positions]
                out[positions] = self._rows.take(slots, axis=0)
            self._clock += 1
            self._used[slots] = self._clock
        return hits

    def insert(self, keys: np.ndarray, rows: np.ndarray, versions: np.ndarray) -> None:
        """See :class:`Cache`."""
        order, sets = self._sorted(keys)
        with self._lock:
            self._clock += 1
            now = self._clock
        for start in range(0, len(order), PIECE):
            piece = order[start : start + PIECE]
            self._insert(keys[piece], sets[start : start + PIECE], rows[piece], versions[piece], now)

    def _insert(self, keys: np.ndarray, sets: np.ndarray, rows: np.ndarray, versions: np.ndarray, now: int) -> None:
        """Insert rows of sorted sets, at the time ``now``."""
        with self._lock:
            slots, held = self._slots(keys, sets)
            fresh = self._versions[sets] == versions
            self._used[slots[held & fresh]] = now
            absent = np.flatnonzero(fresh & ~held)
            rank = np.arange(len(absent)) - np.searchsorted(sets[absent], sets[absent])
            absent, rank = absent[rank < WAYS], rank[rank < WAYS]
            oldest = self._used.reshape(-1, WAYS)[sets[absent]].argsort(axis=1, kind="stable")
            slots[absent] = sets[absent] * WAYS + oldest[np.arange(len(absent)), rank]
            held[absent] = self._used[slots[absent]] < now
            put = np.flatnonzero(held & fresh)
            slots = slots[put]
            self._keys.ravel()[slots] = keys[put]
            self._used[slots] = now
            self._rows[slots] = rows[put]

    def update(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """See :class:`Cache`."""
        order, sets = self._sorted(keys)
        for start in range(0, len(order), PIECE):
            piece = order[start : start + PIECE]
            self._update(keys[piece], sets[start : start + PIECE], rows[piece])

    def _update(self, keys: np.ndarray, sets: np.ndarray, rows: np.ndarray) -> None:
        with self._lock:
            self._versions[sets] += 1
            slots, held = self._slots(keys, sets)
            self._rows[slots[held]] = rows[held]

    def evict(self, keys: np.ndarray) -> None:
        """See :class:`Cache`."""
        sets = self._sets_of(keys)
        with self._lock:
            self._versions[sets] += 1
            slots, held = self._slots(keys, sets)
            slots = slots[held]
            self._keys.ravel()[slots] = self._vacant[sets[held]]
            self._used[slots] = 0

    def clear(self) -> None:
        """See :class:`Cache`."""
        with self._lock:
            self._versions += 1
            self._keys[:] = self._vacant[:, None]
            self._used[:] = 0

    def __len__(self) -> int:
        with self._lock:
            return int(np.count_nonzero(self._used))

    @property
    def nbytes(self) -> int:
        """See :class:`Cache`."""
        return sum(a.nbytes for a in (self._rows, self._keys, self._used, self._versions, self._vacant))

    def _slots(self, keys: np.ndarray, sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slot of each key, int64[n] among all ways, and whether it is held."""
        match = self._keys.take(sets, axis=0) == keys[:, None]
        word = match.view("<u8").ravel()
        way = word * PLACES
        way >>= TOP
        slots = way.view(np.int64)
        slots += sets * WAYS
        return slots, word != 0


def mixed(keys: np.ndarray) -> np.ndarray:
    """Keys int64[n] as uint64[n], under a bijection that spreads them over the high bits.

    The finaliser of splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators") without
    its last step, which changes only low bits.
    """
    x = keys.astype(np.uint64)
    x ^= x >> SHIFT_1
    x *= FACTOR_1
    x ^= x >> SHIFT_2
    x *= FACTOR_2
    return x


def set_of(hashes: np.ndarray, sets: int) -> np.ndarray:
    """Set, out of ``sets``, of each hash uint64[n], as int64[n]; it grows with the hash."""
    x = hashes >> HALF
    x *= np.uint64(sets)
    x >>= HALF
    return x.view(np.int64)


def ordered(hashes: np.ndarray) -> np.ndarray:
    """Positions that sort hashes uint64[n], and with them their sets; only the last position of equal ones."""
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    last = np.ones(len(order), bool)
    np.not_equal(hashes[1:], hashes[:-1], out=last[:-1])
    return order[last]


def vacant_keys(sets: int) -> np.ndarray:
    """For each set a key of another set, int64[sets], which marks vacant ways and so is never found there.

    Thus any key is legal, and finding one needs no check whether the way is taken.
    """
    others = np.arange(64)
    elsewhere = others[set_of(mixed(others), sets) != 0]
    vacant = np.zeros(sets, np.int64)  # 0 belongs to set 0
    vacant[0] = elsewhere[0]
    return vacant
