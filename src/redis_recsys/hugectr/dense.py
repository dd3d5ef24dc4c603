"""HugeCTR's file of dense weights: the layers of the network one after the other, nothing else.

A fully connected layer is its kernel, float32[inputs, outputs] by rows, and then its bias, float32[outputs].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..utils.files import written_aside_file
from .network import DlrmShape

Layer = tuple[np.ndarray, np.ndarray]


def write(path: Path, layers: Sequence[Layer]) -> None:
    """Write the weights, whole or not at all.

    Args:
        path: path of the file.
        layers: (kernel float32[inputs, outputs], bias float32[outputs]), bottom MLP first.

    Raises:
        DataError: the file cannot be written.
    """
    with written_aside_file(path) as aside, aside.open("wb") as file:
        for kernel, bias in layers:
            file.write(np.ascontiguousarray(kernel, "<f4").tobytes())
            file.write(np.ascontiguousarray(bias, "<f4").tobytes())


def read(path: Path, dlrm: DlrmShape) -> list[Layer]:
    """The weights of a DLRM's layers, bottom MLP first.

    Raises:
        DataError: the file is missing, or its size does not fit this network.
    """
    shapes = dlrm.layers()
    floats = sum(inputs * outputs + outputs for inputs, outputs in shapes)
    try:
        size = path.stat().st_size
        if size != 4 * floats:
            raise DataError(f"{path} has {size:,} bytes, and the network has {floats:,} weights of 4 bytes: truncated?")
        weights = np.fromfile(path, "<f4")
    except OSError as error:
        raise DataError(f"cannot read the dense weights {path}: {error.strerror}") from None
    layers, start = [], 0
    for inputs, outputs in shapes:
        middle, end = start + inputs * outputs, start + inputs * outputs + outputs
        layers.append((weights[start:middle].reshape(inputs, outputs), weights[middle:end]))
        start = end
    return layers
