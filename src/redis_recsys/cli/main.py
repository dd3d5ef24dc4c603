"""Entry point of ``recsys``: every group of verbs, errors as one line, and the end after a signal."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

from ..embedded.process import end_descendants
from ..errors import RecsysError
from ..utils.interrupts import ENDING, Interrupted, interruptible
from .app import app

# In the order in which the help lists the verbs.
from . import check, offline, demo, online, perf  # noqa: F401  # isort: skip
from . import data, dlrm, dlrm_train, merlin, user, setup  # noqa: F401  # isort: skip

INTERRUPTED = 130  # what Typer exits with after Ctrl-C


def main() -> None:
    """Entry point: errors become one line and a non-zero exit code; SIGTERM tidies up like Ctrl-C."""
    atexit.register(_ignore_signals)  # the command has ended, and the interpreter takes its time to do so
    interrupted = Interrupted()
    try:
        with interruptible() as interrupted:
            app()
    except RecsysError as error:
        if not interrupted.happened:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        _leave(INTERRUPTED)
    except SystemExit as end:
        if interrupted.happened:
            _leave(INTERRUPTED if end.code else 0)
        if end.code == INTERRUPTED:
            print("error: interrupted", file=sys.stderr)
        raise
    except BaseException:
        if not interrupted.happened:
            raise
        _leave(INTERRUPTED)


def _leave(code: int) -> NoReturn:
    """End after a signal: all is tidy, and nothing waits for other threads or child processes any more."""
    _ignore_signals()
    end_descendants()
    with suppress(OSError, ValueError):  # nobody reads it any more
        sys.stdout.flush()
    if code:
        with suppress(OSError, ValueError):
            print("error: interrupted", file=sys.stderr, flush=True)
    os._exit(code)


def _ignore_signals() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
