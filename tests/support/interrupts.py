"""Commands interrupted at a moment drawn at random, against servers that accept connections and never answer."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from tests.support.paths import ROOT

RECSYS = str(Path(sys.executable).with_name("recsys"))
MARK = "MARK_OF_INTERRUPTED_COMMAND"  # variable by which a command's processes are found, whoever is their parent
ENDING = (signal.SIGINT, signal.SIGTERM)
LEFT_SECONDS = 2.0  # until processes that were killed are gone


class SilentServer:
    """A server on loopback that accepts connections, reads what is sent, and never answers.

    Attributes:
        port: that it listens at.
    """

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._accepted: list[socket.socket] = []
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def _accept(self) -> None:
        with suppress(OSError):  # when it is closed
            while True:
                self._accepted.append(self._listening.accept()[0])

    def __enter__(self) -> SilentServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for connection in self._accepted:
            connection.close()


@dataclass(frozen=True)
class Kind:
    """A command to be interrupted.

    Attributes:
        arguments: of ``recsys``.
        variables: of its environment.
        within: seconds, after the command can be interrupted, from which the moment is drawn.
        begun: what must hold before that; by default nothing.
        code: that it ends with.
        ends: whether it may end by itself meanwhile, in a way of its own.
    """

    arguments: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    within: float = 1.0
    begun: Callable[[], bool] = lambda: True
    code: int = 130
    ends: bool = False


@dataclass(frozen=True)
class Ended:
    """How an interrupted command ended.

    Attributes:
        after: seconds at which the signal was sent, after the command could be interrupted.
        seconds: from the signal to the end of the process; None if it had ended before.
        code: its exit code.
        err: its error stream.
        processes: command lines of processes that it left.
    """

    after: float
    seconds: float | None
    code: int
    err: str
    processes: list[str]

    def fault(self, kind: Kind, seconds: float) -> str | None:
        """Fault of the outcome, if it may take so many seconds; None if there is none."""
        if self.processes:
            return f"left {self.processes}: {self.err[:2500]}"
        if self.seconds is None:
            return None
        if self.seconds > seconds:
            return f"took {self.seconds:.1f} s: {self.err[-1000:]}"
        if kind.ends and self.code in (0, 1) and "Traceback" not in self.err:
            return None
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        wanted = ["error: interrupted"] if self.code else []
        if self.code not in (kind.code, 130) or lines != wanted or "Traceback" in self.err:
            return f"ended with {self.code}: {self.err[-2000:]}"
        return None


def interrupt(kind: Kind, folder: Path, random: Random, patience: float = 20.0) -> Ended:
    """Run a command in a folder, send it SIGINT or SIGTERM at a random moment, and wait for its end."""
    mark, number = secrets.token_hex(8), random.choice(ENDING)
    own = {name: value for name, value in os.environ.items() if not name.startswith("RECSYS_")}
    variables = own | {"PYTHONFAULTHANDLER": "1", MARK: mark} | kind.variables
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen([RECSYS, *kind.arguments], cwd=folder, env=variables, stdout=out, stderr=err)
    after, began = random.uniform(0, kind.within), None
    try:
        while process.poll() is None and not (_catches(process.pid) and kind.begun()):
            time.sleep(0.001)
        time.sleep(after)
        if process.poll() is None:
            began = time.monotonic()
            process.send_signal(number)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)  # on which Python says what its threads do
                process.wait()
        took = None if began is None else time.monotonic() - began
        until = time.monotonic() + LEFT_SECONDS
        while (left := _marked(mark)) and time.monotonic() < until:
            time.sleep(0.02)
        return Ended(after, took, process.returncode, (folder / "err").read_text(errors="replace"), list(left.values()))
    finally:
        for pid in (process.pid, *_marked(mark)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _catches(pid: int) -> bool:
    """Whether a process has its own handler of SIGTERM by now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    except (OSError, StopIteration):
        return False
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def _marked(mark: str) -> dict[int, str]:
    """Processes with this value of the variable, and their command lines."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                words = path.with_name("cmdline").read_bytes().split(b"\0")
                found[int(path.parent.name)] = b" ".join(words).decode(errors="replace")[:200]
    return found


def hanging(folder: Path) -> Path:
    """A program that never ends by itself, nor when it is asked to, with the name and place of a Python environment's
    interpreter; returns the environment."""
    program = folder / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\ntrap '' INT TERM\nwhile true; do sleep 1; done\n")
    program.chmod(0o755)
    return folder


def dlrm_model(folder: Path) -> Path:
    """Write a small DLRM below a folder, with made-up weights; returns its ``ps.json``."""
    from redis_recsys.dlrm.configure import Place, configure
    from redis_recsys.hugectr import dense, network, sparse
    from redis_recsys.utils.output_kinds import DENSE, NETWORK, SPARSE

    model, shape, random = (
        folder / "dlrm",
        network.DlrmShape(13, (20,) * 26, 8, (16, 8), (16, 1)),
        np.random.default_rng(0),
    )
    network.write(model / NETWORK, shape)
    layers = [(random.standard_normal(size, np.float32), np.zeros(size[1], np.float32)) for size in shape.layers()]
    dense.write(model / DENSE, layers)
    count = sum(shape.slot_sizes)
    sparse.write(model / SPARSE, [(np.arange(count), np.zeros((count, 8), np.float32))])
    keys = random.integers(0, 20, (30, 26)) + np.array(shape.offsets())
    np.savez(model / "sample.npz", dense=random.random((30, 13), np.float32), keys=keys)
    return configure(model, Place(), 0.2)


def leftovers(folder: Path) -> list[str]:
    """Remains of half-made outputs below a folder."""
    signs = (".writing-", ".old-", ".lock", ".job-", ".movielens-", ".recbole-")
    return [str(path.relative_to(folder)) for path in folder.rglob(".*") if any(sign in path.name for sign in signs)]


def by_silence(port: int, bundle: Path, ps: Path) -> dict[str, Kind]:
    """Commands that wait for a server which never answers, by name."""
    redis = {"RECSYS_REDIS_HOST": "127.0.0.1", "RECSYS_REDIS_PORT": f"{port}", "RECSYS_REDIS_TIMEOUT": "60"}
    triton = {"RECSYS_TRITON_HOST": "127.0.0.1", "RECSYS_TRITON_GRPC_PORT": f"{port}", "RECSYS_TRITON_TIMEOUT": "60"}
    s3 = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    proxy = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), f"http://127.0.0.1:{port}")
    lookup = redis | {"RECSYS_LOOKUP_TIMEOUT": "60"}
    return {
        "check": Kind(("check",), redis),
        "get": Kind(("get", "1"), redis),
        "batch": Kind(("batch", str(bundle)), redis, 2),
        "deploy": Kind(("deploy", str(bundle)), redis, 2),
        "event --wait": Kind(("event", "1", "2", "click", "--wait"), redis),
        "consume": Kind(("consume",), redis, 2),
        "serve": Kind(("serve",), redis, 2),
        "recommend": Kind(("recommend", "1"), triton),
        "data movielens": Kind(("data", "movielens"), proxy, 2),
        "data pull": Kind(("data", "pull", "s3://bucket/asset", "asset"), s3 | {"AWS_DEFAULT_REGION": "eu-west-1"}, 2),
        "dlrm load": Kind(("dlrm", "load", str(ps)), lookup, 2),
        "dlrm serve": Kind(("dlrm", "serve", str(ps)), lookup, 2),
        "dlrm infer": Kind(("dlrm", "infer", str(ps.parent)), triton, 2),
    }


def by_hanging(environment: Path, dataset: Path, ps: Path) -> dict[str, Kind]:
    """Commands that wait for a process which never answers and never ends, by name."""
    serving, merlin = {"RECSYS_TRITON_ENVIRONMENT": f"{environment}"}, {"RECSYS_MERLIN_ENVIRONMENT": f"{environment}"}
    return {
        "train, merlin": Kind(("train", str(dataset), "--trainer", "merlin", "--out", "bundle"), merlin, 2),
        "dlrm serve, environment": Kind(("dlrm", "serve", str(ps)), serving, 6),
    }


def with_servers(bundle: Path, dataset: Path, criteo: Path, ps: Path) -> dict[str, Kind]:
    """Commands with real servers and workers of their own, by name."""
    cluster = {"RECSYS_LOOKUP_CLUSTER": "cluster"}
    serving = {"RECSYS_TRITON_ENVIRONMENT": f"{ROOT / '.venv-serving'}", "RECSYS_DEPLOY_FEAST": "false"}
    merlin = {"RECSYS_MERLIN_ENVIRONMENT": f"{ROOT / '.venv-merlin'}"}
    ports = {f"RECSYS_TRITON_{name}_PORT": "0" for name in ("GRPC", "HTTP", "METRICS")}
    return {
        "get": Kind(("get", "1"), {}, 1, ends=True),
        "event --wait": Kind(("event", "1", "2", "click", "--wait"), {}, 3),
        "consume": Kind(("consume",), {}, 3, code=0),
        "batch": Kind(("batch", str(bundle), "--block", "1"), {}, 4, ends=True),
        "deploy": Kind(("deploy", str(bundle)), {}, 8, ends=True),
        "serve": Kind(("serve", "--wait"), serving | ports, 3, code=0),
        "evaluate": Kind(("evaluate", str(bundle), "--dataset", str(dataset)), {}, 4, ends=True),
        "train": Kind(("train", str(dataset), "--out", "bundle"), {}, 8, ends=True),
        "train, merlin": Kind(("train", str(dataset), "--trainer", "merlin", "--out", "bundle"), merlin, 25),
        "dlrm train": Kind(("dlrm", "train", str(criteo), "--out", "dlrm", "--processes", "2"), {}, 15),
        "dlrm load": Kind(("dlrm", "load", str(ps)), cluster, 4, ends=True),
        "dlrm serve": Kind(("dlrm", "serve", str(ps)), cluster | serving | ports, 15, code=0),
    }
