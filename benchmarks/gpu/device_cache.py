"""Rows per second of the parameter server's first tier, and the share of memory bandwidth they use.

On a GPU, the same run also measures the card's own copy and PyTorch's ``index_select`` of the same rows; without one,
it measures the caches on the CPU. The table of the rows is far larger than any cache of the chip.

    python -m benchmarks.gpu.device_cache          # a table
    python -m benchmarks.gpu.device_cache --json   # the same as JSON
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.measure import machine
from redis_recsys.parameter_server.tiers.device_cache import DeviceCache
from redis_recsys.parameter_server.tiers.host_cache import Cache, HostCache

DIM = 128
RATES = (1.0, 0.9)
GPU_BATCHES = (26, 1664, 26_624, 262_144, 1_048_576)
HOST_BATCHES = (26, 1664, 26_624)
GPU_ROWS, CPU_ROWS = 4_000_000, 500_000
GPU_WORK, CPU_WORK = 4_000_000, 200_000  # maximum rows between two readings of the clock
CALLS = 200  # maximum calls between two readings of the clock
INPUTS = 8  # batches used in rotation, so that no run finds the previous one's rows in the chip's cache
REPEATS = 15

Call = Callable[[int], object]  # of the number of a batch


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    as_json = parser.parse_args().json
    found = on_gpu() if torch.cuda.is_available() else on_cpu()
    print(json.dumps(found, indent=2) if as_json else table(found))


def on_gpu() -> dict[str, Any]:
    """:meth:`DeviceCache.gather` with its kernel and without, beside a plain copy and ``index_select``."""
    cache = DeviceCache(GPU_ROWS, DIM)
    kernel = cache.kernel
    held, absent = filled(cache, GPU_ROWS)
    rows = torch.randn(GPU_ROWS, DIM, device="cuda")
    copied = 2 * rows.nbytes / gpu_seconds(partial(_copy, torch.empty_like(rows), rows), 4)
    measured: list[dict[str, Any]] = []
    for batch in GPU_BATCHES:
        calls = calls_for(batch, GPU_WORK)
        places = [torch.randint(GPU_ROWS, (batch,), device="cuda") for _ in range(INPUTS)]
        seconds = gpu_seconds(over(partial(rows.index_select, 0), places), calls)
        measured.append(entry("index_select", batch, 1.0, seconds, copied))
        for rate in RATES:
            keys = batches(held, absent, batch, rate)
            on_device = [torch.from_numpy(k).cuda() for k in keys]
            for name, cache.kernel in (("kernel", kernel), ("operations", None)):
                seconds = gpu_seconds(over(cache.gather, on_device), calls)
                measured.append(entry(f"gather ({name})", batch, rate, seconds, copied))
            cache.kernel = kernel
            if batch in HOST_BATCHES:
                seconds = host_seconds(over(partial(_find, cache), keys), calls_for(batch, CPU_WORK))
                measured.append(entry("find (from and to the host)", batch, rate, seconds, copied))
    return result(torch.cuda.get_device_name(), cache, copied, measured)


def on_cpu() -> dict[str, Any]:
    """``find`` of both caches, beside a plain copy."""
    source = np.random.default_rng(0).standard_normal((CPU_ROWS, DIM), np.float32)
    copied = 2 * source.nbytes / host_seconds(partial(_copy, torch.zeros(CPU_ROWS, DIM), torch.from_numpy(source)), 1)
    caches: dict[str, Cache] = {
        "HostCache": HostCache(CPU_ROWS, DIM),
        "DeviceCache (cpu)": DeviceCache(CPU_ROWS, DIM, "cpu"),
    }
    measured: list[dict[str, Any]] = []
    for name, cache in caches.items():
        held, absent = filled(cache, CPU_ROWS)
        for batch in HOST_BATCHES:
            for rate in RATES:
                keys = batches(held, absent, batch, rate)
                seconds = host_seconds(over(partial(_find, cache), keys), calls_for(batch, CPU_WORK))
                measured.append(entry(name, batch, rate, seconds, copied))
    return result("no GPU here: the processor", caches["HostCache"], copied, measured)


def result(device: str, cache: Cache, copied: float, measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the measurements and a description of the machine."""
    return {
        "device": device,
        "torch": torch.__version__,
        "machine": machine(),
        "dim": DIM,
        "capacity": cache.capacity,
        "copy_gb_per_s": round(copied / 1e9, 1),
        "measured": measured,
    }


