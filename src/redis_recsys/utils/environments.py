"""Locations of the other Python environments: Triton's, Merlin's."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def located(environment: Path) -> Path:
    """The absolute path of an environment, which may lie beside the running one instead of in the working folder.

    A notebook runs in its own folder, but ``.venv-serving`` means the one beside ``.venv``.
    """
    absolute = Path(os.path.abspath(environment))
    beside = Path(sys.prefix).parent / environment
    return beside if not absolute.exists() and beside.exists() else absolute
