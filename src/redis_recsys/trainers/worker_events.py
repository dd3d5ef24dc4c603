"""Progress of the worker: JSON lines on the standard output that the process was started with."""

from __future__ import annotations

import json
import os
import resource
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

_out: TextIO = sys.stdout


def take_over() -> None:
    """Keep standard output for events alone, whatever libraries print; end when the starter has ended."""
    global _out
    _out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=_end_with_starter, daemon=True).start()


def _end_with_starter() -> None:
    os.read(0, 1)  # from a pipe that nobody writes to: it ends when the starter does
    os._exit(1)


def emit(event: str, **fields: Any) -> None:
    """Tell the starter."""
    _out.write(json.dumps({"event": event, **fields}) + "\n")


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Tell when a step begins and how many seconds it took."""
    emit("begin", step=step)
    started = time.perf_counter()
    yield
    emit("end", step=step, seconds=time.perf_counter() - started, peak_mb=peak_mb())


def peak_mb() -> float:
    """Most memory that this process has held; psutil does not tell on Linux, and Merlin's environment has none."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss, this does not begin with the memory of the parent
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
