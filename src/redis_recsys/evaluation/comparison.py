"""Means over users with bootstrap intervals, and paired comparison of recommenders on the same users.

Users are drawn with replacement, again and again; the spread of the means shows how far chance carries them. All
recommenders are averaged over the same draws, so that the difference of two means is the mean of each user's
difference. A user with several values, from evaluations at several moments, is drawn with all of them.

Source: B. Efron and R. Tibshirani, "An introduction to the bootstrap", 1993, chapter 13 (percentile interval).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .metrics import title_of

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 42
DRAWS = 1 << 22  # drawn at a time


@dataclass(frozen=True)
class Comparison:
    """Two recommenders in one metric; ``str`` gives the result as a sentence.

    Attributes:
        first, second: names of the recommenders.
        metric: name of the metric, such as ``ndcg@10``.
        users: number of users, the same for both.
        before, after: means of the first and of the second.
        low, high: 95% interval of the mean difference per user, second minus first.
    """

    first: str
    second: str
    metric: str
    users: int
    before: float
    after: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """The mean difference per user, second minus first."""
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """Whether the second ``raises`` or ``lowers`` the metric, or the interval leaves it ``open``."""
        if self.low <= 0 <= self.high:
            return "open"
        return "raises" if self.low > 0 else "lowers"

    def __str__(self) -> str:
        title, users = title_of(self.metric), f"{self.users:,} test users"
        details = f"difference {self.difference:+.3f}, {CONFIDENCE:.0%} interval {self.low:+.3f} to {self.high:+.3f}"
        if self.verdict == "open":
            return (
                f"{self.second} has {title} {self.after:.3f}, {self.first} {self.before:.3f}: "
                f"{users} cannot tell them apart ({details}, paired)"
            )
        return (
            f"{self.second} {self.verdict} {title} from {self.before:.3f} ({self.first}) to {self.after:.3f} "
            f"({details}, paired over {users})"
        )


class Paired:
    """Recommenders measured on the same users: means, their intervals, and paired differences.

    Attributes:
        users: number of different users.
        names: names of the recommenders.
    """

    def __init__(self, values: Mapping[str, Mapping[str, np.ndarray]], ids: np.ndarray | None = None) -> None:
        """
        Args:
            values: recommender -> metric -> float64[n], each between 0 and 1, at least one.
            ids: [n], the user of each value; default: each value is another user's.
        """
        self.names = list(values)
        self._place = {(name, metric): at for at, (name, metric) in enumerate(_pairs(values))}
        columns = np.stack([values[name][metric] for name, metric in self._place], axis=1)
        self._means = columns.mean(axis=0)
        counts = np.ones(len(columns))
        if ids is not None:
            _, user = np.unique(ids, return_inverse=True)
            counts = np.bincount(user).astype(np.float64)
            columns = np.stack([np.bincount(user, column) for column in columns.T], axis=1)
        self.users = len(columns)
        self._resampled = _resampled(columns, counts)

    def mean(self, name: str, metric: str) -> float:
        """The mean over all values of a recommender."""
        return float(self._means[self._place[name, metric]])

    def interval(self, name: str, metric: str) -> tuple[float, float]:
        """The 95% interval of a mean; that of a single user is everything from 0 to 1."""
        return _interval(self._resampled[:, self._place[name, metric]]) if self.users > 1 else (0.0, 1.0)

    def compare(self, first: str, second: str, metric: str = "ndcg@10") -> Comparison:
        """Compare two recommenders by the differences of the same users; a single user shows nothing."""
        before, after = self._place[first, metric], self._place[second, metric]
        low, high = -1.0, 1.0
        if self.users > 1:
            low, high = _interval(self._resampled[:, after] - self._resampled[:, before])
        return Comparison(
            first, second, metric, self.users, float(self._means[before]), float(self._means[after]), low, high
        )


def _pairs(values: Mapping[str, Mapping[str, np.ndarray]]) -> list[tuple[str, str]]:
    return [(name, metric) for name, metrics in values.items() for metric in metrics]


def _resampled(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means float64[RESAMPLES, m] over users drawn with replacement.

    Args:
        sums: float64[users, m], sums of each user's values.
        counts: float64[users], numbers of them.
    """
    random, users = np.random.default_rng(SEED), len(sums)
    table = np.column_stack([sums, counts])
    totals = []
    block = max(1, DRAWS // users)
    for start in range(0, RESAMPLES, block):
        draws = min(block, RESAMPLES - start)
        drawn = random.integers(users, size=(draws, users)) + np.arange(draws)[:, None] * users
        times = np.bincount(drawn.ravel(), minlength=draws * users).reshape(draws, users)
        totals.append(times.astype(np.float64) @ table)
    total = np.concatenate(totals)
    means: np.ndarray = total[:, :-1] / total[:, -1:]
    return means


def _interval(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
