"""Ctrl-C and SIGTERM at the moments at which Python by itself would lose them."""

from __future__ import annotations

import _thread
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from redis_recsys.utils.interrupts import interruptible

RECSYS = str(Path(sys.executable).with_name("recsys"))
RANDOM = random.Random(16)


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


def test_one_signal_interrupts_once() -> None:
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)  # for a second one to come


def test_afterwards_signals_are_handled_as_before() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGURG)}
    hook = sys.unraisablehook
    with interruptible():
        pass
    assert {number: signal.getsignal(number) for number in before} == before
    assert sys.unraisablehook is hook


@pytest.mark.parametrize("after", [RANDOM.uniform(0, 0.05) for _ in range(12)], ids="{:.4f}".format)
def test_ctrl_c_at_any_moment_of_a_wait_for_redis(after: float, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [RECSYS, "get", "1", "--host", "127.0.0.1", "--port", str(server.getsockname()[1])]
        variables = os.environ | {"RECSYS_REDIS_TIMEOUT": "60"}
        process = subprocess.Popen(command, cwd=tmp_path, env=variables, stderr=subprocess.PIPE, text=True)
        try:
            connection, _ = server.accept()
            time.sleep(after)
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=10)
            connection.close()
        finally:
            process.kill()
            process.communicate()
    assert (process.returncode, error) == (130, "error: interrupted\n")
