"""perf_analyzer, the load generator of the Triton project, from the serving environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import ServingError
from ..utils.environments import located

LIBRARIES = {"libb64": "libb64.so.0d", "libcudart": "libcudart.so.12"}  # needed by it, contained in nvidia-pytriton


@contextmanager
def perf_analyzer(environment: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the program's path and the environment variables it needs, valid during the block.

    Args:
        environment: the serving environment, which has it in the wheel of tritonclient 2.50.

    Raises:
        ServingError: the program is missing.
    """
    home = located(environment)
    program = home / "bin" / "perf_analyzer"
    if not program.exists():
        raise ServingError(
            f"no perf_analyzer in {home}: make it with 'recsys setup serving', or set RECSYS_TRITON_ENVIRONMENT"
        )
    with TemporaryDirectory(prefix="recsys-perf-analyzer-") as links:
        for library in home.glob("lib/python3*/site-packages/nvidia_pytriton.libs/*"):
            name = LIBRARIES.get(library.name.split("-")[0])
            if name is not None:
                (Path(links) / name).symlink_to(library)
        paths = (links, os.environ.get("LD_LIBRARY_PATH"))
        yield str(program), os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths))}
