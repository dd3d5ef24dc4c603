"""Comparison of an exported ONNX file with the model it was exported from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import BundleError

TOLERANCE = 1e-5


def difference(path: Path, actual: np.ndarray, expected: np.ndarray, model: str) -> float:
    """Return the largest absolute difference between two outputs of the same shape.

    Args:
        path: ONNX file.
        actual: output of the file.
        expected: output of the model.
        model: name of the model in messages.

    Raises:
        BundleError: the difference is above 1e-5, or there is nothing to compare.
    """
    if not actual.size:
        raise BundleError(f"{path.name} cannot be compared with {model}: there is no row that it can be asked about")
    largest = float(np.abs(actual - expected).max())
    if not largest <= TOLERANCE:
        raise BundleError(f"{path.name} differs from {model} by {largest:.2g}, more than {TOLERANCE:.0e}")
    return largest
