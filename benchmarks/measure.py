"""Shared parts of the benchmarks: description and speed of the machine, and child processes with known peak memory."""

from __future__ import annotations

import multiprocessing
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from redis_recsys.trainers.worker_events import peak_mb
from redis_recsys.utils.machine import cores

FOLDER = Path("data/bench")


def machine() -> dict[str, Any]:
    """Processor, cores, memory and Python of this machine."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def matmul_rate(repeats: int = 7) -> float:
    """Float32 operations per second of a large matrix product on all cores: the best rate of this machine."""
    random = np.random.default_rng(0)
    a = random.standard_normal((4096, 1024), np.float32)
    b = random.standard_normal((1024, 4096), np.float32)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * 4096 * 1024 * 4096 / min(seconds)


def in_child(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run ``work`` in a fresh process and add ``peak_mb``, the peak memory of that process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result: dict[str, Any] = pool.apply(_with_peak, (work, arguments))
        pool.close()
        pool.join()
        return result


def _with_peak(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    return work(*arguments) | {"peak_mb": peak_mb()}
