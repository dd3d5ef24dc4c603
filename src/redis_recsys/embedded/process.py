"""Child processes that end with their starter, and the folders in which they run one at a time.

A child's standard input is a pipe that nobody writes to, whose write end only the starter has: it closes when the
starter ends, however that happens. Programs of others run under a small shell that reads it, see :func:`watched`;
processes of our trainers read it themselves, see ``trainers.worker_events``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from ..utils.interrupts import unhurried

LOOK_SECONDS = 0.02  # between looks whether a child that was asked to end has ended


def spawn(
    command: Sequence[str | Path],
    log: IO[bytes] | int,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    lock: FolderLock | None = None,
    listen: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a child in a process group of its own, so that Ctrl-C in the terminal is for the starter alone.

    Args:
        command: program and arguments; those of others go through :func:`watched`.
        log: file for what it writes.
        folder: working directory; None: the starter's.
        environment: variables of the child; None: the starter's.
        lock: lock that the child is to hold, too.
        listen: whether standard output is a pipe to the starter rather than the log.
    """
    held = lock.descriptor if lock is not None else None
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if listen else log,
        stderr=log,
        start_new_session=True,
        pass_fds=() if held is None else (held,),
    )


def watched(
    command: Sequence[str | Path], when_starter_ends: str, afterwards: str = ":", again: str = "false"
) -> list[str | Path]:
    """A command under a shell that outlives the starter for as long as it takes to end the command.

    Args:
        command: program and arguments.
        when_starter_ends: shell commands that end the program, whose process is ``$child``.
        afterwards: shell commands for when the program has ended, with the exit code ``$code``.
        again: shell commands that succeed if the program has to be started again then.
    """
    script = f"""
exec 3<&0
while
  "$@" 3<&- &
  child=$!
  {{ read -r _ <&3; {when_starter_ends}; }} 2>/dev/null &
  watcher=$!
  wait $child
  code=$?
  {afterwards}
  kill $watcher 2>/dev/null
  wait $watcher 2>/dev/null
  {again}
do sleep 0.3; done
exit $code
"""
    return ["/bin/sh", "-c", script, "sh", *command]


def stop(
    process: subprocess.Popen[bytes],
    seconds: float,
    ask: signal.Signals | None = None,
    saves: bool = False,
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Stop a child: first politely, and for certain after so many seconds, or when interrupted. No process of its
    group is left.

    Args:
        process: child from :func:`spawn`; may have ended.
        seconds: time to end by itself.
        ask: signal that asks it to; None: its standard input closes, as when the starter ends.
        saves: whether it saves data before it ends, so that only a second Ctrl-C cuts that time short.
        enough: whether all is done that is worth waiting for, although the child has not ended yet.
    """
    assert process.stdin is not None
    try:
        if ask is None:
            process.stdin.close()
        elif process.poll() is None:
            process.send_signal(ask)
        deadline = time.monotonic() + seconds
        with unhurried() if saves else contextlib.nullcontext():
            while process.poll() is None and not enough() and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a child, all of its group and all that they have started at once, as a crash would."""
    below = _descendants(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    _kill_each(below)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def end_descendants() -> None:
    """Kill every process below this one: those of a child, too, of which a signal has kept its starter from knowing."""
    _kill_each(_descendants(os.getpid()))


def _kill_each(processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _descendants(ancestor: int) -> list[int]:
    """Processes that a process has started, and those that these have; none where the system has no /proc."""
    children = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children[parent].append(int(path.parent.name))
    found = [ancestor]
    for process in found:
        found += children[process]
    return found[1:]


class FolderLock:
    """A lock on a file, held by whoever has its descriptor: this process, and children that inherit it.

    Attributes:
        descriptor: descriptor of the locked file; None while this process does not hold it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.descriptor: int | None = None

    def take(self) -> bool:
        """Take the lock; False where another process holds it.

        Raises:
            OSError: the file cannot be opened.
        """
        with open(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self.descriptor = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 10)  # shells use the single-digit ones
            return True

    def release(self) -> None:
        """Give the lock up; children that inherited it go on holding it."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def write_private(path: Path, text: str) -> None:
    """Write a file that may hold a password: readable by its owner only, and never seen half-written."""
    aside = path.with_name(f".{path.name}.new")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    aside.rename(path)
