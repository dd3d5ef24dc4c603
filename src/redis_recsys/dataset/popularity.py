"""Popular items, recently popular ones first: the fallback for users about whom nothing is known.

Items are ordered by their clicks among the newest tenth of all clicks, ties and the others by their clicks ever.
Items that nobody clicked come last, in the order of the item table. Baselines, bundles, lists written ahead, answers
on demand and degraded answers share this order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .interactions import Rows

SHARE = 0.1  # share of the clicks, the newest ones, that decides first


class Clicks(NamedTuple):
    """Clicks of n items, item 1 first.

    Attributes:
        ever: int64[n], clicks among all rows.
        recent: int64[n], clicks among the newest tenth of all clicks; None where no times are known.
    """

    ever: np.ndarray
    recent: np.ndarray | None = None

    @classmethod
    def of(cls, rows: Rows, items: int) -> Clicks:
        """Clicks in ``rows``; all clicks as old as the oldest of the newest tenth count as recent, too."""
        rows = rows.positives()
        ever = np.bincount(rows.item - 1, minlength=items)
        if not len(rows):
            return cls(ever, ever)
        newest = len(rows) - int(np.ceil(SHARE * len(rows)))
        edge = np.partition(rows.time, newest)[newest]
        return cls(ever, np.bincount(rows.item[rows.time >= edge] - 1, minlength=items))

    @property
    def scores(self) -> np.ndarray:
        """float64[n], higher for items that come first: recent clicks, with the share of clicks ever as fraction.

        Without times they are the clicks ever.
        """
        if self.recent is None:
            return self.ever.astype(np.float64)
        scores: np.ndarray = self.recent + self.ever / (self.ever.max(initial=0) + 1)
        return scores


class Popular:
    """Every item of a catalogue, most popular first; empty where no clicks are known.

    Attributes:
        items: int32[m] entity numbers.
        scores: float64[m], falling; 0 for items that nobody clicked.
    """

    def __init__(self, items: np.ndarray, scores: np.ndarray) -> None:
        self.items, self.scores = items, scores

    @classmethod
    def of(cls, clicks: Clicks, raw_ids: np.ndarray) -> Popular:
        """Items by their clicks.

        Ties go to the item whose id is higher as text, as in a sorted set of Redis.

        Args:
            clicks: clicks of n items.
            raw_ids: int64[n] or object[n] of str.
        """
        texts = [str(raw).encode() for raw in raw_ids.tolist()]
        by_text = np.array(sorted(range(len(texts)), key=texts.__getitem__, reverse=True))
        order = by_text[np.argsort(-clicks.scores[by_text], kind="stable")]
        return cls((order + 1).astype(np.int32), clicks.scores[order])

    def among(self, shown: np.ndarray) -> Popular:
        """The items that may be shown, by a mask bool[items + 1] over entity numbers."""
        kept = shown[self.items]
        return Popular(self.items[kept], self.scores[kept])

    def unseen(self, seen: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first items that each of b users has not seen.

        Args:
            seen: int[b, S] entity numbers, padded with 0.
            count: number of items for each user.

        Returns:
            items int32[b, count], and their scores float32[b, count]; 0 and -inf where there are fewer.
        """
        items = np.zeros((len(seen), count), np.int32)
        scores = np.full(items.shape, -np.inf, np.float32)
        for row, had in enumerate(seen):
            first = slice(count + np.count_nonzero(had))
            kept = np.flatnonzero(~np.isin(self.items[first], had))[:count]
            items[row, : len(kept)], scores[row, : len(kept)] = self.items[kept], self.scores[kept]
        return items, scores
