"""Nearest items of a query: what every vector index offers, and the exact one in this process's memory.

The other one is the vector set in Redis (``store.vectors.RedisIndex``), which :class:`LocalIndex` follows through a
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
SMALL = 990_000  # multiplications; up to a million, OpenBLAS spares itself copying the catalogue first
MANY = 32  # queries from which on that copy is worth it
LANES = 16  # OpenBLAS sums the columns that are left over of so many in another order, depending on the batch


@dataclass(frozen=True)
class Change:
    """One item added or moved, or removed.

    Attributes:
        item: entity number.
        embedding: float32[D], or None of an item that was removed.
    """

    item: int
    embedding: np.ndarray | None


class VectorIndex(Protocol):
    """Items by entity number, found by the cosine of their embeddings with a query."""

    def search(self, queries: np.ndarray, count: int, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The items nearest to each query, none of them excluded.

        Args:
            queries: float32[b, D], unit vectors.
            count: items wanted for each.
            exclude: int[b, S] entity numbers, padded with 0; numbers without an item do no harm.

        Returns:
            items int32[b, count], nearest first, and their similarities float32[b, count]; both 0 where there are
            fewer.

        Raises:
            StoreError: the index lies in Redis, and that fails or does not hold it.
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
        # float32[D, m], and the positions without an item; the pair is replaced as one and its arrays never altered
        self._state = catalogue, np.arange(items, catalogue.shape[1])

    def search(self, queries: np.ndarray, count: int, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`VectorIndex`. Of equally near items, those with the lower number come first."""
        items = np.zeros((len(queries), count), np.int32)
        similarity = np.zeros((len(queries), count), np.float32)
        for start in range(0, len(queries), PIECE):
            piece = slice(start, start + PIECE)
            scores = self.scores(queries[piece])
            row, place = np.nonzero(exclude[piece])
            number = exclude[piece][row, place]
            if len(number) and number.max() > scores.shape[1]:
                row, number = row[number <= scores.shape[1]], number[number <= scores.shape[1]]
            scores[row, number - 1] = -np.inf
            found = topk(scores, count)
            values = scores[np.arange(len(scores))[:, None], found]
            there = values > -np.inf
            items[piece, : found.shape[1]] = np.where(there, found + 1, 0)
            similarity[piece, : found.shape[1]] = np.where(there, values, 0)
        return items, similarity

    def scores(self, queries: np.ndarray) -> np.ndarray:
        """Dot products with all items.

        For a query alone they are the same to the bit as for one among many where OpenBLAS has its kernel for AVX-512;
        those for older instructions sum the last rows of a batch in another order, so there they are the same to
        rounding.

        Args:
            queries: float32[b, D].

        Returns:
            float32[b, m]; column i belongs to item i + 1. There may be more columns than items; -inf there.
        """
        catalogue, absent = self._state
        # NumPy sums a single row in another order (as matrix times vector), and near ties would come out otherwise.
        rows = np.concatenate([queries, queries]) if len(queries) == 1 else queries
        scores = np.empty((len(rows), catalogue.shape[1]), np.float32)
        width = max(SMALL // max(rows.size, 1) // LANES, 1) * LANES if len(rows) < MANY else catalogue.shape[1]
        for start in range(0, catalogue.shape[1], width):
            part = slice(start, start + width)
            np.matmul(rows, catalogue[:, part], out=scores[:, part])
        scores = scores[: len(queries)]
        if len(absent):
            scores[:, absent] = -np.inf
        return scores

    def apply(self, changes: Sequence[Change]) -> None:
        """Add, move and remove items, in the order of the changes; costs one copy of the catalogue.

        Searches that run meanwhile see either none or all of the changes. One thread at a time may call this.
        """
        before, absent = self._state
        most = max([before.shape[1], *(change.item for change in changes if change.embedding is not None)])
        catalogue = np.zeros((len(before), _rounded(most)), np.float32)
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
    """Exact search in memory among some items of a catalogue alone; as :class:`LocalIndex` otherwise."""

    def __init__(self, embeddings: np.ndarray, allowed: np.ndarray) -> None:
        """
        Args:
            embeddings: float32[n, D]; row i belongs to item i + 1.
            allowed: bool[n + 1] by entity number; item 0 is none. Items that come later are not found either.
        """
        self._numbers = np.concatenate([[0], np.flatnonzero(allowed[1:]) + 1]).astype(np.int32)
        self._place = np.zeros(len(allowed), np.int32)  # of each item in the smaller catalogue, 0 where it is not there
        self._place[self._numbers] = np.arange(len(self._numbers))
        self._index = LocalIndex(embeddings[self._numbers[1:] - 1])

    def search(self, queries: np.ndarray, count: int, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`VectorIndex`."""
        within = np.where(exclude < len(self._place), exclude, 0)
        items, similarity = self._index.search(queries, count, self._place[within])
        return self._numbers[items], similarity

    def apply(self, changes: Sequence[Change]) -> None:
        """See :meth:`LocalIndex.apply`."""
        kept = [change for change in changes if change.item < len(self._place) and self._place[change.item]]
        if kept:
            self._index.apply([replace(change, item=int(self._place[change.item])) for change in kept])


def _rounded(columns: int) -> int:
    return -(-columns // LANES) * LANES
