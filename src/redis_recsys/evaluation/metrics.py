"""Metrics of recommendation lists and of click probabilities, in NumPy, for all users at once.

Ranked-list metrics take ``hits``, ``bool[n, k]``: whether the item at each place of each user's list is relevant
(:func:`hits_of`), and return one value per user, so that callers can average over any group of users. They are own
code: scikit-learn's ``ndcg_score`` wants the whole catalogue as a row per user, and the rest is a line each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError

TITLES = {
    "ndcg": "NDCG",
    "recall": "Recall",
    "hit_rate": "Hit rate",
    "mrr": "MRR",
    "coverage": "Coverage",
    "click_probability": "True click probability",
}


def hits_of(recommended: np.ndarray, starts: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Mask of the recommended items that are relevant.

    Args:
        recommended: int[n, k], no item twice in a row; 0 pads short lists and is never relevant.
        starts: int[n + 1]; user ``u`` finds ``relevant[starts[u]:starts[u + 1]]`` relevant.
        relevant: int[m], item numbers from 1, no item twice for a user.

    Returns:
        bool[n, k].
    """
    stride = int(max(recommended.max(initial=0), relevant.max(initial=0))) + 1
    users = np.arange(len(recommended), dtype=np.int64)
    relevant_pairs = np.repeat(users, np.diff(starts)) * stride + relevant
    return np.isin(users[:, None] * stride + recommended, relevant_pairs) & (recommended > 0)


