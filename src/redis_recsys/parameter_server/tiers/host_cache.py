"""The first tier of the parameter server: the hot rows of one embedding table, in a cache of fixed size.

A lookup asks here first. Rows that are missing come from the tiers below and are put in afterwards, in the background;
an update writes through. The cache is set-associative: a key belongs to one set of eight ways, where it displaces the
least recently used row, so that a whole batch is found or put in by array operations. This is the plan of the embedding
cache of HugeCTR's hierarchical parameter server (Wei et al. 2022, "A GPU-specialized inference parameter server for
large-scale deep recommendation models").

:class:`HostCache` holds the rows in this process's memory; ``device_cache.DeviceCache`` holds them on a GPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from threading import Lock

import numpy as np

WAYS = 8  # rows a set holds; their keys fill one cache line
PIECE = 4096  # keys handled at a time, so that the lock is held briefly and what is at hand stays in the processor
SHIFT_1, SHIFT_2 = np.uint64(30), np.uint64(27)  # of splitmix64
FACTOR_1, FACTOR_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
HALF = np.uint64(32)
# Eight comparisons, of which one at most is true, are read as one integer: times this, its highest byte is the place.
PLACES, TOP = np.uint64(0x0001020304050607), np.uint64(56)


class Cache(ABC):
    """Rows of one embedding table by key. Every int64 is a legal key. Any number of threads may call any method.

    Attributes:
        capacity: rows there is room for, in whole sets.
        dim: length of a row.
    """

    def __init__(self, capacity: int, dim: int) -> None:
        """
        Args:
            capacity: rows there must be room for; rounded up to whole sets, two at least.
            dim: length of a row.
        """
        self._sets = max(-(-capacity // WAYS), 2)  # two at least, as vacant_keys needs
        self.capacity = self._sets * WAYS
        self.dim = dim
        self._lock = Lock()
        self._clock = 0
        self._versions = np.zeros(self._sets, np.int64)

    @abstractmethod
    def find(self, keys: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Copy the rows that are held, which makes them the most recently used.

        Args:
            keys: int64[n], repeated ones allowed.
            out: float32[n, dim]; receives the rows, and is left as it is where a key is missing.

        Returns:
            bool[n], whether each key is held.
        """

    def versions(self, keys: np.ndarray) -> np.ndarray:
        """What :meth:`insert` must be given: to be read before the rows are read from the tier below.

        Args:
            keys: int64[n].

        Returns:
            int64[n]; it differs once a key has been updated or evicted, and may where another of its set has.
        """
        sets = self._sets_of(keys)
        with self._lock:
            return self._versions[sets]

    @abstractmethod
    def insert(self, keys: np.ndarray, rows: np.ndarray, versions: np.ndarray) -> None:
        """Put rows in that were read from the tier below, but those that may have changed since.

        A key that is held is overwritten. Others displace the least recently used rows of their set, though none of
        the same call: what finds no room is left out. Of a repeated key, the last row counts.

        Args:
            keys: int64[n].
            rows: float32[n, dim].
            versions: int64[n], from :meth:`versions`.
        """

    @abstractmethod
    def update(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Overwrite the rows that are held, and put no others in; rows on their way to :meth:`insert` become void.

        To be called after the tiers below have the rows; then no old row comes back. Of a repeated key, the last row
        counts.

        Args:
            keys: int64[n].
            rows: float32[n, dim].
        """

    @abstractmethod
    def evict(self, keys: np.ndarray) -> None:
        """Forget keys, int64[n]; rows on their way to :meth:`insert` become void."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all keys; rows on their way to :meth:`insert` become void."""

    @abstractmethod
    def __len__(self) -> int:
        """Rows held."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all arrays, which do not depend on the rows held."""

    def _sets_of(self, keys: np.ndarray) -> np.ndarray:
        """int64[n]: the set of each key."""
        return set_of(mixed(keys), self._sets)

    def _sorted(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of the keys in the order of their sets, of a repeated one the last alone, and these sets."""
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
        self._used = np.zeros(self.capacity, np.int64)  # the clock at the last use, 0 of a vacant way
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
                found = np.flatnonzero(hits)
                slots = slots[found]
                out[found] = self._rows.take(slots, axis=0)
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
        """Put in rows of sorted sets, at the time ``now``."""
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
        """Where each key lies, int64[n] among all ways, and whether it does."""
        match = self._keys.take(sets, axis=0) == keys[:, None]
        word = match.view("<u8").ravel()
        place = word * PLACES
        place >>= TOP
        slots = place.view(np.int64)
        slots += sets * WAYS
        return slots, word != 0


def mixed(keys: np.ndarray) -> np.ndarray:
    """uint64[n]: each key int64[n] under a bijection that spreads it over the high bits.

    The finaliser of splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators") without
    its last step, which changes low bits alone.
    """
    x = keys.astype(np.uint64)
    x ^= x >> SHIFT_1
    x *= FACTOR_1
    x ^= x >> SHIFT_2
    x *= FACTOR_2
    return x


def set_of(hashes: np.ndarray, sets: int) -> np.ndarray:
    """int64[n]: the set, out of ``sets``, of each hash uint64[n]; it grows with the hash."""
    x = hashes >> HALF
    x *= np.uint64(sets)
    x >>= HALF
    return x.view(np.int64)


def ordered(hashes: np.ndarray) -> np.ndarray:
    """Positions that sort hashes uint64[n], and with them their sets; of equal ones, the last position alone."""
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    last = np.ones(len(order), bool)
    np.not_equal(hashes[1:], hashes[:-1], out=last[:-1])
    return order[last]


def vacant_keys(sets: int) -> np.ndarray:
    """int64[sets]: for each set a key of another set, which marks its vacant ways and so is never found there.

    Thus any key is legal, and finding one needs no look at whether the way is taken.
    """
    others = np.arange(64)
    elsewhere = others[set_of(mixed(others), sets) != 0]
    vacant = np.zeros(sets, np.int64)  # 0 belongs to set 0
    vacant[0] = elsewhere[0]
    return vacant
