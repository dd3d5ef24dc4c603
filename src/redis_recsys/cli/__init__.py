"""The command line: one verb per step, in the order in which data flows.

Heavy libraries are imported inside the verb that needs them, so that ``recsys --help`` and ``recsys get`` are quick.
"""

from __future__ import annotations

import sys

from ..errors import RecsysError
from ..utils.interrupts import interruptible
from .app import app

# In the order in which the help lists the verbs.
from . import check, offline, demo, online  # isort: skip
from . import perf as perf_analyzer  # isort: skip
from . import data, dlrm, dlrm_train, merlin, user, setup  # isort: skip

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
    "setup",
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
