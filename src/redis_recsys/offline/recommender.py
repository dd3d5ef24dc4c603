"""Recommender of a bundle's models for many users at once: retrieval, seen filter, ranking, ordering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..bundle.bundle import Bundle
from ..dataset.entities import Entities
from ..dataset.interactions import BEFORE_TEST, Dataset, Rows
from ..dataset.popularity import Clicks, Popular
from ..dataset.schema import Side
from ..dataset.user_history import History, padded, users_after
from ..errors import DataError
from ..retrieval.index import AllowedIndex
from ..retrieval.selection import order

PIECE = 64
OURS = ("two-tower", "two-tower + DLRM")  # names in reports: retrieval alone, and with the ranker


def check_not_learned(bundle: Bundle, dataset: Dataset) -> None:
    """Check that a bundle can be evaluated on the test part of a dataset.

    Raises:
        DataError: it was trained on other data, or has learned the test part.
    """
    if bundle.manifest.final:
        raise DataError(
            f"{bundle.path} has learned the test part (--final): evaluate the bundle that was trained without --final"
        )
    tables: dict[Side, Entities] = {"user": dataset.users, "item": dataset.items}
    for side, entities in tables.items():
        if not np.array_equal(bundle.raw_ids(side), entities.raw_ids):
            raise DataError(f"{bundle.path} was not trained on {dataset.path}: the {side}s differ")


class Scored(NamedTuple):
    """Recommendations of n users.

    Attributes:
        items: int32[n, k] entity numbers, first shown first; 0 where there are fewer than k.
        scores: float32[n, k] of the ranker, between 0 and 1; popularity for popular items; -inf where the item is 0.
        unknown: bool[n], users about whom nothing is known, whose items are the popular ones.
    """

    items: np.ndarray
    scores: np.ndarray
    unknown: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Number of recommendations of each user, int64[n]."""
        return (self.items > 0).sum(axis=1)


