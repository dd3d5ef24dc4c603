"""Verbs of the worker."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import metadata
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from ...worker_events import emit, take_over, timed

PINS = Path(__file__).parents[1] / "requirements.txt"
NAMED = ("tensorflow", "merlin", "nvtabular", "numpy", "pandas", "pyarrow", "keras", "tf2onnx", "onnx", "protobuf")


def main(verb: str, *arguments: str) -> int:
    """Run one verb; report any failure as one line."""
    take_over()
    for message in drifted():
        emit("drift", message=message)
    try:
        run(verb, [Path(argument) for argument in arguments])
    except SystemExit as end:
        emit("error", message=str(end))
        return 1
    except Exception as error:
        traceback.print_exc()
        emit("error", message=f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[-1]}")
        return 1
    return 0


def run(verb: str, paths: list[Path]) -> None:
    """Run one verb; Merlin's packages are imported only here, since that takes ten seconds."""
    from ..worker_job import Job, SystemsJob

    if verb == "fit":
        with timed("import"):
            from .convert import convert
            from .fit import fit
        job = Job.load(paths[0])
        fit(job)
        convert(Path(job.export), paths[1])
    elif verb == "convert":
        with timed("import"):
            from .convert import convert
        convert(*paths)
    elif verb == "systems":
        with timed("import"):
            from .systems import export_systems
        export_systems(SystemsJob.load(paths[0]))
    elif verb == "check":
        with timed("import"):
            from .smoke_test import check
        check()
    else:
        raise SystemExit(f"no verb {verb!r}")


def drifted() -> list[str]:
    """List the important packages whose version differs from the tested one."""
    messages = []
    for line in PINS.read_text().splitlines():
        name, _, pinned = line.partition("==")
        if name.startswith(NAMED):
            try:
                actual = metadata.version(name)
            except metadata.PackageNotFoundError:
                actual = "missing"
            if actual != pinned:
                messages.append(
                    f"{name} is {actual}, tested with {pinned}: 'recsys setup merlin --again' installs that"
                )
    return messages


sys.exit(main(*sys.argv[1:]))
