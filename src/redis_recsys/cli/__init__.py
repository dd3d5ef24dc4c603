"""The command line: one verb per step, in the order in which data flows.

Heavy libraries are imported inside the verb that needs them, so that ``recsys --help`` and ``recsys get`` are quick.
"""

from __future__ import annotations

import sys

from ..errors import RecsysError
from ..utils.interrupts import interruptible
from . import check, data, demo, dlrm, dlrm_train, merlin, offline, online, user
from . import perf as perf_analyzer
from .app import app

__all__ = [
    "check",
    "data",
    "demo",
    "dlrm",
    "dlrm_train",
    "main",
    "merlin",
    "offline",
    "online",
    "perf_analyzer",
    "user",
]

INTERRUPTED = 130  # what Typer exits with after Ctrl-C


def main() -> None:
    """Entry point: errors become one line and a non-zero exit code; SIGTERM tidies up like Ctrl-C."""
    try:
        with interruptible():
            app()
    except RecsysError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("error: interrupted", file=sys.stderr)
        raise
