"""Baselines: popularity, item neighbours, and two matrix factorisations from ``implicit``.

All of them see the positive rows of training and validation, recommend only items that the user has not had, and give
users without a history the popular items. Default settings come from a grid search on the validation parts of
MovieLens-100k (split by time, and by time within users) and of a million synthetic rows; where the best differed,
:func:`fit_baselines` chooses on the validation part of the data at hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.sparse as sparse
from threadpoolctl import threadpool_limits

from ..dataset.interactions import Dataset, Rows
from ..dataset.popularity import Clicks
from ..errors import TrainingError
from ..retrieval.topk import topk
from ..utils.progress import progress
from .evaluate import new_items, recommend_all
from .metrics import list_metrics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # in notebooks, about missing widgets for bars that are never shown
    from implicit.cpu.als import AlternatingLeastSquares
    from implicit.cpu.bpr import BayesianPersonalizedRanking
    from implicit.nearest_neighbours import CosineRecommender


class Popularity:
    """Most clicked items first; base class of all baselines, which differ in :meth:`fit` and :meth:`scores`.

    Attributes:
        seen: float32[users, items] sparse, 1 where the user has had the item; row u is user u + 1.
        popularity: float32[items], clicks of each item.
    """

    name = "popularity"

    def fit(self, rows: Rows, users: int, items: int) -> None:
        """Learn from the positive rows; ``users`` and ``items`` are the numbers of entities.

        Raises:
            TrainingError: there is no positive row.
        """
        rows = rows.positives()
        if not len(rows):
            raise TrainingError(f"{self.name} has nothing to learn from: no row is a click")
        ones = np.ones(len(rows), np.float32)
        self.seen = sparse.csr_matrix((ones, (rows.user - 1, rows.item - 1)), (users, items))
        self.seen.data[:] = 1
        self.popularity = np.bincount(rows.item - 1, minlength=items).astype(np.float32)

    def scores(self, users: np.ndarray) -> np.ndarray:
        """Scores float32[n, items] for the users at rows int[n] of ``seen``."""
        return np.repeat(self.popularity[None], len(users), axis=0)

    def recommend(self, users: np.ndarray, k: int) -> np.ndarray:
        """The best ``k`` items for each user, among those that the user has not had.

        Args:
            users: int[n], entity numbers.
            k: length of the lists.

        Returns:
            int32[n, k], entity numbers of items, best first, 0 where there are fewer than k.
        """
        users = users - 1
        seen = self.seen[users]
        seen_counts = np.diff(seen.indptr)
        scores = self.scores(users)
        scores[seen_counts == 0] = self.popularity
        scores[np.repeat(np.arange(len(users)), seen_counts), seen.indices] = -np.inf
        best = topk(scores, k)
        lists = np.zeros((len(users), k), np.int32)
        lists[:, : best.shape[1]] = np.where(np.isneginf(np.take_along_axis(scores, best, axis=1)), 0, best + 1)
        return lists


class RecentPopularity(Popularity):
    """Items with the most clicks among the newest tenth of all clicks first, then with the most clicks ever."""

    name = "recent-popularity"

    def fit(self, rows: Rows, users: int, items: int) -> None:
        """See :meth:`Popularity.fit`."""
        super().fit(rows, users, items)
        self.popularity = Clicks.of(rows, items).scores.astype(np.float32)


class ItemKNN(Popularity):
    """Sum of the cosine similarities of an item to the user's items; popularity orders items without any.

    Source: M. Deshpande and G. Karypis, "Item-based top-N recommendation algorithms", ACM TOIS 22(1), 2004.
    """

    name = "item-knn"

    def __init__(self, neighbours: int = 20) -> None:
        """Set ``neighbours``, the number of similar items kept per item, itself included."""
        self.neighbours = neighbours

    def fit(self, rows: Rows, users: int, items: int) -> None:
        """See :meth:`Popularity.fit`."""
        super().fit(rows, users, items)
        with _quiet():
            model = CosineRecommender(K=self.neighbours)
            model.fit(self.seen, show_progress=False)
        self.similarity = model.similarity.astype(np.float32)

    def scores(self, users: np.ndarray) -> np.ndarray:
        """See :meth:`Popularity.scores`."""
        least = 1e-6 / (self.popularity.max() + 1)
        return (self.seen[users] @ self.similarity).toarray() + self.popularity * least


class MatrixFactorization(Popularity):
    """Inner product of a user's and an item's factors as score, learnt by an engine of ``implicit``."""

    engine: type
    settings: dict[str, Any]

    def fit(self, rows: Rows, users: int, items: int) -> None:
        """See :meth:`Popularity.fit`."""
        super().fit(rows, users, items)
        with _quiet():
            model = self.engine(**self.settings)
            model.fit(self.seen, show_progress=False)
        self.user_factors, self.item_factors = model.user_factors, model.item_factors

    def scores(self, users: np.ndarray) -> np.ndarray:
        """See :meth:`Popularity.scores`."""
        return self.user_factors[users] @ self.item_factors.T


class ALS(MatrixFactorization):
    """Weighted alternating least squares.

    Source: Y. Hu, Y. Koren and C. Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008.
    """

    name = "als"
    engine = AlternatingLeastSquares

    def __init__(
        self, factors: int = 32, regularization: float = 0.1, alpha: float = 1.0, iterations: int = 15, seed: int = 42
    ) -> None:
        """Set ``alpha``, the confidence that a click adds to the confidence 1 of every cell, and other settings."""
        self.settings = {
            "factors": factors,
            "regularization": regularization,
            "alpha": alpha,
            "iterations": iterations,
            "random_state": seed,
        }


class BPR(MatrixFactorization):
    """Bayesian personalised ranking, which learns to rank a user's items above all others.

    Source: S. Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009.
    """

    name = "bpr"
    engine = BayesianPersonalizedRanking

    def __init__(
        self,
        factors: int = 64,
        regularization: float = 0.01,
        learning_rate: float = 0.003,
        iterations: int = 300,
        seed: int = 42,
    ) -> None:
        """Set up one thread, since several would update the same factors without locks, and no two runs would agree."""
        self.settings = {
            "factors": factors,
            "regularization": regularization,
            "learning_rate": learning_rate,
            "iterations": iterations,
            "num_threads": 1,
            "random_state": seed,
        }


def variants() -> list[list[Popularity]]:
    """Baselines, each with the settings among which :func:`fit_baselines` chooses."""
    return [
        [Popularity()],
        [RecentPopularity()],
        [ItemKNN(neighbours=20), ItemKNN(neighbours=100)],
        [ALS(), ALS(regularization=10), ALS(regularization=10, alpha=10)],
        [BPR()],
    ]


def fit_baselines(dataset: Dataset) -> list[Popularity]:
    """Every baseline, fitted on the training and validation parts together.

    Where there is a choice of settings, each is fitted on the training part first, and the one with the highest
    NDCG@10 on the validation part is taken.
    """
    train, valid = dataset.rows("train"), dataset.rows("valid")
    users, items = len(dataset.users), len(dataset.items)
    validated, starts, relevant = new_items(train, valid)

    def quality(baseline: Popularity) -> float:
        baseline.fit(train, users, items)
        lists = recommend_all(baseline, validated, 10, items)
        return float(list_metrics(lists, starts, relevant, (10,))["ndcg@10"].mean())

    fitted = []
    with progress("fitting baselines", total=len(variants())) as advance:
        for choice in variants():
            best = max(choice, key=quality) if len(choice) > 1 and len(validated) else choice[0]
            best.fit(train + valid, users, items)
            fitted.append(best)
            advance(1)
    return fitted


@contextmanager
def _quiet() -> Iterator[None]:
    """Give BLAS one thread, since ``implicit`` has its own, and ignore its warnings about that and about formats."""
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
