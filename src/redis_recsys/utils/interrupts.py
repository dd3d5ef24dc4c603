"""Ctrl-C and SIGTERM that end a command at any moment, however unlucky.

Python runs a signal's handler between two of its own instructions, or when the signal interrupts a system call. A
signal that arrives after the instruction and just before the call (say, between a connection and the wait for its
answer) is noted, and then forgotten until that call returns by itself. An exception that the handler raises inside a
destructor or a callback is printed and lost. Here a thread interrupts the call in the first case, and sends the signal
again in the second.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM)
NUDGE = signal.SIGURG  # interrupts a system call and means nothing else
SWALLOWED = 0  # no signal has this number
AGAIN_SECONDS = 0.05


@contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGINT and SIGTERM raise KeyboardInterrupt in the block, which must run in the main thread."""
    received, noted = socket.socketpair()
    noted.setblocking(False)
    taken = threading.Event()
    main = threading.get_ident()
    in_hook = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not in_hook:
            taken.set()
            raise KeyboardInterrupt

    def send_again() -> None:
        while numbers := received.recv(4096):
            if set(numbers) & {*ENDING, SWALLOWED}:
                number = signal.SIGINT if SWALLOWED in numbers else NUDGE
                while not taken.wait(AGAIN_SECONDS):
                    signal.pthread_kill(main, number)

    def unraisable(event: sys.UnraisableHookArgs) -> None:
        nonlocal in_hook
        if isinstance(event.exc_value, KeyboardInterrupt):
            in_hook = True
            taken.clear()
            noted.send(bytes([SWALLOWED]))
            in_hook = False
        else:
            hook(event)

    handlers = {number: signal.signal(number, interrupt) for number in ENDING}
    handlers[NUDGE] = signal.signal(NUDGE, lambda number, frame: None)
    wakeup = signal.set_wakeup_fd(noted.fileno(), warn_on_full_buffer=False)
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    thread = threading.Thread(target=send_again, name="sends signals again", daemon=True)
    thread.start()
    try:
        yield
    finally:
        taken.set()
        sys.unraisablehook = hook
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        noted.close()
        thread.join()
        received.close()