def recall_at(hits: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """Share of a user's relevant items among the first k: ``hits in the first k / relevant``.

    Args:
        hits: bool[n, k or more].
        relevant: int[n], number of items that are relevant to each user, at least 1.
        k: cut-off of the list.

    Returns:
        float64[n].
    """
    return hits[:, :k].sum(axis=1) / relevant


def ndcg_at(hits: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain with binary relevance.

    ``DCG = sum over hits of 1 / log2(place + 1)``, places from 1, divided by the DCG of a list that has
    ``min(k, relevant)`` hits at its head.

    Source: K. Järvelin and J. Kekäläinen, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20(4), 2002.

    Args:
        hits: bool[n, k or more].
        relevant: int[n], number of items that are relevant to each user, at least 1.
        k: cut-off of the list.

    Returns:
        float64[n].
    """
    discounts = _discounts(k)
    ideal = np.cumsum(discounts)[np.minimum(relevant, k) - 1]
    return (hits[:, :k] * discounts[: hits.shape[1]]).sum(axis=1) / ideal


def mrr(hits: np.ndarray) -> np.ndarray:
    """Reciprocal place of the first hit, ``1 / place``; 0 for a list without a hit.

    Source: E. Voorhees, "The TREC-8 Question Answering Track Report", 1999.

    Args:
        hits: bool[n, k].

    Returns:
        float64[n].
    """
    return hits.any(axis=1) / (hits.argmax(axis=1) + 1)


def hit_rate(hits: np.ndarray, k: int) -> np.ndarray:
    """Whether there is any hit among the first k, as 0.0 or 1.0 in float64[n]."""
    return (hits[:, :k].sum(axis=1) > 0).astype(np.float64)


def coverage(recommended: np.ndarray, catalogue_size: int) -> float:
    """Share of the catalogue recommended to any user: ``distinct items in int[n, k] / catalogue_size``."""
    items = np.unique(recommended)
    return float((items > 0).sum() / catalogue_size)


def list_metrics(
    recommended: np.ndarray, starts: np.ndarray, relevant: np.ndarray, ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """Every ranked-list metric of each user.

    Args:
        recommended: int[n, max(ks)], see :func:`hits_of`.
        starts: int[n + 1]; everyone has at least one relevant item.
        relevant: int[m].
        ks: list lengths to report.

    Returns:
        ``recall@k``, ``ndcg@k`` and ``hit_rate@k`` for each k, and ``mrr`` over the whole list, as float64[n].

    Raises:
        DataError: a user has no relevant item, so that recall is undefined.
    """
    counts = np.diff(starts)
    if (counts == 0).any():
        raise DataError(f"{(counts == 0).sum()} users have no relevant item: leave them out of the evaluation")
    return metrics_of(hits_of(recommended, starts, relevant), counts, ks)


def metrics_of(hits: np.ndarray, counts: np.ndarray, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """The same of lists whose hits are known.

    Args:
        hits: bool[n, max(ks)].
        counts: int[n], number of items that are relevant to each user, at least 1.
        ks: list lengths to report.
    """
    metrics = {f"recall@{k}": recall_at(hits, counts, k) for k in ks}
    metrics |= {f"ndcg@{k}": ndcg_at(hits, counts, k) for k in ks}
    metrics |= {f"hit_rate@{k}": hit_rate(hits, k) for k in ks}
    return metrics | {"mrr": mrr(hits)}


def auc(score: np.ndarray, target: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a click scores above a non-click, ties counting one half.

    Exact, from the sum of ranks in O(n log n): ``(R - p (p + 1) / 2) / (p q)`` with p clicks, q non-clicks and R
    the sum of the clicks' ranks, tied scores sharing their mean rank.

    Source: H. Mann and D. Whitney, Annals of Mathematical Statistics 18(1), 1947.

    Args:
        score: float[n].
        target: float[n], above 0 for a click.

    Raises:
        DataError: all rows are clicks, or none is.
    """
    clicked = target > 0
    positives = int(clicked.sum())
    negatives = len(clicked) - positives
    if not positives or not negatives:
        raise DataError(f"AUC needs clicks and non-clicks, the data has {positives} and {negatives}")
    _, group, sizes = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(sizes) - (sizes - 1) / 2
    ranks = mean_rank[group[clicked]].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def log_loss(probability: np.ndarray, target: np.ndarray) -> float:
    """Mean negative log-likelihood in nats, ``-mean(y log p + (1 - y) log(1 - p))``, p kept within 1e-7 of 0 and 1.

    Args:
        probability: float[n].
        target: float[n], above 0 for a click.
    """
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.log(np.where(target > 0, p, 1 - p)).mean())


def impression_ndcg(user: np.ndarray, score: np.ndarray, target: np.ndarray, k: int) -> float:
    """NDCG at k of each user's impressions in order of score, averaged over users with clicks and non-clicks.

    Users with only one kind are left out, since any order of their impressions is equally good. Impressions of equal
    score share their mean gain, which is the expectation over all ways to break the tie.

    Source: F. McSherry and M. Najork, "Computing information retrieval performance measures efficiently in the
    presence of tied scores", ECIR 2008.

    Args:
        user: int[n].
        score: float[n].
        target: float[n], above 0 for a click.
        k: cut-off of each user's impressions.

    Raises:
        DataError: no user has both clicks and non-clicks.
    """
    order = np.lexsort((-score, user))
    user, score, gain = user[order], score[order], (target[order] > 0).astype(np.float64)
    starts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    sizes = np.diff(np.r_[starts, len(user)])
    clicks = np.add.reduceat(gain, starts)
    mixed = (clicks > 0) & (clicks < sizes)
    if not mixed.any():
        raise DataError("impression NDCG needs a user with clicks and non-clicks, the data has none")
    ties = np.flatnonzero(np.r_[True, (user[1:] != user[:-1]) | (score[1:] != score[:-1])])
    widths = np.diff(np.r_[ties, len(user)])
    gain = np.repeat(np.add.reduceat(gain, ties) / widths, widths)
    place = np.arange(len(user)) - np.repeat(starts, sizes)
    discounts = _discounts(k)
    discounted = np.where(place < k, gain * discounts[np.minimum(place, k - 1)], 0.0)
    ideal = np.cumsum(discounts)[np.clip(clicks, 1, k).astype(np.int64) - 1]
    return float((np.add.reduceat(discounted, starts) / ideal)[mixed].mean())


@dataclass(frozen=True)
class Calibration:
    """Predicted against observed shares of clicks, in bins of rows with similar predictions; ``str`` is a sentence.

    Attributes:
        predicted: mean prediction of each bin, rising.
        observed: share of clicks in each bin.
        rows: number of rows in each bin.
    """

    predicted: list[float]
    observed: list[float]
    rows: list[int]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of predicted and observed share, weighted by rows."""
        return float(np.average(np.abs(np.subtract(self.predicted, self.observed)), weights=self.rows))

    def __str__(self) -> str:
        predicted, observed = (np.average(shares, weights=self.rows) for shares in (self.predicted, self.observed))
        high = int((np.array(self.predicted) > self.observed).sum())
        return (
            f"Of {sum(self.rows):,} rows, {observed:.1%} are clicks; the mean prediction is {predicted:.1%}. Over "
            f"{len(self.rows)} bins of similar predictions it is off by {self.error * 100:.1f} percentage points on "
            f"average, too high in {high} and too low in {len(self.rows) - high}."
        )


def calibration(probability: np.ndarray, target: np.ndarray, bins: int = 10) -> Calibration:
    """Compare predictions with outcomes, in bins of about equally many rows; equal predictions share a bin.

    Source: A. Niculescu-Mizil and R. Caruana, "Predicting good probabilities with supervised learning", ICML 2005.

    Args:
        probability: float[n], n at least 1.
        target: float[n], above 0 for a click.
        bins: largest number of bins.
    """
    edges = np.unique(np.quantile(probability, np.arange(1, bins) / bins))
    number = np.searchsorted(edges, probability, side="right")
    rows = np.bincount(number)
    filled = rows > 0
    predicted = np.bincount(number, probability)[filled] / rows[filled]
    observed = np.bincount(number, target > 0)[filled] / rows[filled]
    return Calibration(predicted.tolist(), observed.tolist(), rows[filled].tolist())


def title_of(metric: str) -> str:
    """Title of a metric as people write it: ``ndcg@10`` -> ``NDCG@10``."""
    name, *length = metric.split("@")
    return "@".join([TITLES[name], *length])


def _discounts(k: int) -> np.ndarray:
    return 1.0 / np.log2(np.arange(k) + 2)