class Recommender:
    """Two-tower retrieval by exact search, then the DLRM, on blocks of users. Threads may share one."""

    def __init__(
        self,
        bundle: Bundle,
        candidates: int,
        allowed: np.ndarray | None = None,
        popular: Popular | None = None,
        ranked: bool = True,
    ) -> None:
        """
        Args:
            bundle: bundle with the models.
            candidates: number of items that retrieval passes on for each user; more where more are recommended.
            allowed: mask bool[items + 1] by entity number of the items that may be recommended; default: all.
            popular: items for users about whom nothing is known; default: the bundle's popular items.
            ranked: whether the DLRM orders the candidates; otherwise their similarity does.
        """
        self._tower = bundle.user_tower()
        self._item_side = bundle.item_side()
        self._head = bundle.ranker_head()
        allowed = np.ones(bundle.manifest.items + 1, bool) if allowed is None else allowed
        self._index = AllowedIndex(bundle.item_embeddings, allowed)
        self._popular = (popular or bundle.popularity).among(allowed)
        self._candidates, self._items, self._ranked = candidates, bundle.manifest.items, ranked

    def retrieve(self, users: Entities, history: History, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The nearest unseen items of each user, nearest first.

        Args:
            users: n users.
            history: items they have seen; user 1 is the first of ``users``.
            count: number of items; default: the number of candidates.

        Returns:
            Numbers int32[n, m] and similarities float32[n, m], both 0 where there are fewer; m is ``count``, or the
            size of the catalogue if that is less.
        """
        count = min(count or self._candidates, self._items)
        return self._index.search(self._tower.embed(users.categorical, users.numeric), count, _seen(history))

    def rank(self, users: Entities, items: np.ndarray) -> np.ndarray:
        """Scores float32[n, m] of items int[n, m], between 0 and 1; -inf where the item is 0."""
        scores = self._head(users.categorical, users.numeric, *self._item_side(items))
        return np.where(items > 0, scores, -np.inf)

    def recommend(
        self, users: Entities, history: History, k: int, temperature: float, rng: np.random.Generator
    ) -> Scored:
        """Retrieve, rank and order the best ``k`` for n users, in pieces that fit into the processor's cache.

        Users about whom nothing is known get the popular items that they have not seen.
        """
        parts = []
        for start in range(0, len(users), PIECE):
            piece = users.rows(slice(start, start + PIECE))
            past = history.of_users(start + 1, start + len(piece))
            items, similarity = self.retrieve(piece, past, max(self._candidates, k))
            scores = self.rank(piece, items) if self._ranked else np.where(items > 0, similarity, -np.inf)
            chosen = order(scores, k, temperature, rng)
            items, scores = (np.take_along_axis(values, chosen, axis=1) for values in (items, scores))
            unknown = ~piece.known & bool(len(self._popular.items))
            if unknown.any():
                items[unknown], scores[unknown] = self._popular.unseen(_seen(past)[unknown], items.shape[1])
            parts.append((items, scores, unknown))
        return Scored(*(np.concatenate(pieces) for pieces in zip(*parts, strict=True)))


def _seen(history: History) -> np.ndarray:
    """Items int32[n, longest] that users 1 to n have interacted with, padded with 0."""
    return padded(history.items[history.starts[1] : history.starts[-1]], np.diff(history.starts[1:]))


@dataclass
class BundleRecommender:
    """Recommender for the evaluation of a bundle: all users as they were before the test part, in memory.

    Their histories come from the dataset, since those of the bundle include the test part.

    Raises:
        DataError: the bundle was trained on other data, or has learned the test part.
    """

    bundle: Bundle
    dataset: Dataset
    candidates: int = 100
    ranked: bool = True
    block: int = 256

    def __post_init__(self) -> None:
        self.name = OURS[self.ranked]
        check_not_learned(self.bundle, self.dataset)
        before = self.dataset.rows(*BEFORE_TEST)
        popular = Popular.of(Clicks.of(before, len(self.dataset.items)), self.dataset.items.raw_ids)
        self._models = Recommender(self.bundle, self.candidates, popular=popular, ranked=self.ranked)
        learned = self.dataset.refit if "valid" in self.bundle.manifest.learned_from else self.dataset
        self._users, self._history = users_after(learned, before)

    def recommend(self, users: np.ndarray, k: int) -> np.ndarray:
        """Items int64[n, k] for users int[n], by number; without seen items, 0 where there are fewer than k."""
        parts = []
        for start in range(0, len(users), self.block):
            entities, history = self._pick(users[start : start + self.block])
            parts.append(self._models.recommend(entities, history, k, 0.0, np.random.default_rng(0)).items)
        return np.concatenate(parts)

    def predict(self, rows: Rows) -> np.ndarray:
        """Scores float32[n] of interactions, between 0 and 1; users and items are entity numbers."""
        parts = []
        order = np.argsort(rows.user, kind="stable")
        for block in np.array_split(order, max(1, len(order) // self.block)):
            users, user_row = np.unique(rows.user[block], return_inverse=True)
            # one row of items per user, as wide as the user with the most
            position = np.arange(len(block)) - np.searchsorted(user_row, np.arange(len(users)))[user_row]
            items = np.zeros((len(users), position.max(initial=0) + 1), np.int64)
            items[user_row, position] = rows.item[block]
            parts.append(self._models.rank(self._pick(users)[0], items)[user_row, position])
        scores = np.empty(len(order), np.float32)
        scores[order] = np.concatenate(parts)
        return scores

    def _pick(self, users: np.ndarray) -> tuple[Entities, History]:
        lists = [self._history[user] for user in users]
        starts = np.concatenate([[0, 0], np.cumsum([len(items) for items in lists])]).astype(np.int64)
        return self._users.rows(users - 1), History(starts, np.concatenate(lists) if lists else np.empty(0, np.int32))
