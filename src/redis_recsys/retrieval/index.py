"""Nearest items of a query: the interface of vector indexes, and the exact index in this process's memory.

The other index is the vector set in Redis (``store.vectors.RedisIndex``), which :class:`LocalIndex` follows through a
stream of changes. Both take unit vectors, so that a dot product is the cosine.

The exact one is own code: a library's flat index is the same matrix product, and here an answer has to be the same to
the bit for a query alone and for one among many, and to follow changes and rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from .topk import topk

PIECE = 64  # queries scored at once
SMALL = 990_000  # multiplications; up to a million, OpenBLAS does not copy the catalogue first
MANY = 32  # lowest number of queries for which that copy pays
LANES = 16  # OpenBLAS sums the columns beyond a multiple of this in another order, depending on the batch


@dataclass(frozen=True)
class Change:
    """One item added or moved, or removed.

    Attributes:
        item: entity number.
        embedding: float32[D], or None for a removed item.
    """

    item: int
    embedding: np.ndarray | None


class VectorIndex(Protocol):
    """Items by entity number, found by the cosine of their embeddings with a query."""

    def search(self, queries: np.ndarray, count: int, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest items of each query, without excluded ones.

        Args:
            queries: float32[b, D], unit vectors.
            count: number of items for each query.
            exclude: int[b, S] entity numbers, padded with 0; numbers without an item are ignored.

        Returns:
            Items int32[b, count], nearest first, and their similarities float32[b, count]; both 0 where there are
            fewer.

        Raises:
            StoreError: the index lies in Redis, which fails or does not hold it.
        """


class LocalIndex:
    """Exact search in memory. Any number of threads may search while one applies changes."""

    def __init__(self, embeddings: np.ndarray) -> None:
        """
        Args:
            embeddings: float32[n, D]; row i belongs to item i + 1.
        """
        items, dim = embeddings.shape
        catalogue = np.zeros((dim, _rounded(items)), np.float32)
        catalogue[:, :items] = embeddings.T
        # float32[D, m], and the positions without an item; the pair is replaced as a whole, its arrays never altered
        self._state = catalogue, np.arange(items, catalogue.shape[1])

    def search(self, queries: np.ndarray, count: int, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`VectorIndex`. Ties go to the item with the lower number."""
        items = np.zeros((len(queries), count), np.int32)
        similarity = np.zeros((len(queries), count), np.float32)
        for start in range(0, len(queries), PIECE):
            piece = slice(start, start + PIECE)
            scores = self.scores(queries[piece])
            row, column = np.nonzero(exclude[piece])
            number = exclude[piece][row, column]
            if len(number) and number.max() > scores.shape[1]:
                row, number = row[number <= scores.shape[1]], number[number <= scores.shape[1]]
            scores[row, number - 1] = -np.inf
            best = topk(scores, count)
            values = scores[np.arange(len(scores))[:, None], best]
            present = values > -np.inf
            items[piece, : best.shape[1]] = np.where(present, best + 1, 0)
            similarity[piece, : best.shape[1]] = np.where(present, values, 0)
        return items, similarity

    def scores(self, queries: np.ndarray) -> np.ndarray:
        """Dot products with all items.

        A query alone gets the same bits as one among many where OpenBLAS has its kernel for AVX-512; its kernels for
        older instructions sum the last rows of a batch in another order, so there the two agree up to rounding.

        Args:
            queries: float32[b, D].

        Returns:
            float32[b, m]; column i belongs to item i + 1. There may be more columns than items; -inf there.
        """
        catalogue, absent = self._state
        # NumPy sums a single row in another order (as matrix times vector), which would change near ties.
        rows = np.concatenate([queries, queries]) if len(queries) == 1 else queries
        scores = np.empty((len(rows), catalogue.shape[1]), np.float32)
        width = max(SMALL // max(rows.size, 1) // LANES, 1) * LANES if len(rows) < MANY else catalogue.shape[1]
        for start in range(0, catalogue.shape[1], width):
            columns = slice(start, start + width)
            np.matmul(rows, catalogue[:, columns], out=scores[:, columns])
        scores = scores[: len(queries)]
        if len(absent):
            scores[:, absent] = -np.inf
        return scores

    def apply(self, changes: Sequence[Change]) -> None:
        """Add, move and remove items, in the order of the changes; this costs one copy of the catalogue.

        Concurrent searches see either none or all of the changes. One thread at a time may call this.
        """
        before, absent = self._state
        columns = max([before.shape[1], *(change.item for change in changes if change.embedding is not None)])
        catalogue = np.zeros((len(before), _rounded(columns)), np.float32)
        catalogue[:, : before.shape[1]] = before
        missing = np.ones(catalogue.shape[1], bool)
        missing[: before.shape[1]] = False
        missing[absent] = True
        for change in changes:
            if change.embedding is not None:
                catalogue[:, change.item - 1] = change.embedding
            if change.item <= len(missing):
                missing[change.item - 1] = change.embedding is None
        self._state = catalogue, np.flatnonzero(missing)


class AllowedIndex:
    """Exact search in memory among only some items of a catalogue; otherwise like :class:`LocalIndex`."""

    def __init__(self, embeddings: np.ndarray, allowed: np.ndarray) -> None:
        """
        Args:
            embeddings: float32[n, D]; row i belongs to item i + 1.
            allowed: bool[n + 1] by entity number; item 0 is none. Items added later are not found either.
        """
        self._numbers = np.concatenate([[0], np.flatnonzero(allowed[1:]) + 1]).astype(np.int32)
        self._position = np.zeros(len(allowed), np.int32)  # item -> number in the smaller catalogue, 0: none
        self._position[self._numbers] = np.arange(len(self._numbers))
        self._index = LocalIndex(embeddings[self._numbers[1:] - 1])

    def search(self, queries: np.ndarray, count: int, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`VectorIndex`."""
        within = np.where(exclude < len(self._position), exclude, 0)
        items, similarity = self._index.search(queries, count, self._position[within])
        return self._numbers[items], similarity

    def apply(self, changes: Sequence[Change]) -> None:
        """See :meth:`LocalIndex.apply`."""
        kept = [change for change in changes if change.item < len(self._position) and self._position[change.item]]
        if kept:
            self._index.apply([replace(change, item=int(self._position[change.item])) for change in kept])


def _rounded(columns: int) -> int:
    return -(-columns // LANES) * LANES
