"""perf_analyzer, the load generator of Triton's makers, out of the serving environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import ServingError
from ..utils.environments import located

LIBRARIES = {"libb64": "libb64.so.0d", "libcudart": "libcudart.so.12"}  # that it needs and nvidia-pytriton carries


@contextmanager
def perf_analyzer(environment: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The program and the variables of the environment that it needs, for as long as the block.

    Args:
        environment: the serving environment, which carries it in the wheel of tritonclient 2.50.

    Raises:
        ServingError: it is not there.
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
