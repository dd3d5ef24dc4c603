"""Baselines: popularities, item neighbours, random walks, a linear autoencoder, and two matrix factorisations.

All of them see the positive rows of training and validation, and recommend only items that the user has not had. To
users without a history the personal ones give recent popularity. Every choice of settings, and of the stretch of time
that counts as recent, is made on the validation part of the data at hand by :func:`fit_baselines`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sparse
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from ..dataset.interactions import Dataset, Rows
from ..dataset.popularity import Clicks
from ..errors import TrainingError
from ..retrieval.topk import topk
from ..utils.progress import console, progress
from .evaluate import BLOCK_SCORES, new_items, recommend_all
from .metrics import list_metrics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # in notebooks, about missing widgets for bars that are never shown
    from implicit.cpu.als import AlternatingLeastSquares
    from implicit.cpu.bpr import BayesianPersonalizedRanking

MOST_ITEMS = 20_000  # with this many clicked items EASE takes 3.2 GB of memory
JUDGED = 5_000  # users, at most, who choose settings
SEED = 42
DAYS = (30, 7)
Grid = Sequence[tuple[str, Sequence[float]]]


class Popularity:
    """Most clicked items first; base class of all baselines, which differ in :meth:`fit` and :meth:`scores`.

    Attributes:
        grid: settings with the values among which :func:`fit_baselines` chooses, one setting after the other.
        settings: the settings that were given.
        seen: float32[users, items] sparse, 1 where the user has had the item; row u is user u + 1.
        popularity: float32[items], clicks of each item.
        for_newcomers: float32[items], scores for users without a history.
    """

    name = "popularity"
    grid: ClassVar[Grid] = ()

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

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
        self.for_newcomers = self.popularity

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
        scores[seen_counts == 0] = self.for_newcomers
        scores[np.repeat(np.arange(len(users)), seen_counts), seen.indices] = -np.inf
        best = topk(scores, k)
        lists = np.zeros((len(users), k), np.int32)
        lists[:, : best.shape[1]] = np.where(np.isneginf(np.take_along_axis(scores, best, axis=1)), 0, best + 1)
        return lists


class RecentPopularity(Popularity):
    """Items with the most recent clicks first, then with the most clicks ever."""

    name = "recent-popularity"

    def __init__(self, days: int | None = None, ticks_per_day: int = 1) -> None:
        """
        Args:
            days: number of days before the newest click that count as recent; default: the newest tenth of the clicks.
            ticks_per_day: length of a day in the unit of the rows' times.
        """
        super().__init__(**({} if days is None else {"days": days}))
        self.ticks = None if days is None else days * ticks_per_day
        if days is not None:
            self.name = f"popularity-{days}-days"

    def fit(self, rows: Rows, users: int, items: int) -> None:
        """See :meth:`Popularity.fit`."""
        super().fit(rows, users, items)
        clicks = Clicks.of(rows, items)
        if self.ticks is not None:
            rows = rows.positives()
            newest = rows.item[rows.time > rows.time.max() - self.ticks]
            clicks = clicks._replace(recent=np.bincount(newest - 1, minlength=items))
        self.popularity = self.for_newcomers = clicks.scores.astype(np.float32)


class Personal(Popularity):
    """Base class of the baselines that tell users apart by their histories.

    Attributes:
        for_all: popularity that scores items for users without a history.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.for_all: Popularity = RecentPopularity()

    def fit(self, rows: Rows, users: int, items: int) -> None:
        """See :meth:`Popularity.fit`."""
        super().fit(rows, users, items)
        self.for_all.fit(rows, users, items)
        self.for_newcomers = self.for_all.popularity

    def least(self) -> np.ndarray:
        """float32[items] of scores by popularity, so small that they only order items that have no others."""
        return self.popularity * (1e-6 / (self.popularity.max() + 1))


class ItemKNN(Personal):
    """Sum of the cosine similarities of an item to the user's items; popularity orders items without any.

    ``shrinkage`` is added to the cosine's denominator, so that few common users count less.

    Source: M. Deshpande and G. Karypis, "Item-based top-N recommendation algorithms", ACM TOIS 22(1), 2004.
    """

    name = "item-knn"
    grid: ClassVar[Grid] = (("neighbours", (20, 50, 100, 300)), ("shrinkage", (0, 10, 30, 100)))

    def __init__(self, neighbours: int = 100, shrinkage: float = 0) -> None:
        """Set ``neighbours``, the number of similar items kept for each item."""
        super().__init__(neighbours=neighbours, shrinkage=shrinkage)

    def fit(self, rows: Rows, users: int, items: int) -> None:
        """See :meth:`Popularity.fit`."""
        super().fit(rows, users, items)
        lengths = np.sqrt(np.bincount(self.seen.indices, minlength=items).astype(np.float32))

        def cosine(common: np.ndarray, some: slice) -> np.ndarray:
            found: np.ndarray = common / np.maximum(lengths[some, None] * lengths + self.settings["shrinkage"], 1)
            return found

        self.similarity = _strongest(self.seen.T.tocsr(), self.seen, self.settings["neighbours"], cosine)

    def scores(self, users: np.ndarray) -> np.ndarray:
        """See :meth:`Popularity.scores`."""
        return (self.seen[users] @ self.similarity).toarray() + self.least()