def filled(cache: Cache, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill the cache with random keys; return held keys and as many absent ones."""
    keys = np.unique(np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 2 * count))
    parts = np.array_split(keys, 16)
    rows = np.random.default_rng(2).standard_normal((len(parts[0]), DIM), np.float32)
    for part in parts:
        put = part[::2]
        cache.insert(put, rows[: len(put)], cache.versions(put))
    hit = np.concatenate([cache.find(part, rows[: len(part)]) for part in parts])
    random = np.random.default_rng(3)
    return random.permutation(keys[hit]), random.permutation(keys[~hit])


def batches(held: np.ndarray, absent: np.ndarray, batch: int, rate: float) -> list[np.ndarray]:
    """Batches int64[batch] of distinct keys, of which the cache holds the share ``rate``."""
    random = np.random.default_rng(batch)
    found = round(batch * rate)
    return [
        random.permutation(np.concatenate([random.choice(held, found), random.choice(absent, batch - found)]))
        for _ in range(INPUTS)
    ]


def over(work: Callable[[Any], object], inputs: list[Any]) -> Call:
    """Work on the input with a given number."""
    return lambda number: work(inputs[number])


def calls_for(batch: int, work: int) -> int:
    """Number of calls between two readings of the clock."""
    return min(max(work // batch, 1), CALLS)


def gpu_seconds(call: Call, calls: int) -> float:
    """Median seconds per call of many launched one after another, by the device's own clock."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def measure() -> float:
        start.record()
        for i in range(calls):
            call(i % INPUTS)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls

    return median(measure)


def host_seconds(call: Call, calls: int) -> float:
    """Median seconds per call."""

    def measure() -> float:
        started = time.perf_counter()
        for i in range(calls):
            call(i % INPUTS)
        return (time.perf_counter() - started) / calls

    return median(measure)


def median(measure: Callable[[], float]) -> float:
    """Median of several measurements, after two for warm-up."""
    return statistics.median([measure() for _ in range(REPEATS + 2)][2:])


def _copy(into: torch.Tensor, source: torch.Tensor, _: int) -> None:
    into.copy_(source)


def _find(cache: Cache, keys: np.ndarray) -> None:
    cache.find(keys, np.empty((len(keys), cache.dim), np.float32))


def entry(what: str, batch: int, rate: float, seconds: float, copied: float) -> dict[str, Any]:
    """One line of the result; the bandwidth counts only the rows of hits, read once and written once."""
    bandwidth = batch * rate * DIM * 4 * 2 / seconds
    return {
        "what": what,
        "batch": batch,
        "hit_rate": rate,
        "microseconds": round(seconds * 1e6, 1),
        "rows_per_s": round(batch / seconds),
        "gb_per_s": round(bandwidth / 1e9, 1),
        "of_copy": round(bandwidth / copied, 3),
    }


def table(found: dict[str, Any]) -> str:
    """Render the result as text."""
    head = (
        f"{found['device']}, torch {found['torch']}: a cache of {found['capacity']:,} rows of {found['dim']} floats; "
        f"a plain copy moves {found['copy_gb_per_s']:,} GB/s",
        f"{'':28}{'batch':>10}{'hits':>6}{'µs':>11}{'rows/s':>16}{'GB/s':>9}{'of copy':>9}",
    )
    lines = (
        f"{m['what']:28}{m['batch']:>10,}{m['hit_rate']:>6.0%}{m['microseconds']:>11,.1f}{m['rows_per_s']:>16,}"
        f"{m['gb_per_s']:>9,.1f}{m['of_copy']:>9.1%}"
        for m in found["measured"]
    )
    return "\n".join((*head, *lines))


if __name__ == "__main__":
    main()
