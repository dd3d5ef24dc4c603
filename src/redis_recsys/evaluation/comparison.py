"""Paired comparison of two recommenders on the same users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .metrics import title_of

CONFIDENCE = 0.95


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
    def verdict(self) -> str:
        """Whether the second ``raises`` or ``lowers`` the metric, or the interval leaves it ``open``."""
        if self.low <= 0 <= self.high:
            return "open"
        return "raises" if self.low > 0 else "lowers"

    def __str__(self) -> str:
        title, users = title_of(self.metric), f"{self.users:,} test users"
        details = (
            f"difference {self.after - self.before:+.3f}, {CONFIDENCE:.0%} interval {self.low:+.3f} to {self.high:+.3f}"
        )
        if self.verdict == "open":
            return (
                f"{self.second} has {title} {self.after:.3f}, {self.first} {self.before:.3f}: "
                f"{users} cannot tell them apart ({details}, paired)"
            )
        return (
            f"{self.second} {self.verdict} {title} from {self.before:.3f} ({self.first}) to {self.after:.3f} "
            f"({details}, paired over {users})"
        )


def compare(first: str, second: str, metric: str, before: np.ndarray, after: np.ndarray) -> Comparison:
    """Compare two recommenders by the difference of each user's values, with Student's t for its mean.

    Args:
        first, second: names of the recommenders.
        metric: name of the metric.
        before: float64[n], values of the first, by user.
        after: float64[n], values of the second, for the same users. One user alone has an interval without ends.
    """
    from scipy.stats import t

    differences, users = after - before, len(after)
    margin = np.inf
    if users > 1:
        margin = t.ppf((1 + CONFIDENCE) / 2, users - 1) * differences.std(ddof=1) / np.sqrt(users)
    mean = differences.mean()
    return Comparison(
        first,
        second,
        metric,
        users,
        float(before.mean()),
        float(after.mean()),
        float(mean - margin),
        float(mean + margin),
    )