class RP3beta(Personal):
    """Chance to reach an item by a random walk of three steps from the user, over an item and another user.

    Steps' probabilities are raised to the power ``alpha``, the result is divided by the item's clicks to the power
    ``beta``, and ``neighbours`` items are kept for each item.

    Source: B. Paudel et al., "Updatable, accurate, diverse, and scalable recommendations for interactive
    applications", ACM TiiS 7(1), 2017.
    """

    name = "rp3beta"
    grid: ClassVar[Grid] = (
        ("alpha", (0.6, 1.0, 1.5, 2.0)),
        ("beta", (0.0, 0.2, 0.4, 0.6, 0.8)),
        ("neighbours", (20, 50, 100, 300)),
    )

    def __init__(self, neighbours: int = 100, alpha: float = 1.0, beta: float = 0.4) -> None:
        """See the class for the settings."""
        super().__init__(neighbours=neighbours, alpha=alpha, beta=beta)

    def fit(self, rows: Rows, users: int, items: int) -> None:
        """See :meth:`Popularity.fit`."""
        super().fit(rows, users, items)
        clicks = np.bincount(self.seen.indices, minlength=items)
        per_item, per_user = np.maximum(clicks, 1.0), np.maximum(np.diff(self.seen.indptr), 1.0)
        alpha, fall = self.settings["alpha"], (per_item ** -self.settings["beta"]).astype(np.float32)
        to_users = (sparse.diags(per_item**-alpha) @ self.seen.T).tocsr().astype(np.float32)
        to_items = (sparse.diags(per_user**-alpha) @ self.seen).tocsr().astype(np.float32)
        self.similarity = _strongest(to_users, to_items, self.settings["neighbours"], lambda chance, _: chance * fall)

    def scores(self, users: np.ndarray) -> np.ndarray:
        """See :meth:`Popularity.scores`."""
        chances = (self.seen[users] @ self.similarity).toarray()
        return chances / np.maximum(chances.max(axis=1, keepdims=True), 1e-30) + self.least()


class EASE(Personal):
    """Linear autoencoder: each item is predicted from all others, with squared weights penalised by ``penalty``.

    With ``P = inverse(X'X + penalty I)`` the weights are ``-P[i, j] / P[j, j]`` and 0 on the diagonal. Items that
    nobody clicked have no weights and are left out of the inverse.

    Source: H. Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019.
    """

    name = "ease"
    grid: ClassVar[Grid] = (("penalty", (10, 30, 100, 300, 1000)),)

    def __init__(self, penalty: float = 300) -> None:
        """See the class for the setting."""
        super().__init__(penalty=penalty)

    def fit(self, rows: Rows, users: int, items: int) -> None:
        """See :meth:`Popularity.fit`."""
        super().fit(rows, users, items)
        self.clicked = np.unique(self.seen.indices)
        clicks = self.seen[:, self.clicked].astype(np.float64)
        gram = (clicks.T @ clicks).toarray(order="F")
        gram[np.diag_indices_from(gram)] += self.settings["penalty"]
        factor, _ = lapack.dpotrf(gram, lower=True, overwrite_a=True)
        inverse, _ = lapack.dpotri(factor, lower=True, overwrite_c=True)
        self.weights = inverse.astype(np.float32)  # the lower triangle alone is the inverse's
        self.weights = np.tril(self.weights) + np.tril(self.weights, -1).T
        self.weights /= -np.diagonal(self.weights).copy()
        np.fill_diagonal(self.weights, 0)

    def scores(self, users: np.ndarray) -> np.ndarray:
        """See :meth:`Popularity.scores`."""
        scores = np.repeat(self.least()[None], len(users), axis=0)
        scores[:, self.clicked] += self.seen[users][:, self.clicked] @ self.weights
        return scores


class MatrixFactorization(Personal):
    """Inner product of a user's and an item's factors as score, learnt by an engine of ``implicit``."""

    engine: type

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
    grid: ClassVar[Grid] = (
        ("regularization", (0.1, 1.0, 10.0, 100.0)),
        ("alpha", (1.0, 3.0, 10.0)),
        ("factors", (32, 64, 128, 256)),
    )

    def __init__(
        self, factors: int = 32, regularization: float = 0.1, alpha: float = 1.0, iterations: int = 15, seed: int = 42
    ) -> None:
        """Set ``alpha``, the confidence that a click adds to the confidence 1 of every cell, and other settings."""
        super().__init__(
            **{
                "factors": factors,
                "regularization": regularization,
                "alpha": alpha,
                "iterations": iterations,
                "random_state": seed,
            }
        )


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
        super().__init__(
            **{
                "factors": factors,
                "regularization": regularization,
                "learning_rate": learning_rate,
                "iterations": iterations,
                "num_threads": 1,
                "random_state": seed,
            }
        )


