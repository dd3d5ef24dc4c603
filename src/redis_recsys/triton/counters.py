"""Counters of a Python model on Triton's metrics port.

Python models have counters and gauges there but no histograms, so a histogram is made of counters with the names that
Prometheus expects. A thread sends changes every few seconds, so that no request has to. Triton adds up the instances of
a model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PERIOD = 2.0  # seconds; sending delays requests by a few milliseconds
Key = tuple[str, ...]


class Sender:
    """Sends counts to Triton until it is closed."""

    def __init__(
        self, families: Sequence[Any], metrics: Mapping[Key, Any], counted: Callable[[], Mapping[Key, float]]
    ) -> None:
        """
        Args:
            families: families of the metrics; Triton drops metrics whose family is gone.
            metrics: Triton's counter for every key.
            counted: function that returns the counts so far.
        """
        self._families, self._metrics, self._counted = families, metrics, counted
        self._sent: dict[Key, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send_until_stopped, name="sends metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send the last counts and stop."""
        self._stop.set()
        self._thread.join()
        self.send()

    def _send_until_stopped(self) -> None:
        while not self._stop.wait(PERIOD):
            self.send()

    def send(self) -> None:
        """Add the increase since the last time to every counter."""
        for key, value in self._counted().items():
            increase = value - self._sent.get(key, 0)
            if increase > 0:
                self._metrics[key].increment(increase)
                self._sent[key] = value
