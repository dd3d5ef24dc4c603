"""Child processes end with their starter, politely if they can, and folders have one of them at a time."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from redis_recsys.embedded.process import FolderLock, kill, spawn, stop, watched, write_private

STARTER = """
import subprocess, sys, time
from redis_recsys.embedded.process import spawn, watched
child = spawn(watched(["sleep", "60"], "touch asked; kill -TERM $child"), subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(60)
"""
STUBBORN = "trap '' TERM; echo started > started; while :; do sleep 0.05; done"


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def group(leader: int) -> list[psutil.Process]:
    """Living processes of a group."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_a_child_ends_with_a_starter_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER], cwd=tmp_path, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        leader = int(starter.stdout.readline())
        until(lambda: "sleep" in {each.name() for each in group(leader)})
        starter.kill()
    until(lambda: not group(leader))
    assert (tmp_path / "asked").exists()


def test_stopping_asks_first_and_then_ends_whoever_does_not_listen(tmp_path: Path) -> None:
    polite = spawn(watched(["sleep", "60"], "echo asked > polite; kill -TERM $child"), subprocess.DEVNULL, tmp_path)
    began = time.monotonic()
    stop(polite, 20)
    assert (tmp_path / "polite").exists()
    assert time.monotonic() - began < 15
    for ask in (None, signal.SIGTERM):
        (tmp_path / "started").unlink(missing_ok=True)
        command: list[str | Path] = ["/bin/sh", "-c", STUBBORN]
        stubborn = spawn(command if ask else watched(command, "kill -TERM $child"), subprocess.DEVNULL, tmp_path)
        until((tmp_path / "started").exists)
        stop(stubborn, 0.3, ask)
        until(lambda leader=stubborn.pid: not group(leader))  # type: ignore[misc]
        stop(stubborn, 0.3, ask)  # again does no harm


def test_a_child_that_is_killed_takes_its_group_along(tmp_path: Path) -> None:
    child = spawn(["/bin/sh", "-c", "sleep 60 & sleep 60"], subprocess.DEVNULL, listen=True)
    until(lambda: len(group(child.pid)) == 3)
    kill(child)
    until(lambda: not group(child.pid))
    assert child.returncode == -signal.SIGKILL


def test_a_program_is_started_again_for_as_long_as_that_is_wanted(tmp_path: Path) -> None:
    command = watched(["/bin/sh", "-c", "echo >> runs; exit 7"], ":", again='[ "$(wc -l < runs)" -lt 3 ]')
    child = spawn(command, subprocess.DEVNULL, tmp_path)
    assert child.wait(20) == 7
    kill(child)
    assert (tmp_path / "runs").read_text() == "\n\n\n"


def test_a_folder_is_locked_for_as_long_as_a_child_holds_it(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path / "lock"), FolderLock(tmp_path / "lock")
    assert first.take()
    assert not second.take()
    child = spawn(["sleep", "60"], subprocess.DEVNULL, lock=first)
    first.release()
    first.release()
    assert not second.take()
    kill(child)
    assert second.take()
    second.release()


def test_a_private_file_is_its_owners_and_whole(tmp_path: Path) -> None:
    write_private(tmp_path / "state", "old")
    write_private(tmp_path / "state", "new")
    assert (tmp_path / "state").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
