"""Progress of a worker process: JSON lines on its original standard output."""

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
    """Reserve standard output for events, whatever libraries print, and exit when the parent process has ended."""
    global _out
    _out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    os.read(0, 1)  # a pipe that nobody writes to: it closes when the parent ends
    os._exit(1)


def emit(event: str, **fields: Any) -> None:
    """Send an event to the parent process."""
    _out.write(json.dumps({"event": event, **fields}) + "\n")


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Report the start of a step, and its seconds at the end."""
    emit("begin", step=step)
    started = time.perf_counter()
    yield
    emit("end", step=step, seconds=time.perf_counter() - started, peak_mb=peak_mb())


def peak_mb() -> float:
    """Peak memory of this process; psutil does not report it on Linux, and Merlin's environment has no psutil."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss, VmHWM does not start at the parent's memory
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
