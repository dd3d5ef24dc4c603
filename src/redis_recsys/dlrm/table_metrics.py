"""Metrics of the parameter server's tables, exported to Prometheus by Triton."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..triton.counters import Key, Sender


def send_table_metrics(
    tables: Sequence[str], names: Sequence[str], counts: Callable[[], Mapping[Key, float]], family: Any
) -> Sender:
    """Send the counts of a parameter server, as ``recsys_table_<name>_total{table}``.

    Args:
        tables: names of the tables.
        names: names of the counts.
        counts: (name, table) -> count so far.
        family: ``pb_utils.MetricFamily``.
    """
    families = [
        family(name=f"recsys_table_{name}_total", description=f"Lookups of tables: {name}", kind=family.COUNTER)
        for name in names
    ]
    metrics: dict[Key, Any] = {
        (name, table): counter.Metric(labels={"table": table})
        for name, counter in zip(names, families, strict=True)
        for table in tables
    }
    return Sender(families, metrics, counts)
