"""Ctrl-C and SIGTERM at the moments at which Python by itself would lose them."""

from __future__ import annotations

import _thread
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import pytest
import redis

from redis_recsys.embedded.process import FolderLock
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.utils.interrupts import interruptible, unhurried
from tests.support.interrupts import (
    Kind,
    SilentServer,
    by_hanging,
    by_silence,
    dlrm_model,
    hanging,
    interrupt,
    leftovers,
)
from tests.support.planted import Trained

BOUND = 10.0  # seconds; on a machine with nothing else to do it is one, as tests.interrupts_at_random shows
AT_ONCE = 4  # commands, which mostly wait


def signalled(number: int, wait: Callable[[], object]) -> None:
    """Note a signal once the main thread waits, without interrupting anything: as if it had come just before."""
    threading.Timer(0.2, _thread.interrupt_main, [number]).start()
    wait()


@pytest.fixture
def silent() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection on which nobody sends anything."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(30)
        yield ours, theirs


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_came_just_before_a_wait_ends_it(
    silent: tuple[socket.socket, socket.socket], number: int
) -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), interruptible():
        signalled(number, lambda: silent[0].recv(1))
    assert time.monotonic() - began < 10


def test_a_signal_whose_exception_was_swallowed_comes_again(silent: tuple[socket.socket, socket.socket]) -> None:
    class Waiting:
        def __del__(self) -> None:
            silent[0].recv(1)

    def wait_twice() -> None:
        Waiting()
        silent[0].recv(1)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), interruptible():
        signalled(signal.SIGINT, wait_twice)
    assert time.monotonic() - began < 10


def wait(seconds: float) -> None:
    """Wait in a way that only a signal ends early."""
    threading.Event().wait(seconds)


def test_an_exception_that_was_swallowed_while_nothing_waits_comes_again() -> None:
    began = time.monotonic()

    def swallow() -> None:
        with suppress(KeyboardInterrupt):  # as the import of a library may do
            os.kill(os.getpid(), signal.SIGINT)
            wait(30)
        while time.monotonic() < began + 30:
            pass

    with pytest.raises(KeyboardInterrupt), interruptible() as interrupted:
        swallow()
    assert interrupted.happened
    assert time.monotonic() - began < 10


def test_one_signal_interrupts_once_what_tidies_up() -> None:
    tidy = []

    def tidy_up() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            wait(30)
        finally:
            began = time.process_time()
            while time.process_time() < began + 1.5:
                pass
            with unhurried():
                wait(1)
            tidy.append(True)

    with pytest.raises(KeyboardInterrupt), interruptible():
        tidy_up()
    assert tidy


def test_tidying_up_that_waits_too_long_is_broken_off_step_by_step() -> None:
    steps: list[int] = []
    began = time.monotonic()

    def tidy_up() -> None:
        with ExitStack() as stack:
            for step in range(3):
                stack.callback(wait, 30)
                stack.callback(steps.append, step)
            os.kill(os.getpid(), signal.SIGTERM)
            wait(30)

    with pytest.raises(KeyboardInterrupt), interruptible():
        tidy_up()
    assert steps == [2, 1, 0]
    assert time.monotonic() - began < 10


def test_a_second_signal_ends_tidying_up_that_saves_data() -> None:
    began = time.monotonic()

    def save() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            wait(30)
        finally:
            threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
            with unhurried():
                wait(30)

    with pytest.raises(KeyboardInterrupt), interruptible():
        save()
    assert time.monotonic() - began < 10


def test_afterwards_signals_are_handled_as_before() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGURG)}
    hook = sys.unraisablehook
    with interruptible():
        pass
    assert {number: signal.getsignal(number) for number in before} == before
    assert sys.unraisablehook is hook


# Commands


@pytest.fixture(scope="module")
def silent_server() -> Iterator[SilentServer]:
    with SilentServer() as server:
        yield server


def interrupted_at_random(kind: Kind, folder: Path) -> list[str]:
    """Interrupt a command twelve times, at moments of its own each; returns what was wrong and what is left."""

    def once(number: int) -> str | None:
        own = folder / str(number)
        own.mkdir()
        fault = interrupt(kind, own, Random(number)).fault(kind, BOUND)
        return fault or (f"left {left}" if (left := leftovers(own)) else None)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [fault for fault in pool.map(once, range(12)) if fault is not None]


@pytest.mark.parametrize(
    "name",
    ["get", "event --wait", "consume", "deploy", "serve", "recommend", "data movielens", "data pull", "dlrm load"],
)
def test_a_command_that_waits_for_a_server_ends_at_any_moment(
    name: str, silent_server: SilentServer, trained: Trained, tmp_path: Path
) -> None:
    kinds = by_silence(silent_server.port, trained.bundle.path, dlrm_model(tmp_path))
    assert not interrupted_at_random(kinds[name], tmp_path)


def test_a_command_that_waits_for_a_process_ends_at_any_moment(trained: Trained, tmp_path: Path) -> None:
    kinds = by_hanging(hanging(tmp_path / "environment"), trained.dataset.path, dlrm_model(tmp_path))
    assert not interrupted_at_random(kinds["train, merlin"], tmp_path)


def test_a_command_that_waits_for_a_lock_ends_at_any_moment(
    use_server: redis.Redis, server: EmbeddedRedis, trained: Trained, tmp_path: Path
) -> None:
    redis_of = {"RECSYS_REDIS_HOST": server.host, "RECSYS_REDIS_PORT": f"{server.port}"}
    variables = redis_of | {"RECSYS_REDIS_PASSWORD": server.password}
    use_server.set("recs:lock", "somebody who died", px=600_000)  # waited for until it runs out
    assert not interrupted_at_random(Kind(("batch", str(trained.bundle.path)), variables), tmp_path)
    assert use_server.get("recs:lock") == b"somebody who died"


def test_a_command_that_waits_for_a_locked_folder_ends_at_any_moment(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    lock = FolderLock(folder / "server.lock")
    assert lock.take()  # as by a server that starts and starts
    try:
        assert not interrupted_at_random(Kind(("get", "1"), {"RECSYS_REDIS_FOLDER": str(folder)}), tmp_path)
    finally:
        lock.release()


def test_a_command_with_a_redis_of_its_own_ends_at_any_moment(tmp_path: Path) -> None:
    assert not interrupted_at_random(Kind(("event", "1", "2", "click", "--wait"), within=2), tmp_path)
