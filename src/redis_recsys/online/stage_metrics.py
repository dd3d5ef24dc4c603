"""Metrics of the online stages: time per stage, candidates, answers and fallbacks, exported to Prometheus by Triton.

Python models have counters and gauges there but no histograms, so a histogram is made of counters with the names that
Prometheus expects.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..triton.counters import Key, Sender

COUNTED = {"candidates": "candidates", "filter": "items"}  # stage -> its column of items whose number is counted
BUCKETS = tuple(round(1e-5 * factor * 10**power, 6) for power in range(5) for factor in (1, 2, 5))  # 10 us to 0.5 s
BOUNDS = (*(f"{bound:g}" for bound in BUCKETS), "+Inf")
STAGE = "recsys_stage_seconds"
HELP = "Time that a batch of requests spent in a stage"


class StageMetrics:
    """Time spent per stage as Prometheus histograms, and counts of candidates and answers.

    One thread adds, another reads.
    """

    def __init__(self, stages: Sequence[str]) -> None:
        self.counts = {stage: np.zeros(len(BUCKETS) + 1, np.int64) for stage in stages}
        self.seconds = dict.fromkeys(stages, 0.0)
        self.candidates = {stage: 0 for stage in stages if stage in COUNTED}
        self.requests = 0
        self.degraded = 0

    def add(self, stage: str, seconds: float) -> None:
        """Count one run of a stage."""
        self.counts[stage][bisect_left(BUCKETS, seconds)] += 1
        self.seconds[stage] += seconds


def send_stage_metrics(metrics: StageMetrics, family: Any) -> Sender:
    """Send the metrics of a runner of stages.

    The metrics are ``recsys_stage_seconds_bucket{stage, le}``, ``recsys_stage_seconds_sum{stage}`` and
    ``recsys_stage_seconds_count{stage}``, where a batch counts once, ``recsys_requests_total`` and
    ``recsys_degraded_total``, where every user counts, and ``recsys_candidates_total{stage}``, where every item does.

    Args:
        metrics: metrics of the runner, which keeps adding to them.
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
    counters: dict[Key, Any] = {("requests",): requests.Metric(labels={}), ("degraded",): degraded.Metric(labels={})}
    for stage in metrics.counts:
        counters["sum", stage] = total.Metric(labels={"stage": stage})
        counters["count", stage] = count.Metric(labels={"stage": stage})
        for bound in BOUNDS:
            counters["bucket", stage, bound] = bucket.Metric(labels={"stage": stage, "le": bound})
    for stage in metrics.candidates:
        counters["candidates", stage] = candidates.Metric(labels={"stage": stage})

    def counted() -> dict[Key, float]:
        values: dict[Key, float] = {("requests",): metrics.requests, ("degraded",): metrics.degraded}
        for stage, counts in metrics.counts.items():
            running = np.cumsum(counts).tolist()
            values["sum", stage], values["count", stage] = metrics.seconds[stage], running[-1]
            values |= {("bucket", stage, bound): at_most for bound, at_most in zip(BOUNDS, running, strict=True)}
        values |= {("candidates", stage): items for stage, items in metrics.candidates.items()}
        return values

    return Sender(families, counters, counted)
