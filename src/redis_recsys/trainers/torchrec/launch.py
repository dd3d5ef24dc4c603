"""Start of the training processes under torchrun, their progress, and their end with this process."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ...config import DlrmSettings
from ...data.criteo.dataset import CriteoDataset
from ...embedded.process import spawn, stop
from ...errors import ConfigError, TrainingError
from ...utils.files import keep_inputs, written_aside
from ...utils.machine import cores
from ...utils.output_kinds import DLRM
from ...utils.progress import console, progress
from .job import Job

WORKER = "redis_recsys.trainers.torchrec.worker"
STOP_SECONDS = 15
EXIT_CODE = re.compile(r"exitcode\s*:\s*(-?\d+)")


def train(dataset: Path, out: Path, settings: DlrmSettings) -> dict[str, Any]:
    """Train a DLRM on a Criteo dataset and export it in HugeCTR's formats.

    Checkpoints stay beside ``out`` until the end, so that ``settings.resume`` can continue after a failure.

    Returns:
        Content of ``report.json``: ``test`` metrics, ``records`` of the epochs, ``samples_per_s``, ...

    Raises:
        ConfigError: TorchRec is not installed.
        DataError: the dataset is missing or damaged, or ``out`` holds it or cannot be written.
        TrainingError: a process failed; the message names the log.
    """
    if importlib.util.find_spec("torchrec") is None:
        raise ConfigError("training a DLRM needs TorchRec: run 'recsys setup torchrec'")
    keep_inputs(out, dataset)
    opened = CriteoDataset(dataset)
    with written_aside(out, DLRM) as aside:
        checkpoints = aside.parent / f".{out.name}.checkpoints"
        settings.log.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=aside.parent, prefix=f".{out.name}.job-") as home:
            path = Path(home) / "job.json"
            Job(opened.path, aside, checkpoints, settings).save(path)
            with settings.log.open("wb") as log, _processes(path, settings.processes, log.fileno()) as running:
                _follow(running, settings, checkpoints)
        report: dict[str, Any] = json.loads((aside / "report.json").read_text())
    return report


@contextmanager
def _processes(job: Path, count: int, log: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run torchrun with its processes until the end of the block."""
    threads = str(max(1, cores() // count))
    environment = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    process = spawn([*command, "-m", WORKER, job], log, environment=environment, listen=True)
    try:
        yield process
    finally:
        stop(process, STOP_SECONDS, signal.SIGTERM)  # torchrun forwards it


def _follow(process: subprocess.Popen[bytes], settings: DlrmSettings, checkpoints: Path) -> None:
    """Show progress until the processes end."""
    problems: list[dict[str, Any]] = []
    assert process.stdout is not None
    with ExitStack() as bars:
        advance, done = None, 0
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "step":
                if advance is None:
                    advance, done = bars.enter_context(progress(f"epoch {event['epoch']}", event["total"])), 0
                advance(event["done"] - done)
                done = event["done"]
            elif event["event"] == "epoch":
                bars.pop_all().close()
                advance = None
                console.print(
                    f"epoch {event['epoch']}: loss {event['loss']:.4f}, validation AUC {event['auc']:.4f}, "
                    f"log loss {event['log_loss']:.4f}, {event['rows_per_s']:,.0f} rows/s",
                    highlight=False,
                )
            elif event["event"] == "error":
                problems.append(event)
    code = process.wait()
    if code:
        kept = max((path.name for path in checkpoints.glob("step-*")), default=None)
        advice = f"; --resume goes on from {kept}" if kept else ""
        raise TrainingError(f"training failed: {_reason(problems, settings.log, code)} (see {settings.log}){advice}")


def _reason(problems: list[dict[str, Any]], log: Path, code: int) -> str:
    """First cause of a failure: an error of ours, a killed process, or any error that a process reported."""
    for problem in problems:
        if problem["known"]:
            return str(problem["message"])
    text = log.read_text(errors="replace")
    for exit_code in EXIT_CODE.findall(text):
        number = -int(exit_code)
        if number > 0 and number != signal.SIGTERM:  # torchrun itself sends SIGTERM to the others
            name = signal.Signals(number).name
            return f"a process was killed by {name}" + (", out of memory?" if name == "SIGKILL" else "")
    return str(problems[0]["message"]) if problems else f"torchrun ended with {code}"
