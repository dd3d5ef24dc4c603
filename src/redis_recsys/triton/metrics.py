"""What the pipeline counts, on Triton's metrics port.

Python models have counters and gauges there but no histograms, so a histogram is made of counters with the names that
Prometheus expects. A thread sends what has changed every few seconds, so that no request has to. Triton adds up the
instances of a model.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ..pipeline import BUCKETS, Timings

PERIOD = 2.0  # seconds; sending holds up requests for a few milliseconds
BOUNDS = (*(f"{bound:g}" for bound in BUCKETS), "+Inf")
STAGE = "recsys_stage_seconds"
HELP = "Time that a batch of requests spent in a stage"


class Exporter:
    """Sends the counts of a runner until it is closed.

    The metrics are ``recsys_stage_seconds_bucket{stage, le}``, ``recsys_stage_seconds_sum{stage}`` and
    ``recsys_stage_seconds_count{stage}``, where a batch counts once, and ``recsys_requests_total`` and
    ``recsys_degraded_total``, where every user counts.
    """

    def __init__(self, timings: Timings, family: Any) -> None:
        """
        Args:
            timings: of the runner, which goes on adding to them.
            family: ``pb_utils.MetricFamily``.
        """
        self._timings = timings
        self._sent: dict[tuple[str, ...], float] = {}
        counter = family.COUNTER
        bucket, count, total, requests, degraded = self._families = [
            family(name=name, description=text, kind=counter)
            for name, text in (
                (f"{STAGE}_bucket", f"{HELP}: batches that took at most le seconds"),
                (f"{STAGE}_count", f"{HELP}: batches"),
                (f"{STAGE}_sum", f"{HELP}: seconds"),
                ("recsys_requests_total", "Users answered"),
                ("recsys_degraded_total", "Users answered with popular items because Redis or a model failed"),
            )
        ]
        self._metrics: dict[tuple[str, ...], Any] = {
            ("requests",): requests.Metric(labels={}),
            ("degraded",): degraded.Metric(labels={}),
        }
        for stage in timings.counts:
            self._metrics["sum", stage] = total.Metric(labels={"stage": stage})
            self._metrics["count", stage] = count.Metric(labels={"stage": stage})
            for bound in BOUNDS:
                self._metrics["bucket", stage, bound] = bucket.Metric(labels={"stage": stage, "le": bound})
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

    def _counted(self) -> dict[tuple[str, ...], float]:
        timings = self._timings
        counted: dict[tuple[str, ...], float] = {
            ("requests",): timings.requests,
            ("degraded",): timings.degraded,
        }
        for stage, counts in timings.counts.items():
            running = np.cumsum(counts).tolist()
            counted["sum", stage], counted["count", stage] = timings.seconds[stage], running[-1]
            counted |= {("bucket", stage, bound): at_most for bound, at_most in zip(BOUNDS, running, strict=True)}
        return counted
