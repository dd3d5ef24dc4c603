"""Evaluation of models and baselines on the test part, over the full catalogue.

Retrieval: each user's relevant items are the clicked test items that the user has not clicked in training or
validation; recommenders leave out the same seen items, so all of them answer the same question. Ranking: the
score of each test row, measured as the probability of a click. Where the data knows the true click probability (the
oracle), the best possible figures stand beside the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from ..dataset.interactions import BEFORE_TEST, PARTS, Dataset, Rows
from ..errors import DataError
from ..utils.progress import progress
from .comparison import Comparison, compare
from .metrics import auc, calibration, coverage, impression_ndcg, list_metrics, log_loss

BLOCK_SCORES = 1 << 24
NEGATIVES = 4
SEED = 42


class Contender(Protocol):
    """Recommender that can be evaluated: a baseline, retrieval alone, retrieval and ranking."""

    name: str

    def recommend(self, users: np.ndarray, k: int) -> np.ndarray:
        """The best ``k`` items for each user, among those that the user has not had.

        Args:
            users: int[n], entity numbers.
            k: length of the lists.

        Returns:
            int[n, k], entity numbers of items, best first, 0 where there are fewer than k; narrower if the
            catalogue is.
        """
        ...


@dataclass
class Report:
    """Metrics by name.

    Attributes:
        users: numbers of test users: ``all``, ``warm`` (with a history) and ``cold`` (without).
        retrieval: recommender -> metric -> mean over all test users; ``<metric>_error``, the standard error of that
            mean; and ``coverage@k`` of all lists together, which has none.
        warm: the same means over warm users only; empty if there are none.
        cold: the same over cold users.
        ranker: see :func:`evaluate_ranker`; empty if no ranker was given.
        by_user: recommender -> metric -> float64[n], one value per test user, in the same order of users for all;
            left out of :meth:`to_dict`.
    """

    users: dict[str, int]
    retrieval: dict[str, dict[str, float]]
    warm: dict[str, dict[str, float]]
    cold: dict[str, dict[str, float]]
    ranker: dict[str, Any] = field(default_factory=dict)
    by_user: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        document = asdict(replace(self, by_user={}))
        del document["by_user"]
        return document

    def compare(self, first: str, second: str, metric: str = "ndcg@10") -> Comparison:
        """Compare two of the recommenders, user by user.

        Args:
            first, second: names of the recommenders.
            metric: name of a metric in ``by_user``.
        """
        return compare(first, second, metric, self.by_user[first][metric], self.by_user[second][metric])


def evaluate(
    dataset: Dataset,
    recommenders: Sequence[Contender],
    ks: Sequence[int] = (10, 20, 100),
    predict: Callable[[Rows], np.ndarray] | None = None,
) -> Report:
    """Compare recommenders on every user of the test part who has a relevant item.

    Args:
        dataset: dataset with train, valid and test.
        recommenders: recommenders fitted on train and valid, with names that differ.
        ks: list lengths.
        predict: function from rows to scores float[n] between 0 and 1, to measure a ranker too.

    Raises:
        DataError: a part is empty, or no test click is new to its user.
    """
    check_test(dataset)
    seen = dataset.rows(*BEFORE_TEST)
    users, starts, relevant = new_items(seen, dataset.rows("test"))
    if not len(users):
        raise DataError(f"nothing to evaluate: no click in the test part of {dataset.path} is new to its user")
    warm = np.isin(users, seen.positives().user)
    groups = {"warm": warm, "cold": ~warm}
    catalogue = len(dataset.items)
    means: dict[str, dict[str, dict[str, float]]] = {"retrieval": {}, "warm": {}, "cold": {}}
    by_user: dict[str, dict[str, np.ndarray]] = {}
    for recommender in recommenders:
        with progress(f"evaluating {recommender.name}", total=len(users)) as advance:
            lists = recommend_all(recommender, users, max(ks), catalogue, advance)
        metrics = by_user[recommender.name] = list_metrics(lists, starts, relevant, ks)
        summary = {name: float(values.mean()) for name, values in metrics.items()}
        summary |= {f"coverage@{k}": coverage(lists[:, :k], catalogue) for k in ks}
        summary |= {f"{name}_error": float(values.std() / np.sqrt(len(users))) for name, values in metrics.items()}
        means["retrieval"][recommender.name] = summary
        for group, members in groups.items():
            if members.any():
                means[group][recommender.name] = {name: float(v[members].mean()) for name, v in metrics.items()}
    counts = {"all": len(users), "warm": int(warm.sum()), "cold": int((~warm).sum())}
    return Report(counts, **means, ranker=evaluate_ranker(dataset, predict) if predict else {}, by_user=by_user)


def check_test(dataset: Dataset) -> None:
    """Check that a dataset has a test part.

    Raises:
        DataError: the dataset was made without a test part.
    """
    if not dataset.count("test"):
        raise DataError(
            f"{dataset.path} has no test part, so there is nothing to evaluate on: make it without '--test 0'"
        )


def new_items(seen: Rows, later: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items that each user clicks later and has not clicked before.

    Args:
        seen: earlier rows.
        later: later rows.

    Returns:
        Users int[n] with such items, the bounds int64[n + 1] of each user's items, and the items int[m].
    """
    stride = int(max(seen.item.max(initial=0), later.item.max(initial=0))) + 1
    fresh = np.setdiff1d(_pairs(later, stride), _pairs(seen, stride))
    users, counts = np.unique(fresh // stride, return_counts=True)
    return users, np.concatenate([[0], np.cumsum(counts)]), fresh % stride


def recommend_all(
    recommender: Contender,
    users: np.ndarray,
    k: int,
    catalogue: int,
    advance: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Lists of many users, in blocks so that scores of the whole catalogue fit into memory.

    Args:
        recommender: recommender of the lists.
        users: int[n], entity numbers.
        k: length of the lists.
        catalogue: number of items.
        advance: called with the number of users just done.

    Returns:
        int32[n, k], 0 where there are fewer than k.
    """
    lists = np.zeros((len(users), k), np.int32)
    block = max(16, BLOCK_SCORES // catalogue)
    for start in range(0, len(users), block):
        best = recommender.recommend(users[start : start + block], k)
        lists[start : start + block, : best.shape[1]] = best
        advance(len(best))
    return lists


def evaluate_ranker(dataset: Dataset, predict: Callable[[Rows], np.ndarray], k: int = 10) -> dict[str, Any]:
    """Measure a ranker's scores on the test rows, as if they were click probabilities.

    Without a target column every row is a click; then ``NEGATIVES`` items per click are drawn uniformly from the
    catalogue with a fixed seed, and those that the user has clicked in any part are dropped.

    Args:
        dataset: dataset with a test part.
        predict: function from rows to scores float[n] between 0 and 1.
        k: cut-off of ``impression_ndcg``.

    Returns:
        ``auc``, ``log_loss``, ``impression_ndcg@k``, ``calibration`` (see :func:`metrics.calibration`; with drawn
        negatives it depends on their number), ``rows``, ``positives``, ``sampled_negatives``; and with an oracle
        ``oracle`` (the first three metrics) and ``share_of_oracle_auc``, ``(auc - 0.5) / (oracle - 0.5)``.

    Raises:
        DataError: the test part is empty, or has only clicks or only non-clicks.
    """
    check_test(dataset)
    rows = dataset.rows("test")
    sampled = 0
    if dataset.schema.target is None:
        drawn = _negatives(dataset, rows)
        sampled = len(drawn)
        rows = rows + drawn

    def measure(probability: np.ndarray) -> dict[str, float]:
        return {
            "auc": auc(probability, rows.target),
            "log_loss": log_loss(probability, rows.target),
            f"impression_ndcg@{k}": impression_ndcg(rows.user, probability, rows.target, k),
        }

    score = predict(rows)
    result: dict[str, Any] = {
        **measure(score),
        "calibration": calibration(score, rows.target),
        "rows": len(rows),
        "positives": int((rows.target > 0).sum()),
        "sampled_negatives": sampled,
    }
    if rows.oracle is not None:
        result["oracle"] = measure(rows.oracle)
        result["share_of_oracle_auc"] = (result["auc"] - 0.5) / (result["oracle"]["auc"] - 0.5)
    return result


def _negatives(dataset: Dataset, clicks: Rows) -> Rows:
    stride = len(dataset.items) + 1
    clicked = _pairs(dataset.rows(*PARTS), stride)
    rows = clicks.take(np.repeat(np.arange(len(clicks)), NEGATIVES))
    items = np.random.default_rng(SEED).integers(1, stride, len(rows), dtype=np.int32)
    drawn = Rows(rows.user, items, np.zeros(len(rows), np.float32), rows.time)
    new = ~np.isin(drawn.user * np.int64(stride) + drawn.item, clicked)
    return drawn.take(new)


def _pairs(rows: Rows, stride: int) -> np.ndarray:
    """Clicks in ``rows`` as int64 numbers, one for each user and item."""
    rows = rows.positives()
    return rows.user * np.int64(stride) + rows.item
