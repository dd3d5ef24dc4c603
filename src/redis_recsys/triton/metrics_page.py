"""Triton's metrics, read from the page that Prometheus would read."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

SECONDS = 5.0


def scrape(host: str, metrics_port: int) -> list[Sample]:
    """Samples of the page, each with ``name``, ``labels`` and ``value``.

    Args:
        host, metrics_port: address of Triton's metrics.

    Raises:
        OSError: nobody answers there.
        ValueError: the answer is no such page.
    """
    with urllib.request.urlopen(f"http://{host}:{metrics_port}/metrics", timeout=SECONDS) as answer:
        text = answer.read().decode()
    # The parser appends ``_total`` to the names of all that a comment says is a counter. Triton and our dashboards do
    # not, so it does not get to see the comments.
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return [sample for family in text_string_to_metric_families("\n".join(lines)) for sample in family.samples]
