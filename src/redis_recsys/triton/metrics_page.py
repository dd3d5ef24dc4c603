"""Triton's metrics, read from the page for Prometheus."""

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
        OSError: no server answers there.
        ValueError: the answer is not such a page.
    """
    with urllib.request.urlopen(f"http://{host}:{metrics_port}/metrics", timeout=SECONDS) as answer:
        text = answer.read().decode()
    # The parser appends ``_total`` to the names of metrics that a comment declares as counters. Triton and our
    # dashboards do not, so the comments are left out.
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return [sample for family in text_string_to_metric_families("\n".join(lines)) for sample in family.samples]
