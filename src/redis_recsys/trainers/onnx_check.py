"""Whether an exported ONNX file answers what the model that it came from answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import BundleError

TOLERANCE = 1e-5


def difference(path: Path, actual: np.ndarray, expected: np.ndarray, model: str) -> float:
    """Largest absolute difference between two answers of the same shape.

    Args:
        path: ONNX file.
        actual: answer of the file.
        expected: answer of the model.
        model: how people call it.

    Raises:
        BundleError: the difference is above 1e-5, or there is nothing to compare.
    """
    if not actual.size:
        raise BundleError(f"{path.name} cannot be compared with {model}: there is no row that it can be asked about")
    largest = float(np.abs(actual - expected).max())
    if not largest <= TOLERANCE:
        raise BundleError(f"{path.name} differs from {model} by {largest:.2g}, more than {TOLERANCE:.0e}")
    return largest
