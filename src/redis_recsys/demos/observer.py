"""Requests to a served DLRM, and the tiers of their rows."""

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

METRICS_SECONDS = PERIOD + 0.5  # wait until a request's counts appear on Triton's metrics port

Request = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Phase:
    """A series of requests, and the tiers of their rows.

    Attributes:
        name: description of the phase.
        requests: number of requests.
        counts: counts of the table for these requests alone.
        p50_ms, p99_ms: median and 99th percentile of the time per request.
    """

    name: str
    requests: int
    counts: Counts
    p50_ms: float
    p99_ms: float

    def shares(self) -> dict[str, float]:
        """Share of the rows from each tier; ``default`` for those in none."""
        counts = {name: getattr(self.counts, name) for name in ("cache", "redis", "rocksdb", "default")}
        return {name: count / max(1, sum(counts.values())) for name, count in counts.items()}


class Observer:
    """Sends requests to a served DLRM and counts their rows by tier."""

    def __init__(self, client: DlrmClient, metrics: tuple[str, int], table: str) -> None:
        """
        Args:
            client: client of the server.
            metrics: host and port of its metrics.
            table: table to observe.
        """
        self._client, self._metrics, self._table = client, metrics, table

    def phase(self, name: str, requests: Iterator[Request], count: int) -> Phase:
        """Send some requests, one after the other; then waits a few seconds until they are counted.

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
    """Test rows, in an endless loop: dense float32[batch, 13], keys int64[batch, 26]."""
    offsets = np.array(shape.offsets())
    while True:
        for rows in dataset.batches("test", batch):
            yield rows.dense, rows.ids + offsets


def predict_test(
    client: DlrmClient, dataset: CriteoDataset, shape: DlrmShape, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ask a served DLRM about every test row.

    Args:
        client: client of the server.
        dataset: dataset with a test part.
        shape: shape of the model.
        batch: rows per request.

    Returns:
        Click probabilities float32[n], and whether each row was clicked, float32[n] of 0 and 1.

    Raises:
        ServingError: the server cannot be reached.
    """
    offsets = np.array(shape.offsets())
    blocks = [(client.predict(rows.dense, rows.ids + offsets), rows.label) for rows in dataset.batches("test", batch)]
    probability, clicked = (np.concatenate(column) for column in zip(*blocks, strict=True))
    return probability, clicked
