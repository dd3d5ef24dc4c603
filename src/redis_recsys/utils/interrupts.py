"""Ctrl-C and SIGTERM that end a command within a second, however unlucky the moment.

Python runs a signal's handler between two of its own instructions, or when the signal interrupts a system call. A
signal that arrives after the instruction and just before the call (say, between a connection and the wait for its
answer) is noted, and then forgotten until that call returns by itself. An exception that the handler raises inside a
destructor or a callback is printed and lost; one raised in an import that C code asks for may be taken for a missing
library. Here a thread interrupts the call in the first case, and raises the exception again in the others.

An interrupted command tidies up, and that may wait, too: for an answer of a Redis that hangs, for a thread that waits
for it, for a child process. The same thread lets tidying work for as long as it takes, and interrupts its waits by
further signals once they have taken ``TIDYING_SECONDS``, as a user who presses Ctrl-C again and again would.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM)
NUDGE = signal.SIGURG  # interrupts a system call and means nothing else; PyArrow and Polars take SIGINT over at times
SWALLOWED = 0  # no signal has this number
FIRST_SECONDS = 0.05  # until a signal that is not taken is sent again
# And until it is sent once more: gRPC looks for signals when a wait of 200 ms is over, and begins that anew whenever a
# signal breaks it off.
AGAIN_SECONDS = 0.3
TIDYING_SECONDS = 0.6  # from the first signal on, until waits are broken off
WAIT_SECONDS = 0.1  # that a wait may take from then on
WORKING_SECONDS = 0.002  # of the processor within WAIT_SECONDS, from which on it is no wait

_unhurried = 0


class Interrupted:
    """Whether a signal has come.

    Attributes:
        happened: true from the first signal on.
    """

    happened = False


@contextmanager
def unhurried() -> Iterator[None]:
    """Let what tidies up wait in the block for as long as it needs, to save data. A further signal ends it."""
    global _unhurried
    _unhurried += 1
    try:
        yield
    finally:
        _unhurried -= 1


@contextmanager
def interruptible() -> Iterator[Interrupted]:
    """Make SIGINT and SIGTERM raise KeyboardInterrupt in the block, which must run in the main thread.

    Code in the block that catches it must end the block, not go on: it is raised again then. What tidies up meanwhile
    may be interrupted while it waits, and must go on with its next step.

    Yields:
        An object that tells whether a signal has come, whatever became of its exception.
    """
    received, noted = socket.socketpair()
    noted.setblocking(False)
    taken = threading.Event()
    main = threading.main_thread()
    interrupted = Interrupted()
    in_hook = again = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal again
        if number in ENDING or again:
            interrupted.happened = True
            if not in_hook:
                again = False
                taken.set()
                raise KeyboardInterrupt

    def send_until_taken() -> None:
        assert main.ident is not None
        pause = FIRST_SECONDS
        while not taken.wait(pause):
            signal.pthread_kill(main.ident, NUDGE)
            pause = AGAIN_SECONDS

    def see_through() -> None:
        nonlocal again
        waits, missed, hurry = _Waits(main), 0, 0.0
        while True:
            try:
                numbers = set(received.recv(4096))
            except TimeoutError:
                missed = 0 if _handles_interrupt(main) else missed + 1
                if (waits() and time.monotonic() > hurry and not _unhurried) or missed > 1:
                    missed = 0
                    taken.clear()
                    again = True
                    send_until_taken()
                continue
            if not numbers:
                return
            if numbers & {*ENDING, SWALLOWED}:
                again = again or SWALLOWED in numbers
                send_until_taken()
                hurry = hurry or time.monotonic() + TIDYING_SECONDS
                received.settimeout(WAIT_SECONDS)

    def unraisable(event: sys.UnraisableHookArgs) -> None:
        nonlocal in_hook
        if isinstance(event.exc_value, KeyboardInterrupt):
            in_hook = True
            taken.clear()
            noted.send(bytes([SWALLOWED]))
            in_hook = False
        else:
            hook(event)

    handlers = {number: signal.signal(number, interrupt) for number in (*ENDING, NUDGE)}
    wakeup = signal.set_wakeup_fd(noted.fileno(), warn_on_full_buffer=False)
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    thread = threading.Thread(target=see_through, name="sees interrupts through", daemon=True)
    thread.start()
    try:
        yield interrupted
    finally:
        taken.set()
        sys.unraisablehook = hook
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        noted.close()
        thread.join()
        received.close()


def _handles_interrupt(thread: threading.Thread) -> bool:
    """Whether a thread is on its way out: in what an exception of ours, or one that it led to, is handled by."""
    handled: Any = sys._current_exceptions().get(thread.ident or 0)
    error: BaseException | None = handled[1] if isinstance(handled, tuple) else handled  # a tuple before Python 3.12
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


class _Waits:
    """Whether a thread has done nothing but wait since the last look."""

    def __init__(self, thread: threading.Thread) -> None:
        assert thread.ident is not None
        self._clock = time.pthread_getcpuclockid(thread.ident) if hasattr(time, "pthread_getcpuclockid") else None
        self._state = Path(f"/proc/self/task/{thread.native_id}/stat")
        self._used = 0.0

    def __call__(self) -> bool:
        if self._clock is None:  # not told by this system: the user decides, by a further Ctrl-C
            return False
        before, self._used = self._used, time.clock_gettime(self._clock)
        if self._used - before > WORKING_SECONDS:
            return False
        # on a busy machine a thread may get none of the processor though it wants some
        return not self._state.exists() or self._state.read_text().rpartition(")")[2].split()[0] == "S"
