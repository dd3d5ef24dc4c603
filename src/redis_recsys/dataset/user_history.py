"""Items that each user has interacted with, in order of time: compact arrays for all users at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .entities import Entities
from .interactions import Dataset, Rows
from .schema import Schema


@dataclass(frozen=True)
class History:
    """Positive items of every user, oldest first, as a compressed sparse row layout.

    Attributes:
        starts: int64[users + 2]; user ``u`` owns ``items[starts[u]:starts[u + 1]]``, user 0 (unknown) owns nothing.
        items: int32[positives], entity numbers.
    """

    starts: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, rows: Rows, users: int) -> History:
        """The history in the positive rows; ``users`` is the number of entities."""
        rows = rows.positives()
        order = np.lexsort((rows.time, rows.user))
        starts = np.zeros(users + 2, np.int64)
        np.cumsum(np.bincount(rows.user, minlength=users + 1), out=starts[1:])
        return cls(starts, rows.item[order])

    @staticmethod
    def ends_before(rows: Rows) -> np.ndarray:
        """Position of every row in ``History.of(rows, ...).items``, just after its user's earlier items.

        Returns:
            int64[n], the ``ends`` for :meth:`recent`: a row never sees itself or what came later.
        """
        order = np.lexsort((rows.time, rows.user))
        positive = rows.target[order] > 0
        ends = np.empty(len(rows), np.int64)
        ends[order] = np.cumsum(positive) - positive
        return ends

    def fill(self, categorical: np.ndarray, schema: Schema) -> None:
        """Write every user's newest items into the history column, if there is one, of int32[users, width] in place."""
        column = schema.history
        if column is not None:
            recent = self.recent(np.arange(1, len(categorical) + 1), column.width)
            categorical[:, schema.slots(column)] = np.where(recent < (column.cardinality or 0), recent, 0)

    def of_users(self, first: int, last: int) -> History:
        """The history of users ``first`` to ``last``, renumbered 1, 2, ..."""
        return History(self.starts[np.r_[first, first : last + 2]], self.items)

    def __getitem__(self, user: int) -> np.ndarray:
        return self.items[self.starts[user] : self.starts[user + 1]]

    def recent(self, users: np.ndarray, length: int, ends: np.ndarray | None = None) -> np.ndarray:
        """The newest ``length`` items of each user, newest first, padded with 0.

        Args:
            users: int[n].
            length: number of items for each user.
            ends: int64[n], exclusive ends in ``items``; default: each user's end.

        Returns:
            int32[n, length].
        """
        starts = self.starts[users]
        ends = self.starts[users + 1] if ends is None else ends
        position = ends[:, None] - 1 - np.arange(length)
        inside = position >= starts[:, None]
        if not len(self.items):
            return np.zeros((len(users), length), np.int32)
        return np.where(inside, self.items[np.maximum(position, 0)], 0).astype(np.int32)


def users_after(dataset: Dataset, rows: Rows) -> tuple[Entities, History]:
    """Users after ``rows``, with their newest items filled in, and their history."""
    history = History.of(rows, len(dataset.users))
    users = replace(dataset.users, categorical=dataset.users.categorical.copy())
    history.fill(users.categorical, dataset.schema)
    return users, history


def padded(items: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Lists of items as one row each, padded with 0.

    Args:
        items: int32[sum of lengths], one list after the other.
        lengths: int[n].

    Returns:
        int32[n, longest].
    """
    rows = np.zeros((len(lengths), int(lengths.max(initial=0))), np.int32)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = items
    return rows
