"""Columns of a batch of requests: their declaration, and joining those of several requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Field:
    """One column: an array whose first axis is the request.

    Attributes:
        name: of the column, the same in every stage.
        dtype: NumPy's name of the type: bool, uint8, int32, int64, float32, or object for bytes; "user" and "item" are
            the types of the raw ids, which differ between deployments: int64 or object.
        shape: of one request's part; -1 where it differs between requests or deployments.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = (1,)


def stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Join batches of one column along the request axis; where widths differ, the narrower are padded with 0."""
    if len(parts) == 1:
        return parts[0]
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    width = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    padded = np.zeros((sum(map(len, parts)), *width), parts[0].dtype)
    start = 0
    for part in parts:
        padded[(slice(start, start + len(part)), *(slice(size) for size in part.shape[1:]))] = part
        start += len(part)
    return padded
