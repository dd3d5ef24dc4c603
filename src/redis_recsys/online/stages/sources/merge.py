"""Merging of candidates: an item that several sources found is listed once, with all of them."""

from __future__ import annotations

import numpy as np

NEAREST, SIMILAR, POPULAR = 1, 2, 4
SOURCES = {NEAREST: "nearest", SIMILAR: "similar", POPULAR: "popular"}
"""Bits of the column ``sources``: the candidate sources that found an item."""


def sources_of(bits: int) -> tuple[str, ...]:
    """Names of the sources in a value of the column ``sources``."""
    return tuple(name for bit, name in SOURCES.items() if bits & bit)


def merge(items: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the first of equal items in each row, with the sources of all of them; the others become 0.

    Args:
        items: int32[b, n].
        sources: uint8[b, n] bits.
    """
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    bits = np.take_along_axis(sources, order, axis=1)
    repeated = np.zeros(items.shape, bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    for _ in range(len(SOURCES) - 1):  # an item is there at most once per source: pass bits on to the first
        bits[:, :-1] |= np.where(repeated[:, 1:], bits[:, 1:], 0).astype(np.uint8)
    ordered[repeated] = 0
    bits[ordered == 0] = 0
    merged, kept = np.empty_like(items), np.empty_like(sources)
    np.put_along_axis(merged, order, ordered, axis=1)
    np.put_along_axis(kept, order, bits, axis=1)
    return merged, kept
