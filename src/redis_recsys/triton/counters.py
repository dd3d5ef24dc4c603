"""What the pipeline or the parameter server counts, on Triton's metrics port.

Python models have counters and gauges there but no histograms, so a histogram is made of counters with the names that
Prometheus expects. A thread sends what has changed every few seconds, so that no request has to. Triton adds up the
instances of a model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..online.pipeline import BUCKETS, Timings

PERIOD = 2.0  # seconds; sending holds up requests for a few milliseconds
BOUNDS = (*(f"{bound:g}" for bound in BUCKETS), "+Inf")
STAGE = "recsys_stage_seconds"
Key = tuple[str, ...]
HELP = "Time that a batch of requests spent in a stage"


class Sender:
    """Sends counts to Triton until it is closed."""

    def __init__(
        self, families: Sequence[Any], metrics: Mapping[Key, Any], counted: Callable[[], Mapping[Key, float]]
    ) -> None:
        """
        Args:
            families: of the metrics; Triton forgets metrics whose family is gone.
            metrics: a counter of Triton's for every key.
            counted: the counts so far.
        """
        self._families, self._metrics, self._counted = families, metrics, counted
        self._sent: dict[Key, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sends metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send the last counts and stop."""
        self._stop.set()
        self._thread.join()
        self._send()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD):
            self._send()

    def _send(self) -> None:
        """Add to every counter what has come since the last time."""
        for key, value in self._counted().items():
            more = value - self._sent.get(key, 0)
            if more > 0:
                self._metrics[key].increment(more)
                self._sent[key] = value


def of_stages(timings: Timings, family: Any) -> Sender:
    """Sends what a runner of stages counts.

    The metrics are ``recsys_stage_seconds_bucket{stage, le}``, ``recsys_stage_seconds_sum{stage}`` and
    ``recsys_stage_seconds_count{stage}``, where a batch counts once, ``recsys_requests_total`` and
    ``recsys_degraded_total``, where every user counts, and ``recsys_candidates_total{stage}``, where every item does.

    Args:
        timings: of the runner, which goes on adding to them.
        family: ``pb_utils.MetricFamily``.
    """
    bucket, count, total, requests, degraded, candidates = families = [
        family(name=name, description=text, kind=family.COUNTER)
        for name, text in (
            (f"{STAGE}_bucket", f"{HELP}: batches that took at most le seconds"),
            (f"{STAGE}_count", f"{HELP}: batches"),
            (f"{STAGE}_sum", f"{HELP}: seconds"),
            ("recsys_requests_total", "Users answered"),
            ("recsys_degraded_total", "Users answered with popular items because Redis or a model failed"),
            ("recsys_candidates_total", "Items that a stage handed on, of all users together"),
        )
    ]
    metrics: dict[Key, Any] = {("requests",): requests.Metric(labels={}), ("degraded",): degraded.Metric(labels={})}
    for stage in timings.counts:
        metrics["sum", stage] = total.Metric(labels={"stage": stage})
        metrics["count", stage] = count.Metric(labels={"stage": stage})
        for bound in BOUNDS:
            metrics["bucket", stage, bound] = bucket.Metric(labels={"stage": stage, "le": bound})
    for stage in timings.candidates:
        metrics["candidates", stage] = candidates.Metric(labels={"stage": stage})

    def counted() -> dict[Key, float]:
        found: dict[Key, float] = {("requests",): timings.requests, ("degraded",): timings.degraded}
        for stage, counts in timings.counts.items():
            running = np.cumsum(counts).tolist()
            found["sum", stage], found["count", stage] = timings.seconds[stage], running[-1]
            found |= {("bucket", stage, bound): at_most for bound, at_most in zip(BOUNDS, running, strict=True)}
        found |= {("candidates", stage): items for stage, items in timings.candidates.items()}
        return found

    return Sender(families, metrics, counted)


def of_tables(
    tables: Sequence[str], names: Sequence[str], counts: Callable[[], Mapping[Key, float]], family: Any
) -> Sender:
    """Sends what a parameter server counts, as ``recsys_table_<name>_total{table}``.

    Args:
        tables: their names.
        names: of what is counted.
        counts: (name, table) -> count so far.
        family: ``pb_utils.MetricFamily``.
    """
    families = [
        family(name=f"recsys_table_{name}_total", description=f"Lookups of tables: {name}", kind=family.COUNTER)
        for name in names
    ]
    metrics: dict[Key, Any] = {
        (name, table): made.Metric(labels={"table": table})
        for name, made in zip(names, families, strict=True)
        for table in tables
    }
    return Sender(families, metrics, counts)
