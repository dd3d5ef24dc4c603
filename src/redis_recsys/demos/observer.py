"""Requests to a served DLRM, and where their rows came from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np

from ..data.criteo.dataset import CriteoDataset
from ..dlrm.dlrm_client import DlrmClient
from ..dlrm.statistics import statistics
from ..hugectr.network import DlrmShape
from ..parameter_server.server import Counts
from ..triton.counters import PERIOD

METRICS_SECONDS = PERIOD + 0.5  # after which the counts of a request are on Triton's metrics port

Request = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Phase:
    """Some requests, and where their rows came from.

    Attributes:
        name: what was going on.
        requests: how many.
        counts: of the table's rows, of these requests alone.
        p50_ms, p99_ms: that a request took.
    """

    name: str
    requests: int
    counts: Counts
    p50_ms: float
    p99_ms: float

    def shares(self) -> dict[str, float]:
        """Share of the rows that each tier gave; ``default`` are those that none had."""
        found = {name: getattr(self.counts, name) for name in ("cache", "redis", "rocksdb", "default")}
        return {name: count / max(1, sum(found.values())) for name, count in found.items()}


class Observer:
    """Sends requests to a served DLRM and sees where their rows came from."""

    def __init__(self, client: DlrmClient, metrics: tuple[str, int], table: str) -> None:
        """
        Args:
            client: of the server.
            metrics: host and port of its metrics.
            table: to look at.
        """
        self._client, self._metrics, self._table = client, metrics, table

    def phase(self, name: str, requests: Iterator[Request], count: int) -> Phase:
        """Send some requests, one after the other; takes a few seconds more, until they are counted.

        Raises:
            ServingError: the server or its metrics cannot be reached.
        """
        before = statistics(*self._metrics)[self._table]
        seconds = []
        for dense, keys in islice(requests, count):
            started = time.perf_counter()
            self._client.predict(dense, keys)
            seconds.append(time.perf_counter() - started)
        time.sleep(METRICS_SECONDS)
        after = asdict(statistics(*self._metrics)[self._table])
        p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1000
        counts = Counts(**{key: value - getattr(before, key) for key, value in after.items()})
        return Phase(name, len(seconds), counts, float(p50), float(p99))


def requests_of(dataset: CriteoDataset, shape: DlrmShape, batch: int) -> Iterator[Request]:
    """Test rows, again and again: dense float32[batch, 13], keys int64[batch, 26]."""
    offsets = np.array(shape.offsets())
    while True:
        for rows in dataset.batches("test", batch):
            yield rows.dense, rows.ids + offsets


def predict_test(
    client: DlrmClient, dataset: CriteoDataset, shape: DlrmShape, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ask a served DLRM about every test row.

    Args:
        client: of the server.
        dataset: with a test part.
        shape: of the model.
        batch: rows per request.

    Returns:
        Click probabilities float32[n], and whether each row was clicked, float32[n] of 0 and 1.

    Raises:
        ServingError: the server cannot be reached.
    """
    offsets = np.array(shape.offsets())
    blocks = [(client.predict(rows.dense, rows.ids + offsets), rows.label) for rows in dataset.batches("test", batch)]
    probability, clicked = (np.concatenate(each) for each in zip(*blocks, strict=True))
    return probability, clicked