def fit_baselines(dataset: Dataset) -> list[Popularity]:
    """Every baseline with the settings that are best on the validation part, fitted on training and validation.

    Settings are fitted on the training part and judged by NDCG@10 on the validation part, one setting after the other,
    over at most ``JUDGED`` users. The popularity for users without a history is the one that is best for such users of
    the validation part; if it has none, the one that is best for all.

    Baselines that the data does not allow are left out, with a sentence on the error stream: popularity of some days
    where times have no unit, EASE with more than ``MOST_ITEMS`` items.
    """
    train, valid = dataset.rows("train"), dataset.rows("valid")
    users, items = len(dataset.users), len(dataset.items)
    validated, starts, relevant = _some(*new_items(train, valid))
    newcomers = ~np.isin(validated, train.positives().user)
    newcomers |= not newcomers.any()

    def by_user(baseline: Popularity) -> np.ndarray:
        baseline.fit(train, users, items)
        lists = recommend_all(baseline, validated, 10, items)
        return list_metrics(lists, starts, relevant, (10,))["ndcg@10"]

    popularities = [Popularity(), RecentPopularity(), *_of_days(dataset)]
    for_all: Popularity = RecentPopularity()
    if len(validated):
        recent_first = [*popularities[1:], popularities[0]]  # where all are equally good
        for_all = max(recent_first, key=lambda each: float(by_user(each)[newcomers].mean()))
    personal = _personal(train + valid)
    fitted: list[Popularity] = []
    with progress(
        "fitting baselines", total=sum(len(values) for each in personal for _, values in each.grid)
    ) as advance:
        for kind in personal:
            best = _best(kind, lambda each: float(by_user(each).mean()), advance) if len(validated) else kind()
            best.for_all = for_all
            fitted.append(best)
        for each in (*popularities, *fitted):
            each.fit(train + valid, users, items)
    return [*popularities, *fitted]


def _best(kind: type[Personal], quality: Callable[[Personal], float], advance: Callable[[int], None]) -> Personal:
    """The best settings of a baseline, chosen one after the other, with the others as chosen so far."""
    found: dict[str, float] = {}
    best = kind()
    for name, values in kind.grid:
        tried = [kind(**_chosen(best) | {name: value}) for value in values]
        for each in tried:
            key = str(each.settings)
            found[key] = found[key] if key in found else quality(each)
            advance(1)
        best = max(tried, key=lambda each: found[str(each.settings)])
    return best


def _chosen(baseline: Popularity) -> dict[str, Any]:
    """The settings of the grid, with their values."""
    return {name: baseline.settings[name] for name, _ in baseline.grid}


def _some(users: np.ndarray, starts: np.ndarray, relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most ``JUDGED`` of the users that :func:`new_items` gives, drawn with a fixed seed, with their items."""
    if len(users) <= JUDGED:
        return users, starts, relevant
    kept = np.zeros(len(users), bool)
    kept[np.random.default_rng(SEED).choice(len(users), JUDGED, replace=False)] = True
    counts = np.diff(starts)
    return users[kept], np.concatenate([[0], np.cumsum(counts[kept])]), relevant[np.repeat(kept, counts)]


def _of_days(dataset: Dataset) -> list[Popularity]:
    time = dataset.schema.time
    if time is None or time.ticks_per_day is None:
        console.print("popularity of the last days is left out: the times of the dataset have no unit", highlight=False)
        return []
    return [RecentPopularity(days, time.ticks_per_day) for days in DAYS]


def _personal(rows: Rows) -> list[type[Personal]]:
    clicked = len(np.unique(rows.positives().item))
    kinds: list[type[Personal]] = [ItemKNN, RP3beta, EASE, ALS, BPR]
    if clicked > MOST_ITEMS:
        console.print(f"EASE is left out: {clicked:,} clicked items are more than {MOST_ITEMS:,}", highlight=False)
        kinds.remove(EASE)
    return kinds


def _strongest(
    left: sparse.csr_matrix,
    right: sparse.csr_matrix,
    k: int,
    weigh: Callable[[np.ndarray, slice], np.ndarray],
) -> sparse.csr_matrix:
    """The ``k`` highest weights of each row of a product of two matrices, without its diagonal.

    Args:
        left: float32[n, m] sparse.
        right: float32[m, n] sparse.
        k: number of weights kept in each row; only those above 0 are.
        weigh: function from rows of the product float32[b, n], and their place, to their weights.

    Returns:
        float32[n, n] sparse.
    """
    n = left.shape[0]
    blocks, block = [], max(16, BLOCK_SCORES // n)
    for start in range(0, n, block):
        some = slice(start, min(start + block, n))
        weights = weigh((left[some] @ right).toarray(), some)
        weights[np.arange(len(weights)), np.arange(start, some.stop)] = 0
        best = topk(weights, k)
        values = np.take_along_axis(weights, best, axis=1)
        ends = np.arange(len(best) + 1) * best.shape[1]
        blocks.append(sparse.csr_matrix((values.ravel(), best.ravel(), ends), weights.shape))
    strongest = sparse.vstack(blocks, format="csr")
    strongest.eliminate_zeros()
    return strongest


@contextmanager
def _quiet() -> Iterator[None]:
    """Give BLAS one thread, since ``implicit`` has its own, and ignore its warnings about that and about formats."""
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
