"""Folders that all processes of a test run use, made by the first that needs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

WORKERS = "popen-"  # folders of the processes of one run begin so; they lie in one


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that ``make`` fills once in a run, whichever process comes first.

    Args:
        factory: of the session.
        name: of the folder.
        make: called with the folder, which is empty; the others wait for it.
    """
    base = factory.getbasetemp()
    folder = (base.parent if base.name.startswith(WORKERS) else base) / name
    with FileLock(f"{folder}.lock"):
        done = folder.with_name(f"{name}.done")
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
