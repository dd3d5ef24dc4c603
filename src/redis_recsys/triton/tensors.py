"""Columns of a batch of requests: their declaration, and the joining of several requests' columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Field:
    """One column: an array whose first axis is the request.

    Attributes:
        name: name of the column, the same in every stage.
        dtype: NumPy's name of the type: bool, uint8, int32, int64, float32, or object for bytes; "user" and "item" are
            the types of the raw ids, which differ between deployments: int64 or object.
        shape: shape of one request's row; -1 where it differs between requests or deployments.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = (1,)


def stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Join batches of one column along the request axis; narrower ones are padded with 0."""
    if len(parts) == 1:
        return parts[0]
    if len({batch.shape[1:] for batch in parts}) == 1:
        return np.concatenate(parts)
    width = [max(sizes) for sizes in zip(*(batch.shape[1:] for batch in parts), strict=True)]
    padded = np.zeros((sum(map(len, parts)), *width), parts[0].dtype)
    start = 0
    for batch in parts:
        padded[(slice(start, start + len(batch)), *(slice(size) for size in batch.shape[1:]))] = batch
        start += len(batch)
    return padded
