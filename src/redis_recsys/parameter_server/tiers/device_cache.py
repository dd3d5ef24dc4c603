"""The first tier in the memory of a GPU: the embedding cache of HugeCTR's parameter server, in PyTorch.

:meth:`DeviceCache.gather` answers keys already on the device (a model's input) there, without the host waiting for
anything; the methods of ``cache.Cache`` take and return NumPy arrays. Fills come from other threads: all work on the
cache is serialised on the device, whatever streams the threads launch on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import torch

from .host_cache import FACTOR_1, FACTOR_2, HALF, PLACES, SHIFT_1, SHIFT_2, TOP, WAYS, Cache, vacant_keys


class DeviceCache(Cache):
    """A ``cache.Cache`` in the memory of a PyTorch device.

    Attributes:
        capacity, dim: see ``cache.Cache``.
        device: device that holds the rows.
        kernel: ``device_kernel.gather`` if it can run; if None, :meth:`gather` uses PyTorch's operations.
    """

    def __init__(
        self, capacity: int, dim: int, device: str | torch.device = "cuda", default: np.ndarray | None = None
    ) -> None:
        """
        Args:
            capacity: minimum number of rows; rounded up to whole sets, at least two.
            dim: length of a row.
            device: device that holds the rows; ``cpu`` is for tests.
            default: float32[dim], the row that :meth:`gather` returns for a missing key; zeros if None.
        """
        super().__init__(capacity, dim)  # versions are on the host, so that reading them does not wait
        self.device = torch.device(device)
        self._vacant = torch.from_numpy(vacant_keys(self._sets)).to(self.device)
        # One more set, to which no key belongs, holds the default row and a way that takes discarded writes.
        self._missing, self._nowhere = self.capacity, self.capacity + 1
        self._keys = torch.zeros(self._sets + 1, WAYS, dtype=torch.int64, device=self.device)
        self._keys[:-1] = self._vacant[:, None]
        self._used = torch.zeros(self._keys.numel(), dtype=torch.int64, device=self.device)
        self._rows = torch.zeros(self._keys.numel(), dim, device=self.device)
        self._cuda = self.device.type == "cuda"
        if default is not None:
            self._rows[self._missing] = self._sent(default)
        self.kernel: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None
        if self._cuda:
            self._done = torch.cuda.current_stream(self.device).record_event()
        if self._cuda and find_spec("triton") is not None:
            from .device_kernel import gather

            self.kernel = gather

    def gather(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather rows of keys on the device; the host does not wait for them. Rows found become the most recently used.

        Args:
            keys: int64[n] on the cache's device, repeats allowed.

        Returns:
            rows float32[n, dim], the default row where a key is missing, and whether each key is held, bool[n]; on
            the device, for use on the current stream.
        """
        with self._turn() as now:
            if self.kernel is not None:
                return self.kernel(keys, self._keys, self._used, self._rows, self._sets, now)
            slots, hits = self._slots(keys, self._device_sets(keys))
            slots = torch.where(hits, slots, self._missing)
            self._used.index_fill_(0, slots, now)
            return self._rows.index_select(0, slots), hits

    def find(self, keys: np.ndarray, out: np.ndarray) -> np.ndarray:
        """See ``cache.Cache``."""
        rows, hits = self.gather(self._sent(keys))
        held: np.ndarray = hits.cpu().numpy()
        received = torch.empty(rows.shape, pin_memory=self._cuda).copy_(rows).numpy()
        places = np.flatnonzero(held)
        out[places] = received.take(places, axis=0)
        return held

    def insert(self, keys: np.ndarray, rows: np.ndarray, versions: np.ndarray) -> None:
        """See ``cache.Cache``."""
        order, host_sets = self._sorted(keys)
        versions = versions[order]
        sets, new_keys, new_rows = self._sent(host_sets), self._sent(keys[order]), self._sent(rows[order])
        first = torch.searchsorted(sets, sets)
        with self._turn() as now:
            fresh = self._sent(self._versions[host_sets] == versions)
            slots, held = self._slots(new_keys, sets)
            slots = torch.where(held & fresh, slots, self._nowhere)
            self._used.index_fill_(0, slots, now)
            absent = fresh & ~held
            before = absent.cumsum(0) - absent.long()
            rank = before - before[first]
            oldest = self._used.view(-1, WAYS).index_select(0, sets).argsort(dim=1, stable=True)
            way = oldest.gather(1, rank.clamp(max=WAYS - 1)[:, None])[:, 0]
            chosen = sets * WAYS + way
            room = absent & (rank < WAYS) & (self._used[chosen] < now)
            slots = torch.where(room, chosen, slots)
            self._keys.view(-1).index_copy_(0, slots, new_keys)
            self._used.index_fill_(0, slots, now)
            self._rows.index_copy_(0, slots, new_rows)

    def update(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """See ``cache.Cache``."""
        order, host_sets = self._sorted(keys)
        sets, new_keys, new_rows = self._sent(host_sets), self._sent(keys[order]), self._sent(rows[order])
        with self._turn():
            self._versions[host_sets] += 1
            slots, held = self._slots(new_keys, sets)
            self._rows.index_copy_(0, torch.where(held, slots, self._nowhere), new_rows)

    def evict(self, keys: np.ndarray) -> None:
        """See ``cache.Cache``."""
        host_sets = self._sets_of(keys)
        sets, gone = self._sent(host_sets), self._sent(keys)
        with self._turn():
            self._versions[host_sets] += 1
            slots, held = self._slots(gone, sets)
            slots = torch.where(held, slots, self._nowhere)
            self._keys.view(-1).index_copy_(0, slots, self._vacant[sets])
            self._used.index_fill_(0, slots, 0)

    def clear(self) -> None:
        """See ``cache.Cache``."""
        with self._turn():
            self._versions += 1
            self._keys[:-1] = self._vacant[:, None]
            self._used.zero_()

    def __len__(self) -> int:
        with self._turn():
            held = self._used[: self.capacity].count_nonzero()
        return int(held)

    @property
    def nbytes(self) -> int:
        """See ``cache.Cache``."""
        tensors = (self._rows, self._keys, self._used, self._vacant)
        return sum(tensor.nbytes for tensor in tensors) + self._versions.nbytes

    @contextmanager
    def _turn(self) -> Iterator[int]:
        """Yield the time for one operation on the cache, which the device runs after all earlier ones."""
        with self._lock:
            self._clock += 1
            if not self._cuda:
                yield self._clock
                return
            with torch.cuda.device(self.device):
                stream = torch.cuda.current_stream()
                stream.wait_event(self._done)
                try:
                    yield self._clock
                finally:
                    self._done.record(stream)

    def _sent(self, array: np.ndarray) -> torch.Tensor:
        """Copy an array to the device. Only a copy from pinned memory does not wait for all work on the stream."""
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
        return tensor.pin_memory().to(self.device, non_blocking=True) if self._cuda else tensor

    def _device_sets(self, keys: torch.Tensor) -> torch.Tensor:
        """``cache.set_of(cache.mixed(keys), sets)``; PyTorch's shifts keep the sign, which is masked off."""
        x = keys ^ (keys >> int(SHIFT_1)) & (1 << 64 - int(SHIFT_1)) - 1
        x *= int(FACTOR_1.astype(np.int64))
        x ^= (x >> int(SHIFT_2)) & (1 << 64 - int(SHIFT_2)) - 1
        x *= int(FACTOR_2.astype(np.int64))
        return ((x >> int(HALF)) & (1 << int(HALF)) - 1) * self._sets >> int(HALF)

    def _slots(self, keys: torch.Tensor, sets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Slot of each key, int64[n] among all ways, and whether it is held, as in ``cache.HostCache``."""
        match = self._keys.index_select(0, sets) == keys[:, None]
        word = match.view(torch.int64)[:, 0]
        return sets * WAYS + (word * int(PLACES) >> int(TOP)), word != 0
