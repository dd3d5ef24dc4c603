"""Evaluation of models and baselines on the test part, over the full catalogue.

Retrieval: each user's relevant items are the clicked test items that the user has not clicked in training or
validation; recommenders leave out the same seen items, so all of them answer the same question. Ranking: the
score of each test row, measured as the probability of a click. Where the data knows the true click probability (the
oracle), the best possible figures stand beside the model's.

Ceilings stand beside the recommenders: the candidates of retrieval in their ideal order, which no ranker can surpass,
and, where the truth is known, all items in the order of their true click probability.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from ..dataset.interactions import BEFORE_TEST, PARTS, Dataset, Rows
from ..dataset.user_history import History
from ..errors import DataError
from ..retrieval.topk import topk
from ..utils.progress import progress
from .comparison import Comparison, Paired
from .metrics import (
    Calibration,
    auc,
    calibration,
    coverage,
    hits_of,
    impression_ndcg,
    list_metrics,
    log_loss,
    metrics_of,
)

BLOCK_SCORES = 1 << 24
NEGATIVES = 4
SEED = 42
IDEAL, TRUE = "ideal reordering", "true probability"  # names of the ceilings
Truth = Callable[[np.ndarray, np.ndarray], np.ndarray]


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


class Retrieval(Contender, Protocol):
    """Contender that a ranker takes its candidates from."""

    candidates: int


@dataclass
class Report:
    """Metrics by name.

    Attributes:
        users: numbers of test users: ``all``, ``warm`` (with a history) and ``cold`` (without).
        retrieval: recommender -> metric -> mean over all test users; ``<metric>_error``, the standard error of that
            mean; ``<metric>_low`` and ``<metric>_high``, its 95% interval by the bootstrap; and ``coverage@k`` of all
            lists together, which has neither. Where the truth is known, ``click_probability@k`` is the mean true click
            probability of the first k items, k being the shortest of the list lengths.
        warm: the same means over warm users only; empty if there are none.
        cold: the same over cold users.
        ceilings: the same over all users for ``IDEAL`` and ``TRUE``, as far as they are known.
        ranker: see :func:`evaluate_ranker`; empty if no ranker was given.
        by_user: recommender or ceiling -> metric -> float64[n], one value per test user, in the same order of users
            for all; left out of :meth:`to_dict`, as the next three are.
        ids: raw ids of these users.
        members: bool[n] for ``all``, ``warm`` and ``cold``, the users that belong to each group.
        groups: the same values, for all, warm and cold users, ready to be compared; empty groups are missing.
    """

    users: dict[str, int]
    retrieval: dict[str, dict[str, float]]
    warm: dict[str, dict[str, float]]
    cold: dict[str, dict[str, float]]
    ceilings: dict[str, dict[str, float]]
    ranker: dict[str, Any]
    by_user: dict[str, dict[str, np.ndarray]] = field(repr=False)
    ids: np.ndarray = field(repr=False)
    members: dict[str, np.ndarray] = field(repr=False)
    groups: dict[str, Paired] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        kept = ("users", "retrieval", "warm", "cold", "ceilings")
        return {name: getattr(self, name) for name in kept} | {
            "ranker": {name: asdict(v) if isinstance(v, Calibration) else v for name, v in self.ranker.items()}
        }

    def compare(self, first: str, second: str, metric: str = "ndcg@10", group: str = "all") -> Comparison:
        """Compare two of the recommenders, user by user.

        Args:
            first, second: names of the recommenders.
            metric: name of a metric in ``by_user``.
            group: ``all``, ``warm`` or ``cold`` users.
        """
        return self.groups[group].compare(first, second, metric)


def evaluate(
    dataset: Dataset,
    recommenders: Sequence[Contender],
    ks: Sequence[int] = (10, 20, 100),
    predict: Callable[[Rows], np.ndarray] | None = None,
    retrieval: Retrieval | None = None,
    truth: Truth | None = None,
) -> Report:
    """Compare recommenders on every user of the test part who has a relevant item.

    Args:
        dataset: dataset with train, valid and test.
        recommenders: recommenders fitted on train and valid, with names that differ.
        ks: list lengths.
        predict: function from rows to scores float[n] between 0 and 1, to measure a ranker too.
        retrieval: the one of ``recommenders`` whose candidates are also measured in their ideal order.
        truth: function from raw ids of users [n] and of items [n, k] to true click probabilities float[n, k].

    Raises:
        DataError: a part is empty, or no test click is new to its user.
    """
    check_test(dataset)
    seen = dataset.rows(*BEFORE_TEST)
    users, starts, relevant = new_items(seen, dataset.rows("test"))
    if not len(users):
        raise DataError(f"nothing to evaluate: no click in the test part of {dataset.path} is new to its user")
    catalogue, counts = len(dataset.items), np.diff(starts)
    by_user: dict[str, dict[str, np.ndarray]] = {}
    ideal: dict[str, dict[str, np.ndarray]] = {}
    covered: dict[str, dict[str, float]] = {}
    contenders = [*recommenders, *([TrueOrder(dataset, seen, truth)] if truth else [])]
    for recommender in contenders:
        length = max(*ks, retrieval.candidates if retrieval is not None and recommender is retrieval else 0)
        with progress(f"evaluating {recommender.name}", total=len(users)) as advance:
            lists = recommend_all(recommender, users, length, catalogue, advance)
        by_user[recommender.name] = list_metrics(lists[:, : max(ks)], starts, relevant, ks)
        if truth:
            shown = lists[:, : min(ks)]
            chance = truth(dataset.users.raw_ids[users - 1], dataset.items.raw_ids[np.maximum(shown, 1) - 1])
            mean = np.average(chance, axis=1, weights=np.where(shown > 0, 1.0, 1e-12))
            by_user[recommender.name][f"click_probability@{min(ks)}"] = mean
        covered[recommender.name] = {f"coverage@{k}": coverage(lists[:, :k], catalogue) for k in ks}
        if retrieval is not None and recommender is retrieval:
            hits = hits_of(lists[:, : retrieval.candidates], starts, relevant)
            ideal[IDEAL] = metrics_of(np.sort(hits, axis=1)[:, ::-1], counts, ks)
    by_user |= ideal
    warm = np.isin(users, seen.positives().user)
    members = {"all": np.ones(len(users), bool), "warm": warm, "cold": ~warm}
    groups = {
        group: Paired({name: {m: v[which] for m, v in metrics.items()} for name, metrics in by_user.items()})
        for group, which in members.items()
        if which.any()
    }

    def means(group: str, names: Sequence[str]) -> dict[str, dict[str, float]]:
        return {name: _summary(groups[group], name, by_user[name]) for name in names if group in groups}

    names = [recommender.name for recommender in recommenders]
    overall = means("all", names)
    for name in names:
        errors = {f"{m}_error": float(v.std() / np.sqrt(len(users))) for m, v in by_user[name].items()}
        overall[name] |= covered[name] | errors
    return Report(
        users={group: int(which.sum()) for group, which in members.items()},
        retrieval=overall,
        warm=means("warm", names),
        cold=means("cold", names),
        ceilings=means("all", [name for name in by_user if name not in names]),
        ranker=evaluate_ranker(dataset, predict) if predict else {},
        by_user=by_user,
        ids=dataset.users.raw_ids[users - 1],
        members=members,
        groups=groups,
    )


def _summary(group: Paired, name: str, metrics: Iterable[str]) -> dict[str, float]:
    """The means of a recommender, each with its interval."""
    summary: dict[str, float] = {}
    for metric in metrics:
        low, high = group.interval(name, metric)
        summary |= {metric: group.mean(name, metric), f"{metric}_low": low, f"{metric}_high": high}
    return summary


class TrueOrder:
    """All items in the order of their true click probability, the user's seen ones left out."""

    name = TRUE

    def __init__(self, dataset: Dataset, seen: Rows, truth: Truth) -> None:
        self._users, self._items, self._truth = dataset.users.raw_ids, dataset.items.raw_ids, truth
        self._history = History.of(seen, len(dataset.users))

    def recommend(self, users: np.ndarray, k: int) -> np.ndarray:
        """See :meth:`Contender.recommend`."""
        scores = self._truth(self._users[users - 1], np.repeat(self._items[None], len(users), axis=0))
        for row, user in enumerate(users.tolist()):
            scores[row, self._history[user] - 1] = -np.inf
        best = topk(scores, k)
        return np.where(np.isneginf(np.take_along_axis(scores, best, axis=1)), 0, best + 1)


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
